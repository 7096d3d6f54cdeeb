"""A visitor's file as a series: separators, encodings, headings, dates, gaps, and what is refused."""

import threading
from pathlib import Path

import numpy as np
import pytest

from seqexport.errors import FileError, InputError
from tabs import own_series
from tabs.languages import Words
from tabs.own_series import preview, read_table, read_upload, series_of

DAYS = [f"2024-01-{day:02d}" for day in range(1, 31)]


def csv(rows: list[str], heading: str = "date,value") -> bytes:
    return "\n".join([heading, *rows]).encode()


def values_of(content: bytes, column: str | None = None) -> list[float]:
    table = read_table(content)
    return series_of(table, column or list(table.columns)[-1]).history.tolist()


@pytest.mark.parametrize(
    "content",
    [
        b"day,load\n2024-01-01,1.5\n2024-01-02,2\n2024-01-03,-3\n",
        b"day;load\n2024-01-01;1,5\n2024-01-02;2\n2024-01-03;-3\n",
        b"day\tload\r\n2024-01-01\t1.5\r\n2024-01-02\t2\r\n2024-01-03\t-3\r\n",
        b"2024-01-01|1.5\n2024-01-02|2\n2024-01-03|-3",
        b'"load"\n1.5\n2\n-3\n\n\n',
        b"1.5\n2\n-3",
        b"1.5 2 -3",
        b"1.5, 2, -3\n",
        "\ufeffload\n1.5\n2\n-3".encode(),
        "load\n1.5\n2\n-3".encode("utf-16"),
        b"load\n1.5\n2\n-3\n ",
        b"a,load\nx,1.5\ny,2\nz, -3",
    ],
)
def test_a_table_may_be_written_in_many_ways(content: bytes) -> None:
    assert values_of(content) == [1.5, 2, -3]


@pytest.mark.parametrize(("encoding", "heading"), [("gb18030", "日期,负荷"), ("cp1252", "Größe,Last à")])
def test_another_encoding_is_said(encoding: str, heading: str) -> None:
    content = f"{heading}\n2024-01-01,1\n2024-01-02,2".encode(encoding)
    table = read_table(content)
    assert any("as it is not UTF-8" in note for note in table.notes)
    assert values_of(content) == [1, 2]
    if encoding == "gb18030":
        assert list(table.columns) == ["负荷"]


def test_columns_of_numbers_are_offered_by_name_and_dates_and_texts_are_not() -> None:
    table = read_table(b"date,low,note,high,low\n2024-01-01,1,a,3,9\n2024-01-02,2,b,4,8\n")
    assert list(table.columns) == ["low", "high", "low (5)"]
    assert series_of(table, "low").history.tolist() == [1, 2]
    assert series_of(table, "low (5)").history.tolist() == [9, 8]
    with pytest.raises(InputError, match="The column is 'note'; expected one of low, high"):
        series_of(table, "note")
    assert list(read_table(b"1,2\n3,4\n5,6").columns) == ["column 1", "column 2"]


def test_dates_give_the_axis() -> None:
    own = series_of(read_table(csv([f"{day},{number}" for number, day in enumerate(DAYS)])), "value")
    assert own.step == "day"
    assert own.axis(30, 32).astype(str).tolist() == ["2024-01-31T00:00:00", "2024-02-01T00:00:00"]
    months = series_of(read_table(b"m,v\n2023-11,1\n2023-12,2\n2024-01,3"), "v")
    assert months.step == "month"
    assert str(months.axis(3, 4)[0]) == "2024-02"
    zoned = series_of(read_table(b"t,v\n2024-03-31T00:00Z,1\n2024-03-31T00:30Z,2\n2024-03-31T01:00Z,3"), "v")
    assert zoned.step == "half-hour"


def test_gaps_are_filled_and_said() -> None:
    rows = [f"{day},{number}" for number, day in enumerate(DAYS)]
    rows[3] = f"{DAYS[3]},"
    rows[4] = f"{DAYS[4]},NaN"
    del rows[10:12]
    own = series_of(read_table(csv(rows)), "value")
    np.testing.assert_allclose(own.history, np.arange(30), atol=1e-5)
    assert own.notes == ["Dates that the file leaves out: 2.", "Gaps filled along straight lines: 4."]
    assert len(own.times) == 30
    assert "空缺：4" in series_of(read_table(csv(rows)), "value", Words("zh")).notes[1]


def test_gaps_at_the_ends_are_left_out() -> None:
    own = series_of(read_table(csv([f"{DAYS[0]},", f"{DAYS[1]},5", f"{DAYS[2]},6", f"{DAYS[3]},"])), "value")
    assert own.history.tolist() == [5, 6]
    assert str(own.axis(0, 1)[0]).startswith("2024-01-02")
    assert own.notes == []


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([f"{DAYS[0]},1", f"{DAYS[1]},2", f"{DAYS[1]},3"], "Row 4 goes back to 2024-01-02"),
        ([f"{day},1" for day in (*DAYS[:3], "2024-01-03T05:00", *DAYS[3:6])], "Row 5 is not a whole number of steps"),
        ([f"{day},1" for day in DAYS[:5]] + ["2024-03-01,5"], "The dates leave out 55 of 61 steps of 1 day"),
        ([f"{day},{'' if number % 2 else 1}" for number, day in enumerate(DAYS)], "has 14 gaps in 29 steps"),
        ([f"{DAYS[0]},1", f"{DAYS[1]},2", f"{DAYS[2]},three"], "Row 4 of value is “three”"),
        ([f"{DAYS[0]},1", f"{DAYS[1]},2", f"{DAYS[2]},=1+1"], "Row 4 of value is “=1+1”"),
        ([f"{DAYS[0]},1", f"{DAYS[1]},inf", f"{DAYS[2]},3"], "Row 3 of value is “inf”"),
        ([f"{DAYS[0]},1", f"{DAYS[1]},2e12", f"{DAYS[2]},3"], "Row 3 of value is “2e12”"),
        ([f"{DAYS[0]},1", f"{DAYS[1]},"], "has the length 1; expected at least 2"),
    ],
)
def test_what_can_not_be_mended_is_refused_with_its_row(rows: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        series_of(read_table(csv(rows)), "value")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"", InputError, "The file is empty"),
        (b" \n\t\n", InputError, "The file is empty"),
        (b"\xef\xbb\xbf", InputError, "The file is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20, FileError, "The file is no text"),
        (b"PK\x03\x04" + bytes(200), FileError, "no text: it holds the character"),
        (b"1,2\n3\x00,4", FileError, "it holds the character 0 at place 5"),
        (b"\xff\xfe1", FileError, "no text in an encoding"),
        (b"value\n\n", InputError, "The file has one row, 'value'"),
        (b"name\nanna\nbert\n", InputError, "no column of numbers among name"),
        (b"date\n2024-01-01\n2024-01-02\n", InputError, "no column of numbers among date"),
        (b"=cmd|'/C calc'!A0\n=1+1\n=1+2\n", InputError, "no column of numbers"),
        (b"a,b\n1,2\n3,4,5,6\n", InputError, "The file is no table"),
        (b"1," * 5000 + b"\n" + b"1," * 5000, InputError, "has 5,001 columns; expected at most 200"),
        (b'a,b\n"1,2\n3,4\n', InputError, "The file is no table"),
    ],
)
def test_hostile_files_get_a_sentence(content: bytes, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as error:
        series_of(table := read_table(content), next(iter(table.columns)))
    assert sentence in str(error.value)
    assert len(str(error.value)) < 400


def test_a_long_file_is_cut_to_its_end() -> None:
    content = csv([f"{number}" for number in range(25_000)], "n")
    table = read_table(content)
    own = series_of(table, "n")
    assert len(own.history) == 20_000
    assert own.history[-1] == 24_999
    assert own.notes == ["Of 25,000 rows the last 20,000 are read."]
    assert table.rows[0] == 5_002


def test_an_upload_is_deleted_and_a_large_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(b"1\n2\n3")
    assert list(read_upload(str(path)).columns) == ["column 1"]
    assert not path.exists()
    path.write_bytes(b"1\n" * 1000)
    monkeypatch.setattr(own_series, "MAX_BYTES", 1_000)
    with pytest.raises(FileError, match=r"has 0\.0 MB; expected at most"):
        read_upload(str(path))
    assert not path.exists()
    with pytest.raises(FileError, match="upload it again"):
        read_upload(str(tmp_path / "none.csv"))
    for nothing in (None, ""):
        with pytest.raises(FileError, match="There is no file"):
            read_upload(nothing)


def test_the_largest_file_is_read_in_reasonable_memory() -> None:
    content = b"x,y\n" + b"1,2\n" * 500_000
    before = threading.active_count()
    table = read_table(content)
    assert len(table.columns["y"]) == 20_000
    assert threading.active_count() == before


def test_the_preview_is_escaped_and_short() -> None:
    wide = ",".join(f"<img src=x onerror=alert({number})>{'x' * 50}" for number in range(10))
    table = read_table(f"{wide}\n{','.join('1' * 10)}\n{','.join('2' * 10)}\n".encode())
    shown = preview(table)
    assert "<img" not in shown
    assert shown.count("<th>") == own_series.SHOWN_COLUMNS
    assert "Rows: 2. Columns of numbers: 10." in shown
    assert max(len(cell) for cell in shown.split("<")) < 120
    assert "行数：2" in preview(table, Words("zh"))


def test_without_a_file_a_sentence() -> None:
    with pytest.raises(InputError, match="There is no file yet; upload a CSV"):
        series_of(None, "x")
