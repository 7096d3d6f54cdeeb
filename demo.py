"""The demo: torch and ONNX Runtime side by side on the same question. `python demo.py`, then http://127.0.0.1:7860.

Pure functions first, then the page, then its events. Importing this module loads no model and starts nothing. The
models come from exported/, which `python -m training.publish` writes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import platform
import threading
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
from seqexport.runtimes import Runtime  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPORTED = Path(__file__).parent / "exported"
CELLS = ("RNN", "LSTM", "GRU")
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime"}
ONEDNN = {"torch": (True, False), "onnxruntime": (None,)}  # how each is run; the fastest is its figure
THREADS = 1
TOLERANCE = 1e-4  # of the difference between two columns; beyond it a speed would compare different answers
MAX_VALUES, MAX_SIZE, MAX_HORIZON, MAX_PATHS, MAX_SEED = 20_000, 1e9, 600, 200, 2**31 - 1
SUNSPOTS, PASTED = "Sunspots", "Your own values"
OPENING_YEAR = 1998  # the last January after which a whole cycle, 132 months, is known


@dataclass(frozen=True)
class Series:
    """A history (T,) to roll on, and the truth after it (0 to N values); the time of history[0], and from one value to
    the next (years for sunspots, otherwise counted)."""

    history: np.ndarray
    truth: np.ndarray
    first: float = 1.0
    step: float = 1.0
    unit: str = "value"
    steps: str = "values"

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
    """The first and the last January within the last fifth of the sunspots, on which no net was trained."""
    months, _ = sunspots()
    return int(months[math.ceil(0.8 * len(months))][:4]) + 1, int(months[-1][:4])


@functools.cache
def load_runtime(cell: str, name: str, onednn: bool | None = None) -> Runtime:
    """The forecast pipeline of a cell in a runtime, loaded once."""
    file = "checkpoint.pt" if name == "torch" else "checkpoint.onnx"
    path = EXPORTED / f"sunspots-{cell.lower()}" / file
    if not path.exists():
        raise FileError(f"There is no {path.parent.name}/{file} in {EXPORTED.name}/: run python -m training.publish.")
    return seqexport.load(path, runtime=name, pipeline="forecast", threads=THREADS, onednn=onednn)


def parse_series(values: str | Sequence[Any] | None) -> np.ndarray:
    """A list of numbers, or a text with commas, semicolons, blanks or new lines between them → float32 (T,).

    Raises InputError where they are too few or too many, or with the first that is not a number of a usable size.
    """
    if not isinstance(values, list):
        values = str(values or "").replace(",", " ").replace(";", " ").split()
    if not 2 <= len(values) <= MAX_VALUES:
        raise InputError(f"The series has the length {len(values):,}; expected 2 to {MAX_VALUES:,} values.")
    numbers = np.empty(len(values), dtype=np.float32)
    for index, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= MAX_SIZE:  # NaN is not either
            problem = f"is “{value!s:.20}”; expected a number of at most {MAX_SIZE:,.0f} in size"
            raise InputError(f"Value {index + 1} of the series {problem}.")
        numbers[index] = number
    return numbers


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


def cut_sunspots(year: int, horizon: int, context: int) -> Series:
    """The sunspots before January of `year`, and the truth from then on as far as it is known."""
    months, values = sunspots()
    start = months.index(f"{year}-01")
    first = max(0, start - context)
    begin = int(months[first][:4]) + (int(months[first][5:]) - 1) / 12
    return Series(values[first:start], values[start : start + horizon], begin, 1 / 12, "sunspot number", "months")


def draw_noise(paths: int, horizon: int, seed: int) -> np.ndarray:
    """Standard normal noise, float32 (1, 1 + P, N). The first path's is zero: it is the central one."""
    noise = np.random.default_rng(seed).standard_normal((1, 1 + paths, horizon), dtype=np.float32)
    noise[:, 0] = 0
    return noise


def race(
    runtimes: Mapping[Any, Runtime], feeds: Mapping[str, np.ndarray], seconds: float = 0.5
) -> dict[Any, tuple[np.ndarray, float]]:
    """Run each once to warm up, then 3 to 25 times, as often as fits into `seconds`, in turns, so that a disturbance
    falls on all of them alike → {name: (paths (P, N), median milliseconds)}."""
    paths = {name: runtime.run(feeds)["path"][0] for name, runtime in runtimes.items()}
    taken: dict[Any, list[float]] = {name: [] for name in runtimes}
    end = time.perf_counter() + seconds
    for turn in range(25):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, runtime in runtimes.items():
            begin = time.perf_counter()
            runtime.run(feeds)
            taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: (paths[name], float(np.median(taken[name]))) for name in runtimes}


def answer(cell: str, names: Sequence[str], series: Series, noise: np.ndarray) -> dict[str, Answer]:
    """Each of the named runtimes' answer to the same history and noise; torch's is the faster of oneDNN on and off."""
    entrants = {(name, onednn): load_runtime(cell, name, onednn) for name in names for onednn in ONEDNN[name]}
    results = race(entrants, {"history": series.history[None], "noise": noise})
    answers = {}
    for name in names:
        tries = [results[name, onednn] for onednn in ONEDNN[name]]
        if not all(np.isfinite(paths).all() for paths, _ in tries):
            raise InputError("The forecast left the range of float32: the series is too far from what the net knows.")
        took = [f"{milliseconds:.2f} ms" for _, milliseconds in tries]
        note = "the exported file"
        if len(took) == 2:
            note = f"the faster of oneDNN on ({took[0]}) and off ({took[1]})"
        answers[name] = Answer(name, *min(tries, key=lambda result: result[1]), note)
    return answers


def score(series: Series, paths: np.ndarray, season: int) -> dict[str, float]:
    """Mean absolute errors of the central path and of the last season again, and the truth's share in the 90 % band."""
    known = len(series.truth)
    miss = np.abs(np.stack([paths[0, :known], np.resize(series.history[-season:], known)]) - series.truth).mean(axis=1)
    low, high = np.quantile(paths[1:, :known], (0.05, 0.95), axis=0)
    share = float(((low <= series.truth) & (series.truth <= high)).mean())
    return {"known": known, "central": float(miss[0]), "naive": float(miss[1]), "in_band": 100 * share}


# Mid-tones: the figure has no background of its own, and has to be read on white and on near-black.
INK, QUIET, BLUE, AMBER = "#7c7f86", "#7c7f8640", "#3f82e0", "#c9782a"


def draw(series: Series, paths: np.ndarray, season: int, top: float) -> Figure:
    """The end of the history, the truth, the central path in its bands, the naive path; the y axis ends at `top`."""
    from matplotlib.figure import Figure

    past, ahead = len(series.history), paths.shape[1]
    shown = min(past, max(2 * season, ahead))
    figure = Figure(figsize=(4.9, 3.5), dpi=220, facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    future = series.times(past, past + ahead)
    for low, high, alpha, label in ((0.05, 0.95, 0.20, "90 % of paths"), (0.25, 0.75, 0.35, "50 % of paths")):
        bounds = np.quantile(paths[1:], (low, high), axis=0)
        axes.fill_between(future, *bounds, color=BLUE, alpha=alpha, linewidth=0, label=label)
    known = np.concatenate([series.history[past - shown :], series.truth])
    naive, label = np.resize(series.history[-season:], ahead), f"last {min(season, past)} {series.steps} again"
    axes.plot(series.times(past - shown, past + len(series.truth)), known, color=INK, linewidth=1, label="observed")
    axes.plot(future, naive, color=AMBER, linewidth=1, linestyle=(0, (3, 1.5)), label=label)
    axes.plot(future, paths[0], color=BLUE, linewidth=2, label="central path")
    axes.axvline(series.first + series.step * (past - 0.5), color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(min(0.0, 1.05 * float(min(known.min(), paths.min()))), top)
    axes.set_ylabel(series.unit, color=INK, fontsize=9)
    axes.grid(axis="y", color=QUIET, linewidth=0.6)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.01)
    lines, labels = axes.get_legend_handles_labels()
    order = np.argsort([label.endswith(("of paths", "again")) for label in labels], stable=True)  # main lines first
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 1.6, "columnspacing": 1.4}
    figure.legend([lines[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=3, **look)
    return figure


def ask(cell: str, horizon: Any, paths: Any, seed: Any) -> tuple[Mapping[str, Any], np.ndarray]:
    """Check what every question has → what the file says of its data (context, season), and the noise (1, 1 + P, N)."""
    steps = whole("horizon", horizon, 1, MAX_HORIZON)
    noise = draw_noise(whole("number of paths", paths, 1, MAX_PATHS), steps, whole("seed", seed, 0, MAX_SEED))
    return load_runtime(cell, "onnxruntime").metadata["preprocessing"], noise


def forecast(
    source: str, start: int, text: str, cell: str, horizon: int, paths: int, seed: int, left: str, right: str
) -> tuple[str, str, Any, str, Any, dict[str, Any]]:
    """One question to two runtimes → the sentence, left's latency and plot, right's, and all the numbers. `source` is
    "Sunspots", cut before January of `start`, or "Your own values", which are in `text`."""
    with sentences():
        names = [one_of("left runtime", left, tuple(RUNTIMES)), one_of("right runtime", right, tuple(RUNTIMES))]
        cell = one_of("cell", str(cell).upper(), CELLS)
        settings, noise = ask(cell, horizon, paths, seed)
        context, season = settings["context"], settings["season"]
        if one_of("series", source, (SUNSPOTS, PASTED)) == SUNSPOTS:
            series = cut_sunspots(whole("year of the start", start, *start_years()), noise.shape[2], context)
        else:
            values = parse_series(text)
            series = Series(values[-context:], values[:0], first=max(0, len(values) - context) + 1)
        answers = answer(cell, names, series, noise)
    one, other = (answers[name] for name in names)
    numbers = compare(one, other) | {"cell": cell, "horizon": horizon, "paths": paths, "seed": seed, "season": season}
    if len(series.truth):
        numbers["score"] = score(series, one.paths, season)
    highest = max(np.quantile(side.paths[1:], 0.95, axis=0).max() for side in (one, other))
    top = 1.08 * float(max(highest, series.history.max(), *series.truth, 1e-6))  # the same for both columns
    plots = [draw(series, side.paths, season, top) for side in (one, other)]
    return say(numbers), show(numbers["left"]), plots[0], show(numbers["right"]), plots[1], numbers


def forecast_values(
    values: list[float], cell: str, horizon: int = 132, paths: int = 100, seed: int = 0, runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """Roll `values` (2 to 20,000; the net reads the last ones) on by `horizon` steps in one runtime → the central path
    and the bands, each a list of `horizon` numbers, and the milliseconds of the model's call."""
    with sentences():
        one_of("runtime", runtime, tuple(RUNTIMES))
        cell = one_of("cell", str(cell).upper(), CELLS)
        settings, noise = ask(cell, horizon, paths, seed)
        series = Series(parse_series(values)[-settings["context"] :], np.empty(0))
        given = answer(cell, [runtime], series, noise)[runtime]
    bands = np.quantile(given.paths[1:].astype(float), (0.05, 0.25, 0.75, 0.95), axis=0)
    names = ("q05", "q25", "q75", "q95")
    return figures_of(given) | {"cell": cell, "bands": dict(zip(names, bands.round(4).tolist(), strict=True))}


def figures_of(column: Answer, timed: bool = True) -> dict[str, Any]:
    """An answer's numbers for JSON."""
    numbers = {"runtime": column.runtime, "central": column.paths[0].astype(float).round(4).tolist()}
    return numbers | ({"milliseconds": round(column.milliseconds, 3), "note": column.note} if timed else {})


def compare(one: Answer, other: Answer) -> dict[str, Any]:
    """The columns' numbers; `difference` is the greatest |left - right|, as a share of the left's largest value (of 1,
    where that is less). Latencies and the speed-up are there only if the answers are the same."""
    apart = float(np.abs(one.paths - other.paths).max() / max(1.0, np.abs(one.paths).max()))
    same = apart <= TOLERANCE  # written so that NaN is not the same
    race_run = same and one.runtime != other.runtime
    return {
        "difference": apart if math.isfinite(apart) else None,
        "same": same,
        "speed_up": round(one.milliseconds / other.milliseconds, 2) if race_run else None,
        "left": figures_of(one, same),
        "right": figures_of(other, same),
    }


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
    detail = f"Both read the same noise; their paths differ by at most {apart} of the largest value."
    if "score" in numbers:
        detail += (
            " Over the {known} of {horizon} months known since, the central path is off by {central:.1f} on average, "
            "the last {season} months again by {naive:.1f}; the 90 % band holds {in_band:.0f} % of them."
        ).format(**numbers, **numbers["score"])
    return f'<div role="status"><p class="lead">{lead}</p><p class="detail">{detail}</p></div>'


def show(side: Mapping[str, Any]) -> str:
    """A column's latency as HTML, or none where the answers differ."""
    if "milliseconds" not in side:
        return '<p class="note">No latency: the answers differ.</p>'
    return (
        f'<p class="ms">{side["milliseconds"]:.2f} ms</p><p class="note">Median of the model call; {side["note"]}</p>'
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
    versions = [f"{package} {version(package)}" for package in ("torch", "onnxruntime")]
    return " · ".join([model, f"{cores} core{'s' * (cores > 1)}", f"{THREADS} thread used", *versions])


CSS = """
.gradio-container { font-variant-numeric: tabular-nums; }
.gradio-container .fillable { max-width: 1240px !important; }
#head h1 { font-size: 1.75rem; font-weight: 700; letter-spacing: -0.01em; margin: 0.5rem 0 0.25rem; }
#head p { margin: 0; max-width: 46rem; line-height: 1.5; }
#head .machine { margin-top: 0.6rem; max-width: none; font-family: var(--font-mono); font-size: 0.8rem; }
#result .lead { font-size: 1.5rem; font-weight: 700; line-height: 1.25; margin: 0.25rem 0; }
#result .detail { line-height: 1.5; margin: 0; max-width: 60rem; }
#head .machine, #result .detail, .latency .note { color: var(--body-text-color-subdued); }
.latency .ms { font-size: 1.5rem; font-weight: 700; line-height: 1.2; margin: 0; }
footer .divider { display: none; }
.latency .note { font-size: 0.85rem; line-height: 1.4; margin: 0; }
"""


def launch_options() -> dict[str, Any]:
    """Theme and style, which gradio takes at launch. The fonts are gradio's own files: no other host is asked."""
    font, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    fonts: dict[str, Any] = {"font": [font, "sans-serif"], "font_mono": [mono, "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="sm", **fonts)
    faint = ("body_text_color_subdued", "block_info_text_color")  # by default too faint to be read on white
    theme.set(**dict.fromkeys(faint, "*neutral_500"), **{f"{name}_dark": "*neutral_400" for name in faint})
    return {"theme": theme, "css": CSS, "footer_links": ["api"], "max_file_size": "20mb"}


def forecast_tab(page: gr.Blocks) -> None:
    """The tab that rolls a series on, and its events."""
    years = start_years()
    result = gr.HTML(elem_id="result", min_height=84)
    with gr.Row():
        with gr.Column(min_width=320):
            source = gr.Radio([SUNSPOTS, PASTED], value=SUNSPOTS, label="Series")
            note = "The nets never saw these years in training."
            start = gr.Slider(*years, OPENING_YEAR, step=1, label="Forecast starts in January of", info=note)
            note = "Commas, blanks or new lines between them. The nets know sunspots only, and read it as such."
            text = gr.Textbox(label="Values, oldest first", info=note, visible=False, lines=4, placeholder="12.5, 14 …")
        with gr.Column(min_width=320):
            cell = gr.Radio(CELLS, value="GRU", label="Cell of the net")
            horizon = gr.Slider(1, MAX_HORIZON, value=132, step=1, label="Horizon, steps ahead")
        with gr.Column(min_width=320):
            paths = gr.Slider(1, MAX_PATHS, value=100, step=1, label="Sampled paths")
            seed = gr.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed of the noise")
    go = gr.Button("Forecast", variant="primary", size="lg")
    sides = []
    with gr.Row():
        for name, label in (("torch", "Left runtime"), ("onnxruntime", "Right runtime")):
            with gr.Column(min_width=320):
                with gr.Row():
                    with gr.Column(min_width=190):
                        runtime = gr.Dropdown([*zip(RUNTIMES.values(), RUNTIMES)], value=name, label=label)  # noqa: B905
                    with gr.Column(min_width=190):
                        latency = gr.HTML(elem_classes="latency", min_height=72)
                plot = gr.Plot(show_label=False, container=False, format="png")
                sides.append((runtime, latency, plot))
    with gr.Accordion("All the numbers", open=False):
        numbers = gr.JSON(label="Result", show_label=False)

    source.change(
        lambda chosen: [gr.update(visible=chosen == name) for name in (SUNSPOTS, PASTED)],
        source, [start, text], queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    (left, *left_outputs), (right, *right_outputs) = sides
    inputs = [source, start, text, cell, horizon, paths, seed, left, right]
    outputs = [result, *left_outputs, *right_outputs, numbers]
    # One measurement at a time, or they would disturb each other.
    alone: dict[str, Any] = {"concurrency_id": "measure", "concurrency_limit": 1}
    # Without preprocessing: gradio's own checks of the bounds do not say which value they mean, `ask` does.
    event: dict[str, Any] = alone | {"preprocess": False, "show_progress": "minimal"}
    go.click(forecast, inputs, outputs, api_name="forecast", **event)
    page.load(forecast, inputs, outputs, api_visibility="private", **event)
    gr.api(forecast_values, api_name="forecast_values", **alone)


def build() -> gr.Blocks:
    """The page. It loads no model: its first result is made when it is opened."""
    with gr.Blocks(title="seqexport: torch and ONNX Runtime side by side", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>seqexport</h1><p>A recurrent net, trained in PyTorch and exported to ONNX, rolls 260 years of monthly "
            "sunspots on: torch runs the checkpoint on the left, ONNX Runtime the exported file on the right, both on "
            f'the same noise.</p><p class="machine">{hardware()}</p>',
            elem_id="head",
        )
        with gr.Tabs(), gr.Tab("Forecast"):
            try:
                forecast_tab(page)
            except FileError as error:  # nothing was trained yet: the page says what to run
                gr.Markdown(str(error))
    return page.queue(max_size=24, default_concurrency_limit=2)


def main() -> None:
    """Serve the page, by default at 127.0.0.1:7860; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change that."""
    for module in ("torch", "matplotlib.figure"):  # what takes longest is imported while the page is built
        threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()
    build().launch(**launch_options())


if __name__ == "__main__":
    main()
