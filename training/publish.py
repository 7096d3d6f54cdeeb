"""Rebuild everything in exported/ from nothing, and the tables in README that tell of it.

    python -m training.publish

Fetches the data, trains a forecaster of each cell and, for English and for Chinese, a classifier of opinions and a
generator of characters, exports and verifies each, writes their reports and model cards, and puts the measured figures
into README.md. How long each training takes is in its own docstring and in the model's card. With --keep-weights the
checkpoints that are there are exported and described again without training; --only NAME does one model.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqexport.checkpoint import read_checkpoint
from seqexport.deployment import results_table, write_model_card
from seqexport.errors import FileError, SeqExportError
from seqexport.exporter import export
from seqexport.files import replace_file
from seqexport.reports import Report
from seqexport.specs import CELLS, Cell
from training import chargen, forecasting, sentiment
from training import data as datasets
from training.command import Options, Precision
from training.samples import written_samples

ROOT = Path(__file__).resolve().parents[1]
# Seeds differ by a point on the sunspots: of 0, 1 and 2 these are the best on the validation part.
SUNSPOTS_SEEDS: Mapping[Cell, int] = {"gru": 1, "lstm": 2, "rnn": 1}


# What says that a series' numbers may be given on. Taylor made his public, and packages under MIT hold them.
GIVEN_ON = ("public domain", "CC BY 4.0")  # licences of series that may lie in exported/ for everybody
THREADS = 1  # another number gives other weights
SUFFIXES: Mapping[Cell, str] = {"lstm": "", "gru": "-gru", "rnn": "-rnn"}


@dataclass(frozen=True)
class Model:
    """One shipped model: exported/`name`, and what trains it. seed: of several, that with the best validation part.
    precision: bf16 where a training would take hours without it; the weights are float32 all the same."""

    name: str
    title: str
    cell: Cell
    data: str
    train: Callable[[Options], Any]
    seed: int = 0
    precision: Precision = "no"


MODELS = (
    *(
        Model(
            f"{data}-{cell}",
            f"{title}: {cell.upper()}",
            cell,
            data,
            forecasting.train,
            SUNSPOTS_SEEDS.get(cell, 0) if data == "sunspots" else 0,
        )
        for data, title in (
            ("sunspots", "Sunspots a year ahead"),
            ("electricity", "Electricity use a day ahead"),
            ("uk-demand", "Electricity demand a day ahead"),
        )
        for cell in CELLS
    ),
    Model("sentiment-en", "Opinions on films, in English", "lstm", "reviews-en", sentiment.train, precision="bf16"),
    *(
        Model(
            f"sentiment-zh{suffix}",
            f"Opinions on goods, in Chinese: {cell.upper()}",
            cell,
            "reviews-zh",
            sentiment.train,
        )
        for cell, suffix in SUFFIXES.items()
    ),
    Model(
        "characters-en", "Shakespeare, character by character", "lstm", "shakespeare", chargen.train, precision="bf16"
    ),
    Model(
        "characters-zh",
        "Romance of the Three Kingdoms, character by character",
        "lstm",
        "sanguo",
        chargen.train,
        precision="bf16",
    ),
)


def publish(folder: Path, model: Model, keep_weights: bool) -> tuple[Mapping[str, Any], Report]:
    """Train, export, verify and describe one model in `folder`. Gives its metrics and report."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if not keep_weights:
        model.train(
            Options(
                cell=model.cell,
                data=model.data,
                out=path,
                seed=model.seed,
                threads=THREADS,
                precision=model.precision,
            )
        )
    with tempfile.TemporaryDirectory() as name:  # int8 is held to the metric of the part that chose the weights
        written = read_checkpoint(path)
        context = int(written.preprocessing.get("context", 0))
        samples = written_samples(Path(name), written.task or "", model.data, "validation", context)
        report = export(path, precision="fp32,int8", data=samples)
    content = report.to_dict()
    del content["seconds"]  # the only thing in it that another run would change
    report_file = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(folder / "report.json", report_file.encode())
    checkpoint = read_checkpoint(path)
    write_model_card(folder / "README.md", checkpoint, report, model.title, "python -m training.publish")
    return checkpoint.metrics, report


def tables(folder: Path) -> str:
    """README's tables of what lies in `folder`: one for each data set, from the checkpoints and their reports."""
    groups: dict[str, dict[str, tuple[Mapping[str, Any], float]]] = {}
    for model in MODELS:
        checkpoint = read_checkpoint(folder / model.name / "checkpoint.pt")
        report = json.loads((folder / model.name / "report.json").read_text(encoding="utf-8"))
        row = (checkpoint.metrics, report["max_abs_error"])
        groups.setdefault(str(checkpoint.data["name"]), {})[f"{model.name} ({model.cell.upper()})"] = row
    return "\n\n".join(f"**{data}**\n\n{results_table(models)}" for data, models in groups.items())


def write_series(path: Path, name: str, before: int | None = None) -> None:
    """A series as a CSV of times and values, for the demo: its test part, which no net was trained on, and the `before`
    values before it, which the nets read; the whole series without `before`."""
    series = datasets.load(name)
    first = 0 if before is None else max(0, series.parts["test"].start - before)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([series.step, series.name])
    rows.writerows(
        (str(time), f"{value:.9g}") for time, value in zip(series.labels[first:], series.values[first:], strict=True)
    )
    replace_file(path, text.getvalue().encode())


def write_shown_series(folder: Path, here_only: bool = False) -> None:
    """The series of the demo's forecasts. Sunspots as a whole, as the command line's examples read them. here_only:
    those besides whose licence does not let them be given on, for the demo on this machine (git ignores them)."""
    write_series(folder / "sunspots.csv", "sunspots")
    for name in ("electricity", "uk-demand"):
        if datasets.load(name).licence not in GIVEN_ON and not here_only:
            continue
        read = max(
            int(read_checkpoint(folder / model.name / "checkpoint.pt").preprocessing["context"])
            for model in MODELS
            if model.data == name
        )
        write_series(folder / f"{name}.csv", name, max(read, 2 * datasets.load(name).season))


def write_block(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- measured: name -->` and `<!-- end -->` in a Markdown file.

    Raises FileError where the markers are missing.
    """
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise FileError(
            f"{path} has no block <!-- measured: {name} --> … <!-- end -->: add it where the table belongs."
        )
    replace_file(path, pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.publish", description="Rebuild exported/ from nothing.")
    parser.add_argument("--keep-weights", action="store_true", help="export and describe again without training")
    parser.add_argument("--only", metavar="NAME", choices=[model.name for model in MODELS], help="one model only")
    parser.add_argument(
        "--series",
        action="store_true",
        help="only the series that the demo shows, those too that are not given on, for this machine alone",
    )
    options = parser.parse_args(arguments)
    try:
        if options.series:
            write_shown_series(ROOT / "exported", here_only=True)
            return 0
        with contextlib.chdir(ROOT):  # so that the paths in the reports are relative to the project
            exported = Path("exported")
            exported.mkdir(exist_ok=True)
            for model in MODELS:
                if options.only in (None, model.name):
                    publish(exported / model.name, model, options.keep_weights)
            write_shown_series(exported)
            table = tables(exported)
            write_block(Path("README.md"), "models", table)
    except SeqExportError as error:
        print(f"publish: {error}", file=sys.stderr)
        return error.exit_code
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
