"""One small LSTM in every runtime, each in a process of its own, so that an install that crashes or hangs is a finding.

The parent calls `probe`. The child imports one package, tells what it is, and runs the LSTM: its numbers come back, and
whoever asked holds those of one runtime against those of another.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import locale
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SECONDS = 60  # for a child; a first import from a slow disk may take 30
STEPS, BATCH, FEATURES, HIDDEN = 5, 2, 3, 4
OPSET, IR_VERSION = 20, 10  # what seqexport writes, and what every onnxruntime of these years reads
NEWEST_OPSET, NEWEST_IR = 40, 20  # where the search for the newest that onnxruntime loads begins
TIMED_HIDDEN, TIMED_STEPS = 512, 9  # of the LSTM whose single steps are timed
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from seqexport.selftest import main; main()"
_LIBRARY = '#include <Python.h>\n{omp}\nextern "C" int answer() {{ return {call}; }}\n'

Say = Callable[..., None]


@dataclass(frozen=True)
class Probe:
    """What came back from a child.

    imported: whether the import came to its end. about: version, threads and the like. output: what the LSTM gave.
    failure: how the child ended early, said of the package ("raised ImportError: …", "was ended by SIGABRT").
    """

    imported: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    output: tuple[float, ...] = ()
    failure: str = ""

    def difference(self, reference: Probe) -> float | None:
        """|a - b| / max(1, max|reference|), infinite where that is no number; None where one of them has no output."""
        if not self.output or not reference.output:
            return None
        errors = [abs(a - b) for a, b in zip(self.output, reference.output, strict=True)]
        if not all(map(math.isfinite, errors)):
            return math.inf
        return max(errors) / max(1.0, *map(abs, reference.output))


def probe(name: str, seconds: float = SECONDS) -> Probe:
    """Run the child for one of PROBES, with this process's import path, and never longer than `seconds`."""
    command = [sys.executable, "-c", _CHILD, json.dumps([str(folder) for folder in sys.path]), name]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
        answer, ending = done.stdout, _ending(done.returncode, done.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired as error:
        answer, ending = error.stdout or b"", f"gave no answer within {seconds:g} s"
    except OSError as error:
        answer, ending = b"", f"could not be tried ({error.strerror})"
    about: dict[str, Any] = {}
    for line in answer.decode().splitlines(keepends=True):
        if line.endswith("\n"):  # a child that is killed may leave half a line
            about |= json.loads(line)
    output, failure = tuple(about.pop("output", ())), about.pop("failure", ending)
    return Probe("version" in about, about, output, failure)


def _ending(code: int, errors: str) -> str:
    """How a process that did not end by itself ended."""
    if code == 0:
        return ""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    last = (errors.strip().splitlines() or [""])[-1]
    return f"ended with exit code {code if code < 256 else hex(code)}" + (f" ({last})" if last else "")


def probe_compiler(seconds: float = SECONDS) -> Probe:
    """Whether the C++ compiler that torch.compile takes builds a library with OpenMP and Python's headers.

    `imported` says whether there is a compiler. On Windows nothing more is tried.
    """
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    about, found = {"version": name}, shutil.which(name)
    if not found:
        return Probe(False, about, failure=f"needs a C++ compiler, and there is no {name}")
    if sys.platform == "win32":
        return Probe(True, about)
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(_build_command(found, Path(folder)), capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(True, about, failure=f"needs {name}, which could not be tried ({type(error).__name__})")
    errors = done.stderr.decode(errors="replace").splitlines()
    reason = next((line.rpartition("error: ")[2] for line in errors if "error: " in line), "no reason given")
    return Probe(True, about, failure=f"needs {name}, which failed ({reason})" if done.returncode else "")


def _build_command(compiler: str, folder: Path) -> list[str]:
    macos = sys.platform == "darwin"
    omp = ("", "1") if macos else ("#include <omp.h>", "omp_get_max_threads()")  # Apple's own clang has no OpenMP
    source = folder / "library.cpp"
    source.write_text(_LIBRARY.format(omp=omp[0], call=omp[1]))
    flags = ["-undefined", "dynamic_lookup"] if macos else ["-fopenmp"]
    headers = f"-I{sysconfig.get_paths()['include']}"
    return [compiler, "-shared", "-fPIC", *flags, headers, str(source), "-o", str(folder / "library.so")]


def main() -> None:
    """The child: answer on stdout, a JSON object a line, each as soon as it is known."""
    # Whatever the packages print goes to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=channel, flush=True)

    try:
        PROBES[sys.argv[2]](say)
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        say(failure=f"raised {type(error).__name__}" + (f": {lines[0]}" if lines else ""))


def _imported(say: Say, package: str) -> Any:
    """Import a package, having said where it was found, and then say what version it is."""
    spec = importlib.util.find_spec(package)
    if spec:
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        say(file=next(iter(places), None))
    module = importlib.import_module(package)
    version = getattr(module, "__version__", None)
    say(version=None if version is None else str(version))
    return module


def _probe_torch(say: Say) -> None:
    torch = _imported(say, "torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    onednn = torch.backends.mkldnn.is_available()
    say(build=build, onednn=onednn, threads=torch.get_num_threads())
    say(output=_torch_lstm(torch))
    if onednn:
        say(step_us=_step_times(torch))


def _torch_lstm(torch: Any) -> list[float]:
    values = _values()
    lstm = torch.nn.LSTM(FEATURES, HIDDEN)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        getattr(lstm, name).data = torch.from_numpy(values[name])
    with torch.inference_mode():
        y, (h, c) = lstm(
            *(torch.from_numpy(values["x"]), tuple(torch.from_numpy(values[name]) for name in ("h0", "c0")))
        )
    return _flat(y.numpy(), h.numpy(), c.numpy())


def _step_times(torch: Any) -> dict[str, float]:
    """Median microseconds of a single step of an LSTM on one thread, with oneDNN on and off, in turns."""
    import warnings

    warnings.simplefilter("ignore")  # setting the flags sets those for Intel GPUs too, of whose absence torch warns
    torch.set_num_threads(1)
    lstm, x = torch.nn.LSTM(64, TIMED_HIDDEN).eval(), torch.zeros(1, 1, 64)
    times: dict[str, list[float]] = {"on": [], "off": []}
    with torch.inference_mode():
        for _ in range(TIMED_STEPS):
            for setting, taken in times.items():
                with torch.backends.mkldnn.flags(enabled=setting == "on"):
                    start = time.perf_counter()
                    lstm(x)
                    taken.append(1e6 * (time.perf_counter() - start))
    return {setting: statistics.median(taken) for setting, taken in times.items()}


def _probe_onnx(say: Say) -> None:
    onnx = _imported(say, "onnx")
    from onnx.reference import ReferenceEvaluator

    say(opset=onnx.defs.onnx_opset_version(), ir_version=int(onnx.IR_VERSION))
    say(output=_flat(*ReferenceEvaluator(_model()).run(None, _feeds())))


def _probe_onnxruntime(say: Say) -> None:
    onnxruntime = _imported(say, "onnxruntime")
    say(providers=onnxruntime.get_available_providers(), has_locale=_has_locale())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3

    def session(model: Any) -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    model, before = _model(), _thread_count()
    lstm = session(model)
    if before:  # the session's pool counts the thread that calls it, which was there already
        say(threads=_thread_count() - before + 1)
    say(output=_flat(*lstm.run(None, _feeds())))
    say(opset=_newest(session, NEWEST_OPSET, OPSET, lambda version: _identity(opset=version)))
    say(ir_version=_newest(session, NEWEST_IR, IR_VERSION, lambda version: _identity(ir_version=version)))


def _thread_count() -> int:
    """The threads of this process; 0 where the system does not tell."""
    folder = Path("/proc/self/task")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _newest(session: Callable[[Any], Any], start: int, stop: int, model: Callable[[int], Any]) -> int | None:
    """The newest version, from `start` down to `stop`, whose model can be loaded."""
    for version in range(start, stop - 1, -1):
        try:
            session(model(version))
        except Exception:  # onnxruntime's exceptions have no common base
            continue
        return version
    return None


def _has_locale() -> bool:
    try:
        locale.setlocale(locale.LC_ALL, "en_US.UTF-8")
    except locale.Error:
        return False
    locale.setlocale(locale.LC_ALL, "C")
    return True


def _probe_openvino(say: Say) -> None:
    openvino = _imported(say, "openvino")
    core, options = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}  # as the runtime here asks; some take bfloat16
    lstm = core.compile_model(core.read_model(_model().SerializeToString()), "CPU", options)
    found = lstm(_feeds())
    say(output=_flat(*(found[name] for name in ("y", "hn", "cn"))))


PROBES: Mapping[str, Callable[[Say], Any]] = {
    "torch": _probe_torch,
    "onnx": _probe_onnx,
    "onnxruntime": _probe_onnxruntime,
    "onnxscript": lambda say: _imported(say, "onnxscript"),
    "openvino": _probe_openvino,
    "numpy": lambda say: _imported(say, "numpy"),
}


def _values() -> dict[str, np.ndarray]:
    """Weights, input and state, random and asymmetric: what is swapped or transposed must show."""
    import numpy as np

    rng = np.random.default_rng(20)
    shapes = {
        "weight_ih_l0": (4 * HIDDEN, FEATURES),
        "weight_hh_l0": (4 * HIDDEN, HIDDEN),
        "bias_ih_l0": (4 * HIDDEN,),
        "bias_hh_l0": (4 * HIDDEN,),
        "x": (STEPS, BATCH, FEATURES),
        "h0": (1, BATCH, HIDDEN),
        "c0": (1, BATCH, HIDDEN),
    }
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _feeds() -> dict[str, np.ndarray]:
    values = _values()
    return {name: values[name] for name in ("x", "h0", "c0")}


def _flat(*arrays: Any) -> list[float]:
    return [float(number) for array in arrays for number in array.reshape(-1)]


def _model() -> Any:
    """The LSTM as one ONNX node: torch's gates i, f, g, o become i, o, f, c."""
    import numpy as np
    from onnx import helper, numpy_helper

    values = _values()

    def reordered(name: str) -> np.ndarray:
        i, f, g, o = np.split(values[name], 4)
        return np.concatenate((i, o, f, g))[None]

    bias = np.concatenate((reordered("bias_ih_l0"), reordered("bias_hh_l0")), axis=1)
    weights = {"W": reordered("weight_ih_l0"), "R": reordered("weight_hh_l0"), "B": bias}
    state = [1, BATCH, HIDDEN]
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["directions", "hn", "cn"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["directions", "axis"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    inputs = {"x": [STEPS, BATCH, FEATURES], "h0": state, "c0": state}
    outputs = {"y": [STEPS, BATCH, HIDDEN], "hn": state, "cn": state}
    return _as_model(nodes, inputs, outputs, tensors)


def _identity(opset: int = OPSET, ir_version: int = IR_VERSION) -> Any:
    from onnx import helper

    return _as_model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, [], opset, ir_version)


def _as_model(
    nodes: Any, inputs: Any, outputs: Any, tensors: Any, opset: int = OPSET, ir_version: int = IR_VERSION
) -> Any:
    from onnx import TensorProto, helper

    def infos(values: Mapping[str, list[int]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in values.items()]

    graph = helper.make_graph(nodes, "selftest", infos(inputs), infos(outputs), initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
