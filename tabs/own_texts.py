"""Lists of texts that visitors bring, and the table that they take home: files of lines, CSV and TSV in the encodings
that there are in the world. What can't be read is a row with its reason, not the end of the list."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradio.utils import get_upload_folder

from seqexport.errors import InputError
from seqexport.files import replace_file
from seqexport.specs import check_whole
from tabs.languages import ENGLISH, Words

MAX_LIST, MAX_LENGTH, MAX_CHARACTERS = 10_000, 5_000, 20_000_000  # texts, characters of one, of all
AUTOMATIC = "automatic"
ENCODINGS = {
    AUTOMATIC: "",
    "UTF-8": "utf-8-sig",
    "GB18030": "gb18030",
    "Big5": "big5",
    "UTF-16": "utf-16",
    "Windows-1252": "cp1252",
}
# A file's first bytes → what it is, where that is certain.
BEGINNINGS = {
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
DELIMITERS = ",;\t|"
TABLES = (".csv", ".tsv")
LOOKED_AT = 50  # rows by which the column of texts is guessed
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # how a cell begins that a spreadsheet would compute
KEPT = 3600.0  # seconds that a download is kept
FOLDER = "texts-"


@dataclass(frozen=True)
class Row:
    """One text. number: its line, or its row as a spreadsheet counts them, from 1. reason: why it can't be read, or
    nothing."""

    number: int
    text: str
    reason: str = ""


def decoded(content: bytes, encoding: str = AUTOMATIC) -> tuple[str, str]:
    """A file's bytes → its text, and the name of the encoding that was taken, one of ENCODINGS.

    Raises InputError for an encoding that is not known or does not fit, and for what is no text.
    """
    if encoding not in ENCODINGS:
        raise InputError(f"The encoding is {encoding!r:.40}; expected {', '.join(ENCODINGS)}.")
    if content.startswith(b"PK\x03\x04"):
        raise InputError("The file is an archive, such as Excel writes; expected a text: save the sheet as CSV.")
    name = _guessed(content) if encoding == AUTOMATIC else encoding
    try:
        text = content.decode(ENCODINGS[name]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The file is not text in {name} (byte {error.start + 1:,}): choose another encoding, or save it as UTF-8."
        ) from None
    if "\x00" in text:
        raise InputError(
            f"The file holds a zero character, at place {text.index(chr(0)) + 1:,}, as no text does: choose another "
            "encoding, or save it as a text in UTF-8."
        )
    return text, name


def _guessed(content: bytes) -> str:
    for beginning, name in BEGINNINGS.items():
        if content.startswith(beginning):
            return name
    if _decodes(content, "utf-8"):
        return "UTF-8"
    # Chinese is made of pairs of bytes beyond ASCII. A Western accent stands alone, and with the letter after it would
    # often pass for a pair.
    beyond = re.findall(rb"[\x80-\xff]+", content)
    pairs = sum(len(run) for run in beyond if len(run) > 1)
    chinese = 2 * pairs > sum(map(len, beyond)) and _decodes(content, "gb18030")
    return "GB18030" if chinese else "Windows-1252"


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def from_lines(text: str, words: Words = ENGLISH) -> list[Row]:
    """One text a line → its rows; empty lines are left out. Raises InputError as `checked`."""
    _check_size(text)
    lines = enumerate(re.split("\r\n|\r|\n", text), 1)
    return checked(((number, line) for number, line in lines if line.strip()), words)


def from_list(texts: Sequence[str]) -> list[Row]:
    """A program's texts, an empty one among them as a row that can't be read. Raises InputError as `checked`, and for
    what is no list of texts."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError("The texts are not all texts; give a list of strings.")
    if (size := sum(map(len, texts))) > MAX_CHARACTERS:
        raise InputError(f"The texts have {size:,} characters; expected at most {MAX_CHARACTERS:,}.")
    return checked(enumerate(texts, 1))


def columns_of(text: str, heading: bool = True) -> tuple[list[str], int]:
    """A table's columns, and which of them has the longest texts in its first rows: most likely what is meant.

    heading: whether the first row names the columns; without it they are counted. Raises InputError for a table that
    can't be read.
    """
    rows = [row for row, _ in zip(_rows(text), range(LOOKED_AT + 1), strict=False)]
    if not rows or not any(rows):
        raise InputError("The table is empty; expected a row for each text.")
    width = max(map(len, rows))
    names = [name.strip() for name in rows[0]] if heading else []
    names = [names[place] if place < len(names) and names[place] else f"#{place + 1}" for place in range(width)]
    body = rows[1:] if heading and len(rows) > 1 else rows
    lengths = [sum(len(row[place]) for row in body if place < len(row)) for place in range(width)]
    return names, lengths.index(max(lengths))


def from_table(text: str, column: int, heading: bool = True, words: Words = ENGLISH) -> list[Row]:
    """A CSV or TSV, and which of its columns has the texts, counted from 0 → its rows. Rows that are empty altogether
    are left out. Raises InputError as `checked`, and for a table that can't be read or has no such column."""
    _check_size(text)
    found, seen = [], False
    for number, row in enumerate(_rows(text), 1):
        if (heading and number == 1) or not any(cell.strip() for cell in row):
            continue
        seen = seen or column < len(row)
        found.append((number, row[column] if column < len(row) else ""))
    if found and not seen:
        raise InputError(f"The table has no column {column + 1}; choose one of the columns that it has.")
    return checked(found, words)


def _rows(text: str) -> Iterator[list[str]]:
    """The table's rows. What lies between its cells is what there is most of in the first line."""
    first = re.sub('"[^"]*"', "", re.split("\r\n|\r|\n", text.lstrip("\r\n"), maxsplit=1)[0])
    delimiter = max(DELIMITERS, key=first.count)
    reader, number = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 0
    while True:
        number += 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"Row {number:,} of the table can't be read ({error}); expected cells of ordinary length: a quote may "
                "be left open."
            ) from None


def _check_size(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The texts have {len(text):,} characters; expected at most {MAX_CHARACTERS:,}.")


def checked(rows: Iterable[tuple[int, str]], words: Words = ENGLISH) -> list[Row]:
    """Numbers and texts → rows, each with the reason if it can't be read. Raises InputError for none or too many."""
    found = [Row(number, text.strip(), _reason(text.strip(), words)) for number, text in rows]
    if not 1 <= len(found) <= MAX_LIST:
        raise InputError(f"There are {len(found):,} texts; expected 1 to {MAX_LIST:,}: give a part of them at a time.")
    return found


def _reason(text: str, words: Words) -> str:
    if not text:
        return words("There is no text in it.")
    if len(text) > MAX_LENGTH:
        return words(
            "It has {found:,} characters; expected at most {most:,}: split it, or close a quote that is left open.",
            found=len(text),
            most=MAX_LENGTH,
        )
    try:
        check_whole(text)
    except InputError:
        return words("It holds half a character (a lone surrogate): remove it.")
    return ""


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that begins like one gets an apostrophe before it."""
    return "'" + cell if cell.lstrip(" ").startswith(FORMULA) else cell


def as_csv(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A table in CSV that Excel too reads as UTF-8, all cells quoted and guarded."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL)
    writer.writerow(headings)
    writer.writerows([guarded(cell) for cell in row] for row in rows)
    return written.getvalue().encode("utf-8-sig", "replace")


def download(name: str, content: bytes) -> str:
    """Write a file into a fresh folder of gradio's cache, whose name nobody can guess → its path. Downloads that are
    older than an hour are deleted."""
    cache = Path(get_upload_folder())
    folder = cache / f"{FOLDER}{secrets.token_hex(16)}"
    folder.mkdir(parents=True)
    for old in cache.glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # another visitor's download may be sweeping too
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old)
    replace_file(folder / name, content)
    return str(folder / name)
