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
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from seqexport.errors import FileError, InputError
from tabs import racing, webfiles
from tabs.languages import Words

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
    """For gradio's app: launch(app_kwargs={"routes": routes()})."""
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


def job(model: str, feeds: Mapping[str, Any], words: Words, slower: float = 1) -> dict[str, Any]:
    """What the page's script needs to write a text by itself: the model's name and size, the feeds of its pipeline
    (the uniform numbers as the bytes of float32, so that they are the server's to the last bit), and its words."""
    uniforms = np.ascontiguousarray(feeds["uniforms"], dtype="<f4")
    return {
        "model": f"{model}.onnx",
        "megabytes": round(megabytes(model), 1),
        "prompt": np.asarray(feeds["prompt"])[0].tolist(),
        "uniforms": base64.b64encode(uniforms.tobytes()).decode(),
        "settings": {name: feeds[name] for name in ("temperature", "top_k", "top_p")},
        "slower": slower,
        "words": said(words),
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
