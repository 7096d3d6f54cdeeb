"""Scored tables, written in parts: CSV, TSV, JSON lines or Parquet, with the columns that go along and the answers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from seqexport.errors import InputError, UnsupportedError
from seqexport.orders import Order, kind_of
from seqexport.tabular import PYARROW, Chunk, Parquet, Rows, Source

ROW = "row"  # the column with the row's number in the data, from 0, behind the prefix

# What the values of a kept column may be in Parquet, of JSON lines; whatever else becomes its JSON text.
_JSON_TYPES = {bool: "bool_", int: "int64", float: "float64", str: "string"}


@dataclass(frozen=True)
class Answer:
    """A column of answers: texts, or float32 numbers in lists of `depth` levels."""

    name: str
    is_text: bool = False
    depth: int = 0


class Output:
    """What is written of each row: its number, the columns that go along, the answers.

    kept: the columns that go along; None for all that the row has (JSON lines to JSON lines). order: whether it names
    them, so that others are left out, and else a row with others does not fit; and the prefix.
    """

    def __init__(self, kept: Sequence[str] | None, answers: Sequence[Answer], order: Order) -> None:
        self.kept, self.answers, self.named, self.row = kept, answers, order.keep is not None, order.prefix + ROW

    def encode(self, numbers: Sequence[int], rows: Rows, answers: Sequence[tuple[Any, ...]]) -> bytes:
        """A part: the numbers of the rows, the rows themselves, and an answer for each column of answers."""
        names = [answer.name for answer in self.answers]
        listed = rows if isinstance(rows, list) else rows.to_pylist()
        table = []
        for number, row, answer in zip(numbers, listed, answers, strict=True):
            kept = row if self.kept is None else {name: row.get(name) for name in self.kept}
            table.append({self.row: number, **kept, **dict(zip(names, answer, strict=True))})
        return self._encode(table)

    def fit(self, row: dict[str, Any]) -> None:
        """Raise InputError for a row of JSON whose columns can't go along."""
        if self.kept is None:
            if taken := [name for name in [self.row, *(answer.name for answer in self.answers)] if name in row]:
                raise InputError(f"has a column {taken[0]!r}, as the answers do: choose another --prefix")
        elif not self.named and (others := [name for name in row if name not in self.kept]):
            raise InputError(f"has a column {others[0]!r:.40}, which the first rows lack: name the columns with --keep")

    def join(self, parts: Iterable[Path], file: IO[bytes]) -> None:
        """The parts, one after another, as one file."""
        file.write(self._head())
        for part in parts:
            file.write(part.read_bytes())

    def _encode(self, table: list[dict[str, Any]]) -> bytes:
        return "".join(f"{_json(row)}\n" for row in table).encode()

    def _head(self) -> bytes:
        return b""


class _Csv(Output):
    def __init__(self, kept: Sequence[str], answers: Sequence[Answer], order: Order, delimiter: str) -> None:
        super().__init__(kept, answers, order)
        self.delimiter = delimiter

    def _encode(self, table: list[dict[str, Any]]) -> bytes:
        return self._lines([_cell(value) for value in row.values()] for row in table)

    def _head(self) -> bytes:
        assert self.kept is not None
        return self._lines([[self.row, *self.kept, *(answer.name for answer in self.answers)]])

    def _lines(self, records: Iterable[Sequence[str]]) -> bytes:
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=self.delimiter, lineterminator="\n").writerows(records)
        return buffer.getvalue().encode()


class _Parquet(Output):
    """types: pyarrow's, of the kept columns; None for one whose values are written as their JSON text."""

    def __init__(self, kept: Sequence[str], answers: Sequence[Answer], order: Order, types: dict[str, Any]) -> None:
        import pyarrow as pa

        super().__init__(kept, answers, order)
        self.types = types
        fields = [(self.row, pa.int64()), *((name, types[name] or pa.string()) for name in kept)]
        for answer in answers:
            of = pa.string() if answer.is_text else pa.float32()
            for _ in range(answer.depth):
                of = pa.list_(of)
            fields.append((answer.name, of))
        self.schema = pa.schema(fields)

    def encode(self, numbers: Sequence[int], rows: Rows, answers: Sequence[tuple[Any, ...]]) -> bytes:
        """A part. What was read of Parquet goes along as it is."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        given = list(zip(*answers, strict=True)) or [()] * len(self.answers)
        arrays: list[Any] = [numbers]
        for name in self.kept or ():
            values = rows.column(name) if not isinstance(rows, list) else [self._value(name, row) for row in rows]
            arrays.append(values)
        columns = [
            values if isinstance(values, pa.ChunkedArray) else pa.array(list(values), field.type)
            for values, field in zip([*arrays, *given], self.schema, strict=True)
        ]
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_arrays(columns, schema=self.schema), buffer)
        return buffer.getvalue()

    def fit(self, row: dict[str, Any]) -> None:
        """Raise InputError for other columns, and for a value of another type, than the first rows have."""
        super().fit(row)
        for name in self.kept or ():
            value, of = row.get(name), self.types[name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits = {
                "bool": isinstance(value, bool),
                "int64": number and isinstance(value, int) and -(2**63) <= value < 2**63,
                "double": isinstance(value, float) or (isinstance(value, int) and number and abs(value) <= 2**53),
                "string": isinstance(value, str),
            }
            if value is not None and of is not None and not fits[str(of)]:
                raise InputError(f"{name} is {_json(value):.40}, which is no {of}, as it is in the first rows")

    def _value(self, name: str, row: dict[str, Any]) -> Any:
        value, of = row.get(name), self.types[name]
        if value is None or of is not None:
            return float(value) if value is not None and str(of) == "double" else value
        return _json(value)

    def join(self, parts: Iterable[Path], file: IO[bytes]) -> None:
        """The parts' tables, each a row group."""
        import pyarrow.parquet as parquet

        with parquet.ParquetWriter(file, self.schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part, schema=self.schema))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN or infinity, as Parquet may hold
        return json.dumps(_without_nan(value), ensure_ascii=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _json(value) if isinstance(value, (bool, list, dict)) else str(value)


def make_output(order: Order, source: Source, first: Chunk, answers: Sequence[Answer]) -> Output:
    """How the order's output is written. Raises InputError for columns that are not there, or of one name with another,
    and UnsupportedError for what the output can't hold."""
    kind = kind_of(order.output)
    known = source.columns
    free = known is None and order.keep is None and kind == "jsonl"
    if known is None:
        assert isinstance(first.rows, list)
        known = list(dict.fromkeys(key for row in first.rows for key in row))
    kept = list(known if order.keep is None else order.keep)
    missing = [name for name in kept if name not in known]
    if missing:
        raise InputError(f"There is no column {missing[0]!r} to keep; {order.data} has {', '.join(known):.400}.")
    taken = [name for name in [order.prefix + ROW, *(answer.name for answer in answers)] if name in kept]
    if taken:
        raise InputError(
            f"{order.data} has a column {taken[0]!r}, as the answers do: leave it out with --keep, or name the answers "
            "otherwise with --prefix."
        )
    if kind == "parquet":
        return _Parquet(kept, answers, order, _types(source, first, kept))
    for name in kept if isinstance(source, Parquet) else ():
        of = str(source.schema.field(name).type)  # type: ignore[attr-defined]
        if "binary" in of:
            raise UnsupportedError(
                f"The column {name!r} is {of}, which only Parquet holds: leave it out with --keep, or write Parquet."
            )
    if kind == "jsonl":
        return Output(None if free else kept, answers, order)
    return _Csv(kept, answers, order, "\t" if kind == "tsv" else ",")


def _types(source: Source, first: Chunk, kept: Sequence[str]) -> dict[str, Any]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UnsupportedError(f"Parquet takes pyarrow, which is not installed: {PYARROW}.") from error
    if isinstance(source, Parquet):
        return {name: source.schema.field(name).type for name in kept}
    assert isinstance(first.rows, list)
    types: dict[str, Any] = {}
    for name in kept:
        found = {type(row[name]) for row in first.rows if row.get(name) is not None}
        if found == {int, float}:
            found = {float}
        of = found.pop() if len(found) == 1 else None
        types[name] = getattr(pa, _JSON_TYPES[of])() if of in _JSON_TYPES else None
    return types
