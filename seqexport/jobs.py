"""A table that is being scored: chunks that are done lie as parts in a folder beside the output, the rest is to do.

A chunk is done when the note of it is there, which is written after its part, each in one step. So whoever is killed,
and whenever, has done whole chunks: the next run does the others. In the end the parts become the output, in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from seqexport import __version__
from seqexport.errors import FileError, InputError, UnsupportedError
from seqexport.files import alone, check_destination, is_checkpoint, put_in_place, replace_file, write_beside
from seqexport.isolation import open_apart
from seqexport.orders import Order
from seqexport.outputs import Output, make_output
from seqexport.peers import load
from seqexport.runtimes import Runtime, located, onnx_metadata, pipeline_path
from seqexport.scoring import Question, answer, make_question
from seqexport.specs import PIPELINES
from seqexport.tabular import Chunk, Place, Rows, Source, open_source

FORMAT = "seqexport-score/1"
HEAD = 2**20  # bytes of the data that are part of its identity, besides its size and time


@dataclass(frozen=True)
class Done:
    """The note of a chunk. rows: of the data. scored: of them. after: where the next one starts. by: who did it."""

    rows: int
    scored: int
    bytes: int
    after: Place | None
    rejected: list[tuple[int, str]]
    by: str


class Job:
    """An order, with its model loaded and its table opened. Each process has its own; the folder is what they share.

    isolated: open the model's file in a child process first. Raises FileError, InputError or UnsupportedError for what
    can't be scored, before anything is written.
    """

    def __init__(self, order: Order, isolated: bool = False) -> None:
        self.order, self.target = order, Path(order.output)
        self.folder = self.target.with_name(self.target.name + ".parts")
        self.rejects = self.target.with_name(self.target.name + ".rejected.jsonl")
        if self.target.resolve() in (Path(order.data).resolve(), Path(order.model).resolve()):
            raise InputError(f"The output {self.target} is what is read: choose another.")
        for path in (self.target, self.rejects):
            check_destination(path)
        self.source: Source = open_source(order.data, order.chunk)
        first = self.source.read(self.source.start)
        if not first.count:
            raise InputError(f"{order.data} has no rows; give at least one.")
        self.model, self._file = _load(order, isolated)
        self.question: Question = make_question(self.model, order)
        self.column = _column(order, self.question, self.source, first)
        self.output: Output = make_output(order, self.source, first, self.question.answers)
        if self.source.columns is not None:
            self.source.only(list(dict.fromkeys([*(self.output.kept or ()), self.column])))

    # Who the job is, and what was done of it.

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the parts in a folder belong to: a model, data, options. A digest of it is in their names."""
        return {
            "format": FORMAT,
            "seqexport": __version__,
            "model": _digest(self._file),
            "runtime": self.model.name,
            "data": self._data(),
            **self.order.deciding(),
            "column": self.column,
        }

    @cached_property
    def _tag(self) -> str:
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:12]

    def _data(self) -> list[Any]:
        about = Path(self.order.data).stat()
        return [about.st_size, about.st_mtime_ns, _digest(Path(self.order.data), HEAD)]

    @contextlib.contextmanager
    def begun(self, restart: bool) -> Iterator[dict[str, Any] | None]:
        """Have the folder to oneself, made or gone on with; with what an earlier run left if it was only not tidied up.

        Raises FileError for a folder of another job, of something else, or that another process is at work in.
        """
        strangers = self._strangers()
        if strangers:
            raise FileError(
                f"{self.folder} holds {strangers[0]}, which is not of score: move it, or choose another OUT."
            )
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(f"The folder {self.folder} could not be made ({error.strerror}).") from error
        with alone(self.folder / "lock"):
            earlier, identity = self._manifest(), self.identity
            other = next((name for name, value in identity.items() if earlier.get("job", {}).get(name) != value), None)
            finished = earlier.get("finished")
            if earlier and other and not (restart or finished):
                raise FileError(
                    f"{self.folder} holds what was scored with another {other}: give --restart to throw it away, "
                    "the former options to go on, or another OUT."
                )
            if restart or (finished and (other or not self.target.exists())):
                self._empty()
                finished = None
            if not finished:
                self._remember({"job": identity})
            yield finished

    def _strangers(self) -> list[str]:
        if self.folder.exists() and not self.folder.is_dir():
            return ["no folder"]
        ours = re.compile(r"lock|\.?(manifest|part-\d{8}-[0-9a-f]{12})\.(json|data)(\.[0-9a-f]+\.seqexport\.tmp)?")
        names = [entry.name for entry in os.scandir(self.folder)] if self.folder.exists() else []
        return [name for name in names if not ours.fullmatch(name)]

    def _manifest(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / "manifest.json").read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def _remember(self, manifest: dict[str, Any]) -> None:
        replace_file(self.folder / "manifest.json", json.dumps(manifest).encode())

    def _empty(self) -> None:
        """Delete the parts, and the manifest last, so that one killed in between is still known."""
        for entry in [*os.scandir(self.folder)]:
            if entry.name not in ("manifest.json", "lock"):
                Path(entry.path).unlink()
        (self.folder / "manifest.json").unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:08}-{self._tag}.data"

    def done(self, number: int) -> Done | None:
        """The note of a chunk, None where it is to do."""
        try:
            fields = json.loads(self._part(number).with_suffix(".json").read_bytes())
            note = Done(**fields)
            whole = self._part(number).stat().st_size == note.bytes
        except (OSError, ValueError, TypeError):
            return None
        return note if whole else None

    # What is done with a chunk.

    def chunks(self) -> Iterator[tuple[int, Place, Done | None]]:
        """Every chunk's number, where it starts, and its note; one that is to do is looked for its end."""
        number, place = 0, self.source.start
        while place is not None:
            note = self.done(number)
            yield number, place, note
            note = note or self.done(number)  # by now
            after = note.after if note else self.source.read(place, parse=False).after
            number, place = number + 1, after if after is None else tuple(after)  # type: ignore[assignment]

    def do(self, number: int, place: Place) -> Done:
        """Score a chunk, unless it is done, and keep it."""
        if note := self.done(number):
            return note
        chunk = self._fitting(self.source.read(place))
        found, refused = answer(self.question, chunk.numbers, _values(chunk.rows, self.column))
        rejected = sorted([*chunk.rejected, *((row, f"{self.column} {_about(reason)}") for row, reason in refused)])
        places = sorted(found)
        rows = _taken(chunk.rows, places) if len(places) < len(chunk.numbers) else chunk.rows
        numbers = [chunk.numbers[place] for place in places]
        part = self.output.encode(numbers, rows, [found[place] for place in places])
        replace_file(self._part(number), part)
        by = f"{socket.gethostname()}:{os.getpid()}"
        note = Done(chunk.count, len(places), len(part), chunk.after, rejected, by)
        replace_file(self._part(number).with_suffix(".json"), json.dumps(note.__dict__).encode())
        return note

    def _fitting(self, chunk: Chunk) -> Chunk:
        """Without the rows of JSON whose columns can't go along."""
        if self.source.columns is not None or not isinstance(chunk.rows, list):
            return chunk
        numbers, rows, rejected = [], [], list(chunk.rejected)
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            try:
                self.output.fit(row)
            except InputError as error:
                rejected.append((number, str(error)))
            else:
                numbers.append(number)
                rows.append(row)
        return Chunk(numbers, rows, rejected, chunk.count, chunk.after)

    # The end.

    def finish(self) -> dict[str, Any]:
        """Put the parts together as the output, and the rejected rows beside it, and tidy up. Gives the counts.

        Raises FileError where the data changed meanwhile, InputError where no row could be scored; then only the
        rejected rows are written.
        """
        if self._data() != self._manifest().get("job", {}).get("data"):
            raise FileError(f"{self.order.data} was changed while it was scored: give --restart to score it as it is.")
        counts, parts, reason = {"rows": 0, "scored": 0, "rejected": 0}, 0, None
        for _, _, note in self.chunks():
            if note is None:  # it was there when its engine ended
                raise FileError(f"A part vanished from {self.folder}: give the same command again.")
            parts += 1
            for name, more in (("rows", note.rows), ("scored", note.scored), ("rejected", len(note.rejected))):
                counts[name] += more
            reason = reason or next(iter(note.rejected), None)
        drafts = []
        try:
            if reason:
                drafts.append(write_beside(self.rejects, self._write_rejects))
            if counts["scored"]:
                files = map(self._part, range(parts))
                drafts.append(write_beside(self.target, lambda file: self.output.join(files, file)))
            put_in_place(drafts)
        finally:
            for draft in drafts:
                draft.drop()
        if not reason:
            self.rejects.unlink(missing_ok=True)  # an earlier run's
        if not counts["scored"]:
            assert reason is not None
            self.tidy()
            raise InputError(
                f"None of the {counts['rows']:,} rows could be scored, the first, row {reason[0]}, "
                f"since it {reason[1]}: all reasons are in {self.rejects}."
            )
        self._remember(self._manifest() | {"finished": counts})
        self.tidy()
        return counts

    def tidy(self) -> None:
        """Delete the folder."""
        self._empty()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_rejects(self, file: BinaryIO) -> None:
        for _, _, note in self.chunks():
            for row, reason in note.rejected if note else ():
                file.write(
                    json.dumps({"row": row, "reason": reason}, ensure_ascii=False).encode(errors="backslashreplace")
                    + b"\n"
                )


def _about(reason: str) -> str:
    """A reason that is a sentence of its own, after the column's name."""
    return reason if reason[:1].islower() else f"can't be read: {reason}"


def _digest(path: Path, most: int = -1) -> str:
    with path.open("rb") as file:
        return (
            hashlib.sha256(file.read(most)).hexdigest() if most > 0 else hashlib.file_digest(file, "sha256").hexdigest()
        )


def _load(order: Order, isolated: bool) -> tuple[Runtime, Path]:
    """The model, and the file that it lies in."""
    path, pipeline = Path(order.model), order.pipeline
    if pipeline not in (None, "network", *PIPELINES):
        raise UnsupportedError(f"There is no pipeline {pipeline!r}; expected network, {', '.join(PIPELINES)}.")
    if isolated:
        open_apart(path)
    checkpoint = is_checkpoint(path)
    if pipeline is None:
        about = load(path).metadata if checkpoint else onnx_metadata(path)
        task = about.get("task")
        network = checkpoint or (about.get("part") == "network" and pipeline_path(path, str(task)).is_file())
        pipeline = task if network and task in PIPELINES else "network"
    asked = None if pipeline == "network" else pipeline
    model = load(path, order.runtime, pipeline=asked, threads=order.threads, isolated=isolated)
    return model, path if checkpoint else located(path, asked, int8=order.runtime == "onnxruntime-int8")


def _column(order: Order, question: Question, source: Source, first: Chunk) -> str:
    """The column that the model reads: the one named; or named as usual; or the only one that fits."""
    fitting = source.fitting(first.rows, question.fits)
    known = source.columns if source.columns is not None else source.fitting(first.rows, lambda value: True)
    shown, what = ", ".join(map(str, known))[:400], f"{order.data} has the columns"
    if order.column is not None:
        if order.column not in known:
            raise InputError(f"There is no column {order.column!r}; {what} {shown}.")
        return order.column
    usual = [name for name in (question.column, "text") if name in fitting]
    if usual or len(fitting) == 1:
        return (usual or fitting)[0]
    if not fitting:
        raise InputError(f"{what} {shown}, and none of them, in the first rows, is what {question.part} reads.")
    raise InputError(f"{what} {shown}, of which {len(fitting)} may be what {question.part} reads: give --column.")


def _values(rows: Rows, column: str) -> list[Any]:
    if isinstance(rows, list):
        return [row.get(column) for row in rows]
    values: list[Any] = rows.column(column).to_pylist()
    return values


def _taken(rows: Rows, places: list[int]) -> Rows:
    return [rows[place] for place in places] if isinstance(rows, list) else rows.take(places)
