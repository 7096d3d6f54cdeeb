"""A module to ONNX: trace, lower, name, default state, metadata; verify; and replace the file only then."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from seqexport import __version__
from seqexport.checkpoint import Checkpoint, read_checkpoint
from seqexport.errors import FileError, SeqExportError, SpecError, UnsupportedError
from seqexport.files import write_beside
from seqexport.graphs import DEFAULT_OPSET, OPSETS, Part, build_graph, example, first_line
from seqexport.inference import Choices
from seqexport.pipelines import Forecast, Generate, Pipeline
from seqexport.runtimes import OnnxRuntime, TorchRuntime, checkpoint_metadata, onnx_metadata, pipeline_path
from seqexport.specs import InputSpec, NetworkSpec, TensorSpec, parse_input
from seqexport.verification import (
    TOLERANCE,
    Case,
    Decision,
    Outcome,
    Report,
    Subject,
    WrittenFile,
    plan,
    require,
    verify,
)

State = Literal["optional", "explicit", "none"]


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
    outcomes = _verify_part(part, candidate, plan(part.subject))
    return Report(tuple(outcomes), files=(_describe(part, path, path),), seconds=time.perf_counter() - start, **about)


def _refuse_to_overwrite(source: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        if part.path.exists() and source.exists() and part.path.samefile(source):
            raise FileError(f"{part.path} is the checkpoint itself: choose another output with -o.")


def _checkpoint_parts(checkpoint: Checkpoint, path: Path, state: State) -> tuple[list[Part], dict[str, Any]]:
    spec, network = checkpoint.spec, checkpoint.network()
    state_map = spec.state_map if state != "none" else {}
    causal = not spec.bidirectional
    subject = Subject(
        "network",
        _stated((spec.input, *spec.state), spec, state),
        state_map,
        chunked=spec.input.name if causal else None,
        per_step={"y": spec.input.dims.index("time")} if spec.pooling == "every" else {},
        unchunked=("y",) if spec.pooling in ("mean", "max") else (),
    )
    parts = [Part(subject, network, spec.output_names, path, _about(checkpoint, subject))]
    if checkpoint.task:
        pipeline = checkpoint.pipeline(checkpoint.task)
        subject = _pipeline_subject(pipeline, _stated(pipeline.inputs, spec, state), state_map)
        target = pipeline_path(path, pipeline.name)
        parts.append(Part(subject, pipeline, pipeline.output_names, target, _about(checkpoint, subject)))
    found = f"{checkpoint.task}: {spec}" if checkpoint.task else str(spec)
    return parts, {
        "source": str(checkpoint.path),
        "found": found,
        "notes": checkpoint.notes,
        "unused": checkpoint.unused,
    }


def _about(checkpoint: Checkpoint, subject: Subject) -> dict[str, Any]:
    """The metadata of one graph: that of the checkpoint, with a state map only where the graph has a state."""
    metadata = checkpoint_metadata(checkpoint) | {"part": subject.part}
    if not subject.state_map:
        del metadata["state_map"]
    return metadata


def _stated(inputs: Sequence[TensorSpec], spec: NetworkSpec, state: State) -> tuple[TensorSpec, ...]:
    """The inputs as `state` asks for them: without the state, or with nothing optional for runtimes that know no such
    inputs."""
    if state == "none":
        return tuple(part for part in inputs if part.name not in spec.state_map)
    return tuple(replace(part, optional=part.optional and state == "optional") for part in inputs)


def _pipeline_subject(pipeline: Pipeline, inputs: tuple[TensorSpec, ...], state_map: Mapping[str, str]) -> Subject:
    """How a pipeline's graph is fed and what is decided by its outputs."""
    if isinstance(pipeline, Forecast):
        scaling = pipeline.scaling

        def in_units(z: np.ndarray) -> np.ndarray:
            return scaling.undo(torch.from_numpy(z)).numpy()

        return Subject(pipeline.name, inputs, state_map, chunked="history", prepare={"history": in_units})
    if isinstance(pipeline, Generate):
        return Subject(
            pipeline.name,
            inputs,
            state_map,
            chunked="uniforms",
            along="steps",
            carried={"prompt": lambda outputs: outputs["tokens"][:, -1:]},
            per_step={"tokens": 1},
            settings=SAMPLING if all(part.name != "temperature" or part.optional for part in inputs) else SAMPLING[-1:],
            decisions=(Decision("tokens", "token", lambda tokens: tokens, partial(_token_margin, pipeline), True),),
        )
    labels = [
        Decision(name, "label", lambda probabilities: probabilities.argmax(-1), partial(_label_margin, name))
        for name in pipeline.output_names
    ]
    return Subject(pipeline.name, inputs, decisions=tuple(labels))


# What a generator is asked for in turn: its defaults, each way of choosing alone, and all together.
SAMPLING: tuple[Mapping[str, float], ...] = (
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.9},
)


def _label_margin(
    name: str, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], place: tuple[int, ...]
) -> float:
    """How far the first class is ahead of the second."""
    *_, second, first = np.sort(expected[name][place])
    return float(first - second)


def _token_margin(
    pipeline: Generate, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], place: tuple[int, ...]
) -> float:
    row, step = place
    read = np.concatenate([feeds["prompt"][row], expected["tokens"][row, :step]])
    sizes = {"batch": len(feeds["prompt"])}
    values = {spec.name: feeds.get(spec.name) for spec in pipeline.inputs[2:]}
    settings = [
        torch.tensor(spec.filled(sizes) if values[spec.name] is None else values[spec.name])
        for spec in pipeline.inputs[2:]
    ]
    state = [part[:, row : row + 1] for part in settings[3:]]
    u = torch.tensor(feeds["uniforms"][row, step])
    return pipeline.margin(torch.tensor(read)[None], u, *settings[:3], *state)


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
            flat(*example(specs))
        except SeqExportError:
            raise
        except Exception as error:  # whatever the user's forward raises
            raise SpecError(
                f"The model's forward does not take {_listed(specs)} ({type(error).__name__}: {first_line(error)}): "
                "check the specs against forward's arguments."
            ) from error
    names = [*(spec.name for spec in specs), *flat.output_names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SpecError(f"The model has {twice[0]!r} twice among its inputs and outputs: rename one of them.")
    if not flat.output_names:
        raise UnsupportedError("The model returns no tensors, so there is nothing to export.")
    about = {
        "source": type(module).__name__,
        "found": f"{type(module).__name__}, {parameters:,} parameters",
        "notes": notes,
        "unused": (),
    }
    return [Part(Subject("module", specs), flat, flat.output_names, path, {"part": "module"})], about


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec}" for spec in specs)


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
            cases = plan(part.subject)
            graph = build_graph(part, opset, _metadata(part, len(cases)))
            beside = write_beside(part.path, graph.SerializeToString(deterministic=True))
            written.append((part, beside))
            outcomes += _verify_part(part, OnnxRuntime(beside), cases)
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


def _verify_part(part: Part, candidate: OnnxRuntime, cases: Sequence[Case]) -> list[Outcome]:
    reference = TorchRuntime(part.module, part.inputs, part.output_names)
    return verify(part.subject, reference, candidate, cases)


def _describe(part: Part, file: Path, shown: Path) -> WrittenFile:
    model = onnx.load_model(file)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return WrittenFile(part.subject.part, str(shown), file.stat().st_size, opset, _count_nodes(model.graph))


def _count_nodes(graph: onnx.GraphProto) -> int:
    bodies = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return len(graph.node) + sum(_count_nodes(body) for body in bodies)


def _metadata(part: Part, cases: int) -> dict[str, str]:
    """metadata_props, as README's table documents them.

    The verdict may stand in the file before it is reached, since a file that fails it is never put in place.
    """
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    versions = {"seqexport": __version__, **{name: version(name) for name in packages}}
    values: dict[str, Any] = {
        **part.metadata,
        "versions": versions | {"python": platform.python_version()},
        "verification": {"passed": True, "tolerance": TOLERANCE, "cases": cases},
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
