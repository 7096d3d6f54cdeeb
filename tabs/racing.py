"""What all tabs have in common: models, the race of the runtimes, checks of what visitors ask, how a column looks."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402

import seqexport  # noqa: E402
from seqexport.errors import FileError, InputError, SeqExportError  # noqa: E402
from seqexport.runtimes import Runtime  # noqa: E402

EXPORTED = Path(__file__).parents[1] / "exported"
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime"}
ONEDNN = {"torch": (True, False), "onnxruntime": (None,)}  # how each is run; the fastest is its figure
THREADS = 1
TOLERANCE = 1e-4  # of the difference between two columns; beyond it a speed would compare different answers
MAX_SEED = 2**31 - 1
# One measurement at a time, or they would disturb each other.
ALONE: dict[str, Any] = {"concurrency_id": "measure", "concurrency_limit": 1}
# Without preprocessing: gradio's own checks of the bounds do not say which value they mean, the tabs' own do.
EVENT: dict[str, Any] = ALONE | {"preprocess": False, "show_progress": "minimal"}


@dataclass(frozen=True)
class Column:
    """What one runtime gave: its outputs by name, its latency, and how that was taken."""

    runtime: str
    outputs: Mapping[str, np.ndarray]
    milliseconds: float
    note: str


def require_model(model: str) -> None:
    """Raise FileError unless exported/`model` is there."""
    if not (EXPORTED / model).is_dir():
        raise FileError(f"There is no model {model} in {EXPORTED.name}/ yet: run python -m training.publish.")


@functools.cache
def load_runtime(model: str, pipeline: str, name: str, onednn: bool | None = None) -> Runtime:
    """The pipeline of exported/`model` in a runtime, loaded once."""
    path = EXPORTED / model / ("checkpoint.pt" if name == "torch" else "checkpoint.onnx")
    if not path.exists():
        raise FileError(f"There is no {model}/{path.name} in {EXPORTED.name}/: run python -m training.publish.")
    return seqexport.load(path, runtime=name, pipeline=pipeline, threads=THREADS, onednn=onednn)


def take_turns(
    runtimes: Mapping[Any, Runtime], feeds: Mapping[str, Any], seconds: float = 0.5
) -> dict[Any, tuple[dict[str, np.ndarray], float]]:
    """Run each once to warm up, then 3 to 25 times, as often as fits into `seconds`, in turns, so that a disturbance
    falls on all of them alike → {name: (outputs, median milliseconds)}."""
    outputs = {name: runtime.run(feeds) for name, runtime in runtimes.items()}
    taken: dict[Any, list[float]] = {name: [] for name in runtimes}
    end = time.perf_counter() + seconds
    for turn in range(25):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, runtime in runtimes.items():
            begin = time.perf_counter()
            runtime.run(feeds)
            taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: (outputs[name], float(np.median(taken[name]))) for name in runtimes}


def measure(model: str, pipeline: str, names: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Column]:
    """Each of the named runtimes' answer to the same feeds; torch's is the faster of oneDNN on and off."""
    entrants = {
        (name, onednn): load_runtime(model, pipeline, name, onednn) for name in names for onednn in ONEDNN[name]
    }
    if len({runtime.metadata["checkpoint_sha256"] for runtime in entrants.values()}) > 1:
        raise FileError(
            f"The ONNX files of {EXPORTED.name}/{model} are of another checkpoint than the one beside them: "
            "run python -m training.publish --keep-weights."
        )
    results = take_turns(entrants, feeds)
    columns = {}
    for name in names:
        tries = [results[name, onednn] for onednn in ONEDNN[name]]
        took = [f"{milliseconds:.2f} ms" for _, milliseconds in tries]
        note = "the exported file"
        if len(took) == 2:
            note = f"the faster of oneDNN on ({took[0]}) and off ({took[1]})"
        columns[name] = Column(name, *min(tries, key=lambda result: result[1]), note)
    return columns


def whole(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int. Raises InputError unless it is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not low <= value <= high:
        raise InputError(f"The {name} is {value!s:.20}; expected a whole number from {low:,} to {high:,}.")
    return int(value)


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """The value, if it is one of those known. Raises InputError otherwise."""
    if value not in known:
        raise InputError(f"The {name} is {value!r:.40}; expected {', '.join(known)}.")
    return value


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float. Raises InputError unless it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not either
        raise InputError(f"The {name} is {value!s:.20}; expected a number from {low:g} to {high:g}.")
    return float(value)


def race_sentence(left: str, right: str, speed_up: float | None) -> str:
    """Who is faster, by how much; `speed_up` is left's time over right's, None where both are the same runtime."""
    one, other = RUNTIMES[left], RUNTIMES[right]
    if speed_up is None:
        return f"Both columns run {one}: choose another runtime in one of them to compare."
    if speed_up >= 1:
        return f"{other} is {speed_up:.1f} times as fast as {one}."
    return f"{other} takes {1 / speed_up:.1f} times as long as {one}."


def say(lead: str, detail: str) -> str:
    """A result as HTML: the one sentence that counts, and what else there is to know."""
    return f'<div role="status"><p class="lead">{lead}</p><p class="detail">{detail}</p></div>'


def show_latency(milliseconds: float | None, note: str) -> str:
    """A column's latency as HTML, or none where the answers differ."""
    if milliseconds is None:
        return '<p class="note">No latency: the answers differ.</p>'
    return f'<p class="ms">{milliseconds:.2f} ms</p><p class="note">Median of the model call; {note}</p>'


def columns(height: int) -> Iterator[tuple[gr.Dropdown, gr.HTML]]:
    """The left and the right column: the choice of its runtime, and the place of its latency, `height` pixels high.
    What the caller makes while it has one of them stands below."""
    with gr.Row():
        for name, label in (("torch", "Left runtime"), ("onnxruntime", "Right runtime")):
            with gr.Column(min_width=320):
                with gr.Row():
                    with gr.Column(min_width=190):
                        runtime = gr.Dropdown([*zip(RUNTIMES.values(), RUNTIMES)], value=name, label=label)  # noqa: B905
                    with gr.Column(min_width=190):
                        latency = gr.HTML(elem_classes="latency", min_height=height)
                yield runtime, latency


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Show errors that are meant for a person as a message on the page, without a traceback in the log."""
    try:
        yield
    except SeqExportError as error:
        raise gr.Error(str(error), print_exception=False) from error


def hardware() -> str:
    """What the numbers come from: the processor, its cores, threads, versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = [f"{package} {version(package)}" for package in ("torch", "onnxruntime")]
    return " · ".join([model, f"{cores} core{'s' * (cores > 1)}", f"{THREADS} thread used", *versions])
