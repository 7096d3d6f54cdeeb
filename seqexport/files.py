"""Files: what kind one is, by its first bytes, and how one is put in place.

Put in place in one step: written beside, flushed, then replaced. Whoever reads sees the old file or the new one, whole.
"""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

from seqexport.errors import FileError


def is_checkpoint(path: Path) -> bool:
    """Whether the file looks like a checkpoint rather than an ONNX model, told by its first bytes."""
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror}): give a checkpoint or an ONNX file.") from error
    return start[:2] == b"PK" or start[:1] == b"\x80" or is_safetensors(start, size)


def is_safetensors(start: bytes, size: int) -> bool:
    """Eight bytes with the length of a JSON header, and the header."""
    return len(start) >= 9 and start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= size - 8


_WRITTEN: set[tuple[int, int, int, int]] = set()


def _identity(path: Path) -> tuple[int, int, int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def was_written_here(path: Path) -> bool:
    """Whether this very process wrote the file as it stands."""
    return _identity(path) in _WRITTEN


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
    check_destination(path)
    name = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            name = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name.chmod(0o666 & ~_umask())
        _WRITTEN.add(_identity(name))  # a file that is moved into its place keeps all four
    except OSError as error:
        if name is not None:
            name.unlink(missing_ok=True)
        raise FileError(f"{path} could not be written ({error.strerror}): check permissions and free space.") from error
    return name


def check_destination(path: Path) -> None:
    """Raise FileError where no file can be put: a folder that is not there or not writable, or a folder itself."""
    if not path.parent.is_dir():
        raise FileError(f"The folder {path.parent} does not exist: create it, or choose another output.")
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected the path of a file to write.")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"The folder {path.parent} is not writable: change its permissions, or choose another output.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
