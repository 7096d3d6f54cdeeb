"""The page's languages: every text has its translation, the same places to fill in, and no translation is left over."""

import ast
import json
import string
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
from tabs.languages import CATALOGUES, Words, catalogue  # noqa: E402

ROOT = Path(__file__).parents[1]
SAYS = {"fixed", "words"}  # functions whose first argument is a text


def said(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYS and node.args:
            for part in ast.walk(node.args[0]):  # one text, or two with an if between them
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


SOURCES = [ROOT / "demo.py", *sorted((ROOT / "tabs").glob("*.py"))]
SAID = {text for path in SOURCES for text in said(path)}


def places(text):
    return sorted(f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(text) if name is not None)


def test_every_text_is_translated_and_no_translation_is_left_over():
    assert set(catalogue("zh")) == SAID


@pytest.mark.parametrize("path", sorted(CATALOGUES.glob("*.json")), ids=lambda path: path.stem)
def test_translations_fill_in_the_same_places(path):
    for english, chinese in json.loads(path.read_text(encoding="utf-8")).items():
        assert places(chinese) == places(english), english


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de,zh;q=0.3,en;q=0.5", "en"),
        ("zh-TW", "zh"),
        ("de,zh;q=0.9", "en"),
        ("en;q=0.2,zh-CN;q=0.7", "zh"),
        ("zh;q=nan,en", "en"),
        ("de", "en"),
        ("", "en"),
        (";q=x,,;q=", "en"),
    ],
)
def test_the_browsers_first_language_decides(accepted, language):
    assert Words.of(SimpleNamespace(headers={"accept-language": accepted})).language == language


def test_a_program_is_spoken_to_in_english():
    assert Words.of(None)("plain {n}", n=1) == "plain 1"
