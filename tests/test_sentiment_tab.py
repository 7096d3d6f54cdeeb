"""The Sentiment tab's handlers as plain functions on the shipped models."""

import json
import math

import gradio as gr
import numpy as np
import pytest

from seqexport.errors import InputError, UnsupportedError
from seqexport.text import UNKNOWN, Vocabulary
from seqexport.timing import Ratio
from tabs import characters, opinions, racing, sentiment
from tabs.languages import Words
from tabs.racing import Column, Measurement
from tabs.sentiment_nets import MODELS, about, net

WORDS = Vocabulary.counted(["a good film , not bad"], "word", lowercase=True)
CHARACTERS = Vocabulary("character", (UNKNOWN, *"abc<&>"))
CHINESE = Words("zh")
NETS = [(language, cell) for language, cells in MODELS.items() for cell in cells]
OTHERS = [  # torch compiles for seconds
    pytest.param(name, marks=[pytest.mark.slow] if name == "torch-compile" else [])
    for name in racing.present("classify")
    if name != "onnxruntime"
]
OF_LENGTHS = {
    "English": ["A wonderful film, I loved it.", "dull", "Long and slow, but in the end a fine film. " * 9],
    "中文": ["房间很干净，服务非常好，很满意。", "差", "还不错，下次还会再来。" * 9],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take a moment: what they find is not looked at here."""
    monkeypatch.setattr(sentiment, "QUICK", 0.01)
    monkeypatch.setattr(sentiment, "CAREFUL", 0.2)


def ask(language="English", cell="LSTM", text="fine", left="torch", right="onnxruntime", **more):
    return sentiment.answer(language, cell, text, left, right, more.pop("seconds", 0.01), **more)


# --- what is asked


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"language": "Latin"}, "The language is 'Latin'; expected English, 中文."),
        ({"cell": "GRU"}, "The cell of the English net is 'GRU'; expected LSTM."),
        ({"language": "中文", "cell": None}, "The cell of the 中文 net is None; expected LSTM, GRU, RNN."),
        ({"text": ""}, "There are 0 texts"),
        ({"text": "a\ud800"}, "lone surrogate"),
        ({"left": "../x"}, "The left runtime is '../x'"),
        ({"right": "onnxruntime-loop"}, "The right runtime is 'onnxruntime-loop'"),
    ],
)
def test_bad_questions_get_a_sentence(change: dict, sentence: str) -> None:
    question = {"language": "English", "cell": "LSTM", "text": "fine", "left": "torch", "right": "onnxruntime"}
    for handler in (sentiment.sentiment, sentiment.sentiment_measured):
        with pytest.raises(gr.Error) as error:
            handler(**question | change)
        assert sentence in error.value.message


def test_what_the_page_says_of_its_limits_is_so() -> None:
    said = sentiment.tab.__code__.co_consts
    assert any(f"at most {sentiment.MAX_TEXTS} of {sentiment.MAX_LENGTH:,} characters" in str(text) for text in said)
    assert any(f"the first {opinions.SHADED:,} words" in str(text) for text in said)


def test_the_choice_of_a_cell_follows_the_language() -> None:
    english, chinese = sentiment.cells_of("English"), sentiment.cells_of("中文")
    assert (english["interactive"], english["value"]) == (False, "LSTM")
    assert "LSTM only" in english["info"]
    assert chinese["interactive"]
    assert "value" not in chinese


# --- what it looks like


def test_a_text_is_cut_into_its_tokens_and_what_lies_between() -> None:
    text = "A GOOD filmé, not… bad?"
    cut = opinions.pieces(WORDS, text)
    assert "".join(piece for piece, *_ in cut) == text
    assert [piece for piece, is_token, _ in cut if is_token] == ["A", "GOOD", "filmé", "not", "bad", "?"]
    assert [piece for piece, is_token, known in cut if is_token and not known] == ["filmé", "?"]
    assert len(opinions.pieces(CHARACTERS, "a☃b")) == 3
    assert opinions.pieces(WORDS, "…") == [("…", False, True)]


@pytest.mark.parametrize("vocabulary", [WORDS, CHARACTERS])
def test_visitors_text_is_escaped(vocabulary: Vocabulary) -> None:
    text = "<script>alert(1)</script><img src=x onerror=alert(1)> & \"'"
    shown = opinions.shaded(vocabulary, text, np.full(len(text), 0.7))
    assert "<script" not in shown
    assert "<img" not in shown
    assert characters.show_text(text, text).count("<") == 6


def test_shades_follow_the_opinion() -> None:
    shown = opinions.shaded(WORDS, "good bad", np.array([0.95, 0.2]))
    assert f'rgba({opinions.POSITIVE},0.59)" title="95 % positive">good' in shown
    assert f'rgba({opinions.NEGATIVE},0.43)" title="20 % positive">bad' in shown
    assert "正面 20 %，网络不认识" in opinions.shaded(WORDS, "worse", np.array([0.2]), CHINESE)


def test_of_long_texts_the_beginning_is_shaded() -> None:
    texts = ["好" * 1500, "<b>差" * 500]
    given = {"probabilities": np.full((2, 2), 0.5), "running": np.full((2, 2000, 2), 0.5)}
    shown = opinions.show_texts(CHARACTERS, ["negative", "positive"], texts, Column("torch", given, 1.0, ""))
    assert shown.count("<span") == opinions.SHADED
    assert shown.count("差") == 500
    assert "<b>差" not in shown
    assert max(len(line) for line in shown.split('"') if "," in line) < 14 * opinions.POINTS


def test_a_line_goes_from_the_first_to_the_last_opinion() -> None:
    for count in (1, 2, 299, 5000):
        line = opinions.sparkline(np.linspace(0.25, 0.75, count))
        first, *between, last = line.split('points="')[1].split('"')[0].split()
        assert first == "0.00,75.0"
        assert last == f"100.00,{25.0 if count > 1 else 75.0}"
        assert len(between) == min(max(2, count), opinions.POINTS) - 2
    assert 'role="img"' in line
    assert 'aria-label="Probability of positive: 25 % at first, 75 % in the end, between 25 % and 75 % on' in line


# --- what is answered


@pytest.mark.parametrize(("language", "cell"), NETS)
@pytest.mark.parametrize("runtime", OTHERS)
def test_every_runtime_answers_texts_of_several_lengths_in_one_batch(language: str, cell: str, runtime: str) -> None:
    found = net(language, cell)
    feeds = sentiment.feeds_of(found.vocabulary, OF_LENGTHS[language])
    expected = racing.load_runtime(found.model, "classify", "onnxruntime").run(feeds)
    answer = racing.load_runtime(found.model, "classify", runtime, racing.RUNTIMES[runtime].onednn[0]).run(feeds)
    for name in sentiment.OUTPUTS:
        assert answer[name].shape == expected[name].shape
        apart = np.abs(answer[name] - expected[name]).max()
        assert apart <= (1e-5 if racing.exact([runtime]) else 0.05)
    if not racing.exact([runtime]):
        assert np.abs(answer["running"] - expected["running"]).max() > 1e-5  # it is another net
    alone = racing.load_runtime(found.model, "classify", runtime, racing.RUNTIMES[runtime].onednn[0]).run(
        sentiment.feeds_of(found.vocabulary, OF_LENGTHS[language][:1])
    )
    allowed = 1e-5 if racing.exact([runtime]) else 0.05  # int8 rounds by the largest value of a batch
    np.testing.assert_allclose(alone["probabilities"][0], answer["probabilities"][0], atol=allowed)


@pytest.mark.parametrize("example", sentiment.EXAMPLES)
def test_examples_are_answered_alike_by_both_runtimes(example: str) -> None:
    language, cell, text = sentiment.EXAMPLES[example]
    lead, left_speed, left, right_speed, right, known, numbers = ask(language, cell, text)
    assert numbers["same"]
    assert numbers["labels_agree"]
    assert numbers["difference"] <= 1e-5
    assert numbers["speed_up"]["value"] > 0
    assert "times as" in lead
    assert "All labels agree" in lead
    assert "texts/s" in left_speed
    assert "oneDNN on" in left_speed
    assert "texts/s" in right_speed
    assert "calibrated" in known
    lines = text.splitlines()
    assert left.count('class="opinion"') == right.count('class="opinion"') == len(lines)
    vocabulary = net(language, cell).vocabulary
    assert [len(row) for row in numbers["left"]["running"]] == [len(vocabulary.encode(line)) for line in lines]
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize(("language", "cell"), NETS)
def test_clear_opinions_are_told_apart(language: str, cell: str) -> None:
    good, bad = {
        "English": ("A wonderful film, I loved it.", "A terrible film, a complete waste of time."),
        "中文": ("房间很干净，服务非常好，很满意。", "质量太差了，非常失望，再也不买了。"),
    }[language]
    answer = sentiment.sentiment_values([good, bad], language, cell=cell)
    assert answer["labels"] == ["positive", "negative"]
    assert (answer["language"], answer["cell"]) == (language, cell)


def test_the_cells_are_different_nets() -> None:
    said = [sentiment.sentiment_values(["还不错。"], "中文", cell=cell)["probabilities"][0] for cell in MODELS["中文"]]
    assert len({tuple(row) for row in said}) == 3
    told = [about(net(*asked)) for asked in NETS]
    assert len(set(told)) == 4
    for sentence, (_, cell) in zip(told, NETS, strict=True):
        assert sentence.startswith(f"{cell} with ")
    assert "89.3 % ± 1.2 (IMDB)" in told[0]
    assert "points: 2.6 (IMDB), 3.8 (Rotten Tomatoes)." in told[0]


def test_a_text_is_answered_the_same_alone_and_beside_a_longer_one() -> None:
    texts = ["A fine film.", "Long and slow, " * 40]
    together = sentiment.sentiment_values(texts)
    alone = sentiment.sentiment_values(texts[:1])
    np.testing.assert_allclose(alone["probabilities"][0], together["probabilities"][0], atol=1e-5)


def test_texts_without_a_word_are_answered() -> None:
    answer = sentiment.sentiment_values(["…", "☃", "123 456"], "English")
    assert len(answer["labels"]) == 3
    assert ask("中文", text="☃☂")[-1]["same"]


def test_words_that_the_net_does_not_know_are_counted() -> None:
    lead, *_ = ask(text="A fine film, zzyzx.\nIt is good")
    assert "2 texts of 7 words in one batch. The net does not know 1 of them." in lead
    assert "is this its language?" in ask(text="还不错")[0]
    assert "know" not in ask(text="A fine film")[0]


def test_a_page_in_chinese_says_it_in_chinese() -> None:
    lead, latency, texts, *_, known, _ = ask("中文", "GRU", "还不错。", words=CHINESE)
    assert "倍" in lead
    assert "个字" in lead
    assert "每秒" in latency
    assert "正面" in texts
    assert known.startswith("GRU，")


def test_int8_is_another_net_and_its_speed_is_told_with_its_rounding() -> None:
    lead, left_speed, *_, numbers = ask(left="onnxruntime", right="onnxruntime-int8", text="A fine film.\nDull")
    assert not numbers["exact"]
    assert 1e-5 < numbers["difference"] < 0.1
    assert "int8" in lead
    assert "times as" in lead
    assert "int8&#x27;s rounding" in lead
    assert " ms" in left_speed
    assert numbers["speed_up"]["value"] > 0
    lead, *_, numbers = ask(left="onnxruntime-int8", right="onnxruntime-int8")
    assert numbers["same"]
    assert numbers["speed_up"] is None
    assert "rounding" not in lead


def test_a_careful_measurement_tells_p95_and_the_interval() -> None:
    lead, left, _, right, *_, numbers = ask(left="onnxruntime", right="onnxruntime-int8", seconds=sentiment.CAREFUL)
    assert "95 % interval" in lead
    assert "p95" in left
    assert "p95" in right
    ratio = numbers["speed_up"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert numbers["left"]["p95_milliseconds"] >= numbers["left"]["milliseconds"]
    assert "95 % interval" not in ask(left="onnxruntime", right="onnxruntime-int8")[0]


# --- what differs


def table(*positive: float) -> dict[str, np.ndarray]:
    shares = np.array([[1 - share, share] for share in positive], np.float32)
    return {"probabilities": shares, "running": np.repeat(shares[:, None], 9, 1)}


def measured(monkeypatch: pytest.MonkeyPatch, one: dict, other: dict, right: str = "onnxruntime") -> None:
    def found(model: str, pipeline: str, names: list[str], *_: object) -> Measurement:
        outputs = {"torch": one, right: other}
        columns = {name: Column(name, outputs[name], 2.0, "", 3.0, 50) for name in names}
        return Measurement(columns, Ratio(3.0, 2.9, 3.1))

    monkeypatch.setattr(racing, "measure", found)


@pytest.mark.parametrize("found", [(0.9, 0.2002), (0.9, 0.7), (0.9, math.nan)])
def test_no_speed_where_opinions_differ(monkeypatch: pytest.MonkeyPatch, found: tuple[float, ...]) -> None:
    measured(monkeypatch, table(0.9, 0.2), table(*found))
    lead, left, _, right, *_, numbers = ask(text="fine\ndull")
    assert not numbers["same"]
    assert numbers["speed_up"] is None
    assert numbers["labels_agree"] is (found[1] == 0.2002)
    assert ("Labels differ for 1 of 2 texts." in lead) is (found[1] != 0.2002)
    assert "no speed is shown" in lead
    assert "times as" not in lead
    assert "No latency" in left
    assert "No latency" in right
    json.dumps(numbers, allow_nan=False)


def test_nan_after_one_word_is_never_the_same_not_even_for_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    for right in ("onnxruntime", "onnxruntime-int8"):
        other = table(0.9)
        other["running"][0, 0, 1] = np.nan
        measured(monkeypatch, table(0.9), other, right)
        lead, *_, numbers = ask(right=right)
        assert not numbers["same"]
        assert numbers["difference"] is None
        assert "no speed is shown" in lead
        assert numbers["right"]["running"][0][0] is None


def test_a_runtime_without_the_opinions_on_the_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, table(0.9), {"probabilities": table(0.9)["probabilities"]}, "openvino")
    with pytest.raises(UnsupportedError, match="OpenVINO does not run the whole classifier here"):
        sentiment.measure(net("English", "LSTM"), ["torch", "openvino"], {}, 0.1)


def test_the_first_answer_is_made_once() -> None:
    assert sentiment.first("<p>there</p>", "Latin", "", "", "", "") == (gr.skip(),) * 7
    with pytest.raises(gr.Error, match="There are 0 texts"):
        sentiment.first("", "English", "LSTM", "", "torch", "onnxruntime")
