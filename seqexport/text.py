"""Vocabularies: text to token numbers and back, split alike in Python and by onnxruntime's Tokenizer node.

Models are trained on this split, and a graph that takes strings repeats it. So it uses explicit ranges of characters
only (the node's regular expressions are RE2, whose classes such as \\w differ from Python's), and lower-cases ASCII
only (as StringNormalizer does in the locale "C", the one that every system has).
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from seqexport.errors import InputError, SpecError
from seqexport.specs import TensorSpec, check_whole

Unit: TypeAlias = Literal["word", "character"]
UNKNOWN = "<unknown>"  # token 0: more than one character, and in no word's range, so that no text can hold it
REPLACEMENT = "\ufffd"  # what an unknown character is written as

# What a word is made of: letters of scripts that put blanks between words, digits, apostrophes, and accents that
# stand apart. Scripts without blanks give a token a character. Of the signs, ! and ? say something of an opinion.
_LETTERS = (
    "A-Za-z0-9'\u2019"
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"  # Latin with accents
    "\u0300-\u036f"  # accents that stand apart
    "\u0370-\u03ff\u0400-\u052f"  # Greek, Cyrillic
    "\u0531-\u0587\u05d0-\u05ea\u0620-\u065f"  # Armenian, Hebrew, Arabic
    "\u0900-\u0dff"  # the scripts of India
    "\u1e00-\u1fff"  # Latin and Greek with several accents
    "\uac00-\ud7a3"  # Korean
)
_SINGLES = "!?\u0e01-\u0e5b\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01\uff1f"  # Thai, Japanese, Chinese
WORDS = f"[{_LETTERS}]+|[{_SINGLES}]"

_WORDS = re.compile(WORDS)
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, each at its number. tokens[0] is `UNKNOWN`, which stands for every other text.

    unit: word or character. lowercase: ASCII letters are lower-cased before the split.
    """

    unit: Unit
    tokens: tuple[str, ...]
    lowercase: bool = False

    def __post_init__(self) -> None:
        if self.unit not in ("word", "character"):
            raise SpecError(f"The vocabulary's unit is {self.unit!r}; expected word or character.")
        if type(self.lowercase) is not bool:
            raise SpecError(f"The vocabulary's lowercase is {self.lowercase!r}; expected true or false.")
        if self.tokens[:1] != (UNKNOWN,) or len(self.tokens) < 2:
            raise SpecError(f"The vocabulary starts with {self.tokens[:1]}; expected {UNKNOWN!r} and more after it.")
        for token in self.tokens[1:]:
            if not isinstance(token, str) or self.split(token) != [token]:
                raise SpecError(f"The vocabulary has the token {token!r:.40}, which no text splits into: drop it.")
        if len(self.numbers) < len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise SpecError(f"The vocabulary has the token {twice!r:.40} twice: drop one.")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Vocabulary:
        """The `vocabulary` of a checkpoint's `preprocessing` entry. Raises SpecError if it does not fit."""
        try:
            return cls(fields["unit"], tuple(fields["tokens"]), fields["lowercase"])
        except (KeyError, TypeError) as error:
            raise SpecError("The vocabulary lacks or garbles unit, tokens or lowercase.") from error

    @classmethod
    def counted(
        cls, texts: Iterable[str], unit: Unit, *, lowercase: bool, size: int | None = None, least: int = 1
    ) -> Vocabulary:
        """The vocabulary of the texts' tokens, the most frequent first: at most `size` with the unknown one, each
        seen at least `least` times. Equal counts go by the token itself, so that the same texts give the same."""
        empty = cls(unit, (UNKNOWN, "a"), lowercase)
        counts = Counter(token for text in texts for token in empty.split(text))
        kept = sorted((token for token, count in counts.items() if count >= least), key=lambda t: (-counts[t], t))
        return cls(unit, (UNKNOWN, *kept[: None if size is None else size - 1]), lowercase)

    def to_dict(self) -> dict[str, Any]:
        """The `vocabulary` of a checkpoint's `preprocessing` entry."""
        return {"unit": self.unit, "lowercase": self.lowercase, "tokens": list(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Token → its number."""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The attributes of onnxruntime's com.microsoft.Tokenizer that make it split as `split` does, after
        StringNormalizer has lower-cased (locale "C") where `lowercase` says so."""
        how = {"separators": [""]} if self.unit == "character" else {"tokenexp": WORDS}
        return {"mark": 0, "pad_value": "", "mincharnum": 1, **how}

    @cached_property
    def spellings(self) -> dict[str, int]:
        """Every spelling of a token that a text may have → its number; what is not here is unknown, 0.

        A curly apostrophe counts as a straight one, so that a phone's "don\u2019t" is the "don't" of the data, unless
        the curly spelling is a token too. Of a token with many apostrophes, the spellings that mix both are left out.
        This table is all there is of the rule: a graph that takes strings holds it as it is.
        """
        known = {token: number for token, number in self.numbers.items() if number}
        curly: dict[str, int] = {}
        for token, number in known.items():
            if "'" in token and "\u2019" not in token:
                curly |= dict.fromkeys(_curly(token), number)
        return curly | known

    def split(self, text: str) -> list[str]:
        """The text's tokens, known or not. Raises InputError for a lone surrogate, which is half a character."""
        check_whole(text)
        if self.lowercase:
            text = text.translate(_LOWER)
        return list(text) if self.unit == "character" else _WORDS.findall(text)

    def encode(self, text: str) -> list[int]:
        """The numbers of the text's tokens, 0 for an unknown one. A text without tokens is one unknown token."""
        known = self.spellings
        return [known.get(token, 0) for token in self.split(text)] or [0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts → tokens int64 [batch, time], 0 after a text's end, and lengths int64 [batch]."""
        if not len(texts):
            raise InputError("There is no text; give at least one.")
        return pad([self.encode(text) for text in texts])

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of the numbers: characters one after another, words with a blank between them."""
        tokens = (self.tokens[number] if number else REPLACEMENT for number in map(int, numbers))
        return ("" if self.unit == "character" else " ").join(tokens)

    def unknown(self, text: str) -> list[str]:
        """The different tokens of the text that the model does not know, in their order."""
        return list(dict.fromkeys(token for token in self.split(text) if token not in self.spellings))


MOST_MIXED = 6  # apostrophes of a token of which every mixture of straight and curly ones is a spelling


def _curly(token: str) -> Iterator[str]:
    """The token with curly apostrophes in place of straight ones: in every way, or, of many, in all places at once."""
    first, *parts = token.split("'")
    signs = ["'\u2019"] * len(parts) if len(parts) <= MOST_MIXED else ["\u2019"]
    for chosen in itertools.product(*signs):
        wanted = chosen if len(chosen) == len(parts) else chosen * len(parts)
        yield first + "".join(sign + part for sign, part in zip(wanted, parts, strict=True))


def pad(rows: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of texts → tokens int64 [batch, time], 0 after a text's end, and lengths int64 [batch]."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for place, numbers in zip(tokens, rows, strict=True):
        place[: len(numbers)] = numbers
    return tokens, lengths


def read_prompt(vocabulary: Vocabulary, prompt: str, window: int | None = None) -> tuple[np.ndarray, list[str]]:
    """A generator's prompt → tokens int64 [1, time], and what a person should know of them, in sentences.

    window: how many tokens back the model was trained to look. Raises InputError for an empty prompt, or one of which
    the model knows no character.
    """
    if not prompt:
        raise InputError("The prompt is empty; give at least one character to go on from.")
    tokens, _ = vocabulary.encode_batch([prompt])
    unknown = vocabulary.unknown(prompt)
    shown = " ".join(map(repr, unknown[:8])) + (" …" if len(unknown) > 8 else "")
    if not tokens.any():
        raise InputError(f"The model knows none of the prompt's characters ({shown}); use the model's language.")
    notes = [f"The model does not know {shown} and reads a placeholder instead."] if unknown else []
    if window is not None and tokens.shape[1] > window:
        notes.append(
            f"The prompt has {tokens.shape[1]:,} characters and all are read, but the model was trained to look back "
            f"over {window:,}: what lies further back has little influence."
        )
    return tokens, notes


def text_feeds(
    inputs: Sequence[TensorSpec], preprocessing: Mapping[str, Any], text: str
) -> tuple[dict[str, Any], list[str]]:
    """A text as what a model with these inputs reads, and what a person should know of it, in sentences.

    Raises InputError for a model that reads no text.
    """
    names = [spec.name for spec in inputs]
    if inputs and inputs[0].dtype == "string":
        return {names[0]: [text]}, []
    if "vocabulary" not in preprocessing or not {"prompt", "tokens"} & set(names):
        raise InputError(f"The model reads no text; expected values for {', '.join(names)}.")
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    if "prompt" in names:
        prompt, notes = read_prompt(vocabulary, text, preprocessing.get("window"))
        return {"prompt": prompt}, notes
    tokens, lengths = vocabulary.encode_batch([text])
    return {"tokens": tokens, **({"lengths": lengths} if "lengths" in names else {})}, []


def text_answer(preprocessing: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> list[str]:
    """What the outputs of a model that reads text say in words: labels with their probability, or the text written on,
    one for each row; nothing for other outputs."""
    if "probabilities" in outputs and "labels" in preprocessing:
        labels = preprocessing["labels"]
        return [f"{labels[row.argmax()]} ({100 * row.max():.1f} %)" for row in outputs["probabilities"]]
    if "tokens" in outputs and "vocabulary" in preprocessing:
        vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
        return [vocabulary.decode(row) for row in outputs["tokens"]]
    return []
