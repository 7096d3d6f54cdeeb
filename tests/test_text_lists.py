"""A visitor's own list of texts through the Sentiment tab's nets."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from tabs import own_texts, sentiment, text_lists
from tabs.languages import Words
from tabs.own_texts import Row
from tabs.sentiment_nets import net

GOOD, BAD = "房间很干净，服务非常好，很满意。", "质量太差了，非常失望，再也不买了。"
CHINESE = ("中文", "RNN")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gradio's cache, into which the downloads go."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(
    pasted: str = "", path: object = None, request: Any = None, net: tuple[str, str] = CHINESE, **how: Any
) -> list:
    asked = {"column": None, "heading": True, "encoding": "automatic"} | how
    place = None if path is None else str(path)
    return list(text_lists.classify_list(*net, pasted, place, *asked.values(), request))


def downloaded(steps: list) -> list[dict[str, str]]:
    path = Path(steps[-1][2]["value"])
    assert path.name == "sentiment.csv"
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def test_pasted_lines_become_a_table_and_a_file(cache: Path) -> None:
    steps = listed(f"{GOOD}\n\n{BAD}\n=cmd\n")
    first, last = steps[0], steps[-1]
    assert "<progress" in first[0]
    assert first[3]["interactive"]
    assert not first[2]["interactive"]
    says, table, download, stop = last
    assert "3 texts: " in says
    assert "RNN in ONNX Runtime" in says
    assert download["interactive"]
    assert not stop["interactive"]
    assert cache in Path(download["value"]).parents
    rows = downloaded(steps)
    assert list(rows[0]) == ["row", "text", "label", "probability", "note"]
    assert [(row["row"], row["text"]) for row in rows] == [("1", GOOD), ("3", BAD), ("4", "'=cmd")]
    assert [row["label"] for row in rows[:2]] == ["positive", "negative"]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert table.count("<tr>") == 4


def test_a_list_is_answered_as_the_side_by_side_answers_it() -> None:
    texts = [GOOD, BAD, GOOD * 9, "差", "还不错。"] * 60
    answer = text_lists.sentiment_list(texts, *CHINESE)
    assert len(answer["labels"]) == 300
    expected = sentiment.sentiment_values(texts[:5], "中文", cell="RNN")
    assert answer["labels"][:5] == expected["labels"]
    np.testing.assert_allclose(answer["probabilities"][:5], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"][-5:], expected["probabilities"], atol=1e-5)
    assert answer["notes"] == []
    assert (answer["language"], answer["cell"]) == CHINESE


def test_texts_that_can_not_be_read_keep_their_places() -> None:
    answer = text_lists.sentiment_list(["", GOOD, "x" * 5_001, "☃", "a\ud800", BAD], *CHINESE)
    assert [label is None for label in answer["labels"]] == [True, False, True, False, True, False]
    assert [row is None for row in answer["probabilities"]] == [True, False, True, False, True, False]
    assert (answer["labels"][1], answer["labels"][5]) == ("positive", "negative")
    assert [note["text"] for note in answer["notes"]] == [1, 3, 4, 5]
    assert "knows nothing" in answer["notes"][2]["note"]
    assert text_lists.sentiment_list([""], *CHINESE)["labels"] == [None]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ([["fine"], "Latin", "LSTM"], "The language is 'Latin'"),
        ([["fine"], "English", "GRU"], "The cell of the English net is 'GRU'"),
        ([[], "English", "LSTM"], "There are 0 texts; expected 1 to 10,000"),
        ([[1], "English", "LSTM"], "not all texts"),
    ],
)
def test_bad_lists_get_a_sentence(question: list, sentence: str) -> None:
    with pytest.raises(gr.Error) as error:
        text_lists.sentiment_list(*question)
    assert sentence in error.value.message


def test_a_file_goes_before_what_was_pasted_and_its_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "<b>reviews.csv"
    path.write_bytes(f"id;text\n1;{GOOD}\n2;\n3;{'长' * 5_001}\n4;{BAD}\n".encode("gb18030"))
    steps = listed("pasted", path)
    says, table, *_ = steps[-1]
    assert "&lt;b&gt;reviews.csv in GB18030, column text." in says
    assert "2 texts: 1 positive, 1 negative." in says
    assert "could not be read: 2" in says
    assert "<li>Row 3: There is no text in it.</li>" in table
    assert "<li>Row 4: It has 5,001 characters" in table
    rows = downloaded(steps)
    assert [(row["row"], row["label"]) for row in rows] == [("2", "positive"), ("3", ""), ("4", ""), ("5", "negative")]
    assert rows[2]["text"] == "长" * 100 + "…"
    assert "5,001" in rows[2]["note"]
    assert [row["text"] for row in downloaded(listed("", path, column=0))] == ["1", "2", "3", "4"]
    assert len(downloaded(listed("", path, heading=False))) == 5


def test_a_file_of_lines_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{GOOD}, {BAD}\n", encoding="utf-8-sig")
    steps = listed("", path)
    assert "Read from a.txt in UTF-8." in steps[-1][0]
    assert [row["text"] for row in downloaded(steps)] == [f"{GOOD}, {BAD}"]
    shown, heading = text_lists.look(str(path), True, "automatic")
    assert (shown["visible"], heading["visible"]) == (False, False)


def test_the_column_with_the_longest_texts_is_offered_first(tmp_path: Path) -> None:
    path = tmp_path / "a.TSV"
    path.write_text(f"id\ttext\n1\t{GOOD}\n", encoding="utf-8")
    column, heading = text_lists.look(str(path), True, "automatic")
    assert column["choices"] == [("id", 0), ("text", 1)]
    assert column["value"] == 1
    assert heading["visible"]
    assert text_lists.look(None, True, "automatic")[0]["visible"] is False
    for bad in (9, -1, "text", 0.5):
        with pytest.raises(gr.Error, match="The place of the column is"):
            listed("", path, column=bad)
    path.unlink()
    with pytest.raises(gr.Error, match="upload it again"):
        listed("", path)


def test_a_visitors_texts_are_escaped() -> None:
    says, table, *_ = listed("<img src=x onerror=alert(1)>\n<script>")[-1]
    assert "<img" not in table
    assert "<script" not in table
    assert "&lt;img" in table


def test_a_long_list_is_shown_in_part_and_taken_home_as_a_whole() -> None:
    steps = listed(f"{GOOD}\n" * 1_000)
    assert len(steps) >= 3
    says, table, *_ = steps[-1]
    assert "1,000 texts: 1,000 positive, 0 negative." in says
    assert "The first 100 rows are shown" in says
    assert table.count("<tr>") == 101
    assert len(downloaded(steps)) == 1_000


def test_stop_ends_the_visitors_own_list_and_gives_what_there_is() -> None:
    mine, other = (SimpleNamespace(session_hash=name, headers={}) for name in ("mine", "other"))
    run = text_lists.classify_list(*CHINESE, f"{GOOD}\n" * 5_000, None, None, True, "automatic", mine)
    steps = [next(run), next(run)]
    text_lists.stop_list(other)
    text_lists.stop_list(None)
    steps.append(next(run))
    assert "<progress" in steps[-1][0]
    assert not text_lists.stop_list(mine)["interactive"]
    steps += list(run)
    assert "Stopped after" in steps[-1][0]
    assert "of 5,000 rows." in steps[-1][0]
    assert 256 <= len(downloaded(steps)) < 5_000
    assert text_lists.RUNNING == {}


def test_a_list_that_takes_too_long_ends_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lists, "DEADLINE", 0.0)
    steps = listed(f"{GOOD}\n" * 600)
    assert "Ended after 0 seconds and 256 of 600 rows" in steps[-1][0]
    assert len(downloaded(steps)) == 256
    with pytest.raises(gr.Error, match="After 0 s 256 of 600 texts were classified: give a part of them at a time"):
        text_lists.sentiment_list([GOOD] * 600, *CHINESE)


def test_an_iterator_that_is_closed_leaves_nothing_behind() -> None:
    run = text_lists.classify_list(
        *CHINESE, GOOD, None, None, True, "automatic", SimpleNamespace(session_hash="a", headers={})
    )
    next(run)
    assert list(text_lists.RUNNING) == ["a"]
    run.close()
    assert text_lists.RUNNING == {}


def test_chunks_hold_so_many_texts_and_characters() -> None:
    rows = [Row(number, "x" * (5_000 if number < 40 else 1)) for number in range(1, 700)]
    cut = list(text_lists.chunks(rows))
    assert [row for chunk in cut for row in chunk] == rows
    assert all(len(chunk) <= text_lists.CHUNK for chunk in cut)
    assert all(sum(len(row.text) for row in chunk) <= text_lists.CHUNK_CHARACTERS for chunk in cut)
    assert len(cut) < 8
    assert list(text_lists.chunks(rows[:1])) == [rows[:1]]


def test_a_list_in_another_language_is_asked_about() -> None:
    assert "is this its language?" in listed("还不错\n很好", net=("English", "LSTM"))[-1][0]


def test_a_page_in_chinese_says_it_in_chinese() -> None:
    request = SimpleNamespace(session_hash="z", headers={"accept-language": "zh-CN"})
    says, table, *_ = listed(f"{GOOD}\n{'长' * 5_001}", request=request)[-1]
    assert "1 条文本：1 正面，0 负面" in says
    assert "第 2 行" in table
    assert "正面" in table


def test_words_of_the_table_are_the_labels() -> None:
    found = net(*CHINESE)
    answer = text_lists.Answer(Row(1, "x"), np.array([0.25, 0.75]))
    assert "positive</td>" in text_lists.show_table([answer], found.labels)
    assert "正面</td>" in text_lists.show_table([answer], found.labels, Words("zh"))


def test_there_is_nothing_to_read_without_texts() -> None:
    with pytest.raises(gr.Error, match="There are 0 texts"):
        listed("  \n ")
    assert own_texts.MAX_LIST == 10_000
