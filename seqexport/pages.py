"""A report as a page to read, with its plots, or as JSON by the schema beside this file."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqexport.errors import InputError
from seqexport.files import check_destination, replace_file
from seqexport.reports import Property, Report, Sample

SCHEMA = Path(__file__).with_name("report.schema.json")
GREY = "#888888"  # lines and letters that can be read on a light page and on a dark one
COLOURS = ("#2f81f7", "#e3872d", "#3fa266", "#b667c7")
STYLE = """
:root { color-scheme: light dark; --faint: #8884; --good: #2a8a4a; --bad: #d33; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { font-weight: 600; padding: .6rem 1rem; border-left: .3rem solid var(--good); background: var(--faint); }
.verdict.failed { border-color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .faint { opacity: .7; font-size: .85rem; }
svg { max-width: 100%; height: auto; } code, pre { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap; }
@media (max-width: 40rem) {
  table:has(.words), table:has(.words) tbody { display: block; }
  tr:has(.words) { display: flex; flex-wrap: wrap; } table:has(.words) th { display: none; }
  tr:has(.words) td { border: 0; } td.words { flex-basis: 100%; border-bottom: 1px solid var(--faint) !important; }
}
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
"""


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise InputError or FileError for a path that no report could be written to, before an hour was spent on it."""
    path = Path(path)
    if path.suffix not in (".html", ".json"):
        raise InputError(f"The report {path} ends in {path.suffix or 'nothing'!r}; expected .html or .json.")
    check_destination(path)


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write the report as a page (.html) or as JSON (.json). Raises InputError for another suffix, and FileError."""
    check_page(path)
    path = Path(path)
    if path.suffix == ".json":
        content = json.dumps(report.to_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    else:
        content = report_page(report)
    replace_file(path, content.encode())


def report_page(report: Report) -> str:
    """The report as one HTML document that asks for nothing from elsewhere."""
    verdict = "Verified" if report.passed else "NOT verified"
    count, failed = len(report.outcomes), len(report.failures())
    broken = [tried.name for tried in report.properties if not tried.held]
    said = f"{count - failed} of {count} cases agree with torch"
    if report.properties:
        said += f", {len(report.properties) - len(broken)} of {len(report.properties)} properties hold"
    sections = [
        f"<h1>{_text(report.found or 'Verification')}</h1>",
        f'<p class="verdict{"" if report.passed else " failed"}">{verdict}: {said}.</p>',
        *(f"<p>{_text(note)}</p>" for note in report.notes),
        "<h2>Differences</h2>",
        "<p>|a − b| / max(1, max|reference|), torch being the reference; the worst of all cases.</p>",
        _outputs_plot(report),
        _table(
            ("part", "output", "worst difference", "allowed"),
            [(p, o, _figure(e), _figure(report.tolerance)) for (p, o), e in report.worst().items()],
        ),
        *_failures(report),
        *_properties(report.properties),
        *_samples(report.samples),
        "<h2>What was compared</h2>",
        _table(("", ""), [(name, _plain(value)) for name, value in _identity(report).items()]),
    ]
    title = f"{verdict}: {Path(report.files[0].path).name if report.files else report.source}"
    body = "\n".join(part for part in sections if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _identity(report: Report) -> dict[str, Any]:
    files = {f"file, {file.part}": f"{file.path}, {file.bytes:,} bytes, opset {file.opset}" for file in report.files}
    versions = report.identity.get("versions", {})
    about = {name: value for name, value in report.identity.items() if name != "versions" and value}
    said = ", ".join(f"{name} {value}" for name, value in versions.items())
    return {"checkpoint": report.source, **files, **about, **({"versions": said} if said else {})}


def _failures(report: Report) -> list[str]:
    failed = report.failures()
    if not failed:
        return []
    rows = [(f.part, f.case, _figure(max(f.errors.values(), key=_rank)), "; ".join(f.notes)) for f in failed]
    return ["<h2>Cases that differ</h2>", _table(("part", "case", "difference", ""), rows)]


def _properties(properties: Sequence[Property]) -> list[str]:
    if not properties:
        return []
    rows = []
    for tried in properties:
        held = ("holds", "good") if tried.held else ("does not hold", "bad")
        state = held if tried.applies else ("does not apply", "faint")
        figures = (str(tried.trials), _figure(tried.error), _figure(tried.allowed)) if tried.applies else ("", "", "")
        about = f"{_text(tried.claim)}<br><span class=faint>{_text('; '.join(tried.notes))}</span>"
        shown = _Html(f'<span class="{state[1]}">{state[0]}</span>')
        rows.append((tried.name, shown, *figures, _Html(about)))
    headings = ("property", "", "trials", "worst", "allowed", "what it says")
    reasons = dict.fromkeys(f"{_figure(tried.allowed)}: {tried.reason}" for tried in properties if tried.applies)
    return [
        "<h2>Properties</h2>",
        _table(headings, rows),
        *(f'<p class="faint">Allowed {_text(reason)}.</p>' for reason in reasons),
        *(_curves_plot(tried) for tried in properties if tried.curves),
    ]


def _samples(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return []
    parts = ["<h2>Samples, side by side</h2>"]
    for sample in samples:
        parts.append(f"<p>{_text(sample.part)}: {_text(sample.about)}</p>")
        numbers = all(isinstance(value, float) for value in (*sample.torch, *sample.onnxruntime))
        parts.append(_sample_plot(sample) if numbers and len(sample.torch) > 2 else "")
        shown = (("torch", sample.torch), ("onnxruntime", sample.onnxruntime))
        columns = "".join(
            f"<div><strong>{name}</strong><pre>{_text(_plain(value))}</pre></div>" for name, value in shown
        )
        parts.append(f'<div class="pair">{columns}</div>')
    return parts


class _Html(str):
    """Text that is markup already."""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}" if math.isfinite(error) else str(error)


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(value: str) -> str:
        number = re.fullmatch(r"[\d.,e+-]+|inf|nan", value) is not None
        kind = " class=number" if number else " class=words" if "<br>" in value else ""
        return f"<td{kind}>{value if isinstance(value, _Html) else _text(value)}</td>"

    head = f"<tr>{''.join(f'<th>{_text(heading)}</th>' for heading in headings)}</tr>" if any(headings) else ""
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}\n{body}</table></div>'


def _outputs_plot(report: Report) -> str:
    errors = {f"{part}: {output}": error for (part, output), error in report.worst().items()}
    shown = {name: error for name, error in errors.items() if 0 < error < math.inf}
    if not shown:
        return ""

    def draw(axes: Any) -> None:
        axes.barh(list(shown), list(shown.values()), color=COLOURS[0], height=0.5)
        axes.axvline(report.tolerance, color=COLOURS[1], linestyle="--", label="allowed")
        axes.set(xscale="log", xlabel="worst difference")
        axes.xaxis.set_major_formatter(_power)
        axes.invert_yaxis()

    return _plot(draw, 1.2 + 0.4 * len(shown), "The worst difference of each output")


def _curves_plot(tried: Property) -> str:
    (along, places), *lines = tried.curves.items()

    def draw(axes: Any) -> None:
        for place, (name, errors) in enumerate(lines):
            shown = [max(error, 1e-12) for error in errors]  # what is zero has no place on a logarithmic axis
            style = "--" if "float64" in name else "-"
            axes.plot(places, shown, style, color=COLOURS[place % len(COLOURS)], label=name, linewidth=1.2)
        axes.axhline(tried.allowed, color=GREY, linestyle=":", label="allowed")
        axes.set(yscale="log", xlabel=along, ylabel="difference", title=f"{tried.name}: the difference along {along}")
        axes.yaxis.set_major_formatter(_power)

    return _plot(draw, 3.2, f"{tried.name}: the difference along {along}")


def _sample_plot(sample: Sample) -> str:
    def draw(axes: Any) -> None:
        axes.plot(sample.torch, color=COLOURS[0], linewidth=5, alpha=0.5, label="torch")
        axes.plot(sample.onnxruntime, color=COLOURS[1], linewidth=1.5, label="onnxruntime")

    return _plot(draw, 2.6, f"{sample.about} of both runtimes")


def _power(value: float, place: int) -> str:
    return f"{value:.0e}"


def _plot(draw: Any, height: float, about: str) -> str:
    """An SVG, or a word on what is missing: matplotlib belongs to the demo's extra, not to the package itself."""
    if importlib.util.find_spec("matplotlib") is None:
        return '<p class="faint">The plot needs matplotlib: pip install matplotlib.</p>'
    import matplotlib
    from matplotlib.figure import Figure

    look: Any = {"svg.hashsalt": "seqexport", "svg.fonttype": "none", "text.parse_math": False}
    look |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_facecolor("none")
        draw(axes)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=GREY)
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Title": about})
    return "".join(content.getvalue().partition("<svg")[1:])  # without the XML declaration
