"""How far back does a net remember? The adding problem (Hochreiter and Schmidhuber 1997, experiment 4).

A step has a random number from 0 to 1 and a mark; of a sequence two numbers are marked, one in its first half and one
in its second, and the answer at the end is their sum. Whoever remembers nothing answers 1 and has a mean squared error
of 1/6; the longer the sequence, the longer the first number has to be kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqexport.networks import Network
from seqexport.specs import Cell, NetworkSpec
from training.command import Options
from training.loop import Plan, Training
from training.optimisation import initialise

LENGTHS = (10, 30, 100, 300, 1000)  # steps of the sequences
UNINFORMED = 1 / 6  # the error of the answer 1: the variance of a sum of two uniform numbers
SOLVED = 0.01  # of the mean squared error: answers are off by 0.1, and both numbers are remembered
READ = 300_000  # steps of a row, at most, in the training on one length: a long one has fewer batches


@dataclass(frozen=True)
class Recipe:
    """Sizes and hyperparameters. The lengths are learnt one after another, each from the weights of the one before, so
    that what is asked is how long a net can remember, and not whether it stumbles on the rule in long sequences."""

    lengths: tuple[int, ...] = LENGTHS
    hidden_size: int = 64
    batch: int = 32
    steps: int = 2500  # of a length, at most; an LSTM needs two thousand to find the rule at 100 steps
    learning_rate: float = 1e-2  # up within 5 % of the steps, down along a cosine
    weight_decay: float = 0.0  # every sequence is new: nothing can be learnt by heart
    clip: float = 1.0  # the norm of the gradient: the usual guard of recurrent nets
    looks: int = 25
    judged: int = 500  # sequences at a look, and four times as many in the end


def network_spec(plan: Recipe, cell: Cell) -> NetworkSpec:
    """The network of a recipe."""
    return NetworkSpec(cell, 2, plan.hidden_size, outputs=1, pooling="last")


class Sum(nn.Module):
    """The loss: the mean squared error of the sum that the net gives at the end."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sums: Tensor) -> Tensor:
        """x (B, T, 2), sums (B) → their mean squared error."""
        return nn.functional.mse_loss(self.network(x)[0].squeeze(-1), sums)


def sequences(count: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks (count, length, 2), float32, and the sums of the marked numbers (count)."""
    x = np.zeros((count, length, 2), np.float32)
    x[:, :, 0] = rng.random((count, length), np.float32)
    rows, half = np.arange(count), length // 2
    first, second = rng.integers(0, half, count), rng.integers(half, length, count)
    x[rows, first, 1] = x[rows, second, 1] = 1.0
    return torch.from_numpy(x), torch.from_numpy(x[rows, first, 0] + x[rows, second, 0])


def train(options: Options, plan: Recipe) -> dict[str, Any]:
    """Learn one length after another until one is not solved, and return the metrics; no checkpoint is written.

    The errors at all lengths are of the net as it was after its own length, at those that it did not come to as it was
    in the end.
    """
    torch.manual_seed(options.seed)
    network = Network(network_spec(plan, options.cell))
    initialise(network)
    objective = Sum(network)
    found: dict[str, float] = {}
    seconds, steps, goes_on = 0.0, 0, True
    kept: list[Path] = []  # where each length's training tells how it ended, so that a stopped run goes on
    for length in plan.lengths:
        if goes_on:
            training = _learn(objective, options, plan, length)
            kept.append(training.stopped_file)
            seconds, steps = seconds + training.metrics["seconds"], steps + training.metrics["curve"][-1][0]
        rng = np.random.default_rng([2, length])
        found[str(length)] = error(objective, *sequences(4 * plan.judged, length, rng))
        goes_on = goes_on and found[str(length)] < SOLVED
    for file in kept:
        file.unlink(missing_ok=True)
    capped = [min(value, UNINFORMED) for value in found.values()]
    return {
        "metric": "mean squared error",
        "test": {"mse": found},
        "validation": {"mse": float(np.mean(capped))},
        "seconds": seconds,
        "steps": steps,
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
    }


def _learn(objective: Sum, options: Options, plan: Recipe, length: int) -> Training:
    total = min(plan.steps, READ // length)
    training = Training(
        objective,
        Plan(
            total,
            plan.learning_rate,
            plan.weight_decay,
            plan.clip,
            max(1, total // plan.looks),
            "mse",
            enough=SOLVED / 2,
        ),
        replace(options, out=options.out.with_name(f"{options.out.name}.{length}")),
        {**asdict(plan), "length": length},
        f"{options.cell} adding over {length} steps",
    )
    judged = sequences(plan.judged, length, np.random.default_rng([1, length]))
    for _ in training:
        x, sums = sequences(plan.batch, length, training.rng)
        own = training.share(plan.batch)
        training.descend(training.objective(x[own].to(training.device), sums[own].to(training.device)))
        if training.looks:
            training.judge(lambda: error(objective, *judged))
    training.finish()
    return training


@torch.no_grad()
def error(objective: Sum, x: Tensor, sums: Tensor) -> float:
    """The mean squared error on sequences, in pieces that fit into memory."""
    device = next(objective.parameters()).device
    pieces = zip(x.split(100), sums.split(100), strict=True)
    total = sum(objective(a.to(device), b.to(device)).item() * len(b) for a, b in pieces)
    return total / len(sums)
