"""Raw in, answer out: each pipeline is written once, in torch, its loop included.

The torch runtime runs these modules; every other runtime runs their export, in which the loop is an ONNX Scan.
Randomness and state are inputs, so that all runtimes draw the same paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan as torch_scan

from seqexport.errors import SpecError, UnsupportedError
from seqexport.networks import Network
from seqexport.recurrent import State
from seqexport.specs import NetworkSpec, TensorSpec

Carry = list[Tensor]


def scan(step: Callable[[Carry, Tensor], tuple[Carry, Tensor]], carry: Carry, xs: Tensor) -> Tensor:
    """Call `step(carry, x) → (carry, y)` for every x of xs (N, …), and return the ys stacked (N, …).

    While exporting it is torch's scan, which becomes an ONNX Scan; otherwise a plain loop.
    """
    if torch.compiler.is_exporting():
        return torch_scan(step, carry, xs)[1]
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return torch.stack(ys)


@dataclass(frozen=True)
class Scaling:
    """From a series' own units to the network's and back: z = (t(value) - mean) / spread.

    transform: t is the identity ("none") or the square root ("root", for counts, whose noise grows with their level;
    values below zero are taken as zero). mean and spread are those of t(value) on the training part.
    """

    transform: Literal["none", "root"] = "none"
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.transform not in ("none", "root"):
            raise SpecError(f"The scaling's transform is {self.transform!r}; expected none or root.")
        if not (math.isfinite(self.mean) and math.isfinite(self.spread) and self.spread > 0):
            raise SpecError(
                f"The scaling has mean {self.mean} and spread {self.spread}; expected a number and a positive number."
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Scaling:
        """The `scaling` of a checkpoint's `preprocessing` entry. Raises SpecError if it does not fit."""
        try:
            return cls(fields["transform"], float(fields["mean"]), float(fields["spread"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"The scaling {fields!r} lacks or garbles transform, mean or spread.") from error

    @classmethod
    def fitted(cls, values: Tensor, transform: Literal["none", "root"]) -> Scaling:
        """The scaling whose mean and (uncorrected) standard deviation are those of t(values)."""
        transformed = cls(transform).apply(values.double())
        return cls(transform, float(transformed.mean()), float(transformed.std(correction=0)) or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The `scaling` of a checkpoint's `preprocessing` entry."""
        return asdict(self)

    def apply(self, values: Tensor) -> Tensor:
        """Values in the series' units → z, any shape."""
        if self.transform == "root":
            values = values.clamp(min=0.0).sqrt()
        return (values - self.mean) / self.spread

    def undo(self, z: Tensor) -> Tensor:
        """z → values in the series' units, any shape."""
        values = z * self.spread + self.mean
        return values.clamp(min=0.0).square() if self.transform == "root" else values


class Forecast(nn.Module):
    """Roll a series on: history and noise in, paths out, all in the series' own units.

    At each step the network gives the distribution of the next scaled value, a normal one with a mean and a spread;
    the step's noise, a standard normal number, picks the value, which is then read in turn. Zero noise gives the
    central path, many noises the fan.
    """

    name = "forecast"
    output_name = "path"

    def __init__(self, network: Network, scaling: Scaling) -> None:
        super().__init__()
        check_forecaster(network.spec)
        self.network = network
        self.scaling = scaling

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """`history`, `noise`, and the state before the history."""
        history = TensorSpec("history", "float32", ("batch", "time"))
        noise = TensorSpec("noise", "float32", ("batch", "paths", "horizon"))
        return history, noise, *self.network.spec.state

    @property
    def output_names(self) -> tuple[str, ...]:
        """`path`, then the state after the history."""
        return self.output_name, *self.network.spec.state_map.values()

    def forward(self, history: Tensor, noise: Tensor, *state: Tensor) -> State:
        """history (B, T), noise (B, P, N), state (L, B, H) or none for zero → path (B, P, N), and the state after the
        history was read, from which a longer history can be gone on with."""
        batch, paths, horizon = noise.shape
        run = self.network.as_function()
        scaled = self.scaling.apply(history).transpose(0, 1).unsqueeze(-1)  # (T, B, 1)
        y, after = run(scaled, state or self.network.zero_state(history.shape[0]))
        # The history is read once; from here on every path is a row of its own, with its copy of the state.
        first = _per_path(y[-1:], paths)[0]  # (B*P, 2)
        carry = [first, *(_per_path(part, paths) for part in after)]

        def step(carry: Carry, noise: Tensor) -> tuple[Carry, Tensor]:
            mean, spread = distribution(carry[0])
            z = mean + spread * noise  # (B*P,)
            y, state = run(z[None, :, None], tuple(carry[1:]))
            return [y[0], *state], z.clone()

        z = scan(step, carry, noise.permute(2, 0, 1).reshape(horizon, batch * paths))  # (N, B*P)
        path = self.scaling.undo(z).reshape(horizon, batch, paths).permute(1, 2, 0)
        return path, *after


def distribution(y: Tensor) -> tuple[Tensor, Tensor]:
    """What a forecaster's head gives, (…, 2) → mean (…) and spread (…) of the next scaled value.

    The floor under the spread keeps the likelihood of a series that repeats itself finite.
    """
    return y[..., 0], nn.functional.softplus(y[..., 1]) + 1e-3


def check_forecaster(spec: NetworkSpec) -> None:
    """Raise UnsupportedError unless a network of this description can roll a series on."""
    if spec.bidirectional or spec.vocabulary or spec.features != 1 or spec.outputs != 2 or spec.pooling != "every":
        raise UnsupportedError(
            "A forecast needs a one-directional net from 1 number to 2 (mean and spread) at every step; "
            f"this is {spec}."
        )


def _per_path(rows: Tensor, paths: int) -> Tensor:
    """(K, B, H) → (K, B*P, H), each row repeated for its paths."""
    return rows.unsqueeze(2).expand(-1, -1, paths, -1).flatten(1, 2)
