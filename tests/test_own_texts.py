"""Lists of texts that visitors bring: encodings, tables, what can't be read, and the table that they take home."""

import codecs
import csv
import io
import os
import time
from pathlib import Path

import pytest

from seqexport.errors import InputError
from tabs import own_texts
from tabs.languages import Words
from tabs.own_texts import Row

REVIEWS = "房间很干净，服务非常好。\n质量太差了，非常失望。\n"
GERMAN = "Schöne Bilder, übler Schluß.\nNaïve Café-Größe\n"


@pytest.mark.parametrize(
    ("text", "encoding", "beginning", "found"),
    [
        (REVIEWS, "utf-8", b"", "UTF-8"),
        (REVIEWS, "utf-8", codecs.BOM_UTF8, "UTF-8"),
        (REVIEWS, "gb18030", b"", "GB18030"),
        (REVIEWS + "😀 ok\n", "gb18030", b"", "GB18030"),
        (REVIEWS, "utf-16-le", codecs.BOM_UTF16_LE, "UTF-16"),
        (REVIEWS, "utf-16-be", codecs.BOM_UTF16_BE, "UTF-16"),
        (GERMAN, "cp1252", b"", "Windows-1252"),
        ("plain", "ascii", b"", "UTF-8"),
        ("", "ascii", b"", "UTF-8"),
    ],
)
def test_the_encoding_is_found(text: str, encoding: str, beginning: bytes, found: str) -> None:
    content = beginning + text.encode(encoding)
    assert own_texts.decoded(content) == (text, found)
    assert own_texts.decoded(content, found) == (text, found)


def test_a_chosen_encoding_is_taken() -> None:
    assert own_texts.decoded("很好".encode("big5"), "Big5") == ("很好", "Big5")
    assert own_texts.decoded("café".encode("cp1252"), "Windows-1252")[0] == "café"


@pytest.mark.parametrize(
    ("content", "encoding", "sentence"),
    [
        (b"PK\x03\x04....", "automatic", "an archive, such as Excel writes; expected a text: save the sheet as CSV."),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "automatic", "save it as a text"),
        (b"a\x00b", "UTF-8", "holds a zero character, at place 2,"),
        (b"ok \xff", "UTF-8", "is not text in UTF-8 (byte 4)"),
        (b"\x81", "automatic", "is not text in Windows-1252"),
        (b"a", "utf_7", "The encoding is 'utf_7'; expected automatic, UTF-8"),
        (b"a", None, "The encoding is None"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, encoding: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        own_texts.decoded(content, encoding)
    assert sentence in str(error.value)


def test_lines_keep_their_numbers_and_only_line_ends_end_them() -> None:
    assert own_texts.from_lines("one\r\n\r\n two \rthree\u2028still three\n") == [
        Row(1, "one"),
        Row(3, "two"),
        Row(4, "three\u2028still three"),
    ]


def test_what_can_not_be_read_is_a_row_with_its_reason() -> None:
    rows = own_texts.from_list(["fine", " ", "x" * 5_001, "a\ud800", "y" * 5_000])
    assert [bool(row.reason) for row in rows] == [False, True, True, True, False]
    assert "no text in it" in rows[1].reason
    assert "5,001 characters; expected at most 5,000" in rows[2].reason
    assert "half a character" in rows[3].reason
    assert "没有文字" in own_texts.checked([(1, "")], Words("zh"))[0].reason


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "There are 0 texts; expected 1 to 10,000"),
        (["a"] * 10_001, "There are 10,001 texts"),
        (["a", 1], "not all texts"),
        ("a text", "not all texts"),
        (["x" * 10_000_001] * 2, "have 20,000,002 characters; expected at most 20,000,000"),
    ],
)
def test_lists_that_are_none_are_refused(texts: object, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        own_texts.from_list(texts)
    assert sentence in str(error.value)
    assert len(own_texts.from_list(["a"] * 10_000)) == 10_000


TABLE = 'id,stars,review\n1,5,"Good, really\ngood"\n2,1,bad\n,,\n3,4\n4,2,"say ""no"""\n'


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read_by_its_column(separator: str) -> None:
    rows = [line for line in csv.reader(io.StringIO(TABLE))]
    written = io.StringIO()
    csv.writer(written, delimiter=separator).writerows(rows)
    text = written.getvalue()
    assert own_texts.columns_of(text) == (["id", "stars", "review"], 2)
    found = own_texts.from_table(text, 2)
    assert [(row.number, row.text) for row in found if not row.reason] == [
        (2, "Good, really\ngood"),
        (3, "bad"),
        (6, 'say "no"'),
    ]
    assert [row.number for row in found if row.reason] == [5]  # the shorter row; the empty one is none
    assert [row.text for row in own_texts.from_table(text, 0)] == ["1", "2", "3", "4"]


def test_a_table_without_a_heading_or_with_one_column() -> None:
    assert own_texts.columns_of("1,fine\n2,bad\n", heading=False) == (["#1", "#2"], 1)
    assert [row.text for row in own_texts.from_table("1,fine\n2,bad\n", 1, heading=False)] == ["fine", "bad"]
    assert [row.text for row in own_texts.from_table("text\nfine\nbad\n", 0)] == ["fine", "bad"]
    assert own_texts.columns_of(",text,\n1,fine,x\n") == (["#1", "text", "#3"], 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('text\nfine\n"' + "x" * 200_000, "Row 3 of the table can't be read"),
        ("text\nfine\n", "The table has no column 3"),
        ("text\n", "There are 0 texts"),
        ("", "There are 0 texts"),
    ],
)
def test_tables_that_are_none_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        own_texts.from_table(text, 2)
    assert sentence in str(error.value)


def test_an_empty_table_has_no_columns() -> None:
    with pytest.raises(InputError, match="The table is empty"):
        own_texts.columns_of("\n\n")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", "  =cmd|' /C calc'!A0"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert own_texts.guarded(cell) == "'" + cell
    content = own_texts.as_csv(["text"], [[cell]])
    assert list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))[1] == ["'" + cell]


def test_a_table_can_be_read_by_excel_and_by_python() -> None:
    cells = ["1", '好，"good"\nreally', "positive", "0.93", "a - b = c"]
    content = own_texts.as_csv(["row", "text", "label", "probability", "note"], [cells])
    assert content.startswith(codecs.BOM_UTF8)
    assert list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))[1] == cells
    assert own_texts.as_csv(["text"], [["a\ud800"]]).decode("utf-8-sig").endswith('"a?"\r\n')


def test_downloads_have_folders_of_their_own_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    one, other = (Path(own_texts.download("a.csv", content)) for content in (b"1", b"2"))
    assert one.parent != other.parent
    assert len(one.parent.name) >= 32
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"2")
    long_ago = time.time() - own_texts.KEPT - 60
    os.utime(one.parent, (long_ago, long_ago))
    own_texts.download("a.csv", b"3")
    assert not one.exists()
    assert other.exists()
