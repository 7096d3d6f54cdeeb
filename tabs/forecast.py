"""The Forecast tab: two runtimes roll the same series on. Pure functions first, then the tab and its events."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from seqexport.errors import InputError
from tabs import answers, browser, chart, contest, own_series, racing, series
from tabs.contest import Agreement
from tabs.languages import ENGLISH, Words, fixed
from tabs.own_series import Table
from tabs.racing import ALONE, CAREFUL, EVENT, MAX_SEED, QUICK, RUNTIMES, Column, Measurement, one_of, sentences, whole
from tabs.series import CELLS, MAX_HORIZON, SHIPPED, Series

MAX_PATHS = 200
PASTED, FILE = "pasted", "file"
KEPT = 3600  # seconds that a visitor's table is kept after it was last used
SHOWN = ["path"]  # the output of the pipeline that both columns have to agree on


@dataclass(frozen=True)
class Question:
    """What was asked, checked. net: the series that the net was trained on. noise: (1, 1 + P, N), of which the first
    is zero. context: how many of the last values are read. start: of the forecast, to read; nothing for a
    visitor's values."""

    net: str
    cell: str
    series: Series
    noise: np.ndarray
    season: int
    context: int
    start: str = ""

    @property
    def model(self) -> str:
        """Its folder in exported/."""
        return model_of(self.net, self.net, self.cell)

    @property
    def feeds(self) -> Mapping[str, np.ndarray]:
        """What the pipeline is fed."""
        return {"history": self.series.history[None, -self.context :], "noise": self.noise}

    @property
    def horizon(self) -> int:
        """Steps that are forecast."""
        return self.noise.shape[2]


def model_of(source: Any, net: Any, cell: Any) -> str:
    """The folder in exported/ of the net that reads a source: a series' own, and the chosen one for the visitor's
    values. Raises InputError for what there is not."""
    name = net if source in (PASTED, FILE) else source
    return f"{one_of('net', name, series.nets())}-{one_of('cell', cell, CELLS).lower()}"


def draw_noise(paths: int, horizon: int, seed: int) -> np.ndarray:
    """Standard normal noise, float32 (1, 1 + P, N). The first path's is zero: it is the central one."""
    noise = np.random.default_rng(seed).standard_normal((1, 1 + paths, horizon), dtype=np.float32)
    noise[:, 0] = 0
    return noise


def checked_noise(horizon: Any, paths: Any, seed: Any) -> np.ndarray:
    """The noise of a question whose numbers come from outside. Raises InputError."""
    steps = whole("horizon", horizon, 1, MAX_HORIZON)
    return draw_noise(whole("number of paths", paths, 1, MAX_PATHS), steps, whole("seed", seed, 0, MAX_SEED))


def about(net: str, cell: str) -> Mapping[str, Any]:
    """What the file of a net says of its data: context, season, unit, step, and more."""
    return racing.load_runtime(f"{net}-{cell.lower()}", "forecast", "onnxruntime").metadata["preprocessing"]


def ask(
    words: Words, source: Any, start: Any, text: Any, table: Table | None, column: Any, net: Any, cell: Any,
    horizon: Any, paths: Any, seed: Any,
) -> Question:  # fmt: skip
    """Check a question. Raises InputError for what is out of bounds, FileError for a model that is not there."""
    known = series.offered()
    source = one_of("series", source, (*known, PASTED, FILE))
    net = one_of("net", net, series.nets()) if source in (PASTED, FILE) else source
    cell = one_of("cell", str(cell).upper(), CELLS)
    noise = checked_noise(horizon, paths, seed)
    settings = about(net, cell)
    context, season = settings["context"], settings["season"]
    if source == PASTED:
        values = series.parse_numbers(text)
        own = Series(values, values[:0], words("value"))
    elif source == FILE:
        own = own_series.series_of(table, column, words)
    else:
        number = whole("start", start, 0, len(series.starts(source)) - 1)
        shown = max(context, 2 * season)
        cut = series.cut(source, number, noise.shape[2], shown, series.unit_said(settings["unit"], words))
        return Question(net, cell, cut, noise, season, context, series.start_said(source, number, words))
    return Question(net, cell, own, noise, season, context)


def prepare(*values: Any) -> tuple[str, Mapping[str, np.ndarray]]:
    """The model and the feeds of a question, for a race."""
    asked = ask(ENGLISH, *values)
    return asked.model, asked.feeds


def answer(asked: Question, names: Sequence[str], seconds: float, words: Words) -> Measurement:
    """Each of the named runtimes' answer to the same history and noise, and their times."""
    found = racing.measure(asked.model, "forecast", names, asked.feeds, seconds, words)
    for name, column in found.columns.items():
        if not np.isfinite(column.outputs["path"]).all():
            raise InputError(
                f"The forecast of {RUNTIMES[name].label} left the range of float32: the series is too far from what "
                "the net knows."
            )
    return found


def paths_of(column: Column) -> np.ndarray:
    """The paths (P, N), of which the first is the central one."""
    return column.outputs["path"][0]


def label_of(column: Column) -> str:
    """The runtime of a column, to read."""
    return RUNTIMES[column.runtime].label


def score(asked: Question, paths: np.ndarray) -> dict[str, float]:
    """Mean absolute errors of the central path and of the last season again, and the truth's share in the 90 % band."""
    truth = asked.series.truth
    known = len(truth)
    again = chart.naive(asked.series, asked.season, known)
    miss = np.abs(np.stack([paths[0, :known], again]) - truth).mean(axis=1)
    low, high = np.quantile(paths[1:, :known], (0.05, 0.95), axis=0)
    share = float(((low <= truth) & (truth <= high)).mean())
    return {"known": known, "central": float(miss[0]), "naive": float(miss[1]), "in_band": 100 * share}


def answered(
    seconds: float, left: Any, right: Any, values: Sequence[Any], words: Words
) -> tuple[str, str, str, str, str, dict[str, Any]]:
    """One question to two runtimes, measured for so many seconds → as `forecast` gives it."""
    with sentences():
        names = racing.chosen(left, right, "forecast")
        asked = ask(words, *values)
        found = answer(asked, names, seconds, words)
    one, other = (found.columns[name] for name in names)
    agreed = contest.agreement(names, one.outputs, other.outputs, SHOWN)
    numbers = numbers_of(asked, one, other, agreed, found) | {"seed": int(values[-1])}
    framed = chart.frame(asked.series, [paths_of(one), paths_of(other)])
    plots = [
        chart.draw(asked.series, paths_of(side), asked.season, framed, seen(asked, side, label_of(side), words), words)
        for side in (one, other)
    ]
    latencies = [racing.show_latency(side if agreed.comparable else None, words=words) for side in (one, other)]
    lead = say(asked, names, agreed, found, numbers.get("score"), words)
    return lead, latencies[0], plots[0], latencies[1], plots[1], numbers


def numbers_of(asked: Question, one: Column, other: Column, agreed: Agreement, found: Measurement) -> dict[str, Any]:
    """All the numbers, for JSON. Latencies and the speed-up are there only if the answers may be compared."""
    ratio = found.ratio if agreed.comparable else None
    numbers: dict[str, Any] = agreed.to_dict() | {
        "speed_up": ratio and round(ratio.value, 2),
        "interval": ratio and ratio.low and ratio.high and [round(ratio.low, 2), round(ratio.high, 2)],
        "net": asked.net,
        "cell": asked.cell,
        "start": asked.start or None,
        "horizon": asked.horizon,
        "paths": asked.noise.shape[1] - 1,
        "season": asked.season,
        "left": figures_of(one, agreed.comparable),
        "right": figures_of(other, agreed.comparable),
    }
    if len(asked.series.truth):
        numbers["score"] = score(asked, paths_of(one))
    return numbers


def figures_of(column: Column, timed: bool = True) -> dict[str, Any]:
    """An answer's numbers for JSON."""
    central = {"central": paths_of(column)[0].astype(float).round(4).tolist()}
    return (column.figures if timed else {"runtime": column.runtime}) | central


def say(
    asked: Question,
    names: Sequence[str],
    agreed: Agreement,
    found: Measurement,
    scored: Mapping[str, float] | None,
    words: Words = ENGLISH,
) -> str:
    """The result as HTML: who is faster, what is to be seen, how far the answers differ, and how good they are."""
    told = [what(asked, words)]
    if agreed.comparable:
        lead = racing.race_sentence(names[0], names[1], found.ratio, words)
        told += [agreed.sentence(words), racing.interval_sentence(found.ratio, words)]
    else:
        lead = agreed.sentence(words)
    steps = series.steps_said(asked.series.step, words)
    if scored is not None:
        told.append(
            words(
                "Over the {known:.0f} {steps} known since, the central path is off by {central:,.1f} on average, the "
                "last {season} {steps} again by {naive:,.1f}; the 90 % band holds {in_band:.0f} % of them.",
                steps=steps,
                season=asked.season,
                **scored,
            )  # fmt: skip
        )
    told += asked.series.notes
    return racing.say(lead, html.escape(" ".join(filter(None, told)), quote=False))


def what(asked: Question, words: Words = ENGLISH) -> str:
    """What both columns show."""
    label, steps = series.label_of(asked.net, words), series.steps_said(asked.series.step, words)
    if asked.start:
        return words(
            "Both roll {label} on from {start} for {horizon} {steps}: the same net, the same noise.",
            label=label, start=asked.start, horizon=asked.horizon, steps=steps,
        )  # fmt: skip
    return words(
        "Both roll your {count:,} values on for {horizon} {steps}; the net knows {label} only, and reads them as such.",
        count=len(asked.series.history), horizon=asked.horizon, steps=steps, label=label,
    )  # fmt: skip


def seen(asked: Question, column: Column, runtime: str, words: Words = ENGLISH) -> str:
    """A drawing in words, for those who do not see it. runtime: what the column is called."""
    central = paths_of(column)[0]
    return words(
        "Line chart, {runtime}: what was observed, then {horizon} {steps} of forecast. The central path starts at "
        "{first:,.1f}, ends at {last:,.1f}, and lies between {low:,.1f} and {high:,.1f}.",
        runtime=runtime, horizon=asked.horizon,
        steps=series.steps_said(asked.series.step, words),
        first=central[0], last=central[-1], low=central.min(), high=central.max(),
    )  # fmt: skip


def draw_own(column: Column, words: Words, *values: Any) -> str:
    """The visitor's own machine's answer, drawn in one frame with the columns' that are beside it, as HTML. values: the
    question's, then left's and right's runtime."""
    *question, left, right = values
    names, asked = racing.chosen(left, right, "forecast"), ask(words, *question)
    others = [racing.load_runtime(asked.model, "forecast", name, RUNTIMES[name].onednn[-1]) for name in names]
    paths = paths_of(column)
    framed = chart.frame(asked.series, [*(runtime.run(asked.feeds)["path"][0] for runtime in others), paths])
    return chart.draw(
        asked.series, paths, asked.season, framed, seen(asked, column, words("Your browser"), words), words
    )


def forecast(
    source: str, start: int, text: str, table: Table | None, column: str | None, net: str, cell: str, horizon: int,
    paths: int, seed: int, left: str, right: str, request: gr.Request | None = None,
) -> tuple[str, str, str, str, str, dict[str, Any]]:  # fmt: skip
    """One question to two runtimes → the sentence, left's latency and drawing, right's, as HTML, and all the numbers.

    source: "sunspots", "electricity" or "uk-demand", cut before its start number `start`, of which there is one a month
    or a day in the last fifth; or "pasted", the numbers in `text`, which the net of the series `net` reads; or "file",
    a column of an uploaded one.
    """
    values = (source, start, text, table, column, net, cell, horizon, paths, seed)
    return answered(QUICK, left, right, values, Words.of(request))


def measured(
    source: str, start: int, text: str, table: Table | None, column: str | None, net: str, cell: str, horizon: int,
    paths: int, seed: int, left: str, right: str, request: gr.Request | None = None,
) -> tuple[str, str, str, str, str, dict[str, Any]]:  # fmt: skip
    """As `forecast`, with the time that a careful measurement takes."""
    values = (source, start, text, table, column, net, cell, horizon, paths, seed)
    return answered(CAREFUL, left, right, values, Words.of(request))


def forecast_values(
    values: list[float],
    cell: str,
    horizon: int = 132,
    paths: int = 100,
    seed: int = 0,
    runtime: str = "onnxruntime",
    series: str = "sunspots",
) -> dict[str, Any]:
    """Roll `values` (2 to 20,000; the net reads the last ones) on by `horizon` steps (1 to 600) in one runtime, by the
    net of a cell ("rnn", "lstm", "gru") that was trained on a series ("sunspots", "electricity", "uk-demand") → the
    central path and the bands of `paths` sampled ones (1 to 200), each a list of `horizon` numbers, and the
    milliseconds of the model's call."""
    with sentences():
        one_of("runtime", runtime, racing.present("forecast"))
        asked = ask(ENGLISH, PASTED, 0, values, None, None, series, cell, horizon, paths, seed)
        given = answer(asked, [runtime], QUICK, ENGLISH).columns[runtime]
    bands = np.quantile(paths_of(given)[1:].astype(float), chart.BANDS, axis=0)
    names = ("q05", "q25", "q75", "q95")
    told = {"cell": asked.cell, "series": series, "bands": dict(zip(names, bands.round(4).tolist(), strict=True))}
    return figures_of(given) | told


# --- the tab

CSS = (
    chart.CSS
    + """
#result { min-height: 8.5rem; }
.preview { overflow-x: auto; }
.preview .note, .starts { color: var(--body-text-color-subdued); font-size: 0.85rem; margin: 0 0 0.5rem; }
.preview table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
.preview th, .preview td { text-align: left; padding: 0.2rem 0.75rem 0.2rem 0 !important; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
@media (max-width: 720px) { #result { min-height: 16rem; } .chart .plot { height: 14rem; } }
"""
)


def choose(source: str, request: gr.Request | None = None) -> list[Any]:
    """What a series has: the range of its starts, its usual horizon, and which inputs belong to it."""
    with sentences():
        one_of("series", source, (*series.offered(), PASTED, FILE))
    own = source in (PASTED, FILE)
    start = gr.update(visible=False)
    horizon = gr.skip()
    if not own:
        first = series.opening(source)
        start = gr.update(visible=True, maximum=len(series.starts(source)) - 1, value=first)
        horizon = gr.update(value=SHIPPED[source].horizon)
    said = gr.update(visible=not own, value="" if own else show_start(source, first, request))
    return [start, said, gr.update(visible=source == PASTED), gr.update(visible=source == FILE), gr.update(visible=own),
            horizon]  # fmt: skip


def show_start(source: str, start: Any, request: gr.Request | None = None) -> str:
    """The start's date as HTML."""
    words = Words.of(request)
    if source not in SHIPPED:
        return ""
    with sentences():
        number = whole("start", start, 0, len(series.starts(source)) - 1)
        date = series.start_said(source, number, words)
    return f'<p class="starts" role="status">{words("Starts: {date}", date=date)}</p>'


def take_file(path: str | None, request: gr.Request | None = None) -> tuple[Table, Any, str]:
    """Read an upload → its table, the choice of its columns, and its first rows as HTML."""
    words = Words.of(request)
    with sentences():
        table = own_series.read_upload(path, words)
    names = list(table.columns)
    return table, gr.update(choices=names, value=names[-1], visible=True), own_series.preview(table, words)


def series_choices() -> list[tuple[Any, str]]:
    """The series that are here, and the visitor's own."""
    own = [(fixed("Own numbers"), PASTED), (fixed("Own file"), FILE)]
    return [(titles()[name], name) for name in series.offered()] + own


def titles() -> dict[str, Any]:
    """The shipped series' names where they stand alone."""
    return {
        "sunspots": fixed("Sunspots"),
        "electricity": fixed("Electricity"),
        "uk-demand": fixed("UK demand"),
    }


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab that rolls a series on, and its events."""
    choices = series_choices()
    first = choices[0][1]
    result = gr.HTML(elem_id="result", elem_classes="result", min_height=84)
    with gr.Row():
        with gr.Column(min_width=320):
            source = gr.Radio(choices, value=first, label=fixed("Series"))
            note = fixed("Months or days into the last fifth, which no net was trained on.")
            start = gr.Slider(
                0, len(series.starts(first)) - 1, series.opening(first), step=1, info=note,
                label=fixed("Start of the forecast"),
            )  # fmt: skip
            date = gr.HTML(min_height=24)
            note = fixed("Oldest first, with commas, blanks or new lines between them.")
            text = gr.Textbox(label=fixed("Numbers"), info=note, visible=False, lines=4, placeholder="12.5, 14 …")
            with gr.Group(visible=False) as upload:
                file = gr.UploadButton(fixed("Upload a CSV or TSV"), file_types=[".csv", ".tsv", ".txt"], size="md")
                table = gr.State(time_to_live=KEPT)
                column = gr.Dropdown([], label=fixed("Column of numbers"), visible=False)
                found = gr.HTML(padding=True)
        with gr.Column(min_width=320):
            cell = gr.Radio(CELLS, value="GRU", label=fixed("Cell of the net"))
            note = fixed("Each net knows one series only, and reads yours as such: choose what is most like it.")
            nets = [(titles()[name], name) for name in series.nets()]
            net = gr.Dropdown(nets, value=first, label=fixed("Trained on"), info=note, visible=False)
            horizon = gr.Slider(1, MAX_HORIZON, SHIPPED[first].horizon, step=1, label=fixed("Horizon, steps ahead"))
        with gr.Column(min_width=320):
            paths = gr.Slider(1, MAX_PATHS, value=100, step=1, label=fixed("Sampled paths"))
            seed = gr.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label=fixed("Seed of the noise"))
    asked = contest.buttons(fixed("Forecast"))
    sides = []
    own: list[browser.Place] = []

    def third() -> None:
        own.append(browser.column("forecast", 112, kind="drawing"))

    for runtime, latency in racing.columns("forecast", height=112, third=third):
        sides.append((runtime, latency, gr.HTML(elem_classes="drawing", min_height=380)))
    with gr.Accordion(fixed("All the numbers"), open=False):
        numbers = gr.JSON(label=fixed("Result"), show_label=False)

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    source.change(choose, source, [start, date, text, upload, net, horizon], **quiet)
    start.change(show_start, [source, start], date, **quiet)
    page.load(show_start, [source, start], date, **quiet)
    file.upload(take_file, file, [table, column, found], show_progress="minimal", api_visibility="private")

    (left, *left_outputs), (right, *right_outputs) = sides
    question = [source, start, text, table, column, net, cell, horizon, paths, seed]
    outputs = [result, *left_outputs, *right_outputs, numbers]
    inputs = [*question, left, right]
    answered_now = [
        asked.go.click(forecast, inputs, outputs, api_name="forecast", **EVENT),
        asked.measure.click(measured, inputs, outputs, api_visibility="private", **EVENT),
    ]
    page.load(forecast, inputs, outputs, api_visibility="private", **EVENT)
    task = answers.Task("forecast", SHOWN, prepare, draw_own)
    ended = answers.offer(own[0], task, inputs, forecast, outputs, answered_now)
    own[0].offer([page.load, here.select], [source, net, cell], model_of, answers.again, ended)
    places = [(runtime, latency) for runtime, latency, _ in sides]
    contest.offer(asked, "forecast", prepare, question, places, result, SHOWN)
    gr.api(forecast_values, api_name="forecast_values", **ALONE)
