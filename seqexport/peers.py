"""The runtimes besides torch and onnxruntime: torch.compile, onnx's own evaluator, OpenVINO; and loops in Python.

Each is imported when it is used. A loop in Python is what one writes where a runtime has no graph with the loop in it:
the network's graph is called once a step, and all around it is numpy.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqexport.errors import InputError, UnsupportedError
from seqexport.files import is_checkpoint
from seqexport.isolation import open_apart, parse_onnx
from seqexport.runtimes import (
    PLAIN,
    Runtime,
    TorchRuntime,
    checkpoint_runtime,
    filled,
    int8_path,
    located,
    network_inputs,
    onnx_metadata,
    parse_metadata,
)
from seqexport.runtimes import load as load_plain
from seqexport.sources import first_line
from seqexport.specs import NetworkSpec, TensorSpec, pipeline_inputs, pipeline_outputs

if TYPE_CHECKING:
    import onnx

    from seqexport.networks import Network

RUNTIMES = ("torch", "torch-compile", "onnxruntime", "onnxruntime-int8", "openvino", "reference")
# Runtime → the package that it needs, and the command that installs it.
_PACKAGES = {
    "torch": ("torch", "python -m pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"),
    "torch-compile": ("torch", "python -m pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"),
    "onnxruntime": ("onnxruntime", "python -m pip install onnxruntime"),
    "onnxruntime-int8": ("onnxruntime", "python -m pip install onnxruntime"),
    "openvino": ("openvino", "python -m pip install openvino"),
    "reference": ("onnx", "python -m pip install onnx"),
}


def missing(runtime: str, path: Path | None = None) -> str:
    """The command that brings what the runtime lacks here; nothing where it lacks nothing.

    path: a network's ONNX file, beside which onnxruntime-int8 needs the quantised one.
    """
    package, command = _PACKAGES[runtime]
    if importlib.util.find_spec(package) is None:
        return command
    if runtime == "torch-compile" and not shutil.which(compiler()):
        return "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++ python3-dev"
    if runtime == "onnxruntime-int8" and path is not None and not int8_path(path).is_file():
        return f"python -m seqexport quantize {path}"
    return ""


def compiler() -> str:
    """The C++ compiler that torch.compile takes."""
    return os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")


def load(
    path: str | os.PathLike[str],
    runtime: str | None = None,
    *,
    pipeline: str | None = None,
    threads: int = 1,
    onednn: bool | None = None,
    isolated: bool = False,
) -> Runtime:
    """Load a checkpoint (torch, torch-compile) or an ONNX file (onnxruntime, onnxruntime-int8, openvino, reference):
    its network, or its pipeline. Without `runtime`, torch or onnxruntime, as the file is.

    isolated: open the file in a child process first, so that one that would end this process is a FileError. It is for
    files from outside, as the command line takes them; it takes half a second, which a program that loads its own
    files need not wait.

    For an ONNX file, `net.onnx` with pipeline "forecast" is `net.forecast.onnx` beside it; onnxruntime-int8 takes
    `net.int8.onnx` and `net.forecast.int8.onnx`. Where OpenVINO can't convert a pipeline's loop, it runs the network
    step by step in a loop in Python. Raises FileError for a missing or unreadable file, or where network and pipeline
    come from different checkpoints; UnsupportedError for a runtime that is not installed or does not run this kind of
    file.
    """
    if runtime in (None, *PLAIN):
        return load_plain(path, runtime, pipeline=pipeline, threads=threads, onednn=onednn, isolated=isolated)
    path = Path(path)
    if runtime not in RUNTIMES:
        raise UnsupportedError(f"There is no runtime {runtime!r}; expected one of {', '.join(RUNTIMES)}.")
    if threads < 1:
        raise InputError(f"A runtime needs at least 1 thread, got {threads}.")
    if (runtime == "torch-compile") != is_checkpoint(path):
        known = "a checkpoint" if runtime == "torch-compile" else "an ONNX file: python -m seqexport exports one"
        raise UnsupportedError(f"{path} is nothing that {runtime} can run; expected {known}.")
    if command := missing(runtime):
        raise UnsupportedError(f"The runtime {runtime} is not installed: {command}")
    if runtime == "torch-compile":
        from seqexport.checkpoint import read_checkpoint

        if isolated:
            open_apart(path)
        return checkpoint_runtime(read_checkpoint(path), pipeline, threads=threads, onednn=onednn, kind=TorchCompile)
    whole = located(path, pipeline, isolated)
    if runtime == "reference":
        return Reference(whole)
    return _openvino(path, whole, threads)


def _openvino(path: Path, whole: Path, threads: int) -> Runtime:
    """The whole graph, or, where OpenVINO can't convert it, the network's in a loop."""
    try:
        return OpenVino(whole, threads=threads)
    except UnsupportedError:
        if whole == path:
            raise
        return Loop(OpenVino(path, threads=threads), str(onnx_metadata(whole)["part"]))


class TorchCompile(TorchRuntime):
    """torch.compile of the module: of a network as a whole; of a pipeline, the network's step and head within its loop.

    torch.compile leaves nn.LSTM and its kin to torch's own kernels. It takes every length of a sequence for another
    program, so sequences within a pipeline are not compiled.
    """

    name = "torch-compile"

    def __init__(self, module: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        super().__init__(_compiled(module), *arguments, **options)


RECOMPILED = 256  # programs of one function, of which every model's step and head is another


def _compiled(module: Any) -> Any:
    import torch
    from torch._dynamo import config

    # Beyond the limit, 8 unless set, torch quietly runs the function as it is, which would be no compiled peer.
    config.recompile_limit = max(config.recompile_limit, RECOMPILED)

    def compile_(function: Any, dynamic: bool) -> Any:
        with warnings.catch_warnings():  # torch warns of what its own compiler still uses
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.compile(function, dynamic=dynamic)

    if not hasattr(module, "network"):
        return compile_(module, dynamic=True)
    network: Network = module.network
    read, answer = network.as_functions()
    # A step has one shape. Made for any, the options of the recurrent call would be symbols too, which it refuses.
    step, head = compile_(lambda x, state: read(x, state), dynamic=False), compile_(answer, dynamic=False)
    steps, read_one = network.as_steps()
    step_of_loop = compile_(lambda x, carried: read_one(x, carried), dynamic=False)

    def read_compiled(x: Any, state: Any, lengths: Any = None) -> Any:
        return step(x, state) if len(x) == 1 and lengths is None else read(x, state, lengths)

    pipeline, inner = copy.copy(module), copy.copy(network)
    inner.__dict__["as_functions"] = lambda: (read_compiled, head)
    inner.__dict__["as_steps"] = lambda: (steps, step_of_loop)
    pipeline._modules = {**module._modules, "network": inner}
    return pipeline


class Reference(Runtime):
    """onnx's reference evaluator on a file: slow, and an opinion of its own. Rows with lengths are run one by one,
    without their padding, since it reads every row to its end whatever lengths say."""

    name = "reference"

    def __init__(self, path: Path) -> None:
        self.inputs, self.output_names, self.metadata, self.declared = _described(parse_onnx(path))
        try:
            self.session: Any = evaluator(path)
        except Exception as error:  # operators that it has not
            raise UnsupportedError(f"onnx's evaluator can't run {path} ({first_line(error)}).") from error
        self.rows = RowsAlone.of(self.inputs)

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        def run(feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
            return self.session.run(list(self.output_names), feeds)

        return run(feeds) if self.rows is None else self.rows.run(run, feeds, list(self.declared.values()))


def evaluator(path: Path) -> Any:
    """onnx's reference evaluator of a file. It takes an output that is left out, whose name is empty, for the value of
    every input that is left out after it: here each has a name."""
    from onnx.reference import ReferenceEvaluator

    model = parse_onnx(path)
    _name_left_out(model.graph, itertools.count())
    return ReferenceEvaluator(model)


def _name_left_out(graph: onnx.GraphProto, count: Iterator[int]) -> None:
    for node in graph.node:
        for place, name in enumerate(node.output):
            if not name:
                node.output[place] = f"left_out_{next(count)}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_left_out(attribute.g, count)


class RowsAlone:
    """The rows of a padded batch one by one, each without its padding. lengths: the input that tells where."""

    def __init__(self, inputs: Sequence[TensorSpec], lengths: TensorSpec) -> None:
        self.inputs, self.lengths = inputs, lengths

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec]) -> RowsAlone | None:
        """For a model of these inputs; None where none of them tells lengths."""
        found = next((spec for spec in inputs if isinstance(spec.high, str) and len(spec.dims) == 1), None)
        return cls(inputs, found) if found else None

    def padded(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether some row ends before the others' last step."""
        return bool((feeds[self.lengths.name] < self._steps(feeds)).any())

    def _steps(self, feeds: Mapping[str, np.ndarray]) -> int:
        spec = next(spec for spec in self.inputs if self.lengths.high in spec.dims)
        return feeds[spec.name].shape[spec.dims.index(str(self.lengths.high))]

    def cut(self, feeds: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
        """The feeds of one row."""
        batch, along = self.lengths.dims[0], self.lengths.high
        alone, length = {}, int(feeds[self.lengths.name][row])
        for spec in self.inputs:
            if spec.name in feeds:
                value = feeds[spec.name]
                if batch in spec.dims:
                    value = np.take(value, [row], spec.dims.index(batch))
                if along in spec.dims:
                    value = np.take(value, range(length), spec.dims.index(along))
                alone[spec.name] = value
        return alone

    def run(
        self,
        run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]],
        feeds: Mapping[str, np.ndarray],
        declared: Sequence[Sequence[Any]],
    ) -> list[np.ndarray]:
        """What `run` gives for each row alone, put together. declared: the dims of each output."""
        alone = [run(self.cut(feeds, row)) for row in range(len(feeds[self.lengths.name]))]
        return [self._joined(dims, rows, feeds) for dims, rows in zip(declared, zip(*alone, strict=True), strict=True)]

    def _joined(
        self, declared: Sequence[Any], rows: Sequence[np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """One output of all rows; along time, each row's last value repeated to the end."""
        dims, along = list(declared), self.lengths.high
        if along in dims:
            size, axis = self._steps(feeds), dims.index(along)
            rows = [np.take(row, np.minimum(range(size), row.shape[axis] - 1), axis) for row in rows]
        return np.concatenate(rows, dims.index(self.lengths.dims[0]))


class OpenVino(Runtime):
    """OpenVINO on the CPU, in float32. It knows no optional inputs and would silently take a zero state, so it gets the
    graph with the state required, and the zeros where the caller leaves it out. Read backward, its padded rows begin
    with their padding, whatever lengths say: rows of a net of both directions are run one by one.
    """

    name = "openvino"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        model = parse_onnx(path)
        self.inputs, self.output_names, self.metadata, self.declared = _described(model)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # some processors would take bfloat16
        }
        both = self.metadata["network"].get("bidirectional")
        self.rows = RowsAlone.of(self.inputs) if both else None
        core = _openvino_core()
        try:
            compiled = core.compile_model(core.read_model(with_explicit_state(model)), "CPU", options)
            self.request = compiled.create_infer_request()
        except Exception as error:  # OpenVINO's exceptions have no common base
            raise UnsupportedError(f"OpenVINO can't convert {path} ({_reason(error)}).") from error

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        return self.call(self.native(feeds))

    def native(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The arrays of all inputs."""
        return filled(self.inputs, feeds)

    def call(self, values: dict[str, Any]) -> Sequence[Any]:
        """Arrays in, arrays out."""
        if self.rows and self.rows.padded(values):
            return self.rows.run(self._infer, values, list(self.declared.values()))
        return self._infer(values)

    def _infer(self, values: dict[str, Any]) -> list[np.ndarray]:
        try:
            results = self.request.infer(values, share_inputs=True, decode_strings=False)
        except Exception as error:  # OpenVINO's exceptions have no common base
            raise InputError(f"OpenVINO could not run it: {_reason(error)}") from error
        return list(results.values())


@functools.cache
def _openvino_core() -> Any:
    """The process's one Core. Each puts a stack for signals in place, for AMX, and when it goes, the one that it had
    found: of two that don't go in reverse order a freed one stays, and the next Ctrl-C is a segmentation fault."""
    import openvino

    return openvino.Core()


def _reason(error: Exception) -> str:
    """The line of OpenVINO's many that says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "OpConversionFailure" in line or "not supported" in line), lines[-1])


def with_explicit_state(model: onnx.ModelProto) -> bytes:
    """The model with all its inputs required: without the defaults that stand for optional ones."""
    import onnx

    explicit = onnx.ModelProto()
    explicit.CopyFrom(model)
    names = {value.name for value in model.graph.input}
    del explicit.graph.initializer[:]
    explicit.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in names)
    return explicit.SerializeToString()


Described = tuple[tuple[TensorSpec, ...], tuple[str, ...], Mapping[str, Any], dict[str, list[Any]]]


def _described(model: onnx.ModelProto) -> Described:
    """Inputs, output names, metadata and declared shapes of a model that seqexport wrote."""
    metadata = parse_metadata({prop.key: prop.value for prop in model.metadata_props})
    known = network_inputs(metadata)
    there = {value.name for value in model.graph.input}
    if not known or not there <= set(known):
        raise UnsupportedError(
            "The file does not say what network it holds, which onnxruntime alone runs; expected one that "
            "python -m seqexport wrote of a checkpoint."
        )
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(replace(spec, optional=name in defaults) for name, spec in known.items() if name in there)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    return inputs, tuple(shapes), metadata, shapes


class Loop(Runtime):
    """A pipeline as a loop in Python around a network's runtime, which is called once a step, its state carried.

    For a classifier there is nothing to loop over: each text is read alone, without padding, and gives its
    probabilities, not the running ones.
    """

    def __init__(self, network: Runtime, pipeline: str) -> None:
        self.network, self.pipeline, self.metadata = network, pipeline, network.metadata
        self.spec = NetworkSpec.from_dict(network.metadata["network"])
        self.name = f"{network.name}, {'network' if pipeline == 'classify' else 'step loop'}"
        self.inputs = pipeline_inputs(pipeline, self.spec)
        names = pipeline_outputs(pipeline, self.spec)
        self.output_names = names[:1] if pipeline == "classify" else names

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        values = filled(self.inputs, feeds)
        return {"forecast": self._forecast, "generate": self._generate, "classify": self._classify}[self.pipeline](
            values
        )

    def _step(self, x: np.ndarray, state: Sequence[np.ndarray]) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """x [batch, time, …] and the state → what the head gives after the last step, and the state."""
        name = self.spec.input.name
        values = {name: x.swapaxes(0, 1) if self.spec.time_major else x}
        values |= dict(zip(self.spec.state_map, state, strict=True))
        y, *after = self.network.call(values)
        return y[-1] if self.spec.time_major else y[:, -1], after

    def _forecast(self, values: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        scaling = self.metadata["preprocessing"]["scaling"]
        mean, spread = np.float32(scaling["mean"]), np.float32(scaling["spread"])
        history, noise = values["history"], values["noise"]
        transformed, restored = _TRANSFORMS[scaling["transform"]]
        history = transformed(history)
        y, after = self._step(((history - mean) / spread)[..., None], [values[name] for name in self.spec.state_map])
        batch, paths, horizon = noise.shape
        state: Sequence[np.ndarray]
        y, state = np.repeat(y, paths, axis=0), [np.repeat(part, paths, axis=1) for part in after]
        steps = noise.reshape(batch * paths, horizon)
        z = np.empty_like(steps)
        for place in range(horizon):
            if place:
                y, state = self._step(z[:, place - 1 : place, None], state)
            z[:, place] = y[:, 0] + (np.logaddexp(np.float32(0), y[:, 1]) + np.float32(1e-3)) * steps[:, place]
        path = z * spread + mean
        return restored(path).reshape(batch, paths, horizon), *after

    def _generate(self, values: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        prompt = values["prompt"]
        state: Sequence[np.ndarray] = [values[name] for name in self.spec.state_map]
        if prompt.shape[1] > 1:
            _, state = self._step(prompt[:, :-1], state)
        last, tokens = prompt[:, -1:], np.empty(values["uniforms"].shape, np.int64)
        uniforms = np.clip(values["uniforms"], 0, np.float32(1 - 2**-24)).astype(np.float64)
        sharpness = 1 / max(float(values["temperature"]), 1e-6)
        count, top_p = int(values["top_k"]), float(values["top_p"])
        for place in range(uniforms.shape[1]):
            y, state = self._step(last, state)
            tokens[:, place] = choose_token(y, uniforms[:, place : place + 1], sharpness, count, top_p)
            last = tokens[:, place : place + 1]
        return tokens, *state

    def _classify(self, values: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        rows, state = [], {spec.name: spec.filled({"batch": 1}) for spec in self.spec.state}
        for tokens, length in zip(values["tokens"], values["lengths"], strict=True):
            y = np.asarray(self.network.call({"tokens": tokens[None, :length], **state})[0])
            shares = np.exp(y - y.max(-1, keepdims=True))
            rows.append(shares / shares.sum(-1, keepdims=True))
        return (np.concatenate(rows),)


# pipelines.Scaling's transforms, there and back.
_TRANSFORMS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "none": (lambda values: values, lambda values: values),
    "root": (lambda values: np.sqrt(np.maximum(values, 0)), lambda values: np.square(np.maximum(values, 0))),
    "log": (lambda values: np.log1p(np.maximum(values, 0)), lambda values: np.expm1(np.maximum(values, 0))),
}


def choose_token(logits: np.ndarray, u: np.ndarray, sharpness: float, top_k: int, top_p: float) -> np.ndarray:
    """logits [batch, V], u float64 [batch, 1], 1 / temperature, and the settings → tokens [batch], by the rules of
    pipelines.Generate, in float64 from the logits on, which numpy does at no loss of time."""
    wide = logits.astype(np.float64) * sharpness
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if top_k > 0 or top_p < 1:
        ordered = -np.sort(-p, axis=-1)
        within = ordered.copy()
        if top_k > 0:
            within[:, top_k:] = 0
        shares = within.cumsum(-1)
        stays = (shares - within < top_p * shares[:, -1:]) & (within > 0)
        least = np.where(stays, ordered, ordered[:, :1]).min(-1, keepdims=True)
        p = np.where(p >= least, p, 0)
    cumulative = p.cumsum(-1)
    if top_k > 0 or top_p < 1:
        cumulative /= cumulative[:, -1:]
    return np.minimum((cumulative <= u).sum(-1), p.shape[-1] - 1)
