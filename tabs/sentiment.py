"""The Sentiment tab: what a net thinks of texts, and how its opinion moves word by word. Pure functions first, then the
tab and its events."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from seqexport.errors import InputError
from seqexport.text import WORDS, Vocabulary
from tabs import racing
from tabs.racing import ALONE, EVENT, TOLERANCE, Column, one_of, sentences

MODELS = {"English": "sentiment-en", "中文": "sentiment-zh"}
MAX_TEXTS, MAX_LENGTH = 32, 5_000  # texts, characters of one
SHADED, POINTS = 2_000, 300  # tokens of a column with a shade, points of a line: each costs the browser something
EXAMPLES = {
    "A turn": (
        "English",
        "The first hour is slow and clumsy, and I nearly gave up, but then the story finds its feet, the actors come "
        "alive, and the ending is simply wonderful.",
    ),
    "Not bad at all": (
        "English",
        "Not bad at all.\nNot good at all.\nI have seen worse, though not often.\nYou could do far worse than this!",
    ),
    "Mixed feelings": (
        "English",
        "Beautiful pictures, a dull script, and one brilliant actor who deserves a better film.\n"
        "My children loved every minute; I looked at my watch three times.",
    ),
    "转折": ("中文", "房间有点旧，早餐也很一般，不过服务员非常热情，位置又方便，下次还会再来。"),
    "还不错": ("中文", "还不错。\n一点也不好。\n没有想象中那么差，但也谈不上好。"),
    "有好有坏": ("中文", "书的内容很精彩，可惜印刷质量太差了。\n电脑速度快，屏幕漂亮，就是风扇有点吵。"),
}
POSITIVE, NEGATIVE = "63,130,224", "201,120,42"  # red, green, blue of the leanings' backgrounds


def split_lines(texts: str | Sequence[Any] | None) -> list[str]:
    """One text a line, or a list of texts; empty ones are dropped. Raises InputError for none, too many or too long."""
    lines = texts if isinstance(texts, list) else str(texts or "").splitlines()
    if not all(isinstance(line, str) for line in lines):
        raise InputError("The texts are not all texts; give a list of strings.")
    lines = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(lines) <= MAX_TEXTS:
        raise InputError(f"There are {len(lines)} texts; expected 1 to {MAX_TEXTS}, one a line.")
    for position, line in enumerate(lines, 1):
        if len(line) > MAX_LENGTH:
            raise InputError(f"Text {position} has {len(line):,} characters; expected at most {MAX_LENGTH:,}.")
    return lines


def about(language: str) -> tuple[str, Vocabulary, list[str]]:
    """The model of a language, its vocabulary and its labels."""
    model = MODELS[one_of("language", language, tuple(MODELS))]
    preprocessing = racing.load_runtime(model, "classify", "onnxruntime").metadata["preprocessing"]
    return model, Vocabulary.from_dict(preprocessing["vocabulary"]), preprocessing["labels"]


def pieces(vocabulary: Vocabulary, text: str) -> list[tuple[str, bool, bool]]:
    """The text cut into its tokens and what lies between them: (piece, whether it is a token, whether it is known)."""
    if vocabulary.unit == "character":
        return [(character, True, bool(vocabulary.encode(character)[0])) for character in text]
    parts, end = [], 0
    for match in re.finditer(WORDS, text):
        if match.start() > end:
            parts.append((text[end : match.start()], False, True))
        parts.append((match[0], True, bool(vocabulary.encode(match[0])[0])))
        end = match.end()
    return [*parts, (text[end:], False, True)] if end < len(text) else parts


def shaded(vocabulary: Vocabulary, text: str, positive: np.ndarray) -> str:
    """The text as HTML, each token on the shade of the opinion after it; `positive` is its probability, (tokens,).

    Where it has fewer values than the text has tokens, the others are plain.
    """
    shown, step = [], 0
    for piece, is_token, known in pieces(vocabulary, text):
        escaped = html.escape(piece)
        if not is_token or step == len(positive):
            shown.append(escaped)
            continue
        share = float(positive[step])
        step += 1
        colour = f"rgba({POSITIVE if share >= 0.5 else NEGATIVE},{0.1 + 1.1 * abs(share - 0.5):.2f})"
        title = f"{100 * share:.0f} % positive" + ("" if known else ", a word the model does not know")
        unknown = "" if known else ' class="unknown"'
        shown.append(f'<span{unknown} style="background:{colour}" title="{title}">{escaped}</span>')
    return "".join(shown)


def sparkline(positive: np.ndarray) -> str:
    """The probability of positive after each token (T,), as a small line; the middle is 50 %."""
    xs = np.linspace(0, 100, min(max(2, len(positive)), POINTS))
    values = positive[np.round(xs / 100 * (len(positive) - 1)).astype(int)]
    points = " ".join(f"{x:.2f},{100 * (1 - value):.1f}" for x, value in zip(xs, values, strict=True))
    label = f"Probability of positive, from {100 * positive[0]:.0f} % to {100 * positive[-1]:.0f} %"
    return (
        f'<svg class="spark" viewBox="0 -4 100 108" preserveAspectRatio="none" role="img" aria-label="{label}">'
        '<line x1="0" y1="50" x2="100" y2="50"/>'
        f'<polyline points="{points}"/></svg>'
    )


def show_texts(vocabulary: Vocabulary, labels: Sequence[str], texts: Sequence[str], column: Column) -> str:
    """A column's answer as HTML: for each text its label, how the opinion moved, and the words in its shades."""
    blocks, left = [], SHADED
    for row, text in enumerate(texts):
        probabilities = column.outputs["probabilities"][row]
        best = int(probabilities.argmax())
        tokens = len(vocabulary.encode(text))
        positive = column.outputs["running"][row, :tokens, 1]
        blocks.append(
            f'<div class="opinion"><p class="label"><b>{html.escape(labels[best])}</b> '
            f"{100 * probabilities[best]:.1f} %</p>{sparkline(positive)}"
            f'<p class="words">{shaded(vocabulary, text, positive[:left])}</p></div>'
        )
        left = max(0, left - tokens)
    return "".join(blocks)


def figures_of(column: Column, labels: Sequence[str], lengths: np.ndarray) -> dict[str, Any]:
    """An answer's numbers for JSON."""
    probabilities, running = column.outputs["probabilities"], column.outputs["running"]
    return {
        "runtime": column.runtime,
        "labels": [labels[best] for best in probabilities.argmax(-1)],
        "probabilities": probabilities.astype(float).round(6).tolist(),
        "running": [
            row[:length, 1].astype(float).round(4).tolist() for row, length in zip(running, lengths, strict=True)
        ],
        "milliseconds": round(column.milliseconds, 3),
        "texts_per_second": round(1000 * len(lengths) / column.milliseconds, 1),
        "note": column.note,
    }


def compare(one: Column, other: Column) -> dict[str, Any]:
    """The greatest difference of a probability, whether that counts as the same, whether every label is the same, and
    the speed-up, None where there is nothing to race."""
    pairs = [(one.outputs[name], other.outputs[name]) for name in ("probabilities", "running")]
    apart = float(np.max([np.abs(left - right).max() for left, right in pairs]))
    choices = [column.outputs["probabilities"].argmax(-1) for column in (one, other)]
    same = apart <= TOLERANCE  # written so that NaN is not the same
    return {
        "difference": apart,
        "same": same,
        "labels_agree": bool((choices[0] == choices[1]).all()),
        "speed_up": one.milliseconds / other.milliseconds if same and one.runtime != other.runtime else None,
    }


def say(
    result: Mapping[str, Any], one: Column, other: Column, texts: int, tokens: int, unit: str, unknown: int = 0
) -> str:
    """The result as HTML: who is faster, how far the answers differ, and what the net does not know."""
    lead = f"The answers differ by {result['difference']:.1e}, more than {TOLERANCE:.0e}: no speed is shown."
    if result["same"]:
        lead = racing.race_sentence(one.runtime, other.runtime, result["speed_up"])
    agree = "All labels agree" if result["labels_agree"] else "Not all labels agree"
    what = f"{texts} text{'s' * (texts > 1)} of {tokens:,} {unit}s"
    detail = f"{agree}; the probabilities, after each of the {tokens:,} {unit}s too, differ by at most "
    detail += f"{result['difference']:.1e}. Both read {what} in one batch"
    if unknown:
        detail += f", {unknown:,} unknown to the net"
        detail += ": is this its language?" if 2 * unknown > tokens else "."
    else:
        detail += "."
    return racing.say(lead, detail)


def sentiment(language: str, text: str, left: str, right: str) -> tuple[str, str, str, str, str, dict[str, Any]]:
    """One batch of texts to two runtimes → the sentence, left's latency and texts, right's, and all the numbers.
    `text` has one text a line; `language` is "English" or "中文"."""
    with sentences():
        names = racing.chosen(left, right, "classify")
        texts = split_lines(text)
        model, vocabulary, labels = about(language)
        tokens, lengths = vocabulary.encode_batch(texts)
        columns = racing.measure(model, "classify", names, {"tokens": tokens, "lengths": lengths}).columns
    one, other = (columns[name] for name in names)
    result = compare(one, other)
    sides = []
    for column in (one, other):
        speed = f"{1000 * len(texts) / column.milliseconds:,.0f} texts/s; "
        latency = racing.show_latency(column if result["same"] else None, speed)
        sides += [latency, show_texts(vocabulary, labels, texts, column)]
    numbers = result | {
        "language": language,
        "left": figures_of(one, labels, lengths),
        "right": figures_of(other, labels, lengths),
    }
    count = int(lengths.sum())
    unknown = count - int(np.count_nonzero(tokens))  # 0 is the unknown token, and what stands after a text's end
    lead = say(result, one, other, len(texts), count, vocabulary.unit, unknown)
    return lead, sides[0], sides[1], sides[2], sides[3], numbers


def sentiment_values(texts: list[str], language: str = "English", runtime: str = "onnxruntime") -> dict[str, Any]:
    """Classify 1 to 32 texts in one runtime → their labels, probabilities [texts, 2], the probability of positive after
    each token, and the milliseconds of the model's call for all of them."""
    with sentences():
        one_of("runtime", runtime, racing.present("classify"))
        rows = split_lines(texts)
        model, vocabulary, labels = about(language)
        tokens, lengths = vocabulary.encode_batch(rows)
        column = racing.measure(model, "classify", [runtime], {"tokens": tokens, "lengths": lengths}).columns[runtime]
    return figures_of(column, labels, lengths) | {"language": language}


CSS = """
.opinion { border-top: 1px solid var(--border-color-primary); padding: 0.75rem 0; }
.opinion .label { margin: 0; font-size: 1.1rem; }
.opinion .words { margin: 0.25rem 0 0; line-height: 1.9; overflow-wrap: anywhere; white-space: pre-wrap; }
.opinion .words span { border-radius: 2px; padding: 0.1em 0; }
.opinion .unknown { text-decoration: underline dotted; text-underline-offset: 0.25em; }
.spark { display: block; width: 100%; height: 2.5rem; margin: 0.35rem 0; overflow: visible; }
.spark line { stroke: var(--body-text-color-subdued); stroke-width: 1; stroke-dasharray: 3 3; opacity: 0.6; }
.spark polyline { fill: none; stroke: #3f82e0; stroke-width: 2; }
.spark * { vector-effect: non-scaling-stroke; }
.legend { color: var(--body-text-color-subdued); margin: 0; line-height: 1.5; }
"""


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab that tells what texts think, and its events."""
    for model in MODELS.values():
        racing.require_model(model)
    result = gr.HTML(elem_id="sentiment-result", elem_classes="result", min_height=84)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            note = "The English net read reviews of films, the Chinese one opinions on hotels, books and computers."
            language = gr.Radio(list(MODELS), value="English", label="Language of the net", info=note)
        with gr.Column(scale=2, min_width=320):
            note = f"One text a line, at most {MAX_TEXTS} of {MAX_LENGTH:,} characters."
            text = gr.Textbox(EXAMPLES["A turn"][1], label="Texts", info=note, lines=4, max_lines=12)
    examples = gr.Examples([list(pair) for pair in EXAMPLES.values()], [language, text], example_labels=list(EXAMPLES))
    go = gr.Button("Classify", variant="primary", size="lg")
    gr.HTML(
        '<p class="legend">The line is the probability of positive after each word (after each character in Chinese), '
        "its middle 50 %. Words are shaded by it: blue leans positive, amber negative; point at one for its number. "
        f"Dotted words are unknown to the net. Of long texts the first {SHADED:,} words are shaded.</p>"
    )
    sides = []
    for runtime, latency in racing.columns("classify", height=112):  # three lines of note
        sides.append((runtime, latency, gr.HTML(elem_classes="opinions")))
    with gr.Accordion("All the numbers", open=False):
        numbers = gr.JSON(label="Result", show_label=False)

    (left, *left_outputs), (right, *right_outputs) = sides
    inputs = [language, text, left, right]
    outputs = [result, *left_outputs, *right_outputs, numbers]
    go.click(sentiment, inputs, outputs, api_name="sentiment", **EVENT)
    examples.load_input_event.success(sentiment, inputs, outputs, api_visibility="private", **EVENT)
    # The first answer is made when the tab is first looked at, and not while the page opens.
    here.select(
        lambda shown, *question: (gr.skip(),) * 6 if shown else sentiment(*question),
        [result, *inputs], outputs, api_visibility="private", **EVENT,
    )  # fmt: skip
    gr.api(sentiment_values, api_name="sentiment_values", **ALONE)
