"""The visitor's own machine as a runtime: what is served for it, and what a page's script is told.

The app itself serves everything, by name from a fixed list, at PREFIX: below gradio's own API, where every way in which
gradio serves a page (with Node in front or without) passes it on to Python.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from seqexport.errors import FileError, InputError
from tabs import racing, sentiment_nets, series, webfiles
from tabs.languages import ENGLISH, Words, fixed, spoken

PREFIX = "/gradio_api/browser"
# What a page may have: model → its pipeline.
MODELS: Mapping[str, str] = {
    **{f"{name}-{cell.lower()}": "forecast" for name in series.SHIPPED for cell in series.CELLS},
    **{model: "classify" for cells in sentiment_nets.MODELS.values() for model in cells.values()},
    "characters-en": "generate",
    "characters-zh": "generate",
}
TYPES = {".js": "text/javascript", ".onnx": "application/octet-stream", ".gz": "application/gzip"}


def model_path(model: str) -> Path:
    """The exported file of a model's pipeline, the same that ONNX Runtime runs on the server."""
    return racing.EXPORTED / model / f"checkpoint.{MODELS[model]}.onnx"


@functools.cache
def _scripts() -> Mapping[str, bytes]:
    return webfiles.scripts()


def served(name: str) -> Path | bytes:
    """What stands at PREFIX/`name`: a file, or a script's text. Raises FileError for every other name, and for files
    that were not brought or trained yet."""
    if name in _scripts():
        return _scripts()[name]
    files = {f"models/{model}.onnx": model_path(model) for model in MODELS}
    if name in webfiles.TAKEN.values():
        files = webfiles.onnxruntime_web()
    if name not in files or not files[name].is_file():
        raise FileError(f"There is no {name!r:.60} here.")
    return files[name]


async def _answer(request: Request) -> Response:
    try:
        found = await run_in_threadpool(served, request.path_params["name"])
    except FileError as error:
        return Response(str(error), 404, media_type="text/plain")
    name = request.path_params["name"]
    # Kept by the browser, and asked for whether it is still the same: a visitor loads a file once.
    headers = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
    media = TYPES[Path(name).suffix]
    if isinstance(found, bytes):
        headers["etag"] = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
        response = Response(found, headers=headers, media_type=media)
    else:
        response = FileResponse(found, headers=headers, media_type=media, stat_result=found.stat())
    # A server in between that compresses makes a strong tag a weak one.
    asked = request.headers.get("if-none-match", "").replace("W/", "")
    if response.headers["etag"] in [tag.strip() for tag in asked.split(",")]:
        return Response(status_code=304, headers=headers | {"etag": response.headers["etag"]})
    return response


def routes() -> list[Route]:
    """What gradio's app takes beside its own routes, as launch(app_kwargs={"routes": …})."""
    return [Route(f"{PREFIX}/{{name:path}}", _answer, methods=["GET"])]


def missing() -> str | None:
    """The sentence that says why there is no column of the visitor's own machine; None where there is one."""
    try:
        webfiles.onnxruntime_web()
    except FileError as error:
        return str(error)
    return None


def megabytes(*paths: Path) -> float:
    """How large files are, together."""
    return sum(path.stat().st_size for path in paths) / 1e6


def sizes(model: str) -> dict[str, float]:
    """How much a visitor loads to run a model: the model itself, and what runs it, which comes with the first one."""
    return {"model": megabytes(model_path(model)), "runtime": megabytes(*webfiles.onnxruntime_web().values())}


def opening(model: str, words: Words) -> dict[str, Any]:
    """What every job begins with: the model's file, what it weighs, and what the script says while it comes."""
    return {
        "model": f"{model}.onnx",
        "megabytes": sizes(model),
        "words": {
            "loading": words("Loading: {done} of {total} MB", done="{done}", total="{total}"),
            "opening": words("Loaded; the model is being opened."),
            "failed": words("It did not run in your browser ({why}).", why="{why}"),
            "first": first(words),
        },
    }


def first(words: Words) -> str:
    """What the column says where the others answer with a net that it does not have."""
    return words("This net is not in your browser yet: the button loads it.")


def job(model: str, prompt: str, feeds: Mapping[str, Any], words: Words, slower: float = 1) -> dict[str, Any] | None:
    """What the page's script needs to write a text by itself: the feeds of the model's pipeline (the uniform numbers as
    the bytes of float32, so that they are the server's to the last bit), the prompt as it is shown, and what the script
    says, with the places that it fills in itself. None where onnxruntime-web is missing."""
    if missing():
        return None
    uniforms = np.ascontiguousarray(feeds["uniforms"], dtype="<f4")
    started = opening(model, words)
    started["words"] |= {
        "speed": words("{n} characters/s", n="{n}"),
        "time": words("{n} in {ms} ms of the model's own time, on your machine", n="{n}", ms="{ms}"),
    }
    return started | {
        "shown": prompt,
        "prompt": np.asarray(feeds["prompt"])[0].tolist(),
        "uniforms": base64.b64encode(uniforms.tobytes()).decode(),
        "settings": {name: feeds[name] for name in ("temperature", "top_k", "top_p")},
        "slower": slower,
    }


def label(model: str, loaded: Any, again: str, words: Words = ENGLISH) -> str:
    """The button's name for a model: with its size, until the page has loaded it. loaded: the models that the page says
    it has; with any of them it has onnxruntime-web too. again: the name from then on."""
    known = loaded if isinstance(loaded, list) else []
    if f"{model}.onnx" in known:
        return again
    weighs = sizes(model)
    size = weighs["model"] + (0 if known else weighs["runtime"])
    return words("Run it in your browser too ({size} MB)", size=f"{size:.1f}" if size >= 0.1 else f"{size:.2f}")


def own_tokens(own: Any, count: int) -> list[int]:
    """The tokens that a page's script says it wrote. Raises InputError unless they are `count` small whole numbers."""
    tokens = own.get("tokens") if isinstance(own, dict) else None
    fits = isinstance(tokens, list) and len(tokens) == count
    if not fits or not all(type(token) is int and 0 <= token < 2**31 for token in tokens or ()):
        raise InputError(f"The browser's text is not a list of {count:,} tokens: load the page again.")
    assert tokens is not None
    return tokens


def script(function: str, tab: str) -> str:
    """The JavaScript of an event: call a function of the page's script for a tab's column. The script is loaded when it
    is first needed."""
    source, name = json.dumps(f".{PREFIX}/column.js"), json.dumps(tab)
    loaded = f"import(new URL({source}, document.baseURI))"
    return f"(...values) => {loaded}.then((column) => column.{function}({name}, ...values))"


# The JavaScript of an event whose first input is Place.loaded: what the page has loaded by now, in any tab.
KNOWN = "(_, ...values) => [globalThis.seqexportLoaded ?? [], ...values]"

CSS = """
.browser-choice { border: 1px solid var(--border-color-primary); border-radius: var(--block-radius); gap: 0.6rem;
  padding: var(--block-padding); background: var(--block-background-fill); }
.browser-choice .prose p { font-size: var(--block-title-text-size); color: var(--block-title-text-color); margin: 0; }
.browser-speed { font-size: 0.85rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.browser-speed .ms { color: var(--body-text-color); }
"""


@dataclass(frozen=True)
class Place:
    """The column's parts in a tab: its button (hidden where there is nothing to offer), the place of its answer,
    and what goes between the server and the page's script: what the page has loaded, the job, the answer."""

    tab: str
    button: gr.Button
    body: gr.HTML
    loaded: gr.JSON
    job: gr.JSON
    own: gr.JSON
    there: bool

    def offer(
        self,
        opened: Sequence[Any],
        choice: Sequence[gr.Radio | gr.Dropdown],
        model_of: Callable[..., str],
        again: Callable[[Words], str],
        after: Sequence[Any],
    ) -> None:
        """Name the button after the net that is chosen: when the tab is looked at (the events `opened`), when another
        net is chosen, and when the script has come to an end (the events `after`). model_of: from the choice's values
        to the model's folder, or InputError. again: the name for a net that was loaded."""

        def named(loaded: Any, *values: Any, words: Words) -> Any:
            try:
                return label(model_of(*values), loaded, again(words), words)
            except InputError:  # two choices of which the second is on its way
                return gr.skip()

        quiet: dict[str, Any] = {"queue": False, "preprocess": False, "show_progress": "hidden"}
        quiet["trigger_mode"] = "always_last"
        events = (*opened, *(part.change for part in choice), *(event.success for event in after))
        for event in events if self.there else ():
            event(spoken(named), [self.loaded, *choice], self.button, js=KNOWN, api_visibility="private", **quiet)


def column(tab: str, height: int, value: str = "", kind: str = "column") -> Place:
    """What is in the column of the visitor's own machine, `height` pixels for its speed. value, kind: what stands in
    the place of its answer at first, and that place's class. The script knows the parts by their ids."""
    there = missing() is None
    nothing = fixed("To run it in your own browser too, run python -m tabs.webfiles here and start the demo again.")
    note = fixed("The same exported file, in WebAssembly on your own machine. Nothing is loaded before you ask for it.")
    with gr.Row():
        with gr.Column(min_width=190, elem_classes="browser-choice"):
            gr.Markdown(fixed("Your browser"))
            button = gr.Button(
                fixed("Run it in your browser too"), visible=there, size="md", elem_id=f"{tab}-browser-button"
            )
        with gr.Column(min_width=190):
            gr.HTML(
                note if there else nothing,
                elem_id=f"{tab}-browser-speed",
                elem_classes=["latency", "browser-speed"],
                min_height=height,
            )
    body = gr.HTML(value, elem_id=f"{tab}-browser-body", elem_classes=kind, visible=there)
    loaded, job, own = (gr.JSON(visible=False) for _ in range(3))
    return Place(tab, button, body, loaded, job, own, there)
