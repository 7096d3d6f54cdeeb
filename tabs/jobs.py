"""A visitor's file is converted in a child process: limits, a line to wait in, folders that nobody can guess, and
their end.

The child (tabs/worker.py) works in a folder of its own outside gradio's, which goes when it ends; only the files that
were asked for are copied out of it, into a new folder under gradio's cache, which goes within the hour. What the child
says is not trusted either: it read a stranger's file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from seqexport import errors
from seqexport.errors import FileError, InputError, SeqExportError
from seqexport.isolation import ending
from seqexport.terminal import one_line
from tabs import deadlines

ROOT = Path(__file__).parents[1]
SECONDS = 180.0  # that a job may take in all, and of the processor's time
LONGEST = 900.0  # with the time that it waits for others
MEMORY = 3 << 30  # a small net takes 1 GiB of addresses, most of it libraries
MOST_UPLOAD = 20 << 20
MOST_FILE = 256 << 20  # bytes of a file that is written; weights in half precision become four times as many
MOST_SAID = 8 << 20  # bytes of what a child says
MOST_FILES = 24
KEPT = 40 * 60.0  # seconds that uploads and results are kept; looked for every SWEEP seconds
SWEEP = 5 * 60.0
PREFIX = "seqexport-job-"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".ts", ".onnx")
_WRITTEN = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[a-z0-9]{1,12}){0,3}\.(onnx|html|json|py)", re.ASCII)
# Of the server's environment the child gets these alone: others may be secrets.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "MPLCONFIGDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "SYSTEMROOT")
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SeqExportError) and kind is not errors.ParityError
}


_UNCLEAR = "{file} made its process say what can't be understood: do not trust it."


class Line:
    """One works, at most `most` wait, and whoever comes then is told so."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._here: list[object] = []

    @contextlib.contextmanager
    def place(self) -> Iterator[Any]:
        """A place in the line → a function that tells how many are before it. Raises InputError if there is none."""
        me = object()
        with self._lock:
            if len(self._here) > self.most:
                raise InputError(
                    f"One file is being read and {self.most} wait already, which is all that this machine takes on: "
                    "try again in a minute."
                )
            self._here.append(me)
        try:
            yield lambda: self._here.index(me)
        finally:
            with self._lock:
                self._here.remove(me)


INSPECTIONS, CONVERSIONS = Line(8), Line(4)


@dataclass(frozen=True)
class Result:
    """What came of a conversion: the child's report, graphs and programs, and the paths of the files to download, the
    archive of them all first. `sentence` says why there are none."""

    report: Mapping[str, Any]
    sentence: str = ""
    graphs: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()


def plain_name(name: str) -> str:
    """A visitor's file name as one that can't mean anything: letters, digits, _ and -, and a suffix of checkpoints."""
    path = Path(name.replace("\\", "/").replace("\0", ""))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:40].strip("_-") or "net"
    return stem + (path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".pt")


def uploaded(file: Any) -> Path:
    """The path of an uploaded file, as a component or an endpoint gives it. Raises InputError for anything else: what
    a program sends may name any path of this machine."""
    path = file.get("path") if isinstance(file, dict) else file
    if not isinstance(path, str) or not path:
        raise InputError("There is no checkpoint yet: upload one, or take an example.")
    place = Path(os.path.realpath(path.replace("\0", "")))
    if not place.is_relative_to(os.path.realpath(get_upload_folder())):
        raise InputError("The checkpoint is not a file that was uploaded; expected one: upload it first.")
    if not place.is_file():
        raise InputError("The checkpoint is not there any more: files are deleted within the hour, so upload it again.")
    if place.stat().st_size > MOST_UPLOAD:
        raise InputError(
            f"The checkpoint has {place.stat().st_size:,} bytes; expected at most {MOST_UPLOAD:,} here: "
            "on your own machine, python -m seqexport takes more."
        )
    return place


def inspect(path: Path) -> Iterator[dict[str, Any]]:
    """What the file is, read in a child: {"waiting": n} while others are before it, and at last {"found": …}."""
    with INSPECTIONS.place() as ahead, _folder(tempfile.gettempdir()) as folder:
        yield from _waited(ahead)
        yield from _said(_job(folder, path, do="inspect"))


def convert(path: Path, options: Mapping[str, Any]) -> Iterator[dict[str, Any] | Result]:
    """Convert the file in a child: {"waiting": n} while others are before it, {"stage": …}, and at last a Result.

    options: state, precision, text, and nonlinearity, time_major and head, None where they are not asked.
    Raises the SeqExportError that the child ended with, or FileError for how it ended.
    """
    _sweep_from_now_on()
    with CONVERSIONS.place() as ahead, _folder(tempfile.gettempdir()) as folder:
        yield from _waited(ahead)
        job = _job(folder, path, do="convert", options=dict(options))
        for thing in _said(job):
            if "report" in thing:
                yield Result(thing["report"], one_line(str(thing["error"])))
            elif "done" in thing:
                done = thing["done"]
                if not isinstance(done, dict) or not {"report", "graphs", "programs"} <= done.keys():
                    raise FileError(_UNCLEAR.format(file=job["file"]))
                yield Result(done["report"], "", done["graphs"], done["programs"], _delivered(folder, job))
            else:
                yield thing


def _waited(ahead: Any) -> Iterator[dict[str, Any]]:
    while before := ahead():
        deadlines.check()
        yield {"waiting": before}
        time.sleep(0.3)


@contextlib.contextmanager
def _folder(parent: str | Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # for this user alone, with a name that none can guess
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _job(folder: Path, path: Path, **what: Any) -> dict[str, Any]:
    name = plain_name(path.name)
    try:
        shutil.copyfile(path, folder / name)
    except OSError as error:
        raise FileError(f"The checkpoint could not be read ({error.strerror}): upload it again.") from error
    stem = Path(name).stem + ("_converted" if name.endswith(".onnx") else "")
    limits = {"memory": MEMORY, "seconds": int(SECONDS), "bytes": MOST_FILE}
    return {"folder": str(folder), "file": name, "output": f"{stem}.onnx", **limits, **what}


def _said(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each thing that the child says. Raises what it says is wrong, and FileError for a child that was stopped."""
    child = _taken()
    _give(child, job)
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(child, lines), daemon=True).start()
    end, size = time.monotonic() + SECONDS, 0
    try:
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(1.0, end - time.monotonic())))
            except queue.Empty:
                if time.monotonic() < end:
                    yield {}  # so that whoever listens may leave
                    continue
                raise FileError(
                    f"{job['file']} took more than {SECONDS:.0f} s and was stopped; expected a net that takes less "
                    "here: on your own machine, python -m seqexport has no such limit."
                ) from None
            if line is None:
                break
            size += len(line)
            thing = _understood(line) if size <= MOST_SAID else None
            if thing is None:
                raise FileError(_UNCLEAR.format(file=job["file"]))
            if "error" in thing and "report" not in thing:
                raise _KINDS.get(str(thing.get("kind")), FileError)(one_line(str(thing["error"])))
            yield thing
            if thing.keys() & {"found", "done", "report"}:
                return
        how = ending(child.wait()) or "ended its process"
        raise FileError(f"{job['file']} {how}; expected a file that opens: it is damaged or hostile, or too large.")
    finally:
        _stop(child)
        prepare()


_spare: list[subprocess.Popen[bytes]] = []  # a child that has its libraries already and waits for its one job
_spare_lock = threading.Lock()


def prepare() -> None:
    """Have a child ready for the next job: what it imports takes longer than most files do."""
    with _spare_lock, contextlib.suppress(FileError):
        if not _spare or _spare[0].poll() is not None:
            _spare[:] = [_start()]


def retire() -> None:
    """End the child that waits for a job, if there is one."""
    with _spare_lock:
        for child in _spare:
            _stop(child)
        _spare.clear()


atexit.register(retire)


def _taken() -> subprocess.Popen[bytes]:
    """The child that waits, or a new one; each does one job."""
    with _spare_lock:
        child = _spare.pop() if _spare else None
    if child is not None and child.poll() is None:
        return child
    return _start()


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tabs.worker"],  # -P: nothing is imported from the folder of the job
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that all it starts can be ended with it
        )
    except OSError as error:
        raise FileError(f"No process could be started ({error.strerror}): try again in a minute.") from error


def _give(child: subprocess.Popen[bytes], job: Mapping[str, Any]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError):  # it ended: whoever listens to it will notice
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.close()


def _read(child: subprocess.Popen[bytes], lines: queue.Queue[bytes | None]) -> None:
    """The child's lines into the queue, at most a little more than it may say."""
    assert child.stdout is not None
    left = MOST_SAID + 1
    with contextlib.suppress(OSError, ValueError):  # closed by whoever stopped the child
        while left > 0 and (line := child.stdout.readline(left)):
            left -= len(line)
            lines.put(line)
    lines.put(None)


def _understood(line: bytes) -> dict[str, Any] | None:
    try:
        thing = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return thing if isinstance(thing, dict) else None


def _stop(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _delivered(folder: Path, job: Mapping[str, Any]) -> list[str]:
    """Copy what was written to where gradio serves from, with an archive of it all, and give the paths, the archive's
    first. Only plain files with names of ours: a child that was taken over could leave links."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if _WRITTEN.fullmatch(entry.name)
            and entry.name != job["file"]
            and entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_size <= MOST_FILE
        )[:MOST_FILES]
    names.sort(key=lambda name: (not name.endswith(".onnx"), name))
    target = Path(get_upload_folder()) / f"{PREFIX}{secrets.token_hex(16)}"
    target.mkdir(parents=True, mode=0o700)
    archive = target / f"{Path(job['output']).stem}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name in names:
            shutil.copyfile(folder / name, target / name, follow_symlinks=False)
            packed.write(target / name, name)
    return [str(archive), *(str(target / name) for name in names)]


def sweep(older_than: float) -> None:
    """Delete the folders of jobs that are older than so many seconds, those of servers that were killed too."""
    for parent in {tempfile.gettempdir(), get_upload_folder()}:
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(parent)):
                ours = re.fullmatch(re.escape(PREFIX) + r"\w{8,32}", entry.name) and entry.is_dir(follow_symlinks=False)
                with contextlib.suppress(OSError):
                    if ours and time.time() - entry.stat(follow_symlinks=False).st_ctime > older_than:
                        shutil.rmtree(entry.path, ignore_errors=True)


def _sweep_from_now_on() -> None:
    """Sweep every SWEEP seconds, in a thread of its own, which the first job starts."""
    with _sweeping:
        if not any(thread.name == "sweeper" for thread in threading.enumerate()):
            threading.Thread(target=_sweep_for_ever, name="sweeper", daemon=True).start()


_sweeping = threading.Lock()


def _sweep_for_ever() -> None:
    while True:
        sweep(KEPT)
        time.sleep(SWEEP)
