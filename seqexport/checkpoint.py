"""Read and write checkpoints; infer a network from bare weights.

A checkpoint is read by its content, never by its file name, and nothing in it is ever executed: an archive's
checksums are tested first (torch reads damaged weights without a word), and only tensors and plain values are loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  only the exception's name: nothing is unpickled here
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqexport.errors import CheckpointError, FileError, InputError, SpecError, UnsupportedError
from seqexport.networks import Network
from seqexport.pipelines import Pipeline, make_pipeline
from seqexport.specs import GATES, PIPELINES, Cell, NetworkSpec, Pooling

FORMAT = "seqexport/1"
_EXPORT_LIVE = "export the live module with seqexport.export(model, path, inputs=…)"


@dataclass(frozen=True)
class Choices:
    """What weights can't tell, as the user chose it; None takes the default and says so."""

    nonlinearity: Literal["tanh", "relu"] | None = None
    time_major: bool | None = None
    head: Pooling | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a network's description and weights, and, for our own format, what surrounds them.

    notes: what was assumed, in sentences. unused: keys of the weights that the network does not use.
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

    def network(self) -> Network:
        """The network in evaluation mode, its parameters frozen."""
        with torch.device("meta"):
            network = Network(self.spec)
        weights = {name: nn.Parameter(tensor.clone(), requires_grad=False) for name, tensor in self.weights.items()}
        network.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(False)

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
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()},
        "metrics": json.loads(json.dumps(metrics)),
        "data": json.loads(json.dumps(data)),
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(Path(path), buffer.getvalue())


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: whoever reads sees the old file or the new one, whole.

    Raises FileError, with an older file untouched, where the folder is missing or not writable or the disk is full.
    """
    temporary = write_beside(path, content)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FileError(f"{path} could not be replaced ({error.strerror}): check its permissions.") from error


def write_beside(path: Path, content: bytes) -> Path:
    """Write `content`, flushed to the disk, to a new hidden file in the folder of `path`, and return its path."""
    if not path.parent.is_dir():
        raise FileError(f"The folder {path.parent} does not exist: create it, or choose another output.")
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected the path of a file to write.")
    name = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            name = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name.chmod(0o666 & ~_umask())
    except OSError as error:
        if name is not None:
            name.unlink(missing_ok=True)
        raise FileError(f"{path} could not be written ({error.strerror}): check permissions and free space.") from error
    return name


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def read_checkpoint(path: str | os.PathLike[str], choices: Choices | None = None) -> Checkpoint:
    """Read a checkpoint of our own format, or a bare state_dict, whose network is inferred.

    Raises CheckpointError for a file that is missing, damaged, executable, or not a recurrent net.
    """
    path = Path(path)
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    loaded = _load(path, content)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a dict of weights: save a state_dict.")
    if "format" in loaded:
        return _read_own(path, digest, loaded)
    return infer(path, digest, loaded, choices or Choices())


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}: give the path of a checkpoint.") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; expected a checkpoint file.") from None
    except OSError as error:
        raise CheckpointError(f"{path} could not be read ({error.strerror}).") from error
    if not content:
        raise CheckpointError(f"{path} is empty; expected a checkpoint.")
    return content


def _load(path: Path, content: bytes) -> Any:
    """The tensors and plain values of the file. Refuses everything that would have to be executed."""
    if content.startswith(b"PK"):
        _check_archive(path, content)
    elif not content.startswith(b"\x80"):  # the legacy format of torch.save is a bare pickle
        raise CheckpointError(f"{path} is not a checkpoint: expected what torch.save writes.")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251  the one place
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path} holds a pickled object{what}, which would run code to be read, and was not executed: save the "
            f'weights with torch.save(model.state_dict(), "weights.pt"), or {_EXPORT_LIVE}.'
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the user
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{path} could not be read as a checkpoint ({reason}): save it again.") from error


def _check_archive(path: Path, content: bytes) -> None:
    """torch.load does not look at the archive's checksums, so that flipped bits become wrong weights: test them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is a compressed archive; expected the plain one that torch.save writes.")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}): copy or save it again.") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its entry {damaged} is wrong; copy or save it again."
        )
    if any(name.split("/")[1:2] == ["code"] for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which seqexport cannot read yet: "
            'save its weights with torch.save(torch.jit.load(path).state_dict(), "weights.pt").'
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is an archive without a checkpoint in it: expected what torch.save writes.")


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
        weights = _checked_weights(path, content["state_dict"])
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
        )
        checkpoint.pipeline(content["task"])
    except (SpecError, UnsupportedError, InputError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} contradicts itself: {error}") from error
    return checkpoint


def _checked_weights(path: Path, weights: Any) -> dict[str, Tensor]:
    """The weights as contiguous float32 tensors. Raises CheckpointError for one that is not finite."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{path} has no dict of named weights; expected a state_dict.")
    checked = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
            continue
        tensor = tensor.detach().to(torch.float32).contiguous()
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{path}: {name} holds {count} values that are NaN or infinite; train or save it again."
            )
        checked[name] = tensor
    return checked


def _expected_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Network(spec).state_dict().items()}


def _check_shapes(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{path} lacks the weight {name}; expected it with the shape {list(shape)}.")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(weights[name].shape)}; the other weights ask for {list(shape)}."
            )


_RECURRENT = re.compile(
    r"(?P<prefix>.*?)(?P<kind>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(?P<layer>\d+)(?P<reverse>_reverse)?"
)


def infer(path: Path, digest: str, loaded: Mapping[str, Any], choices: Choices) -> Checkpoint:
    """A bare state_dict → the network that its names and shapes tell, and notes of what they can't.

    The recurrence is told by its `weight_ih_l0` (4H rows: LSTM, 3H: GRU, H: RNN), an embedding by standing before it
    with its width, a head by standing after it and reading its output.
    """
    weights = _checked_weights(path, loaded)
    prefix, spec = _infer_recurrence(path, weights)
    names = list(weights)
    first = names.index(f"{prefix}weight_ih_l0")
    matrices = [name for name in names if name.endswith(".weight") and weights[name].ndim == 2]
    ours = {
        name: f"rnn.{name[len(prefix) :]}" for name in names if name.startswith(prefix) and _RECURRENT.fullmatch(name)
    }
    embedding = _infer_embedding([name for name in matrices if names.index(name) < first], weights, spec)
    if embedding:
        spec = replace(spec, vocabulary=weights[embedding].shape[0])
        ours[embedding] = "embedding.weight"
    head = _infer_head(path, [name for name in matrices if names.index(name) > first], weights, spec)
    if head:
        bias = f"{head[: -len('weight')]}bias"
        spec = replace(spec, outputs=weights[head].shape[0], head_bias=bias in weights)
        ours |= {head: "head.weight", bias: "head.bias"} if bias in weights else {head: "head.weight"}
    spec, notes = _apply_choices(spec, choices)
    widened = sorted(
        {str(t.dtype).removeprefix("torch.") for t in loaded.values() if isinstance(t, Tensor)} - {"float32"}
    )
    if widened:
        notes.append(f"weights of {', '.join(widened)} are exported as float32")
    renamed = {ours[name]: weights[name] for name in names if name in ours}
    _check_shapes(path, renamed, _expected_shapes(spec))
    unused = tuple(str(name) for name in loaded if name not in ours)
    return Checkpoint(path, digest, spec, renamed, notes=tuple(notes), unused=unused)


def _infer_recurrence(path: Path, weights: Mapping[str, Tensor]) -> tuple[str, NetworkSpec]:
    matches = [match for name in weights if (match := _RECURRENT.fullmatch(name))]
    prefixes = list(dict.fromkeys(match["prefix"] for match in matches))
    if not prefixes:
        found = ", ".join(list(weights)[:4]) or "no weights at all"
        raise CheckpointError(
            f"{path} holds no recurrent net: expected weights named like rnn.weight_ih_l0, found {found}."
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds {len(prefixes)} recurrent nets ({', '.join(p.rstrip('.') or 'unnamed' for p in prefixes)}), "
            f"and how they are joined is not in the weights: {_EXPORT_LIVE}."
        )
    prefix = prefixes[0]
    if any(match["kind"] == "weight_hr" for match in matches):
        raise UnsupportedError(f"{path} holds an nn.LSTM with proj_size, which seqexport cannot export yet.")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if prefix + name not in weights or weights[prefix + name].ndim != 2:
            raise CheckpointError(f"{path} lacks the matrix {prefix}{name}, from which the cell and its size are told.")
    rows, features = weights[f"{prefix}weight_ih_l0"].shape
    hidden_size = weights[f"{prefix}weight_hh_l0"].shape[1]
    cells: dict[int, Cell] = {gates * hidden_size: cell for cell, gates in GATES.items()}
    if rows not in cells:
        raise CheckpointError(
            f"{path}: {prefix}weight_ih_l0 has {rows} rows for a hidden size of {hidden_size}; "
            f"expected {hidden_size} (RNN), {3 * hidden_size} (GRU) or {4 * hidden_size} (LSTM)."
        )
    return prefix, NetworkSpec(
        cell=cells[rows],
        features=features,
        hidden_size=hidden_size,
        layers=1 + max(int(match["layer"]) for match in matches),
        bidirectional=any(match["reverse"] for match in matches),
        bias=any(match["kind"].startswith("bias") for match in matches),
    )


def _infer_embedding(candidates: list[str], weights: Mapping[str, Tensor], spec: NetworkSpec) -> str | None:
    """The matrix before the recurrence that gives its input, and has no bias."""
    fitting = [
        name for name in candidates if weights[name].shape[1] == spec.features and f"{name[:-6]}bias" not in weights
    ]
    return fitting[-1] if fitting else None


def _infer_head(path: Path, candidates: list[str], weights: Mapping[str, Tensor], spec: NetworkSpec) -> str | None:
    """The matrix after the recurrence that reads its output."""
    if not candidates:
        return None
    if len(candidates) > 1:
        raise CheckpointError(
            f"{path} has {len(candidates)} matrices after the recurrent net ({', '.join(candidates)}), and what lies "
            f"between them is not in the weights: {_EXPORT_LIVE}."
        )
    if weights[candidates[0]].shape[1] != spec.width:
        raise CheckpointError(
            f"{path}: {candidates[0]} reads {weights[candidates[0]].shape[1]} numbers, but the recurrent net gives "
            f"{spec.width}: {_EXPORT_LIVE}."
        )
    return candidates[0]


def _apply_choices(spec: NetworkSpec, choices: Choices) -> tuple[NetworkSpec, list[str]]:
    """Settle what weights can't tell, by the user's choice or the default, which is noted with its flag."""
    notes = []
    if spec.cell == "rnn" and choices.nonlinearity is None:
        notes.append("the cell is taken to use tanh (--nonlinearity relu)")
    if choices.time_major is None:
        notes.append("batch is taken to come before time (--time-major)")
    if spec.outputs and choices.head is None:
        notes.append("the head is taken to read every step (--head last, mean or max)")
    return replace(
        spec,
        nonlinearity=choices.nonlinearity or "tanh",
        time_major=bool(choices.time_major),
        pooling=choices.head or "every",
    ), notes
