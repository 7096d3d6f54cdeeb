"""Open a file from outside in a child process first, with limits of memory and time: what ends the child is a sentence
here.

onnxruntime ends the process at some files, and a small file can ask for more memory than there is. The child does what
is dangerous, and without torch: it walks a checkpoint's archive and pickles, parses an ONNX file, looks at what it
declares, and makes the session. Linux has both limits, macOS that of time; elsewhere
only the wait is limited.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seqexport.errors import CheckpointError, FileError, SeqExportError, UnsupportedError
from seqexport.files import is_checkpoint, is_safetensors, was_written_here
from seqexport.screening import screen

if TYPE_CHECKING:
    import onnx

Kind = Literal["parse", "session"]

SECONDS = 60.0
MEMORY = 3 << 30
# Beyond these, a file has as many times its own bytes: a session holds weights twice while it rearranges them.
_TIMES_THE_FILE = 6
_SECONDS_A_GIB = 30.0

# What onnxruntime's own builds know. A model's own functions have domains of their own.
_DOMAINS = (
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "org.pytorch.aten",
)
_MOST_BODIES = 12  # graphs within graphs; a pipeline's file has two


class Opening:
    """A child that opens the file; `finish` waits for it.

    kind: "parse" for what is only looked at, "session" for what is run. A file that this process itself wrote is not
    opened, nor is one that is not there, which whoever reads it says.
    """

    def __init__(self, path: str | os.PathLike[str], kind: Kind = "session", *, seconds: float = SECONDS) -> None:
        self.path = Path(path)
        self._child: subprocess.Popen[bytes] | None = None
        if not self.path.is_file() or was_written_here(self.path):
            return
        size = self.path.stat().st_size
        self.seconds = seconds + _SECONDS_A_GIB * size / (1 << 30)
        limits = json.dumps([MEMORY + _TIMES_THE_FILE * size, int(self.seconds)])
        command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), kind, str(self.path), limits]
        with contextlib.suppress(OSError):  # where no process can be made, the file is opened here alone
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )

    def finish(self) -> None:
        """Raise what the child found wrong with the file, or FileError for how the child ended."""
        if self._child is None:
            return
        try:
            answer = self._child.communicate(timeout=self.seconds)[0]
        except subprocess.TimeoutExpired:
            self.stop()
            raise FileError(f"{self.path} was not opened within {self.seconds:.0f} s{_EXPECTED}") from None
        finally:
            self.stop()
        if how := ending(self._child.returncode):
            raise FileError(f"{self.path} {how} when it was opened in a process of its own{_EXPECTED}")
        said = json.loads(answer or b"{}")
        if said.get("kind") in _ERRORS:
            raise _ERRORS[said["kind"]](said["error"])

    def stop(self) -> None:
        """End the child, if it is still there."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        if self._child is not None and self._child.stdout is not None:
            self._child.stdout.close()


_EXPECTED = "; expected a file that opens: it is damaged or hostile, so get it anew from whoever made it."
_ERRORS = {error.__name__: error for error in (CheckpointError, FileError, UnsupportedError)}
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from seqexport.isolation import child; child()"


def ending(code: int) -> str:
    """How a file ended the child; nothing where it did not, or where Python itself could not do its work there."""
    if code < 0:
        name = signal.Signals(-code).name
        killed = name in ("SIGXCPU", "SIGKILL")
        return "took too long or too much memory" if killed else f"ended the process by {name}"
    return f"ended the process with exit code {hex(code)}" if code > 255 else ""  # as Windows tells of a crash


def open_apart(*paths: str | os.PathLike[str], kind: Kind = "session") -> None:
    """Open each file in a child of its own, side by side, and return when all opened, or raise why one did not."""
    openings = [Opening(path, kind) for path in paths]
    try:
        for opening in openings:
            opening.finish()
    finally:
        for opening in openings:
            opening.stop()


def child() -> None:
    """The child's side: limits, then the file, then one line of JSON."""
    kind, path, (memory, seconds) = sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    limit_process(memory, seconds)
    said = {"kind": "", "error": ""}
    try:
        _open(path, kind)
    except SeqExportError as error:
        said = {"kind": type(error).__name__, "error": str(error)}
    except MemoryError:
        said = {"kind": "FileError", "error": f"{path} asks for more than {memory >> 20:,} MiB of memory{_EXPECTED}"}
    except Exception:  # whatever it is, it is no crash: it happens again, and is said, where the file is read
        pass
    print(json.dumps(said), flush=True)
    os._exit(0)


def limit_process(memory: int, seconds: int) -> None:
    """Limit this process to so many bytes of memory and seconds of the processor's time, as far as the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # the user's own limit is lower, or macOS has it not
            resource.setrlimit(limit, (value, value))


def _open(path: Path, kind: str) -> None:
    if is_checkpoint(path):
        content = path.read_bytes()
        if is_safetensors(content[:9], len(content)):
            return  # its reader is bounded by the file's own bytes
        screen(path, content)
        return
    model = parse_onnx(path)
    if kind == "session":
        check_structure(path, model)
        _make_session(path)


def parse_onnx(path: Path) -> onnx.ModelProto:
    """The model of an ONNX file, without what lies in other files. Raises FileError for anything else."""
    import onnx

    try:
        model = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror}): give an ONNX file.") from error
    except Exception as error:  # protobuf's decoding errors have no public base
        raise FileError(f"{path} is neither a checkpoint nor an ONNX file.") from error
    if not model.graph.node:
        raise FileError(f"{path} is neither a checkpoint nor an ONNX file with a graph in it.")
    return model


def _make_session(path: Path) -> None:
    """onnxruntime's refusal is left to whoever loads the file, who says it the same with and without a child."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "bad_alloc" in str(error) or "allocate" in str(error).lower():
            raise MemoryError from error


def check_structure(path: Path, model: onnx.ModelProto) -> None:
    """Raise FileError or UnsupportedError for what no session should be made of: weights in files outside the model's
    folder, tensors that declare more than there is, operators of unknown domains, graphs in graphs without end."""
    own = {function.domain for function in model.functions}
    for graph in _graphs(path, model.graph):
        for tensor in graph.initializer:
            _check_tensor(path, tensor)
        for node in graph.node:
            if node.domain not in own and node.domain not in _DOMAINS:
                raise UnsupportedError(
                    f"{path} has the operator {node.op_type!r} of the domain {node.domain!r}, which onnxruntime does "
                    "not have: export the model with ONNX's own operators."
                )
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    _check_tensor(path, tensor)


def _graphs(path: Path, graph: Any) -> Iterator[Any]:
    """The graph, and those in its nodes' attributes."""
    open_ = [(graph, 0)]
    while open_:
        graph, depth = open_.pop()
        if depth > _MOST_BODIES:
            raise FileError(f"{path} has more than {_MOST_BODIES} graphs within graphs{_EXPECTED}")
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                bodies = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                open_ += [(body, depth + 1) for body in bodies]


_ITEM_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    14: 64,
    15: 128,
    16: 16,
}


def _check_tensor(path: Path, tensor: Any) -> None:
    count = 1
    for size in tensor.dims:
        if size < 0:
            raise FileError(f"The tensor {tensor.name!r} of {path} has the shape {list(tensor.dims)}{_EXPECTED}")
        count *= size
    size = count * _ITEM_BITS.get(tensor.data_type, 4) // 8
    # A number of any type takes a byte or more in protobuf's fields, but stands for eight.
    there = _external_bytes(path, tensor) if tensor.data_location == 1 else tensor.ByteSize() * 8
    if size > there:
        raise FileError(
            f"The tensor {tensor.name!r} of {path} declares {size:,} bytes, of which at most {there:,} are "
            f"there{_EXPECTED}"
        )


def _external_bytes(path: Path, tensor: Any) -> int:
    """The size of the file that holds the tensor, which must lie in the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    try:
        place = (path.parent / location).resolve()
        outside = not location or Path(location).is_absolute() or not place.is_relative_to(folder)
        if not outside and place.is_file():
            return place.stat().st_size
    except (OSError, ValueError, RuntimeError):  # a null byte, links in a circle
        outside = True
    if outside:
        raise FileError(
            f"{path} has the weights of {tensor.name!r} in {location!r}, which is not in its own folder; expected a "
            "file beside it: do not run what you do not trust, or put its weights beside it."
        )
    raise FileError(f"There is no file {place}, in which {path} has its weights: put it beside the model.")
