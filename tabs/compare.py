"""The Compare tab: the three cells and the runtimes side by side, as they were measured before, and measured here."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from seqexport.errors import FileError
from tabs import cells as cells_
from tabs import charts, deadlines, measuring, racing, speeds
from tabs.languages import Words, fixed
from tabs.racing import EVENT, number, one_of, sentences

SECONDS = (5.0, 30.0)  # that a visitor may ask for
FIRST = "sunspots-gru"
QUICK: dict[str, Any] = {"preprocess": False, "show_progress": "hidden"}  # what only reads files waits for nobody


def shipped() -> list[str]:
    """The models that can be measured here, by name."""
    return sorted(path.parent.name for path in racing.EXPORTED.glob("*/checkpoint.pt"))


# Handlers


def show_cells(view: str, nets: str, request: gr.Request | None = None) -> tuple[str, str]:
    """The claims, and one view of the cells → two pieces of HTML; the sentence where nothing was measured yet."""
    words = Words.of(request)
    with sentences():
        view, nets = one_of("view", view, cells_.VIEWS), one_of("size of the nets", nets, cells_.NETS)
    try:
        found = cells_.results()
        return cells_.claims(found, words), cells_.show(view, nets, found, words)
    except FileError as error:
        return _sentence(error), ""


def show_runtimes(model: str | None, kind: str, request: gr.Request | None = None) -> str:
    """One model's tables of a kind → HTML; the sentence where nothing was measured yet."""
    words = Words.of(request)
    with sentences():
        kind = one_of("view", kind, speeds.KINDS)
    try:
        found = speeds.results()
    except FileError as error:
        return _sentence(error)
    known = {speeds.name_of(measured): measured for measured in found["models"]}
    with sentences():
        chosen = one_of("model", model if model is not None else next(iter(known)), list(known))
    return speeds.show(known[chosen], kind, found, words)


def open_cells(shown: str | None, view: str, nets: str, request: gr.Request | None = None) -> Any:
    """The cells, when the tab is looked at; what is shown already stays."""
    return (gr.skip(), gr.skip()) if shown else show_cells(view, nets, request)


def open_runtimes(shown: str | None, model: str | None, kind: str, request: gr.Request | None = None) -> Any:
    """The runtimes, when the tab is looked at; what is shown already stays."""
    return gr.skip() if shown else show_runtimes(model, kind, request)


@deadlines.within(SECONDS[1] + measuring.GRACE + 10)  # which it keeps itself
def measure(model: str, scenario: str, seconds: float, request: gr.Request | None = None) -> Iterator[str]:
    """What the measuring is at, again and again, and its tables in the end, all as HTML."""
    words = Words.of(request)
    with sentences():
        for told in _measured(model, scenario, seconds):
            if isinstance(told, measuring.Stage):
                yield progress(told, float(seconds), words)
            else:
                yield speeds.show(told["models"][0], scenario, told, words) + left_out(scenario, words)


def _measured(model: Any, scenario: Any, seconds: Any) -> Iterator[measuring.Stage | dict[str, Any]]:
    """Check what is asked, and measure it."""
    model = one_of("model", model, shipped())
    scenario = one_of("scenario", scenario, measuring.SCENARIOS)
    yield from measuring.measured(model, scenario, number("time to measure in seconds", seconds, *SECONDS))


def left_out(scenario: str, words: Words) -> str:
    """Who was not asked."""
    names = ", ".join(measuring.LEFT_OUT[scenario])
    text = words("Left out here, for they would take too long: {names}.", names=names)
    return f'<p class="quiet">{escape(text)}</p>'


def progress(stage: measuring.Stage, seconds: float, words: Words) -> str:
    """How far the measuring is: the time is a guess, for loading and answers come on top of it."""
    share = min(0.97, stage.seconds / (2 * seconds + 10))
    lead = words("Measuring: {seconds:.0f} s so far.", seconds=stage.seconds)
    return (
        f'<p class="lead">{escape(lead)}</p><progress max="1" value="{share:.3f}" aria-label="{escape(lead)}">'
        f'</progress><p class="quiet">{escape(stage.said or words("starting"))}</p>'
    )


def _sentence(error: Exception) -> str:
    return f"<p>{escape(str(error))}</p>"


# Endpoints


def cells() -> dict[str, Any]:
    """RNN, LSTM and GRU as they were measured: "claims" with what was found; "quality", a row for each task and network
    with the figures of its seeds; "costs", in seconds and bytes; "gradients", the norm for each step back; "adding",
    what its task's errors mean; "machine"."""
    with sentences():
        return cells_.results()


def runtimes() -> dict[str, Any]:
    """The runtimes as they were measured on the shipped models, as `compare --json` tells it: times in seconds, ratios
    with their intervals, whether the answers agree, who is absent, and the machine. A model has its name, "model",
    instead of its path."""
    with sentences():
        return _named(speeds.results())


@deadlines.within(SECONDS[1] + measuring.GRACE + 10)
def measure_here(model: str, scenario: str = "step", seconds: float = 8.0) -> dict[str, Any]:
    """Measure the runtimes of a shipped model here, for about so many seconds (5 to 30) besides what loading takes.
    scenario: "step", "sequence" or "pipeline". The same as /runtimes, with one model."""
    with sentences():
        for told in _measured(model, scenario, seconds):
            if not isinstance(told, measuring.Stage):
                return _named(told)
    raise AssertionError("measuring ends with what was found, or an error")


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """With names instead of paths: gradio's client takes whatever has a "path" for a file, and asks for it."""
    models = []
    for model in found["models"]:
        rest = {name: value for name, value in model.items() if name != "path"}
        models.append({"model": speeds.name_of(model), **rest})
    return {**found, "models": models}


# The tab

CSS = (
    charts.CSS
    + """
.compare .lead { font-size: 1.25rem; font-weight: 700; line-height: 1.3; margin: 0.75rem 0 0.25rem; }
.compare p { line-height: 1.5; margin: 0.25rem 0; }
.compare p.quiet { max-width: 60rem; }
.compare section { margin: 0.5rem 0 2rem; }
.compare ul.quiet { margin: 0.25rem 0; padding-left: 1.25rem; overflow-wrap: anywhere; }
.compare .absent code { overflow-wrap: anywhere; user-select: all; font-family: var(--font-mono); font-size: 0.85rem; }
.claims { list-style: none; margin: 0.75rem 0 0; padding: 0; }
.claims li { display: grid; grid-template-columns: 4.5rem 1fr; gap: 0.75rem; margin: 0; padding: 0.55rem 0;
  border-top: 1px solid var(--border-color-primary); }
.claims p { margin: 0; line-height: 1.45; overflow-wrap: anywhere; }
.claims .said { font-weight: 700; }
.verdict { font-weight: 700; line-height: 1.45; padding-left: 0.6rem;
  border-left: 4px solid var(--border-color-primary); }
.verdict.yes { border-color: #14958e; }
.verdict.partly { border-color: #b5a400; }
.verdict.no { border-color: #d9772b; }
.compare progress { appearance: none; width: 100%; max-width: 30rem; height: 0.6rem; border: none;
  background: var(--border-color-primary); }
.compare progress::-webkit-progress-bar { background: var(--border-color-primary); }
.compare progress::-webkit-progress-value { background: #2f81f7; }
.compare progress::-moz-progress-bar { background: #2f81f7; }
"""
)


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab and its events. What the files say is shown when the tab is first looked at."""
    with gr.Tabs():
        with gr.Tab(fixed("Cells")):
            claims = gr.HTML(elem_id="cells-claims", elem_classes="compare")
            views = [
                (fixed("Quality"), "quality"),
                (fixed("Long memory"), "memory"),
                (fixed("Times"), "times"),
                (fixed("Memory and size"), "sizes"),
                (fixed("Reach of the gradient"), "gradients"),
            ]
            view = gr.Radio(views, value="quality", label=fixed("What is shown"))
            sizes = [(fixed("The smaller nets"), "small"), (fixed("The larger nets"), "large")]
            nets = gr.Radio(sizes, value="small", label=fixed("Size of the nets"), visible=False)
            shown = gr.HTML(elem_id="cells-shown", elem_classes="compare")
        with gr.Tab(fixed("Runtimes")):
            measured = _measured_before()
            with gr.Row():
                with gr.Column(min_width=280):
                    first = FIRST if FIRST in measured else next(iter(measured), None)
                    model = gr.Dropdown(measured, value=first, label=fixed("Model"), visible=bool(measured))
                with gr.Column(min_width=320):
                    kinds = [*_scenarios(), (fixed("Loading and memory"), "footprint")]
                    kind = gr.Radio(kinds, value="step", label=fixed("What is timed"), visible=bool(measured))
            table = gr.HTML(elem_id="runtimes-shown", elem_classes="compare")
        with gr.Tab(fixed("This machine")):
            with gr.Row():
                with gr.Column(min_width=280):
                    there = shipped()
                    first = FIRST if FIRST in there else next(iter(there), None)
                    own = gr.Dropdown(there, value=first, label=fixed("Model"))
                with gr.Column(min_width=320):
                    scenario = gr.Radio(_scenarios(), value="step", label=fixed("What is timed"))
                with gr.Column(min_width=280):
                    note = fixed("Loading, and making sure that the answers are the same, take about as long again.")
                    seconds = gr.Slider(*SECONDS, 8, step=1, label=fixed("Seconds to measure"), info=note)
            go = gr.Button(fixed("Measure here"), variant="primary", size="lg")
            result = gr.HTML(elem_id="measured-here", elem_classes="compare", min_height=84)

    view.change(
        lambda chosen: gr.update(visible=chosen in ("times", "sizes")),
        view, nets, queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    gr.on([view.change, nets.change], show_cells, [view, nets], [claims, shown], api_visibility="private", **QUICK)
    changes = [model.change, kind.change]
    gr.on(changes, show_runtimes, [model, kind], table, api_visibility="private", **QUICK)
    here.select(open_cells, [claims, view, nets], [claims, shown], api_visibility="private", **QUICK)
    here.select(open_runtimes, [table, model, kind], table, api_visibility="private", **QUICK)
    go.click(measure, [own, scenario, seconds], result, api_visibility="private", **EVENT)
    gr.api(cells, api_name="cells")
    gr.api(runtimes, api_name="runtimes")
    gr.api(measure_here, api_name="measure_here", **racing.ALONE)


def _scenarios() -> list[tuple[Any, str]]:
    return [
        (fixed("One step"), "step"),
        (fixed("A sequence"), "sequence"),
        (fixed("The whole task"), "pipeline"),
    ]


def _measured_before() -> list[str]:
    try:
        return speeds.models(speeds.results())
    except FileError:  # which is said where the tables would be
        return []
