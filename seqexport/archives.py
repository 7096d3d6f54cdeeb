"""The bytes of a checkpoint file to tensors and plain values, told by content and never by name. Nothing is executed.

Read: what torch.save writes (its archive and its older format), safetensors, and the weights of a TorchScript archive.
An archive's checksums are tested first, since torch.load reads damaged weights without a word.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  only the exception's name: nothing is unpickled here
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from seqexport.errors import CheckpointError
from seqexport.files import is_safetensors
from seqexport.screening import SAVE_WEIGHTS, screen

EXPORT_LIVE = "export the module with --module FILE.py:CLASS, or with seqexport.export(model, path, inputs=…)"

SAFETENSORS = "safetensors"

# What trainers put beside the weights (hyperparameters, paths, versions). None of it is imported: an object of such a
# class is read as an empty one. What is not listed here is refused, so that a file never means less than it says.
_LEFT_EMPTY = ("argparse.Namespace", "pathlib.", "omegaconf.", "pytorch_lightning.", "lightning.", "numpy.")

# The first bytes of files that are taken for checkpoints by mistake.
_OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x93NUMPY": "a numpy array",
    b"\x28\xb5\x2f\xfd": "a zstandard archive: unpack it first",
}


@dataclass(frozen=True)
class Content:
    """What a file holds. tree: dicts, lists, tensors and plain values. notes: sentences on what was left out."""

    path: Path
    kind: str
    bytes: int
    sha256: str
    tree: Any
    notes: tuple[str, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether tensors stand in the order in which the model made them; safetensors has an order of its own."""
        return self.kind != SAFETENSORS


def read_content(path: str | os.PathLike[str]) -> Content:
    """Read a checkpoint file of any of the kinds above.

    Raises CheckpointError for a file that is missing, damaged, of another kind, or that would have to be executed.
    """
    path = Path(path)
    content = _read(path)
    kind, tree, notes = _load(path, content)
    _check_tree(path, tree, len(content))
    return Content(path, kind, len(content), hashlib.sha256(content).hexdigest(), tree, notes)


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


def _load(path: Path, content: bytes) -> tuple[str, Any, tuple[str, ...]]:
    if content.startswith(b"PK"):
        names = screen(path, content)
        if any(name.split("/")[1:2] == ["code"] for name in names):
            return "TorchScript archive", _torchscript_weights(path, content), ()
        return "torch archive", *_load_torch(path, content)
    if content.startswith(b"\x80"):  # the older format of torch.save is a row of pickles
        screen(path, content)
        return "torch file of the older format", *_load_torch(path, content)
    if is_safetensors(content[:9], len(content)):
        return SAFETENSORS, _load_safetensors(path, content), ()
    raise CheckpointError(f"{path} is not a checkpoint but {_other(content)}: expected what torch.save writes.")


_LEVELS = 64
_LEAST_VALUES, _MOST_VALUES = 100_000, 20_000_000
_SPARE_BYTES = 1 << 26


def _check_tree(path: Path, tree: Any, size: int) -> None:
    """Raise CheckpointError for what is small in the file and large, or endless, to whoever goes through it: dicts that
    hold each other over and over, one tensor under a million names, values spread over a larger shape."""
    values, tensor_bytes = 0, 0
    open_ = [(tree, 0)]
    while open_:
        thing, level = open_.pop()
        values += 1
        if isinstance(thing, Tensor):
            if thing.is_meta:
                raise CheckpointError(f"{path} holds a tensor without its values, on the device meta: {SAVE_WEIGHTS}.")
            tensor_bytes += thing.numel() * thing.element_size()
        elif isinstance(thing, (Mapping, list, tuple, set)):
            parts = [*thing.keys(), *thing.values()] if isinstance(thing, Mapping) else thing
            open_ += [(part, level + 1) for part in parts]
        if level > _LEVELS or values + len(open_) > min(_LEAST_VALUES + 4 * size, _MOST_VALUES):
            raise CheckpointError(
                f"{path} holds values that hold each other, without end or too deep to go through: {SAVE_WEIGHTS}."
            )
        if tensor_bytes > 16 * size + _SPARE_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes, but its tensors would take more than {tensor_bytes - 1:,}: {SAVE_WEIGHTS}."
            )


def _other(content: bytes) -> str:
    for start, what in _OTHERS.items():
        if content.startswith(start):
            return what
    if content[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if content[0] == 0x08 and content[1] < 0x20:
        return "what may be an ONNX model, which `inspect` and `run` take"
    return "a file of another kind"


def _load_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({_first_line(error)}): save it again.") from error


def _load_torch(path: Path, content: bytes, stubs: Mapping[str, type] | None = None) -> tuple[Any, tuple[str, ...]]:
    """The tensors and plain values of what torch.save wrote, and a note on objects that were left empty.

    stubs: full name of a class → the empty class that stands for it.
    """
    if stubs is None:
        foreign = [name for name in _foreign_classes(content) if name.startswith(_LEFT_EMPTY)]
        stubs = {name: type("Empty", (_Empty,), {}) for name in foreign}
    known: list[Any] = [(stub, name) for name, stub in stubs.items()]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(known):
            tree = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251  the one place
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        refused = [name for name in _foreign_classes(content) if name not in stubs] or ([named[1]] if named else [])
        refused = [name for name in refused if not name.startswith("torch.nn.")] or refused
        what = f" ({', '.join(refused[:3])})" if refused else ""
        raise CheckpointError(
            f"{path} holds a pickled object{what}, which would run code to be read, and was not executed: "
            f"{SAVE_WEIGHTS}, or {EXPORT_LIVE}."
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the user
        raise CheckpointError(
            f"{path} could not be read as a checkpoint ({_first_line(error)}): save it again."
        ) from error
    noted = f"objects of {', '.join(stubs)} beside the weights were not read" if stubs else ""
    return tree, (noted,) if noted else ()


class _Empty:
    """Stands for an object whose class is never imported; keeps the attributes that the file gives it."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Empty:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


def _foreign_classes(content: bytes) -> list[str]:
    """The full names of what a torch archive refers to beyond tensors and plain values; none for what can't be told."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception:  # a damaged or an older file: loading it says what is wrong
        return []


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


# What TorchScript's own pickles are made with besides tensors and the classes of the script.
_SCRIPT_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def _torchscript_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their dotted names. The script itself is not run, nor even compiled:
    the archive's tree of objects is read as a checkpoint's is, with an empty object for each of the script's."""
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(plain, "w") as kept:
        for entry in archive.infolist():
            inside = entry.filename.partition("/")[2]
            if inside in ("data.pkl", "version", "byteorder") or inside.startswith("data/"):
                kept.writestr(f"archive/{inside}", archive.read(entry))
    content = plain.getvalue()
    stubs: dict[str, type] = {f"torch.jit._pickle.{name}": _List for name in _SCRIPT_LISTS}
    stubs["torch.jit._pickle.restore_type_tag"] = _List
    stubs |= {name: type("Empty", (_Empty,), {}) for name in _foreign_classes(content) if name.startswith("__torch__.")}
    tree, _ = _load_torch(path, content, stubs)
    return _named_tensors(path, tree)


class _List(list[Any]):
    """A list that a script's pickle builds; of a tagged value only the value counts."""

    def __init__(self, values: Any = (), tag: Any = None) -> None:
        super().__init__(values if isinstance(values, (list, tuple)) else [values])


_MOST_NAMES = 100_000


def _named_tensors(path: Path, tree: Any) -> dict[str, Tensor]:
    """Attributes joined by dots → tensors. A file may hold objects in a circle, or one object in millions of places."""
    named: dict[str, Tensor] = {}
    open_, seen = [("", tree, 0)], 0
    while open_:
        name, thing, depth = open_.pop()
        seen += 1
        if seen > _MOST_NAMES:
            raise CheckpointError(f"{path} holds objects that hold each other, without end: {SAVE_WEIGHTS}.")
        if isinstance(thing, Tensor):
            named[name] = thing
        elif isinstance(thing, _Empty) and depth < _LEVELS:
            parts = [(f"{name}.{part}" if name else part, value, depth + 1) for part, value in vars(thing).items()]
            open_ += reversed(parts)
    return named
