"""The demo under load and under attack, on a small scale; what is told of it."""

from collections import Counter
from concurrent.futures import TimeoutError as OutOfTime

import pytest

pytest.importorskip("gradio_client")
from training import hostile_requests, load  # noqa: E402
from training.load import Seen, kind_of, mark, table  # noqa: E402
from training.serving import served  # noqa: E402


@pytest.mark.parametrize(
    ("error", "honest"),
    [
        (RuntimeError("Queue is full. Max size is 24 and size is 24."), True),
        (RuntimeError("Queue is full! Please try again."), True),
        (RuntimeError("After 60 s 40 of 80 texts were classified: give a part of them at a time."), True),
        (
            RuntimeError(
                "One file is being read and 4 wait already, which is all that this machine takes on: try again"
            ),
            True,
        ),
        (RuntimeError("This took longer than 120 s and was ended; expected less: ask for less at a time."), True),
        (OutOfTime(), False),
        (RuntimeError("The horizon is 0; expected a whole number from 1 to 600."), False),
        (ConnectionError("refused"), False),
    ],
)
def test_what_counts_as_an_honest_refusal(error, honest):
    assert kind_of(error)[0] is honest


class Answering:
    """A client whose jobs give one answer, or raise one error."""

    def __init__(self, answer):
        self.answer = answer

    def submit(self, **_):
        return self

    def result(self, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("name", "answer", "own"),
    [
        ("sentiment", ("", f"<p>{mark(7)}</p>", {}), True),
        ("sentiment", ("", f"<p>{mark(8)}</p>", {}), False),
        ("sentiment", ("", f"{mark(7)} {mark(8)}", {}), False),
        ("forecast", ("", {"seed": 7, "paths": 20}), True),
        ("forecast", ("", {"seed": 70, "paths": 20}), False),
        ("sentiment_values", {"running": [[0.5] * 8]}, True),
        ("sentiment_values", {"running": [[0.5] * 9]}, False),
        ("characters_values", {"text": "x" * 27, "notes": []}, True),
        ("characters_values", {"text": "x" * 27, "notes": [mark(9)]}, False),
        ("forecast_values", {"central": [0.0] * 17}, True),
        ("convert", [{"name": mark(8)}], False),
    ],
)
def test_an_answer_is_held_against_its_mark(tmp_path, name, answer, own):
    seen = Seen()
    load.ask(Answering(answer), name, 7, tmp_path, seen)
    assert (not seen.strangers) is own
    assert len(seen.latencies[name]) == 1
    assert seen.good is own


def test_errors_and_refusals_are_told_apart(tmp_path):
    seen = Seen()
    for error in (ValueError("x"), RuntimeError("Queue is full."), RuntimeError("Queue is full.")):
        load.ask(Answering(error), "sentiment", 1, tmp_path, seen)
    assert seen.errors == Counter({("sentiment", "ValueError: x"): 1})
    assert seen.busy == Counter({("sentiment", "the queue is full"): 2})
    assert not seen.good
    seen.memory = [(float(second), (100 + second) * 2**20) for second in range(10)]
    told = table(seen)
    assert "| sentiment | 0 | 2 | 1 | – | – | – |" in told
    assert "Memory of the server, each fifth of the time: 100, 102, 104, 106, 108 MiB; most 109 MiB." in told


@pytest.mark.parametrize("command", [load.main, hostile_requests.main])
def test_bad_numbers_are_refused(command, capsys):
    assert command(["--visitors" if command is load.main else "--count", "0"]) == 2
    assert "xpected 1 to" in capsys.readouterr().err


def test_the_same_seed_sends_the_same(tmp_path):
    class Noting(hostile_requests.Attacker):
        def send(self, method, path, **options):
            sent.append((method, path, str(options.get("content"))[:300]))
            return "200", '["x"]' if path.endswith("upload") else '{"event_id": "e"}'

    runs = []
    for seed in (1, 1, 2):
        sent: list = []
        it = Noting("http://127.0.0.1:1", seed, "s", tmp_path)
        for kind, send in hostile_requests.KINDS.items():
            if kind not in ("large", "sessions"):  # which send iterators and identities that are new each time
                send(it)
        it.client.close()
        runs.append([entry for entry in sent if "session_hash" not in entry[2]])
    assert runs[0] == runs[1] != runs[2]


def test_secrets_and_silence_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        hostile_requests, "KINDS", {"paths": lambda it: ("200", "root:x:0:0"), "deep": lambda it: ("hangs", "")}
    )
    monkeypatch.setattr(hostile_requests.Attacker, "call", lambda *_: ("closed", ""))
    told = hostile_requests.attack("http://127.0.0.1:1", 2, 0, "s", tmp_path)
    assert len(told.secrets) == 1
    assert len(told.faults) == 2
    assert not told.good


@pytest.mark.slow
def test_visitors_get_their_own_answers():
    with served() as demo:
        seen = load.load(demo.url, visitors=8, minutes=0.3, pause=1.0, process=demo.process.pid)
    assert seen.good, table(seen)
    assert sum(map(len, seen.latencies.values())) >= 8
    assert len(seen.memory) >= 5


@pytest.mark.slow
def test_it_answers_after_hostile_requests(tmp_path):
    secret = "secret-of-this-test"
    lure = tmp_path / "lure.txt"
    lure.write_text(secret)
    with served({"SEQEXPORT_SECRET": secret}) as demo:
        told = hostile_requests.attack(demo.url, 130, 7, secret, lure)
    assert told.good, hostile_requests.table(told)
    assert {kind for kind, _ in told.outcomes} == set(hostile_requests.KINDS)
