"""An ONNX graph with its weights in int8. Nothing is verified here, and nothing written: a model in, a model out.

Every weight is rounded symmetrically, each output channel by a scale of its own: w ≈ q * scale, with q int8.

An LSTM becomes onnxruntime's DynamicQuantizeLSTM, and a large linear layer its DynamicQuantizeMatMul: both round what
they multiply to 8 bits as they run. Their weights take 7 bits, -64 to 64: without VNNI a processor adds two products of
8 bits each in 16, which 255 * 64 * 2 still fits into, so that the file gives the same numbers on every processor. With
bits=8 an LSTM's weights are unsigned around 128, which never saturates either, but is slower; linear layers are then
stored like the rest:

What has no faster integer form (GRU, RNN, embeddings, small linear layers) is stored with 8 bits, -127 to 127, and
becomes float32 again by Cast and Mul. Those stand in the main graph, loop bodies reading their result, where
onnxruntime computes them once, when it loads the file: a quarter of the bytes at the speed of float32. By
DequantizeLinear, which it computes anew at every run, single steps would take twice as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from seqexport.errors import UnsupportedError

DOMAIN = "com.microsoft"
SEVEN_BITS, EIGHT_BITS = 64, 127  # the largest q
# Numbers in a weight. Below, what goes with it (scales, nodes) outweighs what is saved.
LEAST = 1024
# From here on the integer kernel is faster (measured at batch 1 and 32); below, it only rounds more.
LEAST_FOR_KERNEL = 65_536
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Int8Model:
    """A model with weights in int8: how many of its weights' bytes are int8, whether integer kernels read any of them,
    and which nodes stay as they were, why."""

    model: onnx.ModelProto
    int8_bytes: int
    weight_bytes: int
    kernels: bool
    notes: tuple[str, ...] = ()


def to_int8(proto: onnx.ModelProto, what: str, bits: Literal[7, 8] = 7) -> Int8Model:
    """The model with its weights in int8. The same model gives the same bytes.

    bits: of the weights that integer kernels read.

    what: the file's name, for the sentences. Raises UnsupportedError where there is no recurrent node with constant
    weights in float32, or where the weights are int8 already.
    """
    model = ir.from_proto(proto)
    for lift in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    ):
        lift(model)
    _fold_transposes(model.graph)
    _check(model, what)
    rounding = _Rounding(model.graph, bits)
    for use in list(_uses(model.graph)):
        rounding.add(use)
    rounding.write()
    if rounding.kernels:
        model.opset_imports[DOMAIN] = 1
    for clean in (passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass()):
        clean(model)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    made = ir.to_proto(model)
    onnx.checker.check_model(made)
    int8_bytes = sum(weight.nbytes for weight in weights if weight.dtype in (ir.DataType.INT8, ir.DataType.UINT8))
    return Int8Model(
        made, int8_bytes, sum(weight.nbytes for weight in weights), bool(rounding.kernels), tuple(_left(model.graph))
    )


def _check(model: ir.Model, what: str) -> None:
    """Raise UnsupportedError for a model that int8 can't be made of."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    quantised = {node.op_type for node in nodes if re.search("Quantize|Integer$|NBits", node.op_type)}
    if model.metadata_props.get("precision") == "int8" or quantised:
        made_of = f" ({', '.join(sorted(quantised))})" if quantised else ""
        raise UnsupportedError(
            f"{what} is int8 already{made_of}; expected a float32 file: give the one it was made of."
        )
    recurrent = [node for node in nodes if _is_recurrent(node)]
    if not recurrent:
        kinds = sorted({node.op_type for node in nodes})
        more = f" and {len(kinds) - 8} more kinds" if len(kinds) > 8 else ""
        raise UnsupportedError(
            f"{what} has no recurrent node, but {', '.join(kinds[:8])}{more}; expected an LSTM, GRU or RNN: for other "
            "nets onnxruntime.quantization has tools."
        )
    weights = (_constant(model.graph, node.inputs[1]) for node in recurrent)
    dtypes = {weight.const_value.dtype for weight in weights if weight is not None and weight.const_value is not None}
    if not dtypes:
        raise UnsupportedError(
            f"{what} computes the weights of its {recurrent[0].op_type} as it runs; expected constants: fold them "
            "first, as seqexport's own export does."
        )
    if ir.DataType.FLOAT not in dtypes:
        raise UnsupportedError(
            f"{what} has its {recurrent[0].op_type}'s weights in {dtypes.pop().name.lower()}; expected float32: export "
            "the net in float32, which int8 starts from."
        )


def _is_recurrent(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in RECURRENT


def _constant(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """The value, if it is an initializer that no caller can replace."""
    if value is None or value.const_value is None or value.name not in graph.initializers:
        return None
    return None if any(value is other for other in graph.inputs) else value


def _fold_transposes(graph: ir.Graph) -> None:
    """Turn the Transpose of a constant matrix into a constant: the matrix is stored once all the same, later."""
    for node in list(graph):
        source = _constant(graph, node.inputs[0]) if node.op_type == "Transpose" and node.domain == "" else None
        if source is None or source.const_value is None or len(source.const_value.shape) != 2:
            continue
        output = node.outputs[0]
        array = np.array(source.const_value.numpy().transpose(_number(node, "perm", (1, 0))), order="C")
        folded = ir.Value(name=output.name, const_value=ir.tensor(array), type=output.type, shape=ir.Shape(array.shape))
        ir.convenience.replace_all_uses_with(output, folded, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        graph.register_initializer(folded)


def _left(graph: ir.Graph) -> Iterator[str]:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if _is_recurrent(node) and node.op_type == "LSTM":
            yield f"the LSTM {node.name or node.outputs[0].name} stays float32, since its weights are computed"


@dataclass(frozen=True)
class _Use:
    """A weight where a node reads it. per_row: whether an output channel is a row, so that the last axis is summed
    over; otherwise it is a column. kernel: the integer operator that the node becomes, if any."""

    node: ir.Node
    place: int
    weight: ir.Value
    per_row: bool = True
    kernel: Literal["", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"] = ""


def _uses(graph: ir.Graph) -> Iterator[_Use]:
    """Every use of a constant float32 matrix that int8 can stand for, loop bodies included."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        for use in _uses_of(node):
            weight = _constant(graph, use.weight)
            if weight is None or weight.dtype != ir.DataType.FLOAT or weight.shape is None:
                continue
            rank = 3 if _is_recurrent(node) else 2
            size = int(np.prod(weight.shape.numpy()))
            if len(weight.shape) == rank and (size >= LEAST or use.kernel == "DynamicQuantizeLSTM"):
                yield use


def _uses_of(node: ir.Node) -> Iterator[_Use]:
    """What the node reads as weights, each if it is given."""
    inputs: list[Any] = list(node.inputs)
    if node.op_type == "LSTM":
        both = all(value is not None and value.const_value is not None for value in inputs[1:3])
        for place in (1, 2) if both and _number(node, "layout", 0) == 0 else ():
            yield _Use(node, place, inputs[place], kernel="DynamicQuantizeLSTM")
    elif node.op_type in RECURRENT:
        for place in (1, 2):
            yield _Use(node, place, inputs[place])
    elif node.op_type == "Gather" and _number(node, "axis", 0) == 0:
        yield _Use(node, 0, inputs[0])
    elif node.op_type == "MatMul":
        yield _Use(node, 1, inputs[1], per_row=False, kernel=_if_large(inputs[1]))
    elif node.op_type == "Gemm":
        plain = not _number(node, "transA", 0) and _number(node, "alpha", 1.0) == _number(node, "beta", 1.0) == 1
        plain = plain and (len(inputs) < 3 or inputs[2] is None or _is_bias(inputs[2]))
        yield _Use(node, 1, inputs[1], bool(_number(node, "transB", 0)), _if_large(inputs[1]) if plain else "")


def _number(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _is_bias(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 1


def _if_large(weight: ir.Value | None) -> Literal["", "DynamicQuantizeMatMul"]:
    if weight is None or weight.const_value is None:
        return ""
    return "DynamicQuantizeMatMul" if weight.const_value.size >= LEAST_FOR_KERNEL else ""


@dataclass
class _Stored:
    """A weight that is kept once, whatever reads it: its numbers with an output channel a row, and who reads them.

    values: the forms of it that were made already.
    """

    name: str
    rows: np.ndarray
    uses: list[_Use] = field(default_factory=list)
    values: dict[str, ir.Value] = field(default_factory=dict)

    def rounded(self, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """q int8 of the same shape, and the scale of each row."""
        top = SEVEN_BITS if bits == 7 and any(use.kernel for use in self.uses) else EIGHT_BITS
        largest = np.abs(self.rows).max(axis=-1)
        scale = np.where(largest > 0, largest / np.float32(top), np.float32(1)).astype(np.float32)
        return np.rint(self.rows / scale[..., None]).clip(-top, top).astype(np.int8), scale


class _Rounding:
    """The rounding of one graph's weights: collect the uses, then write them."""

    def __init__(self, graph: ir.Graph, bits: int) -> None:
        self.graph, self.bits = graph, bits
        self.stored: dict[str, _Stored] = {}
        self.read: dict[tuple[int, int], _Stored] = {}  # by the node and the place of its input
        self.kernels: list[ir.Node] = []
        self.new: list[ir.Node] = []
        self.taken = {value.name for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs}
        self.taken |= set(graph.initializers) | {value.name for value in graph.inputs}

    def add(self, use: _Use) -> None:
        """Note a use. A table that is read by tokens and, transposed, by the head is the same weight."""
        if self.bits == 8 and use.kernel == "DynamicQuantizeMatMul":
            use = replace(use, kernel="")
        assert use.weight.const_value is not None and use.weight.name is not None
        array = use.weight.const_value.numpy()
        rows = np.ascontiguousarray(array if use.per_row else array.T)
        kind = (
            f"{use.kernel if use.kernel == 'DynamicQuantizeLSTM' else ''}{rows.shape}"  # which lies in another layout
        )
        stored = self.stored.setdefault(kind + sha256(rows.tobytes()).hexdigest(), _Stored(use.weight.name, rows))
        stored.uses.append(use)
        self.read[id(use.node), use.place] = stored

    def write(self) -> None:
        """Put the rounded weights into the graph and let every use read them."""
        for stored in self.stored.values():
            for use in stored.uses:
                if use.kernel == "DynamicQuantizeMatMul":
                    self._multiply_in_int8(stored, use)
                elif not use.kernel:
                    use.node.replace_input_with(use.place, self._as_float(stored, use.per_row))
        for node in {id(use.node): use.node for stored in self.stored.values() for use in stored.uses}.values():
            if node.op_type == "LSTM":
                self._lstm_in_int8(node)
        if self.new:
            self.graph.insert_before(self.graph[0], self.new)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        name = self._name(name)
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        self.graph.register_initializer(value)
        return value

    def _name(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _node(self, operator: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        """A node of the main graph, where its result is computed once."""
        node = ir.node(operator, inputs, attributes)
        node.outputs[0].name = self._name(name)
        self.new.append(node)
        return node.outputs[0]

    def _form(self, stored: _Stored, form: str) -> ir.Value:
        """The stored weight in a form, made when it is first asked for. int8 (…, N, K); columns: int8 (K, N); scale
        (…, N); float (…, N, K); float columns (K, N)."""
        if form not in stored.values:
            if form in ("int8", "scale"):
                q, scale = stored.rounded(self.bits)
                stored.values |= {
                    "int8": self._constant(f"{stored.name}_int8", q),
                    "scale": self._constant(f"{stored.name}_scale", scale),
                }
            elif form == "float":
                last = self._constant_once("last_axis", np.array([-1], np.int64))
                column = self._node("Unsqueeze", [self._form(stored, "scale"), last], f"{stored.name}_scales")
                wide = self._node("Cast", [self._form(stored, "int8")], f"{stored.name}_wide", to=ir.DataType.FLOAT)
                stored.values[form] = self._node("Mul", [wide, column], f"{stored.name}_float")
            else:
                source = "float" if form == "float columns" else "int8"
                name = f"{stored.name}_{form.replace(' ', '_')}"
                stored.values[form] = self._node("Transpose", [self._form(stored, source)], name, perm=[1, 0])
        return stored.values[form]

    def _constant_once(self, name: str, array: np.ndarray) -> ir.Value:
        for value in self.graph.initializers.values():
            tensor = value.const_value
            same = tensor is not None and tuple(tensor.shape) == array.shape and tensor.dtype.numpy() == array.dtype
            if same and tensor is not None and _constant(self.graph, value) and np.array_equal(tensor.numpy(), array):
                return value
        return self._constant(name, array)

    def _as_float(self, stored: _Stored, per_row: bool) -> ir.Value:
        return self._form(stored, "float" if per_row else "float columns")

    def _multiply_in_int8(self, stored: _Stored, use: _Use) -> None:
        node = use.node
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        inputs = [node.inputs[0], self._form(stored, "columns"), self._form(stored, "scale"), None, bias]
        self._replace(node, use.kernel, inputs[: 5 if bias is not None else 3], {})

    def _lstm_in_int8(self, node: ir.Node) -> None:
        """W (D, 4H, F) and R (D, 4H, H) lie transposed there, with scales and zero points (D, 4H)."""
        forms = []
        for place in (1, 2):
            stored = self.read[id(node), place]
            if "lstm" not in stored.values:
                q, scale = stored.rounded(self.bits)
                stored.values["lstm"] = self._constant(f"{stored.name}_int8", self._for_kernel(q.transpose(0, 2, 1)))
                stored.values["scale"] = self._constant(f"{stored.name}_scale", scale)
            zero = self._constant_once("zero_point", self._for_kernel(np.zeros(stored.rows.shape[:2], np.int8)))
            forms.append((stored.values["lstm"], stored.values["scale"], zero))
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        (w, *w_scale), (r, *r_scale) = forms
        attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
        self._replace(node, "DynamicQuantizeLSTM", [inputs[0], w, r, *inputs[3:8], *w_scale, *r_scale], attributes)

    def _for_kernel(self, q: np.ndarray) -> np.ndarray:
        """q itself with 7 bits; with 8 unsigned, around 128, which the kernels multiply without saturating."""
        return q if self.bits == 7 else (q.astype(np.int16) + 128).astype(np.uint8)

    def _replace(
        self, node: ir.Node, operator: str, inputs: list[ir.Value | None], attributes: Mapping[str, ir.Attr]
    ) -> None:
        outputs = list(node.outputs)
        made = ir.Node(DOMAIN, operator, inputs, list(attributes.values()), num_outputs=len(outputs), name=node.name)
        graph = node.graph
        assert graph is not None
        graph.insert_before(node, made)
        for old, new in zip(outputs, made.outputs, strict=True):
            name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            old.name, new.name = None, name
        graph.remove(node, safe=True)
        self.kernels.append(made)
