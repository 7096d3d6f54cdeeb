"""A forecast as a drawing within the page: an SVG stretched to the column's width, and its words beside it as text.

So the words keep their size at every width, are in the visitor's language and the theme's colour, and a reader of
screens is told what is to be seen.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tabs.languages import ENGLISH, Words
from tabs.series import Series, nice, ticks

BANDS = (0.05, 0.25, 0.75, 0.95)  # quantiles of the sampled paths: the inner pair within the outer one
WIDE, HIGH = 1000, 500  # the SVG's own units


@dataclass(frozen=True)
class Frame:
    """The values that are at the bottom and at the top of a drawing, and the ticks between them."""

    low: float
    high: float
    step: float

    @property
    def ticks(self) -> list[float]:
        """The values with a line across."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]

    def down(self, values: np.ndarray) -> np.ndarray:
        """From values to the SVG's units, which are counted from the top."""
        return HIGH * (1 - (np.asarray(values, float) - self.low) / (self.high - self.low))


def frame(series: Series, sides: Sequence[np.ndarray]) -> Frame:
    """A frame for the series and the paths (P, N) of all columns, so that they can be compared. It holds zero, unless
    all values are far from it."""
    values = [series.history, series.truth]
    for paths in sides:
        values += [paths[0], *np.quantile(paths[1:], (BANDS[0], BANDS[-1]), axis=0)]
    low, high = float(np.min(np.concatenate(values))), float(np.max(np.concatenate(values)))
    if 0 < low < 0.6 * high:
        low = 0.0
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low if low == 0 else low - pad, high + pad
    return Frame(low, high, nice((high - low) / 5))


def naive(series: Series, season: int, ahead: int) -> np.ndarray:
    """The last season again, (ahead,)."""
    return np.resize(series.history[-season:], ahead)


def draw(series: Series, paths: np.ndarray, season: int, framed: Frame, said: str, words: Words = ENGLISH) -> str:
    """The end of the history, the truth, the central path in its bands and the last season again, as HTML.

    paths: (1 + P, N), the central one first. said: what is to be seen, for a reader of screens.
    """
    past, ahead = len(series.history), paths.shape[1]
    shown = min(past, max(season, 2 * ahead))
    below = "".join(
        f'<span style="left:{100 * share:.2f}%">{html.escape(text)}</span>'
        for share, text in ticks(series.axis(past - shown, past + ahead), words=words)
    )
    heights = framed.down(np.array(framed.ticks))
    beside = "".join(
        f'<span style="top:{100 * y / HIGH:.2f}%">{value:,.10g}</span>'
        for value, y in zip(framed.ticks, heights, strict=True)
    )
    rules = "".join(f'<line class="rule" x1="0" x2="{WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights)
    lines = _lines(series, paths, season, framed, shown)
    return (
        f'<figure class="chart" role="img" aria-label="{html.escape(said)}">{legend(words)}'
        f'<p class="unit">{html.escape(series.unit)}</p><div class="plot" aria-hidden="true">'
        f'<div class="beside">{beside}</div>'
        f'<svg viewBox="0 0 {WIDE} {HIGH}" preserveAspectRatio="none">{rules}{lines}</svg>'
        f'<div class="below">{below}</div></div></figure>'
    )


def _lines(series: Series, paths: np.ndarray, season: int, framed: Frame, shown: int) -> str:
    """The bands and lines; the last `shown` values of the history are drawn."""
    ahead = paths.shape[1]
    across = np.linspace(0, WIDE, shown + ahead)
    future = across[shown:]
    low, lower, upper, high = (framed.down(row) for row in np.quantile(paths[1:], BANDS, axis=0))
    known = np.concatenate([series.history[len(series.history) - shown :], series.truth])
    start = (across[shown - 1] + across[shown]) / 2
    return (
        f'<polygon class="outer" points="{_points(future, high)} {_points(future[::-1], low[::-1])}"/>'
        f'<polygon class="inner" points="{_points(future, upper)} {_points(future[::-1], lower[::-1])}"/>'
        f'<line class="start" x1="{start:.1f}" x2="{start:.1f}" y1="0" y2="{HIGH}"/>'
        f'<polyline class="observed" points="{_points(across[: len(known)], framed.down(known))}"/>'
        f'<polyline class="again" points="{_points(future, framed.down(naive(series, season, ahead)))}"/>'
        f'<polyline class="central" points="{_points(future, framed.down(paths[0]))}"/>'
    )


def legend(words: Words = ENGLISH) -> str:
    """What the lines and bands of both drawings are, as HTML."""
    return (
        '<p class="keys">'
        + "".join(
            f'<span><i class="{name}"></i>{text}</span>'
            for name, text in (
                ("observed", words("observed")),
                ("central", words("central path")),
                ("outer", words("90 % of paths")),
                ("inner", words("50 % of paths")),
                ("again", words("last season again")),
            )
        )
        + "</p>"
    )


def _points(across: np.ndarray, down: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))


CSS = """
.chart { margin: 0; --blue: #3f82e0; --amber: #c9782a; --ink: var(--body-text-color-subdued); }
.chart .unit { margin: 0 0 0.25rem; font-size: 0.8rem; line-height: 1.2; color: var(--ink); min-height: 1rem; }
.chart .plot { position: relative; height: 17rem; margin: 0 0.75rem 1.6rem 3.4rem; }
.chart svg { width: 100%; height: 100%; display: block; overflow: visible; }
.chart svg * { vector-effect: non-scaling-stroke; fill: none; stroke-linejoin: round; }
.chart .rule { stroke: var(--border-color-primary); stroke-width: 1; }
.chart .start { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 3; }
.chart .observed { stroke: var(--ink); stroke-width: 1.25; }
.chart .again { stroke: var(--amber); stroke-width: 1.25; stroke-dasharray: 4 3; }
.chart .central { stroke: var(--blue); stroke-width: 2.25; }
.chart svg .outer { fill: #3f82e0; fill-opacity: 0.18; }
.chart svg .inner { fill: #3f82e0; fill-opacity: 0.3; }
.chart .beside span, .chart .below span { position: absolute; font-size: 0.8rem; line-height: 1; color: var(--ink);
  white-space: nowrap; }
.chart .beside span { right: calc(100% + 0.5rem); transform: translateY(-50%); }
.chart .below span { top: calc(100% + 0.5rem); transform: translateX(-50%); }
.chart .keys { margin-bottom: 0.5rem; min-height: 2.8rem; align-content: flex-start; }
.keys { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0; font-size: 0.85rem; line-height: 1.4;
  color: var(--body-text-color-subdued); }
.keys span { display: inline-flex; align-items: center; gap: 0.4rem; }
.keys i { width: 1.4rem; height: 0; border-top: 2px solid currentColor; }
.keys .central { border-color: #3f82e0; border-top-width: 3px; }
.keys .again { border-top: 2px dashed #c9782a; }
.keys .outer, .keys .inner { height: 0.7rem; border: 0; background: #3f82e0; opacity: 0.25; }
.keys .inner { opacity: 0.5; }
"""
