"""int8 files beside the float32 ones, each held against its float32 file before it is put in place.

Two gates. Where samples are given, the task's own metric: it may differ by 1 %. Otherwise the outputs and states at
many sizes, random states among them: their direction (cosine), their length, and the decisions made by them; and the
report says that no metric was measured.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from seqexport.errors import FileError, InputError, ParityError, SpecError, UnsupportedError
from seqexport.files import Draft, check_destination, is_checkpoint, put_in_place, write_beside
from seqexport.int8 import RECURRENT, Int8Model, to_int8
from seqexport.isolation import check_structure, open_apart, parse_onnx
from seqexport.metrics import Samples, read_samples, task_metric
from seqexport.reports import Property, Report, WrittenFile
from seqexport.runtimes import OnnxRuntime, check_pair, int8_path, network_path, onnx_metadata, pipeline_path
from seqexport.specs import PIPELINES, TEXT, TEXT_PIPELINES, NetworkSpec, TensorSpec, dynamic_dims
from seqexport.text import Vocabulary
from seqexport.textcases import FEW, split_as_in_python, text_cases
from seqexport.verification import Case, Plan, Subject, plan

PRECISIONS = ("fp32", "int8")

# How far int8 may be from float32. Measured over the shipped models at 7 and 8 bits, and over nets whose scales, zero
# points or gates were spoilt; the figures are in DECISIONS.md.
METRIC = 0.01  # of the metric that a person cares for
COSINE = 1e-3  # 1 - cosine, at its worst over the cases
COSINE_BESIDE = 1e-2  # the same of a graph whose net was measured by the metric in the file beside it
LENGTH = 0.02  # of an output over all cases together, which a cosine does not see
DECISIONS = 0.01  # of those that float32 was sure of may differ
WHOLE = 0.1  # of outputs that are whole numbers, which don't say how sure they are
SURE = 0.1  # by how much probability float32's choice is ahead
# The same of tokens, whose probabilities a generator does not give: both ends of the distribution, sharpened so, are
# the same token.
SURE_ENDS, SURE_TEMPERATURE = (0.02, 0.98), 0.1
FEWEST = 16  # fewer numbers have no direction to speak of; they count in all cases together


def parse_precision(text: str | Sequence[str]) -> tuple[str, ...]:
    """The words of "fp32,int8", or of a list. Raises SpecError for others, and for one given twice."""
    words = [word.strip() for word in (text.split(",") if isinstance(text, str) else text)]
    for word in words or [""]:
        if word not in PRECISIONS:
            raise SpecError(f"There is no precision {word!r}; expected fp32, int8, or both as fp32,int8.")
        if words.count(word) > 1:
            raise SpecError(f"The precision {word} is given twice: give each once, as in fp32,int8.")
    return tuple(words)


def quantize(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    isolated: bool = False,
) -> Report:
    """Write the int8 form of an ONNX file in float32, and of its pipeline's file where that lies beside it.

    path: a network's file, a pipeline's, a live module's, or one of others that has an LSTM, GRU or RNN.
    out: the file to write; net.int8.onnx for net.onnx unless given, and net.generate.int8.onnx for its pipeline's.
    data: samples for the task's own metric, as seqexport.metrics reads them.
    isolated: open the files in a child process first, as load does.

    Raises ParityError if the gate is missed, and other SeqExportErrors for what can't be read, made int8 or written.
    Failures leave an existing destination unchanged.
    """
    start, path = time.perf_counter(), Path(path)
    sources = _sources(path, None if out is None else Path(out), isolated)
    with made_int8(sources, None if data is None else Path(data)) as made:
        report = Report((), properties=made.properties, files=made.files, **_about(path, made.notes))
        require_gate(report)
        put_in_place(made.drafts)
    return replace(report, seconds=time.perf_counter() - start)


def _about(path: Path, notes: Sequence[str]) -> dict[str, Any]:
    """What the report says of the source."""
    metadata = onnx_metadata(path)
    found = metadata.get("part", "an ONNX file")
    if isinstance(metadata.get("network"), dict):
        found = f"{found} of {NetworkSpec.from_dict(metadata['network'])}"
    digest = metadata.get("checkpoint_sha256")
    return {"source": str(path), "found": found, "notes": tuple(notes), "identity": {"checkpoint_sha256": digest}}


@dataclass(frozen=True)
class Source:
    """A float32 file and the int8 file to be. file: where it lies. shown: what a person calls it."""

    file: Path
    shown: Path
    target: Path


def _sources(path: Path, out: Path | None, isolated: bool) -> list[Source]:
    """The file, and its pipeline's beside it. Raises FileError where they or the destinations are not fit."""
    if is_checkpoint(path):
        raise FileError(
            f"{path} is a checkpoint; expected an ONNX file: python -m seqexport {path} --precision fp32,int8 exports "
            "it in both."
        )
    if isolated:
        open_apart(path)
    sources = [Source(path, path, out or int8_path(path))]
    metadata = onnx_metadata(path)
    if metadata.get("part") == "network" and metadata.get("task") in PIPELINES:
        for pipeline in (metadata["task"], metadata["task"] + TEXT):
            beside = pipeline_path(path, pipeline)
            if beside.is_file():
                if isolated:
                    open_apart(beside)
                sources.append(Source(beside, beside, pipeline_path(sources[0].target, pipeline)))
    for source in sources:
        check_pair(source.file)
    for source in sources:
        check_destination(source.target)
        for other in sources:
            if source.target.exists() and source.target.samefile(other.file):
                raise FileError(f"{source.target} is the float32 file itself: choose another output with -o.")
    return sources


@dataclass
class Made:
    """int8 files that lie beside their destinations, how they compare, and what a person should know."""

    drafts: list[Draft] = field(default_factory=list)
    properties: tuple[Property, ...] = ()
    files: tuple[WrittenFile, ...] = ()
    notes: tuple[str, ...] = ()
    kernels: bool = False

    def missed(self) -> Property | None:
        """The first mark that was missed."""
        return next((tried for tried in self.properties if not tried.held), None)

    def drop(self) -> None:
        """Delete what was not put in place."""
        for draft in self.drafts:
            draft.drop()


@contextlib.contextmanager
def made_int8(sources: Sequence[Source], data: Path | None) -> Iterator[Made]:
    """Write the int8 form of every source beside its destination and hold it against float32: with 7 bits, and where
    they miss a mark with 8, which are slower. Nothing is put in place, and drafts that the caller does not put in place
    are deleted in the end."""
    samples = [_samples(source, data) for source in sources]
    if data is not None and not any(samples):
        raise InputError(
            f"{data} can't be used, since there is no metric for {sources[0].shown}: give the file of a network with a "
            "task, its pipeline's beside it, or leave the samples out."
        )
    trials = [_Trial(source, given, data is not None) for source, given in zip(sources, samples, strict=True)]
    made = Made()
    try:
        _make(trials, 7, made)
        missed = made.missed()
        if missed is not None and made.kernels:
            made.drop()
            made = Made()
            _make(trials, 8, made)
            said = (
                f"7 bits miss the gate “{missed.name}” ({missed.error:.2g}): 8 are taken, with which LSTMs are slower"
            )
            made.notes += (said,)
        yield made
    finally:
        made.drop()


def _samples(source: Source, data: Path | None) -> Samples | None:
    metadata = onnx_metadata(source.file)
    return None if data is None else read_samples(data, metadata.get("part", "module"), metadata)


class _Trial:
    """A float32 file as it is rounded and compared: its model, its answers, its cases."""

    def __init__(self, source: Source, samples: Samples | None, beside: bool) -> None:
        """beside: the metric is measured, in this file or in one beside it."""
        self.source, self.samples, self.beside = source, samples, beside
        self.proto = _whole(source)
        to_int8(self.proto, str(source.shown))  # what can't be rounded is said before anything is run
        self.reference = OnnxRuntime(source.file)
        self.subject = _subject(self.reference, self.proto)
        self.vocabulary = _vocabulary(self.reference)
        self.planned = Plan(()) if samples else _plan(self.subject, self.reference, source.shown)

    def rounded(self, bits: Literal[7, 8]) -> Int8Model:
        """The int8 model with what it says of itself."""
        rounded = to_int8(self.proto, str(self.source.shown), bits)
        about = {"bits": bits, "int8_bytes": rounded.int8_bytes, "weight_bytes": rounded.weight_bytes}
        facts = {entry.key: entry.value for entry in rounded.model.metadata_props} | {
            "precision": "int8",
            "quantization": json.dumps(about),
            "quantized_from": sha256(self.source.file.read_bytes()).hexdigest(),
            "verification": json.dumps(self._verdict()),
        }
        onnx.helper.set_model_props(rounded.model, facts)
        return rounded

    def _verdict(self) -> dict[str, Any]:
        """What the file says of its gate; it stands there before it is reached, as in a float32 file."""
        if self.samples is not None:
            return {"passed": True, "gate": self.samples.metric, "allowed": METRIC, "cases": self.samples.count}
        allowed = {"cosine": 1 - _cosine(self.beside), "length": LENGTH, "decisions": 1 - DECISIONS}
        return {"passed": True, "gate": WITHOUT_METRIC, "allowed": allowed, "cases": len(self.planned.cases)}

    def compared(self, candidate: OnnxRuntime) -> tuple[Property, ...]:
        """How the int8 file lies to the float32 file."""
        split: tuple[Property, ...] = ()
        if self.vocabulary:
            split = (split_as_in_python(self.subject.part, candidate, self.vocabulary, FEW),)
        if self.samples is None:
            agreement = _Agreement(self.subject, self.reference, candidate)
            return (*agreement.over(self.planned.cases, self.beside), *split)
        names, part = ("float32", "int8"), self.subject.part
        reason = "a hundredth of float32's"
        return (task_metric(part, self.samples, self.reference, candidate, METRIC, reason, names), *split)


WITHOUT_METRIC = "cosine and decisions"


def _cosine(measured: bool) -> float:
    return COSINE_BESIDE if measured else COSINE


def agreement(file: Path, int8: Path) -> tuple[Property, ...]:
    """How an int8 file lies to the float32 file that it was made of, by the gate without samples: the wider one where
    the int8 files say that they passed by the task's metric.

    Raises InputError for a file that can't be fed with values made up for its inputs.
    """
    source, reference = Source(file, file, int8), OnnxRuntime(file)
    subject = _subject(reference, _whole(source))
    metadata = onnx_metadata(int8)
    other = pipeline_path if metadata.get("part") == "network" else network_path
    beside = other(int8, str(metadata.get("task")))
    verdicts = [metadata, *([onnx_metadata(beside)] if beside.is_file() else [])]
    gates = [found["verification"].get("gate") for found in verdicts if isinstance(found.get("verification"), dict)]
    measured = any(gate != WITHOUT_METRIC for gate in gates)
    return _Agreement(subject, reference, OnnxRuntime(int8)).over(_plan(subject, reference, file).cases, measured)


def _make(trials: Sequence[_Trial], bits: Literal[7, 8], made: Made) -> None:
    """Round, write beside, load what lies there, compare."""
    for trial in trials:
        source, rounded = trial.source, trial.rounded(bits)
        draft = write_beside(source.target, rounded.model.SerializeToString(deterministic=True))
        made.drafts.append(draft)
        made.properties += trial.compared(OnnxRuntime(draft.file))
        sizes = {"int8_bytes": rounded.int8_bytes, "weight_bytes": rounded.weight_bytes}
        made.files += (describe(trial.subject.part, draft.file, source.target, **sizes),)
        made.notes += (*trial.planned.notes, *(f"{source.shown}: {note}" for note in rounded.notes))
        made.kernels |= rounded.kernels


def _whole(source: Source) -> onnx.ModelProto:
    """The model with its weights, also those in files beside it."""
    model = parse_onnx(source.file)
    check_structure(source.file, model)
    onnx.load_external_data_for_model(model, str(source.file.parent))
    return model


def _vocabulary(runtime: OnnxRuntime) -> Vocabulary | None:
    """Of a graph of strings."""
    if runtime.metadata.get("part") not in TEXT_PIPELINES:
        return None
    preprocessing = runtime.metadata.get("preprocessing")
    return Vocabulary.from_dict(preprocessing.get("vocabulary", {}) if isinstance(preprocessing, dict) else {})


def _plan(subject: Subject, reference: OnnxRuntime, shown: Path) -> Plan:
    vocabulary = _vocabulary(reference)
    if vocabulary:
        return Plan(tuple(text_cases(subject, vocabulary, ordinary=True)))
    if subject.further is None:
        return plan(subject)
    try:
        return plan(subject, reference)
    except UnsupportedError as error:
        made_up = ", ".join(f"{spec.name} {spec}" for spec in subject.inputs)
        raise InputError(
            f"{shown} can't be held against its int8 form with values made up for {made_up}: "
            f"{str(error).partition(': ')[0]}; expected inputs whose values its graph tells of."
        ) from error


GENERATORS, CLASSIFIERS = ("generate", "generate.text"), ("classify", "classify.text")
LIKELIEST = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}


def _subject(runtime: OnnxRuntime, proto: onnx.ModelProto) -> Subject:
    """How the file may be fed, read off the file itself."""
    metadata = runtime.metadata
    part = metadata.get("part", "module")
    state_map = metadata["state_map"] if isinstance(metadata.get("state_map"), dict) else {}
    if part not in ("network", *PIPELINES, *TEXT_PIPELINES):
        inputs = tuple(_ranged(spec, proto.graph, runtime.inputs) for spec in runtime.inputs)
        further = dict.fromkeys(dynamic_dims(inputs), 32)
        return Subject("module", inputs, further=further)
    return Subject(
        part,
        runtime.inputs,
        state_map,
        prepare={"history": _in_units(metadata)} if part == "forecast" else {},
        settings=(LIKELIEST,) if part in GENERATORS else ({},),
    )


def _in_units(metadata: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Standard normal numbers → values in the units of the forecaster's series."""
    import torch

    from seqexport.pipelines import Scaling

    preprocessing = metadata.get("preprocessing")
    scaling = Scaling.from_dict(preprocessing.get("scaling", {}) if isinstance(preprocessing, dict) else {})
    return lambda z: scaling.undo(torch.from_numpy(z)).numpy()


_PASSED_ON = (
    *("Cast", "Clip", "Concat", "Expand", "Flatten", "Gather", "Identity", "Min", "Reshape", "Slice", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)


def _ranged(spec: TensorSpec, graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The spec with the range of its integers: the rows of the table that they choose from, or, for lengths of rows,
    the steps of the input."""
    if not spec.dtype.startswith("int"):
        return spec
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    carriers = {spec.name}
    for node in _nodes(graph):
        places = [place for place, name in enumerate(node.input) if name in carriers]
        if node.op_type in _PASSED_ON and places[:1] == [0]:
            carriers |= set(node.output)
        if node.op_type == "Gather" and 1 in places and node.input[0] in tables:
            return replace(spec, low=0, high=tables[node.input[0]] - 1)
        if node.op_type in RECURRENT and 4 in places:
            steps = [dim for other in inputs if len(other.dims) > 1 for dim in other.dims[:2] if dim not in spec.dims]
            return replace(spec, low=1, high=steps[0] if steps else 1)
    return spec


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes, those of loop bodies after the node that has them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


class _Agreement:
    """How the outputs of both lie to each other, over all cases."""

    def __init__(self, subject: Subject, reference: OnnxRuntime, candidate: OnnxRuntime) -> None:
        self.subject, self.reference, self.candidate = subject, reference, candidate
        self.turned: list[_Measured] = []  # 1 - cosine
        self.stretched: list[_Measured] = []  # |1 - length / length|
        self.sums: dict[str, np.ndarray] = {}  # of each output over all cases: a·b, a·a, b·b
        self.decided = np.zeros(4, np.int64)  # decisions, of them the same; sure ones, of them the same
        self.whole = np.zeros(2, np.int64)  # whole numbers, of them the same

    def over(self, cases: Sequence[Case], measured: bool) -> tuple[Property, ...]:
        """Run every case on both; the properties that int8 is held to. measured: whether the task's metric is, too."""
        for case in cases:
            feeds = {**case.feeds, **(LIKELIEST if self.subject.part in GENERATORS else {})}
            expected = self.reference.run(feeds)
            try:
                found = self.candidate.run(feeds)
            except InputError as error:
                self.turned.append(_Measured(math.inf, f"{case.name}: {error}"))
                continue
            lost = self._decide(feeds, expected, found)
            for name, value in expected.items():
                self._measure(name, case, value, found[name], lost)
        for name, (product, ours, theirs) in self.sums.items():
            self._turn(f"{name}, all cases", product, ours, theirs)
            if ours > 0:
                self.stretched.append(_Measured(abs(math.sqrt(theirs / ours) - 1), name))
        return self._properties(len(cases), _cosine(measured), measured)

    def _decide(
        self, feeds: Mapping[str, Any], expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
    ) -> list[int]:
        """Count the decisions that are the same. Gives the rows of a text that parted, after which nothing in them can
        be compared."""
        if self.subject.part in GENERATORS:
            return self._decide_tokens(feeds, expected["tokens"], found["tokens"])
        task = self.reference.metadata.get("task")
        logits = self.subject.part == "network" and task in ("classify", "generate")
        for name, value in expected.items():
            if value.dtype.kind != "f" and self.subject.part in TEXT_PIPELINES:
                continue  # the label follows from the probabilities, and what was read is seen by itself
            if value.dtype.kind != "f":
                self.whole += [value.size, (value == found[name]).sum()]
            elif self.subject.part in CLASSIFIERS or (logits and name == "y"):
                shares = _softmax(value) if logits else value
                second, first = np.moveaxis(np.partition(shares, -2)[..., -2:], -1, 0)
                self._count(value.argmax(-1) == found[name].argmax(-1), first - second >= SURE)
        return []

    def _decide_tokens(self, feeds: Mapping[str, Any], tokens: np.ndarray, others: np.ndarray) -> list[int]:
        """Of each row the tokens up to the first that differs, which were chosen after the same ones. Float32 was sure
        of a token where both ends of the distribution are the same token, there and in all before it."""
        ends = [
            self.reference.run(
                {**feeds, "temperature": SURE_TEMPERATURE, "uniforms": np.full(feeds["uniforms"].shape, end)}
            )["tokens"]
            for end in SURE_ENDS
        ]
        sure = np.logical_and.accumulate((ends[0] == tokens) & (ends[1] == tokens), 1)
        same = tokens == others
        reached = np.logical_and.accumulate(np.roll(same, 1, 1) | (np.arange(same.shape[1]) == 0), 1)
        self._count(same[reached], sure[reached])
        return [int(row) for row in np.flatnonzero(~same.all(1))]

    def _count(self, same: np.ndarray, sure: np.ndarray) -> None:
        self.decided += [same.size, same.sum(), sure.sum(), (same & sure).sum()]

    def _measure(self, name: str, case: Case, value: np.ndarray, other: np.ndarray, lost: Sequence[int]) -> None:
        if value.dtype.kind != "f":
            return
        if lost:  # a text's states have their rows second
            value, other = (np.delete(array, lost, 1) for array in (value, other))
        a, b = (array.astype(np.float64).ravel() for array in (value, other))
        sums = np.array([a @ b, a @ a, b @ b]) if a.shape == b.shape else np.full(3, np.nan)
        self.sums[name] = self.sums.get(name, np.zeros(3)) + sums
        if a.size >= FEWEST:
            self._turn(f"{name}, {case.name}", *sums)

    def _turn(self, where: str, product: float, ours: float, theirs: float) -> None:
        """Two vectors of zeros are alike; of one, the cosine is not there and counts as apart, as NaN does."""
        lengths = math.sqrt(ours) * math.sqrt(theirs)
        apart = 0.0 if ours == theirs == 0 else 1 - product / lengths if lengths else math.inf
        self.turned.append(_Measured(apart, where))

    def _properties(self, cases: int, cosine: float, measured: bool) -> tuple[Property, ...]:
        turned, stretched = _worst(self.turned), _worst(self.stretched)
        beside = "the task metric is measured in the file beside it"
        about = beside if measured else "no task metric was measured: --data FILE of samples gives one"
        claim, reason = "outputs and states point where float32's point", f"a cosine of {1 - cosine:g}"
        notes = (f"worst at {turned.where}; {about}",)
        made = [self._property("int8 cosine", claim, cases, turned.error, cosine, reason, notes)]
        claim, notes = "outputs and states are as large as float32's", (f"worst at {stretched.where}",)
        reason = "what a cosine does not see; over all cases together"
        made.append(self._property("int8 length", claim, cases, stretched.error, LENGTH, reason, notes))
        decided, same, sure, sure_same = map(int, self.decided)
        if decided:
            claim, reason = "where float32 was sure of a label or token, int8 has the same", f"ahead by {SURE} or more"
            said = f"{sure_same:,} of {sure:,} that float32 was sure of are the same, {same:,} of all {decided:,}"
            apart = (sure - sure_same) / max(sure, 1)
            made.append(self._property("int8 decisions", claim, decided, apart, DECISIONS, reason, (said,)))
        numbers, equal = map(int, self.whole)
        if numbers:
            claim, reason = "whole numbers, such as labels, are float32's", "they don't say how sure float32 was"
            said, apart = f"{equal:,} of {numbers:,} are the same", (numbers - equal) / numbers
            made.append(self._property("int8 whole numbers", claim, numbers, apart, WHOLE, reason, (said,)))
        return tuple(made)

    def _property(
        self, name: str, claim: str, trials: int, error: float, allowed: float, reason: str, notes: tuple[str, ...]
    ) -> Property:
        return Property(self.subject.part, name, claim, trials, error, allowed, reason, notes=notes)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@dataclass(frozen=True)
class _Measured:
    error: float
    where: str


def _worst(measured: Sequence[_Measured]) -> _Measured:
    """The largest; NaN is larger than any."""
    key = lambda one: math.inf if math.isnan(one.error) else one.error  # noqa: E731
    return max(measured, key=key, default=_Measured(math.nan, "no output"))


def require_gate(report: Report) -> None:
    """Raise ParityError, with what missed its mark, unless int8 is close enough."""
    missed = next((tried for tried in report.properties if not tried.held), None)
    if missed is None:
        return
    note = f" ({missed.notes[0]})" if missed.notes else ""
    raise ParityError(
        f"The int8 form of {report.source} misses the gate “{missed.name}” in its {missed.part}: found a difference of "
        f"{missed.error:.2g}{note}, expected at most {missed.allowed:g}: nothing was written; keep the float32 file.",
        report,
    )


def describe(part: str, file: Path, shown: Path, **int8: int) -> WrittenFile:
    """A written file for the report: `file` is where it lies, `shown` where it will."""
    model = onnx.load_model(file, load_external_data=False)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return WrittenFile(part, str(shown), file.stat().st_size, opset, len(list(_nodes(model.graph))), **int8)
