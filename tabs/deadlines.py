"""A clock on every job of the page: whoever asked is told in time, and what then still runs ends by itself.

A job that has loops looks at the clock in them (`check`) and ends there, with its sentence, like any other that can't
go on. One that never looks, since a library does not come back, is left to itself: a thread can't be ended from
outside, but the visitor is told, and the next one gets a turn.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import gradio as gr

from seqexport.errors import InputError

SECONDS = 120.0  # of a job; torch.compile's first answer of a net takes the longest, a minute on a busy machine
GRACE = 30.0  # seconds more, after which nobody waits for a job that did not look at the clock

_LATE = (
    "This took longer than {seconds:.0f} s and was ended; expected less: ask for less at a time, or try again in a "
    "minute, when fewer others ask."
)
# When the job's time is over, and how much that is.
_END: contextvars.ContextVar[tuple[float, float]] = contextvars.ContextVar("end", default=(math.inf, math.inf))


def check() -> None:
    """Raise InputError where the time of the job that calls this is over. Outside a job there is no clock."""
    end, seconds = _END.get()
    if time.monotonic() > end:
        raise InputError(_LATE.format(seconds=seconds))


def within(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A handler may take so many seconds, and not SECONDS: it waits for its turn itself, or measures for long."""

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dict__["seconds"] = seconds
        return function

    return marked


def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The handler with a clock. Raises gr.Error for a job that neither ends nor looks at the clock."""

    @functools.wraps(function)
    def handler(*values: Any, **named: Any) -> Any:
        with _clock(function) as in_time:
            return in_time(lambda: function(*values, **named))

    @functools.wraps(function)
    def stream(*values: Any, **named: Any) -> Iterator[Any]:
        over = object()
        steps = function(*values, **named)
        began = time.monotonic()
        try:
            while True:
                # Each step may be another thread's, so that each is told of the clock.
                with _clock(function, began) as in_time:
                    step = in_time(lambda: next(steps, over))
                if step is over:
                    return
                yield step
        finally:
            with contextlib.suppress(ValueError):  # which a step that is still under way would raise
                steps.close()

    chosen = stream if inspect.isgeneratorfunction(inspect.unwrap(function)) else handler
    chosen.__dict__["clocked"] = True
    return chosen


def clock_all(page: gr.Blocks) -> None:
    """Give every handler of the page its clock."""
    for event in page.fns.values():
        if event.fn is not None and not inspect.iscoroutinefunction(event.fn):
            event.fn = clocked(event.fn)


@contextlib.contextmanager
def _clock(function: Callable[..., Any], began: float | None = None) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """What runs a call of a job until its time is over, or GRACE later. began: the job, if not now."""
    seconds = float(getattr(function, "seconds", SECONDS))
    end = (time.monotonic() if began is None else began) + seconds
    token = _END.set((end, seconds))
    try:
        yield functools.partial(_in_time, end=end + GRACE, seconds=seconds)
    finally:
        _END.reset(token)


def _in_time(call: Callable[[], Any], end: float, seconds: float) -> Any:
    """What the call gives, in a thread of its own, if it gives it until `end`."""
    given: Future[Any] = Future()

    def run() -> None:
        try:
            given.set_result(call())
        except BaseException as error:  # whatever it is, whoever waits gets it
            given.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    with contextlib.suppress(TimeoutError):
        given.exception(timeout=max(0.0, end - time.monotonic()))
    if not given.done():
        raise gr.Error(_LATE.format(seconds=seconds), print_exception=False)
    return given.result()
