"""One small interface over whatever runs a model: torch, onnxruntime. Each is imported when it is used."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqexport.errors import FileError, InputError, UnsupportedError
from seqexport.files import is_checkpoint
from seqexport.isolation import check_structure, open_apart, parse_onnx
from seqexport.specs import (
    PIPELINES,
    READ,
    TEXT,
    TEXT_PIPELINES,
    NetworkSpec,
    TensorSpec,
    as_texts,
    check_feeds,
    pipeline_inputs,
)
from seqexport.text import Vocabulary

if TYPE_CHECKING:
    import torch

    from seqexport.checkpoint import Checkpoint

JSON_METADATA = (
    "network",
    "state_map",
    "preprocessing",
    "labels",
    "metrics",
    "data",
    "versions",
    "verification",
    "quantization",
)
LOOPS = ("forecast", "generate", "generate.text")
PLAIN = ("torch", "onnxruntime", "onnxruntime-int8")


class Runtime:
    """Runs one model: `run` takes and gives numpy arrays by name.

    inputs: the specs of what `run` takes; the optional ones may be left out. output_names: what it gives.
    metadata: task, cell, preprocessing and the like, as in the ONNX file. declared: output name → the dims that an ONNX
    file says it has.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    declared: Mapping[str, Sequence[int | str | None]] = {}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """{input name: array} → {output name: array}. Raises InputError for values that do not fit the inputs."""
        return dict(zip(self.output_names, self._run(check_feeds(self.inputs, feeds)), strict=True))

    def only(self, *names: str) -> Runtime:
        """The runtime, asked for no more than these outputs, where it has a way to spare the others."""
        return self

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        raise NotImplementedError

    # What follows is `run` in its parts, for a loop that calls many times: `with ready(): call(native(feeds))`.

    def ready(self) -> contextlib.AbstractContextManager[Any]:
        """Settings that hold for many calls."""
        return contextlib.nullcontext()

    def native(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Checked feeds in the runtime's own kind of arrays, by name, for `call`."""
        return dict(feeds)

    def call(self, values: dict[str, Any]) -> Sequence[Any]:
        """What `native` gives, in which outputs may stand for the state → the outputs, unchecked, in their order."""
        return self._run(values)


class TorchRuntime(Runtime):
    """Runs a module that takes and gives flat tensors, on `threads` threads, with oneDNN on or off.

    oneDNN matters: at single steps torch's LSTM is several times slower with it than without, and for long sequences
    it is the other way round. None leaves torch's own setting.
    """

    name = "torch"

    def __init__(
        self,
        module: Callable[..., Sequence[torch.Tensor]],
        inputs: Sequence[TensorSpec],
        output_names: Sequence[str],
        *,
        threads: int = 1,
        onednn: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.output_names = tuple(output_names)
        self.threads = threads
        self.onednn = onednn
        self.metadata = metadata or {}

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        with self.ready():
            return [output.numpy() for output in self.call(self.native(feeds))]

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """The number of threads, oneDNN on or off, and no gradients."""
        import torch

        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode(), self._onednn():
            yield

    def native(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tensors of all inputs, those left out with their default."""
        import torch

        # A copy, since torch shares memory with arrays, of which the caller's may be read-only.
        tensors = [torch.tensor(array) for array in self._filled(feeds)]
        return dict(zip((spec.name for spec in self.inputs), tensors, strict=True))

    def call(self, values: dict[str, Any]) -> Sequence[Any]:
        """Tensors in, tensors out."""
        return self.module(*values.values())

    def _filled(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return list(filled(self.inputs, feeds).values())

    @contextlib.contextmanager
    def _onednn(self) -> Iterator[None]:
        import torch

        if self.onednn is None:
            yield
            return
        with warnings.catch_warnings():
            # Setting the flags sets that for Intel GPUs too, of whose absence torch then warns.
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN", UserWarning)
            with torch.backends.mkldnn.flags(enabled=self.onednn):
                yield


def filled(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of all inputs: those left out have their default, at the sizes of the others."""
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name in feeds:
            pairs = zip(spec.dims, feeds[spec.name].shape, strict=True)
            sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    return {spec.name: feeds[spec.name] if spec.name in feeds else spec.filled(sizes) for spec in specs}


class OnnxRuntime(Runtime):
    """Runs an ONNX file, or its bytes, in onnxruntime on the CPU, on `threads` threads.

    arena: whether memory that was freed is kept for the next call. Without it a loop's small buffers cost less, and
    large batches more (DECISIONS.md has the figures): `load` leaves it off for pipelines that loop.
    """

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, *, threads: int = 1, arena: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = arena
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Below this severity onnxruntime warns of every optional state, which is there on purpose.
        options.log_severity_level = 3
        source = str(model) if isinstance(model, Path) else model
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            what = model if isinstance(model, Path) else "The model"
            reason = str(error).splitlines()[0]
            raise FileError(f"{what} could not be loaded by onnxruntime ({reason}); expected an ONNX model.") from error
        self._options: Any = None
        self.metadata = parse_metadata(self.session.get_modelmeta().custom_metadata_map)
        self.name = "onnxruntime-int8" if self.metadata.get("precision") == "int8" else "onnxruntime"
        known = network_inputs(self.metadata)
        required = [_input_spec(value, False, known) for value in self.session.get_inputs()]
        optional = [_input_spec(value, True, known) for value in self.session.get_overridable_initializers()]
        order = list(known)
        self.inputs = (
            *required,
            *sorted(optional, key=lambda spec: order.index(spec.name) if spec.name in order else len(order)),
        )
        self.output_names = tuple(value.name for value in self.session.get_outputs())
        self.declared = {value.name: value.shape for value in self.session.get_outputs()}

    def only(self, *names: str) -> OnnxRuntime:
        """The same session, of which only these outputs are asked, and only what they need is computed."""
        from onnxruntime import RunOptions

        chosen = copy.copy(self)
        chosen.output_names, chosen._options = names, RunOptions()
        chosen._options.only_execute_path_to_fetches = True
        return chosen

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return self.session.run(self.output_names, feeds, self._options)
        except Exception as error:  # onnxruntime's exceptions have no common base
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"onnxruntime could not run {shapes}: {str(error).splitlines()[0]}") from error


_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def _input_spec(value: Any, optional: bool, known: Mapping[str, TensorSpec]) -> TensorSpec:
    if value.type == "tensor(string)" and value.name in known:
        return known[value.name]
    if value.type not in _ONNX_DTYPES:
        raise UnsupportedError(f"The model's input {value.name!r} is a {value.type}, which seqexport cannot feed.")
    if value.name in known:  # a default state has a batch of 1; what may be fed is the batch of the other inputs
        return replace(known[value.name], optional=optional)
    dims = tuple(dim if isinstance(dim, int) else dim or f"{value.name}_{axis}" for axis, dim in enumerate(value.shape))
    return TensorSpec(value.name, _ONNX_DTYPES[value.type], dims, optional=optional)


class TextRuntime(Runtime):
    """What a graph of strings does, done in Python around a runtime of the same pipeline's numbers.

    Prompts are written on one by one, since that pipeline has no lengths for them. Takes and gives what
    specs.pipeline_inputs and pipeline_outputs say of the pipeline and ".text".
    """

    def __init__(self, numbers: Runtime, pipeline: str) -> None:
        preprocessing = numbers.metadata["preprocessing"]
        self.numbers, self.vocabulary = numbers, Vocabulary.from_dict(preprocessing["vocabulary"])
        self.labels = as_texts(preprocessing.get("labels", []))
        self.name = numbers.name
        self.metadata = {**numbers.metadata, "part": pipeline + TEXT}
        spec = NetworkSpec.from_dict(numbers.metadata["network"])
        self.generates = pipeline == "generate"
        known = pipeline_inputs(pipeline + TEXT, spec)
        self.inputs = (known[0], *(numbers.inputs[1:] if self.generates else ()))
        self.output_names = ("text" if self.generates else "label", *numbers.output_names, *READ)

    def _run(self, feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        texts = list(feeds[self.inputs[0].name])
        tokens, lengths = self.vocabulary.encode_batch(texts)
        pieces = np.full(tokens.shape, "", object)
        for row, text in zip(pieces, texts, strict=True):
            split = self.vocabulary.split(text)
            row[: len(split)] = split
        if not self.generates:
            outputs = self.numbers.run({"tokens": tokens, "lengths": lengths})
            answer = self.labels[outputs["probabilities"].argmax(-1)]
            return answer, *outputs.values(), pieces, tokens, lengths
        rows = [self.numbers.run(self.alone(feeds, row)) for row in range(len(texts))]
        joined = {name: np.concatenate([row[name] for row in rows], int(name != "tokens")) for name in rows[0]}
        answer = as_texts([self.vocabulary.decode(row) for row in joined["tokens"]])
        return answer, *joined.values(), pieces, tokens, lengths

    def around(self, numbers: Any) -> TextRuntime:
        """The same around another runtime of the same pipeline."""
        other = copy.copy(self)
        other.numbers = numbers
        return other

    def alone(self, feeds: Mapping[str, Any], row: int) -> dict[str, np.ndarray]:
        """What the generator of numbers gets for one prompt of the batch."""
        alone = {"prompt": np.array([self.vocabulary.encode(feeds["prompt"][row])])}
        for spec in self.inputs[1:]:
            if spec.name in feeds:
                value = np.asarray(feeds[spec.name])
                alone[spec.name] = value.take([row], spec.dims.index("batch")) if "batch" in spec.dims else value
        return alone


def network_inputs(metadata: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """The specs that the file's own description of its network gives, with the ranges that a graph can't hold."""
    if not isinstance(metadata.get("network"), dict):
        return {}
    spec, part = NetworkSpec.from_dict(metadata["network"]), metadata.get("part")
    inputs = pipeline_inputs(part, spec) if part in (*PIPELINES, *TEXT_PIPELINES) else (spec.input, *spec.state)
    return {spec.name: spec for spec in inputs}


def parse_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """An ONNX file's metadata_props, with what is JSON in them decoded."""
    parsed: dict[str, Any] = dict(properties)
    for name in JSON_METADATA:
        if name in parsed:
            with contextlib.suppress(ValueError, RecursionError):  # what is too deep or too long stays text
                value = json.loads(parsed[name])
                parsed[name] = parsed[name] if _is_deep(value) else value
    return parsed


def _is_deep(value: Any) -> bool:
    """Whether lists and dicts stand in each other more than a hundred deep, where printing them would fail."""
    level = [value]
    for _ in range(100):
        level = [part for held in level if isinstance(held, (dict, list)) for part in _parts(held)]
        if not level:
            return False
    return True


def _parts(held: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return held.values() if isinstance(held, dict) else held


def checkpoint_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file says of the checkpoint that it came from."""
    metadata: dict[str, Any] = {
        "cell": checkpoint.spec.cell,
        "network": checkpoint.spec.to_dict(),
        "state_map": checkpoint.spec.state_map,
        "checkpoint_sha256": checkpoint.sha256,
    }
    named = {
        "task": checkpoint.task,
        "preprocessing": checkpoint.preprocessing,
        "labels": checkpoint.preprocessing.get("labels"),
        "metrics": checkpoint.metrics,
        "data": checkpoint.data,
    }
    return metadata | {name: value for name, value in named.items() if value}


def load(
    path: str | os.PathLike[str],
    runtime: str | None = None,
    *,
    pipeline: str | None = None,
    threads: int = 1,
    onednn: bool | None = None,
    isolated: bool = False,
) -> Runtime:
    """Load a checkpoint (runtime "torch") or an ONNX file (runtime "onnxruntime"): its network, or its pipeline. With
    the runtime "onnxruntime-int8" it is the int8 file beside it, net.int8.onnx beside net.onnx.

    isolated: open the file in a child process first, so that one that would end this process is a FileError. It is for
    files from outside, as the command line takes them; it takes half a second, which a program that loads its own
    files need not wait.

    For an ONNX file, `net.onnx` with pipeline "forecast" is `net.forecast.onnx` beside it. Raises FileError for a
    missing or unreadable file, or where network and pipeline come from different checkpoints; UnsupportedError for a
    runtime that does not run this kind of file.
    """
    path = Path(path)
    if runtime not in (None, *PLAIN):
        raise UnsupportedError(f"There is no runtime {runtime!r}; expected {', '.join(PLAIN[:-1])} or {PLAIN[-1]}.")
    if threads < 1:
        raise InputError(f"A runtime needs at least 1 thread, got {threads}.")
    if runtime == "onnxruntime-int8" and not path.exists() and int8_path(path).is_file():
        path = int8_path(path)
    from_torch = is_checkpoint(path)
    if from_torch and runtime in ("onnxruntime", "onnxruntime-int8"):
        raise UnsupportedError(
            f"{path} is a checkpoint, which onnxruntime cannot run: python -m seqexport {path} first."
        )
    if not from_torch and runtime == "torch":
        raise UnsupportedError(f"{path} is not a checkpoint, and torch runs nothing else: give the file it came from.")
    if from_torch:
        if isolated:
            open_apart(path)
        return _load_torch(path, pipeline, threads, onednn)
    path = located(path, pipeline, isolated, runtime == "onnxruntime-int8")
    return OnnxRuntime(path, threads=threads, arena=onnx_metadata(path).get("part") not in LOOPS)


def located(path: Path, pipeline: str | None, isolated: bool = False, int8: bool = False) -> Path:
    """The ONNX file that is meant, `path` or its pipeline's beside it, or the int8 form of either, after it was seen to
    be fit for a session."""
    if isolated:
        open_apart(path)
    if int8:
        path = _int8_beside(path)
        if isolated:
            open_apart(path)
    if pipeline is not None and onnx_metadata(path).get("part", "network") == "network":
        path = pipeline_path(path, pipeline)
        if not path.is_file():
            how = "with --text" if pipeline in TEXT_PIPELINES else "again"
            raise FileError(
                f"There is no file {path}, the pipeline of the network beside it: export the checkpoint {how}."
            )
        if isolated:
            open_apart(path)
    check_pair(path)
    check_structure(path, parse_onnx(path))
    return path


def _load_torch(path: Path, pipeline: str | None, threads: int, onednn: bool | None) -> Runtime:
    from seqexport.checkpoint import read_checkpoint

    return checkpoint_runtime(read_checkpoint(path), pipeline, threads=threads, onednn=onednn)


def checkpoint_runtime(checkpoint: Checkpoint, pipeline: str | None, **options: Any) -> Runtime:
    """torch_runtime, and for a pipeline with strings in and out what Python does of them around it."""
    if pipeline not in TEXT_PIPELINES:
        return torch_runtime(checkpoint, pipeline, **options)
    numbers = pipeline.removesuffix(TEXT)
    return TextRuntime(torch_runtime(checkpoint, numbers, **options), numbers)


def torch_runtime(
    checkpoint: Checkpoint,
    pipeline: str | None = None,
    *,
    threads: int = 1,
    onednn: bool | None = None,
    kind: type[TorchRuntime] = TorchRuntime,
) -> TorchRuntime:
    """A checkpoint's network, or its pipeline, in torch. kind: how torch runs it."""
    options: dict[str, Any] = {"threads": threads, "onednn": onednn, "metadata": checkpoint_metadata(checkpoint)}
    if pipeline is None:
        spec = checkpoint.spec
        return kind(checkpoint.network(), (spec.input, *spec.state), spec.output_names, **options)
    module = checkpoint.pipeline(pipeline)
    return kind(module, module.inputs, module.output_names, **options)


def pipeline_path(network_path: Path, pipeline: str) -> Path:
    """net.onnx → net.forecast.onnx, and net.int8.onnx → net.forecast.int8.onnx."""
    stem, int8 = _stem(network_path)
    return network_path.with_name(f"{stem}.{pipeline}{int8}{network_path.suffix}")


def network_path(path: Path, pipeline: str) -> Path:
    """What pipeline_path made the path of, or the path itself."""
    stem, int8 = _stem(path)
    return path.with_name(stem.removesuffix(f".{pipeline}") + int8 + path.suffix)


def _stem(path: Path) -> tuple[str, str]:
    """The name without its suffix and without the word that says int8, and that word."""
    stem = path.stem.removesuffix(".int8")
    return stem, path.stem.removeprefix(stem)


def int8_path(path: Path) -> Path:
    """net.onnx → net.int8.onnx, which stays what it is."""
    return path.with_name(f"{path.stem.removesuffix('.int8')}.int8{path.suffix}")


def _int8_beside(path: Path) -> Path:
    """The int8 file of a float32 file, which may be given itself. Raises FileError where it is not there, or was made
    of another file."""
    if onnx_metadata(path).get("precision") == "int8":
        return path
    beside, command = int8_path(path), f"python -m seqexport quantize {path}"
    if not beside.is_file():
        raise FileError(f"There is no file {beside}, the int8 form of {path}: make it with {command}.")
    if onnx_metadata(beside).get("quantized_from") != sha256(path.read_bytes()).hexdigest():
        raise FileError(f"{beside} was not made of {path} as it is now: make it anew with {command}.")
    return beside


def onnx_metadata(path: Path) -> dict[str, Any]:
    """The metadata of an ONNX file."""
    return parse_metadata({prop.key: prop.value for prop in parse_onnx(path).metadata_props})


def check_pair(path: Path) -> None:
    """Raise FileError if the network's file and a pipeline's file beside it were written from different checkpoints."""
    mine = onnx_metadata(path)
    if "checkpoint_sha256" not in mine or "task" not in mine:
        return
    task, part = mine["task"], mine.get("part")
    if part in TEXT_PIPELINES:
        other = network_path(path, part)
    else:
        other = (pipeline_path if part == "network" else network_path)(path, task)
    if other == path or not other.is_file():
        return
    theirs = onnx_metadata(other).get("checkpoint_sha256", "none")
    if theirs != mine["checkpoint_sha256"]:
        how = " with --text" if part in TEXT_PIPELINES else ""
        raise FileError(
            f"{path.name} was written from the checkpoint {mine['checkpoint_sha256'][:12]}…, {other.name} beside it "
            f"from {theirs[:12]}…: export the checkpoint again{how}, so that both belong together."
        )
