"""Figures and tables as HTML: bars and dots beside their numbers, lines from matplotlib, tables that can be downloaded.

Everything that is drawn stands there in words too. Bars and dots are boxes whose place is a share of the width, so that
they fit a telephone; only what needs axes is a picture.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tabs.languages import Words

_DRAWING = threading.Lock()  # matplotlib's settings are the process's


@dataclass(frozen=True)
class Line:
    """A row of a chart. told: its numbers in words. values: where its marks stand: of bars the bar's end and, where
    there is one, the mark beyond it; of dots each dot. hollow: the mark has an outline only."""

    label: str
    told: str
    colour: str
    values: tuple[float, ...]
    hollow: bool = False


def bars(title: str, note: str, lines: Sequence[Line], logarithmic: bool = False) -> str:
    """A bar for each line, from 0, or from below the least value where the axis is logarithmic."""
    values = [value for line in lines for value in line.values if value > 0 and math.isfinite(value)]
    if not values:
        return _chart(title, note, [(line, "") for line in lines])
    low, high = (_decade(min(values)), max(values)) if logarithmic else (0.0, max(values))
    place = _scale(low, high, logarithmic)
    grid = "".join(f'<i class="decade" style="left:{place(at):.2f}%"></i>' for at in _decades(low, high, logarithmic))
    drawn = []
    for line in lines:
        if not line.values:
            drawn.append((line, ""))
            continue
        end, *beyond = (place(value) for value in line.values)
        kind = "hollow" if line.hollow else "full"
        marks = f'<i class="bar {kind}" style="width:{end:.2f}%;--colour:{line.colour}"></i>'
        marks += "".join(
            f'<i class="reach" style="left:{end:.2f}%;width:{max(0.0, at - end):.2f}%;--colour:{line.colour}"></i>'
            for at in beyond
        )
        drawn.append((line, f'<span class="track" aria-hidden="true">{grid}{marks}</span>'))
    return _chart(title, note, drawn)


def dots(title: str, note: str, lines: Sequence[Line]) -> str:
    """A dot for each value, and a stroke at their mean; the least value of all is at the left, the greatest at the
    right."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    place = _scale(min(values, default=0.0), max(values, default=1.0), False, margin=2.0)
    drawn = []
    for line in lines:
        seen = [value for value in line.values if math.isfinite(value)]
        kind = "hollow" if line.hollow else "full"
        marks = [f'<i class="dot {kind}" style="left:{place(v):.2f}%;--colour:{line.colour}"></i>' for v in seen]
        if seen:
            mean = place(sum(seen) / len(seen))
            marks.append(f'<i class="mean" style="left:{mean:.2f}%;--colour:{line.colour}"></i>')
        drawn.append((line, f'<span class="track" aria-hidden="true">{"".join(marks)}</span>'))
    return _chart(title, note, drawn)


def _chart(title: str, note: str, drawn: Sequence[tuple[Line, str]]) -> str:
    rows = "".join(
        f'<li><span class="name">{escape(line.label)}</span> <span class="told">{escape(line.told)}</span>{track}</li>'
        for line, track in drawn
    )
    about = f' <span class="note">{escape(note)}</span>' if note else ""
    return f'<figure class="chart"><figcaption>{escape(title)}{about}</figcaption><ul>{rows}</ul></figure>'


def _scale(low: float, high: float, logarithmic: bool, margin: float = 0.0) -> Callable[[float], float]:
    """A value's place in per cent of the width."""

    def place(value: float) -> float:
        if logarithmic:
            share = math.log(max(value, low) / low) / max(math.log(high / low), 1e-9)
        else:
            share = (value - low) / max(high - low, 1e-300) if high > low else 0.5
        return margin + (100 - 2 * margin) * min(1.0, max(0.0, share))

    return place


def _decade(value: float) -> float:
    """The power of ten below a value, and not just below it: a bar that begins there can be seen."""
    return 10.0 ** math.floor(math.log10(value) - 0.1)


def _decades(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return []
    first, last = round(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first + 1, last + 1)]


def picture(title: str, about: str, draw: Callable[[Any], None], height: float) -> str:
    """What `draw` puts into a matplotlib figure of that height in inches, in the page's own letters and their colour.
    about: what a reader aloud says of it."""
    from seqexport.pages import GREY
    from seqexport.plots import figure

    with _DRAWING:
        svg = figure(draw, height, about)
    svg = re.sub(r"\s*<(title|metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font(-family)?: [^;\"]*?('DejaVu Sans'[^;\"]*)", lambda m: m[0].replace(m[2], "inherit"), svg)
    svg = svg.replace(GREY, "currentColor")
    # Two pictures of one page must not share names: a mark would be looked for in the other one.
    mark = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(about, quote=True)}" ', 1)
    return f'<figure class="chart picture"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """(label, colour, hollow) → what the marks mean."""
    marks = (
        f'<span><i class="dot {"hollow" if hollow else "full"}" style="--colour:{colour}"></i>{escape(label)}</span>'
        for label, colour, hollow in entries
    )
    return f'<p class="marks">{"".join(marks)}</p>'


def table(
    name: str,
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Sequence[Mapping[str, Any]],
    words: Words,
) -> str:
    """A table that scrolls by itself where it is wider than the page, and a link that downloads `records`, which have
    plain numbers, as the CSV file `name`. A row's first cell is its head."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(text)}</td>" for text in rest)}</tr>'
        for first, *rest in rows
    )
    title = escape(caption)
    sheet = f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    saved = download(name, caption, records, words)
    return (
        f'<div class="sheet" role="region" aria-label="{escape(caption, quote=True)}" tabindex="0">{sheet}</div>{saved}'
    )


def download(name: str, caption: str, records: Sequence[Mapping[str, Any]], words: Words) -> str:
    """A link that holds the file: nothing of it stays on the server."""
    content = base64.b64encode(written(records).encode("utf-8-sig")).decode()  # the mark tells Excel that it is UTF-8
    said = escape(words("Download as CSV"))
    about = escape(f"{words('Download as CSV')}: {caption}", quote=True)
    place = f"data:text/csv;charset=utf-8;base64,{content}"
    return (
        f'<p class="save"><a download="{escape(name, quote=True)}" href="{place}" aria-label="{about}">{said}</a></p>'
    )


def written(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as CSV; their keys are its first line."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for record in records for key in record))
    rows = csv.DictWriter(text, names, lineterminator="\n")
    rows.writeheader()
    rows.writerows(records)
    return text.getvalue()


CSS = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 1.5rem 2rem; }
.chart { margin: 0; min-width: 0; }
.chart figcaption { font-weight: 700; line-height: 1.35; margin-bottom: 0.35rem; }
.chart .note, .compare .quiet { font-weight: 400; color: var(--body-text-color-subdued); }
.chart ul { list-style: none; margin: 0; padding: 0; }
.chart li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 0.75rem; padding: 0.25rem 0;
  line-height: 1.35; font-size: 0.9rem; margin: 0; }
.chart .told { font-variant-numeric: tabular-nums; }
.track { position: relative; flex: 0 0 100%; height: 10px; margin-top: 2px; }
.track i { position: absolute; top: 0; bottom: 0; }
.track::before { content: ""; position: absolute; inset: 4px 0; background: var(--border-color-primary); }
.track .bar { left: 0; min-width: 2px; background: var(--colour); border: 2px solid var(--colour); }
.track .bar.hollow { background: var(--body-background-fill); }
.track .reach { top: 4px; bottom: 4px; background: var(--colour); border-right: 2px solid var(--colour); }
.track .decade { border-left: 1px solid var(--body-text-color-subdued); opacity: 0.5; }
.dot { width: 10px; height: 10px; border-radius: 50%; border: 2px solid var(--colour); background: var(--colour);
  box-sizing: border-box; }
.dot.hollow { background: var(--body-background-fill); }
.track .dot { margin-left: -5px; opacity: 0.85; }
.track .mean { width: 2px; margin-left: -1px; top: -3px; bottom: -3px; background: var(--body-text-color); }
.marks { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0.5rem 0 1rem; line-height: 1.4; }
.marks span { display: inline-flex; align-items: center; gap: 0.4rem; }
.chart { max-width: 46rem; }
.picture { max-width: 560px; }
.picture svg { display: block; width: 100%; height: auto; font-family: var(--font); color: var(--body-text-color); }
.sheet { overflow-x: auto; margin-top: 1.25rem; }
.sheet table { border-collapse: collapse; font-size: 0.9rem; line-height: 1.35; width: auto; margin: 0; }
.sheet caption { text-align: left; font-weight: 700; padding-bottom: 0.35rem; }
.sheet table, .sheet thead, .sheet tr { border: none; background: none; }
.sheet th, .sheet td { padding: 0.35rem 0.75rem 0.35rem 0; text-align: right; white-space: nowrap; border: none;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; font-weight: 400; }
.sheet th:first-child { text-align: left; position: sticky; left: 0; background: var(--body-background-fill); }
.sheet thead th { color: var(--body-text-color-subdued); vertical-align: bottom; }
.save { margin: 0.5rem 0 0; }
.save a { padding: 0; text-decoration: underline; text-underline-offset: 0.2em; color: var(--link-text-color); }
.save a:hover { color: var(--link-text-color-hover); }
"""
