import sys
from importlib import metadata
from pathlib import Path

import pytest

from seqexport import diagnosis, facts

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("version", "wanted", "answer"),
    [
        ("2.13.0+cpu", ">=2.10,<2.14", True),
        ("2.14.0a0+git1", ">=2.10,<2.14", False),
        ("2.9.1", ">=2.10", False),
        ("2.10", ">=2.10.0", True),
        ("6.31.0", "==6.31.0", True),
        ("6.31.1", "==6.31.0", False),
        ("1.26.4", "<2", True),
        ("3", "!=3.0", False),
        ("1.0", "", True),
    ],
)
def test_within(version, wanted, answer):
    assert facts.within(version, wanted) is answer


def test_the_ranges_are_the_project_files_or_else_what_was_installed(monkeypatch):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required, extra = facts.stated_ranges()
    assert [f"{name}{wanted}" for name, wanted in required.items()] == project["dependencies"]
    assert [f"{name}{wanted}" for name, wanted in extra.items()] == project["optional-dependencies"]["demo"]
    assert project["requires-python"] == diagnosis.PYTHON

    lines = ["torch<2.14,>=2.10", "rich >=14", 'gradio==6.31.0; extra == "demo"', 'tqdm>=4; extra == "train"']
    monkeypatch.setattr(metadata, "requires", lambda package: lines)
    answer = {"torch": "<2.14,>=2.10", "rich": ">=14"}, {"gradio": "==6.31.0"}
    assert facts.stated_ranges(ROOT / "none.toml") == answer


def test_the_ranges_of_a_copied_folder_are_unknown(tmp_path):
    assert facts.stated_ranges(tmp_path / "pyproject.toml") == ({}, {})


def test_several_onnxruntimes_are_seen(tmp_path, monkeypatch):
    folder = tmp_path / "onnxruntime_gpu-1.31.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert facts._version("onnxruntime-gpu") == "1.31.0"
    assert facts._version("onnxruntime-directml") is None


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: none\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the proc and sys folders of Linux")


@linux
def test_a_processor_and_a_limit_of_control_groups_version_2(tmp_path):
    cores = {
        f"sys/devices/system/cpu/cpu{n}/topology/{name}": text
        for n in range(4)
        for name, text in {"physical_package_id": "0\n", "core_id": f"{n // 2}\n"}.items()
    }
    groups = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
        "sys/fs/cgroup/outer/memory.max": "2000000000\n",
    }
    about = {"proc/cpuinfo": X86, "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1500000 kB\n"}
    found = facts.look_at_machine(write(tmp_path, cores | groups | about))
    assert (found.processor, found.flags, found.physical_cores) == ("AMD EPYC", ("avx2", "avx512_vnni"), 2)
    assert (found.quota, found.memory, found.memory_available) == (0.5, 2_000_000_000, 1_536_000_000)
    assert found.cores == 0.5


@linux
def test_control_groups_version_1_and_an_arm_processor(tmp_path):
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000000000\n",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n",
    }
    found = facts.look_at_machine(write(tmp_path, files))
    assert (found.quota, found.memory) == (1.5, 1_000_000_000)
    assert (found.processor, found.flags) == (None, ("asimd", "asimddp", "i8mm"))


@linux
def test_what_a_system_does_not_tell_is_none(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(facts.tempfile, "gettempdir", none)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = facts.look_at_machine(tmp_path)
    assert (found.processor, found.flags, found.physical_cores, found.quota) == (None, None, None, None)
    assert (found.memory_available, found.temp_folder, found.temp_free) == (None, None, None)
    assert found.settings["OMP_NUM_THREADS"] == "3"
    assert found.usable_cores >= 1


def test_macos_is_asked_by_sysctl(monkeypatch, tmp_path):
    answer = (
        "machdep.cpu.brand_string: Apple M2\nhw.physicalcpu: 8\nhw.optional.AdvSIMD: 1\n"
        "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(facts, "_output", lambda command: answer)
    found = facts.look_at_machine(tmp_path)
    assert (found.processor, found.flags, found.physical_cores) == ("Apple M2", ("asimd", "asimddp"), 8)
    monkeypatch.setattr(facts, "_output", lambda command: "")
    assert facts.look_at_machine(tmp_path).flags is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert facts.look_at_machine(tmp_path).flags is None


def test_a_command_that_is_not_there_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(facts, "SECONDS", 0.2)
    assert facts._output(["no-such-command"]) == ""
    assert facts._output([sys.executable, "-c", "import time; time.sleep(9)"]) == ""
