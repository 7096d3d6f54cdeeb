"""The configurations of nn.RNN, nn.LSTM and nn.GRU that there are, each as a module with the values that it reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqexport.specs import InputSpec, TensorSpec, parse_input

FEATURES, HIDDEN, PROJECTION = 5, 7, 3
CELLS = ("RNN tanh", "RNN relu", "LSTM", "GRU", "LSTM with proj_size")
# What becomes of packed output: dropped for the final state, or padded up to the longest row, the input's time, or 300.
PADDINGS = ("none", "longest", "time", "300")
PACKINGS = (("none", "none"), *itertools.product(("unsorted", "sorted"), PADDINGS))


@dataclass(frozen=True)
class Configuration:
    """One recurrent net and how it is called.

    packed: none, or pack_padded_sequence with enforce_sorted (sorted) or without (unsorted), whose batch_first is the
    net's. padded: one of PADDINGS. dropout: set between the layers, but the net is in eval mode.
    form: sequence [batch,time,features], unbatched [time,features], or step [batch,features], for nn.RNNCell and the
    like.
    """

    cell: str
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = True
    bias: bool = True
    state: bool = False
    packed: str = "none"
    padded: str = "none"
    dropout: float = 0.0
    form: str = "sequence"

    def __str__(self) -> str:
        words = [self.cell, self.form, f"{self.layers} layers"]
        words += ["both directions"] * self.bidirectional + ["batch first" if self.batch_first else "time first"]
        words += ["bias" if self.bias else "no bias", "state given" if self.state else "no state"]
        if self.packed != "none":
            words.append(f"packed {self.packed}")
            words.append("final state only" if self.padded == "none" else f"padded to {self.padded}")
        return ", ".join(words + [f"dropout {self.dropout}"] * (self.dropout > 0))

    @property
    def kind(self) -> str:
        """The row of the table."""
        if self.form != "sequence":
            return {"unbatched": "unbatched input", "step": "RNNCell, LSTMCell, GRUCell"}[self.form]
        return f"{self.cell}, {'padded' if self.packed == 'none' else 'packed'}"

    def inputs(self) -> dict[str, str]:
        """seqexport's input specs, in the order of forward's arguments."""
        batch = "" if self.form == "unbatched" else "batch,"
        lead = {"unbatched": "time", "step": "batch"}.get(self.form, "batch,time" if self.batch_first else "time,batch")
        inputs = {"x": f"float32[{lead},{FEATURES}]"}
        if self.packed != "none":
            inputs["lengths"] = "int64[batch]{1..time}" + (", descending" if self.packed == "sorted" else "")
        if self.state:
            rows = "" if self.form == "step" else f"{self.layers * (1 + self.bidirectional)},"
            h, c = (
                f"float32[{rows}{batch}{size}]"
                for size in (PROJECTION if self.cell == "LSTM with proj_size" else HIDDEN, HIDDEN)
            )
            inputs["state"] = f"({h}, {c})" if self.cell.startswith("LSTM") else h
        return inputs


def grid() -> list[Configuration]:
    """Every combination of cell, layers, dropout (between layers only), directions, order, bias, state and packing."""
    depths = ((1, 0.0), (2, 0.0), (2, 0.3), (3, 0.0), (3, 0.3))
    both = (False, True)
    return [
        Configuration(cell, layers, bidirectional, batch_first, bias, state, *packing, dropout)
        for cell, (layers, dropout), bidirectional, batch_first, bias, state, packing in itertools.product(
            CELLS, depths, both, both, both, both, PACKINGS
        )
    ]


def singles() -> list[Configuration]:
    """What lies beside the grid: unbatched input, and cells that take one step."""
    cells = [(cell, "unbatched") for cell in CELLS] + [(cell, "step") for cell in CELLS[:4]]
    return [Configuration(cell, state=state, form=form) for cell, form in cells for state in (False, True)]


class Calls(nn.Module):
    """x and, where it is given, a state → what the net gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """The net's outputs, as it gives them."""
        return self.net(x, state)


class Packs(nn.Module):
    """x, lengths int64 [batch] and, where given, a state → y, padded again, and the final state, or that alone."""

    def __init__(self, net: nn.RNNBase, packed: str, padded: str) -> None:
        super().__init__()
        self.net, self.sorted, self.padded = net, packed == "sorted", padded

    def forward(self, x: Tensor, lengths: Tensor, state: Any = None) -> Any:
        """Packs, runs, and pads again."""
        batch_first = self.net.batch_first
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=self.sorted)
        y, final = self.net(packed, state)
        if self.padded == "none":
            return final
        total = {"longest": None, "time": x.shape[1 if batch_first else 0], "300": 300}[self.padded]
        return nn.utils.rnn.pad_packed_sequence(y, batch_first, total_length=total)[0], final


def build(configuration: Configuration) -> nn.Module:
    """The module, in eval mode, with random asymmetric weights and biases away from zero, so that what is swapped,
    dropped or transposed shows."""
    options: dict[str, Any] = {"bias": configuration.bias}
    if configuration.cell.startswith("RNN"):
        options["nonlinearity"] = configuration.cell.split()[1]
    if configuration.cell == "LSTM with proj_size":
        options["proj_size"] = PROJECTION
    name = configuration.cell.split()[0]
    if configuration.form == "step":
        net: nn.Module = getattr(nn, f"{name}Cell")(FEATURES, HIDDEN, **options)
    else:
        for option in ("batch_first", "bidirectional", "dropout"):
            options[option] = getattr(configuration, option)
        net = getattr(nn, name)(FEATURES, HIDDEN, configuration.layers, **options)
    generator = torch.Generator().manual_seed(configuration.layers)
    for parameter in net.parameters():
        scale = 0.6 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.4
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) * scale + 0.05)
    if configuration.packed == "none":
        return Calls(net).eval()
    assert isinstance(net, nn.RNNBase)
    return Packs(net, configuration.packed, configuration.padded).eval()


def structure(configuration: Configuration) -> dict[str, InputSpec]:
    """forward's argument → its spec, or specs where it is a tuple."""
    return {name: parse_input(name, text) for name, text in configuration.inputs().items()}


def flat_specs(configuration: Configuration) -> list[TensorSpec]:
    """The specs of all tensors, in order, under the names that they have as the graph's inputs."""
    return [
        spec for part in structure(configuration).values() for spec in (part if isinstance(part, tuple) else [part])
    ]


def feeds(configuration: Configuration, batch: int, steps: int, short: bool, seed: int) -> dict[str, np.ndarray]:
    """Random values for every input, the state included. Lengths differ, and the longest is steps - 1 where `short`."""
    rng = np.random.default_rng(seed)
    values = {spec.name: spec.sample({"batch": batch, "time": steps}, rng) for spec in flat_specs(configuration)}
    if "lengths" in values:
        longest = max(1, steps - 1) if short else steps
        lengths = np.maximum(1, longest - np.arange(batch) * max(1, longest // batch))
        # Not reversed but rolled: a reversal undoes itself, and so would not tell an order from its inverse.
        values["lengths"] = lengths if configuration.packed == "sorted" else np.roll(lengths, 1)
    return values


def arguments(configuration: Configuration, values: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """forward's positional arguments."""
    return tuple(
        tuple(torch.tensor(values[spec.name]) for spec in part)
        if isinstance(part, tuple)
        else torch.tensor(values[part.name])
        for part in structure(configuration).values()
    )
