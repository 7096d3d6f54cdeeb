"""The race of a tab, for show: both columns answer the same question again and again, at the same time.

What they ran on decides as much as what they are: both share this machine's cores, and Python. So no figure of a race
is called a speed-up; a measurement (racing.measure) takes turns. Here is also when two answers may be compared at all.
"""

from __future__ import annotations

import contextlib
import contextvars
import html
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from seqexport.errors import SeqExportError
from seqexport.runtimes import Runtime
from tabs import deadlines, racing
from tabs.languages import ENGLISH, Words, fixed
from tabs.racing import EVENT, PERIOD, RACE, RUNTIMES, TOLERANCE, sentences

LANES = ("left", "right")
TRIES = 3  # calls of torch with oneDNN on and off each, by which the race takes the faster
# What a visitor asked → the model, its feeds. Raises InputError for a bad question.
Prepare = Callable[..., tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Agreement:
    """How far two answers are apart: the greatest |left - right|, as a share of left's largest value (of 1, where that
    is less); NaN where either has one. exact: whether both have to be the same, which an int8 net's need not."""

    difference: float
    exact: bool

    @property
    def same(self) -> bool:
        """Whether the answers are the same."""
        return self.difference <= TOLERANCE  # written so that NaN is not the same

    @property
    def comparable(self) -> bool:
        """Whether a speed may be told: of the same answers, or of an int8 net's that is a number."""
        return self.same or (not self.exact and math.isfinite(self.difference))

    def said(self, words: Words = ENGLISH) -> str:
        """The difference as a number, or that it is none."""
        return f"{self.difference:.1e}" if math.isfinite(self.difference) else words("not a number")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return {"difference": self.difference if math.isfinite(self.difference) else None, "same": self.same}

    def sentence(self, words: Words = ENGLISH) -> str:
        """What the difference means."""
        if not self.comparable:
            return words(
                "The answers differ by {said}, more than {tolerance:.0e}: no speed is shown.",
                said=self.said(words),
                tolerance=TOLERANCE,
            )
        if self.exact:
            return words("The answers differ by at most {said} of the largest value.", said=self.said(words))
        return words(
            "The answers differ by at most {said} of the largest value: an int8 net is another net, rounded.",
            said=self.said(words),
        )


def agreement(
    names: Sequence[str], one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> Agreement:
    """How far two runtimes' answers are apart, over the outputs of these names."""
    apart = 0.0
    for name in outputs:
        left, right = (np.asarray(side[name], np.float64) for side in (one, other))
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and meant to be
            share = np.abs(left - right).max(initial=0) / max(1.0, np.abs(left).max(initial=0))
        apart = float(np.maximum(apart, share))  # unlike max(), keeps NaN
    return Agreement(apart, racing.exact(names))


@dataclass(frozen=True)
class Standing:
    """A column of a race so far: how often it answered, within how many seconds, and how long its bar is (0 to 1)."""

    count: int
    seconds: float
    bar: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / self.seconds if self.seconds else 0.0


def standings(told: Sequence[tuple[int, float]], limit: float) -> list[Standing]:
    """Both columns' places. The leader's bar is as long as the time that is over, the other's shorter by how much less
    often it answered."""
    most, over = max(count for count, _ in told), max(seconds for _, seconds in told)
    share = min(1.0, over / limit)
    return [Standing(count, seconds, share * count / most if most else 0.0) for count, seconds in told]


def race(
    entrants: Sequence[Runtime], feeds: Mapping[str, Any], seconds: float = RACE
) -> Generator[list[Standing], None, None]:
    """Run both at once for so many seconds → where they are, every PERIOD and at the end. A column that fails ends the
    race with its error. Closing the iterator ends it after the calls that are under way."""
    told = [(0, 0.0) for _ in entrants]
    ended = threading.Event()

    def run(side: int) -> None:
        for place in racing.laps(entrants[side], feeds, seconds):
            told[side] = place
            if ended.is_set():
                return

    with ThreadPoolExecutor(len(entrants)) as pool:
        lanes = [pool.submit(contextvars.copy_context().run, run, side) for side in range(len(entrants))]
        try:
            while wait(lanes, timeout=PERIOD).not_done:
                yield standings(told, seconds)
        finally:
            ended.set()
    for lane in lanes:
        lane.result()
    yield standings(told, seconds)


@contextlib.contextmanager
def onednn(enabled: bool | None) -> Iterator[None]:
    """Set torch's oneDNN for the process, where a race has torch in it: both columns' threads share that flag."""
    if enabled is None:
        yield
        return
    import warnings

    import torch

    with warnings.catch_warnings():
        # Setting the flags sets that for Intel GPUs too, of whose absence torch then warns.
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN", UserWarning)
        with torch.backends.mkldnn.flags(enabled=enabled):
            yield


@dataclass(frozen=True)
class Lineup:
    """Who is at the start: both columns' runtimes, warmed up, their first answers, and whether torch has oneDNN on, the
    same in both columns; None without torch."""

    entrants: Sequence[Runtime]
    answers: Sequence[Mapping[str, np.ndarray]]
    onednn: bool | None


def lineup(model: str, pipeline: str, names: Sequence[str], feeds: Mapping[str, Any]) -> Lineup:
    """Load and warm up both columns' runtimes, torch in the faster of its two ways."""
    ways: list[bool | None] = list(
        dict.fromkeys(way for name in names for way in RUNTIMES[name].onednn if way is not None)
    )
    tried = []
    for way in ways or [None]:
        entrants = [
            racing.load_runtime(model, pipeline, name, None if RUNTIMES[name].onednn == (None,) else way, lane)
            for name, lane in zip(names, LANES, strict=True)
        ]
        found = Lineup(entrants, [runtime.run(feeds) for runtime in entrants], way)
        begin = time.perf_counter()
        for runtime in entrants * TRIES if len(ways) > 1 else ():
            deadlines.check()
            runtime.run(feeds)
        tried.append((time.perf_counter() - begin, found))
    return min(tried, key=lambda one: one[0])[1]


def show_lap(place: Standing, words: Words = ENGLISH, note: str = "") -> str:
    """A column of a race as HTML: how often it answered, its bar, and how fast."""
    return (
        f'<p class="ms">{words("{count:,} answers", count=place.count)}</p>'
        f'<div class="bar" aria-hidden="true"><i style="width:{100 * place.bar:.1f}%"></i></div>'
        f'<p class="note">{words("{rate:,.0f} a second, both at once", rate=place.rate)}{html.escape(note)}</p>'
    )


def result_sentence(names: Sequence[str], places: Sequence[Standing], words: Words = ENGLISH) -> str:
    """Who answered more often, and by how much."""
    one, other = (RUNTIMES[name].label for name in names)
    if names[0] == names[1]:
        return racing.race_sentence(names[0], names[1], None, words)
    left, right = (place.rate for place in places)
    if not min(left, right):
        return words("The race was too short for both columns to answer.")
    first, second, times = (other, one, right / left) if right >= left else (one, other, left / right)
    return words("{first} answered {times:.1f} times as often as {second}.", first=first, times=times, second=second)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    pipeline: str,
    model: str,
    names: Sequence[str],
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    words: Words = ENGLISH,
    seconds: float = RACE,
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """A race from start to end → the sentence as HTML, left's column, right's, the Stop button's new state."""
    start = lineup(model, pipeline, names, feeds)
    agreed = agreement(names, start.answers[0], start.answers[1], outputs)
    if not agreed.comparable:
        nothing = racing.show_latency(None, words=words)
        yield racing.say(words("No race."), agreed.sentence(words)), nothing, nothing, gr.update(interactive=False)
        return
    told = words("Both answer the same question again and again, for {seconds:.0f} seconds.", seconds=seconds)
    yield racing.say(words("Racing …"), told), gr.skip(), gr.skip(), gr.update(interactive=True)
    how = words("oneDNN on") if start.onednn else words("oneDNN off")
    notes = ["" if RUNTIMES[name].onednn == (None,) else f"; {how}" for name in names]
    with onednn(start.onednn), contextlib.closing(race(start.entrants, feeds, seconds)) as laps:
        for places in laps:
            left, right = (show_lap(place, words, note) for place, note in zip(places, notes, strict=True))
            yield gr.skip(), left, right, gr.skip()
    detail = words(
        "For show: both ran at once on the {cores} cores of this machine and were in each other's way. Measure takes "
        "turns, and says how certain the factor is.",
        cores=cores(),
    )
    said = racing.say(result_sentence(names, places, words), f"{detail} {agreed.sentence(words)}")
    yield said, left, right, gr.update(interactive=False)


@dataclass(frozen=True)
class Buttons:
    """The buttons below a question: answer it, race on it, measure it with care, stop the race."""

    go: gr.Button
    race: gr.Button
    measure: gr.Button
    stop: gr.Button


def buttons(go: Any) -> Buttons:
    """The four buttons in a row. go: what is on the first."""
    with gr.Row(elem_classes="asking"):
        return Buttons(
            gr.Button(go, variant="primary", size="lg", scale=3, min_width=200),
            gr.Button(fixed("Race"), size="lg", scale=1, min_width=110),
            gr.Button(fixed("Measure"), size="lg", scale=1, min_width=110),
            gr.Button(fixed("Stop"), variant="stop", size="lg", scale=1, min_width=110, interactive=False),
        )


def offer(
    asked: Buttons,
    pipeline: str,
    prepare: Prepare,
    question: Sequence[gr.components.Component],
    sides: Sequence[tuple[gr.Dropdown, gr.HTML]],
    result: gr.HTML,
    outputs: Sequence[str],
) -> None:
    """What Race and Stop do. prepare: called with the question's values. sides: left's and right's choice of a runtime
    and the place of its latency, where the race is shown. outputs: those of the pipeline that have to agree."""

    def begin(request: gr.Request, left: Any, right: Any, *values: Any) -> tuple[Any, Any]:
        words = Words.of(request)
        with sentences():
            racing.chosen(left, right, pipeline)
            prepare(*values)
        told = words("Both runtimes are loaded and answer once before the race.")
        return racing.say(words("Warming up …"), told), gr.update(interactive=True)

    def stream(request: gr.Request, left: Any, right: Any, *values: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
        words = Words.of(request)
        try:
            names = racing.chosen(left, right, pipeline)
            model, feeds = prepare(*values)
            yield from run(pipeline, model, names, feeds, outputs, words)
        except SeqExportError as error:  # an event of its own after a failure would be called after Stop, too
            said = racing.say(words("No race."), html.escape(str(error)))
            yield said, gr.skip(), gr.skip(), gr.update(interactive=False)

    def stopped(request: gr.Request) -> tuple[Any, Any]:
        words = Words.of(request)
        told = words("Both columns ended where they were.")
        return racing.say(words("Stopped."), told), gr.update(interactive=False)

    inputs = [runtime for runtime, _ in sides] + list(question)
    places = [place for _, place in sides]
    quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    start = asked.race.click(begin, inputs, [result, asked.stop], **quiet)
    racing_on = start.success(stream, inputs, [result, *places, asked.stop], **EVENT | quiet)
    asked.stop.click(stopped, None, [result, asked.stop], cancels=[racing_on], queue=False, api_visibility="private")


CSS = """
.latency .bar { height: 8px; border-radius: 4px; margin: 0.25rem 0; overflow: hidden;
  background: var(--border-color-primary); }
.latency .bar i { display: block; height: 100%; background: #3f82e0; transition: width 0.08s linear; }
@media (prefers-reduced-motion: reduce) { .latency .bar i { transition: none; } }
"""
