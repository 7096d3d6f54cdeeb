"""A live module as a function of flat tensors, in evaluation mode and float32, after it was seen to be a function.

A graph gives the same outputs for the same inputs. A module that keeps something from one call to the next, or that
draws random numbers, does not, and is refused with the line that does it: told by calling it, not by reading it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqexport.errors import UnsupportedError
from seqexport.sources import SourceLine, user_line
from seqexport.specs import InputSpec, TensorSpec

KEEP_STATE_OUTSIDE = (
    "take it as an argument of forward and return it, so that the caller feeds it back, or make it anew in every call"
)


class FlatModule(nn.Module):
    """A user's module as one of flat tensors: nested arguments are put together, results taken apart.

    Calling it leaves the module's attributes as they were: what forward keeps for later (a plot's attention weights,
    say) is no part of a graph, and torch.export refuses it.
    """

    def __init__(self, module: nn.Module, structure: Sequence[InputSpec], names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.structure = structure
        self.names = names
        self.output_names: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specs of the flat tensors."""
        return tuple(spec for part in self.structure for spec in (part if isinstance(part, tuple) else (part,)))

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """flat tensors in the order of the specs → the result's tensors, named by `output_names`."""
        with _attributes_kept(self.module):
            return self.call(flat)

    def call(self, flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same, with whatever the module keeps."""
        values = iter(flat)
        arguments = {
            name: tuple(next(values) for _ in spec) if isinstance(spec, tuple) else next(values)
            for name, spec in zip(self.names, self.structure, strict=True)
        }
        outputs = _flatten(self.module(**arguments), "")
        self.output_names = tuple(name or f"output_{index}" for index, (name, _) in enumerate(outputs))
        return tuple(tensor for _, tensor in outputs)


def _flatten(value: Any, name: str) -> list[tuple[str, Tensor]]:
    """A result's tensors with the names that dict keys and dataclass fields give them; others have none."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if value is None:
        return []
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _flatten(part, f"{name}_{key}" if name else str(key))]
    if isinstance(value, (tuple, list)):
        parts = enumerate(value)
        return [pair for index, part in parts for pair in _flatten(part, f"{name}_{index}" if name else "")]
    raise UnsupportedError(
        f"The model returns a {type(value).__name__}; expected tensors, in tuples, dicts or dataclasses."
    )


@contextlib.contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    before = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes, buffers in before:
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)


@contextlib.contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """The values of the buffers, which a call may write into."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            if not torch.equal(buffer, values):
                buffer.copy_(values)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode with frozen parameters, and afterwards as it was.

    torch's remark on which of its own kernels runs a projected LSTM is nothing that an exporter's user could act on.
    """
    training = [(part, part.training) for part in module.modules()]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN", UserWarning)
            yield
    finally:
        for part, was_training in training:
            part.training = was_training
        for parameter in trainable:
            parameter.requires_grad_(True)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DataParallel's wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def in_float32(module: nn.Module) -> tuple[nn.Module, set[str]]:
    """The module, or a copy in float32 where it has parameters of another precision, and the names of those found."""
    tensors = [*module.parameters(), *module.buffers()]
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()}
    others = kinds - {"float32"}
    return (copy.deepcopy(module).float(), others) if others else (module, set())


def float32_specs(structure: Sequence[InputSpec]) -> list[InputSpec]:
    """The specs with float32 in place of other floating types."""

    def narrowed(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype="float32") if spec.dtype in ("float16", "float64") else spec

    return [tuple(map(narrowed, spec)) if isinstance(spec, tuple) else narrowed(spec) for spec in structure]


@dataclass
class _Seen:
    """What a call did besides computing: name of what was written, or of the random operator → the line."""

    buffers: dict[str, SourceLine | None] = field(default_factory=dict)
    attributes: dict[str, SourceLine | None] = field(default_factory=dict)
    random: dict[str, SourceLine | None] = field(default_factory=dict)


class _Watch(TorchDispatchMode):
    """Sees every operator of a call: those that write into a buffer or a parameter, and those that draw numbers."""

    def __init__(self, module: nn.Module, seen: _Seen) -> None:
        super().__init__()
        named = [*module.named_buffers(), *module.named_parameters()]
        self.kept = {tensor.untyped_storage().data_ptr(): name for name, tensor in named if tensor.numel()}
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seen.random.setdefault(func.name().partition("::")[2].partition(".")[0], user_line())
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info and argument.alias_info.is_write and isinstance(value, Tensor):
                    name = self.kept.get(value.untyped_storage().data_ptr())
                    if name is not None:
                        self.seen.buffers.setdefault(name, user_line())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _assignments_seen(module: nn.Module, seen: _Seen) -> Iterator[None]:
    """Every assignment of tensors to an attribute of the module or its parts is noted, with its line."""
    paths = {id(part): f"{name}." if name else "" for name, part in module.named_modules()}
    original = nn.Module.__setattr__

    def noting(part: nn.Module, name: str, value: Any) -> None:
        if id(part) in paths and _holds_tensors(value):
            where = seen.buffers if name in part._buffers else seen.attributes
            where.setdefault(f"{paths[id(part)]}{name}", user_line())
        original(part, name, value)

    setattr(nn.Module, "__setattr__", noting)  # noqa: B010  a method, for the time of a call
    try:
        yield
    finally:
        setattr(nn.Module, "__setattr__", original)  # noqa: B010


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensors, value)))


def check_function(flat: FlatModule, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Call the module and see that it is a function; gives its outputs.

    Raises UnsupportedError, with the line, where it writes into a buffer, where a second call with the same inputs
    gives something else because of what the first one kept, or where it draws random numbers that show.
    """
    module, seen = flat.module, _Seen()
    with torch.random.fork_rng(devices=[]), _attributes_kept(module), _buffers_kept(module), torch.no_grad():
        torch.manual_seed(0)
        with _assignments_seen(module, seen), _Watch(module, seen):
            first = _kept(flat.call(arguments))
        for name, line in seen.buffers.items():
            raise UnsupportedError(
                f"{_place(line)} writes into {name!r} while it runs, which a graph can't keep from run to run: "
                f"{KEEP_STATE_OUTSIDE}."
            )
        torch.manual_seed(0)
        if not _same(first, _kept(flat.call(arguments))):
            kept = ", ".join(f"{name!r}" for name in seen.attributes) or "something"
            line = next(iter(seen.attributes.values()), None)
            raise UnsupportedError(
                f"{_place(line)} keeps {kept} from one call to the next, so that the same input gives another output, "
                f"which a graph can't: {KEEP_STATE_OUTSIDE}."
            )
        torch.manual_seed(1)
        if not _same(first, _kept(flat.call(arguments))):
            name, line = next(iter(seen.random.items()), ("something", None))
            raise UnsupportedError(
                f"{_place(line)} draws random numbers ({name}) in evaluation mode too, so that the same input gives "
                "another output: tie it to self.training, or take the numbers as an argument of forward."
            )
    return first


def _place(line: SourceLine | None) -> str:
    return str(line) if line else "The model's forward"


def _kept(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies, since an output may be memory that the next call writes into."""
    return tuple(tensor.clone() for tensor in outputs)


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )
