"""The registry of nets as people write them: test_written_nets exports each and holds it against torch.

The nets themselves are in written_readers (what becomes of a recurrence's output: pooling, attention; packing),
written_pairs (several recurrences and sequences: encoders and decoders), written_layers (what stands around one:
embeddings, convolutions, norms, containers) and written_calls (state, arguments, results, cells, wrappers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

X = "float32[batch,time,5]"
TIME_MAJOR = "float32[time,batch,5]"
TOKENS = "int64[batch,time]{0..19}"
LENGTHS = "int64[batch]{1..time}"


@dataclass(frozen=True)
class Written:
    """One net.

    inputs: the specs of forward's arguments. outputs: `name[dims]` each, as the file must declare them; without a name
    where the net gives none; `?` for a dim that follows from others, so that it may be anything but a number.
    least, most: the smallest and the largest size of a dim that the net itself can take.
    warns: what torch warns of when it is made. slow: left to the slow run; the default one has a net much like it.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    warns: str = ""
    slow: bool = False


NETS: list[Written] = []


def written(
    inputs: Mapping[str, str],
    *outputs: str,
    least: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
    warns: str = "",
    slow: bool = False,
    **options: object,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register a class, or a function that makes a net, with these options of its constructor."""

    def register(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        shown = ",".join(str(value) for value in options.values())
        name = make.__name__ + (f"[{shown}]" if shown else "")
        NETS.append(Written(name, lambda: make(**options), inputs, outputs, least or {}, most or {}, warns, slow))
        return make

    return register
