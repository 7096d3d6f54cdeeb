"""Rebuild everything in exported/ from nothing, and the table in README that tells of it.

    python -m training.publish

Fetches the sunspots, trains an RNN, an LSTM and a GRU on them (some two minutes on two idle cores), exports and
verifies each, writes their reports and model cards, and puts the measured figures into README.md. With --keep-weights
the checkpoints that are there are exported and described again without training.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from seqexport.checkpoint import read_checkpoint, replace_file
from seqexport.deployment import results_table, write_model_card
from seqexport.errors import FileError, SeqExportError
from seqexport.exporter import export
from seqexport.specs import CELLS, Cell
from seqexport.verification import Report
from training import data as datasets
from training.forecasting import train

ROOT = Path(__file__).resolve().parents[1]
SEED = 0


def publish(folder: Path, cell: Cell, keep_weights: bool) -> tuple[dict, Report]:
    """Train, export, verify and describe one forecaster in `folder`. Gives its metrics and report."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if not keep_weights:
        train(cell, "sunspots", path, seed=SEED)
    report = export(path)
    content = report.to_dict()
    del content["seconds"]  # the only thing in it that another run would change
    report_file = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(folder / "report.json", report_file.encode())
    checkpoint = read_checkpoint(path)
    title = f"Sunspots a year ahead: {cell.upper()}"
    write_model_card(folder / "README.md", checkpoint, report, title, "python -m training.publish")
    return dict(checkpoint.metrics), report


def write_series(path: Path) -> None:
    """The whole series as month,sunspots: the demo's history and its truth. The data are in the public domain."""
    series = datasets.load("sunspots")
    first_year, first_month = map(int, str(series.start).split("-"))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["month", "sunspots"])
    for index, value in enumerate(series.values):
        year, month = divmod(first_month - 1 + index, 12)
        rows.writerow([f"{first_year + year}-{month + 1:02d}", f"{value:g}"])
    replace_file(path, text.getvalue().encode())


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
    options = parser.parse_args(arguments)
    try:
        with contextlib.chdir(ROOT):  # so that the paths in the reports are relative to the project
            exported = Path("exported")
            exported.mkdir(exist_ok=True)
            write_series(exported / "sunspots.csv")
            models = {cell: publish(exported / f"sunspots-{cell}", cell, options.keep_weights) for cell in CELLS}
            table = results_table(models)
            write_block(Path("README.md"), "models", table)
    except SeqExportError as error:
        print(f"publish: {error}", file=sys.stderr)
        return error.exit_code
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
