"""The handlers of the Sentiment and the Characters tab as plain functions on the shipped models."""

import itertools
import time

import gradio as gr
import numpy as np
import pytest

import seqexport
from seqexport.errors import FileError, InputError
from seqexport.reports import TOLERANCE
from seqexport.text import UNKNOWN, Vocabulary
from tabs import characters, racing, sentiment
from tabs.racing import Column

WORDS = Vocabulary.counted(["a good film , not bad"], "word", lowercase=True)
CHARACTERS = Vocabulary("character", (UNKNOWN, *"abc<&>"))

# --- sentiment


def test_lines_are_texts_and_empty_ones_are_dropped() -> None:
    assert sentiment.split_lines(" one \n\n  two\r\n") == ["one", "two"]
    assert sentiment.split_lines(["a\nb", " "]) == ["a\nb"]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("", "There are 0 texts; expected 1 to 32"),
        (None, "There are 0 texts"),
        ("\n \n", "There are 0 texts"),
        ("a\n" * 33, "There are 33 texts"),
        ("ok\n" + "x" * 5001, "Text 2 has 5,001 characters; expected at most 5,000."),
        ([1], "not all texts"),
    ],
)
def test_no_text_too_many_and_too_long_ones_are_refused(texts: object, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        sentiment.split_lines(texts)
    assert sentence in str(error.value)


def test_a_text_is_cut_into_its_tokens_and_what_lies_between() -> None:
    text = "A GOOD filmé, not… bad?"
    cut = sentiment.pieces(WORDS, text)
    assert "".join(piece for piece, *_ in cut) == text
    assert [piece for piece, is_token, _ in cut if is_token] == ["A", "GOOD", "filmé", "not", "bad", "?"]
    assert [piece for piece, is_token, known in cut if is_token and not known] == ["filmé", "?"]
    assert len(sentiment.pieces(CHARACTERS, "a☃b")) == 3
    assert sentiment.pieces(WORDS, "…") == [("…", False, True)]


@pytest.mark.parametrize("vocabulary", [WORDS, CHARACTERS])
def test_visitors_text_is_escaped(vocabulary: Vocabulary) -> None:
    text = "<script>alert(1)</script><img src=x onerror=alert(1)> & \"'"
    shown = sentiment.shaded(vocabulary, text, np.full(len(text), 0.7))
    assert "<script" not in shown
    assert "<img" not in shown
    assert characters.show_text(text, text).count("<") == 6


def test_shades_follow_the_opinion() -> None:
    shown = sentiment.shaded(WORDS, "good bad", np.array([0.95, 0.2]))
    assert f'rgba({sentiment.POSITIVE},0.59)" title="95 % positive">good' in shown
    assert f'rgba({sentiment.NEGATIVE},0.43)" title="20 % positive">bad' in shown


@pytest.mark.parametrize("example", sentiment.EXAMPLES)
def test_examples_are_answered_alike_by_both_runtimes(example: str) -> None:
    language, text = sentiment.EXAMPLES[example]
    lead, left_speed, left, right_speed, right, numbers = sentiment.sentiment(language, text, "torch", "onnxruntime")
    assert numbers["same"]
    assert numbers["labels_agree"]
    assert numbers["difference"] <= 1e-5
    assert numbers["speed_up"] > 0
    assert "times as" in lead
    assert "All labels agree" in lead
    assert "texts/s" in left_speed
    assert "oneDNN on" in left_speed
    assert "texts/s" in right_speed
    lines = text.splitlines()
    assert left.count('class="opinion"') == right.count('class="opinion"') == len(lines)
    assert [len(row) for row in numbers["left"]["running"]] == [
        len(sentiment.about(language)[1].encode(line)) for line in lines
    ]


def test_clear_opinions_are_told_apart() -> None:
    for language, good, bad in (
        ("English", "A wonderful film, I loved it.", "A terrible film, a complete waste of time."),
        ("中文", "房间很干净，服务非常好，很满意。", "质量太差了，非常失望，再也不买了。"),
    ):
        assert sentiment.sentiment_values([good, bad], language)["labels"] == ["positive", "negative"]


def test_a_text_is_answered_the_same_alone_and_beside_a_longer_one() -> None:
    texts = ["A fine film.", "Long and slow, " * 40]
    together = sentiment.sentiment_values(texts)
    alone = sentiment.sentiment_values(texts[:1])
    np.testing.assert_allclose(alone["probabilities"][0], together["probabilities"][0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"language": "Latin"}, "The language is 'Latin'; expected English, 中文."),
        ({"text": ""}, "There are 0 texts"),
        ({"text": "a\ud800"}, "lone surrogate"),
        ({"left": "../x"}, "The left runtime is '../x'"),
    ],
)
def test_bad_texts_get_a_sentence(change: dict, sentence: str) -> None:
    question = {"language": "English", "text": "fine", "left": "torch", "right": "onnxruntime"}
    with pytest.raises(gr.Error) as error:
        sentiment.sentiment(**question | change)
    assert sentence in error.value.message


def test_texts_without_a_word_are_answered() -> None:
    answer = sentiment.sentiment_values(["…", "☃", "123 456"], "English")
    assert len(answer["labels"]) == 3
    assert sentiment.sentiment("中文", "☃☂", "torch", "onnxruntime")[-1]["same"]


def probabilities(*positive: float) -> dict[str, np.ndarray]:
    table = np.array([[1 - share, share] for share in positive], np.float32)
    return {"probabilities": table, "running": table[:, None]}


def test_of_long_texts_the_beginning_is_shaded() -> None:
    texts = ["好" * 1500, "<b>差" * 500]
    given = {"probabilities": np.full((2, 2), 0.5), "running": np.full((2, 2000, 2), 0.5)}
    shown = sentiment.show_texts(CHARACTERS, ["negative", "positive"], texts, Column("torch", given, 1.0, ""))
    assert shown.count("<span") == sentiment.SHADED
    assert shown.count("差") == 500
    assert "<b>差" not in shown
    assert max(len(line) for line in shown.split('"') if "," in line) < 14 * sentiment.POINTS


def test_a_line_goes_from_the_first_to_the_last_opinion() -> None:
    for count in (1, 2, 299, 5000):
        line = sentiment.sparkline(np.linspace(0.25, 0.75, count))
        first, *between, last = line.split('points="')[1].split('"')[0].split()
        assert first == "0.00,75.0"
        assert last == f"100.00,{25.0 if count > 1 else 75.0}"
        assert len(between) == min(max(2, count), sentiment.POINTS) - 2


def test_words_that_the_net_does_not_know_are_counted() -> None:
    lead, *_ = sentiment.sentiment("English", "A fine film, zzyzx.\nIt is good", "torch", "onnxruntime")
    assert "2 texts of 7 words in one batch, 1 unknown to the net." in lead
    assert "is this its language?" in sentiment.sentiment("English", "还不错", "torch", "onnxruntime")[0]
    assert "unknown" not in sentiment.sentiment("English", "A fine film", "torch", "onnxruntime")[0]


def test_a_column_with_nan_after_one_word_is_not_the_same() -> None:
    one, other = (Column(name, probabilities(0.9), 1.0, "") for name in ("torch", "onnxruntime"))
    other.outputs["running"][0, 0, 0] = np.nan
    assert not sentiment.compare(one, other)["same"]


@pytest.mark.parametrize("found", [(0.9, 0.2002), (0.9, 0.7), (0.9, float("nan"))])
def test_no_speed_where_opinions_differ(found: tuple[float, ...]) -> None:
    one = Column("torch", probabilities(0.9, 0.2), 6.0, "")
    other = Column("onnxruntime", probabilities(*found), 2.0, "")
    result = sentiment.compare(one, other)
    assert not result["same"]
    assert result["speed_up"] is None
    assert result["labels_agree"] is (found[1] != 0.7)
    assert "no speed is shown" in sentiment.say(result, one, other, 2, 2, "word")


# --- characters

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
    for name in ("torch", "onnxruntime"):
        last = list(characters.stream(name, "as fast as it is", *QUESTION))[-1]
        assert "characters/s" in last[1]
        assert characters.finish(record, last[2])[0] == gr.skip() if record is None else True
        first, record = record, last[2]
    result, numbers, go, stop, *records = characters.finish(first, record)
    assert records == [None, None]  # so that a second call has nothing left to do
    assert "times as" in result
    assert "the same 80 characters" in result
    assert numbers["same"]
    assert set(numbers["measured"]) == {"torch", "onnxruntime"}
    assert go["interactive"]
    assert not stop["interactive"]


def records(change: int | None) -> list[dict]:
    """What two columns wrote, of which the second has another token at `change`."""
    _, _, feeds, _ = characters.ask(*QUESTION)
    tokens = loaded("torch").run(feeds)["tokens"][0].tolist()
    other = [token + 1 if place == change else token for place, token in enumerate(tokens)]
    return [
        {"runtime": name, "tokens": written, "question": list(QUESTION)}
        for name, written in (("torch", tokens), ("onnxruntime", other))
    ]


def test_texts_that_part_show_no_speed() -> None:
    result, numbers, *_ = characters.finish(*records(change=5))
    assert "The texts part: no speed is shown." in result
    assert "They part at character 6, where a change of" in result
    assert numbers["measured"] == {}
    assert numbers["margin"] > TOLERANCE


@pytest.mark.parametrize("place", [0, 7])
def test_a_tie_is_told_from_a_difference(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(characters, "margin_at", lambda *_: 1e-7)
    result, numbers, *_ = characters.finish(*records(change=place))
    assert numbers["first_difference"] == place
    if place:
        assert "a tie, which rounding decides" in result
        assert "times as" in result
        assert numbers["measured"]["torch"]["characters"] == place
    else:  # nothing was written alike that could be measured
        assert "no speed is shown" in result


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
        characters.begin(*question)
    assert sentence in error.value.message


def test_a_prompt_with_unknown_characters_or_a_long_one_is_answered_with_a_note() -> None:
    lead, *_ = characters.begin("Shakespeare (English)", "O ☃!", 5, 1, 0, 1, 0)
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
