"""Is the exported file right? The cases, and how their values are held against each other.

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

from seqexport.errors import UnsupportedError
from seqexport.reports import TOLERANCE, Outcome, sortable
from seqexport.runtimes import Runtime
from seqexport.sources import first_line
from seqexport.specs import TensorSpec, dynamic_dims

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
                elif value.dtype.kind == "O":  # a label's name, which compare_numbers would not take for a tie
                    other = self.found[decision.output] = other.copy()
                    other[place] = value[place]
            else:
                self.notes.append(text)
                self.errors[decision.output] = math.inf

    def compare_numbers(self, name: str) -> None:
        """The error of one output, over the rows that did not part after a tie."""
        value, other = self.expected[name], self.found.get(name)
        if self.lost and other is not None and other.shape == value.shape:
            axis = 1 if value.ndim == 3 else 0  # the state has its rows second
            value, other = (np.delete(array, list(self.lost), axis) for array in (value, other))
        error, note = difference(value, other)
        self.errors[name] = max(error, self.errors.get(name, 0.0), key=sortable)
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
    compared as they are, and so are strings: one that differs is an infinite error.
    """
    if found is None:
        return math.inf, "missing"
    if found.shape != reference.shape:
        return math.inf, f"shape {list(found.shape)}, expected {list(reference.shape)}"
    if found.dtype != reference.dtype:
        return math.inf, f"{found.dtype}, expected {reference.dtype}"
    if reference.size == 0:
        return 0.0, ""
    if reference.dtype.kind in "iubO":
        return (0.0, "") if np.array_equal(reference, found) else (math.inf, "values differ")
    a, b = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which no tolerance allows
        return float(np.abs(a - b).max() / max(1.0, np.abs(a).max())), ""
