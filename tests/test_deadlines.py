"""The clock on every job: who asks is told in time, what still runs ends itself, and no handler is without one."""

import contextvars
import inspect
import threading
import time

import numpy as np
import pytest

pytest.importorskip("gradio")
import gradio as gr  # noqa: E402

import demo  # noqa: E402
from seqexport.errors import InputError  # noqa: E402
from tabs import contest, deadlines, jobs, racing  # noqa: E402
from tabs.deadlines import clocked, within  # noqa: E402

# Of gradio's event loops, which are collected at the end of the module.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LATE = r"took longer than \d+ s and was ended; expected less: ask for less"


@pytest.fixture
def short(monkeypatch):
    """Half a second for a job, and a fifth more for one that does not look at the clock."""
    monkeypatch.setattr(deadlines, "SECONDS", 0.5)
    monkeypatch.setattr(deadlines, "GRACE", 0.2)


def endless(ended):
    while True:
        time.sleep(0.02)
        try:
            deadlines.check()
        except InputError:
            ended.set()
            raise


def test_a_job_in_time_gives_what_it_gives_and_raises_what_it_raises(short):
    assert clocked(lambda a, *, b: a + b)(1, b=2) == 3

    def wrong():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        clocked(wrong)()

    def late_itself():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        clocked(late_itself)()


def test_a_job_that_looks_at_the_clock_ends_with_its_sentence(short):
    began, ended = time.monotonic(), threading.Event()
    with pytest.raises(InputError, match=LATE):
        clocked(endless)(ended)
    assert ended.is_set() and time.monotonic() - began >= 0.5


def test_nobody_waits_for_a_job_that_does_not_look(short):
    going_on, ended = threading.Event(), threading.Event()

    def stuck():
        going_on.wait(60)
        try:
            deadlines.check()
        finally:
            ended.set()

    with pytest.raises(gr.Error, match=LATE):
        clocked(stuck)()
    assert not ended.is_set()
    going_on.set()  # and when it looks at last, it ends
    assert ended.wait(20)


def test_a_stream_has_one_clock_for_all_its_steps(short):
    closed = threading.Event()

    def steps():
        try:
            for number in range(1000):
                deadlines.check()
                yield number
                time.sleep(0.05)
        finally:
            closed.set()

    seen, began = [], time.monotonic()
    with pytest.raises(InputError, match=LATE):
        for step in clocked(steps)():
            seen.append(step)
    assert closed.is_set() and seen == list(range(len(seen))) and len(seen) > 2
    assert time.monotonic() - began >= 0.5


def test_a_stream_that_is_left_is_closed():
    closed = threading.Event()

    def steps():
        try:
            yield from range(9)
        finally:
            closed.set()

    stream = clocked(steps)()
    assert [next(stream), next(stream)] == [0, 1] and not closed.is_set()
    stream.close()
    assert closed.is_set()
    assert list(clocked(steps)()) == list(range(9))


def test_a_stream_that_is_stuck_is_left(short):
    going_on = threading.Event()

    def steps():
        yield 1
        going_on.wait(60)
        yield 2

    stream = clocked(steps)()
    assert next(stream) == 1
    with pytest.raises(gr.Error, match=LATE):
        next(stream)
    going_on.set()


def test_a_handler_may_be_given_more_time(short):
    ended = threading.Event()

    @within(1.0)
    def slow():
        time.sleep(0.8)
        deadlines.check()
        return "done"

    assert clocked(slow)() == "done"
    with pytest.raises(InputError, match="longer than 1 s"):
        clocked(within(1.0)(endless))(ended)
    del endless.seconds


def test_who_asks_is_known_in_the_jobs_thread():
    visitor = contextvars.ContextVar("visitor", default="nobody")
    visitor.set("somebody")
    assert clocked(visitor.get)() == "somebody"


def test_without_a_job_there_is_no_clock():
    deadlines.check()


# What looks at it


class Counting:
    """A runtime whose answers take a tenth of a second."""

    metadata = {"checkpoint_sha256": ""}

    def __init__(self):
        self.calls = 0

    def run(self, feeds):
        self.calls += 1
        time.sleep(0.1)
        return {"path": np.zeros(1)}


def test_a_measurement_looks(short, monkeypatch):
    runtime = Counting()
    monkeypatch.setattr(racing, "load_runtime", lambda *named: runtime)
    with pytest.raises(InputError, match=LATE):
        clocked(racing.measure)("net", "forecast", ["onnxruntime", "torch"], {}, 60)
    assert 3 <= runtime.calls <= 7


def test_a_race_looks(short):
    with pytest.raises(InputError, match=LATE):
        list(clocked(contest.race)([Counting(), Counting()], {}, 60))


def test_a_line_looks(short):
    line = jobs.Line(3)
    with line.place(), line.place() as ahead, pytest.raises(InputError, match=LATE):
        list(clocked(jobs._waited)(ahead))


# The page


@pytest.fixture(scope="module")
def page():
    return demo.build()


def test_every_handler_of_the_page_has_a_clock(page):
    handlers = [event.fn for event in page.fns.values() if event.fn is not None]
    assert len(handlers) > 30
    without = [handler for handler in handlers if not getattr(handler, "clocked", False)]
    assert not without
    own = {inspect.unwrap(handler).__name__: handler.seconds for handler in handlers if hasattr(handler, "seconds")}
    waits, measures = jobs.LONGEST, 130.0
    assert own == {
        "recognise": waits,
        "converted": waits,
        "convert": waits,
        "measure": measures,
        "measure_here": measures,
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("forecast_values", [[1.0, 2.0, 3.0], "gru"]),
        ("sentiment_values", ["A good film."]),
        ("characters_values", ["ROMEO"]),
    ],
)
def test_an_endpoint_tells_that_its_time_is_over(monkeypatch, page, name, values):
    event = next(event for event in page.fns.values() if event.api_name == name)
    monkeypatch.setattr(deadlines, "SECONDS", 0.0)
    monkeypatch.setattr(deadlines, "GRACE", 0.0)
    with pytest.raises(gr.Error, match=LATE):
        event.fn(*values)
