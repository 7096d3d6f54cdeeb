"""The visitor's own machine as a runtime: what is served for it, and what a page's script is told.

The app itself serves everything, by name from a fixed list, at PREFIX: below gradio's own API, where every way in which
gradio serves a page (with Node in front or without) passes it on to Python.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
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
from tabs import racing, webfiles
from tabs.languages import Words, fixed

PREFIX = "/gradio_api/browser"
MODELS = {"characters-en": "generate", "characters-zh": "generate"}  # what a page may have: model → its pipeline
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


def megabytes(model: str) -> float:
    """How much a visitor loads to run a model, the first time."""
    sizes = [path.stat().st_size for path in (*webfiles.onnxruntime_web().values(), model_path(model))]
    return sum(sizes) / 1e6


def job(model: str, prompt: str, feeds: Mapping[str, Any], words: Words, slower: float = 1) -> dict[str, Any] | None:
    """What the page's script needs to write a text by itself: the model's name and size, the feeds of its pipeline
    (the uniform numbers as the bytes of float32, so that they are the server's to the last bit), the prompt as it is
    shown, and what the script says. None where onnxruntime-web is missing."""
    if missing():
        return None
    uniforms = np.ascontiguousarray(feeds["uniforms"], dtype="<f4")
    return {
        "model": f"{model}.onnx",
        "megabytes": round(megabytes(model), 1),
        "shown": prompt,
        "prompt": np.asarray(feeds["prompt"])[0].tolist(),
        "uniforms": base64.b64encode(uniforms.tobytes()).decode(),
        "settings": {name: feeds[name] for name in ("temperature", "top_k", "top_p")},
        "slower": slower,
        "words": said(words),
    }


def offers(models: Mapping[str, str], words: Words) -> dict[str, Any]:
    """What the column's button says for each model of a choice (shown name → model's folder): before it was loaded,
    and then."""
    if missing():
        return {"none": True}
    again = said(words)["again"]
    return {
        shown: {
            "file": f"{model}.onnx",
            "load": words("Run it in your browser too ({size:.1f} MB)", size=megabytes(model)),
            "again": again,
        }
        for shown, model in models.items()
    }


def said(words: Words) -> dict[str, str]:
    """What the script says, with the places that it fills in itself."""
    return {
        "loading": words("Loading: {done} of {total} MB", done="{done}", total="{total}"),
        "opening": words("Loaded; the model is being opened."),
        "speed": words("{n} characters/s", n="{n}"),
        "time": words("{n} in {ms} ms of the model's own time, on your machine", n="{n}", ms="{ms}"),
        "failed": words("It did not run in your browser ({why}).", why="{why}"),
        "again": words("Write it in your browser"),
        "first": words("This net is not in your browser yet: the button loads it."),
    }


def own_tokens(own: Any, count: int) -> list[int]:
    """The tokens that a page's script says it wrote. Raises InputError unless they are `count` small whole numbers."""
    tokens = own.get("tokens") if isinstance(own, dict) else None
    fits = isinstance(tokens, list) and len(tokens) == count
    if not fits or not all(type(token) is int and 0 <= token < 2**31 for token in tokens or ()):
        raise InputError(f"The browser's text is not a list of {count:,} tokens: load the page again.")
    assert tokens is not None
    return tokens


def script(function: str) -> str:
    """The JavaScript of an event: call a function of the page's script, which is loaded when it is first needed."""
    source = json.dumps(f".{PREFIX}/column.js")
    return f"(...values) => import(new URL({source}, document.baseURI)).then((column) => column.{function}(...values))"


CSS = """
#browser-choice { border: 1px solid var(--border-color-primary); border-radius: var(--block-radius); gap: 0.6rem;
  padding: var(--block-padding); background: var(--block-background-fill); }
#browser-choice .prose p { font-size: var(--block-title-text-size); color: var(--block-title-text-color); margin: 0; }
#browser-speed { font-size: 0.85rem; line-height: 1.4; color: var(--body-text-color-subdued); }
#browser-speed .ms { color: var(--body-text-color); }
"""


@dataclass(frozen=True)
class Place:
    """The column's parts: its button (hidden where there is nothing to offer), its verdict, and what goes between the
    server and the page's script: the job, what was written, what is offered."""

    button: gr.Button
    verdict: gr.HTML
    job: gr.JSON
    own: gr.JSON
    offers: gr.JSON
    there: bool


def column(height: int) -> Place:
    """The visitor's own machine as a column, `height` pixels for its speed. The script knows its parts by their ids."""
    there = missing() is None
    nothing = fixed("To run it in your own browser too, run python -m tabs.webfiles here and start the demo again.")
    note = fixed("The same exported file, in WebAssembly on your own machine. Nothing is loaded before you ask for it.")
    with gr.Column(min_width=320):
        with gr.Row():
            with gr.Column(min_width=190, elem_id="browser-choice"):
                gr.Markdown(fixed("Your browser"))
                button = gr.Button(fixed("Run it in your browser too"), visible=there, size="md")
            with gr.Column(min_width=190):
                gr.HTML(note if there else nothing, elem_id="browser-speed", elem_classes="latency", min_height=height)
        gr.HTML(
            '<pre class="written" tabindex="0"></pre>', elem_id="browser-text", elem_classes="column", visible=there
        )
        verdict = gr.HTML(elem_id="browser-verdict", elem_classes="latency", min_height=24)
        job, own, offered = (gr.JSON(visible=False) for _ in range(3))
    return Place(button, verdict, job, own, offered, there)
