"""The Convert tab: a visitor's checkpoint, or an example, becomes a verified ONNX file. What it says comes first, then
the tab and its events; the work is done in a child process (tabs/jobs.py)."""

# Without `annotations` of the future: gradio reads the types of what an endpoint returns.
import contextlib
import html
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import gradio as gr

from seqexport.errors import FileError, InputError, SeqExportError
from tabs import deadlines, drawing, examples, jobs
from tabs.languages import ENGLISH, Words, fixed
from tabs.racing import sentences

MOST_ROWS = 12  # of cases that differ, and of names that are not used
EVERY = 0.15  # seconds between two updates of the page
# What a question is answered with at first; each of them, in the order in which they stand.
FIRST = {"nonlinearity": "tanh", "time_major": "batch", "head": "every", "text": False}
HEADS, STATES, PRECISIONS = ("every", "last", "mean", "max"), ("optional", "explicit", "none"), ("fp32", "fp32,int8")

CSS = (
    drawing.CSS
    + """
#convert-intro { gap: 0; }
#convert-intro .html-container { padding-top: 0; padding-bottom: 0.25rem; }
.facts, .facts tr { border: 0 !important; border-collapse: collapse; margin: 0.5rem 0; font-size: 0.95rem; }
.facts th, .facts td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0 !important; border: 0;
  border-bottom: 1px solid var(--border-color-primary) !important; white-space: nowrap; }
.told td { overflow-wrap: anywhere; white-space: normal; }
.facts th { font-weight: 400; color: var(--body-text-color-subdued); }
.facts .number { text-align: right; }
.wide { overflow-x: auto; }
#convert-files .label-clear-button { display: none; }  /* what is there to download can't be taken off the list */
.refused { border-left: 3px solid #d97706; padding-left: 0.75rem; }
.result .detail { overflow-wrap: anywhere; }
.result progress { appearance: none; display: block; width: 100%; max-width: 30rem; height: 0.4rem; border: 0;
  border-radius: 0.2rem; overflow: hidden; margin-top: 0.6rem; background: var(--border-color-primary); }
.result progress::-webkit-progress-bar { background: var(--border-color-primary); }
.result progress::-webkit-progress-value { background: #3f82e0; }
.result progress::-moz-progress-bar { background: #3f82e0; }
.result progress:indeterminate::-webkit-progress-bar { background: #3f82e0; }
.result progress:indeterminate { animation: convert-pulse 1.6s ease-in-out infinite alternate; }
@keyframes convert-pulse { from { opacity: 0.25; } to { opacity: 0.8; } }
@media (prefers-reduced-motion: reduce) { .result progress:indeterminate { animation: none; opacity: 0.5; } }
"""
)


def table(rows: Sequence[Sequence[Any]], headings: Sequence[str] = ()) -> str:
    """Rows as an HTML table, in a box of its own to scroll in; without headings, the first cell of a row is one.
    Numbers that are given as numbers stand to the right."""

    def cell(value: Any, heading: bool) -> str:
        name = "th" if heading else "td"
        number = "" if isinstance(value, str) else ' class="number"'
        shown = f"{value:.1e}" if isinstance(value, float) and value else f"{value:,}" if number else value
        return f"<{name}{number}>{html.escape(str(shown))}</{name}>"

    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    lines = [f"<tr>{head}</tr>"] if head else []
    for row in rows:
        lines.append(f"<tr>{''.join(cell(value, not head and not place) for place, value in enumerate(row))}</tr>")
    kind = "facts" if head else "facts told"
    return f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def refused(lead: str, sentence: str) -> str:
    """A sentence of what was found, what was expected and what to do, as HTML."""
    shown = html.escape(sentence)
    return (
        f'<div role="alert" class="refused"><p class="lead">{html.escape(lead)}</p><p class="detail">{shown}</p></div>'
    )


def show_found(name: str, found: Mapping[str, Any], words: Words = ENGLISH) -> str:
    """What a file was recognised as, as HTML: the kind of file, the cell, its sizes, and what the file leaves open."""
    network = found["network"]
    if network is None:
        return refused(words("This file can't be converted."), str(found.get("exports as", "")).partition(": ")[2])
    cell = str(network["cell"]).upper()
    rows: list[tuple[str, str]] = [
        (words("File"), f"{name}, {int(found['bytes']):,} bytes, {found['kind']}"),
        (words("Cell"), f"{cell} ({network['nonlinearity']})" if cell == "RNN" else cell),
        (words("Sizes"), sizes(network, words)),
        (words("Weights"), f"{int(found['parameters']):,}"),
    ]
    if network["outputs"]:
        steps = {"every": words("every step"), "last": words("the last step")}
        steps |= {"mean": words("the mean over the steps"), "max": words("the maximum over the steps")}
        rows.append((words("Head"), words("linear, {outputs} outputs, on ", outputs=network["outputs"])
                     + steps.get(network["pooling"], "")))  # fmt: skip
    if str(found["task"]) in ("forecast", "classify", "generate"):
        rows.append((words("Pipeline"), words("{task}: a second file takes raw input", task=found["task"])))
    if set(found["questions"]) - {"text"}:
        rows.append((words("Not in the file"), words("what is asked below; the defaults are filled in")))
    if found["not used"]:
        rows.append((words("Not used"), listed([str(name) for name in found["not used"]], words)))
    lead = words("Recognised: {cell}", cell=cell)
    return f'<div role="status"><p class="lead">{html.escape(lead)}</p></div>{table(rows)}'


def sizes(network: Mapping[str, Any], words: Words = ENGLISH) -> str:
    """A network's sizes in words."""
    said = []
    if network["vocabulary"]:
        said.append(words("{count:,} tokens", count=network["vocabulary"]))
    count = network["features"]
    said.append(words("{count:,} numbers a step", count=count) if count > 1 else words("1 number a step"))
    said.append(words("{count:,} hidden", count=network["hidden_size"]))
    if network["projection"]:
        said.append(words("projected to {count:,}", count=network["projection"]))
    said.append(words("{count} layers", count=network["layers"]) if network["layers"] > 1 else words("1 layer"))
    if network["bidirectional"]:
        said.append(words("both directions"))
    return ", ".join(said)


def listed(names: Sequence[str], words: Words = ENGLISH) -> str:
    """The first names, and how many more there are."""
    more = [words("and {count:,} more", count=len(names) - MOST_ROWS)] if len(names) > MOST_ROWS else []
    return ", ".join([*(name if len(name) <= 80 else f"{name[:79]}…" for name in names[:MOST_ROWS]), *more])


def show_stage(stage: Mapping[str, Any], words: Words = ENGLISH) -> str:
    """Where a conversion is, as HTML, with a bar."""
    part = part_name(str(stage["part"]), words)
    lead = {
        "read": words("Reading the file …"),
        "trace": words("Tracing the {part} …", part=part),
        "verify": words("Verifying the {part} …", part=part),
        "int8": words("Making int8 and holding it against float32 …"),
        "describe": words("Writing the report …"),
    }.get(str(stage["doing"]), words("Working …"))
    at, count = int(stage["at"]), int(stage["count"])
    detail = words("Case {at} of {count}, torch beside ONNX Runtime.", at=at, count=count) if count else ""
    bar = f'<progress max="{count}" value="{at}"></progress>' if count else "<progress></progress>"
    return f'<p class="lead">{html.escape(lead)}</p><p class="detail">{html.escape(detail)}&nbsp;</p>{bar}'


def part_name(part: str, words: Words = ENGLISH) -> str:
    """What a graph is called."""
    pipelines = {"forecast": words("forecast"), "classify": words("classifier"), "generate": words("generator")}
    name, _, text = part.partition(".")
    said = pipelines.get(name, words("network"))
    return words("{pipeline} of texts", pipeline=said) if text else said


def show_verdict(result: jobs.Result, words: Words = ENGLISH) -> str:
    """The verification's report as HTML: passed or not, the worst differences, what was assumed, the files."""
    report = result.report
    cases = report["cases"]
    failed = [case for case in cases if not case["passed"]]
    if result.sentence:
        rows = [(case["part"], case["case"], "; ".join(case["notes"])) for case in failed[:MOST_ROWS]]
        shown = table(rows, [words("part"), words("case"), words("what differs")]) if rows else ""
        return refused(words("Not verified: nothing was written."), result.sentence) + shown
    lead = words("Verified: all {count} cases agree with torch.", count=len(cases))
    detail = words("{found}. It took {seconds:.1f} s.", found=report["found"], seconds=float(report["seconds"]))
    decided = ", ".join(f"{int(count):,} {noun}s" for noun, count in report["decided"].items())
    if decided:
        detail += " " + words("Decided alike: {decided}.", decided=decided)
    detail += " " + words("A case is a batch and a length, with zero or random state, whole or cut into pieces.")
    parts = [
        f'<div role="status"><p class="lead">{html.escape(lead)}</p><p class="detail">{html.escape(detail)}</p></div>'
    ]
    worst_rows = [(worst["part"], worst["output"], worst["error"], report["tolerance"]) for worst in report["worst"]]
    if worst_rows:
        parts.append(table(worst_rows, [words("part"), words("output"), words("worst difference"), words("allowed")]))
    if report["properties"]:
        tried_rows = [
            (tried["part"], tried["name"], tried["error"], tried["allowed"], words("holds"))
            for tried in report["properties"]
        ]
        headings = [words("part"), words("property"), words("difference"), words("allowed"), ""]
        parts.append(table(tried_rows, headings))
    file_rows = [
        (Path(file["path"]).name, part_name(file["part"], words), file["bytes"], file["nodes"])
        for file in report["files"]
    ]
    parts.append(table(file_rows, [words("file"), words("part"), words("bytes"), words("nodes")]))
    notes = [str(note) for note in report["notes"]]
    if report["unused"]:
        notes.append(words("Not used: {names}", names=listed([str(name) for name in report["unused"]], words)))
    return "".join([*parts, *(f'<p class="detail">{html.escape(note)}</p>' for note in notes)])


def show_graphs(result: jobs.Result, words: Words = ENGLISH) -> str:
    """The drawings of all graphs as HTML, the first of them open."""
    drawn = [drawing.draw(name, graph, words, place == 0) for place, (name, graph) in enumerate(result.graphs.items())]
    return "".join(drawn)


def one_of_these(name: str, value: Any, known: Sequence[Any]) -> Any:
    """The value, if it is one of those known. Raises InputError otherwise."""
    if not isinstance(value, str | bool | NoneType) or value not in known:
        raise InputError(f"The {name} is {value!r:.40}; expected {', '.join(map(str, known))}.")
    return value


def options_of(
    state: Any, precision: Any, text: Any, nonlinearity: Any = None, time_major: Any = None, head: Any = None
) -> dict[str, Any]:
    """The options of a conversion, checked; None is what is not chosen. Raises InputError."""
    return {
        "state": one_of_these("state", state, STATES),
        "precision": one_of_these("precision", precision, PRECISIONS),
        "text": one_of_these("choice of texts", text, (True, False)),
        "nonlinearity": one_of_these("nonlinearity", nonlinearity, (None, "tanh", "relu")),
        "time_major": one_of_these("choice of time before batch", time_major, (None, True, False)),
        "head": one_of_these("head", head, (None, *HEADS)),
    }


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Raise FileError where what the child said is not what it says of itself: it read a stranger's file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise FileError("What is said of this file can't be understood; do not trust it.") from error


@deadlines.within(jobs.LONGEST)
def recognise(file: str | None, request: gr.Request | None = None) -> Iterator[tuple[Any, ...]]:
    """What the tab shows of a new file: what it was recognised as, the questions that apply at their defaults, whether
    it can be converted; and nothing of the file before."""
    words = Words.of(request)
    nothing = ("", "", gr.update(value=None, visible=False), gr.update(value="", visible=False))
    hidden = (gr.update(visible=False),) * 5
    if file is None:
        yield "", *hidden, gr.update(interactive=False), *nothing
        return
    lead = f'<p class="lead">{html.escape(words("Looking into the file …"))}</p><progress></progress>'
    yield lead, *hidden, gr.update(interactive=False), *nothing
    found: Any = None
    try:
        path = jobs.uploaded(file)
        for thing in jobs.inspect(path):
            if "waiting" in thing:
                yield show_waiting(thing["waiting"], words), *(gr.skip(),) * 10
            found = thing.get("found", found)
        with understood():
            shown, there = show_found(jobs.plain_name(path.name), found, words), found["network"] is not None
            asked = [name in found["questions"] for name in FIRST]
        pairs = zip(asked, FIRST.values(), strict=True)
        questions = (gr.update(visible=there and name, value=value) for name, value in pairs)
        # At the very end: what is yielded last, gradio sends again when a handler ends, over what was chosen since.
        yield shown, gr.update(visible=there), *questions, gr.update(interactive=there), *nothing
    except SeqExportError as error:
        shown = refused(words("This file can't be converted."), str(error))
        yield shown, *hidden, gr.update(interactive=False), *nothing


def show_waiting(before: int, words: Words = ENGLISH) -> str:
    """How many are before this one, as HTML."""
    lead = words("Waiting: {before} before you …", before=before)
    return f'<p class="lead">{html.escape(lead)}</p><progress></progress>'


@deadlines.within(jobs.LONGEST)
def converted(
    file: str | None,
    nonlinearity: str,
    order: str,
    head: str,
    text: bool,
    state: str,
    precision: str,
    request: gr.Request | None = None,
) -> Iterator[tuple[Any, ...]]:
    """What the tab shows while a file is converted and when it is: the verdict, the graphs, the files, the program, and
    the button's state."""
    words, shown = Words.of(request), 0.0
    nothing = ("", gr.update(value=None, visible=False), gr.update(value="", visible=False))
    yield show_stage({"doing": "read", "part": "", "at": 0, "count": 0}, words), *nothing, gr.update(interactive=False)
    try:
        path, options = jobs.uploaded(file), options_of(state, precision, text, nonlinearity, order == "time", head)
        for thing in jobs.convert(path, options):
            if isinstance(thing, jobs.Result):
                with understood():
                    told = show_verdict(thing, words), *delivered(thing, words)
                yield *told, gr.update(interactive=True)
            elif "waiting" in thing:
                yield show_waiting(thing["waiting"], words), *(gr.skip(),) * 4
            elif "stage" in thing and time.monotonic() > shown + EVERY:
                shown = time.monotonic()
                with understood():
                    stage = show_stage(thing["stage"], words)
                yield stage, *(gr.skip(),) * 4
            else:
                yield (gr.skip(),) * 5  # whoever left is noticed
    except SeqExportError as error:
        yield refused(words("Not converted."), str(error)), *nothing, gr.update(interactive=True)


def delivered(result: jobs.Result, words: Words = ENGLISH) -> tuple[Any, ...]:
    """The graphs, the files and the program of a conversion, hidden where there are none."""
    program = "" if result.sentence else next(iter(result.programs.values()), "")
    return (
        show_graphs(result, words),
        gr.update(value=list(result.files) or None, visible=bool(result.files)),
        gr.update(value=program, visible=bool(program)),
    )


@deadlines.within(jobs.LONGEST)
def convert(
    checkpoint: gr.FileData,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    time_major: bool | None = None,
    head: Literal["every", "last", "mean", "max"] | None = None,
    state: Literal["optional", "explicit", "none"] = "optional",
    precision: Literal["fp32", "fp32,int8"] = "fp32",
    text: bool = False,
) -> tuple[dict[str, Any], list[gr.FileData]]:
    """Convert a checkpoint of a PyTorch RNN, LSTM or GRU to verified ONNX files.

    Args:
        checkpoint: the file, at most 20 MB: seqexport's own, a state_dict, bare or wrapped by a trainer, safetensors,
            or TorchScript. Nothing in it is executed.
        nonlinearity: of an RNN cell, where the file does not tell; tanh unless given.
        time_major: whether the net takes time before batch, where the file does not tell; false unless given.
        head: the steps that the head reads, where the file does not tell; every unless given.
        state: whether the state is an input that may be left out (optional), one that is required (explicit), or none.
        precision: fp32, or fp32,int8 for int8 files besides, held against float32.
        text: for a classifier or a generator of texts, also a file with strings in and out.

    Returns:
        The report of the verification; and the files: an archive of them all, the ONNX files, programs that run them,
        and the report as a page and as JSON. They are deleted within the hour.
    """
    with sentences():
        path, options = jobs.uploaded(checkpoint), options_of(state, precision, text, nonlinearity, time_major, head)
        result = jobs.Result({})
        for thing in jobs.convert(path, options):
            if isinstance(thing, jobs.Result):
                result = thing
    if result.sentence:
        raise gr.Error(result.sentence, print_exception=False)
    files = [gr.FileData(path=file, orig_name=Path(file).name) for file in result.files]
    # Clients take whatever has a `path` for a file to download.
    written = [{name.replace("path", "name"): value for name, value in file.items()} for file in result.report["files"]]
    return {**result.report, "files": written}, [file.model_dump() for file in files]  # type: ignore[misc]


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab that converts a file, and its events."""
    with gr.Column(elem_id="convert-intro"):
        for sentence in (
            fixed("A checkpoint of an RNN, LSTM or GRU becomes an ONNX file, held against torch before you get it."),
            fixed("Nothing in your file is executed, and what you upload or get is deleted within the hour."),
        ):
            gr.HTML(f'<p class="detail">{sentence}</p>', elem_classes="result")
    with gr.Row():
        with gr.Column(min_width=320):
            file = gr.File(label=fixed("Your checkpoint, at most 20 MB"), height=150, elem_id="convert-file")
            gr.HTML(f'<p class="detail">{fixed("Or take an example:")}</p>', elem_classes="result")
            with gr.Row(elem_id="convert-examples"):
                buttons = {
                    name: gr.Button(label, size="sm", min_width=150)
                    for name, label in (
                        ("sunspots", fixed("Sunspots forecaster")),
                        ("reviews", fixed("Chinese reviews")),
                        ("bare", fixed("Bare state_dict")),
                        ("lightning", fixed("Lightning checkpoint")),
                        ("torchscript", fixed("TorchScript RNN")),
                        ("pickled", fixed("Pickled module")),
                    )
                }
        with gr.Column(min_width=320):
            about = gr.HTML(elem_id="convert-found", elem_classes="result", min_height=84)
            with gr.Column(visible=False) as questions:
                nonlinearity = gr.Radio(
                    ["tanh", "relu"], value="tanh", label=fixed("Nonlinearity of the RNN cell"), visible=False
                )
                order = gr.Radio(
                    [(fixed("batch, then time"), "batch"), (fixed("time, then batch"), "time")],
                    value="batch",
                    label=fixed("Order of the input's dims"),
                    info=fixed("The module's batch_first says it."),
                    visible=False,
                )
                head = gr.Radio(
                    [
                        (fixed("every step"), "every"),
                        (fixed("the last step"), "last"),
                        (fixed("the mean over the steps"), "mean"),
                        (fixed("the maximum over the steps"), "max"),
                    ],
                    value="every",
                    label=fixed("The linear layer reads"),
                    visible=False,
                )
                text = gr.Checkbox(label=fixed("Also a file with texts in and out"), visible=False)
                state = gr.Radio(
                    [
                        (fixed("may be left out"), "optional"),
                        (fixed("is required"), "explicit"),
                        (fixed("is not there"), "none"),
                    ],
                    value="optional",
                    label=fixed("The state as an input"),
                    info=fixed("For onnxruntime-web and Triton it has to be required."),
                )
                precision = gr.Radio(
                    [("float32", "fp32"), (fixed("float32 and int8"), "fp32,int8")],
                    value="fp32",
                    label=fixed("Precision"),
                )
    go = gr.Button(fixed("Convert"), variant="primary", size="lg", interactive=False)
    verdict = gr.HTML(elem_id="convert-result", elem_classes="result", min_height=84)
    files = gr.File(label=fixed("Files to download"), visible=False, interactive=False, elem_id="convert-files")
    program = gr.Code(
        label=fixed("Runs the network"), language="python", visible=False, interactive=False, elem_id="convert-program"
    )
    graphs = gr.HTML(elem_id="convert-graphs")

    results = [verdict, graphs, files, program]
    file.change(
        recognise,
        file,
        [about, questions, nonlinearity, order, head, text, go, *results],
        concurrency_id="inspect",
        concurrency_limit=12,
        show_progress="hidden",
        api_visibility="private",
    )
    for name, button in buttons.items():
        button.click(
            lambda name=name: str(examples.example(name)), None, file, api_visibility="private", show_progress="hidden"
        )
    go.click(
        converted,
        [file, nonlinearity, order, head, text, state, precision],
        [*results, go],
        concurrency_id="convert",
        concurrency_limit=12,
        show_progress="hidden",
        api_visibility="private",
    )
    here.select(jobs.prepare, None, None, queue=False, show_progress="hidden", api_visibility="private")
    gr.api(convert, api_name="convert", concurrency_id="convert", concurrency_limit=12)
