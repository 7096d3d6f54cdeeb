"""Tables that are read by the chunk, from any place on: plain text, CSV, JSON lines and Parquet.

Memory does not grow with the number of rows. A row that can't be read is set aside with its reason, and the next is
read. Where a chunk ends depends on the file alone, so that whoever reads it, and whenever, reads the same.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from seqexport.errors import FileError, InputError, UnsupportedError
from seqexport.orders import kind_of
from seqexport.specs import check_whole

if TYPE_CHECKING:
    import pyarrow

MOST_BYTES = 2**22  # of a row: what is longer is set aside, not read
CHUNK_BYTES = 2**25  # of a chunk, which ends early where its rows are long

Place: TypeAlias = tuple[int, int]  # bytes into the file (of Parquet: rows), and the number of the row there
Rows: TypeAlias = "list[dict[str, Any]] | pyarrow.Table"
PYARROW = "python -m pip install 'seqexport[score]'"


@dataclass
class Chunk:
    """Consecutive rows. numbers: of those that could be read, from 0 in the file. rejected: (number, reason) of the
    others. count: of both. after: where the next chunk starts; None behind the last."""

    numbers: list[int]
    rows: Rows
    rejected: list[tuple[int, str]]
    count: int
    after: Place | None


class Source:
    """A table. size: how far a place goes. columns: their names, where the file itself says them. start: its first row.

    Raises FileError for a file that can't be read, InputError for one that is no table of its kind.
    """

    columns: Sequence[str] | None = None
    start: Place = (0, 0)
    size: int

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count

    def read(self, place: Place, parse: bool = True) -> Chunk:
        """The chunk that starts there; without `parse` only where it ends, and no rows."""
        raise NotImplementedError

    def only(self, columns: Sequence[str]) -> None:
        """Read no others, where that spares something."""

    def fitting(self, rows: Rows, fits: Callable[[Any], bool]) -> list[str]:
        """The columns of which a value in these rows fits, by their first value."""
        names = list(self.columns if self.columns is not None else dict.fromkeys(key for row in rows for key in row))
        firsts = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in names}
        return [name for name, value in firsts.items() if fits(value)]


class _Lines:
    """The lines of a file, as text; `taken` counts bytes. Between two calls of `begin` lies a record."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.taken, self.size, self.garbled = file, 0, 0, ""
        self.first = 0  # where the record's first line ends

    def begin(self) -> None:
        self.size, self.garbled = 0, ""

    def only_first(self) -> None:
        """Go back to the end of the record's first line: what follows it may be sound."""
        self.file.seek(self.first - self.taken, 1)
        self.taken = self.first

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MOST_BYTES)
        if not line:
            raise StopIteration
        is_first = not self.size
        self._count(line)
        if self.size >= MOST_BYTES:
            while line and not line.endswith(b"\n"):
                line = self.file.readline(MOST_BYTES)
                self._count(line)
            self.first = self.taken if is_first else self.first
            raise InputError(f"has {self.size:,} bytes (or a quote that nothing closes); at most {MOST_BYTES:,}")
        self.first = self.taken if is_first else self.first
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.garbled = f"is not UTF-8 (byte 0x{line[error.start]:02x})"
            return line.decode(errors="replace")

    def _count(self, line: bytes) -> None:
        self.taken += len(line)
        self.size += len(line)


class TextLines(Source):
    """A text a line, in the column `text`; the base of all that is made of lines."""

    columns: Sequence[str] | None = ("text",)

    def __init__(self, path: Path, count: int) -> None:
        super().__init__(path, count)
        self.size = path.stat().st_size
        with path.open("rb") as file:
            self.start = (3 if file.read(3) == b"\xef\xbb\xbf" else 0, 0)

    def read(self, place: Place, parse: bool = True) -> Chunk:
        """The chunk that starts there."""
        offset, first = place
        numbers, rows, rejected = [], [], []
        number, ended = first, False
        with self.path.open("rb") as file:
            file.seek(offset)
            lines = _Lines(file)
            records = self._records(lines)
            while number < first + self.count and lines.taken < CHUNK_BYTES:
                lines.begin()
                split = False  # whether the record's lines were told from the others
                try:
                    record = next(records)
                    if lines.garbled:
                        split = True
                        raise InputError(lines.garbled)
                    if parse:
                        rows.append(self._row(record))
                        numbers.append(number)
                except StopIteration:
                    ended = True
                    break
                except (InputError, csv.Error) as error:
                    reason = f"is not CSV ({error})" if isinstance(error, csv.Error) else str(error)
                    rejected.append((number, reason))
                    if not split:
                        lines.only_first()
                number += 1
            ended = ended or not file.read(1)
        after = None if ended else (offset + lines.taken, number)
        return Chunk(numbers, rows, rejected, number - first, after)

    def _records(self, lines: _Lines) -> Iterator[Any]:
        return lines

    def _row(self, record: Any) -> dict[str, Any]:
        return {"text": record.removesuffix("\n").removesuffix("\r")}


class JsonLines(TextLines):
    """A JSON object a line."""

    columns = None

    def _row(self, record: str) -> dict[str, Any]:
        if record.isspace():
            raise InputError("is an empty line")
        try:
            row = json.loads(record, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not JSON ({error or 'too deep'})") from error
        if not isinstance(row, dict):
            raise InputError(f'is a {type(row).__name__}; expected a JSON object, such as {{"text": "…"}}')
        if "\\ud" in record.lower():  # an escape that may be half a character
            check_whole(json.dumps(row, ensure_ascii=False))
        return row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Csv(TextLines):
    """A header and records, split by Python's csv: it tells of every record where it ends and what is wrong with it."""

    def __init__(self, path: Path, count: int, delimiter: str) -> None:
        super().__init__(path, count)
        csv.field_size_limit(MOST_BYTES)
        self.delimiter = delimiter
        with path.open("rb") as file:
            file.seek(self.start[0])
            lines = _Lines(file)
            try:
                self.columns = tuple(next(self._records(lines), ()))
            except (InputError, csv.Error) as error:
                raise InputError(f"{path}: the header {error}; expected the columns' names.") from error
            self.start = (self.start[0] + lines.taken, 0)
        if lines.garbled:
            raise InputError(f"{path}: the header {lines.garbled}; save the file as UTF-8.")
        if not all(self.columns) or not self.columns or len(set(self.columns)) < len(self.columns):
            raise InputError(f"{path} has the header {list(self.columns)!r:.200}; expected a name a column, each once.")

    def _records(self, lines: _Lines) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.delimiter, strict=True)

    def _row(self, record: list[str]) -> dict[str, Any]:
        assert self.columns is not None
        if len(record) != len(self.columns):
            found = f"has {len(record)} fields" if record else "is an empty line"
            raise InputError(f"{found}; expected {len(self.columns)}")
        return dict(zip(self.columns, record, strict=True))


class Parquet(Source):
    """A Parquet file. Its chunks have all the same number of rows, fewer where the rows are long."""

    def __init__(self, path: Path, count: int) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UnsupportedError(f"Parquet takes pyarrow, which is not installed: {PYARROW}.") from error
        super().__init__(path, count)
        try:
            # Read as it is needed, and not whole row groups ahead: they may be as large as the file.
            self.file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        except Exception as error:  # pyarrow's are OSError, ValueError and others
            raise FileError(f"{path} could not be read as Parquet ({str(error).splitlines()[0]:.200}).") from error
        about = self.file.metadata
        groups = [about.row_group(place) for place in range(about.num_row_groups)]
        self.schema = self.file.schema_arrow
        self.columns, self.size = tuple(self.schema.names), about.num_rows
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"{path} has two columns of one name; expected each once: {', '.join(self.columns):.200}.")
        self.starts = [0, *itertools.accumulate(group.num_rows for group in groups)][:-1] or [0]
        each = sum(group.total_byte_size for group in groups) // max(1, self.size)
        self.count = min(count, max(1, CHUNK_BYTES // max(1, each)))
        self._ahead: tuple[int, Iterator[Any]] = (-1, iter(()))

    def only(self, columns: Sequence[str]) -> None:
        """Read no others."""
        self.columns = tuple(columns)
        self._ahead = (-1, iter(()))

    def fitting(self, rows: Rows, fits: Callable[[Any], bool]) -> list[str]:
        """The columns of which a value in these rows fits."""
        return super().fitting(rows.slice(0, 1000).to_pylist(), fits)  # type: ignore[union-attr]

    def read(self, place: Place, parse: bool = True) -> Chunk:
        """The chunk that starts there; one after another, each is decoded once."""
        first = place[0]
        stop = min(first + self.count, self.size)
        after = (stop, stop) if stop < self.size else None
        if not parse or first == stop:
            return Chunk([], [], [], stop - first, after)
        try:
            table = self._table(first, stop - first)
            bad = _garbled(table)
        except Exception as error:  # pyarrow's are OSError, ValueError and others
            raise FileError(
                f"{self.path} is damaged in its rows {first:,} to {stop - 1:,} ({str(error).splitlines()[0]:.200})."
            ) from error
        if not bad:
            return Chunk(list(range(first, stop)), table, [], stop - first, after)
        places = [place for place in range(stop - first) if place not in bad]
        rejected = [(first + place, reason) for place, reason in sorted(bad.items())]
        return Chunk([first + place for place in places], table.take(places), rejected, stop - first, after)

    def _table(self, first: int, count: int) -> pyarrow.Table:
        import pyarrow as pa

        at, batches = self._ahead if self._ahead[0] == first else (first, self._batches(first))
        pieces = []
        while count:
            batch = next(batches)
            pieces.append(batch.slice(0, count))
            if batch.num_rows > count:
                batches = _chained(batch.slice(count), batches)
            at, count = at + pieces[-1].num_rows, count - pieces[-1].num_rows
        self._ahead = (at, batches)
        return pa.Table.from_batches(pieces)

    def _batches(self, first: int) -> Iterator[Any]:
        """The rows from the first on. Those of its row group that come before are decoded too."""
        group = bisect.bisect_right(self.starts, first) - 1
        skip, groups = first - self.starts[group], range(group, len(self.starts))
        how: dict[str, Any] = {"columns": self.columns, "use_threads": False}
        for batch in self.file.iter_batches(min(self.count, 2**15), groups, **how):
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)


def _chained(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


def _garbled(table: pyarrow.Table) -> dict[int, str]:
    """Place → reason, of the rows with a text that is none. Parquet holds whatever bytes its writer called a text."""
    import pyarrow as pa

    found: dict[int, str] = {}
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        for name in table.column_names:
            for place, value in enumerate(table.column(name)):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    found[place] = f"{name} is not UTF-8 ({error.reason})"
        if not found:
            raise
    return found


_STARTS = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "zstandard"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def open_source(name: str, count: int) -> Source:
    """The table of that name, its kind by its suffix, in chunks of so many rows."""
    path, kind = Path(name), kind_of(name)
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder; expected one file: score its files one by one.")
        if not path.is_file():
            raise FileError(f"There is no file {path}: give a table, .csv, .jsonl, .parquet or .txt.")
        with path.open("rb") as file:
            start = file.read(4)
        for sign, what in _STARTS.items():
            if start.startswith(sign):
                raise FileError(f"{path} is {what} inside, which is not read: unpack it first.")
        if start.startswith(_UTF16):
            raise FileError(f"{path} is UTF-16; expected UTF-8: save it so.")
        if (start == b"PAR1") != (kind == "parquet"):
            found = "Parquet" if start == b"PAR1" else "no Parquet"
            raise FileError(f"{path} is {found} inside; expected what its name says: rename it.")
        if kind == "parquet":
            return Parquet(path, count)
        if kind in ("csv", "tsv"):
            return Csv(path, count, "\t" if kind == "tsv" else ",")
        return JsonLines(path, count) if kind == "jsonl" else TextLines(path, count)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror}).") from error
