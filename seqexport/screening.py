"""What can be told of a checkpoint's bytes without torch: an archive's checksums, and what its pickles ask for.

Nothing is executed or allocated here. What torch would read beyond the file's bytes, or make out of a few of them, is
refused before torch sees it: torch.load believes the sizes that a pickle declares.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from seqexport.errors import CheckpointError

SAVE_WEIGHTS = 'save its weights with torch.save(model.state_dict(), "weights.pt")'

_CHUNK = 1 << 20
# Tuples may be keys, and Python's hash of one nested some ten thousand deep ends the process; files have five or so.
_DEEPEST = 100
_LEGACY_PICKLES = 5  # magic number, protocol, system, the content, the keys of its storages
_ITEM_BYTES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "QInt32": 4}
_ITEM_BYTES |= {"Half": 2, "BFloat16": 2, "Short": 2}  # all others have one


def screen(path: Path, content: bytes) -> list[str]:
    """Check what torch.load will be given; the names of an archive's entries, none for the older format.

    Raises CheckpointError for an archive that is damaged or of another kind, and for pickles that ask for more memory
    than the file has, or that nest too deep.
    """
    if not content.startswith(b"PK"):
        _check_pickle(path, io.BytesIO(content), _LEGACY_PICKLES, None, len(content))
        return []
    names = _checked_names(path, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
        for name in names:
            if name.lower().endswith("data.pkl"):
                _check_pickle(path, io.BytesIO(archive.read(name)), 1, sizes, len(content))
    return names


def _checked_names(path: Path, content: bytes) -> list[str]:
    """The names of an archive's entries, after the checksums of all that is read from it were tested."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_kind(path, [entry.filename for entry in entries])
            read = [entry for entry in entries if entry.filename.split("/")[1:2] != ["code"]]
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
    names = [entry.filename for entry in entries]
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is an archive without a checkpoint in it: expected what torch.save writes.")
    return names


def _check_kind(path: Path, names: list[str]) -> None:
    if any(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is an archive of numpy arrays: {SAVE_WEIGHTS}.")
    if any(name.split("/")[1:3] == [".data", "extern_modules"] for name in names):
        raise CheckpointError(f"{path} is a torch.package archive, whose code would have to run: {SAVE_WEIGHTS}.")
    if "model.weights.h5" in names:
        raise CheckpointError(f"{path} is a Keras file; seqexport reads PyTorch's.")
    inside = [name.partition("/")[2] or name for name in names]
    if len({name.lower() for name in inside}) < len(names):  # torch's own reader does not tell case apart
        raise CheckpointError(f"{path} is a damaged archive: it has an entry twice; copy or save it again.")


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


def _check_pickle(path: Path, file: BinaryIO, count: int, sizes: Mapping[str, int] | None, limit: int) -> None:
    """Walk the opcodes of `count` pickles in a row, as far as they are ones that torch executes.

    sizes: entry → its bytes, of an archive; limit: of what a storage may have where there are no entries.
    """
    try:
        for _ in range(count):
            for callable_, arguments in _Walk(path).calls(file):
                if callable_ == "storage":
                    _check_storage(path, arguments, sizes, limit)
                elif callable_.startswith("torch._utils.") and _has_list(arguments):
                    raise CheckpointError(f"{path} gives a list where a tensor has its shape: {SAVE_WEIGHTS}.")
                elif arguments != () and _makes_memory(callable_):
                    raise CheckpointError(
                        f"{path} would make a {callable_} out of a size alone; expected tensors with their values: "
                        f"{SAVE_WEIGHTS}."
                    )
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError):
        return  # not a pickle, or broken from here on: torch stops here too, and says what is wrong


def _has_list(what: Any) -> bool:
    """Torch prints arguments that it refuses, and lists may hold each other over and over."""
    return what is list or isinstance(what, tuple) and any(map(_has_list, what))


def _makes_memory(name: str) -> bool:
    """Whether calling it with a number gives so many bytes; torch.load calls these without a question."""
    return name.endswith("bytearray") or (name.startswith("torch.") and name.endswith(("Tensor", "Storage")))


def _check_storage(path: Path, arguments: Any, sizes: Mapping[str, int] | None, limit: int) -> None:
    """("storage", "torch FloatStorage", key, device, count): torch reads beyond an entry that is too short."""
    kind, key, count = arguments[1], arguments[2], arguments[4]
    there = limit if sizes is None else sizes.get(f"data/{key}", 0)
    item = _ITEM_BYTES.get(str(kind).rpartition(".")[2].removesuffix("Storage"), 1)
    if not isinstance(count, int) or not 0 <= count * item <= there:
        raise CheckpointError(
            f"{path} is damaged: its part {key!r} should have {count} values of {item} bytes, but has {there} bytes; "
            "copy or save it again."
        )


class _Global(str):
    """A name that the pickle looks up, apart from a text that it holds."""


class _Walk:
    """The stack of an unpickler with (depth, what) for each value; what: a constant, a global's name, a tuple of these,
    or None for what is of no matter here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[tuple[int, Any]] = []
        self.marks: list[list[tuple[int, Any]]] = []
        self.memo: dict[int, tuple[int, Any]] = {}

    def calls(self, file: BinaryIO) -> Iterator[tuple[str, Any]]:
        """Each call that the pickle asks for, with its arguments, before it happens."""
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in ("REDUCE", "NEWOBJ"):
                (depth, arguments), (_, called) = self.stack.pop(), self.stack.pop()
                if not isinstance(called, _Global):  # torch prints it, and lists may hold each other over and over
                    raise CheckpointError(f"{self.path} calls what is no function: {SAVE_WEIGHTS}.")
                yield called, arguments
                self.stack.append((depth + 1, None))
            elif name == "BINPERSID":
                depth, arguments = self.stack.pop()
                if _has_list(arguments):
                    raise CheckpointError(f"{self.path} gives a list where a storage has its name: {SAVE_WEIGHTS}.")
                if isinstance(arguments, tuple) and arguments[:1] == ("storage",):
                    yield "storage", arguments
                self.stack.append((0, None))
            else:
                self._step(name, argument)

    def _step(self, name: str, argument: Any) -> None:
        if name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
            self._check_depth(len(self.marks))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self._tuple(self._to_mark() if name == "TUPLE" else self._last(int(name[-1])))
        elif name in ("APPENDS", "SETITEMS"):
            self._to_mark()
        elif name in ("APPEND", "BUILD"):
            self._last(1)
        elif name == "SETITEM":
            self._last(2)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append((0, _Global(str(argument).replace(" ", ".", 1))))
        elif name == "EMPTY_LIST":
            self.stack.append((0, list))
        elif name == "EMPTY_TUPLE":
            self.stack.append((0, ()))
        elif name not in ("PROTO", "STOP"):  # a constant, or an empty list, dict or set
            self.stack.append((0, argument))

    def _last(self, count: int) -> list[tuple[int, Any]]:
        values = self.stack[-count:]
        del self.stack[-count:]
        if len(values) < count:
            raise IndexError(count)
        return values

    def _to_mark(self) -> list[tuple[int, Any]]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def _tuple(self, values: list[tuple[int, Any]]) -> None:
        depth = 1 + max((depth for depth, _ in values), default=0)
        self._check_depth(depth)
        # Only a storage's and a call's arguments are looked at, which have a handful and no tuples of tuples.
        self.stack.append((depth, tuple(what for _, what in values) if len(values) <= 8 and depth <= 3 else None))

    def _check_depth(self, depth: int) -> None:
        if depth > _DEEPEST:
            raise CheckpointError(f"{self.path} nests its values more than {_DEEPEST} deep: {SAVE_WEIGHTS}.")
