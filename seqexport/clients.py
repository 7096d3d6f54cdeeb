"""Programs that run a file without torch and without seqexport: Python's need numpy and onnxruntime, JavaScript's
onnxruntime-node or onnxruntime-web. What they have to know of the model they read in its metadata."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from seqexport.errors import FileError, InputError
from seqexport.files import replace_file
from seqexport.runtimes import onnx_metadata
from seqexport.text import WORDS

# Language → the suffix of its programs. Each has its template, a program but for the words between two @.
LANGUAGES = {"python": ".py", "javascript": ".mjs"}
TEMPLATES = Path(__file__).with_name("templates")
MARK = "Written by seqexport deploy"


def write_client(path: str | os.PathLike[str], language: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the program that runs the ONNX file `path`, and give its path: net.client.py or net.client.mjs beside
    net.onnx, unless `output` says where.

    Raises InputError for an unknown language, and for a graph with inputs that JSON can't tell; FileError for a file
    that is no ONNX model, and where something else stands at `output` or nothing can be written there.
    """
    path = Path(path)
    if language not in LANGUAGES:
        raise InputError(f"There is no client in {language!r}; expected {' or '.join(LANGUAGES)}.")
    onnx_metadata(path)
    target = Path(output) if output else path.with_suffix(f".client{LANGUAGES[language]}")
    if target.is_file() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        raise FileError(f"{target} is there, and deploy did not write it: choose another output with -o.")
    replace_file(target, _program(path, language, target).encode())
    return target


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
