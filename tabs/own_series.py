"""A visitor's file for the Forecast tab: a table in any of the usual encodings, its columns of numbers, one a step.

What is mended is said: gaps that are filled, dates that were left out, a file that was cut. What can't be is refused
with the row where it is, as a spreadsheet counts them. The file itself is deleted once it is read.
"""

from __future__ import annotations

import codecs
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas

from seqexport.errors import FileError, InputError
from tabs.languages import ENGLISH, Words
from tabs.series import MAX_SIZE, MAX_VALUES, Series, parse_numbers

MAX_BYTES = 20_000_000
MAX_COLUMNS, OFFERED = 200, 20  # of a file; that are offered
FILLED = 0.2  # the share of gaps up to which they are filled
SHOWN_ROWS, SHOWN_COLUMNS, SHOWN_CELL = 5, 6, 24  # of the preview
TRIED = 200  # cells by which a column is taken for one of numbers
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, eq=False)
class Table:
    """What was read of a file: its columns of numbers, float64 (rows,) with NaN where there is none, by name; the dates
    of the rows where there are any; the rows' numbers in the file; its first cells, and what was done, to be said."""

    columns: Mapping[str, np.ndarray]
    dates: np.ndarray | None
    rows: np.ndarray
    wrong: Mapping[str, tuple[int, str]]
    head: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())


def read_upload(path: str | None, words: Words = ENGLISH) -> Table:
    """Read an uploaded file, and delete it. Raises FileError or InputError."""
    if not path:
        raise FileError("There is no file; upload a CSV.")
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise FileError(f"The file has {size / 1e6:,.1f} MB; expected at most {MAX_BYTES // 10**6}: give its end.")
        content = file.read_bytes()
    except OSError as error:
        raise FileError(f"The file could not be read ({error.strerror}): upload it again.") from error
    finally:
        file.unlink(missing_ok=True)
    return read_table(content, words)


def read_table(content: bytes, words: Words = ENGLISH) -> Table:
    """A CSV's content: separated by commas, semicolons, tabs or bars, with a heading or without, with a column of dates
    or without. Raises FileError for what is no text, InputError for what is no table or has no numbers."""
    text, encoding = decoded(content)
    notes = [] if encoding.startswith("utf") else [words("Read as {encoding}, as it is not UTF-8.", encoding=encoding)]
    lines = text.strip("\r\n").split("\n", 2)
    delimiter = _delimiter(lines[0])
    in_a_row = all(map(_number, lines[0].replace(",", " ").split()))  # and not one in a row
    if in_a_row and (len(lines) == 1 or (delimiter is None and " " in lines[0].strip())):
        numbers = parse_numbers(text).astype(np.float64)
        name = words("value")
        head = [[name], *([f"{number:g}"] for number in numbers[:SHOWN_ROWS])]
        return Table({name: numbers}, None, np.arange(1, len(numbers) + 1), {}, head, notes)
    frame, first = _cells(text, delimiter or ",")
    return _table(frame, first, delimiter in (";", "\t"), notes, words)


def decoded(content: bytes) -> tuple[str, str]:
    """The text, and the encoding that it is in: by its mark, UTF-8 or else gb18030, or else cp1252."""
    encodings = [name for mark, name in MARKS if content.startswith(mark)] or ["utf-8", "gb18030", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise FileError("The file is no text in an encoding that is known here: save it as a CSV in UTF-8.")
    strange = next((sign for sign in text if sign < " " and sign not in "\t\r\n\f"), None)
    if strange is not None:
        raise FileError(
            f"The file is no text: it holds the character {ord(strange)} at place {text.index(strange)}. Save the "
            "table as a CSV in UTF-8."
        )
    if not text.strip():
        raise InputError("The file is empty; expected a column of numbers.")
    return text, encoding


def _delimiter(line: str) -> str | None:
    """The commonest sign between cells; None where there is none."""
    counts = {sign: line.count(sign) for sign in "\t;|,"}
    best = max(counts, key=lambda sign: counts[sign])
    return best if counts[best] else None


def _cells(text: str, delimiter: str) -> tuple[pandas.DataFrame, int]:
    """All cells as text, NaN where there is nothing, with their heading as column names; the first row's number."""
    width = text.partition("\n")[0].count(delimiter) + 1
    if width > MAX_COLUMNS:
        raise InputError(f"The file has {width:,} columns; expected at most {MAX_COLUMNS}, and a row for each step.")
    try:
        frame = pandas.read_csv(
            io.StringIO(text.strip("\r\n")), sep=delimiter, dtype=str, header=None, skip_blank_lines=False,
            skipinitialspace=True, index_col=False,
        )  # fmt: skip
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, ValueError, csv.Error) as error:
        said = str(error).strip().rpartition(": ")[2]
        raise InputError(f"The file is no table ({said:.80}): expected rows of as many cells as the first.") from error
    top, rest = frame.iloc[0], frame.iloc[1:]
    numeric = [name for name in frame.columns if _is_numeric(rest[name])]
    if any(_number(top[name]) for name in numeric):  # the first row is one of values
        frame.columns = pandas.Index([f"column {number + 1}" for number in range(frame.shape[1])])
        return frame, 1
    if rest.empty:
        raise InputError(f"The file has one row, {str(top[0])!r:.40}; expected a heading and a row for each step.")
    names: dict[str, int] = {}
    for number, cell in enumerate(top):
        name = " ".join(str(cell).split())[:60] if isinstance(cell, str) else f"column {number + 1}"
        names[name if name not in names else f"{name} ({number + 1})"] = number
    rest = rest.reset_index(drop=True)
    rest.columns = pandas.Index(list(names))
    return rest, 2


def _number(cell: object) -> bool:
    return isinstance(cell, str) and bool(pandas.notna(pandas.to_numeric(cell.replace(",", "."), errors="coerce")))


def _is_numeric(cells: pandas.Series) -> bool:
    """Whether most of the first cells are numbers."""
    first = cells.dropna().head(TRIED)
    return len(first) > 0 and sum(map(_number, first)) > len(first) / 2


def _table(frame: pandas.DataFrame, first: int, commas: bool, notes: list[str], words: Words) -> Table:
    head = [list(map(str, frame.columns))]
    head += [
        ["" if cell != cell else str(cell) for cell in row] for row in frame.head(SHOWN_ROWS).itertuples(index=False)
    ]
    rows = np.arange(first, first + len(frame))
    numeric = [name for name in frame.columns if _is_numeric(frame[name])]
    date_name, dates = _dates(frame)
    offered = [name for name in numeric if name != date_name][:OFFERED]
    if not offered:
        known = ", ".join(f"{name:.20}" for name in list(frame.columns)[:8])
        raise InputError(f"The file has no column of numbers among {known}: expected one with a number in every row.")
    if len(frame) > MAX_VALUES:
        notes.append(words("Of {rows:,} rows the last {most:,} are read.", rows=len(frame), most=MAX_VALUES))
        frame, rows = frame.iloc[-MAX_VALUES:], rows[-MAX_VALUES:]
        dates = None if dates is None else dates[-MAX_VALUES:]
    columns, wrong = {}, {}
    for name in offered:
        cells = frame[name].str.strip().replace("", np.nan)
        numbers = pandas.to_numeric(cells, errors="coerce")
        if commas and numbers.notna().sum() < cells.notna().sum():  # a decimal comma, as where cells are parted by ;
            numbers = pandas.to_numeric(cells.str.replace(",", ".", regex=False), errors="coerce")
        values = numbers.to_numpy(np.float64)
        bad = np.flatnonzero((np.isnan(values) & cells.notna().to_numpy()) | (np.abs(values) > MAX_SIZE))
        if bad.size:
            wrong[str(name)] = (int(rows[bad[0]]), str(cells.iloc[bad[0]]))
        columns[str(name)] = values
    return Table(columns, dates, rows, wrong, [row[:SHOWN_COLUMNS] for row in head], notes)


def _dates(frame: pandas.DataFrame) -> tuple[str | None, np.ndarray | None]:
    """The first column that is one of dates, its name and times; of both None where there is none."""
    for name in frame.columns:
        cells = frame[name]
        if cells.isna().any() or _number(cells.iloc[0]):
            continue
        try:
            times = pandas.to_datetime(cells.str.strip(), format="ISO8601", utc=True)
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue
        return str(name), times.dt.tz_localize(None).to_numpy("datetime64[s]")
    return None, None


def series_of(table: Table | None, column: str | None, words: Words = ENGLISH) -> Series:
    """A table's column as a series without gaps. Raises InputError where there is no file, no such column, a cell that
    is no number, dates that do not go on, or too many gaps."""
    if table is None:
        raise InputError("There is no file yet; upload a CSV, or choose another series.")
    if column is None or column not in table.columns:
        raise InputError(f"The column is {column!r:.40}; expected one of {', '.join(table.columns)}.")
    if column in table.wrong:
        row, cell = table.wrong[column]
        raise InputError(
            f"Row {row} of {column} is “{cell:.20}”; expected a number of at most {MAX_SIZE:,.0f} in size, or nothing."
        )
    values, times, spacing, step, notes = _evenly(table, table.columns[column], words)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 2:
        raise InputError(f"The column {column} has the length {len(known)}; expected at least 2 values.")
    values = values[known[0] : known[-1] + 1]
    gaps = int(np.isnan(values).sum())
    if gaps > FILLED * len(values):
        raise InputError(
            f"The column {column} has {gaps:,} gaps in {len(values):,} steps; expected at most {100 * FILLED:.0f} %: "
            "more would be guessing."
        )
    if gaps:
        notes.append(words("Gaps filled along straight lines: {gaps:,}.", gaps=gaps))
        count = np.arange(len(values))
        there = ~np.isnan(values)
        values = np.interp(count, count[there], values[there])
    if times is not None:
        times = times[known[0] : known[-1] + 1]
    history = values.astype(np.float32)
    return Series(history, history[:0], column, step, times, spacing, [*table.notes, *notes])


def _evenly(
    table: Table, values: np.ndarray, words: Words
) -> tuple[np.ndarray, np.ndarray | None, np.timedelta64 | None, str, list[str]]:
    """The values one a step, NaN at dates that are left out; their times, what lies between two, and what it is called.
    Without dates as they are."""
    dates = table.dates
    if dates is None or len(dates) < 2:
        return values, None, None, "value", []
    back = np.flatnonzero(np.diff(dates) <= np.timedelta64(0))
    if back.size:
        row = table.rows[back[0] + 1]
        raise InputError(
            f"Row {row} goes back to {dates[back[0] + 1]}; expected dates in order, each once: sort the rows, and join "
            "what belongs to one date."
        )
    for unit, name in (("M", "month"), ("Y", "year")):
        whole = dates.astype(f"datetime64[{unit}]")
        if (np.diff(whole).astype(int) == 1).all():
            return values, whole, np.timedelta64(1, unit), name, []  # type: ignore[call-overload]
    lengths, counts = np.unique(np.diff(dates).astype(int), return_counts=True)
    step = int(lengths[counts.argmax()])
    places = (dates - dates[0]).astype(int) / step
    if (places != np.round(places)).any():
        row = table.rows[np.flatnonzero(places != np.round(places))[0]]
        raise InputError(
            f"Row {row} is not a whole number of steps of {pandas.Timedelta(step, 's')} after the first date; expected "
            "even steps."
        )
    length = int(places[-1]) + 1
    if length > (1 + FILLED) * len(dates) + 1:
        raise InputError(
            f"The dates leave out {length - len(dates):,} of {length:,} steps of {pandas.Timedelta(step, 's')}; "
            f"expected at most {100 * FILLED:.0f} %: more would be guessing."
        )
    even = np.full(length, np.nan)
    even[places.astype(int)] = values
    missing = length - len(dates)
    notes = [words("Dates that the file leaves out: {missing:,}.", missing=missing)] if missing else []
    spacing = np.timedelta64(step, "s")
    names = {3600: "hour", 1800: "half-hour", 86400: "day", 604800: "week"}
    return even, dates[0] + np.arange(length) * spacing, spacing, names.get(step, "value"), notes


def preview(table: Table, words: Words = ENGLISH) -> str:
    """The first rows as HTML, and what was done to read them."""

    def row(cells: Sequence[str], kind: str) -> str:
        shown = (html.escape(cell if len(cell) <= SHOWN_CELL else cell[: SHOWN_CELL - 1] + "…") for cell in cells)
        return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in shown) + "</tr>"

    found = words("Rows: {rows:,}. Columns of numbers: {columns}.", rows=len(table.rows), columns=len(table.columns))
    said = html.escape(" ".join([found, *table.notes]))
    body = "".join(row(cells, "td") for cells in table.head[1:])
    return (
        f'<div class="preview"><p class="note">{said}</p><table><thead>{row(table.head[0], "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
