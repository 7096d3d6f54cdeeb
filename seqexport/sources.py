"""What to say of an error, and which line of the user's code it, or a node of a graph, comes from."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_PACKAGE = str(Path(__file__).parent)
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
# Packages that run a user's code and whose own lines tell a user nothing. Other installed packages may be the user's.
_MACHINERY = ("torch", "onnx", "onnxscript", "onnx_ir", "numpy", "sympy")
_SHOWN = 90  # characters of a line of code in a sentence


class SourceLine(str):
    """A place in the user's code as a sentence has it: net.py:12 (`h = self.cell(x[:, t], h)`)."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


def user_line() -> SourceLine | None:
    """The innermost line of the user's code that is running; None where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return _said(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def line_of_error(error: BaseException) -> SourceLine | None:
    """The innermost line of the user's code that an exception, or what caused it, passed through."""
    found = None
    current: BaseException | None = error
    while current is not None and found is None:
        found = _innermost(current.__traceback__)
        current = current.__cause__ or current.__context__
    return found


def line_of_stack(stack: str) -> SourceLine | None:
    """The innermost line of the user's code in a stack as Python prints it, which torch keeps for each of its nodes."""
    places = re.findall(r'File "([^"]+)", line (\d+)', stack)
    return _last(_said(name, int(number)) for name, number in places if _is_users(name))


def _innermost(traceback: TracebackType | None) -> SourceLine | None:
    found = None
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if _is_users(name):
            found = _said(name, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _last(lines: Iterable[SourceLine]) -> SourceLine | None:
    found = None
    for line in lines:
        found = line
    return found


def _is_users(name: str) -> bool:
    if name.startswith(("<", _PACKAGE)):
        return False
    parts = Path(name).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].partition(".")[0] not in _MACHINERY
    return not name.startswith(_STANDARD)


def _said(name: str, number: int) -> SourceLine:
    code = linecache.getline(name, number).strip()
    code = code if len(code) <= _SHOWN else f"{code[:_SHOWN]}…"
    return SourceLine(f"{Path(name).name}:{number}" + (f" (`{code}`)" if code else ""))
