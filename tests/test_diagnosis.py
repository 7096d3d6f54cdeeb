import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from seqexport import cli, diagnosis
from seqexport.diagnosis import Diagnosis, diagnose, judge, judge_runtimes
from seqexport.facts import Facts, Machine
from seqexport.selftest import Probe

ROOT = Path(__file__).parents[1]
OUTPUT = (0.5, -0.25)
PLACE = "/venv/lib/site-packages/"
WELL = Facts(
    "3.12.1",
    Machine(
        "Linux 6.1",
        "x86_64",
        "A processor",
        ("avx2", "avx512f", "avx512_vnni"),
        physical_cores=4,
        logical_cores=8,
        usable_cores=8,
        memory=16 * 10**9,
        memory_available=8 * 10**9,
        temp_folder="/tmp",
        temp_free=10**10,
    ),
    {"torch": "2.13.0", "onnx": "1.23.2", "onnxscript": "0.7.2", "onnxruntime": "1.33.0", "numpy": "2.4.6"},
    {"torch": ">=2.10,<2.14", "onnx": ">=1.23,<1.24", "onnxscript": ">=0.7.1", "onnxruntime": ">=1.32", "numpy": ">=2"},
    {"gradio": "==6.31.0"},
    {
        "torch": Probe(True, {"version": "2.13.0+cpu", "build": "CPU", "onednn": True, "threads": 4}, OUTPUT),
        "onnx": Probe(True, {"version": "1.23.2", "opset": 28, "ir_version": 14}, OUTPUT),
        "onnxruntime": Probe(True, {"version": "1.33.0", "opset": 28, "ir_version": 14, "has_locale": True}, OUTPUT),
        "onnxscript": Probe(True, {"version": "0.7.2"}),
        "numpy": Probe(True, {"version": "2.4.6"}),
        "compiler": Probe(True, {"version": "g++"}),
    },
)


def with_package(name, version, facts=WELL):
    return replace(facts, packages={**facts.packages, name: version})


def with_probe(package, about=(), facts=WELL, **changes):
    known = facts.probe(package)
    changed = replace(known, about={**known.about, **dict(about)}, **changes)
    return replace(facts, probes={**facts.probes, package: changed})


def with_machine(**changes):
    return replace(WELL, machine=replace(WELL.machine, **changes))


def failing(package, failure, imported=False, file=None):
    about = {"file": file or f"{PLACE}{package}/__init__.py"} | (
        {"version": WELL.packages[package]} if imported else {}
    )
    return replace(WELL, probes={**WELL.probes, package: Probe(imported, about, (), failure)})


def findings(facts, *levels):
    return [finding for finding in judge(facts) if finding.level in (levels or ("note", "problem"))]


def test_where_all_is_well_there_is_nothing_to_say():
    assert findings(WELL) == []
    assert {finding.found for finding in judge(WELL)} >= {"Python 3.12.1", "torch 2.13.0", "numpy 2.4.6"}
    assert Diagnosis(WELL, judge_runtimes(WELL), judge(WELL)).passed


TORCH = 'python -m pip install "torch>=2.10,<2.14" --index-url https://download.pytorch.org/whl/cpu'
ORT = 'python -m pip install --force-reinstall --no-deps "onnxruntime>=1.32"'
AGAIN = 'python -m pip install --force-reinstall --no-deps "onnx>=1.23,<1.24"'
PROBLEMS = {
    "python": (replace(WELL, python="3.10.9"), "This is Python 3.10.9", "newer Python"),
    "torch, dangerous": (
        with_package("torch", "2.9.1", with_probe("torch", {"version": "2.9.1"})),
        "CVE-2026-24747",
        TORCH,
    ),
    "torch, unknown": (
        with_package("torch", "2.14.0", with_probe("torch", {"version": "2.14.0"})),
        "torch 2.14.0 is not among the versions that seqexport was made for",
        TORCH,
    ),
    "torch, absent": (with_package("torch", None, failing("torch", "")), "torch is not installed", TORCH),
    "onnxscript": (
        with_package("onnxscript", "0.7.0", with_probe("onnxscript", {"version": "0.7.0"})),
        "With onnxscript 0.7.0, torch.onnx by itself writes GRUs that give other numbers",
        '"onnxscript>=0.7.1"',
    ),
    "numpy": (
        with_package("numpy", "1.26.4", with_probe("numpy", {"version": "1.26.4"})),
        "With numpy 1.26.4, packages that need numpy 2 fail",
        '"numpy>=2"',
    ),
    "two onnxruntimes": (
        with_package("onnxruntime-gpu", "1.31.0"),
        "onnxruntime 1.33.0 and onnxruntime-gpu 1.31.0 overwrite each other's files",
        'uninstall -y onnxruntime onnxruntime-gpu && python -m pip install "onnxruntime>=1.32"',
    ),
    "another copy": (
        with_probe("onnx", {"version": "1.20.0", "file": "/home/me/onnx/__init__.py"}),
        "onnx 1.23.2 is installed, but what is imported is onnx 1.20.0",
        "Take /home/me/onnx/__init__.py, which is found first, off the import path",
    ),
    "half an upgrade": (
        with_probe("torch", {"version": "2.12.0", "file": f"{PLACE}torch/__init__.py"}),
        "torch 2.13.0 is installed, but what is imported is torch 2.12.0",
        "--force-reinstall",
    ),
    "import": (
        failing("onnxruntime", "raised ImportError: no"),
        "onnxruntime 1.33.0: importing it raised ImportError: no",
        ORT,
    ),
    "crash": (failing("torch", "was ended by SIGSEGV"), "torch 2.13.0: importing it was ended by SIGSEGV", "--no-deps"),
    "hang": (failing("torch", "gave no answer within 60 s"), "importing it gave no answer within 60 s", "--no-deps"),
    "old processor": (failing("torch", "was ended by SIGILL"), "SIGILL", "Take a build of torch for this processor"),
    "library of Windows": (failing("onnx", "raised ImportError: DLL load failed"), "DLL load", "Visual C++"),
    "shadowed": (
        failing("onnx", "raised AttributeError: no 'defs'", True, "/home/me/onnx.py"),
        "onnx 1.23.2: running an LSTM in it raised AttributeError",
        "Take /home/me/onnx.py, which is found first, off the import path",
    ),
    "protobuf": (
        failing("onnx", "raised TypeError: Descriptors cannot be created directly."),
        "onnx 1.23.2: importing it raised TypeError: Descriptors cannot be created",
        f"python -m pip install --upgrade protobuf && {AGAIN}",
    ),
    "numpy of another time": (
        failing("torch", "raised RuntimeError: Numpy is not available", True),
        "torch 2.13.0: running an LSTM in it raised RuntimeError: Numpy is not available",
        'python -m pip install --upgrade "numpy>=2" && ',
    ),
    "a part is lacking": (
        failing("onnx", "raised ModuleNotFoundError: No module named 'ml_dtypes'"),
        "No module named 'ml_dtypes'",
        "python -m pip install ml-dtypes",
    ),
    "wrong numbers": (
        with_probe("onnxruntime", output=(0.5, -0.24)),
        "onnxruntime: an LSTM is 1.0e-02 from torch's",
        "--force-reinstall",
    ),
    "no numbers": (with_probe("onnx", output=(math.nan, 0)), "reference: an LSTM gives what is no number", "onnx"),
    "no temp folder": (with_machine(temp_folder=None), "No folder for temporary files", "TMPDIR"),
}
NOTES = {
    "float16": (
        with_package("onnxruntime", "1.32.0", with_probe("onnxruntime", {"version": "1.32.0"})),
        "crash at loading a float16 nn.RNN",
        "float32",
    ),
    "opset": (with_probe("onnx", {"opset": 29}), "onnx writes files of up to opset 29, onnxruntime reads", "opset 28"),
    "IR": (with_probe("onnx", {"ir_version": 15}), "up to IR version 15, onnxruntime reads those of up to 14", "14"),
    "oneDNN": (
        with_probe("torch", {"step_us": {"on": 4321.0, "off": 700.0}}),
        "One step of an LSTM of 512 takes torch 4,321 us with oneDNN, its default, and 700 us without",
        "onednn=False",
    ),
    "VNNI": (with_machine(flags=("avx2",)), "The processor has no VNNI", "reduce_range=True"),
    "compiler": (
        with_probe("compiler", imported=False, failure="needs a C++ compiler, and there is no g++"),
        "torch.compile needs a C++ compiler, and there is no g++",
        "apt-get install g++ python3-dev",
    ),
    "quota": (with_machine(quota=0.5, usable_cores=1), "The control group grants 0.5 of a core", "docker run --cpus 2"),
    "one core": (with_machine(usable_cores=1), "This process can use 1 core, which", "2 cores"),
    "threads": (
        with_machine(quota=2.0),
        "torch by default starts 4 threads, more than this process has cores",
        "export OMP_NUM_THREADS=2",
    ),
    "memory": (with_machine(memory_available=3 * 10**8), "0.3 GB of memory is available", "Close"),
    "temp folder": (with_machine(temp_free=10**7), "0.0 GB are free in /tmp", "Delete files there"),
    "locale": (with_probe("onnxruntime", {"has_locale": False}), "There is no locale en_US.UTF-8", "Nothing is wrong"),
    "demo": (with_package("gradio", "5.0.0"), "The demo was not made for gradio 5.0.0", '"gradio==6.31.0"'),
    "openvino": (
        with_package("openvino", "2026.4.1", with_probe("openvino", imported=True, failure="was ended by SIGSEGV")),
        "openvino 2026.4.1: running an LSTM in it was ended by SIGSEGV",
        "--no-deps openvino",
    ),
}


@pytest.mark.parametrize(("facts", "found", "fix"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_and_its_fix(facts, found, fix):
    (finding,) = findings(facts, "problem")
    assert found in finding.found
    assert fix in finding.fix
    assert finding.expected
    assert not Diagnosis(facts, judge_runtimes(facts), judge(facts)).passed


@pytest.mark.parametrize(("facts", "found", "fix"), NOTES.values(), ids=NOTES)
def test_a_note_which_is_no_problem(facts, found, fix):
    notes = [finding for finding in findings(facts) if found in finding.found]
    assert [finding.level for finding in notes] == ["note"]
    assert fix in notes[0].fix
    assert notes[0].expected
    assert Diagnosis(facts, judge_runtimes(facts), judge(facts)).passed


def test_what_follows_from_another_problem_is_not_told_twice():
    lacking = "raised ModuleNotFoundError: No module named 'onnx'"
    facts = with_package("onnx", None, failing("onnx", lacking))
    facts = with_probe("onnxruntime", facts=facts, output=(), failure=lacking)
    facts = with_probe("onnxscript", facts=facts, imported=False, failure=lacking)
    assert [finding.found for finding in findings(facts)] == ["onnx is not installed"]

    facts = with_probe(
        "torch", facts=failing("numpy", "raised ImportError: no"), output=(), failure="raised ImportError: no"
    )
    assert [finding.found for finding in findings(facts)] == ["numpy 2.4.6: importing it raised ImportError: no"]


def test_only_the_gpu_build_is_fine_and_its_fix_names_it():
    facts = with_package("onnxruntime-gpu", "1.33.0", with_package("onnxruntime", None))
    assert findings(facts) == []
    old = with_package("onnxruntime-gpu", "1.20.0", facts)
    assert findings(old)[0].fix == 'python -m pip install "onnxruntime-gpu>=1.32"'


def test_a_cuda_build_is_not_replaced_by_the_cpu_build():
    facts = with_package("torch", "2.14.0", with_probe("torch", {"version": "2.14.0", "build": "CUDA 13.0"}))
    assert findings(facts)[0].fix == 'python -m pip install "torch>=2.10,<2.14"'


def test_the_known_flaws_need_no_stated_ranges():
    facts = with_package("torch", "2.9.0", with_probe("torch", {"version": "2.9.0"}, replace(WELL, required={})))
    assert [finding.expected for finding in findings(facts)] == ["not <2.10"]


def test_problems_come_last():
    levels = [finding.level for finding in judge(replace(NOTES["VNNI"][0], python="3.9"))]
    assert levels == sorted(levels, key=("ok", "note", "problem").index)
    assert levels[-1] == "problem"


def test_the_runtimes():
    facts = with_probe("onnxruntime", output=(0.5, -0.25 + 3e-8))
    facts = with_probe("compiler", facts=facts, imported=False, failure="needs a C++ compiler, and there is no g++")
    told = {runtime.name: (runtime.state, runtime.about) for runtime in judge_runtimes(facts)}
    assert told == {
        "torch": ("runs", "what the others are held against"),
        "torch-compile": ("absent", "apt-get install g++ python3-dev"),
        "onnxruntime": ("runs", "an LSTM gives what torch gives: 3.0e-08"),
        "reference": ("runs", "an LSTM gives what torch gives: 0.0e+00"),
        "openvino": ("absent", "python -m pip install openvino"),
    }


def test_without_torch_the_others_still_run():
    states = {runtime.name: runtime.state for runtime in judge_runtimes(PROBLEMS["crash"][0])}
    assert states["torch"] == states["torch-compile"] == "broken"
    assert states["onnxruntime"] == states["reference"] == "runs"


@pytest.fixture(scope="module")
def here():
    """The diagnosis of this machine, for real."""
    return diagnose()


def test_on_this_machine_every_required_runtime_gives_what_torch_gives(here):
    assert [finding for finding in here.findings if finding.level == "problem"] == []
    runtimes = {runtime.name: runtime for runtime in here.runtimes}
    for name in ("onnxruntime", "reference"):
        assert runtimes[name].state == "runs"
        assert runtimes[name].difference <= diagnosis.TOLERANCE
    about = here.facts.probe("onnxruntime").about
    assert about["opset"] >= 23
    assert "CPUExecutionProvider" in about["providers"]
    assert here.facts.probe("torch").about["threads"] >= 1
    assert here.facts.version("torch") == here.facts.packages["torch"]


def run(monkeypatch, found, *options):
    monkeypatch.setattr(diagnosis, "diagnose", lambda: found)
    monkeypatch.setenv("COLUMNS", "80")
    return cli.main(["doctor", *options])


def test_the_command_prints_what_a_person_reads(here, monkeypatch, capsys):
    assert run(monkeypatch, here) == 0
    said = capsys.readouterr().out
    for text in (f"torch {here.facts.version('torch')}", "an LSTM gives what torch gives", "problems: 0"):
        assert text in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_fix_of_a_problem_stands_on_a_line_of_its_own(monkeypatch, capsys):
    facts = with_package("onnxruntime", None, failing("onnxruntime", ""))
    facts = with_probe("onnx", facts=facts, output=(), failure="raised ImportError: \x1b[31m[bold]")
    assert run(monkeypatch, Diagnosis(facts, judge_runtimes(facts), judge(facts))) == 2
    said = capsys.readouterr().out
    assert "\nfix      python -m pip install --force-reinstall --no-deps " in said
    assert '\nfix      python -m pip install "onnxruntime>=1.32"\n' in said
    assert said.splitlines()[-1].startswith("problems: 2, notes: 0")
    assert "\x1b" not in said
    assert r"\x1b[31m[bold]" in said


def test_one_json_document(here, monkeypatch, capsys):
    assert run(monkeypatch, here, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    assert told["facts"]["packages"]["torch"] == here.facts.version("torch")
    assert {entry["name"] for entry in told["runtimes"]} >= {"torch", "onnxruntime", "reference"}
    assert {entry["level"] for entry in told["findings"]} <= {"ok", "note", "problem"}
    broken = PROBLEMS["no numbers"][0]
    assert run(monkeypatch, Diagnosis(broken, judge_runtimes(broken), judge(broken)), "--json") == 2
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_without_rich_the_document_is_what_is_printed(here, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(monkeypatch, here) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_the_command_where_torch_crashes_and_nothing_else_can_be_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import os; os.abort()")
    for name in ("numpy", "onnx", "onnxruntime", "onnxscript"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('broken on purpose')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    command = [sys.executable, "-m", "seqexport", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (2, "")
    assert "importing it was ended by SIGABRT" in done.stdout
    assert "importing it raised ImportError: broken on purpose" in done.stdout
    assert f"Take {tmp_path}/torch.py, which is found first, off the import path" in done.stdout
