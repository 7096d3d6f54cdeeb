"""Thorough verification: properties that hold for every input, tried one by one, and third opinions.

The rule throughout is that what torch itself has, the file must have: a net that reads its padding, or looks ahead, is
exported as it is, and the report says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seqexport.opinions import Exact, Reference, distance, finite, weighed
from seqexport.parts import Part
from seqexport.reports import EXPLAINED, TOLERANCE, Outcome, Property, Sample
from seqexport.runtimes import OnnxRuntime, TorchRuntime
from seqexport.sources import first_line
from seqexport.specs import TensorSpec, dynamic_dims
from seqexport.text import text_answer
from seqexport.verification import SEED, Case, compare_outputs, difference, make_case, run_in_chunks, sizes_said, verify

Arrays = Mapping[str, np.ndarray]
BATCHES = (1, 2, 5, 17)
LENGTHS = (1, 2, 3, 8, 31, 128)
WHOLE = 24  # steps of the sequences that are cut at every place
LONG = 2_000
LOOPS = {"steps": 1_000, "horizon": 500}  # the dims along which a pipeline feeds itself, and how far that is tried
POINTS = 100  # of a curve
AS_EXACT = "as near to torch in float64 as twice torch's own float32 is, or the tolerance where that is more"

# Every value is read in turn, so that a loop passes on, and may amplify, what differs by rounding.
AS_ROUNDED = "the tolerance for float32, beyond it only where torch is as far from its own float64"
PASSED_ON = f"what torch's own paths change by when each noise is changed by {TOLERANCE:.0e}, or that where it is more"


def examine(
    part: Part, candidate: OnnxRuntime, reference: TorchRuntime, path: Path
) -> tuple[list[Property], list[Sample]]:
    """Every property of one graph, whose file is at `path`, and samples of what both runtimes give.

    A property whose trial the file's runtime can't run is one that does not hold.
    """
    examination = _Examination(part, candidate, reference, path)
    tried = [
        examination.agreement,
        examination.cuts,
        examination.final_state,
        examination.padding,
        examination.permutation,
        examination.rows_alone,
        *(lambda dim=dim: examination.causality(dim) for dim in examination.along),
        examination.long_sequences,
        examination.extremes,
        examination.free_running,
        examination.third_opinion,
    ]
    found = [result for attempt in tried if (result := attempt()) is not None]
    return found, examination.samples()


@dataclass
class _Trials:
    """What was seen while one property was tried."""

    errors: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ties: int = 0
    refused: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one comparison, and remember what it had to say."""
        self.errors += outcome.errors.values()
        self.notes += [f"{outcome.case}: {note}" for note in outcome.notes]
        self.ties += len(outcome.ties)

    @property
    def worst(self) -> float:
        """The largest error; one that could not be told counts as infinite."""
        return max((math.inf if math.isnan(error) else error for error in self.errors), default=0.0)

    def said(self) -> tuple[str, ...]:
        """The first notes, and what is counted."""
        ties = (f"{self.ties} ties",) if self.ties else ()
        refused = (f"torch itself does not run {self.refused} of the sizes tried",) if self.refused else ()
        return (*ties, *refused, *self.notes[:3])


class _Examination:
    """The trials of one graph. `along`: its dynamic dims besides the batch that an input and an output have."""

    def __init__(self, part: Part, candidate: OnnxRuntime, reference: TorchRuntime, path: Path) -> None:
        self.part, self.subject, self.path = part, part.subject, path
        self.candidate, self.reference = candidate, reference
        self.dims = dynamic_dims(part.inputs)
        self.batch = self.dims[0] if self.dims else ""
        self.rng = np.random.default_rng(SEED + 2)
        of_outputs = {dim for declared in candidate.declared.values() for dim in declared}
        self.along = [dim for dim in self.dims[1:] if dim in of_outputs]

    @cached_property
    def exact(self) -> Exact:
        """The module in float64."""
        return Exact(self.part.module, self.part.inputs, self.part.output_names)

    def agreement(self) -> Property | None:
        """Batches × lengths × zero and random state."""
        trials, count, outcomes = _Trials(), 0, list[Outcome]()
        states = (False, True) if self.subject.state_map else (False,)
        settings = itertools.cycle(self.subject.settings)
        grid = list(itertools.product(BATCHES, LENGTHS, states)) if self.dims else [(1, 1, False), (1, 1, True)]
        for batch, length, state in grid:
            case = self._case(self._sizes(batch, length), state, next(settings))
            if (expected := self._expected(case, trials)) is not None:
                outcome = self._compared(case, expected, self._found(case.feeds))
                outcomes.append(weighed(outcome, self.exact, case.feeds, expected))
                trials.add(outcomes[-1])
                count += 1
        claim = "the file gives what torch gives, at every batch and length"
        if any(outcome.explained for outcome in outcomes) and all(outcome.passed(TOLERANCE) for outcome in outcomes):
            return self._property("agreement", claim, count, trials, EXPLAINED, AS_ROUNDED)
        return self._property("agreement", claim, count, trials)

    def cuts(self) -> Property | None:
        """Cut in two at every place, and step by step."""
        if not (self.subject.chunked and self.subject.state_map):
            return None
        trials = _Trials()
        for case in self._cut_cases():
            trials.add(*verify(self.subject, self.reference, self.candidate, [case]))
        return self._property(
            "cuts", f"{self.subject.chunked} in chunks, the state carried, gives what the whole gives", WHOLE, trials
        )

    def final_state(self) -> Property | None:
        """The state after many chunks against the state after the whole."""
        if not (self.subject.chunked and self.subject.state_map):
            return None
        trials, states = _Trials(), set(self.subject.state_map.values())
        for case in self._cut_cases():
            try:
                found = run_in_chunks(self.subject, self.candidate, case)
                whole = self.candidate.run(case.feeds)
            except Exception as error:  # a broken file is an outcome, not a crash
                trials.errors.append(math.inf)
                trials.notes.append(f"{case.name}: {first_line(error)}")
                continue
            if self._parted_by_a_tie(case, whole, found):
                trials.ties += 1
                continue
            trials.add(self._compared(case, _only(whole, states), _only(found, states)))
        return self._property("final state", "the state at the end does not depend on the cuts", WHOLE, trials)

    def padding(self) -> Property | None:
        """Other values behind the end of every row."""
        lengths = next((spec for spec in self.part.inputs if isinstance(spec.high, str) and len(spec.dims) == 1), None)
        if lengths is None:
            return None

        def behind_the_end(case: Case) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
            dim = str(lengths.high)
            keep = np.arange(case.sizes[dim]) < case.feeds[lengths.name][:, None]
            return self._changed(case, dim, keep), lambda outputs: outputs

        return self._invariance("padding", "what stands behind a row's end changes nothing", behind_the_end)

    def permutation(self) -> Property | None:
        """The rows of a batch in another order."""

        def reordered(case: Case) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
            order = self.rng.permutation(case.sizes[self.batch])
            return self._rows(case.feeds, order), lambda outputs: self._output_rows(outputs, np.argsort(order))

        if any(spec.descending for spec in self.part.inputs):
            return None  # rows that must be sorted have no other order
        return self._invariance("permutation", "rows in another order give the same rows in that order", reordered)

    def rows_alone(self) -> Property | None:
        """Each row of a batch against the same row alone."""
        places: list[int] = []

        def one(case: Case) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
            places.append(len(places) % case.sizes[self.batch])
            return self._rows(case.feeds, places[-1:]), lambda outputs: outputs

        def cut(case: Case, outputs: Arrays, changed: Arrays) -> tuple[Arrays, Arrays]:
            return self._output_rows(outputs, places[-1:]), changed

        return self._invariance("rows alone", "a row in a batch gives what it gives alone", one, cut)

    def causality(self, dim: str) -> Property | None:
        """Other values from some place along `dim` on leave what is before that place."""
        places: list[int] = []

        def later(case: Case) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
            size = case.sizes[dim]
            places.append(1 + len(places) % max(1, size - 1))
            return self._changed(case, dim, (np.arange(size) < places[-1])[None]), lambda outputs: outputs

        def before(case: Case, outputs: Arrays, changed: Arrays) -> tuple[Arrays, Arrays]:
            return self._until(outputs, dim, places[-1]), self._until(changed, dim, places[-1])

        claim = f"what comes out along {dim} does not depend on what goes in later"
        return self._invariance(f"causality ({dim})", claim, later, before, dim)

    def long_sequences(self) -> Property | None:
        """2,000 steps, and the error over time."""
        if len(self.dims) < 2:
            return None
        sizes = self._sizes(2, LONG if self.dims[1] == "time" else 12)
        case = self._case(sizes, bool(self.subject.state_map))
        trials = _Trials()
        if (expected := self._expected(case, trials)) is None:
            return None
        found = self._found(case.feeds)
        error, allowed, notes = self._against_exact(case, expected, found)
        curves = self._curves(case, expected, found, self.dims[1])
        claim = f"{LONG:,} steps give what torch gives"
        return Property(
            self.subject.part, "long sequences", claim, 1, error, allowed, AS_EXACT, notes=notes, curves=curves
        )

    def extremes(self) -> Property | None:
        """Zeros, ±1e4, denormal numbers, the same token again and again."""
        trials, worst, count = _Trials(), (0.0, TOLERANCE), 0
        plain = self._case(self._sizes(3, 12), False)
        for about, value in _extreme_values(self.part.inputs, set(self.subject.state_map)):
            given = (spec for spec in self.part.inputs if spec.name in plain.feeds)
            feeds = {spec.name: value(spec, plain.feeds[spec.name]) for spec in given}
            case = Case(about, feeds, sizes=plain.sizes)
            if (expected := self._expected(case, trials)) is None:
                continue
            error, most, notes = self._against_exact(case, expected, self._found(feeds))
            worst = max(worst, (error, most), key=lambda pair: pair[0] / pair[1])
            trials.notes += [f"{about}: {note}" for note in notes]
            count += 1
        claim = "zeros, ±1e4, denormal numbers and a repeated token give what torch gives"
        if not count:
            return None
        return Property(self.subject.part, "extremes", claim, count, *worst, AS_EXACT, notes=trials.said())

    def free_running(self) -> Property | None:
        """A generator's or forecaster's own loop, far beyond what it is used for."""
        dim = next((dim for dim in self.dims if dim in LOOPS), None)
        if dim is None:
            return None
        steps = LOOPS[dim]
        trials, allowed, curves = _Trials(), TOLERANCE, dict[str, list[float]]()
        for settings in self.subject.settings:
            sizes = {name: {"batch": 2, "time": 40, "paths": 3}.get(name, 4) for name in self.dims} | {dim: steps}
            case = self._case(sizes, False, settings)
            expected, found = self.reference.run(case.feeds), self._found(case.feeds)
            trials.add(outcome := self._compared(case, expected, found))
            trials.notes += [f"first difference: {tie}" for tie in outcome.ties]
            curves = curves or self._curves(case, expected, found, dim)
            if dim == "horizon":
                allowed = max(allowed, self._passed_on(case, expected))
                trials.notes += _first_beyond(expected["path"], found.get("path"))
        what = "token" if dim == "steps" else f"value by more than {TOLERANCE:.0e}"
        runs = len(self.subject.settings)
        if not trials.notes:
            trials.notes.append(f"no {what} of {runs} × {steps:,} steps differs")
        claim = f"{steps:,} steps, each fed what the one before gave, give what torch gives"
        reason = PASSED_ON if dim == "horizon" else "the tolerance for float32"
        return replace(self._property("free running", claim, runs, trials, allowed, reason), curves=curves)

    def _passed_on(self, case: Case, expected: Arrays) -> float:
        """By how much torch's own paths change when each of their noises is changed by the tolerance."""
        noise = case.feeds["noise"]
        signs = self.rng.choice(np.array([-1, 1], noise.dtype), noise.shape)
        return difference(
            expected["path"], self.reference.run({**case.feeds, "noise": noise + TOLERANCE * signs})["path"]
        )[0]

    def third_opinion(self) -> Property | None:
        """How far onnxruntime, torch, and onnx's own evaluator are from torch in float64."""
        distances: dict[str, list[float]] = {"onnxruntime": [], "torch": [], "onnx's reference evaluator": []}
        notes, trials = [], _Trials()
        evaluator = Reference(self.path, self.part.inputs, self.candidate.declared)
        for length in (1, 4, 9):
            case = self._case(self._sizes(2, length), bool(self.subject.state_map))
            expected, exact = self._expected(case, trials), self.exact.run(case.feeds)
            if expected is None or exact is None:
                continue
            found = {"onnxruntime": self._found(case.feeds), "torch": expected}
            distances["onnxruntime"].append(distance(exact, found["onnxruntime"]))
            distances["torch"].append(distance(exact, expected))
            for names, rows in evaluator.run(case.feeds):
                against = {name: rows(exact[name]) for name in names if name in exact}
                distances["onnx's reference evaluator"].append(distance(against, names))
        if self.exact.reason:
            notes.append(f"torch in float64 has no opinion: {self.exact.reason}")
        if evaluator.reason:
            notes.append(f"onnx's reference evaluator has no opinion: {evaluator.reason}")
        said = ", ".join(f"{who} {max(errors):.1e}" for who, errors in distances.items() if errors)
        if not distances["onnxruntime"]:
            return Property(self.subject.part, "third opinion", "", 0, 0.0, applies=False, notes=tuple(notes))
        worst = max(distances["onnxruntime"])
        allowed = max(TOLERANCE, 2 * max(distances["torch"]))
        off = [who for who, errors in distances.items() if errors and not max(errors) <= allowed]
        notes.insert(0, f"distance from torch in float64: {said}" + (f"; {' and '.join(off)} off" if off else ""))
        claim = "the file is as near to float64 as torch is"
        count = len(distances["onnxruntime"])
        return Property(self.subject.part, "third opinion", claim, count, worst, allowed, AS_EXACT, notes=tuple(notes))

    def samples(self) -> list[Sample]:
        """One small input, and what both gave: texts where the model's vocabulary is known, numbers otherwise."""
        sizes = self._sizes(1, 12) | {dim: 120 if dim == "steps" else 24 for dim in self.dims if dim in LOOPS}
        case = self._case(sizes, False)
        preprocessing = self.candidate.metadata.get("preprocessing", {})
        expected = self._expected(case, _Trials())
        if expected is None:
            return []
        found = self._found(case.feeds)
        if (said := text_answer(preprocessing, expected)) and "" not in found:
            about = f"in words, at {sizes_said(case.sizes)}"
            return [Sample(self.subject.part, about, said, text_answer(preprocessing, found))]
        return [
            Sample(self.subject.part, f"{name} at {sizes_said(case.sizes)}", _shown(value), _shown(found.get(name)))
            for name, value in expected.items()
            if name not in self.subject.state_map.values()
        ]

    # What the trials have in common.

    def _sizes(self, batch: int, length: int) -> dict[str, int]:
        return {dim: (batch, length, 2, 5)[min(place, 3)] for place, dim in enumerate(self.dims)}

    def _case(self, sizes: Mapping[str, int], state: bool, settings: Mapping[str, float] | None = None) -> Case:
        return make_case(self.subject, [sizes_said(sizes)], sizes, state, settings or {}, self.rng)

    def _cut_cases(self) -> Iterator[Case]:
        """In two at every place, and in single steps."""
        settings = itertools.cycle(self.subject.settings)
        for chunks in [*((first, WHOLE - first) for first in range(1, WHOLE)), (1,) * WHOLE]:
            sizes = self._sizes(2, 6) | {self.subject.along: WHOLE}
            about = f"cut after {chunks[0]}" if len(chunks) == 2 else "step by step"
            yield make_case(self.subject, [about], sizes, True, next(settings), self.rng, chunks)

    def _expected(self, case: Case, trials: _Trials) -> Arrays | None:
        """What torch gives; None, and counted, where it refuses: a user's net may need longer input."""
        try:
            return self.reference.run(case.feeds)
        except Exception:  # whatever the user's forward raises
            if self.subject.further is None:
                raise
            trials.refused += 1
            return None

    def _found(self, feeds: Arrays) -> Arrays:
        try:
            return self.candidate.run(feeds)
        except Exception as error:  # a broken file is an outcome, not a crash
            return {"": np.array(first_line(error))}

    def _compared(self, case: Case, expected: Arrays, found: Arrays) -> Outcome:
        return compare_outputs(self.subject, Case(case.name, case.feeds, sizes=case.sizes), expected, found)

    def _property(
        self,
        name: str,
        claim: str,
        count: int,
        trials: _Trials,
        allowed: float = TOLERANCE,
        reason: str = "the tolerance for float32",
    ) -> Property:
        applies = count > 0 or bool(trials.errors)
        return Property(self.subject.part, name, claim, count, trials.worst, allowed, reason, applies, trials.said())

    def _invariance(
        self,
        name: str,
        claim: str,
        change: Callable[[Case], tuple[Arrays, Callable[[Arrays], Arrays]]],
        cut: Callable[[Case, Arrays, Arrays], tuple[Arrays, Arrays]] | None = None,
        dim: str | None = None,
    ) -> Property | None:
        """Changed feeds must give the same outputs, after `cut` to what is claimed, in the file as in torch."""
        if not self.batch:
            return None
        trials, count = _Trials(), 0
        for length in (2, 5, 12, 12, 31):
            sizes = self._sizes(5, length) | ({dim: max(length, 2)} if dim else {})
            case = self._case(sizes, False, self.subject.settings[count % len(self.subject.settings)])
            feeds, back = change(case)
            both = []
            for run in (self.reference.run, self.candidate.run):
                try:
                    outputs, changed = run(case.feeds), back(run(feeds))
                except Exception as error:
                    if run == self.reference.run and self.subject.further is not None:
                        trials.refused += 1
                        break
                    trials.notes.append(first_line(error))
                    trials.errors.append(math.inf)
                    break
                pair = cut(case, outputs, changed) if cut else (outputs, changed)
                both.append(self._compared(Case(case.name, case.feeds, sizes={}), *pair))
            if both and not both[0].passed(TOLERANCE):
                note = f"torch itself has not this property ({case.name})"
                return Property(self.subject.part, name, claim, 1, 0.0, applies=False, notes=(note,))
            if len(both) == 2:
                trials.add(both[1])
                count += 1
        return self._property(name, claim, count, trials)

    def _changed(self, case: Case, dim: str, keep: np.ndarray) -> Arrays:
        """The feeds with other values where `keep` (B or 1, size of dim) is False."""
        others = self._case(case.sizes, False).feeds
        feeds = dict(case.feeds)
        for spec in self.part.inputs:
            if dim in spec.dims and spec.name in feeds and spec.name in others:
                shape = [1] * len(spec.dims)
                axes = {self.batch: keep.shape[0], dim: keep.shape[1]}
                for axis, name in enumerate(spec.dims):
                    shape[axis] = axes.get(str(name), 1)
                order = [str(name) for name in spec.dims if name in (self.batch, dim)]
                mask = (keep if order[0] == self.batch else keep.T).reshape(shape)
                feeds[spec.name] = np.where(mask, feeds[spec.name], others[spec.name]).astype(spec.dtype)
        return feeds

    def _rows(self, feeds: Arrays, rows: Any) -> Arrays:
        return {
            spec.name: np.take(feeds[spec.name], rows, spec.dims.index(self.batch))
            if self.batch in spec.dims
            else feeds[spec.name]
            for spec in self.part.inputs
            if spec.name in feeds
        }

    def _output_rows(self, outputs: Arrays, rows: Any) -> Arrays:
        return self._along(outputs, self.batch, lambda value, axis: np.take(value, rows, axis))

    def _until(self, outputs: Arrays, dim: str, end: int) -> Arrays:
        kept = {name: value for name, value in outputs.items() if dim in self.candidate.declared[name]}
        return self._along(kept, dim, lambda value, axis: np.take(value, range(end), axis))

    def _along(
        self, outputs: Arrays, dim: str, change: Callable[[np.ndarray, int], np.ndarray]
    ) -> dict[str, np.ndarray]:
        return {
            name: change(value, list(self.candidate.declared[name]).index(dim))
            if dim in self.candidate.declared[name]
            else value
            for name, value in outputs.items()
        }

    def _parted_by_a_tie(self, case: Case, whole: Arrays, found: Arrays) -> bool:
        return any(
            decision.leads_on and not np.array_equal(whole[decision.output], found[decision.output])
            for decision in self.subject.decisions
        )

    def _against_exact(self, case: Case, expected: Arrays, found: Arrays) -> tuple[float, float, tuple[str, ...]]:
        """The error against torch, how much of it float64 says may be, and a note where that is more than usual."""
        outcome = self._compared(case, finite(expected, expected), finite(found, expected))
        error = max((math.inf if math.isnan(e) else e for e in outcome.errors.values()), default=math.inf)
        if error <= TOLERANCE:
            return error, TOLERANCE, ()
        exact = self.exact.run(case.feeds)
        if exact is None:
            return error, TOLERANCE, (f"torch in float64 has no opinion: {self.exact.reason}", *outcome.notes[:1])
        ours, own = distance(exact, found), distance(exact, expected)
        off = "" if ours <= 2 * own else "; the file is off"
        note = f"{error:.1e} from torch, which is {own:.1e} from its float64; the file is {ours:.1e} from it{off}"
        return ours, max(TOLERANCE, 2 * own), (note, *outcome.notes[:1])

    def _curves(self, case: Case, expected: Arrays, found: Arrays, dim: str) -> dict[str, list[float]]:
        """The error of each output along `dim`, the largest of every stretch, and torch's own against float64."""
        declared = {name: list(dims) for name, dims in self.candidate.declared.items()}
        drawn = [
            name
            for name, value in expected.items()
            if dim in declared.get(name, ()) and value.dtype.kind == "f" and name in found
            if found[name].shape == value.shape
        ]
        exact = self.exact.run(case.feeds) if drawn else None
        curves: dict[str, list[float]] = {}
        for name in drawn:
            value, axis = expected[name], declared[name].index(dim)
            edges = np.linspace(0, value.shape[axis], min(POINTS, value.shape[axis]) + 1).astype(int)
            curves.setdefault(dim, [float(end) for end in edges[1:]])
            curves[f"{name}: onnxruntime from torch"] = _curve(value, found[name], axis, edges)
            if exact is not None and exact[name].shape == value.shape:
                curves[f"{name}: torch from its float64"] = _curve(exact[name], value, axis, edges)
        return curves


def _curve(reference: np.ndarray, found: np.ndarray, axis: int, edges: np.ndarray) -> list[float]:
    apart = np.abs(reference.astype(np.float64) - found) / max(1.0, float(np.abs(reference).max()))
    each = np.moveaxis(apart, axis, 0).reshape(apart.shape[axis], -1).max(1)
    return [float(each[start:end].max()) for start, end in itertools.pairwise(edges)]


def _first_beyond(path: np.ndarray, found: np.ndarray | None) -> list[str]:
    """Where along the horizon a value first differs by more than the tolerance."""
    if found is None or found.shape != path.shape:
        return []
    apart = np.abs(path.astype(np.float64) - found) / max(1.0, float(np.abs(path).max()))
    beyond = np.flatnonzero((apart > TOLERANCE).any(axis=(0, 1)))
    return [f"the first value beyond {TOLERANCE:.0e} is at step {beyond[0] + 1:,}"] if beyond.size else []


def _only(outputs: Arrays, names: set[str]) -> Arrays:
    return {name: value for name, value in outputs.items() if name in names}


def _extreme_values(
    inputs: Sequence[TensorSpec], states: set[str]
) -> Iterator[tuple[str, Callable[[TensorSpec, np.ndarray], np.ndarray]]]:
    """What is said of it, and spec, sample → the extreme array; the state and settings stay as they are."""

    def floats(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[TensorSpec, np.ndarray], np.ndarray]:
        def change(spec: TensorSpec, sample: np.ndarray) -> np.ndarray:
            bounded = spec.name in states or spec.optional or spec.low is not None
            return sample if bounded or sample.dtype.kind != "f" else make(sample).astype(sample.dtype)

        return change

    def integers(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[TensorSpec, np.ndarray], np.ndarray]:
        def change(spec: TensorSpec, sample: np.ndarray) -> np.ndarray:
            counts = isinstance(spec.high, str) or spec.optional  # lengths and settings are no tokens
            return sample if counts or sample.dtype.kind not in "iu" else make(sample).astype(sample.dtype)

        return change

    free = [spec for spec in inputs if spec.name not in states and not spec.optional]
    if any(spec.dtype.startswith("float") and spec.low is None for spec in free):
        yield "zeros", floats(np.zeros_like)
        yield "1e4 everywhere", floats(lambda sample: np.full_like(sample, 1e4))
        yield "-1e4 everywhere", floats(lambda sample: np.full_like(sample, -1e4))
        yield "±1e4", floats(lambda sample: np.copysign(1e4, sample))
        yield "denormal numbers", floats(lambda sample: np.full_like(sample, 1e-40))
    if any(spec.dtype.startswith("int") and not isinstance(spec.high, str) for spec in free):
        yield "the smallest token again and again", integers(lambda sample: np.full_like(sample, sample.min()))
        yield "the largest token again and again", integers(lambda sample: np.full_like(sample, sample.max()))


def _shown(value: np.ndarray | None) -> Any:
    """The start of an array, as plain numbers rounded to what can be told apart by eye."""
    if value is None:
        return None
    flat = value.reshape(-1)[:24]
    return [round(float(number), 5) if value.dtype.kind == "f" else int(number) for number in flat]
