"""What all trainings have in common: going on after a stop, several processes, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from seqexport.checkpoint import read_checkpoint
from seqexport.errors import CheckpointError, FileError, SpecError
from training import chargen, forecasting, language, sentiment
from training.command import Options
from training.loop import Training

ROOT = Path(__file__).parents[1]
PRETRAINED = sentiment.Recipe(
    embedding=8, hidden_size=16, language=language.Recipe(epochs=1, streams=4, window=12, drawn=10, looks=3)
)


def pretrained(options: Options) -> dict:
    """The classifier that learns the language of its texts first: two trainings, one after the other."""
    return sentiment.train(options, PRETRAINED, beside=False)


TASKS = {
    "forecast": (forecasting.train, "sine", 60),
    "classify": (sentiment.train, "opinions", 40),
    "generate": (chargen.train, "sentences", 22),
}
EVERY_TASK = pytest.mark.parametrize("train, data, steps", TASKS.values(), ids=TASKS)


pytestmark = pytest.mark.usefixtures("baselines_once")


def options_of(data: str, out: Path, **changes: object) -> Options:
    return Options(**{"cell": "gru", "data": data, "out": out, "preset": "tutorial", "threads": 1} | changes)


def distance(first: Path, second: Path) -> float:
    one, other = (read_checkpoint(path).weights for path in (first, second))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    "train, data, steps", [*TASKS.values(), (pretrained, "opinions", 20)], ids=[*TASKS, "pretrained"]
)
def test_a_stopped_training_goes_on_to_the_same_weights(train, data, steps, tmp_path, monkeypatch):
    train(options_of(data, tmp_path / "whole.pt", steps=steps))
    taken, descend = 0, Training.descend

    def stopped(self: Training, loss: torch.Tensor) -> None:
        nonlocal taken
        taken += 1
        if taken in stops:
            raise KeyboardInterrupt
        descend(self, loss)

    last = steps * (2 if train is pretrained else 1)
    stops = set(np.random.default_rng().integers(steps // 3, last, 2).tolist())
    monkeypatch.setattr(Training, "descend", stopped)
    out = tmp_path / "net.pt"
    for _ in range(3):
        try:
            metrics = train(options_of(data, out, steps=steps))
            break
        except KeyboardInterrupt:
            assert not out.exists()
    assert distance(out, tmp_path / "whole.pt") == 0, stops
    assert metrics["curve"] == read_checkpoint(tmp_path / "whole.pt").metrics["curve"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.curve.png",
        "net.pt",
        "whole.curve.png",
        "whole.pt",
    ]


def test_another_training_is_not_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "net.pt"
    monkeypatch.setattr(Training, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forecasting.train(options_of("sine", out, steps=30))
    stopped = (tmp_path / "net.pt.stopped").read_bytes()
    with pytest.raises(
        FileError, match=r"net\.pt\.stopped is of a training that was stopped and had seed 0 and not 1:"
    ):
        forecasting.train(options_of("sine", out, steps=30, seed=1))
    assert (tmp_path / "net.pt.stopped").read_bytes() == stopped
    (tmp_path / "net.pt.stopped").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"net\.pt\.stopped is not a checkpoint"):
        forecasting.train(options_of("sine", out, steps=30))


def test_a_training_that_was_over_when_it_was_stopped_takes_no_further_step(tmp_path, monkeypatch):
    small = dataclasses.replace(forecasting.Recipe(hidden_size=8, context=20, burn_in=4), every=2, patience=1)
    monkeypatch.setattr(forecasting, "recipe", lambda *about: dataclasses.replace(small, learning_rate=1.0))
    forecasting.train(options_of("sine", tmp_path / "whole.pt", steps=60))
    curve = read_checkpoint(tmp_path / "whole.pt").metrics["curve"]
    assert curve[-1][0] < 60  # patience ended it
    with monkeypatch.context() as patched:
        patched.setattr(Training, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forecasting.train(options_of("sine", tmp_path / "net.pt", steps=60))
    forecasting.train(options_of("sine", tmp_path / "net.pt", steps=60))
    assert read_checkpoint(tmp_path / "net.pt").metrics["curve"] == curve
    assert distance(tmp_path / "net.pt", tmp_path / "whole.pt") == 0


@pytest.mark.slow
@EVERY_TASK
def test_a_killed_training_goes_on_to_the_same_weights(train, data, steps, tmp_path):
    train(options_of(data, tmp_path / "whole.pt", steps=steps))
    command = [
        sys.executable,
        "-m",
        train.__module__,
        "--cell",
        "gru",
        "--data",
        data,
        "--out",
        str(tmp_path / "net.pt"),
    ]
    command += ["--preset", "tutorial", "--threads", "1", "--steps", str(steps)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = (tmp_path / "net.pt.stopped").stat().st_mtime_ns if (tmp_path / "net.pt.stopped").exists() else 0
        while process.poll() is None:  # until it has got further than before
            if (path := tmp_path / "net.pt.stopped").exists() and path.stat().st_mtime_ns > known:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.001)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert distance(tmp_path / "net.pt", tmp_path / "whole.pt") == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_have_the_loss_curve_of_one(task, tmp_path):
    """Without dropout, whose masks each process draws for itself, they differ by the rounding of sums alone."""
    train, data, steps = TASKS[task]
    script = tmp_path / "train.py"
    script.write_text(
        "import dataclasses, sys\n"
        f"from {train.__module__} import Recipe, train\n"
        f"import {train.__module__} as module\n"
        "from pathlib import Path\n"
        "from training.command import Options\n"
        "plan = module.recipe\n"
        "module.recipe = lambda *about: dataclasses.replace(plan(*about), dropout=0.0)\n"
        f"about = dict(cell='gru', data={data!r}, preset='tutorial', threads=1, steps={steps})\n"
        "train(Options(out=Path(sys.argv[1]), **about))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    for count in (1, 2):
        command = [*launch, "--num_processes", str(count), "--mixed_precision", "no", str(script)]
        done = subprocess.run(
            [*command, str(tmp_path / f"{count}.pt")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (np.array(read_checkpoint(tmp_path / f"{count}.pt").metrics["curve"]) for count in (1, 2))
    assert len(one) >= 3
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert distance(tmp_path / "1.pt", tmp_path / "2.pt") < 1e-2


def test_nothing_or_two_things_to_learn_from_are_refused(tmp_path):
    for source in ({"data": None}, {"file": tmp_path / "series.csv"}):
        with pytest.raises(SpecError, match=r"nothing to learn from: give either"):
            Options(**{"cell": "gru", "data": "sine", "out": tmp_path / "net.pt"} | source)
