"""Is it as fast as it set out to be? Each ratio, its interval, and what was to be reached, in one run.

    python -m training.targets --seconds 60 --write

Everything by the comparison's own rules: one thread, answers first, turns in random order, medians over rounds. The
best float peer is the fastest of torch with oneDNN on and off, torch.compile, and the step loops of onnxruntime and
OpenVINO. Nets of sizes that are not shipped are untrained. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import seqexport
from seqexport.comparison import Row, Table, compare
from seqexport.errors import SeqExportError
from seqexport.networks import Network
from seqexport.pipelines import Scaling
from seqexport.runtimes import Runtime, int8_path, pipeline_path
from seqexport.scenarios import FILE_ORDER, WAYS
from seqexport.specs import NetworkSpec
from seqexport.tables import ratio_said
from seqexport.text import UNKNOWN, Vocabulary
from seqexport.timing import Job, Ratio, compared, take_turns
from training.command import Parser, exit_code
from training.exporting import measure_exports
from training.publish import ROOT, write_block
from training.samples import written_samples

SECONDS = 60.0
HORIZON, CONTEXT = 50, 132  # steps of the forecast, and values that it reads
HELP_RUNS = 15
RUNTIMES = ("torch", "torch-compile", "onnxruntime", "onnxruntime-int8", "openvino")  # onnx's evaluator is no peer


@dataclass(frozen=True)
class Target:
    """A figure and the least or greatest that it should be. text: the figure as it is told. reach: of `value`; None
    where it is only reported."""

    what: str
    beside: str
    text: str
    value: float
    reach: str = ""

    @property
    def reached(self) -> str:
        """Whether it was reached, in a word."""
        if not self.reach:
            return "–"
        sign, _, number = self.reach.rstrip("×s").strip().partition(" ")
        return "yes" if (self.value >= float(number) if sign == "≥" else self.value <= float(number)) else "no"


def ratio_target(what: str, beside: str, ratio: Ratio | None, reach: str = "") -> Target:
    """A target for a ratio, which is missing where one of the two was not timed."""
    if ratio is None:
        raise SeqExportError(f"{what}: there is no ratio to {beside}, as one of the two gave other answers.")
    return Target(what, beside, f"{ratio_said(ratio)} ×", ratio.value, reach)


# Untrained nets


def untrained(path: Path, spec: NetworkSpec, **about: object) -> Path:
    """A checkpoint of a net with random weights, of a task. Its head is four times as large as torch would draw it, so
    that the tokens differ in their likelihood, as a trained net's do."""
    torch.manual_seed(0)
    network = Network(spec)
    if spec.vocabulary and network.head is not None:
        with torch.no_grad():
            network.head.weight *= 4
    seqexport.write_checkpoint(path, network, metrics={}, data={"name": "none: untrained"}, **about)  # type: ignore[arg-type]
    return path


def generator(folder: Path, hidden: int, size: int) -> Path:
    """An untrained LSTM of two layers that writes `size` different characters."""
    spec = NetworkSpec("lstm", 64, hidden, 2, vocabulary=size, outputs=size, pooling="every")
    tokens = (UNKNOWN, *(chr(0x4E00 + place) for place in range(size - 1)))
    preprocessing = {"vocabulary": Vocabulary("character", tokens).to_dict(), "window": 128}
    return untrained(folder / f"lstm-2x{hidden}-{size}.pt", spec, task="generate", preprocessing=preprocessing)


def forecaster(folder: Path) -> Path:
    """An untrained GRU 2×32 that goes a series on."""
    spec = NetworkSpec("gru", 1, 32, 2, outputs=2, pooling="every")
    about = {"scaling": Scaling("none", 50.0, 20.0).to_dict(), "context": CONTEXT, "season": 12, "unit": "", "step": ""}
    return untrained(folder / "gru-2x32.pt", spec, task="forecast", preprocessing=about)


# What is measured


def generating(folder: Path, seconds: float) -> Iterator[Target]:
    """Texts of 500 tokens in the graph, beside loops in Python."""
    for hidden, precision, reach, default in ((512, "int8", "≥ 4 ×", "≥ 40 ×"), (128, "float32", "≥ 2.5 ×", "")):
        for size in (80, 4000):
            path = generator(folder, hidden, size)
            seqexport.export(path, precision="fp32,int8" if precision == "int8" else "fp32")
            runtime = "onnxruntime-int8" if precision == "int8" else "onnxruntime"
            (model,) = compare(
                path, runtimes=RUNTIMES, scenarios=("pipeline",), seconds=(6 if size == 80 else 2) * seconds
            ).models
            for table in model.tables:
                row = only(table, runtime)
                asked = not table.key.endswith("top-p") and size == 80
                plain = "temperature only" if not table.key.endswith("top-p") else "top-k 40 and top-p 0.9"
                what = f"generate, LSTM 2×{hidden}, vocabulary {size:,}, {plain}, {precision} in-graph"
                yield ratio_target(what, f"best float peer ({table.peer})", row.peer, reach if asked else "")
                yield ratio_target(what, f"torch's default ({table.default})", row.default, default if asked else "")


def only(table: Table, pattern: str) -> Row:
    """The fastest row of such a label that was timed."""
    for row in table.rows:
        if re.fullmatch(pattern, row.label) and row.times is not None:
            return row
    said = "; ".join(f"{row.label}: {', '.join(row.notes)}" for row in table.rows if row.notes)
    raise SeqExportError(f"{table.title}: nothing to tell, as answers differ ({said}).")


def forecasting(folder: Path, seconds: float) -> Iterator[Target]:
    """A forecast of 50 steps in the graph, beside step loops and beside a window that is read again at every step."""
    path = forecaster(folder)
    seqexport.export(path)
    (model,) = compare(path, runtimes=RUNTIMES, scenarios=("pipeline",), seconds=seconds).models
    table = next(table for table in model.tables if table.key == "forecast")
    row = only(table, "onnxruntime")
    what = f"forecast of {HORIZON} steps, GRU 2×32 (untrained), in-graph"
    yield ratio_target(what, f"best step loop ({table.peer})", row.peer, "≥ 3 ×")

    graph = seqexport.load(path.with_suffix(".onnx"), pipeline="forecast")
    rng = np.random.default_rng(0)
    history = (50 + 20 * rng.standard_normal((1, CONTEXT))).astype(np.float32)
    feeds = {"history": history, "noise": np.zeros((1, 1, HORIZON), np.float32)}
    networks = [seqexport.load(path, runtime="torch", onednn=onednn) for onednn in (True, False)]
    expected, found = graph.run(feeds)["path"][0, 0], reread(networks[0], history, slides=False)
    if not np.abs(expected - found).max() <= 1e-4 * np.abs(expected).max():
        raise SeqExportError("The window read again at every step gives another path: its speed means nothing.")
    jobs = {"graph": Job(lambda _: graph.call(feeds), graph.ready)}
    for name, network in zip(("oneDNN on", "oneDNN off"), networks, strict=True):
        jobs[f"torch, {name}"] = _reading(network, history)
    measured = take_turns(jobs, seconds, ("graph",))
    fastest = min(list(jobs)[1:], key=lambda name: measured.times[name].quantile(0.5) or np.inf)
    beside = f"the last {CONTEXT} values read again at every step ({fastest})"
    yield ratio_target(what, beside, measured.ratio("graph", fastest), "≥ 20 ×")


def _reading(network: Runtime, history: np.ndarray) -> Job:
    return Job(lambda _: reread(network, history, slides=True))


def reread(network: Runtime, history: np.ndarray, slides: bool) -> np.ndarray:
    """The central path by a loop that reads everything again at every step. slides: only the last values, as many as
    the history has, which is what people write, and a slightly other path; otherwise all, which gives the same path."""
    scaling = Scaling.from_dict(network.metadata["preprocessing"]["scaling"])
    z = scaling.apply(torch.from_numpy(history)).numpy()[..., None]
    path, state = (
        np.empty((1, HORIZON), np.float32),
        {spec.name: spec.filled({"batch": 1}) for spec in network.inputs[1:]},
    )
    with network.ready():
        for place in range(HORIZON):
            y = np.asarray(network.call(network.native({"x": z, **state}))[0])
            path[:, place] = y[:, -1, 0]
            z = np.concatenate([z[:, 1:] if slides else z, y[:, -1:, :1]], axis=1)
    return scaling.undo(torch.from_numpy(path)).numpy()[0]


def classifying(seconds: float) -> Iterator[Target]:
    """Real reviews with their split into tokens: the best of ONNX beside torch."""
    with tempfile.TemporaryDirectory() as folder:
        for language in ("en", "zh"):
            data = written_samples(Path(folder), "classify", f"reviews-{language}", "test")
            path = ROOT / "exported" / f"sentiment-{language}" / "checkpoint.pt"
            options: dict[str, Any] = {"scenarios": ("pipeline",), "seconds": 4 * seconds, "data": data}
            (model,) = compare(path, runtimes=RUNTIMES, **options).models
            (table,) = model.tables
            best = only(table, "onnxruntime.*")
            way = next(way for way in sorted(WAYS, key=len, reverse=True) if best.label.endswith(way))
            what = f"classify, sentiment-{language}, 1,000 reviews, tokenisation included: {best.label}"
            for chosen, reach in ((FILE_ORDER, "≥ 3 ×"), (way, "≥ 1.6 ×")):
                torchs = only(table, f"torch, oneDNN (on|off), {chosen}")
                assert best.times is not None and torchs.times is not None
                yield ratio_target(what, torchs.label, compared(best.times, torchs.times), reach)


def exporting(seconds: float) -> Iterator[Target]:
    """Export with its verification beside bare torch.onnx, and the command's help."""
    for name, measured in measure_exports(seconds).items():
        ours, bare = measured.times
        ratio = measured.ratio(bare, ours)
        yield ratio_target(f"export with verification, {name}", "torch.onnx.export(dynamo=True)", ratio, "≤ 0.5 ×")
    taken = []
    for _ in range(HELP_RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "seqexport", "--help"], cwd=ROOT, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    median = float(np.median(taken))
    about = f"a fresh process, median of {HELP_RUNS}"
    yield Target("python -m seqexport --help", about, f"{median:.2f} s", median, "≤ 0.3 s")


def sizes(folder: Path) -> Iterator[Target]:
    """Bytes of int8 files of LSTMs beside float32."""
    shipped = [ROOT / "exported" / name / "checkpoint.onnx" for name in ("characters-en", "sentiment-en")]
    for path in [*shipped, folder / "lstm-2x512-80.onnx"]:
        task = str(seqexport.load(path).metadata["task"])
        for file in (path, pipeline_path(path, task)):
            int8 = int8_path(file)
            if int8.is_file():
                share = int8.stat().st_size / file.stat().st_size
                name = file.name if path.parent == folder else f"{path.parent.name}, {file.name}"
                yield Target(f"int8 file, {name}", "float32's bytes", f"{share:.3f} ×", share, "≤ 0.27 ×")


PARTS = ("generate", "forecast", "classify", "export", "bytes")


def measure(parts: Sequence[str], seconds: float) -> Iterator[Target]:
    """Every target of these parts, as it is measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "generate" in parts:
            yield from generating(folder, seconds)
        if "forecast" in parts:
            yield from forecasting(folder, seconds)
        if "classify" in parts:
            yield from classifying(seconds)
        if "export" in parts:
            yield from exporting(seconds)
        if "bytes" in parts:
            if "generate" not in parts:
                seqexport.export(generator(folder, 512, 80), precision="fp32,int8")
            yield from sizes(folder)


def table(targets: Sequence[Target]) -> str:
    """The figures as Markdown."""
    lines = ["| what | beside | measured | to reach | reached |", "|---|---|---|---|---|"]
    lines += [f"| {t.what} | {t.beside} | {t.text} | {t.reach or 'reported'} | {t.reached} |" for t in targets]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each figure as it comes, and write README's table."""
    parser = Parser(
        prog="python -m training.targets", description="Each ratio, its interval, and what was to be reached."
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each timing (default: {SECONDS:.0f})")
    parser.add_argument("--write", action="store_true", help="put the table into README.md, between its markers")
    options = parser.parse_args(arguments)

    def work() -> None:
        found = []
        with contextlib.chdir(ROOT):
            for target in measure([options.only] if options.only else PARTS, options.seconds):
                found.append(target)
                print(
                    f"{target.what}, beside {target.beside}: {target.text}"
                    + (f" ({target.reach}: {target.reached})" if target.reach else ""),
                    flush=True,
                )
            if options.write:
                write_block(ROOT / "README.md", "targets", table(found))

    return exit_code("targets", work)


if __name__ == "__main__":
    sys.exit(main())
