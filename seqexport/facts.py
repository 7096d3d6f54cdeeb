"""Facts for a diagnosis: the packages, whether they run, and what this process runs on: processor, cores, memory.

What a system does not tell is None. No package is imported here: versions come from what was installed, the rest from
child processes (`seqexport.selftest`).
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath

from seqexport.selftest import PROBES, Probe, probe, probe_compiler

PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "protobuf", "rich")
OPTIONAL = ("gradio", "matplotlib", "openvino", "safetensors", "sympy")
# All of these are installed into the one folder `onnxruntime`, each over the one before.
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
# What the kernels of torch and onnxruntime choose by: x86's, then Arm's (asimddp: dot products of int8).
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY")
SECONDS = 5  # that a command of the system may take


@dataclass(frozen=True)
class Machine:
    """flags: those of FLAGS that the processor has. usable_cores: that this process may run on. quota: how many cores'
    time its control group grants it. memory, memory_available, temp_free: bytes. temp_folder: None where there is none.
    settings: those of THREAD_SETTINGS that are set.
    """

    system: str
    architecture: str
    processor: str | None = None
    flags: tuple[str, ...] | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cores: int = 1
    quota: float | None = None
    memory: int | None = None
    memory_available: int | None = None
    temp_folder: str | None = None
    temp_free: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def cores(self) -> float:
        """How many cores' time this process can use."""
        return min(self.usable_cores, self.quota or math.inf)

    @property
    def is_x86(self) -> bool:
        """Whether the processor's instructions are x86's of 64 bits."""
        return self.architecture.lower() in ("x86_64", "amd64")


@dataclass(frozen=True)
class Facts:
    """packages: name → version, None where it is not installed. required, extra: name → the range that seqexport
    needs, and that its demo needs. probes: what the child processes found, by package; `compiler` among them.
    """

    python: str
    machine: Machine
    packages: Mapping[str, str | None] = field(default_factory=dict)
    required: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def onnxruntimes(self) -> dict[str, str]:
        """Those of ONNXRUNTIMES that are installed, with their versions."""
        return {name: version for name in ONNXRUNTIMES if (version := self.packages.get(name))}

    def probe(self, package: str) -> Probe:
        """What the child process found; an empty answer where there was none."""
        return self.probes.get(package, Probe())

    def version(self, package: str) -> str | None:
        """As installed, or else as the package says of itself when imported."""
        known = self.packages.get(package)
        if package == "onnxruntime":
            known = next(iter(self.onnxruntimes.values()), None)
        return known or self.probe(package).about.get("version")


def gather() -> Facts:
    """Versions, the machine, and what each package does when it is imported and used. Takes a few seconds."""
    packages = {name: _version(name) for name in dict.fromkeys((*PACKAGES, *ONNXRUNTIMES, *OPTIONAL))}
    tried = [name for name in PROBES if name not in OPTIONAL or packages[name]]
    with ThreadPoolExecutor(len(tried) + 1) as pool:  # each only waits for its child
        compiler = pool.submit(probe_compiler)
        probes = dict(zip(tried, pool.map(probe, tried), strict=True)) | {"compiler": compiler.result()}
    return Facts(platform.python_version(), look_at_machine(), packages, *stated_ranges(), probes)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, KeyError):  # KeyError: a half-removed package, without its metadata
        return None


def stated_ranges(source: Path = Path(__file__).parents[1] / "pyproject.toml") -> tuple[dict[str, str], dict[str, str]]:
    """The versions that seqexport needs and that its demo needs, by package.

    From the project file beside the package, or else from what was installed, so that they are stated once only.
    """
    if source.is_file() and sys.version_info >= (3, 11):  # where tomllib begins
        import tomllib

        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "seqexport":
            return _ranges(project["dependencies"]), _ranges(project["optional-dependencies"]["demo"])
    try:
        lines = metadata.requires("seqexport") or []
    except metadata.PackageNotFoundError:
        return {}, {}
    return _ranges(line for line in lines if ";" not in line), _ranges(
        line for line in lines if re.search(r"extra == .demo", line)
    )


def _ranges(lines: Iterable[str]) -> dict[str, str]:
    """`torch>=2.10,<2.14; …` → {"torch": ">=2.10,<2.14"}."""
    found = [re.match(r"([\w.-]+)\s*(?:\[.*?\])?\s*([^;]*)", line) for line in lines]
    return {match[1].lower(): match[2].strip() for match in found if match}


def within(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as >=2.10,<2.14. Of the version only the release's numbers count."""
    order = {">=": (0, 1), ">": (1,), "<=": (0, -1), "<": (-1,), "==": (0,), "!=": (1, -1)}
    for relation, bound in re.findall(r"([<>=!]+)\s*([\d.]+)", wanted):
        mine, other = _numbers(version), _numbers(bound)
        size = max(len(mine), len(other))
        mine, other = mine + (0,) * (size - len(mine)), other + (0,) * (size - len(other))
        if (mine > other) - (mine < other) not in order.get(relation, (-1, 0, 1)):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def look_at_machine(root: Path = Path("/")) -> Machine:
    """Ask the system. `root` holds its proc and sys folders."""
    ask = {"linux": _linux, "darwin": _macos}.get(sys.platform)
    processor, flags, physical, available = ask(root) if ask else (platform.processor() or None, None, None, None)
    total = _least([_physical_memory(), _memory_limit(root)])
    folder, free = _temp_folder()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=processor,
        flags=flags,
        physical_cores=physical,
        logical_cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=_quota(root),
        memory=total,
        memory_available=None if available is None else _least([available, total]),
        temp_folder=folder,
        temp_free=free,
        settings={name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
    )


def _linux(root: Path) -> tuple[str | None, tuple[str, ...] | None, int | None, int | None]:
    """Processor, flags, physical cores and available memory, as far as proc and sys tell."""
    about = _entries(_read(root / "proc/cpuinfo"))
    flags = about.get("flags", about.get("Features"))
    known = None if flags is None else tuple(flag for flag in FLAGS if flag in flags.split())
    cores = {
        (_read(folder / "physical_package_id"), _read(folder / "core_id"))
        for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology")
    }
    available = _entries(_read(root / "proc/meminfo")).get("MemAvailable", "").removesuffix("kB").strip()
    return about.get("model name"), known, len(cores) or None, int(available) * 1024 if available.isdigit() else None


def _macos(root: Path) -> tuple[str | None, tuple[str, ...] | None, int | None, int | None]:
    """The same, as far as sysctl tells: it leaves out names that the machine does not have."""
    names = {"avx2": "avx2_0", "avx512f": "avx512f", "asimd": "AdvSIMD"} | {
        "asimddp": "arm.FEAT_DotProd",
        "i8mm": "arm.FEAT_I8MM",
    }
    asked = ["machdep.cpu.brand_string", "hw.physicalcpu", *(f"hw.optional.{name}" for name in names.values())]
    about = _entries(_output(["sysctl", *asked]))
    flags = tuple(flag for flag in FLAGS if flag in names and about.get(f"hw.optional.{names[flag]}") == "1")
    cores = about.get("hw.physicalcpu", "")
    return (
        about.get("machdep.cpu.brand_string"),
        flags if about else None,
        int(cores) if cores.isdigit() else None,
        None,
    )


def _quota(root: Path) -> float | None:
    """How many cores' time the control group grants: the least of those around this process."""
    shares = []
    for folder in _groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:  # version 1
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _memory_limit(root: Path) -> int | None:
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_read(folder / name) for folder in _groups(root, "memory") for name in names]
    return min((int(limit) for limit in limits if limit.isdigit()), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, of version 1 or 2, from its own up to the outermost."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        for mount in ("", "unified") if not controllers else (controllers, controller):
            yield from (root / "sys/fs/cgroup" / mount / part for part in (own, *own.parents))


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _temp_folder() -> tuple[str | None, int | None]:
    try:
        folder = tempfile.gettempdir()
        return folder, shutil.disk_usage(folder).free
    except OSError:  # no folder that can be written to
        return None, None


def _least(values: Sequence[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _entries(text: str) -> dict[str, str]:
    """Lines of `name: value`, of which the first of a name counts."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            entries.setdefault(name.strip(), value.strip())
    return entries


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
