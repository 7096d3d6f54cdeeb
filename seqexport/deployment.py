"""What goes beside an exported file: the model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqexport.checkpoint import Checkpoint, replace_file
from seqexport.specs import Cell
from seqexport.verification import Report


def write_model_card(
    path: str | os.PathLike[str], checkpoint: Checkpoint, report: Report, title: str, command: str
) -> None:
    """Write the card of an exported forecaster, every figure in it taken from the checkpoint and the report.

    title: the heading. command: what rebuilds the model. Raises FileError where the card could not be written.
    """
    replace_file(Path(path), model_card(checkpoint, report, title, command).encode())


def model_card(checkpoint: Checkpoint, report: Report, title: str, command: str) -> str:
    """The card as Markdown."""
    metrics, data, preprocessing = checkpoint.metrics, checkpoint.data, checkpoint.preprocessing
    test = metrics["test"]
    rows = [(f"this {checkpoint.spec.cell.upper()}", test["mae"]), *metrics["baselines"].items()]
    unit, step = preprocessing["unit"], preprocessing["step"]
    verdict = "passed" if report.passed else "FAILED"
    return f"""\
---
license: mit
library_name: onnx
pipeline_tag: time-series-forecasting
tags: [onnx, {checkpoint.spec.cell}, seqexport]
---
# {title}

{checkpoint.spec}: {_parameters(checkpoint):,} parameters. It reads a history in the data's own units and
gives, for every step ahead, the distribution of the next value.

Rebuilt by `{command}`; this card is written by that command.

## Data
{data["name"]}: {data["values"]:,} values, one a {step}. Source: {data["source"]}. Licence: {data["licence"]}.
Split in the order of time: {_split(data["split"])}; the scaling is fitted on the training part alone.

## Quality
Mean absolute error ({unit}) of the central path, averaged over the next {metrics["horizon"]} steps and over
{test["origins"]:,} starting points of the test part, which neither training nor the choice of the model has seen:

| forecast | mean absolute error |
|---|---|
{_table(rows)}

The 50 % band holds {_percent(test["coverage_50"])} of the true values, the 90 % band {_percent(test["coverage_90"])}.
One training run, seed {metrics["seed"]}; other seeds differ by up to a point or two, so a smaller lead
over a baseline or another cell means nothing.

## Verification
{verdict}: {len(report.outcomes)} cases against torch, the worst difference {report.max_abs_error:.1e} (allowed
{report.tolerance:.0e}).

| graph | output | worst difference |
|---|---|---|
{_errors(report)}

## Files
| file | what |
|---|---|
| checkpoint.pt | weights, description, scaling and metrics, loadable with `weights_only=True` |
{_files(report)}
| report.json | every case of the verification |

## Use
```python
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("checkpoint.forecast.onnx")
# history: float32 [batch, time], in the data's units. noise: [batch, paths, horizon], zero for the central path
noise = numpy.zeros((1, 1, {metrics["horizon"]}), numpy.float32)
path = session.run(["path"], {{"history": history, "noise": noise}})[0]
```

## Limits
One series, without other columns. Meant to show that two runtimes agree and what each costs; not a forecast to rely on.
"""


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.weights.values())


def _split(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} for {part}" for part, count in parts.items())


def _table(rows: list[tuple[str, float]]) -> str:
    return "\n".join(f"| {name} | {value:.2f} |" for name, value in rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _errors(report: Report) -> str:
    return "\n".join(f"| {part} | {output} | {error:.1e} |" for (part, output), error in report.worst().items())


def _files(report: Report) -> str:
    return "\n".join(
        f"| {Path(file.path).name} | the {file.part}, opset {file.opset}, {file.nodes} nodes |" for file in report.files
    )


def results_table(models: Mapping[Cell, tuple[dict[str, Any], Report]]) -> str:
    """README's table of the shipped models: {cell: (metrics, report)} → Markdown."""
    first = next(iter(models.values()))[0]
    lines = ["| forecast | mean absolute error | 90 % band holds | worst difference to torch |", "|---|---|---|---|"]
    for cell, (metrics, report) in models.items():
        test = metrics["test"]
        lines.append(
            f"| {cell.upper()} | {test['mae']:.2f} | {_percent(test['coverage_90'])} | {report.max_abs_error:.1e} |"
        )
    lines += [f"| {name} | {mae:.2f} | | |" for name, mae in first["baselines"].items()]
    return "\n".join(lines)
