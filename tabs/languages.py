"""The page in English and Chinese: the browser's first language decides.

English is in the code, and is the key of its translation; the translations are in chinese/, a file for each module.
What stands on the page from the start is translated in the browser, by gradio's own i18n (`fixed`); what a handler
says, on the server (`Words`). A test finds what is not translated, and what nobody says any more.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

CATALOGUES = Path(__file__).with_name("chinese")


@functools.cache
def catalogue(language: str) -> Mapping[str, str]:
    """English → the language's words; nothing for English."""
    if language != "zh":
        return {}
    merged: dict[str, str] = {}
    for path in sorted(CATALOGUES.glob("*.json")):
        merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def i18n() -> gr.I18n:
    """What `launch` takes."""
    chinese = dict(catalogue("zh"))
    return gr.I18n(en={text: text for text in chinese}, zh=chinese, **{"zh-CN": chinese})


def fixed(text: str) -> Any:
    """A label, a note, a placeholder, a choice, a button's or a tab's name: what is on the page before anybody asks
    anything. Only whole texts without braces: the browser takes them for places to fill in. Within HTML and Markdown it
    may stand among other text, but gradio translates one a component."""
    return gr.i18n.I18nData(text)


@dataclass(frozen=True)
class Words:
    """A visitor's language: words("{n} texts", n=3) is the text in it."""

    language: str = "en"

    def __call__(self, text: str, /, **values: Any) -> str:
        """The text with its values filled in, in English where there is no translation."""
        return catalogue(self.language).get(text, text).format(**values)

    @classmethod
    def of(cls, request: gr.Request | None) -> Words:
        """The browser's first language, by its Accept-Language, where it is one of them; else English. It is the one
        that `fixed` goes by too: with the second, one page would speak two languages."""
        accepted = str(request.headers.get("accept-language", "")) if request is not None else ""
        ranked = [("", 0.0)]
        for part in accepted.split(",")[:50]:
            tag, _, weight = part.partition(";q=")
            with contextlib.suppress(ValueError):
                ranked.append((tag.strip().lower(), float(weight or 1)))
        first, _ = max(ranked, key=lambda entry: entry[1])
        return cls("zh" if first[:2] == "zh" else "en")


ENGLISH = Words()


def spoken(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler for gradio of a function that takes `words` after its other arguments: with the visitor's language."""

    def handler(request: gr.Request | None, *values: Any) -> Any:
        return function(*values, words=Words.of(request))

    def stream(request: gr.Request | None, *values: Any) -> Iterator[Any]:
        yield from function(*values, words=Words.of(request))

    chosen = stream if inspect.isgeneratorfunction(inspect.unwrap(function)) else handler
    chosen.__name__ = getattr(function, "__name__", chosen.__name__)
    return chosen
