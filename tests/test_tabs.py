"""The handlers of the Characters tab as plain functions on the shipped models."""

import itertools
import time

import gradio as gr
import numpy as np
import pytest

import seqexport
from seqexport.errors import FileError
from seqexport.reports import TOLERANCE
from tabs import characters, racing

QUESTION = ("Shakespeare (English)", "ROMEO\n", 80, 0.8, 0, 1.0, 3)


def loaded(name: str) -> seqexport.runtimes.Runtime:
    return racing.load_runtime("characters-en", "generate", name, False if name == "torch" else None)


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_a_text_does_not_depend_on_how_it_is_cut(name: str) -> None:
    _, _, feeds, _ = characters.ask(*QUESTION)
    whole = loaded(name).run(feeds)["tokens"][0].tolist()
    steps = [(list(tokens), seconds) for tokens, seconds in characters.write(loaded(name), feeds, slower=50)]
    assert steps[-1][0] == whole
    assert len(steps) > 2
    for (before, earlier), (after, later) in itertools.pairwise(steps):
        assert after[: len(before)] == before
        assert len(after) > len(before)
        assert later > earlier


def test_both_runtimes_write_the_same_text_from_the_same_seed() -> None:
    for question in (QUESTION, ("三国演义 (中文)", "却说玄德", 60, 1.0, 20, 0.9, 1)):
        texts = {
            name: characters.characters_values(question[1], question[0], *question[2:], name)
            for name in ("torch", "onnxruntime")
        }
        assert texts["torch"]["text"] == texts["onnxruntime"]["text"]
        assert len(texts["torch"]["text"]) == question[2]
    assert (
        characters.characters_values("ROMEO\n", seed=1)["text"]
        != characters.characters_values("ROMEO\n", seed=2)["text"]
    )


class Timed:
    """A runtime whose every character takes a millisecond."""

    metadata = {"state_map": {"h0": "hn"}}

    def run(self, feeds: dict) -> dict[str, np.ndarray]:
        time.sleep(1e-3 * feeds["uniforms"].shape[1])
        return {"tokens": np.ones(feeds["uniforms"].shape, int), "hn": np.zeros(1)}


def test_what_is_shown_is_slowed_down_but_not_what_is_measured() -> None:
    feeds = {"prompt": np.array([[1]]), "uniforms": np.zeros((1, 40), np.float32)}
    start = time.perf_counter()
    steps = list(characters.write(Timed(), feeds, slower=10))
    shown = time.perf_counter() - start
    assert shown >= 10 * steps[-1][1]
    assert len(steps) <= 20 * shown + 3  # an update every 60 ms, after the first ones
    assert steps[-1][1] < 0.2


def test_columns_end_with_a_sentence() -> None:
    record = None
    for side, name in (("left", "torch"), ("right", "onnxruntime")):
        getting_ready, *_, last = list(characters.stream(side, name, 1, *QUESTION))
        assert "Getting ready" in getting_ready[1]
        assert "characters/s" in last[1]
        assert characters.finish(record, last[2])[0] == gr.skip() if record is None else True
        first, record = record, last[2]
    result, numbers, *records, go, stop, measure = characters.finish(first, record)
    assert records == [None, None]  # so that a second call has nothing left to do
    assert "times as" not in result  # a race is for show
    assert "Both wrote the same 80 characters." in result
    assert numbers["same"]
    assert go["interactive"]
    assert not stop["interactive"]
    assert measure["interactive"]


def records(change: int | None, other: str = "onnxruntime") -> list[dict]:
    """What two columns wrote, of which the second has another token at `change`."""
    _, _, feeds, _ = characters.ask(*QUESTION)
    tokens = loaded("torch").run(feeds)["tokens"][0].tolist()
    changed = [token + 1 if place == change else token for place, token in enumerate(tokens)]
    return [
        {"runtime": name, "tokens": written, "question": list(QUESTION)}
        for name, written in (("torch", tokens), (other, changed))
    ]


def test_texts_that_part_are_told_where() -> None:
    result, numbers, *_ = characters.finish(*records(change=5))
    assert "The texts part at character 6." in result
    assert "more than rounding can explain" in result
    assert numbers["margin"] > TOLERANCE


def test_int8_may_write_a_text_of_its_own() -> None:
    result, numbers, *_ = characters.finish(*records(change=5, other="onnxruntime-int8"))
    assert "The texts part at character 6." in result
    assert "ONNX Runtime, int8 is another net, of rounded weights" in result
    assert numbers["margin"] is None


@pytest.mark.parametrize("place", [0, 7])
def test_a_tie_is_told_from_a_difference(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(characters, "margin_at", lambda *_: 1e-7)
    result, numbers, *_ = characters.finish(*records(change=place))
    assert numbers["first_difference"] == place
    assert "a tie, which rounding decides" in result


def test_a_measurement_tells_speeds_their_ratio_and_whether_the_texts_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(racing, "CAREFUL", 0.3)
    result, left, right, numbers = characters.measured("torch", "onnxruntime", *QUESTION)
    assert "times as" in result
    assert "Both wrote the same 80 characters." in result
    assert all("characters/s" in side and "Median of" in side for side in (left, right))
    assert numbers["speed_up"]["value"] > 0
    assert numbers["measured"]["torch"]["characters"] == 80
    result, *_, numbers = characters.measured("onnxruntime", "onnxruntime-int8", *QUESTION)
    assert "times as" in result
    assert ("is another net" in result) is (not numbers["same"])
    assert numbers["speed_up"]["value"] > 0


def test_no_speed_where_texts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "CAREFUL", 0.1)
    monkeypatch.setattr(characters, "parted", lambda *_: 3)
    monkeypatch.setattr(characters, "margin_at", lambda *_: 0.1)
    result, left, right, numbers = characters.measured("torch", "onnxruntime", *QUESTION)
    assert "No speed is shown." in result
    assert "times as" not in result
    assert left == right == '<p class="note">No latency: the answers differ.</p>'
    assert numbers["measured"] is numbers["speed_up"] is None


def test_the_tab_opens_on_the_beginning_of_both_texts() -> None:
    sentence, left, right = characters.opening(None, "torch", "onnxruntime", *QUESTION)
    assert left == right
    assert left.startswith('<pre class="written" tabindex="0"><code><span class="prompt">ROMEO\n</span>')
    assert "the same text" in sentence
    assert characters.opening(sentence, "torch", "onnxruntime", *QUESTION) == (gr.skip(),) * 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: "Goethe"}, "The model is 'Goethe'"),
        ({1: ""}, "The prompt is empty"),
        ({1: None}, "The prompt is empty"),
        ({1: "☃☂"}, "knows none of the prompt's characters"),
        ({1: "a\ud800"}, "lone surrogate"),
        ({1: "a" * 5001}, "The length of the prompt is 5001"),
        ({2: 0}, "The number of characters is 0; expected a whole number from 1 to 2,000."),
        ({2: 2001}, "The number of characters is 2001"),
        ({3: -0.1}, "The temperature is -0.1; expected a number from 0 to 2."),
        ({3: float("nan")}, "The temperature is nan"),
        ({4: 1.5}, "The top-k is 1.5"),
        ({5: 1.1}, "The top-p is 1.1"),
        ({6: -1}, "The seed is -1"),
    ],
)
def test_bad_prompts_get_a_sentence(change: dict, sentence: str) -> None:
    question = [change.get(index, value) for index, value in enumerate(QUESTION)]
    with pytest.raises(gr.Error) as error:
        characters.begin(1, *question)
    assert sentence in error.value.message


def test_a_prompt_with_unknown_characters_or_a_long_one_is_answered_with_a_note() -> None:
    lead, *_ = characters.begin(1, "Shakespeare (English)", "O ☃!", 5, 1, 0, 1, 0)
    assert "does not know" in lead
    assert "was trained to look back" in characters.characters_values("so it goes, " * 100, length=5)["notes"][0]


def test_a_temperature_of_zero_does_not_depend_on_the_seed() -> None:
    texts = {characters.characters_values("ROMEO\n", length=40, temperature=0, seed=seed)["text"] for seed in range(3)}
    assert len(texts) == 1


def test_files_of_another_checkpoint_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = racing.load_runtime

    def mixed(model: str, pipeline: str, name: str, onednn: bool | None = None) -> seqexport.runtimes.Runtime:
        return load("sunspots-gru" if name == "torch" else "sunspots-lstm", pipeline, name, onednn)

    monkeypatch.setattr(racing, "load_runtime", mixed)
    with pytest.raises(FileError, match="are of another checkpoint than the one beside them: run python -m training"):
        racing.measure("sunspots-gru", "forecast", ["torch", "onnxruntime"], {})
