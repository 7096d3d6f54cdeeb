"""Measure what README says of speed, and write it there.

    python -m training.measure

Ratios within one run: one thread each, warmed up, taking turns, medians. Answers must agree before they are timed. Run
it on a machine that does nothing else (about three minutes); the reviews are fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
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
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import seqexport
from seqexport.pipelines import Scaling
from seqexport.runtimes import Runtime
from seqexport.specs import TensorSpec, dynamic_dims, parse_input
from seqexport.tables import markdown
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


class _Classifies(nn.Module):
    """tokens (B, T) → logits (B, 5): the last hidden states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 64)
        self.rnn = nn.LSTM(64, 128, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(256, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.rnn(self.embedding(tokens))
        return self.head(torch.cat([h[-2], h[-1]], dim=1))


class _Writes(nn.Module):
    """tokens (B, T), h0 and c0 (2, B, 512) → logits (B, T, 80) and the state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 64)
        self.rnn = nn.LSTM(64, 512, 2, batch_first=True)
        self.head = nn.Linear(512, 80)

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(self.embedding(tokens), (h0, c0))
        return self.head(y), h, c


class _Foresees(nn.Module):
    """x (B, T, 8) → (B, T, 1) by an Elman net."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class _Translates(nn.Module):
    """source (B, S), target (B, T) → logits (B, T, 500): a decoder that attends to the encoder's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(500, 48), nn.Embedding(500, 48)
        self.encoder, self.decoder = nn.GRU(48, 96, batch_first=True), nn.GRU(48, 96, batch_first=True)
        self.head = nn.Linear(192, 500)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        read, state = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), state)
        attended = torch.softmax(y @ read.transpose(1, 2), dim=2) @ read
        return self.head(torch.cat([y, attended], dim=2))


class _Continues(nn.Module):
    """The shipped forecaster's network: x (B, T, 1), h0 → y and the state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, ...]:
        return self.network(x, h0)


def nets_to_export(folder: Path) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Name → (module, specs of its inputs): five nets of usual kinds."""
    checkpoint = seqexport.read_checkpoint(folder / "checkpoint.pt")
    state = str(checkpoint.spec.state[0])
    tokens = "int64[batch,time]{{0..{}}}".format
    return {
        "the shipped GRU": (_Continues(checkpoint.network()), {"x": "float32[batch,time,1]", "h0": state}),
        "a BiLSTM 2×128 that classifies": (_Classifies(), {"tokens": tokens(9999)}),
        "an LSTM 2×512 that writes": (
            _Writes(),
            {"tokens": tokens(79), "h0": "float32[2,batch,512]", "c0": "float32[2,batch,512]"},
        ),
        "an RNN 2×64 on every step": (_Foresees(), {"x": "float32[batch,time,8]"}),
        "GRU encoder and decoder with attention": (
            _Translates(),
            {"source": tokens(499), "target": "int64[batch,steps]{0..499}"},
        ),
    }


def measure_export(folder: Path) -> list[str]:
    """Rows of README's table: seqexport with its verification beside bare torch.onnx, on the same nets, both warm."""
    rows = []
    for name, (module, inputs) in nets_to_export(folder).items():
        seconds = _export_seconds(module.eval(), inputs)
        ours = next(iter(seconds.values()))
        rows += [f"| export, {name} | {by} | {value:.2f} s | {value / ours:.1f} |" for by, value in seconds.items()]
    return rows


def _export_seconds(module: nn.Module, inputs: Mapping[str, str]) -> dict[str, float]:
    specs = [parse_input(name, text) for name, text in inputs.items()]
    flat = [spec for spec in specs if isinstance(spec, TensorSpec)]
    sizes = {dim: 3 + 2 * place for place, dim in enumerate(dynamic_dims(flat))}
    rng, auto = np.random.default_rng(0), torch.export.Dim.AUTO
    arguments = tuple(torch.from_numpy(spec.sample(sizes, rng)) for spec in flat)
    dynamic = {spec.name: {axis: auto for axis, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in flat}

    def bare() -> None:
        # The second export of a recurrent net in one process fails on a stale cache; peers get it cleared.
        for name in ("gru", "lstm"):
            getattr(torch.ops.aten, name).input._dispatch_cache.clear()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=dynamic, verbose=False)
            logging.disable(logging.NOTSET)
        assert program is not None
        program.save(target)

    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "net.onnx"
        return taking_turns(
            {
                "seqexport.export, with verification": lambda: seqexport.export(module, target, inputs=inputs),
                "torch.onnx.export(dynamo=True), none": bare,
            },
            rounds=5,
        )


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


def measure_runs() -> str:
    """README's table of the shipped models' speed."""
    folder = ROOT / "exported" / "sunspots-gru"
    rows = [*measure_forecast(folder, 1), *measure_forecast(folder, 200)]
    for language in ("en", "zh"):
        rows += measure_generate(ROOT / "exported" / f"characters-{language}")
    for language in ("en", "zh"):
        rows += measure_classify(ROOT / "exported" / f"sentiment-{language}", reviews(f"reviews-{language}"))
    return _table(rows, "The shipped models (forecasts: the GRU)")


def measure_compare(seconds: float) -> str:
    """README's comparison: a forecaster, a generator and a classifier, which reads real reviews, in every runtime."""
    with tempfile.TemporaryDirectory() as temporary:
        reviews = Path(temporary) / "reviews-en, its test part.csv"
        part = datasets.load_reviews("reviews-en").parts["test"]
        with reviews.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([("text", "label"), *((review.text, review.label) for review in part)])
        found = [
            seqexport.compare(
                f"exported/{name}/checkpoint.pt",
                scenarios=("step", "sequence", "pipeline", "footprint"),
                seconds=seconds,
                data=reviews if name.startswith("sentiment") else None,
            )
            for name in ("sunspots-gru", "characters-en", "sentiment-en")
        ]
    return markdown(replace(found[0], models=tuple(model for one in found for model in one.models)))


def _table(rows: Sequence[str], what: str) -> str:
    machine = (
        f"{what}, one thread, {_processor()}, torch {version('torch')}, onnxruntime {version('onnxruntime')}; "
        "the last column is the time as a multiple of the first row's of its kind."
    )
    return "\n".join(["| what | by | median | × |", "|---|---|---|---|", *rows, "", machine])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write README's tables."""
    parser = argparse.ArgumentParser(prog="python -m training.measure", description="Measure README's tables of speed.")
    parser.add_argument("--only", choices=("runs", "export", "compare"), help="one of them alone")
    parser.add_argument("--seconds", type=float, default=180, help="for each model of compare (default: 180)")
    options = parser.parse_args(arguments)
    only = options.only
    readme, folder = ROOT / "README.md", ROOT / "exported" / "sunspots-gru"
    try:
        if only in (None, "compare"):
            with contextlib.chdir(ROOT):  # so that the paths in the table are relative to the project
                table = measure_compare(options.seconds)
            write_block(readme, "compare", table.strip())
            print(table)
        if only in (None, "runs"):
            table = measure_runs()
            write_block(readme, "speed", table)
            print(table)
        if only in (None, "export"):
            rows = measure_export(folder)
            shown, row = measure_command(folder)
            table = _table([*rows, *row], "Five nets, untrained but the first")
            write_block(readme, "export", table)
            write_block(readme, "command", shown)
            print(table)
    except seqexport.SeqExportError as error:
        print(f"measure: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _processor() -> str:
    with Path("/proc/cpuinfo").open() if Path("/proc/cpuinfo").exists() else Path(__file__).open() as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
