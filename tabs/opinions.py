"""How the Sentiment tab shows opinions, as HTML: labels, the line of an opinion as it moves, words in its shades."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np

from seqexport.text import WORDS, Vocabulary
from tabs.languages import ENGLISH, Words
from tabs.racing import Column

SHADED, POINTS = 2_000, 300  # tokens of a column with a shade, points of a line: each costs the browser something
POSITIVE, NEGATIVE = "63,130,224", "201,120,42"  # red, green, blue of the leanings' backgrounds

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
.legend, .legend p { color: var(--body-text-color-subdued); margin: 0; line-height: 1.5; font-size: 0.9rem; }
#sentiment-legend { padding: 0 10px; }
"""


def label_said(label: str, words: Words = ENGLISH) -> str:
    """A label in the visitor's language; one that has no translation stays what it is."""
    return {"positive": words("positive"), "negative": words("negative")}.get(label, label)


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


def shaded(vocabulary: Vocabulary, text: str, positive: np.ndarray, words: Words = ENGLISH) -> str:
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
        title = words("{share:.0f} % positive", share=100 * share)
        title += "" if known else words(", unknown to the net")
        unknown = "" if known else ' class="unknown"'
        shown.append(f'<span{unknown} style="background:{colour}" title="{html.escape(title)}">{escaped}</span>')
    return "".join(shown)


def sparkline(positive: np.ndarray, words: Words = ENGLISH) -> str:
    """The probability of positive after each token (T,), as a small line; the middle is 50 %."""
    xs = np.linspace(0, 100, min(max(2, len(positive)), POINTS))
    values = positive[np.round(xs / 100 * (len(positive) - 1)).astype(int)]
    points = " ".join(f"{x:.2f},{100 * (1 - value):.1f}" for x, value in zip(xs, values, strict=True))
    first, last, low, high = (100 * share for share in (positive[0], positive[-1], positive.min(), positive.max()))
    label = words(
        "Probability of positive: {first:.0f} % at first, {last:.0f} % in the end, between {low:.0f} % and {high:.0f} "
        "% on the way",
        first=first,
        last=last,
        low=low,
        high=high,
    )
    return (
        '<svg class="spark" viewBox="0 -4 100 108" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}"><line x1="0" y1="50" x2="100" y2="50"/><polyline points="{points}"/></svg>'
    )


def show_texts(
    vocabulary: Vocabulary, labels: Sequence[str], texts: Sequence[str], column: Column, words: Words = ENGLISH
) -> str:
    """A column's answer as HTML: for each text its label, how the opinion moved, and the words in its shades."""
    blocks, left = [], SHADED
    for row, text in enumerate(texts):
        probabilities = column.outputs["probabilities"][row]
        best = int(probabilities.argmax())
        tokens = len(vocabulary.encode(text))
        positive = column.outputs["running"][row, :tokens, 1]
        blocks.append(
            f'<div class="opinion"><p class="label"><b>{html.escape(label_said(labels[best], words))}</b> '
            f"{100 * probabilities[best]:.1f} %</p>{sparkline(positive, words)}"
            f'<p class="words">{shaded(vocabulary, text, positive[:left], words)}</p></div>'
        )
        left = max(0, left - tokens)
    return "".join(blocks)
