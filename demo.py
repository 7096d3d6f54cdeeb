"""The demo: torch and ONNX Runtime side by side on the same question. `python demo.py`, then http://127.0.0.1:7860.

Pure functions first (read a series, race the runtimes, draw), then the page, then its events. Importing this module
loads no model and starts nothing. The models come from exported/, which `python -m training.publish` writes.
"""

from __future__ import annotations

import contextlib
import functools
import html
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402

import seqexport  # noqa: E402
from seqexport.errors import FileError, InputError, SeqExportError  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from seqexport.runtimes import Runtime

EXPORTED = Path(__file__).parent / "exported"
CELLS = ("RNN", "LSTM", "GRU")
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime"}
THREADS = 1
TOLERANCE = 1e-4  # of the difference between two columns; beyond it a speed would compare different answers
TEST_SHARE = 0.2  # the last part of the series, on which no net was trained
MAX_VALUES, MAX_HORIZON, MAX_PATHS, MAX_SEED = 20_000, 600, 200, 2**31 - 1
SUNSPOTS, PASTED = "Sunspots", "Your own values"
OPENING = {"start": 1976, "cell": "GRU", "horizon": 132, "paths": 100, "seed": 0}


@dataclass(frozen=True)
class Series:
    """A history (T,) to roll on, the truth after it (0 to N values) where it is known, and where its time axis starts.

    first and step: the time of history[0], and from one value to the next (years for sunspots, otherwise a count).
    """

    history: np.ndarray
    truth: np.ndarray
    first: float = 1.0
    step: float = 1.0
    unit: str = "value"

    def times(self, start: int, stop: int) -> np.ndarray:
        """The times of the values `start` to `stop`, counted from the history's first."""
        return self.first + self.step * np.arange(start, stop)


@dataclass(frozen=True)
class Answer:
    """What one runtime gave: paths (P, N), of which the first is the central one, its latency, and how it was taken."""

    runtime: str
    paths: np.ndarray
    milliseconds: float
    note: str


@functools.cache
def sunspots() -> tuple[tuple[str, ...], np.ndarray]:
    """The shipped series: months ("1749-01", …) and their sunspot numbers, float32 (3126,)."""
    try:
        rows = (EXPORTED / "sunspots.csv").read_text(encoding="utf-8").split()[1:]
    except OSError:
        raise FileError(f"There are no models in {EXPORTED.name}/ yet: run python -m training.publish.") from None
    months, values = zip(*(row.split(",") for row in rows), strict=True)
    return months, np.array(values, dtype=np.float32)


def start_years() -> tuple[int, int]:
    """The first and the last January within the last fifth of the sunspots."""
    months, _ = sunspots()
    return int(months[math.ceil(len(months) * (1 - TEST_SHARE))][:4]) + 1, int(months[-1][:4])


@functools.cache
def load_runtime(cell: str, name: str, onednn: bool | None = None) -> Runtime:
    """The forecast pipeline of a cell in a runtime, loaded once."""
    path = EXPORTED / cell.lower() / ("checkpoint.pt" if name == "torch" else "checkpoint.onnx")
    if not path.exists():
        raise FileError(f"There is no {path.name} in {EXPORTED.name}/{cell.lower()}/: run python -m training.publish.")
    return seqexport.load(path, runtime=name, pipeline="forecast", threads=THREADS, onednn=onednn)


def preprocessing(cell: str) -> Mapping[str, Any]:
    """What the exported file says of its data: context, season, unit, step."""
    return load_runtime(cell, "onnxruntime").metadata["preprocessing"]


def parse_series(text: str) -> np.ndarray:
    """Numbers separated by commas, semicolons, blanks or new lines → float32 (T,).

    Raises InputError, with the first part that is not a finite number, or for too few or too many values.
    """
    parts = (text or "").replace(",", " ").replace(";", " ").split()
    if len(parts) > MAX_VALUES:  # before any is converted
        raise InputError(f"The series has {len(parts):,} values; at most {MAX_VALUES:,} can be read: drop the oldest.")
    values = []
    for number, part in enumerate(parts, start=1):
        try:
            values.append(float(part))
        except ValueError:
            shown = part if len(part) <= 20 else part[:20] + "…"
            raise InputError(f"Value {number} of the series is “{shown}”, which is not a number: mend it.") from None
    return check_series(values)


def check_series(values: Sequence[float | None]) -> np.ndarray:
    """The values as float32 (T,). Raises InputError where they are too few, too many, or not finite."""
    if not 2 <= len(values) <= MAX_VALUES:
        count = "1 value" if len(values) == 1 else f"{len(values):,} values"
        raise InputError(f"The series has {count}; expected 2 to {MAX_VALUES:,}.")
    for number, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"Value {number} of the series is {value}; expected a finite number: fill or drop it.")
        if abs(value) > 1e9:
            raise InputError(f"Value {number} of the series is {value:g}; expected at most 1e9 in size: rescale it.")
    return np.array(values, dtype=np.float32)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int. Raises InputError unless it is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not low <= value <= high:
        raise InputError(f"The {name} is {value}; expected a whole number from {low:,} to {high:,}.")
    return int(value)


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """The value, if it is one of those known. Raises InputError otherwise."""
    if value not in known:
        raise InputError(f"The {name} is {value!r}; expected {', '.join(known)}.")
    return value


def cut_sunspots(year: int, horizon: int, context: int) -> Series:
    """The sunspots before January of `year`, and the truth from then on as far as it is known."""
    months, values = sunspots()
    start = months.index(f"{year}-01")
    first = max(0, start - context)
    time_of_first = int(months[first][:4]) + (int(months[first][5:]) - 1) / 12
    return Series(values[first:start], values[start : start + horizon], time_of_first, 1 / 12, "sunspot number")


def draw_noise(paths: int, horizon: int, seed: int) -> np.ndarray:
    """Standard normal noise, float32 (1, 1 + P, N). The first path's is zero: it is the central one."""
    noise = np.random.default_rng(seed).standard_normal((1, 1 + paths, horizon), dtype=np.float32)
    noise[:, 0] = 0
    return noise


def naive_path(history: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The last season repeated, (N,); the last value, where the history is shorter than a season."""
    last = history[-season:] if len(history) >= season else history[-1:]
    return np.resize(last, horizon)


def race(
    runtimes: Mapping[str, Runtime], feeds: Mapping[str, np.ndarray], seconds: float = 0.8
) -> dict[str, tuple[np.ndarray, float]]:
    """Run each once to warm up, then let them take turns → {name: (paths (P, N), median milliseconds)}.

    3 to 9 turns each, as many as fit into `seconds`: taking turns lets a disturbance fall on all of them alike.
    """
    paths = {name: runtime.run(feeds)["path"][0] for name, runtime in runtimes.items()}
    taken: dict[str, list[float]] = {name: [] for name in runtimes}
    end = time.perf_counter() + seconds
    for turn in range(9):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, runtime in runtimes.items():
            begin = time.perf_counter()
            runtime.run(feeds)
            taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: (paths[name], statistics.median(taken[name])) for name in runtimes}


def answer(cell: str, names: Sequence[str], series: Series, noise: np.ndarray) -> dict[str, Answer]:
    """Each of the named runtimes' answer to the same history and noise; torch's is the faster of oneDNN on and off."""
    entrants: dict[str, Runtime] = {}
    for name in dict.fromkeys(names):
        if name == "torch":
            entrants |= {"torch on": load_runtime(cell, name, True), "torch off": load_runtime(cell, name, False)}
        else:
            entrants[name] = load_runtime(cell, name)
    results = race(entrants, {"history": series.history[None], "noise": noise})
    answers = {}
    for name in dict.fromkeys(names):
        if name == "torch":
            on, off = results["torch on"], results["torch off"]
            paths, milliseconds = min(on, off, key=lambda result: result[1])
            note = f"the faster of oneDNN on, {on[1]:.2f} ms, and off, {off[1]:.2f} ms"
        else:
            paths, milliseconds = results[name]
            note = "the exported file, CPU provider"
        answers[name] = Answer(name, paths, milliseconds, note)
    return answers


def difference(left: np.ndarray, right: np.ndarray) -> float:
    """Greatest |left - right|, as a share of the largest value of the left, or of 1 where that is less."""
    return float(np.abs(left - right).max() / max(1.0, np.abs(left).max()))


def score(series: Series, paths: np.ndarray, season: int) -> dict[str, float]:
    """Mean absolute errors of the central path and of the naive one, and the share of the truth in the 90 % band."""
    known = len(series.truth)
    low, high = np.quantile(paths[1:, :known], (0.05, 0.95), axis=0)
    return {
        "known": known,
        "central_error": float(np.abs(paths[0, :known] - series.truth).mean()),
        "naive_error": float(np.abs(naive_path(series.history, known, season) - series.truth).mean()),
        "share_in_band_90": float(((low <= series.truth) & (series.truth <= high)).mean()),
    }


# Mid-tones: the figure has no background of its own, and has to be read on white and on near-black.
INK, QUIET, BLUE, AMBER = "#7c7f86", "#7c7f8640", "#3f82e0", "#c9782a"


def draw(series: Series, paths: np.ndarray, season: int, top: float) -> Figure:
    """The end of the history, the truth, the central path in its bands, and the naive path; the y axis ends at `top`."""
    import matplotlib

    matplotlib.use("agg")  # figures are drawn in worker threads, where no window can be
    from matplotlib.figure import Figure

    past, ahead = len(series.history), paths.shape[1]
    shown = min(past, max(2 * season, ahead))
    figure = Figure(figsize=(5.6, 3.7), dpi=200, facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    future = series.times(past, past + ahead)
    for low, high, alpha in ((0.05, 0.95, 0.20), (0.25, 0.75, 0.35)):
        bounds = np.quantile(paths[1:], (low, high), axis=0)
        label = f"{round(100 * (high - low))} % of paths"
        axes.fill_between(future, *bounds, color=BLUE, alpha=alpha, linewidth=0, label=label)
    known = np.concatenate([series.history[past - shown :], series.truth])
    naive = naive_path(series.history, ahead, season)
    naive_label = "last season again" if past >= season else "last value again"
    axes.plot(series.times(past - shown, past + len(series.truth)), known, color=INK, linewidth=0.9, label="observed")
    axes.plot(future, naive, color=AMBER, linewidth=0.9, linestyle=(0, (3, 1.5)), label=naive_label)
    axes.plot(future, paths[0], color=BLUE, linewidth=1.8, label="central path")
    axes.axvline(series.first + series.step * (past - 0.5), color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(min(0.0, 1.05 * float(min(known.min(), paths.min()))), top)
    axes.set_ylabel(series.unit, color=INK)
    axes.grid(axis="y", color=QUIET, linewidth=0.6)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.01)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: ("observed", "central path").index(labels[i]) if i in (2, 4) else 9)
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=3,
                  frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6, columnspacing=1.4)  # fmt: skip
    return figure


def forecast(
    source: str, start: int, text: str, cell: str, horizon: int, paths: int, seed: int, left: str, right: str
) -> tuple[str, str, Any, str, Any, dict[str, Any]]:
    """One question to two runtimes → the sentence, left's figures and plot, right's, and all the numbers.

    source: "Sunspots", cut before January of `start`, or "Your own values", which are in `text`.
    """
    with sentences():
        one_of("series", source, (SUNSPOTS, PASTED))
        one_of("cell", cell, CELLS)
        names = [one_of(f"{side} runtime", name, tuple(RUNTIMES)) for side, name in (("left", left), ("right", right))]
        horizon = whole("horizon", horizon, 1, MAX_HORIZON)
        paths = whole("number of paths", paths, 1, MAX_PATHS)
        seed = whole("seed", seed, 0, MAX_SEED)
        context, season = (preprocessing(cell)[name] for name in ("context", "season"))
        if source == SUNSPOTS:
            series = cut_sunspots(whole("year of the start", start, *start_years()), horizon, context)
        else:
            values = parse_series(text)
            first = max(0, len(values) - context)
            series = Series(values[first:], values[:0], first=first + 1)
        answers = answer(cell, names, series, draw_noise(paths, horizon, seed))
    one, other = (answers[name] for name in names)
    numbers = compare(one, other) | {"cell": cell, "horizon": horizon, "paths": paths, "seed": seed}
    if len(series.truth):
        numbers["score"] = score(series, one.paths, season)
    bands = [np.quantile(side.paths[1:], 0.95, axis=0).max() for side in (one, other)]
    top = 1.08 * float(max(*bands, series.history.max(), *series.truth, 1e-6))
    figures = [draw(series, side.paths, season, top) for side in (one, other)]
    numbers["central_path"] = {"left": rounded(one.paths[0]), "right": rounded(other.paths[0])}
    return say(numbers), show(one), figures[0], show(other), figures[1], numbers


def forecast_values(
    values: list[float], cell: str, horizon: int = 132, paths: int = 100, seed: int = 0, runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """Roll `values` (2 to 20,000, of which the net reads the last 360) on by `horizon` steps in one runtime.

    Returns the central path, the bands as lists of `horizon` numbers, and the latency of the model's call.
    """
    with sentences():
        one_of("cell", cell, CELLS)
        one_of("runtime", runtime, tuple(RUNTIMES))
        horizon = whole("horizon", horizon, 1, MAX_HORIZON)
        noise = draw_noise(whole("number of paths", paths, 1, MAX_PATHS), horizon, whole("seed", seed, 0, MAX_SEED))
        if not isinstance(values, list):
            raise InputError("The values are not a list; expected a list of numbers.")
        series = Series(check_series(values)[-preprocessing(cell)["context"] :], np.empty(0))
        given = answer(cell, [runtime], series, noise)[runtime]
    quantiles = {f"q{round(100 * q):02}": rounded(np.quantile(given.paths[1:], q, axis=0)) for q in (0.05, 0.25, 0.75, 0.95)}
    return {"runtime": runtime, "cell": cell, "central_path": rounded(given.paths[0]), "bands": quantiles,
            "milliseconds": round(given.milliseconds, 3), "note": given.note}  # fmt: skip


def compare(one: Answer, other: Answer) -> dict[str, Any]:
    """The two columns' latencies, how far their paths differ, and, only if these are the same, the speed-up."""
    apart = difference(one.paths, other.paths)
    same = apart <= TOLERANCE  # written so that NaN is not the same
    columns = {
        side: {"runtime": column.runtime, "milliseconds": round(column.milliseconds, 3), "note": column.note}
        for side, column in (("left", one), ("right", other))
    }
    speed_up = round(one.milliseconds / other.milliseconds, 2) if same and one.runtime != other.runtime else None
    return columns | {"difference": apart if math.isfinite(apart) else None, "same": same, "speed_up": speed_up}


def rounded(values: np.ndarray) -> list[float]:
    """The values as plain numbers for JSON."""
    return [round(float(value), 4) for value in values]


def say(numbers: Mapping[str, Any]) -> str:
    """The result as HTML: who is faster, how far the answers differ, and how good they are."""
    left, right = (RUNTIMES[numbers[side]["runtime"]] for side in ("left", "right"))
    apart = "not a number" if numbers["difference"] is None else f"{numbers['difference']:.1e}"
    if not numbers["same"]:
        lead = f"The answers differ by {apart}, more than {TOLERANCE:.0e}: no speed is shown."
    elif numbers["speed_up"] is None:
        lead = f"Both columns run {left}: choose another runtime in one of them to compare."
    elif numbers["speed_up"] >= 1:
        lead = f"{right} is {numbers['speed_up']:.1f} times as fast as {left}."
    else:
        lead = f"{right} takes {1 / numbers['speed_up']:.1f} times as long as {left}."
    detail = f"The same noise went to both; their {numbers['paths']} paths differ by at most {apart} of the largest value."
    if "score" in numbers:
        score = numbers["score"]
        detail += (
            f" Over the {score['known']} months known since, the central path is off by {score['central_error']:.1f} on "
            f"average, the last season again by {score['naive_error']:.1f}; the 90 % band holds "
            f"{100 * score['share_in_band_90']:.0f} % of them."
        )
    return f'<div role="status"><p class="lead">{lead}</p><p class="detail">{detail if numbers["same"] else ""}</p></div>'


def show(column: Answer) -> str:
    """A column's figures as HTML."""
    name, note = html.escape(RUNTIMES[column.runtime]), html.escape(column.note)
    return (
        f'<div class="figures"><span class="name">{name}</span> <span class="ms">{column.milliseconds:.2f} ms</span>'
        f'<p class="note">{note}; median of the model call</p></div>'
    )


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
    parts = [model, f"{cores} core{'s' if cores > 1 else ''}", f"{THREADS} thread{'s' if THREADS > 1 else ''} used"]
    parts += [f"{package} {version(package)}" for package in ("torch", "onnxruntime")]
    return " · ".join(parts)


CSS = """
.gradio-container .fillable { max-width: 1240px !important; }
.gradio-container { font-variant-numeric: tabular-nums; }
#head h1 { font-size: 1.75rem; font-weight: 700; letter-spacing: -0.01em; margin: 0.5rem 0 0.25rem; }
#head p { margin: 0; max-width: 46rem; line-height: 1.5; }
#head .machine { margin-top: 0.6rem; max-width: none; font-family: var(--font-mono); font-size: 0.8rem;
  color: var(--body-text-color-subdued); }
#result .lead { font-size: 1.5rem; font-weight: 700; line-height: 1.25; margin: 0.5rem 0 0.25rem; }
#result .detail { color: var(--body-text-color-subdued); line-height: 1.5; margin: 0; max-width: 60rem; }
.figures { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; column-gap: 1rem; }
.figures .name { font-size: 1.125rem; font-weight: 700; }
.figures .ms { font-size: 1.5rem; font-weight: 700; }
.figures .note { flex-basis: 100%; margin: 0; font-size: 0.85rem; color: var(--body-text-color-subdued); }
"""


def launch_options() -> dict[str, Any]:
    """Theme and style, which gradio takes when it launches. The fonts are gradio's own files: no other host is asked."""
    font, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="zinc", radius_size="sm", font=[font, "sans-serif"], font_mono=[mono, "monospace"]
    )
    return {"theme": theme, "css": CSS, "footer_links": ["api", "settings"], "max_file_size": "20mb"}


def forecast_tab(page: gr.Blocks) -> None:
    """The tab that rolls a series on, and its events."""
    first_year, last_year = start_years()
    opening = OPENING | {"start": min(max(OPENING["start"], first_year), last_year)}  # type: ignore[type-var]
    with gr.Row():
        with gr.Column(min_width=320):
            source = gr.Radio([SUNSPOTS, PASTED], value=SUNSPOTS, label="Series")
            start = gr.Slider(
                first_year, last_year, value=opening["start"], step=1, label="Forecast starts in January of",
                info="The nets never saw these years in training.",
            )  # fmt: skip
            text = gr.Textbox(
                label="Values, oldest first", lines=4, max_lines=8, visible=False, placeholder="12.5, 14, 9.8 …",
                info="Separated by commas, blanks or new lines. The nets know sunspots only, and read it as such.",
            )  # fmt: skip
        with gr.Column(min_width=320):
            cell = gr.Radio(CELLS, value=opening["cell"], label="Cell of the net")
            horizon = gr.Slider(1, MAX_HORIZON, value=opening["horizon"], step=1, label="Horizon, steps ahead")
        with gr.Column(min_width=320):
            paths = gr.Slider(1, MAX_PATHS, value=opening["paths"], step=1, label="Sampled paths")
            seed = gr.Number(value=opening["seed"], precision=0, minimum=0, maximum=MAX_SEED, label="Seed of the noise")
    go = gr.Button("Forecast", variant="primary", size="lg")
    result = gr.HTML(elem_id="result", min_height=90)
    sides = []
    with gr.Row():
        for name, label in (("torch", "Left runtime"), ("onnxruntime", "Right runtime")):
            with gr.Column(min_width=320):
                runtime = gr.Dropdown([(title, key) for key, title in RUNTIMES.items()], value=name, label=label)
                figures = gr.HTML(elem_classes="figures-box", min_height=60)
                plot = gr.Plot(show_label=False, container=False, format="png", elem_classes="plot")
                sides.append((runtime, figures, plot))
    with gr.Accordion("All the numbers", open=False):
        numbers = gr.JSON(label="Result", show_label=False)

    source.change(
        lambda chosen: (gr.update(visible=chosen == SUNSPOTS), gr.update(visible=chosen == PASTED)),
        source, [start, text], queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    (left, *left_outputs), (right, *right_outputs) = sides
    inputs = [source, start, text, cell, horizon, paths, seed, left, right]
    outputs = [result, *left_outputs, *right_outputs, numbers]
    # One measurement at a time, or they would disturb each other.
    alone: dict[str, Any] = {"concurrency_id": "measure", "concurrency_limit": 1}
    go.click(forecast, inputs, outputs, api_name="forecast", show_progress="minimal", **alone)
    page.load(forecast, inputs, outputs, api_visibility="private", show_progress="minimal", **alone)
    gr.api(forecast_values, api_name="forecast_values", **alone)


def build() -> gr.Blocks:
    """The page. It loads no model: its first result is made when it is opened."""
    with gr.Blocks(title="seqexport: torch and ONNX Runtime side by side", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>seqexport</h1><p>A recurrent net, trained in PyTorch and exported to ONNX, rolls 260 years of monthly "
            "sunspots on: torch runs the checkpoint on the left, ONNX Runtime the exported file on the right, both on "
            f'the same noise.</p><p class="machine">{html.escape(hardware())}</p>',
            elem_id="head",
        )
        with gr.Tabs():
            try:
                sunspots()
            except SeqExportError as error:
                gr.Markdown(str(error))
            else:
                with gr.Tab("Forecast"):
                    forecast_tab(page)
    return page.queue(max_size=24, default_concurrency_limit=2)


def main() -> None:
    """Serve the page, by default at 127.0.0.1:7860; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change that."""
    build().launch(**launch_options())


if __name__ == "__main__":
    main()
