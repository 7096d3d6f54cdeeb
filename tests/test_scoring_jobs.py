"""Runs of score that stop, are killed or are shared: nothing is scored twice or lost, and memory stays what it is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tables import damaged_further_on, sixty_texts, write

import seqexport
from seqexport import FileError, jobs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def classifier(exported_texts):
    return exported_texts["classify"].with_suffix(".onnx")


@pytest.fixture
def many(tmp_path):
    return sixty_texts(tmp_path)


class Stop(Exception):
    pass


def stopping(after):
    """A `say` that ends the run after so many chunks."""
    count = 0

    def say(*_):
        nonlocal count
        count += 1
        if count == after:
            raise Stop

    return say


def scored_rows(monkeypatch):
    """The numbers of the rows that the model is asked about, from here on."""
    asked, ask = [], jobs.answer

    def noted(question, numbers, values):
        asked.extend(numbers)
        return ask(question, numbers, values)

    monkeypatch.setattr(jobs, "answer", noted)
    return asked


@pytest.mark.parametrize("into", ["out.csv", "out.parquet"])
def test_a_run_that_stopped_is_gone_on_with_and_no_row_is_asked_twice(classifier, many, tmp_path, monkeypatch, into):
    (tmp_path / "whole").mkdir()
    how = {"chunk": 7}
    seqexport.score(classifier, many, tmp_path / "whole" / into, **how)
    asked = scored_rows(monkeypatch)
    for after in (1, 3, 5):
        with pytest.raises(Stop):
            seqexport.score(classifier, many, tmp_path / into, say=stopping(after), **how)
        assert not (tmp_path / into).exists()
    found = seqexport.score(classifier, many, tmp_path / into, **how)
    assert asked == list(range(60))
    assert found["scored_before"] == 35 and found["rows"] == 60
    for name in (into, into + ".rejected.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / (into + ".parts")).exists()


def test_another_job_is_not_gone_on_with(classifier, many, tmp_path, exported_texts):
    output = tmp_path / "out.csv"

    def begin():
        with pytest.raises(Stop):
            seqexport.score(classifier, many, output, chunk=7, restart=True, say=stopping(2))

    begin()
    for name, how in (("chunk", {"chunk": 8}), ("probabilities", {"chunk": 7, "probabilities": True})):
        with pytest.raises(FileError, match=f"was scored with another {name}: give --restart"):
            seqexport.score(classifier, many, output, **how)
    checkpoint = exported_texts["classify"]
    with pytest.raises(FileError, match="with another model: give --restart"):
        seqexport.score(checkpoint, many, output, chunk=7)
    many.write_bytes(many.read_bytes() + b"60,what\n")
    with pytest.raises(FileError, match="with another data: give --restart"):
        seqexport.score(classifier, many, output, chunk=7)
    found = seqexport.score(classifier, many, output, chunk=7, restart=True)
    assert (found["rows"], found["scored_before"]) == (61, 0)


def test_data_that_change_meanwhile_are_noticed(classifier, many, tmp_path):
    def say(*_):
        os.utime(many, (1, 1))

    with pytest.raises(FileError, match="was changed while it was scored"):
        seqexport.score(classifier, many, tmp_path / "out.csv", say=say)
    assert not (tmp_path / "out.csv").exists()


def test_a_run_that_was_killed_while_it_tidied_up(classifier, many, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    monkeypatch.setattr(jobs.Job, "tidy", lambda job: None)
    first = seqexport.score(classifier, many, output, chunk=7)
    next((tmp_path / "out.csv.parts").glob("part-*.data")).unlink()
    monkeypatch.undo()
    asked = scored_rows(monkeypatch)
    again = seqexport.score(classifier, many, output, chunk=7)
    assert asked == [] and {**again, "seconds": 0, "scored_before": 0} == {**first, "seconds": 0}
    assert not (tmp_path / "out.csv.parts").exists()


def test_two_at_once_and_strangers_are_refused(classifier, many, tmp_path):
    def say(*_):
        with pytest.raises(FileError, match="Another process is at work in"):
            seqexport.score(classifier, many, tmp_path / "out.csv")
        raise Stop

    with pytest.raises(Stop):
        seqexport.score(classifier, many, tmp_path / "out.csv", say=say)
    (tmp_path / "out.csv.parts" / "thesis.doc").write_bytes(b"mine")
    with pytest.raises(FileError, match=r"holds thesis.doc, which is not of score"):
        seqexport.score(classifier, many, tmp_path / "out.csv", restart=True)
    assert (tmp_path / "out.csv.parts" / "thesis.doc").read_bytes() == b"mine"


def killed(model, folder, kills):
    """What tests/killing_scores.py found."""
    command = [sys.executable, "tests/killing_scores.py", str(model), str(folder), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] == kills
    assert found["between"] >= kills // 4, found  # most were in the midst of the work
    assert (found["different"], found["strays"]) == (0, []), found
    # A chunk that was being scored when the kill came is scored again; one that was kept never is.
    assert found["kept_and_scored_again"] == 0, found


def test_runs_that_are_killed_lose_and_repeat_nothing(classifier, tmp_path):
    killed(classifier, tmp_path, 8)


@pytest.mark.slow
def test_two_hundred_runs_that_are_killed(classifier, tmp_path):
    killed(classifier, tmp_path, 200)


# Ray.


def ray_command(model, data, output, *more):
    command = [sys.executable, "-m", "seqexport", "score", model, data, "-o", output, "--chunk", "50", "--json"]
    # A worker's home is another folder; the package is not installed where the tests run.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command), "--engine", "ray", *more], cwd=ROOT, env=environment, **pipes)


def workers_of(folder):
    """The process numbers that have done chunks."""
    notes = [json.loads(path.read_bytes()) for path in folder.glob("part-*.json")]
    return {int(note["by"].split(":")[-1]) for note in notes}


@pytest.fixture
def enough(tmp_path):
    rng = np.random.default_rng(4)
    texts = ["".join(rng.choice(list("what is"), rng.integers(1, 300))) for _ in range(5_000)]
    texts[::9] = [""] * len(texts[::9])
    return write(tmp_path / "in.csv", {"id": list(range(5_000)), "text": texts})


@pytest.mark.slow
def test_ray_gives_the_same_bytes_with_a_worker_killed_midway(classifier, enough, tmp_path):
    (tmp_path / "one").mkdir()
    seqexport.score(classifier, enough, tmp_path / "one" / "out.csv", chunk=50)
    output, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    run, dead = ray_command(classifier, enough, output, "--workers", "2"), set()
    try:
        while run.poll() is None and len(dead) < 2:
            for worker in workers_of(parts) - dead if parts.exists() else ():
                if len(dead) < 2 and len(list(parts.glob("part-*.json"))) < 80:
                    os.kill(worker, signal.SIGKILL)
                    dead.add(worker)
            time.sleep(0.01)
        out, err = run.communicate(timeout=900)
    finally:
        run.kill()
    assert run.returncode == 0, err
    assert len(dead) == 2, "the run was over before two workers could be killed"
    found = json.loads(out)
    assert (found["rows"], found["scored"], found["rejected"]) == (5_000, 4_444, 556)
    for name in ("out.csv", "out.csv.rejected.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_what_ray_began_one_process_ends_and_the_other_way_round(classifier, enough, tmp_path):
    (tmp_path / "one").mkdir()
    seqexport.score(classifier, enough, tmp_path / "one" / "out.csv", chunk=50)
    output, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    with pytest.raises(Stop):
        seqexport.score(classifier, enough, output, chunk=50, say=stopping(10))
    run = ray_command(classifier, enough, output, "--workers", "2")
    try:
        while run.poll() is None and len(list(parts.glob("part-*.json"))) < 40:
            time.sleep(0.01)
    finally:
        run.kill()
        run.communicate()
    assert 40 <= len(list(parts.glob("part-*.json"))) < 100
    for _ in range(100):  # Ray's own processes notice, some time later, that the run is dead
        kept = len(list(parts.glob("part-*.json")))
        time.sleep(1)
        if len(list(parts.glob("part-*.json"))) == kept:
            break
    found = seqexport.score(classifier, enough, output, chunk=50)
    assert found["scored_before"] >= 40 * 50
    assert output.read_bytes() == (tmp_path / "one" / "out.csv").read_bytes()


@pytest.mark.slow
def test_what_is_wrong_on_a_worker_is_a_sentence(classifier, tmp_path):
    path = damaged_further_on(tmp_path / "in.parquet")
    out, err = ray_command(classifier, path, tmp_path / "out.csv", "--workers", "1").communicate(timeout=900)
    assert "On a worker: " in json.loads(out)["error"] and "is damaged in its rows" in json.loads(out)["error"]
    assert "\nseqexport: On a worker: " in "\n" + err and "Traceback" not in err, err


MEMORY = """
import sys
import seqexport
seqexport.score(sys.argv[1], sys.argv[2], sys.argv[3], chunk=2000)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "into"), [(".csv", ".parquet"), (".parquet", ".csv"), (".jsonl", ".jsonl")])
def test_memory_does_not_grow_with_the_rows(classifier, tmp_path, kind, into):
    peaks = []
    for rows in (10_000, 100_000):
        columns = {"id": list(map(str, range(rows))), "text": ["what"] * rows}
        data = write(tmp_path / f"{rows}{kind}", columns, group=rows)
        command = [sys.executable, "-c", MEMORY, classifier, data, tmp_path / f"out{into}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    print(peaks)
    assert peaks[1] < peaks[0] + 24  # MiB
