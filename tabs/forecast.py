"""The Forecast tab: a net rolls a series on. Pure functions first, then the tab and its events."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from seqexport.errors import FileError, InputError
from tabs import racing
from tabs.racing import ALONE, EVENT, MAX_SEED, TOLERANCE, Column, load_runtime, one_of, sentences, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS = ("RNN", "LSTM", "GRU")
MAX_VALUES, MAX_SIZE, MAX_HORIZON, MAX_PATHS = 20_000, 1e9, 600, 200
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


@functools.cache
def sunspots() -> tuple[tuple[str, ...], np.ndarray]:
    """The shipped series: months ("1749-01", …) and their sunspot numbers, float32 (3126,)."""
    try:
        rows = (racing.EXPORTED / "sunspots.csv").read_text(encoding="utf-8").split()[1:]
    except OSError:
        raise FileError(
            f"There are no models in {racing.EXPORTED.name}/ yet: run python -m training.publish."
        ) from None
    months, values = zip(*(row.split(",") for row in rows), strict=True)
    return months, np.array(values, dtype=np.float32)


def start_years() -> tuple[int, int]:
    """The first and the last January within the last fifth of the sunspots, on which no net was trained."""
    months, _ = sunspots()
    return int(months[math.ceil(0.8 * len(months))][:4]) + 1, int(months[-1][:4])


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


def answer(cell: str, names: Sequence[str], series: Series, noise: np.ndarray) -> Mapping[str, Column]:
    """Each of the named runtimes' answer to the same history and noise."""
    feeds = {"history": series.history[None], "noise": noise}
    columns = racing.measure(f"sunspots-{cell.lower()}", "forecast", names, feeds).columns
    if not all(np.isfinite(column.outputs["path"]).all() for column in columns.values()):
        raise InputError("The forecast left the range of float32: the series is too far from what the net knows.")
    return columns


def paths_of(column: Column) -> np.ndarray:
    """The paths (P, N), of which the first is the central one."""
    return column.outputs["path"][0]


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
    return load_runtime(f"sunspots-{cell.lower()}", "forecast", "onnxruntime").metadata["preprocessing"], noise


def forecast(
    source: str, start: int, text: str, cell: str, horizon: int, paths: int, seed: int, left: str, right: str
) -> tuple[str, str, Any, str, Any, dict[str, Any]]:
    """One question to two runtimes → the sentence, left's latency and plot, right's, and all the numbers. `source` is
    "Sunspots", cut before January of `start`, or "Your own values", which are in `text`."""
    with sentences():
        names = racing.chosen(left, right, "forecast")
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
        numbers["score"] = score(series, paths_of(one), season)
    highest = max(np.quantile(paths_of(side)[1:], 0.95, axis=0).max() for side in (one, other))
    top = 1.08 * float(max(highest, series.history.max(), *series.truth, 1e-6))  # the same for both columns
    plots = [draw(series, paths_of(side), season, top) for side in (one, other)]
    latencies = [racing.show_latency(side if numbers["same"] else None) for side in (one, other)]
    return say(numbers), latencies[0], plots[0], latencies[1], plots[1], numbers


def forecast_values(
    values: list[float], cell: str, horizon: int = 132, paths: int = 100, seed: int = 0, runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """Roll `values` (2 to 20,000; the net reads the last ones) on by `horizon` steps in one runtime → the central path
    and the bands, each a list of `horizon` numbers, and the milliseconds of the model's call."""
    with sentences():
        one_of("runtime", runtime, racing.present("forecast"))
        cell = one_of("cell", str(cell).upper(), CELLS)
        settings, noise = ask(cell, horizon, paths, seed)
        series = Series(parse_series(values)[-settings["context"] :], np.empty(0))
        given = answer(cell, [runtime], series, noise)[runtime]
    bands = np.quantile(paths_of(given)[1:].astype(float), (0.05, 0.25, 0.75, 0.95), axis=0)
    names = ("q05", "q25", "q75", "q95")
    return figures_of(given) | {"cell": cell, "bands": dict(zip(names, bands.round(4).tolist(), strict=True))}


def figures_of(column: Column, timed: bool = True) -> dict[str, Any]:
    """An answer's numbers for JSON."""
    numbers = {"runtime": column.runtime, "central": paths_of(column)[0].astype(float).round(4).tolist()}
    return numbers | ({"milliseconds": round(column.milliseconds, 3), "note": column.note} if timed else {})


def compare(one: Column, other: Column) -> dict[str, Any]:
    """The columns' numbers; `difference` is the greatest |left - right|, as a share of the left's largest value (of 1,
    where that is less). Latencies and the speed-up are there only if the answers are the same."""
    apart = float(np.abs(paths_of(one) - paths_of(other)).max() / max(1.0, np.abs(paths_of(one)).max()))
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
    apart = "not a number" if numbers["difference"] is None else f"{numbers['difference']:.1e}"
    lead = f"The answers differ by {apart}, more than {TOLERANCE:.0e}: no speed is shown."
    if numbers["same"]:
        lead = racing.race_sentence(numbers["left"]["runtime"], numbers["right"]["runtime"], numbers["speed_up"])
    detail = f"Both read the same noise; their paths differ by at most {apart} of the largest value."
    if "score" in numbers:
        detail += (
            " Over the {known} of {horizon} months known since, the central path is off by {central:.1f} on average, "
            "the last {season} months again by {naive:.1f}; the 90 % band holds {in_band:.0f} % of them."
        ).format(**numbers, **numbers["score"])
    return racing.say(lead, detail)


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab that rolls a series on, and its events."""
    years = start_years()
    result = gr.HTML(elem_id="result", elem_classes="result", min_height=84)
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
    for runtime, latency in racing.columns("forecast", height=72):
        sides.append((runtime, latency, gr.Plot(show_label=False, container=False, format="png")))
    with gr.Accordion("All the numbers", open=False):
        numbers = gr.JSON(label="Result", show_label=False)

    source.change(
        lambda chosen: [gr.update(visible=chosen == name) for name in (SUNSPOTS, PASTED)],
        source, [start, text], queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    (left, *left_outputs), (right, *right_outputs) = sides
    inputs = [source, start, text, cell, horizon, paths, seed, left, right]
    outputs = [result, *left_outputs, *right_outputs, numbers]
    go.click(forecast, inputs, outputs, api_name="forecast", **EVENT)
    page.load(forecast, inputs, outputs, api_visibility="private", **EVENT)
    gr.api(forecast_values, api_name="forecast_values", **ALONE)
