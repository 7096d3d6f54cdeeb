"""What all tabs have in common: models, runtimes, how they are raced and how measured, checks of what visitors ask, how
a column looks.

A *race* is for show: both columns at once, on the cores that there are. A *measurement* takes turns, warmed up, and
tells the median, the 95th percentile and the interval of the ratio.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402

import seqexport  # noqa: E402
from seqexport.errors import FileError, InputError, SeqExportError  # noqa: E402
from seqexport.runtimes import Runtime  # noqa: E402
from seqexport.timing import Job, Ratio, Times, compared, take_turns  # noqa: E402
from tabs import deadlines  # noqa: E402
from tabs.languages import ENGLISH, Words, fixed  # noqa: E402

if TYPE_CHECKING:
    from seqexport.peers import Loop

EXPORTED = Path(__file__).parents[1] / "exported"


@dataclass(frozen=True)
class Kind:
    """A runtime that a column can have. onednn: how torch is run; the fastest is its figure. loops: whether it is a
    loop in Python around the network, which there is for what loops only. exact: whether it computes in float32, so
    that its answers have to be the others'."""

    label: str
    onednn: tuple[bool | None, ...] = (None,)
    loops: bool = False
    exact: bool = True


RUNTIMES: Mapping[str, Kind] = {
    "torch": Kind("torch", (True, False)),
    "torch-compile": Kind("torch.compile", (True, False)),
    "onnxruntime": Kind("ONNX Runtime"),
    "onnxruntime-int8": Kind("ONNX Runtime, int8", exact=False),
    "onnxruntime-loop": Kind("ONNX Runtime, step loop", loops=True),
    "openvino": Kind("OpenVINO"),
}
LEFT, RIGHT = "torch", "onnxruntime"  # at the start
THREADS = 1
TOLERANCE = 1e-4  # of the difference between two columns; beyond it a speed would compare different answers
# Where a text is written: it scrolls, and so the keyboard has to reach it.
WRITTEN = '<pre class="written" tabindex="0">'
MAX_SEED = 2**31 - 1
QUICK, CAREFUL = 0.5, 6.0  # seconds of the measurement that comes with an answer, and of the one that is asked for
RACE = 3.0  # seconds of a race
PERIOD = 0.06  # seconds between two updates of a column; the page takes at most some 20 a second
ENOUGH = 20  # calls from which on a 95th percentile says something
# One measurement at a time, or they would disturb each other.
ALONE: dict[str, Any] = {"concurrency_id": "measure", "concurrency_limit": 1}
# Without preprocessing: gradio's own checks of the bounds do not say which value they mean, the tabs' own do.
EVENT: dict[str, Any] = ALONE | {"preprocess": False, "show_progress": "minimal"}


@dataclass(frozen=True)
class Column:
    """What one runtime gave: its outputs by name, its latency, and how that was taken. p95: the milliseconds within
    which 95 of 100 calls ended; None for fewer than ENOUGH."""

    runtime: str
    outputs: Mapping[str, np.ndarray]
    milliseconds: float
    note: str
    p95: float | None = None
    calls: int = 1

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        p95 = None if self.p95 is None else round(self.p95, 3)
        taken = {"milliseconds": round(self.milliseconds, 3), "p95_milliseconds": p95, "calls": self.calls}
        return {"runtime": self.runtime, **taken, "note": self.note}


@dataclass(frozen=True)
class Measurement:
    """The columns by runtime, and by what factor the second is faster than the first, None for the same runtime."""

    columns: Mapping[str, Column]
    ratio: Ratio | None


def present(pipeline: str) -> list[str]:
    """The runtimes that are installed here and run the pipeline."""
    from seqexport.peers import missing

    def there(name: str) -> bool:
        return not missing("onnxruntime" if name == "onnxruntime-loop" else name)

    return [name for name, kind in RUNTIMES.items() if there(name) and not (kind.loops and pipeline == "classify")]


def chosen(left: Any, right: Any, pipeline: str) -> list[str]:
    """The columns' runtimes. Raises InputError for one that is not there."""
    known = present(pipeline)
    return [one_of("left runtime", left, known), one_of("right runtime", right, known)]


def exact(names: Sequence[str]) -> bool:
    """Whether the answers of these runtimes have to be the same: an int8 net is another net."""
    return all(RUNTIMES[name].exact for name in names)


def require_model(model: str) -> None:
    """Raise FileError unless exported/`model` is there."""
    if not (EXPORTED / model).is_dir():
        raise FileError(f"There is no model {model} in {EXPORTED.name}/ yet: run python -m training.publish.")


def load_runtime(
    model: str, pipeline: str, name: str, onednn: bool | None = None, lane: str = "measurement"
) -> Runtime:
    """The pipeline of exported/`model` in a runtime, loaded once. lane: who calls it; an OpenVINO model answers one
    caller at a time, and so there is one for each lane."""
    return _load_runtime(model, pipeline, name, onednn, lane if name == "openvino" else "")


@functools.cache
def _load_runtime(model: str, pipeline: str, name: str, onednn: bool | None, lane: str) -> Runtime:
    path = EXPORTED / model / ("checkpoint.pt" if name.startswith("torch") else "checkpoint.onnx")
    if not path.exists():
        raise FileError(f"There is no {model}/{path.name} in {EXPORTED.name}/: run python -m training.publish.")
    if name == "onnxruntime-loop":
        return _loop(path, pipeline)
    return seqexport.load(path, runtime=name, pipeline=pipeline, threads=THREADS, onednn=onednn)


def _loop(path: Path, pipeline: str) -> Loop:
    from seqexport.peers import Loop

    return Loop(seqexport.load(path, runtime="onnxruntime", threads=THREADS), pipeline)


def measure(
    model: str,
    pipeline: str,
    names: Sequence[str],
    feeds: Mapping[str, Any],
    seconds: float = QUICK,
    words: Words = ENGLISH,
) -> Measurement:
    """The answer of each of the named runtimes (one or two) to the same feeds, and their times, taken in turns for so
    many seconds or until the ratio is certain; torch's is the faster of oneDNN on and off."""
    entrants = {
        (name, onednn): load_runtime(model, pipeline, name, onednn)
        for name in names
        for onednn in RUNTIMES[name].onednn
    }
    if len({runtime.metadata["checkpoint_sha256"] for runtime in entrants.values()}) > 1:
        raise FileError(
            f"The ONNX files of {EXPORTED.name}/{model} are of another checkpoint than the one beside them: "
            "run python -m training.publish --keep-weights."
        )
    outputs = {key: _call(runtime, feeds)(None) for key, runtime in entrants.items()}
    jobs = {str(key): Job(_call(runtime, feeds)) for key, runtime in entrants.items()}
    times = take_turns(jobs, seconds, list(jobs)[:1]).times
    best = {name: _fastest([(name, onednn) for onednn in RUNTIMES[name].onednn], times) for name in names}
    columns = {name: _column(best[name], outputs[best[name]], times, words) for name in names}
    one, other = (best[names[place]] for place in (0, -1))
    ratio = None if one == other else compared(times[str(other)], times[str(one)])
    return Measurement(columns, ratio)


def _call(runtime: Runtime, feeds: Mapping[str, Any]) -> Any:
    def call(_: Any) -> Any:
        deadlines.check()
        return runtime.run(feeds)

    return call


def _median(times: Times) -> float:
    return 1000 * float(times.quantile(0.5) or np.nan)


def _fastest(keys: Sequence[tuple[str, bool | None]], times: Mapping[str, Times]) -> tuple[str, bool | None]:
    return min(keys, key=lambda key: _median(times[str(key)]))


def _column(
    key: tuple[str, bool | None], outputs: Mapping[str, np.ndarray], times: Mapping[str, Times], words: Words
) -> Column:
    name, onednn = key
    taken = times[str(key)]
    if onednn is None:
        note = words("a loop in Python") if RUNTIMES[name].loops else words("the exported file")
    else:
        on, off = (f"{_median(times[str((name, state))]):.2f} ms" for state in (True, False))
        note = words("the faster of oneDNN on ({on}) and off ({off})", on=on, off=off)
    p95 = 1000 * float(taken.quantile(0.95) or np.nan) if taken.calls >= ENOUGH else None
    return Column(name, outputs, _median(taken), note, p95, taken.calls)


def laps(runtime: Runtime, feeds: Mapping[str, Any], seconds: float = RACE) -> Iterator[tuple[int, float]]:
    """Answer again and again for so many seconds, after a call to warm up → how often so far, and the seconds so far,
    every PERIOD and at the end."""
    runtime.run(feeds)
    count, begin = 0, time.perf_counter()
    told = begin
    while (now := time.perf_counter()) - begin < seconds:
        deadlines.check()
        runtime.run(feeds)
        count += 1
        if now - told >= PERIOD:
            told = now
            yield count, time.perf_counter() - begin
    yield count, time.perf_counter() - begin


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


def race_sentence(left: str, right: str, ratio: Ratio | float | None, words: Words = ENGLISH) -> str:
    """Who is faster, by how much. ratio: left's time over right's, with its interval where there is one; None where
    both are the same runtime."""
    one, other = RUNTIMES[left].label, RUNTIMES[right].label
    if ratio is None:
        return words("Both columns run {one}: choose another runtime in one of them to compare.", one=one)
    ratio = ratio if isinstance(ratio, Ratio) else Ratio(ratio, None, None)
    if ratio.value >= 1:
        return words("{other} is {times:.1f} times as fast as {one}.", other=other, one=one, times=ratio.value)
    return words("{other} takes {times:.1f} times as long as {one}.", other=other, one=one, times=1 / ratio.value)


def interval_sentence(ratio: Ratio | None, words: Words = ENGLISH) -> str:
    """Between what the factor lies; empty where too little was measured to say so."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    low, high = (ratio.low, ratio.high) if ratio.value >= 1 else (1 / ratio.high, 1 / ratio.low)
    return words("The factor lies between {low:.2f} and {high:.2f} (95 % interval).", low=low, high=high)


def say(lead: str, detail: str) -> str:
    """A result as HTML: the one sentence that counts, and what else there is to know."""
    return f'<div role="status"><p class="lead">{lead}</p><p class="detail">{detail}</p></div>'


def show_latency(column: Column | None, extra: str = "", words: Words = ENGLISH) -> str:
    """A column's latency as HTML, or none where the answers differ. extra: what is said before how it was taken."""
    if column is None:
        return f'<p class="note">{words("No latency: the answers differ.")}</p>'
    spread = "" if column.p95 is None else words("p95 {p95:.2f} ms; ", p95=column.p95)
    note = words("Median of {calls} calls in turns; ", calls=column.calls) + spread + extra + column.note
    return f'<p class="ms">{column.milliseconds:.2f} ms</p><p class="note">{note}</p>'


def columns(
    pipeline: str, height: int, third: Callable[[], Any] | None = None
) -> Iterator[tuple[gr.Dropdown, gr.HTML]]:
    """The left and the right column: the choice of its runtime, and the place of its latency, `height` pixels high.
    What the caller makes while it has one of them stands below. third: makes what is in one more column beside them."""
    choices = [(RUNTIMES[name].label, name) for name in present(pipeline)]
    with gr.Row():
        for name, label in ((LEFT, fixed("Left runtime")), (RIGHT, fixed("Right runtime"))):
            with gr.Column(min_width=320):
                with gr.Row():
                    with gr.Column(min_width=190):
                        runtime = gr.Dropdown(choices, value=name, label=label)
                    with gr.Column(min_width=190):
                        latency = gr.HTML(elem_classes="latency", min_height=height)
                yield runtime, latency
        if third is not None:
            with gr.Column(min_width=320):
                third()


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Show errors that are meant for a person as a message on the page, without a traceback in the log."""
    try:
        yield
    except SeqExportError as error:
        raise gr.Error(str(error), print_exception=False) from error


def hardware(words: Callable[[str], Any] = ENGLISH) -> str:
    """What the numbers come from: the processor, its cores, threads, versions. words: whose language; `fixed`, where
    it stands on the page from the start."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counted = words("cores, 1 thread used" if cores > 1 else "core, 1 thread used")
    packages = [name for name in ("torch", "onnxruntime", "openvino") if importlib.util.find_spec(name)]
    return " · ".join([model, f"{cores} {counted}", *(f"{package} {version(package)}" for package in packages)])
