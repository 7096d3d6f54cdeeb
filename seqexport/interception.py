"""Keeps recurrent calls whole while torch.export traces: plain ones, and those on packed sequences.

A packed sequence has a data-dependent size, which no graph can have. Here it travels as what ONNX's operators take
anyway: the padded rows laid flat, (T * B, F) in place of (sum of lengths, F), with the lengths aside. What is done to
its rows one by one goes through unchanged; what is computed over all of them at once is not what torch would give, and
is found by the verification.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from seqexport import recurrent
from seqexport.errors import UnsupportedError
from seqexport.recurrent import MODES, State

MODULES: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)
# Stands for the longest row's length where pad_packed_sequence asks for the number of batch sizes: below every
# total_length that a user may give, with which torch compares it.
LONGEST = -1


# Pooling over windows, whose size is a fixed number in ONNX.
POOLS = ("max_pool1d", "avg_pool1d", "max_pool2d", "avg_pool2d")


def _symbolic_len(value: Any, /) -> Any:
    """len, except that len(x) is x.size(0), of which Python makes a plain number, which would be frozen."""
    return value.size(0) if isinstance(value, Tensor) and value.ndim else len(value)


def _own_namespaces(module: nn.Module) -> list[dict[str, Any]]:
    """The global names of the code that the module's writer has written: where its classes and what they use stand."""
    libraries = {"torch", "numpy", "seqexport", *sys.stdlib_module_names} - {"__main__"}
    pending: list[Any] = [base for part in module.modules() for base in type(part).__mro__]
    found: dict[int, dict[str, Any]] = {}
    while pending:
        value = pending.pop()
        if isinstance(value, type):
            pending += [part for part in vars(value).values() if isinstance(part, FunctionType)]
        elif isinstance(value, FunctionType) and id(value.__globals__) not in found:
            namespace = value.__globals__
            if str(namespace.get("__name__")).partition(".")[0] not in libraries:
                found[id(namespace)] = namespace
                pending += [part for part in namespace.values() if isinstance(part, FunctionType)]
    return [namespace for namespace in found.values() if "len" not in namespace]


_set_attribute = nn.RNNBase.__setattr__


def _set_weight(module: nn.RNNBase, name: str, value: Any) -> None:
    """Let a weight take a new value while tracing, when parameters are plain tensors, which torch refuses there.

    Nets that drop some of a recurrence's weights put them in anew at every call.
    """
    if name in module._parameters and name in module._flat_weights_names and isinstance(value, Tensor):
        module._parameters[name] = value  # type: ignore[assignment]
        module._flat_weights[module._flat_weights_names.index(name)] = value
    else:
        _set_attribute(module, name, value)


_tolist = FakeTensor.tolist
_read_data: Any = vars(torch._C.TensorBase)["data"].__get__


class _Numbers:
    """Stands for a tensor's values as Python numbers, which a trace does not have: to make a tensor of them again, as
    pack_padded_sequence does with lengths, is all that can be done."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def _refuse(self, *arguments: Any) -> Any:
        raise UnsupportedError(
            "The model takes a tensor's values as Python numbers (tolist, numpy), which would be the example's in the "
            "file: compute with the tensor."
        )

    __iter__ = __len__ = __getitem__ = __array__ = __getattr__ = _refuse


@dataclass(frozen=True)
class _Packing:
    """What a packed sequence was made of. lengths: int64 (B), in the order of its rows; steps: T; batch: B.

    batch_sizes: the tensor that stands for torch's, by whose identity the packing is found again.
    """

    lengths: Tensor
    steps: Any
    batch: Any
    batch_sizes: Tensor


class RecurrentCallsStayWhole(TorchFunctionMode):
    """While active, the calls that nn.RNN, nn.LSTM and nn.GRU make become the operators of seqexport.recurrent, and
    packing and padding what they need of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._namespaces = _own_namespaces(module)
        self._packings: dict[int, _Packing] = {}
        self._state_given = True
        self._forwards: dict[type[nn.RNNBase], Callable[..., Any]] = {}

    def __enter__(self) -> RecurrentCallsStayWhole:
        # On packed input these methods read the batch as a Python number, which would be frozen.
        for module in MODULES:
            self._forwards[module] = module.forward
            setattr(module, "forward", self._forward_of(module.forward))  # noqa: B010  a method, for a while
        for namespace in self._namespaces:
            namespace["len"] = _symbolic_len
        setattr(nn.RNNBase, "__setattr__", _set_weight)  # noqa: B010
        setattr(FakeTensor, "tolist", lambda x: _Numbers(x) if x.ndim else x.item())  # noqa: B010
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for namespace in self._namespaces:
            del namespace["len"]
        setattr(nn.RNNBase, "__setattr__", _set_attribute)  # noqa: B010
        setattr(FakeTensor, "tolist", _tolist)  # noqa: B010
        for module, forward in self._forwards.items():
            setattr(module, "forward", forward)  # noqa: B010

    def _forward_of(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(module: nn.RNNBase, input: Any, hx: Any = None) -> Any:
            if isinstance(input, PackedSequence) and id(input.batch_sizes) in self._packings:
                return self._run_packed(module, input, hx)
            self._state_given = hx is not None
            return original(module, input, hx)

        return forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func == _read_data:
            return args[0].detach()  # the same numbers; torch.export would keep those of .data as a constant
        if name == "_pack_padded_sequence":
            return self._pack(*args)
        if name == "_pad_packed_sequence":
            return self._pad(*args)
        if name == "scaled_dot_product_attention" and args and args[0].ndim == 3:
            return _attend(func, *args, **(kwargs or {}))
        if name in POOLS:
            pooled = _pool_whole_axes(name, *args, **(kwargs or {}))
            return func(*args, **(kwargs or {})) if pooled is None else pooled
        if name == "numpy":
            return _Numbers(args[0])
        if name in ("as_tensor", "tensor") and args and isinstance(args[0], _Numbers):
            return args[0].tensor.to((kwargs or {}).get("dtype"))
        packing = self._packings.get(id(args[0])) if args else None
        if packing is not None and name == "size" and args[1:] == (0,):
            return LONGEST
        if packing is not None and name == "__getitem__" and args[1] == 0:
            return packing.batch
        if func is torch.ops.aten.slice:  # which torch.export makes of x[:, :n]
            _bound_slice(*args)
        if name in MODES and func == getattr(torch._VF, name):
            return self._run(name, *args)
        return func(*args, **(kwargs or {}))

    def _run(
        self,
        name: str,
        x: Tensor,
        hx: Any,
        weights: Sequence[Tensor],
        bias: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> State:
        """What torch._VF's function of this name gives, which the modules call on padded input."""
        cell, nonlinearity = MODES[name]
        if batch_first:
            x = x.transpose(0, 1)
        state = tuple(hx) if cell == "lstm" else (hx,)
        if cell == "lstm" and len({part.shape[2] for part in state}) > 1 and not self._state_given:
            # Only the module knows whether a state was given; the zeros that it makes itself are better left out of a
            # projected LSTM.
            state = ()
        y, *final = recurrent.call(cell, nonlinearity, x, state, None, list(weights), bias, layers, bidirectional)
        return (y.transpose(0, 1) if batch_first else y, *final)

    def _run_packed(self, module: nn.RNNBase, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """What the module's forward gives on a packed sequence."""
        cell, nonlinearity = MODES[module.mode.lower()]
        weights = [getattr(module, name) for name in module._flat_weights_names]
        packing = self._packings[id(packed.batch_sizes)]
        state: State
        if hx is None and module.proj_size:
            state = ()
        elif hx is None:
            rows = module.num_layers * (2 if module.bidirectional else 1)
            zero = packed.data.new_zeros(rows, packing.batch, module.hidden_size)
            state = (zero, zero) if cell == "lstm" else (zero,)
        else:
            state = _rows_in_order(tuple(hx) if cell == "lstm" else (hx,), packed.sorted_indices)
        x = packed.data.reshape(packing.steps, packing.batch, -1)
        options = (weights, module.bias, module.num_layers, module.bidirectional)
        y, *final = recurrent.call(cell, nonlinearity, x, state, packing.lengths, *options)
        final = list(_rows_in_order(tuple(final), packed.unsorted_indices))
        order = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return PackedSequence(y.flatten(0, 1), *order), tuple(final) if cell == "lstm" else final[0]

    def _pack(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        x = padded.transpose(0, 1) if batch_first else padded
        packing = _Packing(lengths, x.shape[0], x.shape[1], lengths.clone())
        self._packings[id(packing.batch_sizes)] = packing
        return x.flatten(0, 1), packing.batch_sizes

    def _pad(
        self, data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: Any
    ) -> tuple[Tensor, Tensor]:
        if id(batch_sizes) not in self._packings:
            raise UnsupportedError(
                "The model pads a packed sequence that it did not pack itself (pack_padded_sequence): "
                "give it the padded tensor and the lengths, and let it pack them."
            )
        packing = self._packings[id(batch_sizes)]
        x = data.reshape(packing.steps, packing.batch, -1)
        inside = torch.arange(packing.steps).unsqueeze(1) < packing.lengths
        x = torch.where(inside.unsqueeze(2), x, padding_value)
        if total_length is LONGEST:
            longest = packing.lengths.max().item()
            torch._check(longest <= packing.steps)
            x = x[:longest]
        elif not statically_known_true(total_length == packing.steps):
            beyond = x.new_full((total_length, packing.batch, x.shape[2]), padding_value)
            x = torch.cat([x, beyond])[:total_length]
        return (x.transpose(0, 1) if batch_first else x), packing.lengths


def _rows_in_order(state: State, order: Tensor | None) -> State:
    return state if order is None else tuple(part.index_select(1, order) for part in state)


def _bound_slice(x: Tensor, axis: int = 0, start: Any = None, stop: Any = None, *more: Any) -> None:
    """x[:, :n] with n a value, such as the longest row's length: torch.onnx wants it settled that n is no more than the
    axis has. ONNX's Slice ends there anyway, as Python's does."""
    if isinstance(stop, torch.SymInt) and free_unbacked_symbols(stop) and stop.node.expr.is_Symbol:
        torch._check(stop >= 0)
        torch._check(stop <= x.shape[axis])


def _pool_whole_axes(
    kind: str, x: Tensor, kernel_size: Any, stride: Any = None, *more: Any, **options: Any
) -> Tensor | None:
    """A window as large as a dynamic axis, and 1 along any other, gives that axis' maximum or mean; None for others."""
    axes = int(kind[-2])
    window = list(kernel_size) if isinstance(kernel_size, (tuple, list)) else [kernel_size] * axes
    whole = [place - axes for place, size in enumerate(window) if not isinstance(size, int)]
    ones = all(size == 1 for size in window if isinstance(size, int))
    fits = all(statically_known_true(window[axis] == x.shape[axis]) for axis in whole)
    plain = all(not value or (name, value) == ("dilation", 1) for name, value in options.items())
    if more or not whole or not ones or not fits or not plain or stride not in (None, kernel_size):
        return None
    return x.amax(whole, keepdim=True) if kind.startswith("max") else x.mean(whole, keepdim=True)


def _attend(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *more: Any,
    **options: Any,
) -> Tensor:
    """Attention without heads as attention with one head, which is all that torch.onnx translates."""
    mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    heads = (part.unsqueeze(1) for part in (query, key, value))
    return attention(*heads, mask, *more, **options).squeeze(1)
