"""How a verification came out: the tolerance with its reason, one outcome a case, properties, and the report of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seqexport.errors import ParityError

# float32 rounds at 6e-8. Over all configurations of training/coverage.py, with random weights, the worst seen is 7.3e-7
# (an Elman net with relu, 3 layers); trained nets amplify, the worst of the shipped ones and of those that packages
# publish being 6.2e-6. So this is under ten times the grid's worst, and above what right files were seen to have.
TOLERANCE = 7e-6
# Up to here, the most that the definition of an error allows (README), a case passes where torch itself is half as far
# or more from its own float64: a published speaker encoder (LSTM 3×256, 257 steps) is 5.8e-6 from torch, torch with
# oneDNN 7.2e-6 from float64, and without 3.6e-5 at 40 steps, so that other processors may see more than these.
EXPLAINED = 1e-5


@dataclass(frozen=True)
class Stage:
    """How far an export is. at: of `verify`, the number of the case that comes now, of `count`."""

    doing: Literal["read", "trace", "verify", "int8"]
    part: str = ""
    at: int = 0
    count: int = 0

    def __str__(self) -> str:
        doing = {"read": "reading", "trace": "tracing", "verify": f"verifying, case {self.at} of {self.count}"}
        return f"{self.part}: {doing[self.doing]}" if self.doing in doing else "making int8"


@dataclass(frozen=True)
class Outcome:
    """How one case came out: the error of each output (NaN or infinite where it could not be compared at all).

    decided: how many labels and tokens were compared, by their noun. ties: those that differ within the tolerance.
    explained: whether torch's own rounding was found to be of the size of the errors.
    """

    part: str
    case: str
    errors: Mapping[str, float]
    notes: tuple[str, ...] = ()
    decided: Mapping[str, int] = field(default_factory=dict)
    ties: tuple[str, ...] = ()
    explained: bool = False

    def passed(self, tolerance: float) -> bool:
        """Whether every error is within the tolerance; written so that NaN is not."""
        allowed = max(tolerance, EXPLAINED) if self.explained else tolerance
        return bool(self.errors) and all(error <= allowed for error in self.errors.values())


@dataclass(frozen=True)
class Property:
    """Something that holds for every input, and how it came out over its trials.

    claim: what is held, in a sentence. error: the worst; allowed: how much may be, for the reason beside it. applies:
    whether torch itself has the property; where it has not, nothing is asked of the file.
    notes: what a person should know. curves: what is on the axis ("steps"), and a line for each name.
    """

    part: str
    name: str
    claim: str
    trials: int
    error: float
    allowed: float = TOLERANCE
    reason: str = "the tolerance for float32"
    applies: bool = True
    notes: tuple[str, ...] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether it holds; written so that NaN does not."""
        return not self.applies or bool(self.trials > 0 and self.error <= self.allowed)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        curves = {name: [_plain(float(value)) for value in line] for name, line in self.curves.items()}
        plain = {"error": _plain(float(self.error)), "notes": list(self.notes), "curves": curves}
        return {**vars(self), **plain, "held": self.held}


@dataclass(frozen=True)
class Sample:
    """What both runtimes gave for the same input, to be looked at side by side: texts, or lines of numbers."""

    part: str
    about: str
    torch: Any
    onnxruntime: Any


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written: bytes, opset, and nodes (those of loop bodies among them).

    int8_bytes: how many of its weights' bytes (weight_bytes) are int8; both 0 for a float32 file.
    """

    part: str
    path: str
    bytes: int
    opset: int
    nodes: int
    int8_bytes: int = 0
    weight_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """What was found, written and compared; properties and samples of a thorough verification.

    identity: the checkpoint's sha256 and the versions of what made and what read the file.

    Errors are |a - b| / max(1, max|reference|), torch being the reference.
    """

    outcomes: tuple[Outcome, ...]
    tolerance: float = TOLERANCE
    source: str = ""
    found: str = ""
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    files: tuple[WrittenFile, ...] = ()
    seconds: float = 0.0
    properties: tuple[Property, ...] = ()
    samples: tuple[Sample, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether anything was tried, every case is within the tolerance, and every property holds."""
        agrees = all(outcome.passed(self.tolerance) for outcome in self.outcomes)
        return bool(self.outcomes or self.properties) and agrees and all(tried.held for tried in self.properties)

    @property
    def max_abs_error(self) -> float:
        """The worst error over all cases and outputs."""
        return _worst(error for outcome in self.outcomes for error in outcome.errors.values())

    def worst(self) -> dict[tuple[str, str], float]:
        """(part, output) → its worst error over all cases."""
        errors: dict[tuple[str, str], list[float]] = {}
        for outcome in self.outcomes:
            for name, error in outcome.errors.items():
                errors.setdefault((outcome.part, name), []).append(error)
        return {key: _worst(values) for key, values in errors.items()}

    def failures(self) -> list[Outcome]:
        """The cases that did not pass."""
        return [outcome for outcome in self.outcomes if not outcome.passed(self.tolerance)]

    def explained(self) -> list[Outcome]:
        """The cases beyond the tolerance that torch's own rounding explains."""
        return [outcome for outcome in self.outcomes if outcome.explained]

    def decided(self) -> dict[str, int]:
        """Noun (labels, tokens) → how many decisions were compared."""
        counts: dict[str, int] = {}
        for outcome in self.outcomes:
            for noun, count in outcome.decided.items():
                counts[noun] = counts.get(noun, 0) + count
        return counts

    def ties(self) -> list[str]:
        """The decisions that differ, within the tolerance."""
        return [tie for outcome in self.outcomes for tie in outcome.ties]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types; an error that is not finite becomes a string."""
        return {
            "passed": self.passed,
            "max_abs_error": _plain(self.max_abs_error),
            "tolerance": self.tolerance,
            "source": self.source,
            "found": self.found,
            "notes": list(self.notes),
            "unused": list(self.unused),
            "files": [vars(file) for file in self.files],
            "seconds": round(self.seconds, 3),
            "decided": self.decided(),
            "ties": self.ties(),
            "worst": [
                {"part": part, "output": output, "error": _plain(error)}
                for (part, output), error in self.worst().items()
            ],
            "cases": [
                {
                    "part": outcome.part,
                    "case": outcome.case,
                    "passed": outcome.passed(self.tolerance),
                    "errors": {name: _plain(error) for name, error in outcome.errors.items()},
                    "notes": list(outcome.notes),
                }
                for outcome in self.outcomes
            ],
            "properties": [tried.to_dict() for tried in self.properties],
            "samples": [vars(sample) for sample in self.samples],
            "identity": dict(self.identity),
        }


def _worst(errors: Any) -> float:
    """The largest error; NaN, which compares with nothing, counts as the worst."""
    return max(errors, key=sortable, default=math.nan)


def _plain(error: float) -> float | str:
    return error if math.isfinite(error) else str(error)


def require(report: Report, what: str) -> None:
    """Raise ParityError, naming the worst case, unless the report passed."""
    if report.passed:
        return
    failures = report.failures()
    if not report.outcomes:
        raise ParityError(f"{what} was not verified: there was no case to run.", report)
    if not failures:
        tried = next(tried for tried in report.properties if not tried.held)
        note = f" ({tried.notes[0]})" if tried.notes else ""
        raise ParityError(
            f"{what} has not the property “{tried.name}”, that {tried.claim}: found a difference of {tried.error:.2g}"
            f"{note}, expected at most {tried.allowed:.0e}: do not use the file, and report it.",
            report,
        )
    worst = max(failures, key=lambda outcome: sortable(_worst(outcome.errors.values())))
    error = _worst(worst.errors.values())
    note = f" ({worst.notes[0]})" if worst.notes else ""
    raise ParityError(
        f"{what} differs from torch in {len(failures)} of {len(report.outcomes)} cases, at worst by {error:.2g} at "
        f"{worst.part}, {worst.case}{note}; expected at most {report.tolerance:.0e}: nothing was written.",
        report,
    )


def sortable(error: float) -> float:
    """NaN, which compares with nothing, as the worst."""
    return math.inf if math.isnan(error) else error
