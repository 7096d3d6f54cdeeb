"""Measure what README says of speed, and write it there.

    python -m training.measure

Ratios within one run: one thread each, warmed up, taking turns, medians. Answers must agree before they are timed. Run
it on a machine that does nothing else (about three minutes); the reviews are fetched.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seqexport
from seqexport.pipelines import Scaling
from seqexport.runtimes import Runtime
from seqexport.text import Vocabulary
from training import data as datasets
from training.publish import ROOT, write_block

ROUNDS = 15
HORIZON = 50
CHARACTERS = 500
TEXTS = 96
BATCH = 32


def taking_turns(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each call, over rounds in which every call runs once, in changing order, after a warm-up."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-2, rounds):
        for name in rng.permutation(list(calls)):
            start = time.perf_counter()
            calls[str(name)]()
            if round_ >= 0:
                seconds[str(name)].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_turn(network: Runtime, history: np.ndarray, reread: bool) -> np.ndarray:
    """The central path by a Python loop over the network: with carried state, or reading all values again each step."""
    scaling = Scaling.from_dict(network.metadata["preprocessing"]["scaling"])
    z = scaling.apply(torch.from_numpy(history)).numpy()[..., None]
    state: dict[str, np.ndarray] = {}
    path = []
    for _ in range(HORIZON):
        outputs = network.run({"x": z, **state})
        following = outputs["y"][:, -1:, :1]
        path.append(following)
        if reread:
            z = np.concatenate([z, following], axis=1)[:, -history.shape[1] :]
        else:
            z = following
            state = {name: outputs[output] for name, output in network.metadata["state_map"].items()}
    return scaling.undo(torch.from_numpy(np.concatenate(path, axis=1)[..., 0])).numpy()


def sunspots(context: int) -> np.ndarray:
    """The last values of the shipped series, float32 [1, context]."""
    values = np.loadtxt(ROOT / "exported" / "sunspots.csv", delimiter=",", skiprows=1, usecols=1, dtype=np.float32)
    return values[None, -context:]


def measure_forecast(folder: Path, paths: int) -> list[str]:
    """Rows of README's table: a forecast by every way there is, whose answers must agree before they are timed."""
    checkpoint, exported = folder / "checkpoint.pt", folder / "checkpoint.onnx"
    rng = np.random.default_rng(0)
    history = sunspots(seqexport.load(exported).metadata["preprocessing"]["context"])
    noise = rng.standard_normal((1, paths, HORIZON)).astype(np.float32) if paths > 1 else np.zeros((1, 1, HORIZON))
    feeds = {"history": history, "noise": noise}
    pipelines = {
        "onnxruntime, loop in the graph": seqexport.load(exported, pipeline="forecast"),
        "torch, oneDNN on (its default)": seqexport.load(checkpoint, pipeline="forecast", onednn=True),
        "torch, oneDNN off": seqexport.load(checkpoint, pipeline="forecast", onednn=False),
    }

    def runner(pipeline: Runtime) -> Callable[[], np.ndarray]:
        return lambda: pipeline.run(feeds)["path"]

    calls = {name: runner(pipeline) for name, pipeline in pipelines.items()}
    if paths == 1:
        step, slow = seqexport.load(exported), seqexport.load(checkpoint)
        calls["onnxruntime, a Python loop with carried state"] = lambda: in_turn(step, history, reread=False)
        calls["torch, the window read again at every step"] = lambda: in_turn(slow, history, reread=True)
    expected = calls["torch, oneDNN on (its default)"]().ravel()
    for name, call in calls.items():
        # Re-reading a window that slides loses what lies before it, so its answer is another one by design.
        if "window" not in name:
            error = np.abs(call().ravel() - expected).max() / max(1.0, np.abs(expected).max())
            if not error <= 1e-4:
                raise seqexport.SeqExportError(f"{name} differs by {error:.1e}: its speed means nothing.")
    seconds = taking_turns(calls)
    best = seconds["onnxruntime, loop in the graph"]
    what = f"{HORIZON} steps, {paths} path{'s' if paths > 1 else ''}"
    return [f"| {what} | {name} | {1e3 * value:.2f} ms | {value / best:.1f} |" for name, value in seconds.items()]


def step_by_step(network: Runtime, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """A text by a Python loop over the network with carried state: what one writes without a loop in the graph."""
    state: dict[str, np.ndarray] = {}
    read, tokens = feeds["prompt"], []
    for u in feeds["uniforms"][0]:
        outputs = network.run({"tokens": read, **state})
        logits = outputs["y"][0, -1]
        p = np.exp(logits - logits.max())
        tokens.append(min(int((p.cumsum() <= u * p.sum()).sum()), len(p) - 1))
        read = np.array([[tokens[-1]]])
        state = {name: outputs[output] for name, output in network.metadata["state_map"].items()}
    return np.array([tokens])


def measure_generate(folder: Path) -> list[str]:
    """Rows of README's table: a text of CHARACTERS characters by every way there is."""
    checkpoint, exported = folder / "checkpoint.pt", folder / "checkpoint.onnx"
    rng = np.random.default_rng(0)
    feeds = {"prompt": np.array([[1, 2, 3]]), "uniforms": rng.random((1, CHARACTERS), np.float32)}
    pipelines = {
        "onnxruntime, loop in the graph": seqexport.load(exported, pipeline="generate"),
        "torch, oneDNN on (its default)": seqexport.load(checkpoint, pipeline="generate", onednn=True),
        "torch, oneDNN off": seqexport.load(checkpoint, pipeline="generate", onednn=False),
    }

    def runner(pipeline: Runtime) -> Callable[[], np.ndarray]:
        return lambda: pipeline.run(feeds)["tokens"]

    calls = {name: runner(pipeline) for name, pipeline in pipelines.items()}
    step = seqexport.load(exported)
    calls["onnxruntime, a Python loop with carried state"] = lambda: step_by_step(step, feeds)
    expected = calls["torch, oneDNN off"]()
    for name, call in calls.items():
        if not np.array_equal(call(), expected):
            raise seqexport.SeqExportError(f"{folder.name}: {name} writes another text: its speed means nothing.")
    seconds = taking_turns(calls, rounds=7)
    best = seconds["onnxruntime, loop in the graph"]
    what = f"{CHARACTERS} characters, {folder.name}"
    return [
        f"| {what} | {name} | {CHARACTERS / value:,.0f} characters/s | {value / best:.1f} |"
        for name, value in seconds.items()
    ]


def measure_classify(folder: Path, texts: Sequence[str]) -> list[str]:
    """Rows of README's table: real reviews, their split into tokens included, one by one and in padded batches."""
    checkpoint, exported = folder / "checkpoint.pt", folder / "checkpoint.onnx"
    runtimes = {
        "onnxruntime": seqexport.load(exported, pipeline="classify"),
        "torch, oneDNN on (its default)": seqexport.load(checkpoint, pipeline="classify", onednn=True),
        "torch, oneDNN off": seqexport.load(checkpoint, pipeline="classify", onednn=False),
    }
    vocabulary = Vocabulary.from_dict(runtimes["onnxruntime"].metadata["preprocessing"]["vocabulary"])

    def classify(runtime: Runtime, size: int) -> np.ndarray:
        answers = []
        for start in range(0, len(texts), size):
            tokens, lengths = vocabulary.encode_batch(texts[start : start + size])
            answers.append(runtime.run({"tokens": tokens, "lengths": lengths})["probabilities"])
        return np.concatenate(answers)

    def caller(runtime: Runtime, size: int) -> Callable[[], np.ndarray]:
        return lambda: classify(runtime, size)

    calls = {
        f"{name}, {'one by one' if size == 1 else f'padded batches of {size}'}": caller(runtime, size)
        for name, runtime in runtimes.items()
        for size in (1, BATCH)
    }
    expected = classify(runtimes["torch, oneDNN off"], 1)
    for name, call in calls.items():
        error = np.abs(call() - expected).max()
        if not error <= 1e-4:
            raise seqexport.SeqExportError(f"{folder.name}: {name} differs by {error:.1e}: its speed means nothing.")
    seconds = taking_turns(calls, rounds=5)
    best = seconds["onnxruntime, one by one"]
    mean = np.mean([len(vocabulary.encode(text)) for text in texts])
    what = f"{len(texts)} reviews of {mean:.0f} tokens, {folder.name}"
    return [
        f"| {what} | {name} | {len(texts) / value:,.0f} texts/s | {value / best:.1f} |"
        for name, value in seconds.items()
    ]


def reviews(name: str) -> list[str]:
    """TEXTS texts of the test part, evenly spread over it, in its order."""
    part = datasets.load_reviews(name).parts["test"]
    return [part[index].text for index in np.linspace(0, len(part) - 1, TEXTS).astype(int)]


def measure_export(folder: Path) -> list[str]:
    """Rows of README's table: seqexport with its verification beside bare torch.onnx, on the same net, both warm."""
    checkpoint = seqexport.read_checkpoint(folder / "checkpoint.pt")
    network = checkpoint.network()
    rows = "float32[{},batch,{}]".format(*checkpoint.spec.state[0].dims[::2])

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor, h0: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.network(x, h0)

    module = Positional().eval()
    auto = torch.export.Dim.AUTO

    def bare() -> None:
        # The second export of a recurrent net in one process fails on a stale cache; peers get it cleared.
        for name in ("gru", "lstm"):
            getattr(torch.ops.aten, name).input._dispatch_cache.clear()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            program = torch.onnx.export(
                module,
                (torch.randn(3, 5, 1), torch.zeros(checkpoint.spec.layers, 3, checkpoint.spec.hidden_size)),
                dynamo=True,
                dynamic_shapes={"x": {0: auto, 1: auto}, "h0": {1: auto}},
                verbose=False,
            )
            logging.disable(logging.NOTSET)
        assert program is not None
        program.save(target)

    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "net.onnx"
        seconds = taking_turns(
            {
                "seqexport.export, with verification": lambda: seqexport.export(
                    module, target, inputs={"x": "float32[batch,time,1]", "h0": rows}
                ),
                "torch.onnx.export(dynamo=True), none": bare,
            },
            rounds=5,
        )
    ours = seconds["seqexport.export, with verification"]
    return [
        f"| export of a network, warm | {name} | {value:.2f} s | {value / ours:.1f} |"
        for name, value in seconds.items()
    ]


def measure_command(folder: Path) -> tuple[str, list[str]]:
    """What the command prints in a terminal, as README shows it, and its row in the table."""
    arguments = ["-m", "seqexport", f"{folder.relative_to(ROOT)}/checkpoint.pt", "-o", "gru.onnx"]
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "exported").symlink_to(ROOT / "exported")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        start = time.perf_counter()
        options: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *arguments], cwd=temporary, env=environment, **options)
        whole = time.perf_counter() - start
    shown = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    row = f"| network and pipeline, a fresh process | `python -m seqexport` | {whole:.1f} s | |"
    return f"```\n$ python {' '.join(arguments)}\n{shown}\n```", [row]


def main() -> int:
    """Measure, print and write README's table."""
    folder = ROOT / "exported" / "sunspots-gru"
    try:
        rows = [*measure_forecast(folder, 1), *measure_forecast(folder, 200)]
        for language in ("en", "zh"):
            rows += measure_generate(ROOT / "exported" / f"characters-{language}")
        for language in ("en", "zh"):
            rows += measure_classify(ROOT / "exported" / f"sentiment-{language}", reviews(f"reviews-{language}"))
        rows += measure_export(folder)
        shown, row = measure_command(folder)
        rows += row
        machine = (
            f"The shipped models (forecasts and export: the GRU), one thread, {_processor()}, "
            f"torch {version('torch')}, onnxruntime {version('onnxruntime')}; "
            "the last column is the time as a multiple of the first row's of its kind."
        )
        table = "\n".join(["| what | by | median | × |", "|---|---|---|---|", *rows, "", machine])
        write_block(ROOT / "README.md", "speed", table)
        write_block(ROOT / "README.md", "command", shown)
    except seqexport.SeqExportError as error:
        print(f"measure: {error}", file=sys.stderr)
        return error.exit_code
    print(table)
    return 0


def _processor() -> str:
    with Path("/proc/cpuinfo").open() if Path("/proc/cpuinfo").exists() else Path(__file__).open() as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
