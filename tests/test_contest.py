"""The race for show: both columns at once, stopped and failing; and when two answers may be compared."""

import itertools
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import gradio as gr
import numpy as np
import pytest

from seqexport.errors import FileError, InputError
from tabs import contest, racing
from tabs.contest import Standing
from tabs.languages import Words

# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")
NAMES = ["torch", "onnxruntime"]
FEEDS = {"x": np.ones((1, 3), np.float32)}


class Sleeper:
    """A runtime whose every call takes so many seconds."""

    metadata: ClassVar = {"checkpoint_sha256": "0"}

    def __init__(self, seconds: float = 0.001, answer: float = 1.0, fails_after: int | None = None) -> None:
        self.seconds, self.answer, self.fails_after = seconds, answer, fails_after
        self.calls: list[float] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(time.perf_counter())
        if self.fails_after is not None and len(self.calls) > self.fails_after:
            raise FileError("The checkpoint is gone.")
        time.sleep(self.seconds)
        return {"path": self.answer * feeds["x"], "hn": np.full(1, np.nan)}


@pytest.fixture
def entrants(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sleeper]:
    runtimes = {"torch": Sleeper(0.01), "onnxruntime": Sleeper(0.002), "onnxruntime-int8": Sleeper(0.002, 1.01)}
    monkeypatch.setattr(racing, "load_runtime", lambda _model, _pipeline, name, *_: runtimes[name])
    return runtimes


def run(names: list[str], seconds: float = 0.4, words: Words | None = None) -> Iterator[tuple]:
    return contest.run("forecast", "any", names, FEEDS, ["path"], words or Words(), seconds)


def test_both_columns_grow_at_the_same_time() -> None:
    one, other = Sleeper(0.01), Sleeper(0.002)
    told = list(contest.race([one, other], FEEDS, 0.5))
    assert len(told) >= 4
    for before, after in itertools.pairwise(told[1:-1]):
        assert all(b.count > a.count for a, b in zip(before, after, strict=True)), told
    assert [place.count for place in told[-1]] == [len(runtime.calls) - 1 for runtime in (one, other)]
    assert max(one.calls[0], other.calls[0]) < min(one.calls[-1], other.calls[-1])
    assert told[-1][1].bar == 1
    assert 0 < told[-1][0].bar < 0.6


def test_a_race_that_is_closed_ends_its_threads() -> None:
    runtimes = [Sleeper(), Sleeper()]
    laps = contest.race(runtimes, FEEDS, 30)
    next(laps)
    before = threading.active_count()
    begin = time.perf_counter()
    laps.close()
    assert time.perf_counter() - begin < 5
    assert threading.active_count() <= before - 2
    counts = [len(runtime.calls) for runtime in runtimes]
    time.sleep(0.05)
    assert counts == [len(runtime.calls) for runtime in runtimes]


def test_a_column_that_fails_ends_the_race_with_its_sentence() -> None:
    with pytest.raises(FileError, match="The checkpoint is gone"):
        list(contest.race([Sleeper(), Sleeper(fails_after=3)], FEEDS, 0.2))


def test_bars_tell_time_and_the_share_of_the_leader() -> None:
    left, right = contest.standings([(10, 1.0), (40, 1.0)], 2.0)
    assert (left.bar, right.bar) == (0.125, 0.5)
    assert [place.bar for place in contest.standings([(0, 0.0), (0, 0.0)], 2.0)] == [0, 0]
    assert [place.bar for place in contest.standings([(5, 9.0), (0, 0.1)], 2.0)] == [1, 0]


def test_a_race_from_start_to_end(entrants: dict[str, Sleeper]) -> None:
    told = list(run(NAMES))
    assert "Racing" in told[0][0]
    assert told[0][3]["interactive"]
    assert all(lead == gr.skip() for lead, *_ in told[1:-1])
    lead, left, right, stop = told[-1]
    assert "ONNX Runtime answered" in lead
    assert "times as often as torch" in lead
    assert "For show" in lead
    assert "; oneDNN o" in left
    assert "oneDNN" not in right
    assert 'width:100.0%"' in right
    assert not stop["interactive"]


def test_there_is_no_race_where_the_answers_differ(entrants: dict[str, Sleeper]) -> None:
    entrants["onnxruntime"].answer = 1.01
    ((lead, left, right, stop),) = run(NAMES)
    assert "No race." in lead
    assert "no speed is shown" in lead
    assert "No latency" in left == right
    assert not stop["interactive"]


def test_int8_races_although_it_differs_but_not_with_nan(entrants: dict[str, Sleeper]) -> None:
    lead = list(run(["torch", "onnxruntime-int8"], 0.1))[-1][0]
    assert "times as often" in lead
    assert "differ by at most 1.0e-02 of the largest value: an int8 net is another net" in lead
    entrants["onnxruntime-int8"].answer = np.nan
    ((lead, *_),) = run(["torch", "onnxruntime-int8"], 0.1)
    assert "differ by not a number" in lead


def test_in_chinese(entrants: dict[str, Sleeper]) -> None:
    *_, (lead, left, *_) = run(NAMES, 0.1, Words("zh"))
    assert "For show" not in lead
    assert "answers" not in left


@pytest.mark.parametrize(
    ("found", "same"), [(1.0, True), (1.00009, True), (1.0002, False), (np.nan, False), (np.inf, False)]
)
def test_what_counts_as_the_same(found: float, same: bool) -> None:
    one, other = ({"path": np.array([[value, 0.5]], np.float32), "hn": np.full(1, np.nan)} for value in (1.0, found))
    for left, right in ((one, other), (other, one)):
        agreed = contest.agreement(NAMES, left, right, ["path"])
        assert agreed.same is agreed.comparable is same
    rounded = contest.agreement(["torch", "onnxruntime-int8"], one, other, ["path"])
    assert rounded.comparable is bool(np.isfinite(found))


def test_who_answered_more_often() -> None:
    places = [Standing(30, 3.0, 1), Standing(10, 2.0, 1)]
    assert contest.result_sentence(NAMES, places) == "torch answered 2.0 times as often as ONNX Runtime."
    assert "Both columns run torch" in contest.result_sentence(["torch", "torch"], places)
    assert "too short" in contest.result_sentence(NAMES, [Standing(0, 0, 0), places[0]])


def test_the_shipped_net_races_in_torch_and_onnxruntime() -> None:
    from seqexport.runtimes import TorchRuntime

    torch = pytest.importorskip("torch")
    enabled = torch.backends.mkldnn.enabled
    feeds = {"history": np.ones((1, 30), np.float32), "noise": np.zeros((1, 2, 4), np.float32)}
    *_, (lead, left, right, _) = contest.run("forecast", "sunspots-gru", NAMES, feeds, ["path"], seconds=0.3)
    assert "times as often" in lead
    assert "answers" in left
    assert "answers" in right
    assert torch.backends.mkldnn.enabled == enabled
    assert isinstance(racing.load_runtime("sunspots-gru", "forecast", "torch", False), TorchRuntime)


def test_the_buttons_on_a_page() -> None:
    def prepare(text: str) -> tuple[str, dict]:
        if not text:
            raise InputError("The text is empty.")
        return "any", FEEDS

    with gr.Blocks(analytics_enabled=False) as page:
        result, text = gr.HTML(), gr.Textbox()
        sides = [(gr.Dropdown(NAMES), gr.HTML()) for _ in range(2)]
        asked = contest.buttons("Go")
        contest.offer(asked, "forecast", prepare, [text], sides, result, ["path"])
    named = {getattr(event.fn, "__name__", ""): event for event in page.fns.values()}
    begin, stream, stopped = (named[name] for name in ("begin", "stream", "stopped"))
    assert stream.concurrency_id == racing.ALONE["concurrency_id"]
    assert any(stream._id in event.cancels for event in page.fns.values())
    request = gr.Request(headers={"accept-language": "zh"})
    lead, stop = begin.fn(request, *NAMES, "x")
    assert "热身" in lead
    assert stop["interactive"]
    assert not stopped.fn(request)[1]["interactive"]
    for bad, sentence in ((["torch", "<x>", "x"], "The right runtime is '{}'"), ([*NAMES, ""], "The text is empty.")):
        with pytest.raises(gr.Error) as error:
            begin.fn(request, *bad)
        assert sentence.format("<x>") in error.value.message
        ((lead, *_, stop),) = stream.fn(request, *bad)
        assert sentence.format("&lt;x&gt;") in lead.replace("&#x27;", "'")
        assert not stop["interactive"]
