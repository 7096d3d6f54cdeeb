"""Is the exported file right? The cases, the tolerance with its reason, and the report.

Every case runs the torch module and the exported file on the same values and compares every output: shape first, then
dtype, then numbers. Shapes are never only the example's, state is zero and random, and chunks with carried state are
held against the whole.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqexport.errors import ParityError, UnsupportedError
from seqexport.runtimes import Runtime
from seqexport.sources import first_line
from seqexport.specs import TensorSpec, dynamic_dims

# float32 rounds at 6e-8. Over the configurations of tests/test_coverage.py, with random weights, the worst seen at the
# sizes below is under 1e-6; but trained nets amplify: a published speaker encoder (LSTM 3×256, 257 steps) gives 5.8e-6
# between torch and onnxruntime, where torch itself is 7e-6 from its own float64, and 3.6e-5 with oneDNN off. This is
# the most that the definition of an error allows (README), and less than twice the worst seen on a right file.
TOLERANCE = 1e-5

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
# Tokens that the cases above read less often than OFTEN, at places where they may not show, are read once more, each as
# a text of one step: at most UNREAD of them, AT_A_TIME, since each takes the time and memory of all its logits.
OFTEN, UNREAD, AT_A_TIME = 12, 5000, 500
CHUNKS = ((1, 11), (6, 6), (5, 1, 6), (1,) * 12)
SEED = 20


@dataclass(frozen=True)
class Decision:
    """What a user acts on: a label, or a token. Both runtimes must decide alike, unless the reference itself was
    undecided within the tolerance, which is a tie.

    output: the output that holds it. chosen: that output → the choices, integers [batch, …].
    margin: feeds, the reference's outputs, the place of a choice → by how much it was decided.
    leads_on: a choice decides those after it in its row, so that after a tie the row can't be compared.
    """

    output: str
    noun: str
    chosen: Callable[[np.ndarray], np.ndarray]
    margin: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], tuple[int, ...]], float]
    leads_on: bool = False


@dataclass(frozen=True)
class Subject:
    """What a graph takes and how it may be fed.

    part: network, or the name of a pipeline, or module. state_map: state input → the output fed back to it.
    chunked: the input that may be given in chunks along its dim `along`, carrying the state; None where it may not.
    carried: further inputs that the next chunk takes from the outputs.
    per_step: outputs with a value a step, and their axis; of the others the last chunk's counts.
    unchunked: outputs that a chunk can't give, such as a mean over all steps.
    prepare: input name → what makes realistic values out of the spec's samples.
    settings: values of optional inputs other than the state, one of them for each case in turn.
    further: by how much a case's dims are enlarged where the reference itself can't run so small, as a convolution
        can't with fewer steps than its kernel has; None where it always can.
    sharpen: a case's values → values at which small errors show: a number drawn at random seldom lies where a choice
        turns.
    """

    part: str
    inputs: tuple[TensorSpec, ...]
    state_map: Mapping[str, str] = field(default_factory=dict)
    chunked: str | None = None
    along: str = "time"
    carried: Mapping[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = field(default_factory=dict)
    per_step: Mapping[str, int] = field(default_factory=dict)
    unchunked: tuple[str, ...] = ()
    prepare: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    settings: Sequence[Mapping[str, float]] = ({},)
    decisions: tuple[Decision, ...] = ()
    further: Mapping[str, int] | None = None
    sharpen: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict


@dataclass(frozen=True)
class Case:
    """One comparison: the values, the chunks in which the exported file gets them, and the sizes of the dims.

    expected: what the reference gives, where it was asked already.
    """

    name: str
    feeds: Mapping[str, np.ndarray]
    chunks: tuple[int, ...] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Outcome:
    """How one case came out: the error of each output (NaN or infinite where it could not be compared at all).

    decided: how many labels and tokens were compared, by their noun. ties: those that differ within the tolerance.
    """

    part: str
    case: str
    errors: Mapping[str, float]
    notes: tuple[str, ...] = ()
    decided: Mapping[str, int] = field(default_factory=dict)
    ties: tuple[str, ...] = ()

    def passed(self, tolerance: float) -> bool:
        """Whether every error is within the tolerance; written so that NaN is not."""
        return bool(self.errors) and all(error <= tolerance for error in self.errors.values())


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
        return not self.applies or (self.trials > 0 and self.error <= self.allowed)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        curves = {name: [_plain(float(value)) for value in line] for name, line in self.curves.items()}
        plain = {"error": _plain(self.error), "notes": list(self.notes), "curves": curves}
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
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error, default=math.nan)


def _plain(error: float) -> float | str:
    return error if math.isfinite(error) else str(error)


@dataclass(frozen=True)
class Plan:
    """The cases for a graph. notes: sizes that were left out, since the reference itself does not run there."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


def plan(subject: Subject, reference: Runtime | None = None, asked: Sequence[Mapping[str, int]] = ()) -> Plan:
    """The cases for a graph, those that the reference can run: every shape of SIZES, and the further sizes `asked` for.

    Raises UnsupportedError where the reference runs at none of them, with what it said.
    """
    cases = _cases(subject)
    if reference is None or subject.further is None:
        return Plan(tuple(cases))
    rng = np.random.default_rng(SEED + 1)
    for sizes in asked:
        about = [sizes_said(sizes), "which forward tells from others"]
        cases.append(make_case(subject, about, sizes, False, {}, rng))
    kept, refused = [], {}
    for case in cases:
        answered = _answered(reference, case)
        if isinstance(answered, str):
            refused[case.name] = answered
            sizes = {dim: size + subject.further.get(dim, 0) for dim, size in case.sizes.items()}
            answered = _answered(reference, make_case(subject, [sizes_said(sizes)], sizes, False, {}, rng))
        if isinstance(answered, Case):
            kept.append(answered)
    if not kept:
        raise UnsupportedError(
            f"{reference.name} itself runs the model at none of the {len(cases)} sizes tried "
            f"({next(iter(refused.values()))}): "
            "give a dim that can't vary as a number, and dims that must be equal one name."
        )
    notes = (
        [f"{reference.name} itself does not run at {', '.join(refused)}: larger sizes were tried instead"]
        if refused
        else []
    )
    return Plan(tuple(kept), tuple(notes))


def _answered(reference: Runtime, case: Case) -> Case | str:
    """The case with what the reference gives, or what it raised."""
    try:
        return replace(case, expected=reference.run(case.feeds))
    except Exception as error:  # whatever the user's forward raises
        return first_line(error)


def sizes_said(sizes: Mapping[str, int]) -> str:
    """The sizes of a case's dims, as its name has them."""
    return " × ".join(f"{dim} {size}" for dim, size in sizes.items()) or "fixed shape"


def _cases(subject: Subject) -> list[Case]:
    """Every shape of SIZES with zero and with random state, and chunks against the whole."""
    rng = np.random.default_rng(SEED)
    settings = itertools.cycle(subject.settings)
    dims = dynamic_dims(subject.inputs)
    states = ("zero state", "random state") if subject.state_map else ("",)
    cases = []
    for index, (row, state) in enumerate(itertools.product(SIZES if dims else SIZES[:1], states)):
        sizes = {dim: row[place % len(row)] for place, dim in enumerate(dims)}
        about = [sizes_said(sizes), state]
        cases.append(
            make_case(subject, about, sizes, state == "random state", next(settings), rng, short=index % 2 == 1)
        )
    if subject.chunked and subject.state_map:
        for chunks in CHUNKS:
            sizes = {dim: (2, sum(chunks), 3, 6)[index % 4] for index, dim in enumerate(dims)}
            sizes[subject.along] = sum(chunks)
            about = [f"chunks of {' + '.join(map(str, chunks))} steps against the whole"]
            cases.append(make_case(subject, about, sizes, True, next(settings), rng, chunks))
    return cases + [case for spec in subject.inputs for case in _unread(subject, spec, cases, rng)]


def _unread(subject: Subject, spec: TensorSpec, cases: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """Cases that read the tokens which no case reads often: a row of an embedding shows nowhere else.

    Not for a user's module, of which nothing says that one step of its integers is a text, nor how many there are.
    """
    if (
        subject.further is not None
        or {"batch", "time"} - set(spec.dims)
        or not isinstance(spec.low, int)
        or not isinstance(spec.high, int)
    ):
        return
    read, counts = np.unique(np.concatenate([case.feeds[spec.name].ravel() for case in cases]), return_counts=True)
    left = np.setdiff1d(np.arange(spec.low, spec.high + 1), read[counts >= OFTEN])
    left = left[:: -(-len(left) // UNREAD) or 1]
    for start in range(0, len(left), AT_A_TIME):
        tokens = left[start : start + AT_A_TIME]
        sizes = {dim: len(tokens) if dim == "batch" else 1 for dim in dynamic_dims(subject.inputs)}
        case = make_case(subject, [f"{len(tokens)} more of {spec.name}"], sizes, False, {}, rng)
        values = tokens.astype(spec.dtype).reshape(spec.shape(sizes))
        yield replace(case, feeds=subject.sharpen({**case.feeds, spec.name: values}))


def make_case(
    subject: Subject,
    about: Sequence[str],
    sizes: Mapping[str, int],
    with_state: bool,
    settings: Mapping[str, float],
    rng: np.random.Generator,
    chunks: tuple[int, ...] | None = None,
    short: bool = False,
) -> Case:
    """Values for one case. short: integers up to a dim's size, such as lengths, stay below it."""
    feeds = {}
    for spec in subject.inputs:
        if spec.name in subject.state_map:
            if spec.optional and not with_state:
                continue
            values = spec.sample(sizes, rng) if with_state else spec.filled(sizes)
        elif spec.name in settings or spec.optional:
            if spec.name not in settings:
                continue
            values = np.full(spec.shape(sizes), settings[spec.name], spec.dtype)
        else:
            values = spec.sample(sizes, rng)
            if short and isinstance(spec.high, str):
                values = np.minimum(values, max(1, sizes[spec.high] - 1)).astype(spec.dtype)
        feeds[spec.name] = subject.prepare[spec.name](values) if spec.name in subject.prepare else values
    shown = [f"{name} {value:g}" for name, value in settings.items()]
    return Case(" · ".join(filter(None, [*about, *shown])), subject.sharpen(feeds), chunks, dict(sizes))


def verify(
    subject: Subject, reference: Runtime, candidate: Runtime, cases: Sequence[Case], tolerance: float = TOLERANCE
) -> list[Outcome]:
    """Run every case on both and compare. A case that the candidate can't run counts as an infinite error."""
    return [_compare_case(subject, reference, candidate, case, tolerance) for case in cases]


def _compare_case(subject: Subject, reference: Runtime, candidate: Runtime, case: Case, tolerance: float) -> Outcome:
    expected = reference.run(case.feeds) if case.expected is None else case.expected
    try:
        found = candidate.run(case.feeds) if case.chunks is None else run_in_chunks(subject, candidate, case)
    except Exception as error:  # whatever a broken file does to its runtime is an outcome here, not a crash
        return Outcome(subject.part, case.name, dict.fromkeys(expected, math.inf), (str(error).splitlines()[0],))
    return compare_outputs(subject, case, expected, found, tolerance, candidate.declared)


def compare_outputs(
    subject: Subject,
    case: Case,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
    declared: Mapping[str, Sequence[int | str | None]] | None = None,
) -> Outcome:
    """One case's outcome: decisions first, then every number, and the shapes that the file declares."""
    comparison = _Comparison(case, expected, found, tolerance)
    for decision in subject.decisions:
        if decision.output in expected and (case.chunks is None or decision.output not in subject.unchunked):
            comparison.compare_decision(decision)
    skipped = subject.unchunked if case.chunks else ()
    for name in expected:
        if name not in skipped:
            comparison.compare_numbers(name)
            if case.chunks is None:
                comparison.compare_declaration(name, (declared or {}).get(name))
    return Outcome(
        subject.part,
        case.name,
        comparison.errors,
        tuple(comparison.notes),
        comparison.decided,
        tuple(comparison.ties),
    )


class _Comparison:
    """One case's outputs beside each other."""

    def __init__(
        self, case: Case, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
    ) -> None:
        self.case, self.expected, self.found, self.tolerance = case, expected, dict(found), tolerance
        self.errors: dict[str, float] = {}
        self.notes: list[str] = []
        self.decided: dict[str, int] = {}
        self.ties: list[str] = []
        self.lost: dict[int, str] = {}  # rows that parted after a tie, of which nothing more can be said

    def compare_decision(self, decision: Decision) -> None:
        """Count the choices that are the same; those that differ are ties, or an infinite error."""
        value, other = self.expected[decision.output], self.found.get(decision.output)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            return  # compare_numbers says so
        a, b = decision.chosen(value), decision.chosen(other)
        self.decided[decision.noun] = self.decided.get(decision.noun, 0) + a.size
        places = [tuple(map(int, place)) for place in np.argwhere(a != b)]
        if decision.leads_on:  # what follows the first difference in a row follows from it
            places = list({place[0]: place for place in reversed(places)}.values())
        for place in places:
            margin = decision.margin(self.case.feeds, self.expected, place)
            text = (
                f"{self.case.name}: {decision.noun} {list(place)} is {b[place]}, not {a[place]}, "
                f"decided by a margin of {margin:.1e}"
            )
            if margin <= self.tolerance:
                self.ties.append(text)
                if decision.leads_on:
                    self.lost[place[0]] = decision.output
            else:
                self.notes.append(text)
                self.errors[decision.output] = math.inf

    def compare_numbers(self, name: str) -> None:
        """The error of one output, over the rows that did not part after a tie."""
        value, other = self.expected[name], self.found.get(name)
        if self.lost and other is not None and other.shape == value.shape:
            axis = 0 if name in self.lost.values() else 1  # the state has its rows second
            value, other = (np.delete(array, list(self.lost), axis) for array in (value, other))
        error, note = difference(value, other)
        self.errors[name] = max(error, self.errors.get(name, 0.0), key=_sortable)
        if note:
            self.notes.append(f"{name}: {note}")

    def compare_declaration(self, name: str, declared: Sequence[int | str | None] | None) -> None:
        """A shape that the file declares for an output must be true: runtimes lay out memory by it."""
        found = self.found.get(name)
        if declared is None or found is None:
            return
        expected = [self.case.sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in declared]
        pairs = zip(found.shape, expected, strict=False)
        if len(expected) != found.ndim or any(isinstance(dim, int) and dim != size for size, dim in pairs):
            self.errors[name] = math.inf
            self.notes.append(f"{name}: declared as {list(declared)}, but of shape {list(found.shape)}")


def compare_facts(part: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[Outcome]:
    """What a file says of itself (its state map, labels, preprocessing) must be so, for callers act on it: an outcome
    where it is not, and none where it is."""
    wrong = [name for name, value in expected.items() if _as_json(found.get(name)) != _as_json(value)]
    wrong += [name for name in ("state_map",) if name in found and name not in expected]
    notes = tuple(f"metadata: {name} is {found.get(name)!r:.80}, not {expected.get(name)!r:.80}" for name in wrong)
    return [Outcome(part, "what the file says of itself", {"metadata": math.inf}, notes)] if wrong else []


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # as text, where a tuple is a list, and NaN equals itself


def run_in_chunks(subject: Subject, candidate: Runtime, case: Case) -> dict[str, np.ndarray]:
    """The case's outputs when the input that may be cut is given in the case's chunks, the state carried."""
    assert subject.chunked is not None and case.chunks is not None
    spec = next(spec for spec in subject.inputs if spec.name == subject.chunked)
    cuts = np.cumsum(case.chunks)[:-1]
    feeds, results = dict(case.feeds), []
    for part in np.split(case.feeds[subject.chunked], cuts, axis=spec.dims.index(subject.along)):
        results.append(candidate.run(feeds | {subject.chunked: part}))
        feeds |= {source: results[-1][output] for source, output in subject.state_map.items()}
        feeds |= {name: take(results[-1]) for name, take in subject.carried.items()}
    joined = dict(results[-1])
    for name, axis in subject.per_step.items():
        joined[name] = np.concatenate([result[name] for result in results], axis=axis)
    return joined


def difference(reference: np.ndarray, found: np.ndarray | None) -> tuple[float, str]:
    """|a - b| / max(1, max|reference|) at its worst, and a word on what could not be compared.

    A missing output, another shape or another dtype is an infinite error; NaN on either side is NaN. Integers are
    compared as they are: one that differs is an infinite error.
    """
    if found is None:
        return math.inf, "missing"
    if found.shape != reference.shape:
        return math.inf, f"shape {list(found.shape)}, expected {list(reference.shape)}"
    if found.dtype != reference.dtype:
        return math.inf, f"{found.dtype}, expected {reference.dtype}"
    if reference.size == 0:
        return 0.0, ""
    if reference.dtype.kind in "iub":
        return (0.0, "") if np.array_equal(reference, found) else (math.inf, "values differ")
    a, b = reference.astype(np.float64), found.astype(np.float64)
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max())), ""


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
