"""Read and write checkpoints: a network's description and weights, with what surrounds them."""

from __future__ import annotations

import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqexport.archives import Content, read_content
from seqexport.errors import CheckpointError, InputError, SpecError, UnsupportedError
from seqexport.files import replace_file
from seqexport.inference import Choices, checked_weights, find_weights, infer
from seqexport.networks import Network
from seqexport.pipelines import Pipeline, make_pipeline
from seqexport.sources import first_line
from seqexport.specs import PIPELINES, NetworkSpec

FORMAT = "seqexport/1"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a network's description and weights, and, for our own format, what surrounds them.

    notes: what was assumed, in sentences. unused: keys of the file that the network does not use. container: what kind
    of file it is, and under which keys the weights are.
    """

    path: Path
    sha256: str
    spec: NetworkSpec
    weights: Mapping[str, Tensor]
    task: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    container: str = ""

    def network(self) -> Network:
        """The network in evaluation mode, its parameters frozen."""
        return _loaded(self.spec, self.weights, torch.float32)

    def pipeline(self, name: str) -> Pipeline:
        """The pipeline `name` in evaluation mode. Raises UnsupportedError if the checkpoint has no such pipeline."""
        if name != self.task:
            there = f"its pipeline is {self.task!r}" if self.task else "it holds a network only"
            raise UnsupportedError(f"{self.path} has no pipeline {name!r}: {there}.")
        return make_pipeline(name, self.network(), self.preprocessing).eval()


def write_checkpoint(
    path: str | os.PathLike[str],
    network: Network,
    *,
    task: str,
    preprocessing: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Write our own format, beside the destination first and then in its place: a failure leaves an older file."""
    content = {
        "format": FORMAT,
        "task": task,
        "network": network.spec.to_dict(),
        "preprocessing": json.loads(json.dumps(preprocessing)),
        "state_dict": _copied(network.state_dict(keep_vars=True)),
        "metrics": json.loads(json.dumps(metrics)),
        "data": json.loads(json.dumps(data)),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(Path(path), buffer.getvalue())


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, of which a matrix that has two names has one: torch.save then writes it once."""
    copies: dict[int, Tensor] = {}
    return {
        name: copies.setdefault(id(parameter), parameter.detach().cpu().clone()) for name, parameter in weights.items()
    }


def read_checkpoint(path: str | os.PathLike[str], choices: Choices | None = None) -> Checkpoint:
    """Read a checkpoint of our own format, or one whose network is inferred from its weights.

    Raises CheckpointError for a file that is missing, damaged, executable, or not a recurrent net.
    """
    return read_as_checkpoint(read_content(path), choices)


def read_as_checkpoint(content: Content, choices: Choices | None = None) -> Checkpoint:
    """The same of a file that was read already."""
    path, tree = content.path, content.tree
    if isinstance(tree, Mapping) and str(tree.get("format", "")).startswith("seqexport/"):
        return _read_own(path, content.sha256, tree)
    named = find_weights(path, tree)
    inferred = infer(path, named, choices or Choices(), content.ordered)
    weights = checked_weights(path, inferred.weights)
    _check_shapes(path, weights, _expected_shapes(inferred.spec))
    return Checkpoint(
        path,
        content.sha256,
        inferred.spec,
        weights,
        notes=(*content.notes, *inferred.notes, *_precision_notes(inferred.spec, weights, inferred.weights)),
        unused=inferred.unused,
        container=f"{content.kind}, {'.'.join(named.where)}" if named.where else content.kind,
    )


def _precision_notes(
    spec: NetworkSpec, weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]
) -> Iterator[str]:
    """What becomes of weights that are not float32: a narrower type is widened exactly, float64 is rounded."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in originals.values()}
    if narrower := sorted(kinds & {"float16", "bfloat16"}):
        yield f"weights of {' and '.join(narrower)} are exported as float32, exactly"
    if "float64" in kinds:
        change = _rounding(spec, weights, originals)
        yield f"weights of float64 are exported as float32, which changes what the network gives by up to {change:.1e}"


def _rounding(spec: NetworkSpec, weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> float:
    """|a - b| / max(1, max|a|) of what the network gives in float64 and in float32, on 3 × 40 steps of random input
    with random state."""
    rng = np.random.default_rng(0)
    feeds = [torch.from_numpy(part.sample({"batch": 3, "time": 40}, rng)) for part in (spec.input, *spec.state)]
    wide_feeds = [tensor.double() if tensor.is_floating_point() else tensor for tensor in feeds]
    with torch.no_grad():
        wide = _loaded(spec, originals, torch.float64)(*wide_feeds)
        narrow = _loaded(spec, weights, torch.float32)(*feeds)
    return max(float((a - b).abs().max() / max(1.0, a.abs().max())) for a, b in zip(wide, narrow, strict=True))


def _loaded(spec: NetworkSpec, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Network:
    """The network in evaluation mode, its parameters copies of the weights, and frozen."""
    with torch.device("meta"):
        network = Network(spec)
    parameters = {
        name: nn.Parameter(tensor.detach().to(dtype, copy=True), requires_grad=False)
        for name, tensor in weights.items()
    }
    network.load_state_dict(parameters, assign=True)
    return network.eval().requires_grad_(False)


def _read_own(path: Path, digest: str, content: Mapping[str, Any]) -> Checkpoint:
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has the format {content['format']!r}; this version reads {FORMAT!r}.")
    missing = [name for name in ("task", "network", "preprocessing", "state_dict") if name not in content]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: save it again with seqexport.")
    if content["task"] not in PIPELINES:
        raise CheckpointError(f"{path} is for the task {content['task']!r}; expected {', '.join(PIPELINES)}.")
    try:
        spec = NetworkSpec.from_dict(content["network"])
        weights = checked_weights(path, content["state_dict"])
        if spec.layers > len(weights):  # said before a network of so many layers is made
            raise SpecError(f"the network has {spec.layers} layers, but there are {len(weights)} weights.")
        _check_shapes(path, weights, _expected_shapes(spec))
        checkpoint = Checkpoint(
            path,
            digest,
            spec,
            weights,
            content["task"],
            content["preprocessing"],
            content.get("metrics", {}),
            content.get("data", {}),
            content.get("versions", {}),
            tuple(_precision_notes(spec, weights, content["state_dict"])),
            container="checkpoint of seqexport",
        )
        checkpoint.pipeline(content["task"])
        json.dumps([checkpoint.preprocessing, checkpoint.metrics, checkpoint.data, checkpoint.versions])
    except (SpecError, UnsupportedError, InputError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} contradicts itself: {error}") from error
    return checkpoint


def _expected_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in Network(spec).state_dict().items()}
    except RuntimeError as error:  # even on no device a tensor has a size that can be counted
        raise SpecError(f"the network that it describes is larger than any memory ({first_line(error)}).") from error


def _check_shapes(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path} lacks the weight {name}; expected it with the shape {list(shape)}.")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(weights[name].shape)}; the other weights ask for {list(shape)}."
            )
