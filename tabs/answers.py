"""Answers of the visitor's own machine, in the Forecast and the Sentiment tab: what the page's script is asked, how its
answer is checked, and the events of the third column. Nothing of what a page sends is believed."""

from __future__ import annotations

import base64
import binascii
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import numpy as np

from seqexport.errors import InputError, SeqExportError
from tabs import browser, contest, racing
from tabs.languages import ENGLISH, Words, spoken
from tabs.racing import ALONE, EVENT, Column, sentences

KEPT = 3600  # seconds that a question is kept after it was last used
MOST_CALLS, MOST_MILLISECONDS = 25, 10_000_000  # of the timing on a page


@dataclass(frozen=True)
class Task:
    """What a tab asks. outputs: the pipeline's, float32, which are drawn and have to agree. prepare: the values of a
    question → the model and its feeds. draw: the column's answer, the words of the visitor's language and the values
    (those of the question, then left's and right's runtime) → the answer as HTML. Both raise SeqExportError."""

    pipeline: str
    outputs: Sequence[str]
    prepare: Callable[..., tuple[str, Mapping[str, np.ndarray]]]
    draw: Callable[..., str]


@dataclass(frozen=True, eq=False)
class Asked:
    """The question that was asked last, and the number of the job that it became: a page that comes with another one
    answers an earlier question."""

    values: Sequence[Any] = field(default=())
    number: str = ""


def tensor(values: np.ndarray) -> dict[str, Any]:
    """An input for the page's script, to the last bit: its type, its shape, and its bytes in base64."""
    kept = np.ascontiguousarray(values, dtype="<f4" if values.dtype.kind == "f" else "<i8")
    name = "float32" if kept.dtype.kind == "f" else "int64"
    return {"type": name, "dims": list(kept.shape), "data": base64.b64encode(kept.tobytes()).decode()}


def job(
    task: Task, loaded: Any, button: bool, *values: Any, words: Words = ENGLISH
) -> tuple[dict[str, Any] | None, Asked]:
    """What the script is asked, and the question for later. None where the visitor has loaded nothing; a note for a net
    that was not loaded, unless its `button` was pressed. loaded: what the page says it has."""
    known = loaded if isinstance(loaded, list) else []
    if not known and not button:
        return None, Asked(values)
    with sentences():
        model, feeds = task.prepare(*values[:-2])
    if not button and f"{model}.onnx" not in known:
        return {"note": browser.first(words)}, Asked(values)
    asked = Asked(values, secrets.token_hex(8))
    started = browser.opening(model, words)
    started["words"]["answering"] = words("Answering in your browser …")
    inputs = {name: tensor(value) for name, value in feeds.items()}
    return started | {"inputs": inputs, "outputs": list(task.outputs), "number": asked.number}, asked


def given(own: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], words: Words = ENGLISH) -> Column:
    """The answer that a page's script gives, as a column: float32 arrays of these shapes by name, and its time.

    Raises InputError, with what is wrong, unless it holds just that: finite numbers, and a time that one can be.
    """
    outputs = own.get("outputs")
    if not isinstance(outputs, dict) or set(outputs) != set(shapes):
        raise InputError(f"The browser's answer is not {' and '.join(shapes)}: load the page again.")
    found = {name: _array(name, outputs[name], shape) for name, shape in shapes.items()}
    calls = racing.whole("number of the browser's calls", own.get("calls"), 1, MOST_CALLS)
    milliseconds = racing.number("browser's time", own.get("milliseconds"), 0, MOST_MILLISECONDS)
    note = words("Median of {calls} calls on your machine, in WebAssembly", calls=calls)
    return Column("onnxruntime", found, milliseconds, note, calls=calls)


def _array(name: str, part: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array in {"dims", "data"}; its length is told from the text's before that is decoded."""
    dims, data = (part.get(key) for key in ("dims", "data")) if isinstance(part, dict) else (None, None)
    fits = isinstance(dims, list) and all(type(dim) is int for dim in dims) and tuple(dims) == shape
    size = 4 * math.prod(shape)
    if not fits or not isinstance(data, str) or len(data) != 4 * math.ceil(size / 3):
        raise InputError(f"The browser's {name} has not the shape {list(shape)}: load the page again.")
    try:
        values = np.frombuffer(base64.b64decode(data, validate=True), "<f4").reshape(shape)
    except (binascii.Error, ValueError):  # other signs, or fewer bytes than the text promised
        raise InputError(f"The browser's {name} is not {math.prod(shape):,} numbers: load the page again.") from None
    if not np.isfinite(values).all():
        raise InputError(f"The browser's {name} holds what is not a number.")
    return values


def judged(task: Task, own: Any, asked: Any, words: Words = ENGLISH) -> tuple[Any, list[list[str]] | None]:
    """The page's answer held against ONNX Runtime's on the server → its drawing as HTML, and what the column says: its
    time, but for answers that differ, and how far it is from the server's. Paragraphs, each its kind and its text.

    An answer to an earlier question is left out.
    """
    if not own or not isinstance(asked, Asked):
        return "", None
    try:
        if not isinstance(own, dict) or type(own.get("number")) is not str:
            raise InputError("The browser's answer is none: load the page again.")
        if own["number"] != asked.number:
            return gr.skip(), None
        model, feeds = task.prepare(*asked.values[:-2])
        here = racing.load_runtime(model, task.pipeline, "onnxruntime").run(feeds)
        column = given(own, {name: here[name].shape for name in task.outputs}, words)
        agreed = contest.agreement(["onnxruntime"] * 2, here, column.outputs, task.outputs)
        drawn = task.draw(column, words, *asked.values)
    except SeqExportError as error:
        return "", [["note", str(error)]]
    verdict = words("Beside ONNX Runtime on the server:") + f" {agreed.sentence(words)}"
    # Of a millisecond a page's clock knows no more than tenths.
    time = [["ms", f"{column.milliseconds:.1f} ms"], ["note", column.note]] if agreed.comparable else []
    return drawn, [*time, ["note", verdict]]


def again(words: Words) -> str:
    """The name of the button for a net that was loaded."""
    return words("Run it in your browser again")


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two questions are the same; an empty field may be said in several ways."""
    plain = [[None if value in ("", []) else value for value in values] for values in (one, other)]
    return plain[0] == plain[1]


def offer(
    place: browser.Place,
    task: Task,
    inputs: Sequence[gr.components.Component],
    answer: Callable[..., tuple[Any, ...]],
    outputs: Sequence[gr.components.Component],
    after: Sequence[Any],
) -> list[Any]:
    """What the column does: its button answers the question in it, in the other columns too where they show another
    one, and after each of the events `after` it answers by itself, once its net was loaded. Never at the same time as
    they do: it may be the same machine. → The events after which its button may have another name.

    inputs: the question's, then left's and right's runtime, the tab's `answer` takes them and fills `outputs`.
    """
    if not place.there:
        return []
    # The page opens on an answer to what stands in its fields.
    asked = gr.State(Asked([getattr(part, "value", None) for part in inputs]), time_to_live=KEPT)
    quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    quiet["trigger_mode"] = "multiple"  # by default an event that comes while the one before waits is dropped

    def others(request: gr.Request, before: Any, *values: Any) -> tuple[Any, ...]:
        if isinstance(before, Asked) and same(before.values, values):
            return (gr.skip(),) * len(outputs)
        return answer(*values, request)

    def begin(button: bool) -> Callable[..., Any]:
        def begun(loaded: Any, *values: Any, words: Words) -> tuple[dict[str, Any] | None, Asked]:
            return job(task, loaded, button, *values, words=words)

        return spoken(begun)

    def judge(own: Any, before: Any, words: Words) -> tuple[Any, list[list[str]] | None]:
        return judged(task, own, before, words)

    said = gr.JSON(visible=False)
    pressed = place.button.click(others, [asked, *inputs], outputs, api_visibility="private", **EVENT)
    ended = []
    for event, button in ((pressed, True), *((event, False) for event in after)):
        begun = event.success(begin(button), [place.loaded, *inputs], [place.job, asked], js=browser.KNOWN, **quiet)
        ran = begun.success(None, place.job, place.own, js=browser.script("answer", place.tab), **quiet)
        shown = ran.success(spoken(judge), [place.own, asked], [place.body, said], **quiet | ALONE)
        shown.success(None, said, None, js=browser.script("tell", place.tab), **quiet)
        ended.append(ran)
    return ended
