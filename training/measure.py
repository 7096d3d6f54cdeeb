"""Measure what README says of speed, and write it there.

    python -m training.measure

One thread each, warmed up, taking turns; answers must agree before they are timed. Run it on a machine that does
nothing else (about half an hour); the reviews are fetched. The comparison goes into exported/runtimes.json too, which
the demo shows, with --every of all shipped models (some fifty minutes more). `python -m training.targets` has the
ratios to reach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from seqexport.comparison import Comparison
from seqexport.files import replace_file
from seqexport.footprint import describe_machine
from seqexport.tables import duration, markdown, ratio_said
from training.exporting import BARE, OURS, measure_exports
from training.publish import MODELS as SHIPPED
from training.publish import ROOT, write_block
from training.samples import written_samples

MODELS = ("sunspots-gru", "characters-en", "sentiment-en")  # in README's tables
SCENARIOS = ("step", "sequence", "pipeline", "footprint")
RESULTS = ROOT / "exported" / "runtimes.json"


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


def measure_compare(seconds: float, names: Sequence[str] = MODELS) -> Comparison:
    """The shipped models of these names in every runtime; classifiers read real opinions."""
    data = {model.name: model.data for model in SHIPPED}
    with tempfile.TemporaryDirectory() as temporary:
        found = [
            seqexport.compare(
                f"exported/{name}/checkpoint.pt",
                scenarios=SCENARIOS,
                seconds=seconds,
                data=written_samples(Path(temporary), "classify", data[name], "test")
                if name.startswith("sentiment")
                else None,
            )
            for name in names
        ]
    models = tuple(model for one in found for model in one.models)
    return replace(found[0], models=models, seconds=sum(one.seconds for one in found))


def write_comparison(comparison: Comparison) -> str:
    """Write the comparison for the demo, and its models that README shows into README; give README's tables."""
    document = json.dumps(comparison.to_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(RESULTS, document.encode())
    shown = tuple(model for model in comparison.models if Path(model.path).parent.name in MODELS)
    table = markdown(replace(comparison, models=shown)).strip()
    write_block(ROOT / "README.md", "compare", table)
    return table


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
    parser.add_argument("--every", action="store_true", help="of compare: all shipped models, not only README's")
    parser.add_argument("--seconds", type=float, default=180, help="for each model of compare (default: 180)")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    try:
        with contextlib.chdir(ROOT):  # so that the paths in the tables are relative to the project
            if options.only in (None, "compare"):
                rest = [model.name for model in SHIPPED if model.name not in MODELS] if options.every else []
                print(write_comparison(measure_compare(options.seconds, [*MODELS, *rest])))
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
