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
from collections.abc import Iterator, Mapping
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

EXPORT_LIVE = "export the module with --module FILE.py:CLASS, or with seqexport.export(model, path, inputs=…)"
SAVE_WEIGHTS = 'save its weights with torch.save(model.state_dict(), "weights.pt")'

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
        names = _checked_names(path, content)
        if any(name.split("/")[1:2] == ["code"] for name in names):
            return "TorchScript archive", _torchscript_weights(path, content), ()
        return "torch archive", *_load_torch(path, content)
    if content.startswith(b"\x80"):  # the older format of torch.save is a row of pickles
        return "torch file of the older format", *_load_torch(path, content)
    if is_safetensors(content[:9], len(content)):
        return SAFETENSORS, _load_safetensors(path, content), ()
    raise CheckpointError(f"{path} is not a checkpoint but {_other(content)}: expected what torch.save writes.")


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


_CHUNK = 1 << 20


def _checked_names(path: Path, content: bytes) -> list[str]:
    """The names of an archive's entries, after the checksums of all that is read from it were tested."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            read = [entry for entry in entries if entry.filename.split("/")[1:2] != ["code"]]
            if any(name.endswith(".npy") for name in names):
                raise CheckpointError(f"{path} is an archive of numpy arrays: {SAVE_WEIGHTS}.")
            if any(name.split("/")[1:3] == [".data", "extern_modules"] for name in names):
                raise CheckpointError(
                    f"{path} is a torch.package archive, whose code would have to run: {SAVE_WEIGHTS}."
                )
            if "model.weights.h5" in names:
                raise CheckpointError(f"{path} is a Keras file; seqexport reads PyTorch's.")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in read):
                raise CheckpointError(f"{path} is a compressed archive; expected the plain one that torch.save writes.")
            if sum(entry.file_size for entry in read) > len(content):
                raise CheckpointError(f"{path} is a damaged archive: its entries overlap; copy or save it again.")
            damaged = next((entry.filename for entry in read if not _is_whole(archive, entry)), None)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}): copy or save it again.") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its entry {damaged} is wrong; copy or save it again."
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is an archive without a checkpoint in it: expected what torch.save writes.")
    return names


def _is_whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as file:
            while file.read(_CHUNK):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" in str(error):
            return False
        raise
    return True


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
    return dict(_named_tensors(tree, ""))


class _List(list[Any]):
    """A list that a script's pickle builds; of a tagged value only the value counts."""

    def __init__(self, values: Any = (), tag: Any = None) -> None:
        super().__init__(values if isinstance(values, (list, tuple)) else [values])


def _named_tensors(thing: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(thing, Tensor):
        yield name, thing
    elif isinstance(thing, _Empty) and depth < 40:  # a file may hold objects in a circle
        for attribute, value in vars(thing).items():
            yield from _named_tensors(value, f"{name}.{attribute}" if name else attribute, depth + 1)
