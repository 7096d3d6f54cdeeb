"""One traced part to one ONNX graph: lower, fold, name, give the state its default. Nothing is verified here."""

from __future__ import annotations

import contextlib
import itertools
import operator
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import sympy
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset20 as op
from torch.onnx._internal.exporter import _fx_passes, _registration

from seqexport import __version__, recurrent
from seqexport.errors import UnsupportedError
from seqexport.freezing import check_not_frozen
from seqexport.parts import Part
from seqexport.sources import first_line, line_of_stack
from seqexport.specs import TensorSpec
from seqexport.tracing import Trace, quiet, trace

OPSETS = range(18, 24)
DEFAULT_OPSET = 20


def build_graph(part: Part, traced: Trace, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The ONNX model of one part, complete with names, default state and metadata_props, but not yet verified.

    Raises UnsupportedError for what has no ONNX form, or where a size of the example would live on in the graph.
    """
    model = _lower(traced.program, opset)

    def lowered_again() -> ir.Model:
        others = {dim: size + 10 + 3 * place for place, (dim, size) in enumerate(traced.sizes.items())}
        return _lower(trace(part.module, part.inputs, others).program, opset)

    check_not_frozen(model, traced.sizes, lowered_again)
    _simplify(model)
    _name(model, part)
    for spec in part.inputs:
        if spec.optional:
            _give_default(model.graph, spec)
    model.producer_name, model.producer_version = "seqexport", __version__
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """aten.softplus as one node, where torch.onnx's own translation takes six, which a loop pays for at every step.

    log(1 + exp(beta x)) / beta, in place of which torch gives x itself where beta x exceeds the threshold: from a
    threshold of 17 on, exp(-17) being less than half of float32's rounding, that is the same number.
    """

    def constant(value: float) -> Any:
        number: Any = op.Constant(value_float=float(value))
        return op.CastLike(number, x)

    smooth = op.Softplus(x) if beta == 1 else op.Div(op.Softplus(op.Mul(x, constant(beta))), constant(beta))
    return smooth if threshold >= 17 else op.Where(op.Greater(x, constant(threshold / beta)), x, smooth)


def _cast(x: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: int = -1) -> Any:
    return op.Cast(x, to=dtype)


def _square(x: Any) -> Any:
    return op.Mul(x, x)


# The last two are common, and torch.onnx knows them by other names only, for which it would trace a second time.
_TRANSLATIONS: dict[Any, Any] = {
    torch.ops.aten.softplus.default: _softplus,
    torch.ops.aten.to.dtype: _cast,
    torch.ops.aten.square.default: _square,
}


def _lower(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    try:
        with quiet(), _translations_kept(), _decomposed_where_needed():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                custom_translation_table=recurrent.translations() | _TRANSLATIONS,
            )
    except Exception as error:  # torch.onnx raises many kinds
        raise UnsupportedError(_why(error, program)) from error
    assert exported is not None
    return exported.model


def _why(error: BaseException, program: torch.export.ExportedProgram) -> str:
    """The sentence for what torch.onnx raised: the operator, its line in the user's code, and what torch says of it."""
    reasons, current = [], error.__cause__ or error.__context__
    while current is not None:
        reasons.append(current)
        current = current.__cause__ or current.__context__
    said = " ".join(str(reason) for reason in (error, *reasons))
    for node in program.graph.nodes:
        if node.op != "call_function" or f"%{node.name} :" not in said:
            continue
        line = line_of_stack(node.stack_trace or "")
        name = str(node.target).removesuffix(".default").replace("aten.", "torch.")
        missing = any("No ONNX function found" in str(reason) for reason in reasons)
        reason = "has no ONNX form here" if missing else f"could not be lowered ({first_line(reasons[-1])})"
        return (
            f"{line or 'The model'} uses {name}, which {reason}: write it with other operators, or leave that step to "
            "the program that runs the file."
        )
    return f"The model could not be lowered to ONNX ({type(error).__name__}: {first_line((reasons or [error])[-1])})."


@contextlib.contextmanager
def _translations_kept() -> Iterator[None]:
    """torch.onnx rebuilds its table of some 500 translations at every export, which is most of an export's time; while
    this is active it gets a copy of the table built the first time."""
    original = _registration.ONNXRegistry.__dict__["from_torchlib"]

    def from_torchlib(cls: Any, opset_version: int = 18) -> _registration.ONNXRegistry:
        kept = _tables.get(opset_version)
        if kept is None:
            kept = _tables[opset_version] = original.__func__(cls, opset_version)
        registry = cls()
        registry._opset_version = kept._opset_version
        registry.functions = {target: list(entries) for target, entries in kept.functions.items()}
        return registry

    setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(from_torchlib))  # noqa: B010  a method, for a while
    try:
        yield
    finally:
        setattr(_registration.ONNXRegistry, "from_torchlib", original)  # noqa: B010


_tables: dict[int, Any] = {}


@contextlib.contextmanager
def _decomposed_where_needed() -> Iterator[None]:
    """torch.onnx traces every program a second time to take its operators apart, half of an export's time; while this
    is active, only those with an operator that writes into its argument or that has no translation as it stands."""
    original = _fx_passes.decompose_with_registry

    def decompose(
        exported_program: torch.export.ExportedProgram, registry: _registration.ONNXRegistry
    ) -> torch.export.ExportedProgram:
        graphs = (
            module.graph
            for module in exported_program.graph_module.modules()
            if isinstance(module, torch.fx.GraphModule)
        )
        calls = (node.target for graph in graphs for node in graph.nodes if node.op == "call_function")
        if all(_translated_as_it_stands(target, registry) for target in calls):
            return exported_program
        return original(exported_program, registry)

    _fx_passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


_LEFT_OUT = torch.ops.aten._assert_tensor_metadata.default  # torch.onnx drops it


def _translated_as_it_stands(target: Any, registry: _registration.ONNXRegistry) -> bool:
    schema = getattr(target, "_schema", None)
    known = bool(registry.get_decomps(target)) or target in (operator.getitem, _LEFT_OUT)
    return known and (schema is None or not schema.is_mutable)


def _simplify(model: ir.Model) -> None:
    """Fold what is constant, weights' new layout included and in loop bodies too, and keep every constant once."""
    with np.errstate(all="ignore"):  # numpy warns where folded weights overflow, which verification tells better
        onnxscript.optimizer.optimize(
            model, onnx_shape_inference=False, input_size_limit=2**31, output_size_limit=2**31
        )
    for value in model.graph.initializers.values():
        if value.const_value is not None:  # equal constants are told by their bytes, which need one layout
            value.const_value = ir.tensor(np.array(value.const_value.numpy(), order="C"), name=value.name)
    for simplify in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateHashedInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),  # stack traces with the paths of whoever exports
    ):
        simplify(model)
    _keep_transposes_once(model.graph)


# Numbers in a matrix from which keeping it once is worth a node.
_LEAST_SHARED = 1024


def _keep_transposes_once(graph: ir.Graph) -> None:
    """A matrix that is read as it lies and transposed, as by the embedding and the head that share it, is kept as it
    lies; a Transpose of the main graph gives the other, which runtimes compute once, when they load the file."""
    kept: dict[tuple[Any, ...], ir.Value] = {}
    matrices = [value for value in graph.initializers.values() if _is_matrix(value) and not value.is_graph_input()]
    # What Gather reads stays: a table's rows are read from where they lie.
    for value in sorted(matrices, key=lambda value: all(use.node.op_type != "Gather" for use in value.uses())):
        assert value.const_value is not None
        array = value.const_value.numpy()
        original = kept.get(_fingerprint(array.T))
        if original is None:
            kept[_fingerprint(array)] = value
            continue
        node = ir.node("Transpose", [original], {"perm": [1, 0]})
        other = node.outputs[0]
        other.type, other.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, other, replace_graph_outputs=True)
        other.name = graph.initializers.pop(str(value.name)).name
        graph.insert_before(graph[0], node)


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.size >= _LEAST_SHARED


def _fingerprint(array: np.ndarray) -> tuple[Any, ...]:
    """The same for arrays of the same type, shape and bytes."""
    return array.dtype, array.shape, sha256(np.ascontiguousarray(array).tobytes()).digest()


def _name(model: ir.Model, part: Part) -> None:
    """Inputs, outputs and dims get the names of the specs, torch's symbols for the dims going everywhere."""
    graph = model.graph
    graph.name = part.subject.part
    symbols = _longest(graph)
    for value, spec in zip(graph.inputs, part.inputs, strict=True):
        value.name = spec.name
        assert value.shape is not None
        for found, dim in zip(value.shape, spec.dims, strict=True):
            if isinstance(dim, str) and isinstance(found, ir.SymbolicDim) and found.value:
                symbols[found.value] = dim
    for index, (value, name) in enumerate(zip(graph.outputs, part.output_names, strict=True)):
        if value.is_graph_input() or value.is_initializer() or any(value is other for other in graph.outputs[:index]):
            value = graph.outputs[index] = _copied(graph, value)
        value.name = name
    _make_way(graph)
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
    for value, spec in zip(graph.inputs, part.inputs, strict=True):
        value.shape = ir.Shape(spec.dims)


def _make_way(graph: ir.Graph) -> None:
    """Rename what is inside the graph and bears the name of one of its inputs or outputs."""
    outside = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in outside}
    inside = [*graph.initializers.values(), *_values(graph)]
    used = taken | {value.name for value in inside}
    for value in inside:
        if value.name in taken and not any(value is other for other in outside):
            value.name = next(name for n in itertools.count() if (name := f"{value.name}_{n}") not in used)
            used.add(value.name)


def _copied(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value under another name, since one name can't be both an input and an output, or two outputs."""
    node = ir.node("Identity", [value])
    graph.append(node)
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node.outputs[0]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs


def _renamed(dim: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), str(dim.value))
    if "//" not in text or re.search(r"\w\(", text):
        return text
    # Sizes that torch told apart may have one name now, as in (batch*paths)//batch.
    names = {name: sympy.Symbol(name, integer=True, positive=True) for name in re.findall(r"[A-Za-z_]\w*", text)}
    simple = sympy.sympify(text, locals=names)
    return str(simple) if simple.is_Symbol else text


def _longest(graph: ir.Graph) -> dict[str, str]:
    """Names for the sizes of outputs that come from values, which torch calls u0 and the like: the longest row of a
    packed sequence."""
    sizes = [
        size
        for value in graph.outputs
        for dim in (value.shape or ())
        for size in re.findall(r"\bu\d+\b", str(getattr(dim, "value", "")))
    ]
    return {size: f"longest_{place}" if place else "longest" for place, size in enumerate(dict.fromkeys(sizes))}


def _give_default(graph: ir.Graph, spec: TensorSpec) -> None:
    """Make an input optional: an initializer with its default, which for a state has a batch of 1 and is expanded to
    the batch of the first input."""
    value = next(value for value in graph.inputs if value.name == spec.name)
    if "batch" in spec.dims:
        _expand_to_batch(graph, value, spec)
    value.const_value = ir.tensor(spec.filled({"batch": 1}), name=spec.name)
    graph.initializers[spec.name] = value


def _expand_to_batch(graph: ir.Graph, value: ir.Value, spec: TensorSpec) -> None:
    leading = graph.inputs[0]
    assert leading.shape is not None and value.shape is not None
    axis = [dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in leading.shape].index("batch")
    sizes = [ir.tensor(np.array([size], np.int64)) for size in (spec.dims[0], spec.dims[2])]
    around = [
        ir.Value(name=f"{spec.name}_{name}", const_value=size)
        for name, size in zip(("rows", "width"), sizes, strict=True)
    ]
    for constant in around:
        graph.register_initializer(constant)
    batch = ir.node("Shape", [leading], {"start": axis, "end": axis + 1})
    target = ir.node("Concat", [around[0], batch.outputs[0], around[1]], {"axis": 0})
    uses = list(value.uses())
    expanded = ir.node("Expand", [value, target.outputs[0]])
    for use in uses:
        use.node.replace_input_with(use.idx, expanded.outputs[0])
    graph.insert_before(graph[0], [batch, target, expanded])
    for node, name in ((batch, "batch"), (target, "shape"), (expanded, "expanded")):
        node.outputs[0].name = f"{spec.name}_{name}"
