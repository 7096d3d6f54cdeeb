"""What a graph of strings is held to: cases of whole texts, and the split of many strings, against Python's.

Awkward strings are always among them: empty ones, blanks, NUL and other control characters, combining marks, emoji of
several code points, characters of no width, scripts with and without blanks, what RE2 and Python's re tell apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from seqexport.reports import Property
from seqexport.runtimes import OnnxRuntime
from seqexport.specs import READ, as_texts
from seqexport.text import UNKNOWN, Vocabulary
from seqexport.textgraphs import joining_alone
from seqexport.verification import SEED, Case, Subject, make_case

AWKWARD = (
    *("", " ", "\n", "\x00", "a\x00b", "\x00\x00", "\t\r\n\x0b\x0c\x1c\x1f\x7f\x85\xa0", "\u2028\u2029\u3000"),
    *("e\u0301e\u0301", "\u0301", "don\u2019t", "don't", "\u2019\u2019", "''\u2019''\u2019''", "\u2018a\u2019"),
    *("\u200b", "a\u200bb", "\u200d\u200c\u2060\ufeff", "\ufeffa", "\u202eabc\u202c", "\u00ad", "\ufe0f", "\ufffd"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f!?"),
    *(
        "\u00c9COLE \u00e9cole",
        "\u00df\u1e9e\u0130\u0131\u017f\u212a",
        "\ufb01\ufb02",
        "\U0001d518",
        "\u02bc",
    ),
    *("\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3042\u30a2\u30fc", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab"),
    *("\u0e44\u0e17\u0e22", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0939\u093f\u0928\u094d"),
    *("\u0416\u044f", "\u03a9\u03c3\u03c2", "\U00020000\u9fff\u3400\u4dbf", "\U0010ffff\uffff\ufdd0\U000e0041"),
    *(UNKNOWN, "<a>", "[a-z]+", "\\", '"', "a" * 300, " " * 300, "!" * 50, "A-B_c.d", "3D 1,000.5 x\u00b2"),
)
# Code points that are drawn from: ranges in which scripts and signs lie, and the ends of those that words are made of.
_RANGES = (
    *((0, 0x7F), (0x80, 0x24F), (0x2B0, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2190, 0x2BFF), (0x3000, 0x30FF), (0x3400, 0x9FFF)),
    *((0xAC00, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF)),
    *((0x20000, 0x2FFFF), (0xE0000, 0xE01FF), (0x10FF00, 0x10FFFF)),
)
FEW, THOROUGH = 1_000, 20_000  # random strings whose split is compared
AT_A_TIME = 500  # strings of a batch
LONGEST = 20_000  # characters of the longest string


def random_text(vocabulary: Vocabulary, rng: np.random.Generator, most: int = 24) -> str:
    """A text of the vocabulary's own tokens, their case and apostrophes changed, awkward strings, and characters of any
    script, in up to `most` pieces with or without blanks between them."""
    pieces = []
    for kind in rng.integers(0, 10, rng.integers(0, most + 1)):
        token = vocabulary.tokens[rng.integers(1, len(vocabulary))]
        if kind < 4:
            pieces.append(token)
        elif kind == 4:
            pieces.append(token.swapcase())
        elif kind == 5:
            pieces.append(token.replace("'", "\u2019"))
        elif kind == 6:
            pieces.append(AWKWARD[rng.integers(len(AWKWARD))][:8])
        else:
            pieces.append("".join(map(chr, _code_points(rng, int(rng.integers(1, 6))))))
    return (" " if vocabulary.unit == "word" and rng.random() < 0.8 else "").join(pieces)


def _code_points(rng: np.random.Generator, count: int) -> list[int]:
    first, last = _RANGES[rng.integers(len(_RANGES))]
    return [point for point in rng.integers(first, last, count, endpoint=True).tolist() if not 0xD800 <= point < 0xE000]


def text_cases(subject: Subject, vocabulary: Vocabulary, ordinary: bool = False) -> list[Case]:
    """Cases for a graph of strings: texts alone and in batches, of no token up to hundreds; for one that writes, also
    with each of its settings, and chunks with the state carried.

    ordinary: only of the vocabulary's tokens, for what is held against another net's numbers and not against the same.
    """
    rng = np.random.default_rng(SEED + 3)
    name, *others = subject.inputs
    batches = {
        "a text without tokens": [""],
        "a NUL character": ["\x00"],
        "texts of no, one and many tokens": ["", vocabulary.tokens[1], random_text(vocabulary, rng, 200)],
        "awkward texts": list(AWKWARD),
        "a long text": ["".join(random_text(vocabulary, rng) for _ in range(30))],
        **{f"{count} random texts": [random_text(vocabulary, rng) for _ in range(count)] for count in (1, 2, 5, 8, 16)},
    }
    if ordinary:
        between = " " if vocabulary.unit == "word" else ""
        drawn = [rng.integers(1, len(vocabulary), rng.integers(1, 80)) for _ in range(31)]
        texts = [between.join(vocabulary.tokens[token] for token in row) for row in drawn]
        batches = {f"{count} texts of its tokens": texts[count - 1 : 2 * count - 1] for count in (1, 2, 4, 8, 16)}
    rest = Subject(subject.part, tuple(others), subject.state_map)
    settings, steps, cases = itertools.cycle(subject.settings), itertools.cycle((1, 2, 9, 5)), []
    states = ("zero state", "random state") if subject.state_map else ("",)
    for (about, texts), state in itertools.product(batches.items(), states):
        sizes = {"batch": len(texts), "steps": next(steps)} if others else {"batch": len(texts)}
        case = make_case(rest, [about, state], sizes, state == "random state", next(settings), rng)
        cases.append(Case(case.name, subject.sharpen({name.name: as_texts(texts), **case.feeds}), None, sizes))
    if subject.chunked and subject.state_map:
        texts, sizes = [random_text(vocabulary, rng) for _ in range(3)], {"batch": 3, "steps": 12}
        case = make_case(rest, ["chunks of 5 + 1 + 6 steps against the whole"], sizes, True, {}, rng)
        cases.append(Case(case.name, {name.name: as_texts(texts), **case.feeds}, (5, 1, 6), sizes))
    return cases


def strings_to_split(vocabulary: Vocabulary, count: int) -> Iterator[list[str]]:
    """Batches of strings: every token of the vocabulary in each of its spellings, the awkward ones, long ones, and so
    many random ones."""
    rng = np.random.default_rng(SEED + 4)
    long = [sign * LONGEST for sign in ("a", "\u4f60", "'", "\U0001f600", " ", "\u0301")]
    known = [*vocabulary.spellings, *AWKWARD]
    for start in range(0, len(known), AT_A_TIME):
        yield known[start : start + AT_A_TIME]
    yield [*long, "".join(random_text(vocabulary, rng) for _ in range(500)), ""]
    for start in range(0, count, AT_A_TIME):
        yield [random_text(vocabulary, rng) for _ in range(min(AT_A_TIME, count - start))]


def differences(runtime: OnnxRuntime, vocabulary: Vocabulary, texts: Sequence[str]) -> list[str]:
    """Those of the texts of which the graph reads other pieces or numbers than Python. runtime: a graph of strings,
    asked for no more than READ."""
    source = runtime.inputs[0].name
    feeds = {source: as_texts(texts)}
    for spec in runtime.inputs[1:]:  # what the split does not depend on, but onnxruntime wants to have
        if not spec.optional:
            feeds[spec.name] = spec.filled({"batch": len(texts), "steps": 1})
    found = runtime.run(feeds)
    tokens, lengths = vocabulary.encode_batch(texts)
    if found["numbers"].shape != tokens.shape or found["pieces"].shape != tokens.shape:
        return list(texts)
    same = (found["numbers"] == tokens).all(1) & (found["lengths"] == lengths)
    pieces = found["pieces"].tolist()
    for row, text in enumerate(texts):
        split = vocabulary.split(text)
        same[row] &= pieces[row] == split + [""] * (tokens.shape[1] - len(split))
    return [text for text, agrees in zip(texts, same, strict=True) if not agrees]


def split_as_in_python(part: str, runtime: OnnxRuntime, vocabulary: Vocabulary, count: int) -> Property:
    """The graph's split of many strings, `count` random ones among them, against Python's."""
    reading, tried, apart = runtime.only(*READ), 0, []
    for texts in strings_to_split(vocabulary, count):
        tried += len(texts)
        apart += differences(reading, vocabulary, texts)
    notes = tuple(f"{text!r:.80} is read as something else" for text in apart[:3])
    claim, reason = "the graph reads of every string the tokens that Python reads", "no string may differ"
    return Property(part, "split", claim, tried, len(apart), 0.0, reason, notes=notes)


def joined_as_in_python(part: str, model: onnx.ModelProto, vocabulary: Vocabulary) -> Property:
    """What a generator's graph writes for every token, alone and in rows of many, against Python's."""
    runtime = OnnxRuntime(joining_alone(model).SerializeToString())
    rng, size = np.random.default_rng(SEED + 5), len(vocabulary)
    batches = [np.arange(size)[:, None], np.arange(size)[None]]
    batches += [rng.integers(0, size, (3, steps)) for steps in (*range(1, 18), 1_000)]
    apart, tried = 0, 0
    for tokens in batches:
        found = runtime.run({"tokens": tokens})["text"]
        apart += sum(text != vocabulary.decode(row) for text, row in zip(found, tokens, strict=True))
        tried += len(tokens)
    claim, reason = "the graph joins tokens to the text that Python joins them to", "no text may differ"
    return Property(part, "join", claim, tried, apart, 0.0, reason)
