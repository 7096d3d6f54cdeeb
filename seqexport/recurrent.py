"""The recurrent calls as operators that torch.export keeps whole, and what they are in ONNX.

torch's own shape rule for aten.lstm and its kin unrolls the time axis and so freezes it. The operators here compute
shapes without touching time, and torch.onnx lowers them to the ONNX RNN, LSTM and GRU nodes that every runtime has a
fast kernel for.

Shapes: time T, batch B, features F, hidden size H, layers L, directions D. Everything here is time-major, as ONNX is.
Weights come flat, in torch's order: for each layer, for each direction, W_ih (G*H, F or D*H), W_hh (G*H, H) and, with
bias, b_ih and b_hh (G*H), where G is the number of gates. `lengths` (B), where given, are the steps of each row that
count: beyond them y is zero, the final state is the one after them, and the reverse direction starts from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from seqexport.specs import Cell

State = tuple[Tensor, ...]

# torch's gates, in the order that ONNX wants them: LSTM i,f,g,o → i,o,f,c; GRU r,z,n → z,r,h.
# Source: the equations of torch.nn.LSTM and GRU, and of the ONNX operators LSTM-14 and GRU-14.
ONNX_GATE_ORDER: dict[Cell, tuple[int, ...]] = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}

# torch's names of the recurrent calls, as cell and nonlinearity.
MODES: dict[str, tuple[Cell, str]] = {
    "lstm": ("lstm", ""),
    "gru": ("gru", ""),
    "rnn_tanh": ("rnn", "tanh"),
    "rnn_relu": ("rnn", "relu"),
}


@torch.library.custom_op("seqexport::lstm", mutates_args=())
def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, B, F), h0 and c0 (L*D, B, H), lengths (B) → y (T, B, D*H), hn and cn (L*D, B, H)."""
    y, hn, cn = _eager("lstm", x, (h0, c0), lengths, weights, bias, layers, bidirectional)
    return y.clone(), hn.clone(), cn.clone()


@torch.library.custom_op("seqexport::gru", mutates_args=())
def gru(
    x: Tensor, h0: Tensor, lengths: Tensor | None, weights: list[Tensor], bias: bool, layers: int, bidirectional: bool
) -> tuple[Tensor, Tensor]:
    """x (T, B, F), h0 (L*D, B, H), lengths (B) → y (T, B, D*H), hn (L*D, B, H)."""
    y, hn = _eager("gru", x, (h0,), lengths, weights, bias, layers, bidirectional)
    return y.clone(), hn.clone()


@torch.library.custom_op("seqexport::rnn", mutates_args=())
def rnn(
    x: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """x (T, B, F), h0 (L*D, B, H), lengths (B) → y (T, B, D*H), hn (L*D, B, H). nonlinearity: tanh or relu."""
    y, hn = _eager(f"rnn_{nonlinearity}", x, (h0,), lengths, weights, bias, layers, bidirectional)
    return y.clone(), hn.clone()


@torch.library.custom_op("seqexport::lstm_projected", mutates_args=())
def lstm_projected(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, B, F), h0 (L*D, B, P), c0 (L*D, B, H), both or none, lengths (B) → y (T, B, D*P), hn (L*D, B, P),
    cn (L*D, B, H). After a direction's other weights comes W_hr (P, H), which projects its h."""
    shapes = _projected_state(x, weights, layers, bidirectional)
    state = tuple(x.new_zeros(shape) for shape in shapes) if h0 is None or c0 is None else (h0, c0)
    y, hn, cn = _eager("lstm", x, state, lengths, weights, bias, layers, bidirectional)
    return y.clone(), hn.clone(), cn.clone()


@lstm_projected.register_fake
def _(x: Tensor, h0: Any, c0: Any, lengths: Any, weights: Any, bias: bool, layers: int, bidirectional: bool) -> State:
    hn, cn = _projected_state(x, weights, layers, bidirectional)
    y = x.new_empty(x.shape[0], x.shape[1], hn[2] * (2 if bidirectional else 1))
    return y, x.new_empty(hn), x.new_empty(cn)


def _projected_state(x: Tensor, weights: Sequence[Tensor], layers: int, bidirectional: bool) -> tuple[Any, Any]:
    """The shapes of h (L*D, B, P) and c (L*D, B, H); W_hh is (4*H, P)."""
    rows, (gates, projection) = layers * (2 if bidirectional else 1), weights[1].shape
    return (rows, x.shape[1], projection), (rows, x.shape[1], gates // 4)


def _eager(
    mode: str,
    x: Tensor,
    state: State,
    lengths: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    dropout: float = 0.0,
) -> State:
    """The call that torch's module of this mode makes, on packed rows where there are lengths."""
    call = getattr(torch._VF, mode)
    options = (weights, bias, layers, dropout, dropout > 0, bidirectional)
    if lengths is None:
        return call(x, state if mode == "lstm" else state[0], *options, False)
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    assert packed.sorted_indices is not None and packed.unsorted_indices is not None
    rows = tuple(part.index_select(1, packed.sorted_indices) for part in state)
    y, *final = call(packed.data, packed.batch_sizes, rows if mode == "lstm" else rows[0], *options)
    padded, _ = pad_packed_sequence(PackedSequence(y, *packed[1:]), total_length=x.shape[0])
    return padded, *(part.index_select(1, packed.unsorted_indices) for part in final)


def _output(x: Tensor, h0: Tensor, bidirectional: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], h0.shape[2] * (2 if bidirectional else 1))


@lstm.register_fake
def _(
    x: Tensor, h0: Tensor, c0: Tensor, lengths: Any, weights: Any, bias: bool, layers: int, bidirectional: bool
) -> State:
    return _output(x, h0, bidirectional), torch.empty_like(h0), torch.empty_like(c0)


@gru.register_fake
def _(x: Tensor, h0: Tensor, lengths: Any, weights: Any, bias: bool, layers: int, bidirectional: bool) -> State:
    return _output(x, h0, bidirectional), torch.empty_like(h0)


@rnn.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    lengths: Any,
    weights: Any,
    bias: bool,
    layers: int,
    bidirectional: bool,
    nonlinearity: str,
) -> State:
    return _output(x, h0, bidirectional), torch.empty_like(h0)


Recurrence: TypeAlias = Callable[[Tensor, State, "Tensor | None"], tuple[Tensor, State]]


def as_function(module: nn.RNNBase) -> Recurrence:
    """The recurrence of `module` as a function of tensors: x (T, B, F), state, lengths (B) or None → y and state.

    A loop's body needs it: while exporting, dynamo traces the body and refuses nn.RNN, nn.LSTM and nn.GRU objects.
    Eagerly it is the same call that the module makes.
    """
    weights = [getattr(module, name) for name in module._flat_weights_names]
    bias, layers, bidirectional = module.bias, module.num_layers, module.bidirectional
    mode, dropout = module.mode.lower(), module.dropout if module.training else 0.0

    def run(x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        if torch.compiler.is_exporting():
            y, *final = call(*MODES[mode], x, state, lengths, weights, bias, layers, bidirectional)
        else:
            y, *final = _eager(mode, x, state, lengths, weights, bias, layers, bidirectional, dropout)
        return y, tuple(final)

    return run


class Steps:
    """The recurrence of a one-directional `module` a single step at a time, for the body of a loop.

    What a loop carries is the state `apart`: while exporting, every layer's part on its own, so that the graph's body
    has one node a layer and neither cuts nor joins; eagerly, the state as torch's own call takes it.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        self._run = as_function(module)
        self._mode, self._bias, self._layers = MODES[module.mode.lower()], module.bias, module.num_layers
        names = module._flat_weights_names
        per_layer = len(names) // self._layers
        weights = [getattr(module, name) for name in names]
        self._weights = [weights[start : start + per_layer] for start in range(0, len(weights), per_layer)]

    def apart(self, state: State) -> State:
        """State (L, B, H) → what the loop carries."""
        if not torch.compiler.is_exporting():
            return state
        return tuple(part[layer : layer + 1] for part in state for layer in range(self._layers))

    def together(self, carried: Sequence[Tensor]) -> State:
        """What the loop carried → state (L, B, H)."""
        if not torch.compiler.is_exporting():
            return tuple(carried)
        layers = self._layers
        return tuple(torch.cat(list(carried[start : start + layers])) for start in range(0, len(carried), layers))

    def __call__(self, x: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, State]:
        """x (1, B, F) and what is carried → y (1, B, H), what is carried on."""
        if not torch.compiler.is_exporting():
            return self._run(x, tuple(carried), None)
        after: list[State] = []
        for layer, weights in enumerate(self._weights):
            _, *final = call(*self._mode, x, carried[layer :: self._layers], None, weights, self._bias, 1, False)
            after.append(tuple(final))
            x = final[0]  # after a single step the output is the state
        return x, tuple(part for parts in zip(*after, strict=True) for part in parts)


def call(
    cell: Cell,
    nonlinearity: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
) -> State:
    """The operator of the cell: x (T, B, F), state (L*D, B, H), lengths (B) or None → y (T, B, D*H), final state.

    An LSTM with a W_hr a direction is a projected one; its state may be left away.
    """
    if cell == "lstm" and len(weights) == layers * (2 if bidirectional else 1) * (5 if bias else 3):
        return lstm_projected(x, *(state or (None, None)), lengths, weights, bias, layers, bidirectional)
    if cell == "rnn":
        return rnn(x, *state, lengths, weights, bias, layers, bidirectional, nonlinearity)
    return (lstm if cell == "lstm" else gru)(x, *state, lengths, weights, bias, layers, bidirectional)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _reordered(cell: Cell, parameter: Any, hidden_size: int) -> Any:
    """A weight (G*H, K) or a bias (G*H) with its gates in ONNX's order."""
    if cell not in ONNX_GATE_ORDER:
        return parameter
    rows = [gate * hidden_size + row for gate in ONNX_GATE_ORDER[cell] for row in range(hidden_size)]
    return op.Gather(parameter, _ints(*rows), axis=0)


def _concat(parts: Sequence[Any], axis: int = 0) -> Any:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)


def _layer_parameters(cell: Cell, parameters: Sequence[Any], bias: bool) -> tuple[Any, Any, Any | None]:
    """One layer's parameters, direction after direction → W (D, G*H, F), R (D, G*H, H), B (D, 2*G*H) or None."""
    per_direction = 4 if bias else 2
    starts = range(0, len(parameters), per_direction)
    hidden_size = parameters[1].shape[1]

    def stacked(offset: int) -> Any:
        return _concat(
            [op.Unsqueeze(_reordered(cell, parameters[start + offset], hidden_size), _ints(0)) for start in starts]
        )

    return stacked(0), stacked(1), _concat([stacked(2), stacked(3)], axis=1) if bias else None


def _lower(
    cell: Cell,
    x: Any,
    state: Sequence[Any],
    lengths: Any | None,
    weights: Sequence[Any],
    bias: bool,
    layers: int,
    bidirectional: bool,
    nonlinearity: str = "",
) -> tuple[Any, ...]:
    """The ONNX nodes of one recurrent call: a node a layer, whose output (T, D, B, H) is laid flat to (T, B, D*H)."""
    directions = 2 if bidirectional else 1
    per_layer = directions * (4 if bias else 2)
    nodes: dict[Cell, Any] = {"lstm": op.LSTM, "gru": op.GRU, "rnn": op.RNN}
    node = nodes[cell]
    options: dict[str, Any] = {
        "hidden_size": weights[1].shape[1],
        "direction": "bidirectional" if bidirectional else "forward",
    }
    if cell == "gru":
        options["linear_before_reset"] = 1
    if cell == "rnn":
        options["activations"] = [nonlinearity.capitalize()] * directions
    if lengths is not None:
        lengths = op.Cast(lengths, to=ir.DataType.INT32)
    finals = []
    for layer in range(layers):
        parameters = _layer_parameters(cell, weights[layer * per_layer : (layer + 1) * per_layer], bias)
        first = layer * directions
        initial = [
            part if layers == 1 else op.Slice(part, _ints(first), _ints(first + directions), _ints(0)) for part in state
        ]
        y, *final = node(x, *parameters, lengths, *initial, **options)
        finals.append(final)
        if directions == 1:
            x = op.Squeeze(y, _ints(1))
        else:
            x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), _ints(0, 0, -1))
    return (x, *(_concat(parts) for parts in zip(*finals, strict=True)))


def _lower_lstm(x: Any, h0: Any, c0: Any, lengths: Any, weights: Any, *options: Any) -> Any:
    return _lower("lstm", x, (h0, c0), lengths, weights, *options)


def _lower_gru(x: Any, h0: Any, lengths: Any, weights: Any, *options: Any) -> Any:
    return _lower("gru", x, (h0,), lengths, weights, *options)


def _lower_rnn(x: Any, h0: Any, lengths: Any, weights: Any, *options: Any) -> Any:
    return _lower("rnn", x, (h0,), lengths, weights, *options)


def _lower_projected(
    x: Any,
    h0: Any | None,
    c0: Any | None,
    lengths: Any | None,
    weights: Sequence[Any],
    bias: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Any, ...]:
    """An LSTM whose h is projected, h = W_hr o tanh(c), as a plain one: its W_hh h is (W_hh W_hr) h' of the unprojected
    h' = o tanh(c), and its outputs are those of the plain one times W_hr.

    A given h0 has no h' in general, so what it adds to the first step's gates, W_hh h0, comes in by the input: P more
    columns, which hold h0 at the step that a direction reads first and are zero elsewhere.
    """
    per_direction = 5 if bias else 3
    per_layer = per_direction * (2 if bidirectional else 1)
    counts: Any = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    given = h0 is not None
    h: Any = h0
    c: Any = c0
    finals = []
    for layer in range(layers):
        parts = weights[layer * per_layer : (layer + 1) * per_layer]
        sides = [parts[start : start + per_direction] for start in range(0, len(parts), per_direction)]
        first, after = layer * len(sides), (layer + 1) * len(sides)
        hidden_size = sides[0][-1].shape[1]
        inputs: list[Any] = [side[0] for side in sides]
        initial: Any = None
        if given:
            starts = [op.Slice(h, _ints(first + at), _ints(first + at + 1), _ints(0)) for at in range(len(sides))]
            initial = op.Slice(c, _ints(first), _ints(after), _ints(0))
            nothing: Any = op.Constant(value_float=0.0)
            columns = [op.Where(_first_read(x, lengths, at == 1), start, nothing) for at, start in enumerate(starts)]
            x = op.Concat(x, *columns, axis=2)
            empty = [op.Mul(side[1], nothing) for side in sides]
            inputs = [
                op.Concat(side[0], *(side[1] if at == column else empty[at] for column in range(len(sides))), axis=1)
                for at, side in enumerate(sides)
            ]
        w = _concat([op.Unsqueeze(_reordered("lstm", part, hidden_size), _ints(0)) for part in inputs])
        r = _concat([op.Unsqueeze(_reordered("lstm", _folded(side), hidden_size), _ints(0)) for side in sides])
        b = None
        if bias:
            halves = [
                [op.Unsqueeze(_reordered("lstm", side[at], hidden_size), _ints(0)) for side in sides] for at in (2, 3)
            ]
            b = op.Concat(*(_concat(half) for half in halves), axis=1)
        direction = "bidirectional" if bidirectional else "forward"
        y, hn, cn = op.LSTM(x, w, r, b, counts, None, initial, hidden_size=hidden_size, direction=direction)
        project = _concat([op.Unsqueeze(op.Transpose(side[-1], perm=[1, 0]), _ints(0)) for side in sides])  # (D, H, P)
        finals.append((op.MatMul(hn, project), cn))
        x = op.Reshape(op.Transpose(op.MatMul(y, project), perm=[0, 2, 1, 3]), _ints(0, 0, -1))  # (T, B, D*P)
    return (x, *(_concat(final) for final in zip(*finals, strict=True)))


def _folded(side: Sequence[Any]) -> Any:
    """W_hh W_hr (4*H, H), multiplied in float64, since it stands for two products that torch rounds apart."""
    w_hh: Any = op.Cast(side[1], to=ir.DataType.DOUBLE)
    w_hr: Any = op.Cast(side[-1], to=ir.DataType.DOUBLE)
    product: Any = op.MatMul(w_hh, w_hr)
    return op.Cast(product, to=ir.DataType.FLOAT)


def _first_read(x: Any, lengths: Any, reverse: bool) -> Any:
    """Where a direction begins: true at the first step (T, 1, 1), or in reverse at each row's last (T, B, 1)."""
    steps = op.Squeeze(op.Shape(x, start=0, end=1), _ints(0))
    zero: Any = op.Constant(value_int=0)
    one: Any = op.Constant(value_int=1)
    step = op.Unsqueeze(op.Range(zero, steps, one), _ints(1, 2))
    if not reverse:
        return op.Equal(step, zero)
    if lengths is None:
        return op.Equal(step, op.Sub(steps, one))
    return op.Equal(step, op.Unsqueeze(op.Sub(lengths, one), _ints(0, 2)))


def translations() -> dict[Any, Callable[..., Any]]:
    """torch.onnx's custom_translation_table for the operators of this module."""
    operators = torch.ops.seqexport
    return {
        operators.lstm.default: _lower_lstm,
        operators.lstm_projected.default: _lower_projected,
        operators.gru.default: _lower_gru,
        operators.rnn.default: _lower_rnn,
    }
