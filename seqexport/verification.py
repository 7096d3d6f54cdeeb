"""Is the exported file right? The cases, the tolerance with its reason, and the report.

Every case runs the torch module and the exported file on the same values and compares every output: shape first, then
dtype, then numbers. Shapes are never only the example's, state is zero and random, and chunks with carried state are
held against the whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqexport.errors import ParityError
from seqexport.runtimes import Runtime
from seqexport.specs import TensorSpec, dynamic_dims

# float32 rounds at 6e-8. Over the 192 configurations of tests/test_recurrent.py at the sizes below, the worst seen is
# 7.3e-7 (a deep relu RNN); LSTM and GRU stay under 4.5e-7. The shipped RNN, trained, has 1.3e-6. This is seven times
# the first, so that another processor's order of summation passes.
TOLERANCE = 5e-6

# Sizes of the dynamic dims, in the order in which the inputs name them (batch, time, and what follows, such as paths
# and horizon): 1×1, batch 1, time 1, and a time far beyond the example's are all there.
SIZES = (
    (1, 1, 1, 1),
    (1, 2, 3, 12),
    (3, 1, 1, 2),
    (3, 5, 4, 6),
    (1, 40, 2, 24),
    (7, 11, 1, 1),
    (16, 3, 5, 3),
    (2, 257, 2, 9),
)
CHUNKS = ((1, 11), (6, 6), (5, 1, 6), (1,) * 12)
SEED = 20


@dataclass(frozen=True)
class Subject:
    """What a graph takes and how it may be fed.

    part: network, or the name of a pipeline, or module. state_map: state input → the output fed back to it.
    chunked: the input that may be given in chunks along its dim "time", carrying the state; None where it may not.
    per_step: outputs with a value a step, and their time axis; of the others the last chunk's counts.
    unchunked: outputs that a chunk can't give, such as a mean over all steps.
    prepare: input name → what makes realistic values out of standard normal ones.
    """

    part: str
    inputs: tuple[TensorSpec, ...]
    state_map: Mapping[str, str] = field(default_factory=dict)
    chunked: str | None = None
    per_step: Mapping[str, int] = field(default_factory=dict)
    unchunked: tuple[str, ...] = ()
    prepare: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One comparison: the values, and the lengths of the chunks in which the exported file gets them."""

    name: str
    feeds: Mapping[str, np.ndarray]
    chunks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """How one case came out: the error of each output (NaN or infinite where it could not be compared at all)."""

    part: str
    case: str
    errors: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def passed(self, tolerance: float) -> bool:
        """Whether every error is within the tolerance; written so that NaN is not."""
        return bool(self.errors) and all(error <= tolerance for error in self.errors.values())


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written: bytes, opset, and nodes (those of loop bodies among them)."""

    part: str
    path: str
    bytes: int
    opset: int
    nodes: int


@dataclass(frozen=True)
class Report:
    """What was found, written and compared.

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

    @property
    def passed(self) -> bool:
        """Whether there were cases, and every one is within the tolerance."""
        return bool(self.outcomes) and all(outcome.passed(self.tolerance) for outcome in self.outcomes)

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
        }


def _worst(errors: Any) -> float:
    """The largest error; NaN, which compares with nothing, counts as the worst."""
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=math.nan)


def _plain(error: float) -> float | str:
    return error if math.isfinite(error) else str(error)


def plan(subject: Subject) -> list[Case]:
    """The cases for a graph: every shape of SIZES with zero and with random state, and chunks against the whole."""
    rng = np.random.default_rng(SEED)
    cases = []
    dims = dynamic_dims(subject.inputs)
    states = ("zero state", "random state") if subject.state_map else ("",)
    for row, state in itertools.product(SIZES if dims else SIZES[:1], states):
        sizes = _sizes(dims, row)
        name = " · ".join(
            [" × ".join(f"{dim} {size}" for dim, size in sizes.items()) or "fixed shape", *([state] if state else [])]
        )
        cases.append(Case(name, _values(subject, sizes, state == "random state", rng)))
    if subject.chunked and subject.state_map:
        for chunks in CHUNKS:
            sizes = _sizes(dims, (2, sum(chunks), 3, 6))
            name = f"chunks of {' + '.join(map(str, chunks))} steps against the whole"
            cases.append(Case(name, _values(subject, sizes, True, rng), chunks))
    return cases


def _sizes(dims: Sequence[str], row: Sequence[int]) -> dict[str, int]:
    return {dim: row[index % len(row)] for index, dim in enumerate(dims)}


def _values(
    subject: Subject, sizes: Mapping[str, int], with_state: bool, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    feeds = {}
    for spec in subject.inputs:
        if spec.optional and not with_state:
            continue
        values = spec.sample(sizes, rng)
        if spec.name in subject.state_map and not with_state:
            values = np.zeros_like(values)
        feeds[spec.name] = subject.prepare[spec.name](values) if spec.name in subject.prepare else values
    return feeds


def verify(subject: Subject, reference: Runtime, candidate: Runtime, cases: Sequence[Case]) -> list[Outcome]:
    """Run every case on both and compare. A case that the candidate can't run counts as an infinite error."""
    return [_compare_case(subject, reference, candidate, case) for case in cases]


def _compare_case(subject: Subject, reference: Runtime, candidate: Runtime, case: Case) -> Outcome:
    expected = reference.run(case.feeds)
    try:
        found = candidate.run(case.feeds) if case.chunks is None else _run_in_chunks(subject, candidate, case)
    except Exception as error:  # whatever a broken file does to its runtime is an outcome here, not a crash
        return Outcome(subject.part, case.name, dict.fromkeys(expected, math.inf), (str(error).splitlines()[0],))
    skipped = subject.unchunked if case.chunks else ()
    errors, notes = {}, []
    for name, value in expected.items():
        if name not in skipped:
            errors[name], note = difference(value, found.get(name))
            notes += [f"{name}: {note}"] if note else []
    return Outcome(subject.part, case.name, errors, tuple(notes))


def _run_in_chunks(subject: Subject, candidate: Runtime, case: Case) -> dict[str, np.ndarray]:
    assert subject.chunked is not None and case.chunks is not None
    spec = next(spec for spec in subject.inputs if spec.name == subject.chunked)
    cuts = np.cumsum(case.chunks)[:-1]
    feeds, results = dict(case.feeds), []
    for part in np.split(case.feeds[subject.chunked], cuts, axis=spec.dims.index("time")):
        results.append(candidate.run(feeds | {subject.chunked: part}))
        feeds |= {source: results[-1][output] for source, output in subject.state_map.items()}
    joined = dict(results[-1])
    for name, axis in subject.per_step.items():
        joined[name] = np.concatenate([result[name] for result in results], axis=axis)
    return joined


def difference(reference: np.ndarray, found: np.ndarray | None) -> tuple[float, str]:
    """|a - b| / max(1, max|reference|) at its worst, and a word on what could not be compared.

    A missing output, another shape or another dtype is an infinite error; NaN on either side is NaN.
    """
    if found is None:
        return math.inf, "missing"
    if found.shape != reference.shape:
        return math.inf, f"shape {list(found.shape)}, expected {list(reference.shape)}"
    if found.dtype != reference.dtype:
        return math.inf, f"{found.dtype}, expected {reference.dtype}"
    if reference.size == 0:
        return 0.0, ""
    a, b = reference.astype(np.float64), found.astype(np.float64)
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max())), ""


def require(report: Report, what: str) -> None:
    """Raise ParityError, naming the worst case, unless the report passed."""
    if report.passed:
        return
    failures = report.failures()
    if not failures:
        raise ParityError(f"{what} was not verified: there was no case to run.", report)
    worst = max(failures, key=lambda outcome: _sortable(_worst(outcome.errors.values())))
    error = _worst(worst.errors.values())
    note = f" ({worst.notes[0]})" if worst.notes else ""
    raise ParityError(
        f"{what} differs from torch in {len(failures)} of {len(report.outcomes)} cases, at worst by {error:.2g} at "
        f"{worst.part}, {worst.case}{note}; expected at most {report.tolerance:.0e}: nothing was written.",
        report,
    )


def _sortable(error: float) -> float:
    return math.inf if math.isnan(error) else error
