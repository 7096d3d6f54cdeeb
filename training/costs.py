"""Does the cost grow as it should? Time a step from 100 to 100,000 steps, memory over ten million characters, and time
a character against the hidden size and the vocabulary.

    python -m training.costs --write

The first two on the shipped generator of English, in float32 and in int8, the last on untrained nets. One thread, on a
machine that does nothing else; about half an hour.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import seqexport
from seqexport.errors import SeqExportError
from seqexport.files import replace_file
from seqexport.plots import COLOURS, GREY, figure, plain, time_axis
from seqexport.runtimes import Runtime
from seqexport.tables import duration
from seqexport.timing import Job, take_turns
from training.command import Parser, exit_code
from training.publish import ROOT, write_block
from training.targets import generator

STEPS = (100, 1_000, 10_000, 100_000)
CHARACTERS, ROWS, CHUNK = 10_000_000, 10, 10_000  # of the soak: rows at once, and characters of each row in a call
HIDDEN, VOCABULARIES = (32, 64, 128, 256, 512, 1024), (80, 500, 2_000, 8_000)
TEXT = 500  # characters of a text whose time is measured
SECONDS = 20.0  # for each place of the curves
PICTURE = ROOT / "docs" / "costs.svg"
NAMES = {"onnxruntime": "float32 in-graph", "onnxruntime-int8": "int8 in-graph", "torch": "torch, its best"}


@dataclass(frozen=True)
class Curve:
    """Runtime → seconds a character at each place of `at`."""

    title: str
    at: Sequence[int]
    seconds: Mapping[str, Sequence[float]]


@dataclass
class Soak:
    """What was seen after each call: seconds it took, and bytes of memory that the process holds."""

    characters: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def shipped(runtime: str) -> Runtime:
    """The generator of English characters."""
    path = ROOT / "exported" / "characters-en" / "checkpoint.onnx"
    return seqexport.load(path, runtime, pipeline="generate")


def over_steps(seconds: float) -> Curve:
    """Time a character in texts of every length, written in one call."""
    models = {name: shipped(name) for name in ("onnxruntime", "onnxruntime-int8")}
    found: dict[str, list[float]] = {name: [] for name in models}
    for steps in STEPS:
        for name, median in _medians(models, steps, seconds).items():
            found[name].append(median / steps)
    return Curve("characters written in one call", STEPS, found)


def over_sizes(folder: Path, seconds: float, about: str) -> Curve:
    """Time a character of untrained LSTMs of two layers, over the hidden size or over the vocabulary."""
    at = HIDDEN if about == "hidden" else VOCABULARIES
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for size in at:
        hidden, vocabulary = (size, 80) if about == "hidden" else (128, size)
        path = generator(folder, hidden, vocabulary)
        seqexport.export(path, precision="fp32,int8")
        models = {
            name: seqexport.load(path.with_suffix(".onnx"), name, pipeline="generate") for name in list(NAMES)[:2]
        }
        for onednn in (True, False):
            models[f"torch {onednn}"] = seqexport.load(path, "torch", pipeline="generate", onednn=onednn)
        medians = _medians(models, TEXT, seconds)
        medians["torch"] = min(medians.pop(f"torch {onednn}") for onednn in (True, False))
        for name in NAMES:
            found[name].append(medians[name] / TEXT)
    title = "hidden size, 2 layers, vocabulary 80" if about == "hidden" else "vocabulary, LSTM 2×128"
    return Curve(title, at, found)


def _medians(models: Mapping[str, Runtime], steps: int, seconds: float) -> dict[str, float]:
    """Name → seconds of a text of so many characters."""
    uniforms = np.random.default_rng(0).random((1, steps), np.float32)
    feeds: dict[str, Any] = {"prompt": np.ones((1, 1), np.int64), "uniforms": uniforms}
    jobs = {name: _job(model, feeds) for name, model in models.items()}
    measured = take_turns(jobs, seconds, list(jobs)[:1])
    return {name: measured.times[name].quantile(0.5) or 0.0 for name in jobs}


def _job(model: Runtime, feeds: Mapping[str, np.ndarray]) -> Job:
    values = model.native(feeds)
    return Job(lambda _: model.call(values), model.ready)


def soak(runtime: str, characters: int) -> Soak:
    """Write so many characters, ROWS texts at once, each call going on from the state of the one before."""
    model, seen, rng = shipped(runtime), Soak(), np.random.default_rng(1)
    feeds: dict[str, Any] = {"prompt": np.ones((ROWS, 1), np.int64)}
    states = {output: name for name, output in model.metadata["state_map"].items()}
    while seen.characters < characters:
        uniforms = rng.random((ROWS, CHUNK), np.float32)
        start = time.perf_counter()
        outputs = model.run({**feeds, "uniforms": uniforms})
        seen.seconds.append(time.perf_counter() - start)
        seen.memory.append(_memory())
        seen.characters += uniforms.size
        feeds = {"prompt": outputs["tokens"][:, -1:], **{name: outputs[output] for output, name in states.items()}}
        if not all(np.isfinite(feeds[name]).all() for name in states.values()):
            raise SeqExportError(f"The state is not finite after {seen.characters:,} characters.")
    return seen


def _memory() -> int:
    """Bytes of memory that the process holds now; where the system does not say, the most it held."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def soak_said(runtime: str, seen: Soak) -> str:
    """A row of the table: the first tenth of the calls beside the last, and how far the memory moved after it."""
    tenth = max(1, len(seen.seconds) // 10)
    first, last = (float(np.median(part)) for part in (seen.seconds[:tenth], seen.seconds[-tenth:]))
    settled = np.array(seen.memory[tenth:])
    rate = seen.characters / sum(seen.seconds)
    memory = (f"{size / 2**20:,.1f} MiB" for size in (settled[0], settled.max(), settled[-1]))
    return f"| {NAMES[runtime]} | {seen.characters:,} | {rate:,.0f} | {last / first:.3f} | {' | '.join(memory)} |"


def table(curve: Curve) -> str:
    """A curve as Markdown: time a character."""
    lines = [
        f"| {curve.title} | {' | '.join(f'{place:,}' for place in curve.at)} |",
        "|---" * (len(curve.at) + 1) + "|",
    ]
    for name, seconds in curve.seconds.items():
        lines.append(f"| {NAMES[name]} | {' | '.join(duration(value) for value in seconds)} |")
    return "\n".join(lines)


def picture(curves: Sequence[Curve]) -> str:
    """An SVG with a panel for each curve."""

    def draw(drawn: Any) -> None:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        grid = drawn.subplots(len(curves), 1, squeeze=False)
        for curve, (axes,) in zip(curves, grid, strict=True):
            plain(axes)
            for name, seconds in curve.seconds.items():
                axes.plot(curve.at, seconds, "o-", color=COLOURS[name], markersize=4, linewidth=1, label=NAMES[name])
            axes.set(xscale="log", yscale="log", xlabel=curve.title, ylabel="time a character")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, high / 12), high)
            axes.set_xticks(curve.at)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(color=GREY, alpha=0.25)
            time_axis(axes.yaxis)
        handles = grid[-1][0].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=GREY)

    return figure(draw, 0.6 + 2.1 * len(curves), "Time a character over length, hidden size and vocabulary")


def measure(seconds: float, characters: int) -> Iterator[str | Curve]:
    """Curves and the soak's table, as each is measured."""
    with tempfile.TemporaryDirectory() as folder:
        yield over_steps(seconds)
        for about in ("hidden", "vocabulary"):
            yield over_sizes(Path(folder), seconds, about)
    lines = [
        "| soak | characters | a second | last tenth's time beside the first's | memory then | most | at the end |"
    ]
    lines.append("|---" * 7 + "|")
    lines += [soak_said(runtime, soak(runtime, characters)) for runtime in ("onnxruntime", "onnxruntime-int8")]
    yield "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw, and write README's tables."""
    parser = Parser(prog="python -m training.costs", description="Does the cost grow as it should?")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each place of a curve ({SECONDS:.0f})")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help=f"of each soak ({CHARACTERS:,})")
    parser.add_argument("--write", action="store_true", help="put tables and picture into README.md and docs/")
    options = parser.parse_args(arguments)

    def work() -> None:
        with contextlib.chdir(ROOT):
            curves, told = [], []
            for found in measure(options.seconds, options.characters):
                told.append(found if isinstance(found, str) else table(found))
                curves += [] if isinstance(found, str) else [found]
                print(told[-1], flush=True)
            if options.write:
                PICTURE.parent.mkdir(exist_ok=True)
                replace_file(PICTURE, picture(curves).encode())
                write_block(ROOT / "README.md", "costs", "\n\n".join(told))

    return exit_code("costs", work)


if __name__ == "__main__":
    sys.exit(main())
