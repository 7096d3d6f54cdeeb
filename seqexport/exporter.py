"""A module to ONNX: trace, lower, name, default state, metadata; verify; and replace the file only then."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration

from seqexport import recurrent
from seqexport.checkpoint import Checkpoint, Choices, read_checkpoint, write_beside
from seqexport.errors import FileError, SeqExportError, SpecError, UnsupportedError
from seqexport.runtimes import OnnxRuntime, TorchRuntime, checkpoint_metadata, onnx_metadata, pipeline_path
from seqexport.specs import InputSpec, TensorSpec, parse_input
from seqexport.verification import TOLERANCE, Outcome, Report, Subject, WrittenFile, dynamic_dims, plan, require, verify

State = Literal["optional", "explicit", "none"]
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
# The example's sizes, in the order of dynamic_dims. None is 0 or 1, which torch.export would freeze, and all differ.
EXAMPLE_SIZES = (3, 5, 4, 6, 7, 8, 9, 10)


@dataclass(frozen=True)
class Part:
    """One graph to be: a module of flat tensors, what it takes and gives, and how it is verified."""

    subject: Subject
    module: nn.Module
    output_names: tuple[str, ...]
    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specs of what the module takes."""
        return self.subject.inputs


def export(
    model: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
    state: State = "optional",
    choices: Choices | None = None,
) -> Report:
    """Export a live module, or a checkpoint's network and pipeline, verify what was written, and only then replace.

    model: an nn.Module, with `inputs` giving a spec for each of forward's arguments, in forward's order, such as
        {"x": "float32[batch,time,8]"}; or the path of a checkpoint.
    path: the ONNX file to write; for a checkpoint its own name with the suffix .onnx unless given. A pipeline goes
        beside it.
    state: for a checkpoint, whether the state is an optional input, an explicit one, or none.
    choices: for a bare state_dict, what its weights can't tell.

    Raises ParityError if the file does not give what torch gives, and other SeqExportErrors for what can't be read,
    exported or written. Failures leave an existing destination unchanged.
    """
    start = time.perf_counter()
    if opset not in OPSETS:
        raise SpecError(f"The opset {opset} is out of reach; expected {OPSETS[0]} to {OPSETS[-1]}.")
    if state not in ("optional", "explicit", "none"):
        raise SpecError(f"The state is {state!r}; expected optional, explicit or none.")
    if isinstance(model, nn.Module):
        if path is None or inputs is None:
            raise SpecError(
                "A live module needs a path to write and the specs of its inputs: export(model, path, inputs=…)."
            )
        parts, about = _module_parts(model, Path(path), inputs)
    else:
        if inputs is not None:
            raise SpecError("A checkpoint's inputs are known: leave `inputs` out, or give a live module.")
        checkpoint = read_checkpoint(model, choices)
        parts, about = _checkpoint_parts(checkpoint, Path(path or Path(model).with_suffix(".onnx")), state)
        _refuse_to_overwrite(checkpoint.path, parts)
    with _evaluating(parts):
        outcomes, files = _write_verified(parts, opset, about)
    return Report(outcomes, files=files, seconds=time.perf_counter() - start, **about)


def verify_files(
    checkpoint_path: str | os.PathLike[str], onnx_path: str | os.PathLike[str], choices: Choices | None = None
) -> Report:
    """Hold an ONNX file that was exported before (a network's or a pipeline's) against its checkpoint.

    The report is returned whether it passed or not. Raises FileError for a file that came from another checkpoint.
    """
    start = time.perf_counter()
    checkpoint, path = read_checkpoint(checkpoint_path, choices), Path(onnx_path)
    metadata = onnx_metadata(path)
    if metadata.get("checkpoint_sha256", checkpoint.sha256) != checkpoint.sha256:
        raise FileError(f"{path} was written from another checkpoint than {checkpoint.path}: export it again.")
    candidate = OnnxRuntime(path)
    names = {spec.name for spec in candidate.inputs}
    optional = all(spec.optional for spec in candidate.inputs if spec.name in checkpoint.spec.state_map)
    state: State = "none" if not names & set(checkpoint.spec.state_map) else "optional" if optional else "explicit"
    parts, about = _checkpoint_parts(checkpoint, path, state)
    part = next((part for part in parts if part.subject.part == metadata.get("part", "network")), parts[0])
    outcomes = _verify_part(part, candidate)
    return Report(tuple(outcomes), files=(_describe(part, path, path),), seconds=time.perf_counter() - start, **about)


def _refuse_to_overwrite(source: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        if part.path.exists() and source.exists() and part.path.samefile(source):
            raise FileError(f"{part.path} is the checkpoint itself: choose another output with -o.")


def _checkpoint_parts(checkpoint: Checkpoint, path: Path, state: State) -> tuple[list[Part], dict[str, Any]]:
    spec, network = checkpoint.spec, checkpoint.network()
    metadata = checkpoint_metadata(checkpoint)
    states = _states(spec.state, state)
    state_map = spec.state_map if state != "none" else {}
    if not state_map:
        metadata.pop("state_map")
    causal = not spec.bidirectional
    subject = Subject(
        "network",
        (spec.input, *states),
        state_map,
        chunked=spec.input.name if causal else None,
        per_step={"y": spec.input.dims.index("time")} if spec.pooling == "every" else {},
        unchunked=("y",) if spec.pooling in ("mean", "max") else (),
    )
    parts = [Part(subject, network, spec.output_names, path, metadata | {"part": "network"})]
    if checkpoint.task:
        pipeline = checkpoint.pipeline(checkpoint.task)
        fixed = tuple(part for part in pipeline.inputs if part.name not in spec.state_map)

        def in_units(z: np.ndarray) -> np.ndarray:
            return pipeline.scaling.undo(torch.from_numpy(z)).numpy()

        subject = Subject(pipeline.name, (*fixed, *states), state_map, chunked="history", prepare={"history": in_units})
        target = pipeline_path(path, pipeline.name)
        parts.append(Part(subject, pipeline, pipeline.output_names, target, metadata | {"part": pipeline.name}))
    found = f"{checkpoint.task}: {spec}" if checkpoint.task else str(spec)
    return parts, {
        "source": str(checkpoint.path),
        "found": found,
        "notes": checkpoint.notes,
        "unused": checkpoint.unused,
    }


def _states(specs: Sequence[TensorSpec], state: State) -> tuple[TensorSpec, ...]:
    if state == "none":
        return ()
    return tuple(TensorSpec(spec.name, spec.dtype, spec.dims, optional=state == "optional") for spec in specs)


class _Flat(nn.Module):
    """A user's module as one of flat tensors: nested arguments are put together, results taken apart."""

    def __init__(self, module: nn.Module, structure: Sequence[InputSpec], names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.structure = structure
        self.names = names
        self.output_names: tuple[str, ...] = ()

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
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
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _flatten(part, f"{name}_{key}" if name else str(key))]
    if isinstance(value, (tuple, list)):
        parts = enumerate(value)
        return [pair for index, part in parts for pair in _flatten(part, f"{name}_{index}" if name else "")]
    raise UnsupportedError(
        f"The model returns a {type(value).__name__}; expected tensors, in tuples, dicts or dataclasses."
    )


def _module_parts(module: nn.Module, path: Path, inputs: Mapping[str, str]) -> tuple[list[Part], dict[str, Any]]:
    structure = [parse_input(name, text) for name, text in inputs.items()]
    flat = _Flat(module, structure, list(inputs))
    specs = tuple(spec for part in structure for spec in (part if isinstance(part, tuple) else (part,)))
    if not specs:
        raise SpecError("The model has no inputs: give a spec for each of forward's arguments.")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    notes = ("the model was in train mode and is exported as in eval mode",) if module.training else ()
    # torch itself says best why a call with these arguments fails, so make one, of the user's module alone.
    with _evaluating_module(flat), torch.no_grad():
        try:
            flat(*_example(specs))
        except SeqExportError:
            raise
        except Exception as error:  # whatever the user's forward raises
            raise SpecError(
                f"The model's forward does not take {_listed(specs)} ({type(error).__name__}: {_first_line(error)}): "
                "check the specs against forward's arguments."
            ) from error
    about = {
        "source": type(module).__name__,
        "found": f"{type(module).__name__}, {parameters:,} parameters",
        "notes": notes,
        "unused": (),
    }
    return [Part(Subject("module", specs), flat, flat.output_names, path, {"part": "module"})], about


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec}" for spec in specs)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _evaluating(parts: Sequence[Part]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(_evaluating_module(part.module))
        yield


@contextlib.contextmanager
def _evaluating_module(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode with frozen parameters, and afterwards as it was."""
    training = [(part, part.training) for part in module.modules()]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for part, was_training in training:
            part.training = was_training
        for parameter in trainable:
            parameter.requires_grad_(True)


def _write_verified(
    parts: Sequence[Part], opset: int, about: Mapping[str, Any]
) -> tuple[tuple[Outcome, ...], tuple[WrittenFile, ...]]:
    """Write every graph beside its destination, verify what lies on the disk, and put all in place only then."""
    written: list[tuple[Part, Path]] = []
    outcomes: list[Outcome] = []
    try:
        for part in parts:
            beside = write_beside(part.path, build_graph(part, opset).SerializeToString(deterministic=True))
            written.append((part, beside))
            outcomes += _verify_part(part, OnnxRuntime(beside))
        require(Report(tuple(outcomes), **about), " and ".join(str(part.path) for part in parts))
        files = tuple(_describe(part, beside, part.path) for part, beside in written)
        for part, beside in written:
            try:
                beside.replace(part.path)
            except OSError as error:
                raise FileError(
                    f"{part.path} could not be replaced ({error.strerror}): check its permissions."
                ) from error
    finally:
        for _, beside in written:
            beside.unlink(missing_ok=True)
    return tuple(outcomes), files


def _verify_part(part: Part, candidate: OnnxRuntime) -> list[Outcome]:
    reference = TorchRuntime(part.module, part.inputs, part.output_names)
    return verify(part.subject, reference, candidate, plan(part.subject))


def _describe(part: Part, file: Path, shown: Path) -> WrittenFile:
    model = onnx.load_model(file)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return WrittenFile(part.subject.part, str(shown), file.stat().st_size, opset, _count_nodes(model.graph))


def _count_nodes(graph: onnx.GraphProto) -> int:
    bodies = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return len(graph.node) + sum(_count_nodes(body) for body in bodies)


def build_graph(part: Part, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The ONNX model of one part, complete with names, default state and metadata, but not yet verified."""
    model = _lower(_trace(part), opset)
    _simplify(model)
    _name(model, part)
    for spec in part.inputs:
        if spec.optional:
            _give_default(model.graph, spec)
    model.producer_name, model.producer_version = "seqexport", version_of("seqexport")
    model.metadata_props.update(_metadata(part))
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto


def _example(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    dims = dynamic_dims(specs)
    if len(dims) > len(EXAMPLE_SIZES):
        raise SpecError(f"The inputs have {len(dims)} dynamic dims; expected at most {len(EXAMPLE_SIZES)}.")
    sizes = dict(zip(dims, EXAMPLE_SIZES, strict=False))
    rng = np.random.default_rng(0)
    return tuple(torch.from_numpy(np.asarray(spec.sample(sizes, rng))) for spec in specs)


class _Variadic(nn.Module):
    """torch.export names a forward's arguments one by one; this one takes as many as come."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *flat: Tensor) -> Any:
        return self.module(*flat)


def _trace(part: Part) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {axis: dynamic for axis, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in part.inputs
    )
    try:
        with _quiet(), recurrent.RecurrentCallsStayWhole(), torch.no_grad():
            return torch.export.export(
                _Variadic(part.module), _example(part.inputs), dynamic_shapes=(shapes,), strict=False
            )
    except SeqExportError:
        raise
    except Exception as error:  # torch.export raises many kinds
        frozen = re.search(r"specialized it to be a constant \((\d+)\)", str(error))
        if frozen:
            dims = dict(zip(dynamic_dims(part.inputs), EXAMPLE_SIZES, strict=False))
            names = [name for name, size in dims.items() if size == int(frozen[1])]
            raise UnsupportedError(
                f"The model fixes the dim {names[0] if names else frozen[1]!r} to one size while it runs, by a Python "
                "loop or a number taken from a shape: write that step with tensors, or give the dim as a number."
            ) from error
        raise UnsupportedError(
            f"The model could not be traced ({type(error).__name__}: {_first_line(error)})."
        ) from error


def _lower(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    try:
        with _quiet(), _translations_kept():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                custom_translation_table=recurrent.translations(),
            )
    except Exception as error:  # torch.onnx raises many kinds
        raise UnsupportedError(
            f"The model could not be lowered to ONNX ({type(error).__name__}: {_first_line(error)})."
        ) from error
    assert exported is not None
    return exported.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks of torchvision being absent and the like, on loggers, by warnings and by print."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


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

    _registration.ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _registration.ONNXRegistry.from_torchlib = original


_tables: dict[int, Any] = {}


def _simplify(model: ir.Model) -> None:
    """Fold what is constant, weights' new layout included and in loop bodies too, and keep every constant once."""
    onnxscript.optimizer.optimize(model, onnx_shape_inference=False, input_size_limit=2**31, output_size_limit=2**31)
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


def _name(model: ir.Model, part: Part) -> None:
    """Inputs, outputs and dims get the names of the specs, torch's symbols for the dims going everywhere."""
    graph = model.graph
    graph.name = part.subject.part
    symbols: dict[str, str] = {}
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
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
    for value, spec in zip(graph.inputs, part.inputs, strict=True):
        value.shape = ir.Shape(spec.dims)


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
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), str(dim.value))


def _give_default(graph: ir.Graph, spec: TensorSpec) -> None:
    """Make a state optional: an initializer of zeros with batch 1, expanded to the batch of the first input."""
    value = next(value for value in graph.inputs if value.name == spec.name)
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
    value.const_value = ir.tensor(np.zeros((spec.dims[0], 1, spec.dims[2]), np.float32), name=spec.name)
    graph.initializers[spec.name] = value


def version_of(package: str) -> str:
    """The installed version of a package; of this project, run from its folder, the one in its code."""
    if package == "seqexport":
        from seqexport import __version__

        return __version__
    return version(package)


def _metadata(part: Part) -> dict[str, str]:
    """metadata_props, as README's table documents them. The verdict may stand in the file before it is reached: a file
    that fails it is never put in place."""
    packages = ("seqexport", "torch", "onnx", "onnxscript", "onnxruntime")
    verdict = {"passed": True, "tolerance": TOLERANCE, "cases": len(plan(part.subject))}
    values: dict[str, Any] = {
        **part.metadata,
        "versions": {name: version_of(name) for name in packages} | {"python": platform.python_version()},
        "verification": verdict,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
