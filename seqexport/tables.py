"""A comparison in words: tables for Markdown, whose cells the terminal shows too, and the files of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from seqexport.comparison import Comparison, Model, Row, Table, held_said
from seqexport.errors import FileError
from seqexport.files import replace_file
from seqexport.plots import plots
from seqexport.reports import TOLERANCE
from seqexport.timing import LEVEL, Ratio

SCHEMA = Path(__file__).with_name("comparison.schema.json")
HEADINGS = ("runtime", "p50", "p90", "p99", "a second", "× torch's default", "× torch's best", "× best peer", "error")
ALONE = ("runtime", "p50", "p90", "p99", "a second", "error")  # where torch is not there
MAP = ("hidden", "batch × steps", "fastest", "p50", "× torch's default", "× torch's best")
FOOTPRINT = ("runtime", "load", "first call", "memory", "file")


def headings(table: Table) -> tuple[str, ...]:
    """The columns of one scenario."""
    return HEADINGS if table.default else ALONE


def cells(table: Table, row: Row) -> tuple[str, ...]:
    """One row of a scenario in words."""
    error = "held against" if row.error is None else "differs" if row.error == float("inf") else f"{row.error:.0e}"
    if row.runtime == "onnxruntime-int8" and row.error is not None and row.error > TOLERANCE:
        error = "gated" if row.agrees else "misses its gate"
    if row.times is None:
        return (row.label, *("–" for _ in headings(table)[1:-1]), error if row.error is not None else "did not run")
    median = row.times.quantile(0.5)
    times = (duration(row.times.quantile(share)) for share in (0.5, 0.9, 0.99))
    rate = f"{table.work / median:,.0f} {table.unit}s" if median else ""
    ratios = (ratio_said(row.default), ratio_said(row.best), ratio_said(row.peer)) if table.default else ()
    return (row.label, *times, rate, *ratios, error)


def caption(table: Table) -> str:
    """Who the ratios are to, and why the measuring ended."""
    to = (
        f"torch's default: {table.default}; torch's best: {table.best}; best peer: {table.peer}. "
        if table.default
        else ""
    )
    rounds = max((len(row.times.rounds) for row in table.rows if row.times), default=0)
    return f"{to}{rounds} round{'s' if rounds != 1 else ''} in {table.seconds:.1f} s, ended since {table.ended}."


def notes(table: Table) -> list[str]:
    """What is to be said of single rows."""
    found = []
    for row in table.rows:
        said = row.notes
        if said:
            more = f" (and {len(said) - 3} more)" if len(said) > 3 else ""
            found.append(f"{row.label}: {'; '.join(dict.fromkeys([*said[:2], said[-1]]))}{more}")
    return found


def footprint_cells(model: Model) -> list[tuple[str, ...]]:
    """A row for each runtime in its fresh process."""
    rows: list[tuple[str, ...]] = []
    for found in model.footprints:
        memory = "–" if found.memory is None else f"{found.memory / 2**20:,.0f} MiB"
        told = (found.failure, "–", "–") if found.failure else (duration(found.load), duration(found.first), memory)
        rows.append((found.label, *told, f"{found.bytes:,} bytes"))
    return rows


def about(comparison: Comparison) -> list[str]:
    """How it was measured, in sentences."""
    threads = "one thread" if comparison.threads == 1 else f"{comparison.threads} threads"
    return [
        f"{comparison.machine}.",
        f"Each runtime on {threads}, warmed up, taking turns in random order. × is by what factor a row is faster, the "
        f"median over rounds of the ratio within a round, with its {100 * LEVEL:.0f} % interval. Torch runs with "
        "oneDNN on, its default, and off; its best is the faster. The best peer is the fastest of torch, "
        "torch.compile, OpenVINO and loops in Python around a network's step, all float32.",
        f"Error is |a − b| / max(1, max|torch|) of the answers, at most {TOLERANCE:.0e}; tokens and labels must be the "
        "same, or ties. int8 is gated by float32's outputs and states: their direction (1 − cosine), their length, and "
        "the decisions that float32 was sure of. Whoever differs is not timed.",
        "Load is from the import of the runtime to a model that is ready, in a fresh process; the first call is 100 "
        "steps; memory is that process at its peak, beyond Python with numpy.",
    ]


def markdown(comparison: Comparison, pictures: Sequence[str] = ()) -> str:
    """The comparison as Markdown. pictures: names of files beside it."""
    parts: list[str] = []
    for model in comparison.models:
        parts += _model(model)
    parts += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    return "\n\n".join([*parts, *about(comparison)]) + "\n"


def _model(model: Model) -> Iterator[str]:
    yield f"**{model.path}**: {model.found}"
    if said := about_model(model):
        yield " ".join(f"{note}." for note in said)
    for table in model.tables:
        yield f"{table.key}: {table.title}"
        yield _table(headings(table), [cells(table, row) for row in table.rows])
        yield caption(table)
        if said := notes(table):
            yield "\n".join(f"- {note}" for note in said)
    if model.footprints:
        yield _table(FOOTPRINT, footprint_cells(model))
    if model.cells:
        yield f"Fastest, untrained nets of this kind ({without_label(model)}):"
        yield _table(
            ("hidden", "batch × steps", "fastest", "p50", "× torch's default", "× torch's best"), map_cells(model)
        )
    for absent in model.absent:
        yield f"absent: {absent.runtime}: {absent.why}{f': `{absent.command}`' if absent.command else ''}"


def about_model(model: Model) -> list[str]:
    """Its notes, and how far its int8 form lies from float32."""
    gate = "; ".join(map(held_said, model.gate))
    return [*model.notes, *([f"int8 beside float32: {gate}"] if gate else [])]


def without_label(model: Model) -> str:
    """What the map leaves out."""
    there = {row.runtime for cell in model.cells for row in cell.table.rows}
    left = [name for name in ("torch-compile", "onnxruntime-int8", "reference") if name not in there]
    return f"without {', '.join(left)}" if left else "all runtimes"


def map_cells(model: Model) -> list[tuple[str, ...]]:
    """A row for each place of the map."""
    rows: list[tuple[str, ...]] = []
    for cell in model.cells:
        first = cell.table.rows[0]
        median = duration(first.times.quantile(0.5)) if first.times else "–"
        ratios = (ratio_said(first.default), ratio_said(first.best))
        rows.append((str(cell.hidden), f"{cell.batch} × {cell.length}", first.label, median, *ratios))
    return rows


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---", *("---:" for _ in names[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def duration(seconds: float | None) -> str:
    """Seconds in a unit that is read at a glance."""
    if seconds is None:
        return "–"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:,.0f} {unit}"
    raise AssertionError


def ratio_said(ratio: Ratio | None) -> str:
    """A ratio with its interval, where there is one."""
    if ratio is None:
        return "–"
    interval = f" ({ratio.low:.3g}–{ratio.high:.3g})" if ratio.low is not None and ratio.high is not None else ""
    return f"{ratio.value:.3g}{interval}"


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Make the folder for the files. Raises FileError where that can't be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"The folder {folder} could not be made ({error.strerror}): choose another with -o.") from error


def write_comparison(folder: str | os.PathLike[str], comparison: Comparison) -> list[Path]:
    """Write comparison.md, comparison.json and the plots into the folder, and give their paths.

    Raises FileError where they can't be written.
    """
    check_folder(folder)
    place = Path(folder)
    pictures = plots(comparison)
    document = json.dumps(comparison.to_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    content = {**pictures, "comparison.json": document, "comparison.md": markdown(comparison, list(pictures))}
    for name, text in content.items():
        replace_file(place / name, text.encode())
    return [place / name for name in content]
