"""Files: what kind one is, by its first bytes, and how one is put in place.

Put in place in one step: written beside, flushed, then renamed. Whoever reads sees the old file or the new one, whole,
also after a kill -9. What a killed process leaves beside a destination goes when something is next written there: a
lock, which ends with its process however that dies, tells it from what a live process still needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from seqexport.errors import FileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DRAFT_SUFFIX = ".seqexport.tmp"  # ours alone, since such files are deleted unasked
ABANDONED_SECONDS = 24 * 3600.0  # where no lock can tell: longer than any export takes
TURN_SECONDS = 10.0  # renaming takes microseconds; whoever holds the folder longer is not one of us

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
    errno.ENAMETOOLONG: "choose a shorter name",
}


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


@dataclass
class Draft:
    """A new file, hidden beside its destination, until `put_in_place` renames it or `drop` deletes it.

    path: the destination as the caller names it. target: the same behind links. file: where the content lies now.
    lock: a descriptor whose lock says that the draft is needed; None where there are no such locks.
    """

    path: Path
    target: Path
    file: Path
    lock: int | None

    def drop(self) -> None:
        """Delete what has not been put in place, and let go of the lock."""
        with contextlib.suppress(OSError):
            self.file.unlink()
        self.unlock()

    def unlock(self) -> None:
        """Let go of the lock: the next that writes to the same destination may delete the draft."""
        if self.lock is not None:
            os.close(self.lock)
        self.lock = None


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: whoever reads sees the old file or the new one, whole.

    Raises FileError, with an older file untouched, where check_destination does or the disk is full.
    """
    draft = write_beside(path, content)
    try:
        put_in_place([draft])
    finally:
        draft.drop()


def write_beside(path: Path, content: bytes | Callable[[BinaryIO], None]) -> Draft:
    """Write `content`, flushed to the disk, to a new hidden file beside `path`; the caller drops the draft in the end.

    content: the bytes, or what writes them into the open file, for more than memory should hold.
    Drafts that killed processes left for the same destination are deleted. Raises FileError.
    """
    check_destination(path)
    draft = None
    try:
        draft = _new_draft(path)
        assert draft.lock is not None
        with open(draft.lock, "wb", closefd=False) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        _WRITTEN.add(_identity(draft.file))  # a file that is moved into its place keeps all four
    except BaseException as error:
        if draft is not None:
            draft.drop()
        if not isinstance(error, OSError):
            raise
        advice = _ADVICE.get(error.errno or 0, "check permissions and free space")
        raise FileError(f"{path} could not be written ({error.strerror}): {advice}.") from error
    if fcntl is None:
        draft.unlock()  # Windows renames no open files
    return draft


def put_in_place(drafts: Sequence[Draft]) -> None:
    """Rename the drafts to their destinations, one right after the other, so that files that belong together change so.

    A kill -9 between two renames leaves a mixed pair, which loading reports and the next export replaces; Ctrl-C and
    SIGTERM wait for the last. Raises FileError, with the older files back in their places, where one can't be replaced.
    """
    for draft in drafts:
        check_destination(draft.path)  # which may have changed since the draft was begun
    with contextlib.ExitStack() as turns:
        for folder in sorted({draft.target.parent for draft in drafts}):  # in one order, so that no two wait in a ring
            turns.enter_context(_turn(folder))
        former = [_second_name(draft) for draft in drafts[:-1]]
        try:
            with _signals_later():
                _rename(drafts, former)
        finally:
            for name in former:
                name.drop()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file's lock, so that of two processes at the same work the second gets a FileError; a dead one holds none.

    The file is made where it is missing, and stays.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"{path} could not be opened ({error.strerror}): check permissions.") from error
    try:
        if _lock(descriptor, patience=0) is False:
            raise FileError(f"Another process is at work in {path.parent}: wait for it, or choose another output.")
        yield
    finally:
        os.close(descriptor)


def write_folder(folder: Path, contents: Mapping[str, bytes], mark: str) -> list[Path]:
    """Put files into a folder of their own, all of them or none, and give their paths.

    contents: path in the folder → bytes, README.md first, in which `mark` stands: by it the next call knows that the
    folder is one of its own and may be replaced. Raises FileError, with the older files untouched, for a folder with
    anything else in it, hidden files apart, and where a file can't be written.
    """
    _check_own(folder, contents, mark)
    made: list[Path] = []
    drafts: list[Draft] = []
    try:
        for name, content in contents.items():
            made += _folders_made((folder / name).parent)
            drafts.append(write_beside(folder / name, content))
        put_in_place(drafts)
    finally:
        for draft in drafts:
            draft.drop()
        for place in reversed(made):
            with contextlib.suppress(OSError):  # what has files in it stays
                place.rmdir()
    return [folder / name for name in contents]


def _check_own(folder: Path, contents: Mapping[str, bytes], mark: str) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileError(f"{folder} is a file; expected a folder, or a path where one can be made.")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    seen = {name for name in there if not any(part.startswith(".") for part in name.split("/"))}
    readme = folder / "README.md"
    ours = readme.is_file() and mark in readme.read_text(encoding="utf-8", errors="replace")
    foreign = sorted(seen - contents.keys()) if ours else sorted(seen)
    if foreign:
        raise FileError(
            f"{folder} holds {foreign[0]}, which is not of what would be written there: give a new or an empty folder."
        )


def _folders_made(folder: Path) -> list[Path]:
    """Make the folder and those above it, and give those that were not there, the uppermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"The folder {folder} could not be made ({error.strerror}): check permissions, or choose another."
        ) from error
    return missing


def check_destination(path: Path) -> None:
    """Raise FileError where no file can be put.

    That is where the folder is missing or not writable, and over a folder, a device, a pipe or a read-only file. A link
    is followed, so that it stays a link.
    """
    try:
        target, mode = _behind_links(path), _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            raise FileError(f"{path} is a folder; expected the path of a file to write.")
        if mode is not None and not stat.S_ISREG(mode):
            raise FileError(f"{path} is a device, a pipe or a socket; expected a file: choose another output.")
        if not target.parent.is_dir():
            raise FileError(f"The folder {target.parent} does not exist: create it, or choose another output.")
    except OSError as error:
        raise FileError(f"{path} could not be reached ({error.strerror}): choose another output.") from error
    if not os.access(target.parent, os.W_OK):
        raise FileError(
            f"The folder {target.parent} is not writable: change its permissions, or choose another output."
        )
    if mode is not None and not os.access(target, os.W_OK):
        raise FileError(f"{path} is read-only: change its permissions, or choose another output.")


def _behind_links(path: Path) -> Path:
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except RuntimeError:  # how Python before 3.13 says that links go in a ring
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def _mode(path: Path) -> int | None:
    """The mode of what is at `path`, None where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _new_draft(path: Path) -> Draft:
    """An empty, locked file beside `path`, open for writing, once abandoned ones are gone."""
    target = _behind_links(path)
    _sweep(target)
    while True:
        file = _draft_name(target)
        # O_RDWR, since locks over NFS want a file that can be written.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        draft = Draft(path, target, file, os.open(file, flags, 0o666))
        assert draft.lock is not None
        _lock(draft.lock, TURN_SECONDS)
        if file.exists():
            _keep_access(target, draft.lock)
            return draft
        draft.unlock()  # another's sweep came between creating and locking


def _draft_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}{DRAFT_SUFFIX}")


def _keep_access(target: Path, descriptor: int) -> None:
    """Give a file that replaces another its owner and mode; all or nothing, or the owner might be locked out."""
    if not hasattr(os, "fchown"):
        return
    with contextlib.suppress(OSError):
        about = target.stat()
        os.fchown(descriptor, about.st_uid, about.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(about.st_mode) & 0o777)


def _sweep(target: Path) -> None:
    """Delete the drafts for `target` that no live process holds."""
    ours = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(DRAFT_SUFFIX))
    with contextlib.suppress(OSError):  # a folder that can be written but not listed
        for entry in list(os.scandir(target.parent)):
            if ours.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # gone by now, or another user's
                    _delete_abandoned(Path(entry.path))


def _delete_abandoned(file: Path) -> None:
    age = time.time() - file.lstat().st_mtime
    if fcntl is None:
        if age > ABANDONED_SECONDS:
            file.unlink()
        return
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        locked = _lock(descriptor, patience=0)
        if locked or (locked is None and age > ABANDONED_SECONDS):
            file.unlink()  # while the lock is held: whoever made it and waits for the lock will see that it is gone
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience: float) -> bool | None:
    """Lock what is open, within `patience` seconds. None where the system or the file system has no such locks."""
    if fcntl is None:
        return None
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.0005)
        except OSError:
            return None
        else:
            return True


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Have the folder to oneself among seqexport's processes, so that racing pairs don't mix; flush it in the end."""
    descriptor = None
    with contextlib.suppress(OSError):  # Windows, or a folder that can't be read: each file is still replaced whole
        descriptor = os.open(folder, os.O_RDONLY)
    if descriptor is None:
        yield
        return
    try:
        _lock(descriptor, TURN_SECONDS)
        yield
        with contextlib.suppress(OSError):
            os.fsync(descriptor)  # else a power cut might bring the older name back
    finally:
        os.close(descriptor)


def _second_name(draft: Draft) -> Draft:
    """A second name for what a draft is about to replace, to bring it back by; none where that can not be linked."""
    second = Draft(draft.path, draft.target, _draft_name(draft.target), None)
    with contextlib.suppress(OSError):
        second.file.hardlink_to(draft.target)
    return second


def _rename(drafts: Sequence[Draft], former: Sequence[Draft]) -> None:
    existed = [draft.target.exists() for draft in drafts]
    for done, draft in enumerate(drafts):
        try:
            draft.file.replace(draft.target)
        except OSError as error:
            for second, was_there in list(zip(former, existed, strict=False))[:done]:
                with contextlib.suppress(OSError):
                    second.file.replace(second.target) if was_there else second.target.unlink()
            raise FileError(f"{draft.path} could not be replaced ({error.strerror}): check its permissions.") from error


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait. By handlers, since a mask would leave the signal to torch's threads."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    former = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers, and no other is interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # None: set by another language, and could not be put back
                former[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for caught in came:
            signal.raise_signal(caught)
