"""The learning curve of a training, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from seqexport.files import replace_file


class Look(NamedTuple):
    """A look at the validation part. loss: the mean over the steps since the look before. found: the part's figure."""

    step: int
    loss: float
    found: float


def draw_curve(path: Path, curve: Sequence[Look], metric: str, title: str) -> None:
    """Write a PNG of the training's loss and of the validation part's figure, each on its own axis, by the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    loss, validation = figure.subplots(1, 2)
    steps = [look.step for look in curve]
    for axes, values, name, colour in (
        (loss, [look.loss for look in curve], "loss of the training part", "#4063a8"),
        (validation, [look.found for look in curve], f"{metric} of the validation part", "#b3541e"),
    ):
        axes.plot(steps, values, color=colour, marker="." if len(steps) < 30 else None)
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    replace_file(path, buffer.getvalue())
