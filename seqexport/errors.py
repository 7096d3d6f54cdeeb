"""What can go wrong, each kind with the exit code that the command line gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqexport.reports import Report


class SeqExportError(Exception):
    """Base of every error that is meant for a person: one sentence of what was found, what was expected, what to do."""

    exit_code = 2


class SpecError(SeqExportError):
    """An input spec or a network description that makes no sense."""


class CheckpointError(SeqExportError):
    """A checkpoint that is missing, damaged, not trusted, or not a recurrent net."""


class UnsupportedError(SeqExportError):
    """A model that is fine as such, but that seqexport cannot export."""


class InputError(SeqExportError):
    """Values given to a runtime that do not fit the model: name, type, shape, or not a number."""


class FileError(SeqExportError):
    """A file that could not be read or written, or that does not belong to the file beside it."""


class ParityError(SeqExportError):
    """The exported file does not give what torch gives. Nothing was written; `report` says where they differ."""

    exit_code = 1

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
