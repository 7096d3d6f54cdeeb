"""Writing: the old file or the new one, whole, whatever happens; and nothing else left in the folder."""

import ast
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import save_forecaster
from torch import nn

import seqexport
from seqexport import FileError, files
from seqexport.cli import main
from seqexport.files import DRAFT_SUFFIX, put_in_place, replace_file, write_beside

ROOT = Path(__file__).parents[1]
NOBODY = 65534
NO_FILE = "is a device, a pipe or a socket; expected a file: choose another output."
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes root's rights, to mount or to become another user")


def harness(folder, *tasks):
    """What tests/killing.py found, task by task."""
    command = [sys.executable, "tests/killing.py", str(folder), *tasks]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_whole(found, kills):
    """All files of all tries are the old or the new; mixed pairs were reported; the last run left nothing behind."""
    assert found["torn"] == 0, found
    assert found["tries"] - found["unkilled"] == kills, found
    assert found["old"] + found["new"] == 3 * found["tries"], found
    assert found["reported"] == found["mixed"], found
    assert (found["last"], found["strays"]) == ("BBB", []), found
    # Two drafts and a second name are what one try may leave, and what the next removes; with the bare file's, four.
    assert found["most_temporaries"] <= 4, found


def assert_between(found):
    """A kill before the first, second and third rename (the pair's second) and none: whose the three files are then."""
    states = [(was_killed, letters, mixed) for was_killed, letters, mixed, _ in found["left"]]
    assert states == [(True, "AAA", False), (True, "BAA", False), (True, "BBA", True), (False, "BBB", False)]
    assert [strays > 0 for *_, strays in found["left"]] == [True, True, True, False]
    assert found["strays"] == []


def test_exports_that_are_killed_or_race_leave_whole_files_and_nothing_else(tmp_path):
    """All in one process, which takes seconds to start; with a writer that is not atomic the same must fail."""
    kill, between, halves, race = harness(tmp_path, "kill:10", "between", "halves:50", "race")
    assert_whole(kill, 10)
    assert_between(between)
    assert halves["torn"] >= 1, halves
    with pytest.raises(AssertionError):
        assert_whole(halves, 50)
    assert (race["codes"], race["strays"]) == ([0] * 8, [])


@pytest.mark.slow
def test_two_hundred_exports_killed_as_they_write(tmp_path):
    found, pairs = harness(tmp_path, "kill:200", "pairs")
    print(found)
    assert_whole(found, 200)
    assert found["during"] >= 50, found
    assert found["temporaries"] >= 20, found
    assert pairs["codes"] == [0] * 8
    assert pairs["strays"] == []
    for network, pipeline in pairs["winners"]:
        assert network == pipeline


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def python(code, *arguments):
    """A child that has `code` done to it: to be killed, limited or deprived of its rights."""
    command = [sys.executable, "-c", "from pathlib import Path\nimport os, sys\n" + code, *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def answer(child):
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out.strip()


HOLDS_A_DRAFT = """
from seqexport.files import write_beside
draft = write_beside(Path(sys.argv[1]), b"unfinished")
print(draft.file.name, flush=True)
sys.stdin.read()
"""


def test_only_drafts_of_the_same_destination_that_nobody_holds_are_deleted(tmp_path):
    path = tmp_path / "net.onnx"
    children = [python(HOLDS_A_DRAFT, tmp_path / name) for name in ("net.onnx", "net.onnx", "net.onnx.onnx", "net")]
    dead, alive, *others = [(child, child.stdout.readline().strip()) for child in children]
    bystanders = [".net.onnx.0123456789abcdef.tmp", f".net.onnx.short{DRAFT_SUFFIX}", f"net.onnx{DRAFT_SUFFIX}"]
    for bystander in bystanders:
        (tmp_path / bystander).write_bytes(b"")
    for child, _ in (dead, *others):
        child.kill()
        child.wait()
    replace_file(path, b"new")
    kept = [name for _, name in (alive, *others)]
    assert names(tmp_path) == sorted(["net.onnx", *kept, *bystanders])
    alive[0].kill()
    for child in children:
        child.communicate()  # closes its pipes
    for name in ("net.onnx", "net.onnx.onnx", "net"):
        replace_file(tmp_path / name, b"newer")
    assert names(tmp_path) == sorted(["net", "net.onnx", "net.onnx.onnx", *bystanders])


@pytest.mark.parametrize("locks", ["no fcntl", "a file system without locks"])
def test_without_locks_age_decides(tmp_path, monkeypatch, locks):
    if locks == "no fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    path, (young, old) = tmp_path / "net.onnx", [write_beside(tmp_path / "net.onnx", b"") for _ in range(2)]
    os.utime(old.file, (time.time() - 90_000,) * 2)
    replace_file(path, b"new")
    assert names(tmp_path) == sorted([young.file.name, "net.onnx"])
    assert path.read_bytes() == b"new"
    for draft in (young, old):
        draft.drop()
    assert names(tmp_path) == ["net.onnx"]


def test_a_draft_that_is_swept_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    lock, swept = files._lock, []

    def after_a_sweep(descriptor, *patience, **options):
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        return lock(descriptor, *patience, **options)

    monkeypatch.setattr(files, "_lock", after_a_sweep)
    replace_file(tmp_path / "net.onnx", b"new")
    assert names(tmp_path) == ["net.onnx"]
    assert len(swept) == 1


WRITES_OFTEN = """
from seqexport.files import replace_file
content = sys.argv[2].encode() * 100_000
for _ in range(30):
    replace_file(Path(sys.argv[1]), content)
"""


def test_whoever_reads_while_eight_write_sees_one_of_the_eight(tmp_path):
    path, letters = tmp_path / "file", "abcdefgh"
    replace_file(path, b"a" * 100_000)
    children, seen = [python(WRITES_OFTEN, path, letter) for letter in letters], set()
    while any(child.poll() is None for child in children):
        content = path.read_bytes()
        seen.add(content[:1].decode())
        assert content == content[:1] * 100_000
    for child in children:
        answer(child)
    assert names(tmp_path) == ["file"]
    assert seen <= set(letters)
    assert len(seen) > 1


@pytest.fixture
def open_folder():
    """A folder that any user may write to, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
        folder.chmod(0o777)


# What another user than root is told, in a child that has imported all it needs, which that user may not read.
TRIES = f"""
from seqexport.errors import FileError
from seqexport.files import put_in_place, replace_file, write_beside
os.setuid({NOBODY})
try:
    if len(sys.argv) == 2:
        replace_file(Path(sys.argv[1]), b"new")
    else:
        put_in_place([write_beside(Path(path), b"new") for path in sys.argv[1:]])
except FileError as error:
    print(error)
"""


@ROOT_ONLY
def test_a_folder_without_the_right_to_write(open_folder):
    path = open_folder / "net.onnx"
    path.write_bytes(b"old")
    open_folder.chmod(0o755)
    assert answer(python(TRIES, path)) == (
        f"The folder {open_folder} is not writable: change its permissions, or choose another output."
    )
    open_folder.chmod(0o700)
    assert answer(python(TRIES, path)) == f"{path} could not be reached (Permission denied): choose another output."
    assert (names(open_folder), path.read_bytes()) == (["net.onnx"], b"old")


@ROOT_ONLY
def test_a_read_only_file_is_not_replaced(open_folder):
    path = open_folder / "net.onnx"
    path.write_bytes(b"old")
    path.chmod(0o444)
    os.chown(path, NOBODY, NOBODY)
    assert answer(python(TRIES, path)) == f"{path} is read-only: change its permissions, or choose another output."
    assert (names(open_folder), path.read_bytes()) == (["net.onnx"], b"old")


@ROOT_ONLY
@pytest.mark.parametrize("there", [True, False])
def test_a_pair_whose_second_file_can_not_be_replaced_stays_as_it_was(open_folder, there):
    """In a folder like /tmp a user may write to root's file, if its mode says so, but not rename over it."""
    network, pipeline = open_folder / "net.onnx", open_folder / "net.forecast.onnx"
    pipeline.write_bytes(b"old pipeline")
    pipeline.chmod(0o666)
    if there:
        network.write_bytes(b"old network")
        os.chown(network, NOBODY, NOBODY)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in open_folder.iterdir()}
    open_folder.chmod(0o1777)
    said = answer(python(TRIES, network, pipeline))
    assert said == f"{pipeline} could not be replaced (Operation not permitted): check its permissions."
    # The drafts stay in this test, whose child does not drop them as an export does; the next write takes them away.
    for path in (network, pipeline):
        for draft in open_folder.glob(f".{path.name}.*{DRAFT_SUFFIX}"):
            draft.unlink()
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in open_folder.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system of 64 kB could not be mounted: not root, or not allowed to")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def said_by(capsys, *arguments):
    """The exit code and the one line that the command says."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return code, line


def test_a_full_disk(small_disk, tmp_path, capsys):
    torch.save(nn.LSTM(3, 96, batch_first=True).state_dict(), tmp_path / "bare.pt")  # 160 kB
    path = small_disk / "net.onnx"
    path.write_bytes(b"old")
    code, line = said_by(capsys, tmp_path / "bare.pt", "-o", path)
    assert (code, line) == (2, f"seqexport: {path} could not be written (No space left on device): free some space.")
    assert (names(small_disk), path.read_bytes()) == (["net.onnx"], b"old")
    replace_file(path, b"new" * 4_000)
    assert path.read_bytes() == b"new" * 4_000


@ROOT_ONLY
def test_a_read_only_disk(small_disk, tmp_path):
    path = small_disk / "net.onnx"
    path.write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FileError, match=r"^The folder \S+ is not writable: [^.]+\.$"):
        replace_file(path, b"new")
    assert (names(small_disk), path.read_bytes()) == (["net.onnx"], b"old")


def test_a_limit_on_the_size_of_files(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    code = """
import resource
from seqexport.files import FileError, replace_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    replace_file(Path(sys.argv[1]), b"new" * 4_000)
except FileError as error:
    print(error)
"""
    limit = "raise the limit on the size of files"
    assert answer(python(code, path)) == f"{path} could not be written (File too large): {limit}."
    assert (names(tmp_path), path.read_bytes()) == (["net.onnx"], b"old")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(FileError, match="File name too long.*: choose a shorter name"):
        replace_file(tmp_path / ("n" * 250), b"new")
    with pytest.raises(FileError, match="File name too long"):
        replace_file(tmp_path / ("n" * 300), b"new")
    assert names(tmp_path) == []


@pytest.fixture
def null(tmp_path):
    """A null device of the test's own: a failing test, run by root, must not be what replaces the machine's."""
    folder = tmp_path / "devices"
    folder.mkdir()
    try:
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, Path(os.devnull).stat().st_rdev)
    except PermissionError:
        pytest.skip("a device could not be made: not root, or not allowed to")
    return folder / "null"


def test_a_device_is_not_replaced(null, tmp_path, capsys):
    source, link = save_forecaster(tmp_path / "net.pt"), tmp_path / "link"
    link.symlink_to(null)
    before = null.stat()
    for path in (null, link):
        assert said_by(capsys, source, "-o", path) == (2, f"seqexport: {path} {NO_FILE}")
    after = null.stat()
    assert (after.st_ino, after.st_rdev, after.st_mode) == (before.st_ino, before.st_rdev, before.st_mode)
    assert (names(null.parent), link.is_symlink()) == (["null"], True)


def test_a_pipe_is_not_replaced(tmp_path, capsys):
    source, pipe = save_forecaster(tmp_path / "net.pt"), tmp_path / "pipe"
    os.mkfifo(pipe)
    assert said_by(capsys, source, "-o", pipe) == (2, f"seqexport: {pipe} {NO_FILE}")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["net.pt", "pipe"]


def test_a_pipeline_that_can_not_be_put_is_said_before_anything_is_traced(tmp_path):
    source = save_forecaster(tmp_path / "net.pt")
    (tmp_path / "net.forecast.onnx").mkdir()
    with pytest.raises(FileError, match="net.forecast.onnx is a folder"):
        seqexport.export(source)
    assert names(tmp_path) == ["net.forecast.onnx", "net.pt"]


def test_a_destination_that_became_something_else_during_the_export_is_left(tmp_path):
    first, second = tmp_path / "net.onnx", tmp_path / "net.forecast.onnx"
    drafts = [write_beside(path, b"new") for path in (first, second)]
    os.mkfifo(second)
    with pytest.raises(FileError, match="expected a file"):
        put_in_place(drafts)
    for draft in drafts:
        draft.drop()
    assert names(tmp_path) == ["net.forecast.onnx"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    real, here = tmp_path / "real", tmp_path / "here"
    for folder in (real, here):
        folder.mkdir()
    (real / "net.onnx").write_bytes(b"old")
    (here / "net.onnx").symlink_to("../real/net.onnx")
    (here / "new.onnx").symlink_to(real / "new.onnx")
    for name in ("net.onnx", "new.onnx"):
        replace_file(here / name, b"new")
        assert (here / name).is_symlink()
        assert (real / name).read_bytes() == b"new"
    assert (names(here), names(real)) == (["net.onnx", "new.onnx"],) * 2


@pytest.mark.parametrize(("target", "sentence"), [("net.onnx", "symbolic links"), ("none/net.onnx", "does not exist")])
def test_a_link_that_leads_nowhere(tmp_path, target, sentence):
    (tmp_path / "net.onnx").symlink_to(target)
    with pytest.raises(FileError, match=sentence):
        replace_file(tmp_path / "net.onnx", b"new")
    assert names(tmp_path) == ["net.onnx"]


def test_mode_and_owner_of_a_replaced_file_stay(tmp_path):
    path = tmp_path / "net.onnx"
    replace_file(path, b"old")
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()
    replace_file(path, b"new")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_polite_signals_wait_until_a_pair_is_whole(tmp_path, monkeypatch, number):
    drafts = [write_beside(tmp_path / name, b"new") for name in ("a", "b")]
    replace, handled = Path.replace, []

    def signalled(self, target):
        os.kill(os.getpid(), number)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", signalled)
    former = signal.signal(number, lambda *_: handled.append(names(tmp_path)))
    try:
        put_in_place(drafts)
        assert signal.getsignal(number) != signal.SIG_DFL
    finally:
        signal.signal(number, former)
        for draft in drafts:
            draft.drop()
    assert set(map(tuple, handled)) == {("a", "b")}


def test_pairs_that_race_take_turns(tmp_path, monkeypatch):
    drafts = [write_beside(tmp_path / name, b"new") for name in ("a", "b")]
    with files._turn(tmp_path):
        thread = threading.Thread(target=put_in_place, args=(drafts,))
        thread.start()
        time.sleep(0.2)
        assert not {"a", "b"} & set(names(tmp_path))
    thread.join()
    assert names(tmp_path) == ["a", "b"]
    monkeypatch.setattr(files, "TURN_SECONDS", 0.0)
    with files._turn(tmp_path):  # a stranger who never lets go is not waited for
        replace_file(tmp_path / "a", b"newer")
    for draft in drafts:
        draft.drop()


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    fsync, flushed = os.fsync, []

    def noted(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_folder, (tmp_path / "net.onnx").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    replace_file(tmp_path / "net.onnx", b"new")
    assert flushed == [(False, False), (True, True)]


@ROOT_ONLY
def test_a_folder_that_can_be_written_but_not_listed(open_folder):
    path = open_folder / "net.onnx"
    open_folder.chmod(0o733)
    assert answer(python(TRIES, path)) == ""
    assert (names(open_folder), path.read_bytes()) == (["net.onnx"], b"new")


def test_another_thread_may_write(tmp_path):
    thread = threading.Thread(target=replace_file, args=(tmp_path / "net.onnx", b"new"))
    thread.start()
    thread.join()
    assert (tmp_path / "net.onnx").read_bytes() == b"new"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "net.onnx", b"new")
    assert names(tmp_path) == []


MARK = "made by us"
FOLDER = {"README.md": MARK.encode(), "one/a": b"new", "two/deep/b": b"new"}


def test_a_folder_is_written_whole(tmp_path):
    place = tmp_path / "above" / "folder"
    for content in (b"new", b"newer"):
        written = files.write_folder(place, FOLDER | {"one/a": content}, MARK)
        assert [path.relative_to(place).as_posix() for path in written] == list(FOLDER)
        assert (place / "one" / "a").read_bytes() == content
    assert {path.name for path in place.rglob("*")} == {"README.md", "one", "a", "two", "deep", "b"}


def test_a_folder_that_fails_leaves_nothing_new(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="free some space"):
        files.write_folder(tmp_path / "above" / "folder", FOLDER, MARK)
    assert names(tmp_path) == []
    monkeypatch.setattr(os, "fsync", fsync)
    files.write_folder(tmp_path / "folder", FOLDER, MARK)
    calls.clear()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="free some space"):
        files.write_folder(tmp_path / "folder", dict.fromkeys(FOLDER, b"newer"), MARK)
    assert [(tmp_path / "folder" / name).read_bytes() for name in FOLDER] == list(FOLDER.values())
    assert names(tmp_path / "folder" / "one") == ["a"]


def test_a_folder_with_what_is_not_ours_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="file is a file; expected a folder"):
        files.write_folder(tmp_path / "file", FOLDER, MARK)
    with pytest.raises(FileError, match="could not be made"):
        files.write_folder(tmp_path / "file" / "folder", FOLDER, MARK)
    with pytest.raises(FileError, match="holds file, which is not of what would be written"):
        files.write_folder(tmp_path, FOLDER, MARK)
    assert names(tmp_path) == ["file"]
    (tmp_path / "file").unlink()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"")
    files.write_folder(tmp_path, FOLDER, MARK)
    (tmp_path / "README.md").write_text("no longer by us")
    with pytest.raises(FileError, match="holds README.md"):
        files.write_folder(tmp_path, FOLDER, MARK)


# What writes by itself, each into a folder that it made for the purpose, or into nothing.
ALLOWED = {
    ("seqexport/files.py", "open"),
    ("seqexport/cli.py", "open"),  # os.devnull for stdout
    ("seqexport/selftest.py", "write_text"),
    ("seqexport/selftest.py", "fdopen"),  # stdout
    ("training/coverage.py", "open"),  # os.devnull
    ("seqexport/comparison.py", "save"),  # the untrained nets of the map
    ("training/exporting.py", "save"),
    ("tabs/examples.py", "save"),  # drafts, which are renamed when they are whole
    *(("training/samples.py", name) for name in ("open", "write_text")),  # fetched, for the time of a measurement
    ("training/journal.py", "open"),  # which is added to, line by line
    ("training/journal.py", "write_text"),
    # What breaks files on purpose does so in temporary folders.
    *(("training/fuzz.py", name) for name in ("open", "save", "write_bytes", "write_text")),
    ("training/guided.py", "write_bytes"),
    ("training/mutation.py", "open"),  # os.devnull
}


def writing_calls(path):
    """The calls in a module that can write a file in place."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [arg.value for arg in given if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        flags = any("O_WRONLY" in ast.unparse(arg) or "O_RDWR" in ast.unparse(arg) for arg in node.args)
        opens = name in ("open", "fdopen") and (flags or any(set(mode) & set("wax+") for mode in modes))
        to_a_buffer = (
            name in ("save", "savez", "savefig") and ast.unparse(node.args[-1 if name == "save" else 0]) in BUFFERS
        )
        if opens or (name in WRITERS and not to_a_buffer):
            yield name


WRITERS = ("write_text", "write_bytes", "save", "savez", "save_file", "save_model", "savefig", "tofile", "to_csv")
BUFFERS = ("buffer", "content")


def test_everything_that_writes_writes_through_files():
    modules = [
        ROOT / "demo.py",
        *(path for name in ("seqexport", "training", "tabs") for path in (ROOT / name).glob("*.py")),
    ]
    found = {(str(path.relative_to(ROOT)), name) for path in modules for name in writing_calls(path)}
    assert found == ALLOWED
