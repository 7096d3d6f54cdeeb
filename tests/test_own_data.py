"""Data of one's own: what is read from a file, and the sentence for each way in which it does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from seqexport.checkpoint import read_checkpoint
from seqexport.errors import SeqExportError
from training import chargen, forecasting, own_data, sentiment

DAYS = np.arange("2021-01-01", "2021-12-01", dtype="datetime64[D]")
VALUES = np.round(50 + 10 * np.sin(2 * np.pi * np.arange(len(DAYS)) / 7) + np.arange(len(DAYS)) % 3, 2)


def csv_of(rows, heading="day,demand", separator=","):
    lines = [heading, *(separator.join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def written(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def dated(values=VALUES, days=DAYS):
    return list(zip(days, values, strict=True))


# --- series


def test_a_series_is_the_last_column_of_numbers_in_steps_of_its_dates(tmp_path):
    series = own_data.read_series(written(tmp_path / "demand.csv", csv_of(dated())), horizon=14)
    assert series.values.tolist() == VALUES.tolist()
    assert (series.name, series.step, series.unit, series.horizon) == ("demand", "day", "demand", 14)
    assert series.season % 7 == 0


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_any_separator_and_a_byte_order_mark_are_read(tmp_path, separator):
    text = "\ufeff" + csv_of(dated(), f"day{separator}demand", separator)
    assert own_data.read_series(written(tmp_path / "a.csv", text), column="demand").values.tolist() == VALUES.tolist()


def test_a_column_alone_is_read_and_blank_lines_at_the_end_are_none(tmp_path):
    series = own_data.read_series(written(tmp_path / "a.csv", "demand\n" + "\n".join(map(str, VALUES)) + "\n\n\n"))
    assert series.values.tolist() == VALUES.tolist() and series.step == "step"


def test_months_of_different_lengths_are_even_steps(tmp_path):
    months = np.arange("1990-01", "2010-01", dtype="datetime64[M]")
    rows = [(f"{month}-01", value) for month, value in zip(months, VALUES, strict=False)]
    assert own_data.read_series(written(tmp_path / "a.csv", csv_of(rows))).step == "month"


def test_gaps_are_filled_along_straight_lines_where_that_is_asked_for(tmp_path):
    rows = dated()
    rows[5] = (rows[5][0], "")
    del rows[20:22]
    path = written(tmp_path / "a.csv", csv_of(rows))
    series = own_data.read_series(path, gaps="interpolate")
    expected = VALUES.copy()
    expected[5] = (VALUES[4] + VALUES[6]) / 2
    expected[20:22] = VALUES[19] + (VALUES[22] - VALUES[19]) * np.array([1, 2]) / 3
    assert series.values == pytest.approx(expected)
    assert "3 gaps filled along straight lines" in series.source


def with_row(place, value):
    rows = dated()
    rows[place] = (rows[place][0], value)
    return csv_of(rows)


GAP = dated()[:10] + dated()[12:]
SERIES_REFUSED = {
    "a gap": (with_row(8, ""), {}, r"has no value in row 10 of 'demand'; a series has no gaps: .*--gaps interpolate"),
    "a word": (with_row(8, "many"), {}, r"has 'many' in row 10 of 'demand'; expected a finite number"),
    "a decimal comma": (with_row(8, '"1,5"'), {}, r"has '1,5' in row 10 of 'demand'.* with a decimal point"),
    "an infinite value": (with_row(8, "inf"), {}, r"has 'inf' in row 10"),
    "a gap in the dates": (csv_of(GAP), {}, r"from 2021-01-10 .* to 2021-01-13 .* in row 12, where the step is 1 day"),
    "dates that go back": (csv_of(dated()[5:9] + dated()), {}, r"goes back to 2021-01-01 .* in row 6; expected dates"),
    "no such column": (csv_of(dated()), {"column": "price"}, r"has no column 'price'; it has day, demand"),
    "no numbers": (csv_of(dated(["x"] * len(DAYS))), {}, r"has no column of numbers among day, demand"),
    "few values": (csv_of(dated()[:50]), {}, r"has 50 values; expected at least 200 for a horizon of 12"),
    "a long horizon": (csv_of(dated()), {"horizon": 90}, r"has 334 values; expected at least 900 for a horizon of 90"),
    "no horizon": (csv_of(dated()), {"horizon": 0}, r"The horizon is 0 and the season None"),
    "nothing": ("", {}, r"is empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", {}, r"is not text in utf-8 \(byte 0\)"),
    "another encoding": (with_row(8, "").encode("utf-16"), {}, r"give its --encoding, perhaps .*utf-16"),
    "no encoding": (csv_of(dated()), {"encoding": "klingon"}, r"There is no encoding 'klingon'"),
    "rows of more cells": ("a,b\n1,2\n1,2,3\n", {}, r"is not a CSV|has 2 values"),
}


@pytest.mark.parametrize("text, options, sentence", SERIES_REFUSED.values(), ids=SERIES_REFUSED)
def test_what_is_no_series_is_refused_with_the_row(tmp_path, text, options, sentence):
    with pytest.raises(SeqExportError, match=sentence):
        own_data.read_series(written(tmp_path / "a.csv", text), **options)


def test_a_season_is_the_highest_peak_of_the_autocorrelation():
    rng = np.random.default_rng(0)
    for season in (4, 12, 25):
        wave = np.sin(2 * np.pi * np.arange(600) / season) + 0.2 * rng.standard_normal(600)
        assert own_data.found_season(wave) % season == 0
    assert own_data.found_season(rng.standard_normal(600)) == 1
    assert own_data.found_season(np.ones(600)) == 1


# --- texts with labels

LABELS = ("praise", "question", "complaint")


def opinions(count=90):
    return [(f"text number {place} says {LABELS[place % 3]}", LABELS[place % 3]) for place in range(count)]


def test_texts_and_labels_of_any_words_are_read(tmp_path):
    reviews = own_data.read_reviews(written(tmp_path / "mail.csv", csv_of(opinions(), "text,label")))
    assert reviews.labels == ("complaint", "praise", "question")
    assert {part: len(texts) for part, texts in reviews.parts.items()} == {"train": 72, "validation": 9, "test": 9}
    for texts in reviews.parts.values():
        assert all(text.text.endswith(reviews.labels[text.label]) for text in texts)
        assert {text.label for text in texts} == {0, 1, 2}
    assert reviews.unit == "word"


def test_characters_are_read_where_words_are_not_separated_and_other_encodings_where_they_are_said(tmp_path):
    rows = [(f"第{place}个房间很好" if place % 2 else f"第{place}个房间不好", place % 2) for place in range(60)]
    path = written(tmp_path / "a.csv", csv_of(rows, "评论,标签"), "gb18030")
    names = {"text_column": "评论", "label_column": "标签"}
    with pytest.raises(SeqExportError, match=r"is not text in utf-8 \(byte 0\): give its --encoding, perhaps gb18030"):
        own_data.read_reviews(path, **names)
    reviews = own_data.read_reviews(path, **names, encoding="gb18030")
    assert reviews.unit == "character" and reviews.labels == ("0", "1")


REVIEWS_REFUSED = {
    "no column": (
        csv_of(opinions(), "mail,label"),
        r"has no column 'text'; it has mail, label: name them with --text-",
    ),
    "no label": (csv_of([*opinions(), ("a", "")], "text,label"), r"has no label in row 92; expected one in every row"),
    "one label": (csv_of(opinions()[::3], "text,label"), r"has 1 different labels \(praise\); expected 2 to 100"),
    "few texts": (
        csv_of(opinions(42), "text,label"),
        r"has 14 different texts with the label '.*'; expected at least 20",
    ),
    "one text": (csv_of([("same", label) for _, label in opinions()], "text,label"), r"has 0 different texts"),
}


@pytest.mark.parametrize("text, sentence", REVIEWS_REFUSED.values(), ids=REVIEWS_REFUSED)
def test_what_are_no_labelled_texts_is_refused(tmp_path, text, sentence):
    with pytest.raises(SeqExportError, match=sentence):
        own_data.read_reviews(written(tmp_path / "a.csv", text))


# --- the trainings themselves


def test_each_training_takes_a_file_of_its_users(tmp_path, capsys):
    series = written(tmp_path / "demand.csv", csv_of(dated()))
    texts = written(tmp_path / "mail.csv", csv_of(opinions(), "text,label"))
    prose = written(tmp_path / "prose.txt", "Sunt lacrimae rerum et mentem mortalia tangunt.\r\n" * 200)
    for module, file, more in ((forecasting, series, "--horizon 7"), (sentiment, texts, ""), (chargen, prose, "")):
        out = tmp_path / f"{file.stem}.pt"
        command = f"--cell gru --file {file} {more} --preset tutorial --threads 1 --steps 2 --out {out}"
        assert module.main(command.split()) == 0, capsys.readouterr().err
        checkpoint = read_checkpoint(out)
        assert checkpoint.data["name"] == file.stem
        checkpoint.pipeline(checkpoint.task)
    assert read_checkpoint(tmp_path / "mail.pt").preprocessing["labels"] == ["complaint", "praise", "question"]


def test_how_to_read_a_file_needs_one(tmp_path, capsys):
    command = f"--cell gru --data sine --horizon 7 --out {tmp_path / 'net.pt'}"
    assert forecasting.main(command.split()) == 2
    assert "--horizon says how to read a --file, but there is none" in capsys.readouterr().err
    assert forecasting.main(["--cell", "gru", "--file", "none.csv", "--out", str(tmp_path / "net.pt")]) == 2
    assert "none.csv could not be read" in capsys.readouterr().err
