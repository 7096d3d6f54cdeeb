"""Programs that run a file without torch and without seqexport: Python's need numpy and onnxruntime, JavaScript's
onnxruntime-node or onnxruntime-web. What they have to know of the model they read in its metadata."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from seqexport.errors import FileError, InputError, UnsupportedError
from seqexport.files import replace_file
from seqexport.isolation import parse_onnx
from seqexport.text import WORDS

# Language → the suffix of its programs. Each has its template, a program but for the words between two @.
LANGUAGES = {"python": ".py", "javascript": ".mjs"}
# The types of inputs that they feed, by ONNX's numbers: float32, float64, int32, int64, string, bool, and Python's
# float16.
TYPES = {"python": (1, 6, 7, 8, 9, 10, 11), "javascript": (1, 6, 7, 8, 9, 11)}
TEMPLATES = Path(__file__).with_name("templates")
MARK = "Written by seqexport deploy"


def write_client(path: str | os.PathLike[str], language: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the program that runs the ONNX file `path`, and give its path: net.client.py or net.client.mjs beside
    net.onnx, unless `output` says where.

    Raises InputError for an unknown language; UnsupportedError for a graph with inputs that the program does not feed,
    such as complex numbers; FileError for a file that is no ONNX model, and where something else stands at `output` or
    nothing can be written there.
    """
    path = Path(path)
    if language not in LANGUAGES:
        raise InputError(f"There is no client in {language!r}; expected {' or '.join(LANGUAGES)}.")
    for value in parse_onnx(path).graph.input:
        if value.type.tensor_type.elem_type not in TYPES[language]:
            raise UnsupportedError(
                f"{path} takes {value.name} of a type that the client does not feed; expected float32, float64, "
                "integers of 32 or 64 bits, booleans or strings: give a file with such inputs."
            )
    target = Path(output) if output else path.with_suffix(f".client{LANGUAGES[language]}")
    if target.is_file() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        raise FileError(f"{target} is there, and deploy did not write it: choose another output with -o.")
    replace_file(target, _program(path, language, target).encode())
    return target


def javascript_module() -> str:
    """The JavaScript program as a module for a page of one's own: it exports Model, feedsOf, answer, and what they use,
    and knows no file: the page opens those that it has."""
    return _program(Path("net.onnx"), "javascript", Path("client.js"))


def _program(path: Path, language: str, target: Path) -> str:
    beside = Path(os.path.relpath(path.absolute(), target.absolute().parent)).as_posix()
    located = json.dumps(beside if language == "python" else quote(f"./{beside}"))
    program = (TEMPLATES / f"client{LANGUAGES[language]}").read_text(encoding="utf-8")
    words = ascii(WORDS) if language == "python" else json.dumps(WORDS)
    blanks = {'"@PATH@"': located, '"@WORDS@"': words, "@MODEL@": _plain(path), "@PROGRAM@": _plain(target)}
    for blank, value in blanks.items():
        program = program.replace(blank, value)
    return program


def _plain(path: Path) -> str:
    """The name, for a comment, which a name with a quote or a line's end would close."""
    return path.name if re.fullmatch(r"[\w.+-]+", path.name, re.ASCII) else path.suffix.removeprefix(".").upper()
