"""Measure what README says of speed, and write it there.

    python -m training.measure

One thread each, warmed up, taking turns; answers must agree before they are timed. Run it on a machine that does
nothing else (about half an hour); the reviews are fetched. `python -m training.targets` has the ratios to reach.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import seqexport
from seqexport.footprint import describe_machine
from seqexport.tables import duration, markdown, ratio_said
from training.exporting import BARE, OURS, measure_exports
from training.publish import ROOT, write_block
from training.samples import written_samples

MODELS = ("sunspots-gru", "characters-en", "sentiment-en")


def measure_command(folder: Path) -> tuple[str, float]:
    """What the command prints in a terminal, as README shows it, and the seconds that it took."""
    arguments = ["-m", "seqexport", f"{folder.relative_to(ROOT)}/checkpoint.pt", "-o", "gru.onnx"]
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "exported").symlink_to(ROOT / "exported")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        start = time.perf_counter()
        options: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *arguments], cwd=temporary, env=environment, **options)
        whole = time.perf_counter() - start
    shown = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    return f"```\n$ python {' '.join(arguments)}\n{shown}\n```", whole


def measure_compare(seconds: float) -> str:
    """README's comparison: a forecaster, a generator and a classifier, which reads real reviews, in every runtime."""
    with tempfile.TemporaryDirectory() as temporary:
        reviews = written_samples(Path(temporary), "classify", "reviews-en", "test")
        found = [
            seqexport.compare(
                f"exported/{name}/checkpoint.pt",
                scenarios=("step", "sequence", "pipeline", "footprint"),
                seconds=seconds,
                data=reviews if name.startswith("sentiment") else None,
            )
            for name in MODELS
        ]
    return markdown(replace(found[0], models=tuple(model for one in found for model in one.models)))


def measure_export(seconds: float) -> tuple[str, str]:
    """README's table of exports, and what the command prints."""
    rows = ["| net | seqexport, with verification | torch.onnx alone | × |", "|---|---|---|---|"]
    for name, measured in measure_exports(seconds).items():
        ours, bare = (duration(measured.times[label].quantile(0.5)) for label in (OURS, BARE))
        rows.append(f"| {name} | {ours} | {bare} | {ratio_said(measured.ratio(OURS, BARE))} |")
    shown, took = measure_command(ROOT / "exported" / "sunspots-gru")
    machine = describe_machine()
    about = (
        "Untrained but the first, both warm, one thread; × is by what factor seqexport is faster. `python -m "
        f"seqexport` of the first net and its pipeline in a fresh process: {took:.1f} s. {machine.processor}, torch "
        f"{version('torch')}, onnxruntime {version('onnxruntime')}."
    )
    return "\n".join([*rows, "", about]), shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write README's tables."""
    parser = argparse.ArgumentParser(prog="python -m training.measure", description="Measure README's tables of speed.")
    parser.add_argument("--only", choices=("export", "compare"), help="one of them alone")
    parser.add_argument("--seconds", type=float, default=180, help="for each model of compare (default: 180)")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    try:
        with contextlib.chdir(ROOT):  # so that the paths in the tables are relative to the project
            if options.only in (None, "compare"):
                table = measure_compare(options.seconds)
                write_block(readme, "compare", table.strip())
                print(table)
            if options.only in (None, "export"):
                table, shown = measure_export(options.seconds / 3)
                write_block(readme, "export", table)
                write_block(readme, "command", shown)
                print(table)
    except seqexport.SeqExportError as error:
        print(f"measure: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
