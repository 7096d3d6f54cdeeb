"""What is wrong with this installation, and how to mend it: findings made of facts.

`judge` and `judge_runtimes` are pure, and `diagnose` applies them to this machine. Nothing here needs torch or
onnxruntime to be there, or to work.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from seqexport import __version__
from seqexport.facts import FLAGS, OPTIONAL, PACKAGES, THREAD_SETTINGS, Facts, gather, within
from seqexport.selftest import OPSET, PROBES

Level: TypeAlias = Literal["ok", "note", "problem"]
State: TypeAlias = Literal["runs", "there", "differs", "broken", "absent"]
LEVELS: tuple[Level, ...] = ("ok", "note", "problem")

PYTHON = ">=3.11"
TOLERANCE = 1e-6  # of the small LSTM; 1.2e-7, two roundings of float32, was seen
SLOWER = 1.3  # oneDNN's single steps, as a multiple of those without, from which a note is worth its lines
MEMORY, SPACE = 1e9, 1e8  # bytes; the export of a small net takes 0.5 GB of memory

# Versions that are known to be wrong. {package: (the range, what is wrong with it)}
FLAWS = {
    "torch": ("<2.10", "reading a checkpoint can run code that is hidden in it (CVE-2025-32434, CVE-2026-24747)"),
    "onnxscript": ("<0.7.1", "torch.onnx by itself writes GRUs that give other numbers (linear_before_reset)"),
    "numpy": ("<2", "packages that need numpy 2 fail"),
}


@dataclass(frozen=True)
class Finding:
    """What was found, what was expected, and the fix: a command, or a sentence, which begins with a capital letter."""

    level: Level
    found: str
    expected: str = ""
    fix: str = ""

    @property
    def is_command(self) -> bool:
        """Whether the fix is to be typed as it stands."""
        return bool(self.fix) and not self.fix[0].isupper()


@dataclass(frozen=True)
class RuntimeState:
    """Whether a runtime is there and runs; `there` was not tried. difference: of a small LSTM, to torch's."""

    name: str
    state: State
    about: str
    difference: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The facts, the runtimes, and the findings, problems last."""

    facts: Facts
    runtimes: tuple[RuntimeState, ...]
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether there is no problem. Notes do not count."""
        return not self.count("problem")

    def count(self, level: Level) -> int:
        """The number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the numbers of the small LSTM."""
        parts = asdict(self)
        for found in parts["facts"]["probes"].values():
            del found["output"]
        return {"passed": self.passed, "seqexport": __version__} | parts

    def overview(self) -> dict[str, str]:
        """What a person reads first: a subject → what there is."""
        return _overview(self.facts)


def diagnose() -> Diagnosis:
    """Look at this machine and its packages. Takes a few seconds; a minute where something hangs."""
    start = time.perf_counter()
    facts = gather()
    return Diagnosis(facts, judge_runtimes(facts), judge(facts), time.perf_counter() - start)


def judge(facts: Facts) -> tuple[Finding, ...]:
    """The findings: what is well, then notes, then problems."""
    checks = (_python, _packages, _copies, _imports, _numbers, _formats, _speed, _cores, _space, _habits)
    found = [finding for check in checks for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def judge_runtimes(facts: Facts) -> tuple[RuntimeState, ...]:
    """The runtimes: each there and tried, or absent with the command that installs it."""
    others = (("onnxruntime", "onnxruntime"), ("reference", "onnx"), ("openvino", "openvino"))
    return _runtime(facts, "torch", "torch"), _torch_compile(facts), *(_runtime(facts, *names) for names in others)


def _runtime(facts: Facts, name: str, package: str) -> RuntimeState:
    found = facts.probe(package)
    if not facts.version(package) and not found.imported:
        return RuntimeState(name, "absent", _install(facts, package))
    if not found.output:
        return RuntimeState(name, "broken", f"{package} {found.failure}")
    if name == "torch":
        return RuntimeState(name, "runs", "what the others are held against")
    error = found.difference(facts.probe("torch"))
    if error is None:
        return RuntimeState(name, "runs", "there is no torch to compare it with")
    if error <= TOLERANCE:
        return RuntimeState(name, "runs", f"an LSTM gives what torch gives: {error:.1e}", error)
    if math.isfinite(error):
        return RuntimeState(name, "differs", f"an LSTM is {error:.1e} from torch's", error)
    return RuntimeState(name, "differs", "an LSTM gives what is no number")


def _torch_compile(facts: Facts) -> RuntimeState:
    compiler = facts.probe("compiler")
    if not facts.probe("torch").output:
        return RuntimeState("torch-compile", "broken", "torch does not run")
    if compiler.failure:
        if compiler.imported:
            return RuntimeState("torch-compile", "broken", compiler.failure)
        return RuntimeState("torch-compile", "absent", _install_compiler(facts))
    name = compiler.about.get("version", "the compiler")
    return RuntimeState("torch-compile", "there", f"{name} builds libraries; compiling takes long, not tried")


def _install(facts: Facts, package: str, options: str = "") -> str:
    """The command that installs a package in the versions that seqexport needs."""
    known = next((name for name in facts.onnxruntimes if package == "onnxruntime"), package)
    bounds = facts.required.get(package) or facts.extra.get(package) or ""
    command = f"python -m pip install {options}" + (f'"{known}{bounds}"' if bounds else known)
    build = facts.probe("torch").about.get("build", "CPU")  # without one, the build that this project is made with
    if package == "torch" and build == "CPU" and facts.machine.system.startswith("Linux"):
        command += " --index-url https://download.pytorch.org/whl/cpu"
    return command


def _install_compiler(facts: Facts) -> str:
    fixes = {"Darwin": "xcode-select --install", "Windows": "Install Visual Studio's C++ build tools."}
    return fixes.get(facts.machine.system.partition(" ")[0], "apt-get install g++ python3-dev")


def _python(facts: Facts) -> Iterator[Finding]:
    if within(facts.python, PYTHON):
        yield Finding("ok", f"Python {facts.python}", PYTHON)
    else:
        fix = "Make a virtual environment with a newer Python and install seqexport there."
        yield Finding("problem", f"This is Python {facts.python}", PYTHON, fix)


def _packages(facts: Facts) -> Iterator[Finding]:
    for package in dict.fromkeys((*facts.required, *PACKAGES)):
        version, wanted = facts.version(package), facts.required.get(package, "")
        flawed, why = FLAWS.get(package, ("<0", ""))
        if not version and (wanted or package in PROBES):
            if not facts.probe(package).imported:
                yield Finding(
                    "problem", f"{package} is not installed", wanted or "any version", _install(facts, package)
                )
        elif version and within(version, flawed):
            yield Finding(
                "problem", f"With {package} {version}, {why}", wanted or f"not {flawed}", _install(facts, package)
            )
        elif version and not within(version, wanted):
            found = f"{package} {version} is not among the versions that seqexport was made for"
            yield Finding("problem", found, wanted, _install(facts, package))
        elif version and wanted:
            yield Finding("ok", f"{package} {version}", wanted)
    for package, wanted in facts.extra.items():
        version = facts.version(package)
        if version and not within(version, wanted):
            yield Finding("note", f"The demo was not made for {package} {version}", wanted, _install(facts, package))


def _copies(facts: Facts) -> Iterator[Finding]:
    several = facts.onnxruntimes
    if len(several) > 1:
        names = " and ".join(f"{name} {version}" for name, version in several.items())
        kept = f'"onnxruntime{facts.required.get("onnxruntime", "")}"'
        fix = f"python -m pip uninstall -y {' '.join(several)} && python -m pip install {kept}"
        yield Finding("problem", f"{names} overwrite each other's files in one folder", "one of them", fix)
    for package in PROBES:
        installed, found = facts.packages.get(package), str(facts.probe(package).about.get("version") or "")
        if installed and found and len(several) < 2 and re.split("[+-]", found)[0] != re.split("[+-]", installed)[0]:
            text = f"{package} {installed} is installed, but what is imported is {package} {found}"
            fix = _unshadow(facts, package) or _install(facts, package, "--force-reinstall ")
            yield Finding("problem", text, "the installed one", fix)


def _unshadow(facts: Facts, package: str) -> str:
    """The fix, where what is imported does not lie where packages are installed."""
    file = str(facts.probe(package).about.get("file") or "")
    if not file or re.search("(site|dist)-packages", file):
        return ""
    return f"Take {file}, which is found first, off the import path (PYTHONPATH, the current folder)."


def _imports(facts: Facts) -> Iterator[Finding]:
    for package in PROBES:
        found, version = facts.probe(package), facts.version(package)
        if not found.failure or not (version or found.imported) or _follows(facts, package):
            continue
        what = "running an LSTM in it" if found.imported else "importing it"
        level: Level = "note" if package in OPTIONAL else "problem"
        fix = _unshadow(facts, package) or _repair(facts, package, found.failure)
        yield Finding(level, f"{package} {version or ''}: {what} {found.failure}".replace(" :", ":"), "no error", fix)


def _follows(facts: Facts, package: str) -> bool:
    """Whether a package fails only since another fails, which has a finding of its own."""
    found = facts.probe(package)
    lacking = re.search(r"No module named '(\w+)", found.failure)
    if lacking and lacking[1] != package and lacking[1] in facts.required and not facts.version(lacking[1]):
        return True
    if package != "numpy" and facts.probe("numpy").failure and found.failure.startswith("raised"):
        return True
    needs_onnx = found.imported if package in ("onnxruntime", "openvino") else package == "onnxscript"
    return needs_onnx and bool(facts.probe("onnx").failure)


def _repair(facts: Facts, package: str, failure: str) -> str:
    again = _install(facts, package, "--force-reinstall --no-deps ")
    lacking = re.search(r"No module named '(\w+)'", failure)
    if lacking and lacking[1] != package:
        return f"python -m pip install {lacking[1].replace('_', '-')}"
    if re.search(r"protobuf|[Dd]escriptors? cannot|runtime_version|[Gg]encode", failure):
        return f"python -m pip install --upgrade protobuf && {again}"
    if re.search(r"NumPy 1|[Nn]um[Pp]y is not available|_ARRAY_API|numpy\.\w+ size changed|multiarray", failure):
        return f"{_install(facts, 'numpy', '--upgrade ')} && {again}"
    if "DLL load failed" in failure:
        return "Install Microsoft's Visual C++ Redistributable, which the package's libraries need."
    if "SIGILL" in failure:
        return f"Take a build of {package} for this processor, such as conda-forge's: PyPI's needs newer instructions."
    return again


def _numbers(facts: Facts) -> Iterator[Finding]:
    for runtime in judge_runtimes(facts):
        if runtime.state == "differs":
            fix = _install(facts, runtime.name.replace("reference", "onnx"), "--force-reinstall ")
            yield Finding("problem", f"{runtime.name}: {runtime.about}", f"at most {TOLERANCE:.0e}", fix)
        elif runtime.difference is not None:
            yield Finding("ok", f"{runtime.name}: {runtime.about}", f"at most {TOLERANCE:.0e}")


def _formats(facts: Facts) -> Iterator[Finding]:
    """What one package writes and another can't read."""
    writes, reads = facts.probe("onnx").about, facts.probe("onnxruntime").about
    for name, unit in (("opset", "opset"), ("ir_version", "IR version")):
        newest, known = writes.get(name), reads.get(name)
        if newest and known and known < newest:
            found = f"onnx writes files of up to {unit} {newest}, onnxruntime reads those of up to {known}"
            fix = f"Files of others: give their exporter {unit} {known}. seqexport's have opset {OPSET} unless asked."
            yield Finding("note", found, f"{unit} {newest}", fix)
    if within(facts.version("onnxruntime") or "0", ">=1.32,<1.33"):
        found = "onnxruntime 1.32 was seen to crash at loading a float16 nn.RNN with a dynamic batch"
        yield Finding("note", found, "no crash", "Keep such nets in float32; other nets and dtypes are not touched.")


def _speed(facts: Facts) -> Iterator[Finding]:
    times, flags = facts.probe("torch").about.get("step_us") or {}, facts.machine.flags
    if times and times["on"] > SLOWER * times["off"]:
        found = f"One step of an LSTM of 512 takes torch {times['on']:,.0f} us with oneDNN, its default, and "
        fix = "For single steps: seqexport.load(…, onednn=False), or torch.backends.mkldnn.flags(enabled=False)."
        yield Finding("note", f"{found}{times['off']:,.0f} us without", "the same", fix)
    if facts.machine.is_x86 and flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags):
        fix = "Nothing is wrong: quantize with reduce_range=True; the error is a tenth of what it is with 8 bits."
        found = "The processor has no VNNI, without which sums over 8-bit weights saturate: int8 takes 7 bits"
        yield Finding("note", found, "avx512_vnni or avx_vnni", fix)
    compiler = facts.probe("compiler").failure
    if compiler:
        yield Finding("note", f"torch.compile {compiler}", "a C++ compiler", _install_compiler(facts))


def _cores(facts: Facts) -> Iterator[Finding]:
    machine, threads = facts.machine, facts.probe("torch").about.get("threads")
    if machine.cores < 1:
        found = f"The control group grants {machine.cores:.2g} of a core: programs are paused at times, and times vary"
        yield Finding("note", found, "at least 1 core", "Raise the container's limit, such as docker run --cpus 2.")
    elif machine.cores < 2:
        found = f"This process can use {machine.cores:.2g} core, which the demo's runtimes share with all else"
        yield Finding("note", found, "2 cores", "Give the machine or the container 2 cores before measuring.")
    cores = max(1, math.ceil(machine.cores))
    if threads and threads > cores:
        found = f"torch by default starts {threads} threads, more than this process has cores"
        yield Finding("note", found, f"at most {cores}", f"export OMP_NUM_THREADS={cores}")


def _space(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine.memory_available is not None and machine.memory_available < MEMORY:
        found = f"{_size(machine.memory_available)} of memory is available"
        yield Finding("note", found, _size(MEMORY), "Close what takes memory, or give the container more.")
    if machine.temp_folder is None:
        fix = "Set TMPDIR to a folder that can be written to."
        yield Finding("problem", "No folder for temporary files can be written to", "one", fix)
    elif machine.temp_free is not None and machine.temp_free < SPACE:
        found = f"{_size(machine.temp_free)} are free in {machine.temp_folder}, where temporary files go"
        yield Finding("note", found, _size(SPACE), "Delete files there, or set TMPDIR to a folder with space.")


def _habits(facts: Facts) -> Iterator[Finding]:
    if facts.probe("onnxruntime").about.get("has_locale") is False:
        found = "There is no locale en_US.UTF-8, which onnxruntime's StringNormalizer asks for by default"
        fix = 'Nothing is wrong: seqexport asks for "C". For files of others: apt-get install locales-all.'
        yield Finding("note", found, "en_US.UTF-8", fix)


def _overview(facts: Facts) -> dict[str, str]:
    machine, torch, ort = facts.machine, facts.probe("torch").about, facts.probe("onnxruntime").about
    installed = {name: version for name, version in facts.packages.items() if version}
    absent = [name for name in (*PACKAGES, *OPTIONAL) if name not in installed]
    flags = None if machine.flags is None else " ".join(flag for flag in FLAGS if flag in machine.flags) or "none"
    settings = [f"{name}={value}" for name, value in machine.settings.items()]
    onednn = "with oneDNN" if torch.get("onednn") else "without oneDNN"
    return {
        "seqexport": f"{__version__}, Python {facts.python}, {machine.system}, {machine.architecture}",
        "packages": ", ".join(f"{name} {version}" for name, version in installed.items()) or "none",
        "absent": ", ".join(absent) or "none",
        "torch": f"{torch['build']} build {onednn}" if "build" in torch else "unknown",
        "onnxruntime": ", ".join(ort.get("providers", ())) or "unknown",
        "processor": f"{machine.processor or 'unknown'}; of the flags that matter: {flags or 'unknown'}",
        "cores": f"{_known(machine.physical_cores)} physical, {_known(machine.logical_cores)} logical, "
        f"{machine.usable_cores} for this process, "
        + (f"limited to {machine.quota:.2g} by its control group" if machine.quota else "no limit set"),
        "threads": f"by default torch {_known(torch.get('threads'))}, onnxruntime {_known(ort.get('threads'))}, "
        f"seqexport 1; {', '.join(settings) or f'{THREAD_SETTINGS[0]} is not set'}",
        "memory": f"{_size(machine.memory)}, {_size(machine.memory_available)} available",
        "temp folder": f"{machine.temp_folder or 'none'}, {_size(machine.temp_free)} free",
    }


def _known(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _size(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
