"""A module to torch.export's program, with every size that its code depends on, and the line that does.

torch.export notes a guard wherever Python asks for a size: a loop over a range, a branch, a number made of a shape.
Some of them fix a size altogether, which is refused; others hold for the example and not for other sizes, and a graph
would then keep the way taken at the example: those come back as restrictions, for the verification to try.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from seqexport.errors import SeqExportError, SpecError, UnsupportedError
from seqexport.interception import RecurrentCallsStayWhole
from seqexport.sources import SourceLine, first_line, line_of_error, user_line
from seqexport.specs import TensorSpec, dynamic_dims

# Sizes for the example, of which each dynamic dim gets one that occurs nowhere among the module's own sizes, so that a
# size that lives on in the graph can be told from the net's numbers. The batch gets the first free one, time the first
# from the second row on: longer than the kernels of the convolutions that may stand before a recurrence.
_PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107)
_TIMES = (23, 131)
_FURTHER = (131, 137, 139, 149, 151, 157, 163, 167, 173, 179)


@dataclass(frozen=True)
class Restriction:
    """What the code asked of the sizes and found true for the example. dims: symbol → the dim's name."""

    condition: Any
    dims: Mapping[Any, str]
    line: SourceLine | None

    @property
    def names(self) -> tuple[str, ...]:
        """The dims that are asked for."""
        return tuple(dict.fromkeys(self.dims[symbol] for symbol in self.condition.free_symbols))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true at these sizes of the dims."""
        found = self.condition.subs({symbol: sizes[dim] for symbol, dim in self.dims.items() if dim in sizes})
        return bool(found)

    def __str__(self) -> str:
        where = str(self.line) if self.line else "The model's forward"
        return f"{where} asks for the size of {' and '.join(map(repr, self.names))}"


@dataclass(frozen=True)
class Trace:
    """A traced module, the example's sizes by the names of the dims, and what the code asked of sizes."""

    program: torch.export.ExportedProgram
    sizes: Mapping[str, int]
    restrictions: tuple[Restriction, ...]


def example_sizes(specs: Sequence[TensorSpec], module: nn.Module, attempt: int = 0) -> dict[str, int]:
    """A size for each dynamic dim of the specs; from the second attempt on with a long time."""
    dims = dynamic_dims(specs)
    tensors = [*module.parameters(), *module.buffers()]
    taken = {size for tensor in tensors for size in tensor.shape} | {
        dim for spec in specs for dim in spec.dims if isinstance(dim, int)
    }
    free = [size for size in (*_PRIMES, *_FURTHER) if not any(number % size == 0 for number in taken if number)]
    if len(dims) > len(free) // 2:
        raise SpecError(f"The inputs have {len(dims)} dynamic dims; expected at most {len(free) // 2}.")
    sizes: dict[str, int] = {}
    for dim in dims:
        least = _TIMES[attempt] if dim == "time" else 0
        sizes[dim] = next(size for size in free if size >= least and size not in sizes.values())
    return sizes


ATTEMPTS = len(_TIMES)


def example(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Arguments to trace with, of these sizes."""
    rng = np.random.default_rng(0)
    return tuple(torch.from_numpy(np.asarray(spec.sample(sizes, rng))) for spec in specs)


class _Guards(list[Any]):
    """torch's list of guards, which notes the line of the user's code that each comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.located: list[tuple[Any, SourceLine | None]] = []

    def append(self, guard: Any) -> None:
        """Called by torch when a guard is made."""
        self.located.append((guard.expr, user_line()))
        super().append(guard)


class _Observed(nn.Module):
    """torch.export names a forward's arguments one by one; this one takes as many as come, and notes each guard's line.

    notes: torch's symbol → the dim's name, in an object that torch.export does not take for an attribute to be kept.
    """

    def __init__(self, module: nn.Module, specs: Sequence[TensorSpec], notes: _Notes) -> None:
        super().__init__()
        self.module = module
        self.specs = specs
        self.notes = notes

    def forward(self, *flat: Tensor) -> Any:
        for tensor, spec in zip(flat, self.specs, strict=True):
            for size, dim in zip(tensor.shape, spec.dims, strict=True):
                if isinstance(size, torch.SymInt) and isinstance(dim, str):
                    self.notes.take(size, dim)
        return self.module(*flat)


class _Notes:
    def __init__(self) -> None:
        self.symbols: dict[Any, str] = {}
        self.guards = _Guards()

    def take(self, size: torch.SymInt, dim: str) -> None:
        """The symbol of a dim's size, and from now on the lines of its guards."""
        self.symbols[size.node.expr] = dim
        environment = size.node.shape_env
        if environment.guards is not self.guards:
            self.guards.extend(environment.guards)
            environment.guards = self.guards

    def restrictions(self) -> Iterator[Restriction]:
        """The guards that ask for dims alone."""
        for condition, line in self.guards.located:
            symbols = {symbol: self.symbols[symbol] for symbol in condition.free_symbols if symbol in self.symbols}
            if symbols and len(symbols) == len(condition.free_symbols):
                yield Restriction(condition, symbols, line)


def trace(module: nn.Module, specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Trace:
    """Trace the module with an example of these sizes, every named dim dynamic.

    Raises UnsupportedError, with the line of the user's code, for what can't be traced or fixes a dim to one size.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in specs)
    notes = _Notes()
    try:
        with quiet(), RecurrentCallsStayWhole(module), torch.no_grad():
            program = torch.export.export(
                _Observed(module, specs, notes), example(specs, sizes), dynamic_shapes=(shapes,), strict=False
            )
    except SeqExportError:
        raise
    except Exception as error:  # torch.export raises many kinds
        raise UnsupportedError(_why(error, notes, sizes)) from error
    return Trace(program, sizes, tuple(notes.restrictions()))


def _why(error: Exception, notes: _Notes, sizes: Mapping[str, int]) -> str:
    """The sentence for what torch.export raised."""
    if isinstance(error, GuardOnDataDependentSymNode):
        where = line_of_error(error) or "The model's forward"
        return (
            f"{where} decides by a value, which a graph computes only when it runs ({_plainly(error)}): choose with "
            "torch.where or a mask; for a number of steps, n = lengths.max().item() and torch._check(n <= x.size(1))."
        )
    for restriction in notes.restrictions():
        fixed = [dim for dim in restriction.names if _fixes(restriction, dim, sizes)]
        if fixed:
            where = restriction.line or "The model's forward"
            return (
                f"{where} fixes the dim {fixed[0]!r} to one size, so that the file would serve no other: in place of a "
                "Python loop over a cell run nn.RNN, nn.LSTM or nn.GRU over the whole sequence, compute the step with "
                "tensors, or give the dim as a number in the input's spec."
            )
    at = f" at {line}" if (line := line_of_error(error)) else ""
    return f"The model could not be traced{at} ({type(error).__name__}: {_plainly(error)})."


def _plainly(error: Exception) -> str:
    """The first line of torch's message, without its names for sizes."""
    return first_line(error).partition(" (unhinted")[0]


def _fixes(restriction: Restriction, dim: str, sizes: Mapping[str, int]) -> bool:
    """Whether the condition is true at the example's size of the dim and at none beside it."""
    others = [{**sizes, dim: sizes[dim] + step} for step in (-2, -1, 1, 2, 10)]
    return not any(restriction.holds(changed) for changed in others)


def sizes_against(restriction: Restriction, sizes: Mapping[str, int]) -> dict[str, int] | None:
    """Sizes, 2 or more and as near to the example's as there are, at which the condition is false; None if there are
    none within reach. A dim of 1 is left to the cases that every graph is tried with."""
    numbers = [int(number) for number in restriction.condition.atoms() if number.is_Integer]
    near = {number + step for number in numbers for step in (-1, 0, 1)}
    candidates = sorted({*range(2, 40), 64, 65, 128, 257, *near}, key=lambda size: (size > 300, size))
    reach = [size for size in candidates if 2 <= size <= _REACH]
    names = restriction.names
    for chosen in itertools.product(reach, repeat=1) if len(names) != 2 else itertools.product(reach[:40], repeat=2):
        tried = {**sizes, **dict(zip(names, itertools.cycle(chosen), strict=False))}
        if not restriction.holds(tried):
            return tried
    return None


_REACH = 5000  # steps; longer ones would take the verification too long


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporter talks of torchvision being absent and the like, on loggers, by warnings and by print."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
