"""What a runtime takes besides time, each in a fresh process: loading, the first call, memory; and the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 180  # for a child; torch.compile may take one minute of it
STEPS = 100  # of the first call
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from seqexport.footprint import main; main()"
PACKAGES = ("seqexport", "torch", "onnx", "onnxruntime", "openvino", "numpy")
FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "sve")
SIZES = (0.25, 1, 4, 16, 64, 256)  # MiB that are read to measure the bandwidth
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Footprint:
    """A runtime in a fresh process. load: seconds from the start of its import to a model that is ready. first: seconds
    of the first call, 1 × STEPS steps. memory: bytes of the process at its peak, beyond Python with numpy. bytes: of
    the network's file. failure: why there is nothing to tell."""

    label: str
    bytes: int
    load: float | None = None
    first: float | None = None
    memory: int | None = None
    failure: str = ""


def footprint(
    label: str, runtime: str, path: Path, threads: int = 1, onednn: bool | None = None, seconds: float = SECONDS
) -> Footprint:
    """Load the network in a fresh process and call it once. path: the file that this runtime reads."""
    answer = _ask(["footprint", str(path), runtime, str(threads), json.dumps(onednn)], threads, seconds)
    return Footprint(label, path.stat().st_size, **answer)


@dataclass(frozen=True)
class Machine:
    """What was measured on. bandwidth: MiB that are read → bytes a second at which one thread reads them again and
    again, the smaller ones from a cache."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    system: str
    python: str
    versions: Mapping[str, str] = field(default_factory=dict)
    bandwidth: Mapping[float, float] = field(default_factory=dict)

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        far = self.bandwidth.get(SIZES[-1])
        reads = f"; one thread reads {far / 1e9:.1f} GB/s from memory" if far else ""
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        return f"{self.processor}{flags}, {self.cores} cores, {self.system}{reads}; Python {self.python}, {versions}"

    def seconds_to_read(self, size: int) -> float | None:
        """Seconds in which one thread reads so many bytes, at the bandwidth between the sizes that were measured."""
        if not self.bandwidth:
            return None
        sizes = [2**20 * mebibytes for mebibytes in self.bandwidth]
        return size / float(np.interp(np.log(max(size, 1)), np.log(sizes), list(self.bandwidth.values())))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self) | {"bandwidth": {f"{size:g} MiB": speed for size, speed in self.bandwidth.items()}}


def describe_machine() -> Machine:
    """The machine, its bandwidth measured in a child whose libraries use one thread (a few seconds)."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            if package == "seqexport":
                from seqexport import __version__

                versions[package] = __version__
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    answer = _ask(["bandwidth"], 1, SECONDS).get("bandwidth", [])
    return Machine(
        cpu.get("model name") or platform.processor() or platform.machine(),
        tuple(flag for flag in FLAGS if flag in flags),
        os.cpu_count() or 1,
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
        versions,
        dict(zip(SIZES, answer, strict=False)),
    )


def _cpuinfo() -> dict[str, str]:
    """The entries of the first processor; nothing where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ask(arguments: list[str], threads: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, json.dumps([str(folder) for folder in sys.path]), *arguments]
    environment = os.environ | dict.fromkeys(ONE_THREAD, str(threads))
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"failure": f"gave no answer within {seconds:g} s"}
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return {"failure": said[-1] if said else f"ended with exit code {done.returncode}"}
    return json.loads(lines[-1])


def main() -> None:
    """The child: one line of JSON on stdout."""
    kind, *arguments = sys.argv[2:]
    answer = {"bandwidth": bandwidth()} if kind == "bandwidth" else _footprint(*arguments)
    print(json.dumps(answer))


def bandwidth(sizes: tuple[float, ...] = SIZES, seconds: float = 0.15) -> list[float]:
    """Bytes a second at which an array of each size, in MiB, is read: the fastest of many products with itself."""
    speeds = []
    for size in sizes:
        array = np.ones(int(size * 2**18), np.float32)
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            start = time.perf_counter()
            np.dot(array, array)
            best = min(best, time.perf_counter() - start)
        speeds.append(array.nbytes / best)
    return speeds


def _footprint(path: str, runtime: str, threads: str, onednn: str) -> dict[str, Any]:
    from seqexport.specs import TensorSpec  # numpy, and what has no part in the runtime

    before = peak_memory()
    start = time.perf_counter()
    model = _opened(Path(path), runtime, int(threads), json.loads(onednn))
    loaded = time.perf_counter()
    spec: TensorSpec = model.inputs[0]
    model.run({spec.name: spec.sample({"batch": 1, "time": STEPS}, np.random.default_rng(0))})
    first = time.perf_counter() - loaded
    after = peak_memory()
    memory = None if after is None or before is None else after - before
    return {"load": loaded - start, "first": first, "memory": memory}


def _opened(path: Path, runtime: str, threads: int, onednn: bool | None) -> Any:
    """As `load` does, without its checks of files from outside, which take longer than onnxruntime does."""
    if runtime.startswith("onnxruntime"):
        from seqexport.runtimes import OnnxRuntime

        return OnnxRuntime(path, threads=threads)
    from seqexport.peers import load

    return load(path, runtime, threads=threads, onednn=onednn)


def peak_memory() -> int | None:
    """Bytes of memory that this process had at most; None where the system does not tell.

    Linux gives VmHWM, since there ru_maxrss begins with what the parent had when it made the child.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
