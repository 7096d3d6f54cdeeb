"""A module to ONNX: trace, lower, name, default state, metadata; verify; and replace the file only then."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from seqexport import __version__
from seqexport.checkpoint import read_checkpoint
from seqexport.errors import FileError, InputError, SpecError, UnsupportedError
from seqexport.files import Draft, check_destination, put_in_place, write_beside
from seqexport.functional import evaluating
from seqexport.graphs import DEFAULT_OPSET, OPSETS, build_graph
from seqexport.inference import Choices
from seqexport.isolation import check_structure, parse_onnx
from seqexport.metrics import read_samples, task_metric
from seqexport.modules import UserModule
from seqexport.opinions import Exact, weighed
from seqexport.parts import Part, State, checkpoint_parts, module_parts
from seqexport.quantization import Source, describe, made_int8, parse_precision, require_gate
from seqexport.reports import TOLERANCE, Outcome, Property, Report, Sample, Stage, require
from seqexport.runtimes import OnnxRuntime, Runtime, TorchRuntime, int8_path, onnx_metadata, parse_metadata
from seqexport.specs import TEXT_PIPELINES
from seqexport.textcases import FEW, THOROUGH, joined_as_in_python, split_as_in_python, text_cases
from seqexport.textgraphs import check_opset, with_strings
from seqexport.tracing import Trace, example_sizes, sizes_against, trace
from seqexport.verification import Case, Plan, compare_facts, plan, verify


def export(
    model: nn.Module | UserModule | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
    state: State = "optional",
    choices: Choices | None = None,
    state_map: Mapping[str, str] | None = None,
    precision: str | Sequence[str] = "fp32",
    data: str | os.PathLike[str] | None = None,
    text: bool = False,
    tell: Callable[[Stage], object] = lambda stage: None,
) -> Report:
    """Export a live module, or a checkpoint's network and pipeline, verify what was written, and only then replace.

    model: an nn.Module, or what load_module gives, with `inputs` giving a spec for each of forward's arguments, in
        forward's order, such as {"x": "float32[batch,time,8]"}; or the path of a checkpoint.
    path: the ONNX file to write; for a checkpoint its own name with the suffix .onnx unless given. A pipeline goes
        beside it. A link is followed and stays.
    state: for a checkpoint, whether the state is an optional input, an explicit one, or none.
    choices: for a bare state_dict, what its weights can't tell.
    state_map: for a live module, {"hidden": "output_1"}: the input that a caller feeds an output back to. It goes into
        the file's metadata.
    precision: "fp32", "int8" or both, "fp32,int8": int8 goes into files of its own, net.int8.onnx beside net.onnx.
    data: samples for the task's own metric, which int8 is then held to.
    text: also write a classifier's or a generator's pipeline with strings in and out, net.classify.text.onnx.
    tell: called with each Stage that begins, for whoever waits.

    Raises ParityError if the file does not give what torch gives or int8 is too far from it, and other SeqExportErrors
    for what can't be read, exported or written. Failures leave an existing destination unchanged.
    """
    start, precisions = time.perf_counter(), parse_precision(precision)
    if data is not None and "int8" not in precisions:
        raise InputError(
            "Samples are what int8 is held to: ask for it with the precision fp32,int8, or leave them out."
        )
    if opset not in OPSETS:
        raise SpecError(f"The opset {opset} is out of reach; expected {OPSETS[0]} to {OPSETS[-1]}.")
    if state not in ("optional", "explicit", "none"):
        raise SpecError(f"The state is {state!r}; expected optional, explicit or none.")
    if isinstance(model, nn.Module):
        model = UserModule(model, type(model).__name__)
    if text:
        check_opset(opset)
    if isinstance(model, UserModule):
        if text:
            raise SpecError("A live module has no vocabulary for text: leave `text` out, or give a checkpoint.")
        if path is None or inputs is None:
            raise SpecError(
                "A live module needs a path to write and the specs of its inputs: export(model, path, inputs=…)."
            )
        check_destination(Path(path))
        parts, about = module_parts(model, Path(path), inputs, state_map or {})
    else:
        if inputs is not None:
            raise SpecError("A checkpoint's inputs are known: leave `inputs` out, or give a live module.")
        target = Path(path or Path(model).with_suffix(".onnx"))
        check_destination(target)
        tell(Stage("read", "checkpoint"))
        checkpoint = read_checkpoint(model, choices)
        parts, about = checkpoint_parts(checkpoint, target, state, text)
        _check_destinations(checkpoint.path, parts)
    if "int8" in precisions:
        _check_int8_destinations(parts, precisions)
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(evaluating(part.module))
        report = _write_verified(parts, opset, about, precisions, None if data is None else Path(data), tell)
    return replace(report, seconds=time.perf_counter() - start)


def verify_files(
    model: UserModule | str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    choices: Choices | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    thorough: bool = False,
    data: str | os.PathLike[str] | None = None,
) -> Report:
    """Hold an ONNX file that was exported before (a network's, a pipeline's, a user module's) against its checkpoint.

    model: the checkpoint's path, or what load_module gives, with the specs of its inputs. thorough: also try the
    properties of seqexport.properties, which takes up to a minute. data: samples for the task's own metric, as
    seqexport.metrics reads them.

    The report is returned whether it passed or not. Raises FileError for a file that came from another checkpoint.
    """
    start, path = time.perf_counter(), Path(onnx_path)
    metadata = onnx_metadata(path)
    if metadata.get("precision") == "int8":
        raise InputError(
            f"{path} is an int8 file, which is further from torch than rounding: verify the float32 file it was made "
            "of, and hold int8 against that with python -m seqexport quantize, which writes it anew."
        )
    check_structure(path, parse_onnx(path))
    candidate = OnnxRuntime(path)
    if isinstance(model, UserModule):
        parts, about = module_parts(model, path, inputs or {}, {})
        part = parts[0]
        source, digest = model.source, model.checkpoint_sha256
    else:
        checkpoint = read_checkpoint(model, choices)
        source, digest = str(checkpoint.path), checkpoint.sha256
        text, state = metadata.get("part") in TEXT_PIPELINES, _state_of(candidate, checkpoint.spec.state_map)
        parts, about = checkpoint_parts(checkpoint, path, state, text)
        part = next((part for part in parts if part.subject.part == metadata.get("part", "network")), parts[0])
    if digest and metadata.get("checkpoint_sha256", digest) != digest:
        raise FileError(f"{path} was written from another checkpoint than {source}: export it again.")
    with evaluating(part.module):
        planned = _cases(part)
        facts = part.metadata if "part" in metadata else {}  # a file that others wrote says nothing of itself
        outcomes, numbers = _verified_numbers(parts[1]) if part.strings else ([], None)
        outcomes += _verify_part(part, candidate, planned.cases, facts, numbers)
        tried = _read_and_written(part, candidate, path, THOROUGH if thorough else FEW)
        samples: Sequence[Sample] = ()
        if thorough and part.strings is None:
            tried, samples = _examined(part, candidate, path)
        if data is not None:
            tried.append(_measured(part, candidate, metadata, Path(data)))
    about["notes"] = (*about["notes"], *planned.notes)
    return Report(
        tuple(outcomes),
        files=(describe(part.subject.part, path, path),),
        seconds=time.perf_counter() - start,
        properties=tuple(tried),
        samples=tuple(samples),
        identity={
            "checkpoint_sha256": digest,
            "file_sha256": sha256(path.read_bytes()).hexdigest(),
            "versions": _versions(),
        },
        **about,
    )


def _verified_numbers(part: Part) -> tuple[list[Outcome], OnnxRuntime]:
    """The graph of the numbers behind a file of strings, made anew, and how it came out against torch."""
    traced = trace(part.module, part.inputs, example_sizes(part.inputs, part.module))
    runtime = OnnxRuntime(build_graph(part, traced, DEFAULT_OPSET, {}).SerializeToString())
    return _verify_part(part, runtime, _cases(part).cases, {}), runtime


def _measured(part: Part, candidate: OnnxRuntime, metadata: Mapping[str, Any], data: Path) -> Property:
    samples = read_samples(data, part.subject.part, metadata)
    if samples is None:
        raise InputError(
            "There is no metric for this graph: give the pipeline's file of a forecaster or a classifier, or the "
            "network's file of a generator."
        )
    return task_metric(part.subject.part, samples, _reference(part), candidate)


def _examined(part: Part, candidate: OnnxRuntime, path: Path) -> tuple[list[Property], Sequence[Sample]]:
    from seqexport.properties import examine

    return examine(part, candidate, _reference(part), path)


def _read_and_written(part: Part, candidate: OnnxRuntime, file: Path, count: int) -> list[Property]:
    """How a graph of strings reads and joins them; nothing for others."""
    if part.strings is None:
        return []
    vocabulary, name = part.strings.vocabulary, part.subject.part
    tried = [split_as_in_python(name, candidate, vocabulary, count)]
    return tried if part.strings.labels else [*tried, joined_as_in_python(name, parse_onnx(file), vocabulary)]


def _state_of(candidate: OnnxRuntime, state_map: Mapping[str, str]) -> State:
    """How the file takes its state."""
    states = [spec for spec in candidate.inputs if spec.name in state_map]
    if not states:
        return "none"
    return "optional" if all(spec.optional for spec in states) else "explicit"


def _check_destinations(source: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        check_destination(part.path)
        if part.path.exists() and source.exists() and part.path.samefile(source):
            raise FileError(f"{part.path} is the checkpoint itself: choose another output with -o.")


def _check_int8_destinations(parts: Sequence[Part], precisions: Sequence[str]) -> None:
    for part in parts:
        target = int8_path(part.path)
        if target == part.path and "fp32" in precisions:
            raise FileError(f"{target} is the name of an int8 file, and float32 can't have it too: choose another.")
        check_destination(target)


def _write_verified(
    parts: Sequence[Part],
    opset: int,
    about: Mapping[str, Any],
    precisions: Sequence[str],
    data: Path | None,
    tell: Callable[[Stage], object],
) -> Report:
    """Write every graph beside its destination, verify what lies on the disk, make int8 of it where that is asked for,
    and put all in place only then."""
    written: list[tuple[Part, Draft]] = []
    outcomes: list[Outcome] = []
    tried: list[Property] = []
    notes: list[str] = list(about["notes"])
    candidate: OnnxRuntime | None = None
    try:
        for part in parts:
            tell(Stage("trace", part.subject.part))
            sizes = part.subject.further or example_sizes(part.inputs, part.module)
            traced = trace(part.module, part.inputs, sizes)
            planned = _plan(part, traced)
            notes += planned.notes
            graph = build_graph(part, traced, opset, _metadata(part, len(planned.cases)))
            if part.strings:
                graph = with_strings(graph, part.strings.vocabulary, part.strings.labels)
            draft = write_beside(part.path, graph.SerializeToString(deterministic=True))
            written.append((part, draft))
            numbers, candidate = candidate, OnnxRuntime(draft.file)
            outcomes += _verify_part(part, candidate, planned.cases, part.metadata, numbers, tell)
            tried += _read_and_written(part, candidate, draft.file, FEW)
            _explain(part, traced, planned.cases, outcomes[-len(planned.cases) :])
        report = Report(tuple(outcomes), properties=tuple(tried), **{**about, "notes": tuple(notes)})
        require(report, " and ".join(str(part.path) for part in parts))
        drafts: list[Draft] = []
        if "fp32" in precisions:
            files = tuple(describe(part.subject.part, draft.file, part.path) for part, draft in written)
            report, drafts = replace(report, files=files), [draft for _, draft in written]
        if "int8" not in precisions:
            put_in_place(drafts)
            return report
        tell(Stage("int8"))
        sources = [Source(draft.file, part.path, int8_path(part.path)) for part, draft in written]
        with made_int8(sources, data) as made:
            files, notes = (*report.files, *made.files), [*notes, *made.notes]
            report = replace(report, files=files, notes=tuple(notes), properties=(*tried, *made.properties))
            require_gate(report)
            put_in_place([*drafts, *made.drafts])
        return report
    finally:
        for _, draft in written:
            draft.drop()


def _plan(part: Part, traced: Trace) -> Plan:
    """The part's cases; a user's module is also tried where what its code asked of sizes is not so."""
    restrictions = traced.restrictions if part.subject.further else ()
    asked = [sizes for restriction in restrictions if (sizes := sizes_against(restriction, traced.sizes))]
    return _cases(part, asked)


def _cases(part: Part, asked: Sequence[Mapping[str, int]] = ()) -> Plan:
    if part.strings:
        return Plan(tuple(text_cases(part.subject, part.strings.vocabulary)))
    return plan(part.subject, _reference(part), asked)


def _explain(part: Part, traced: Trace, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> None:
    """Raise UnsupportedError where a user's module differs because its code takes another way at other sizes."""
    if not part.subject.further:
        return
    for case, outcome in zip(cases, outcomes, strict=True):
        if outcome.passed(TOLERANCE):
            continue
        for restriction in traced.restrictions:
            if restriction.line and not restriction.holds(case.sizes):
                example = ", ".join(f"{dim} {traced.sizes[dim]}" for dim in restriction.names)
                raise UnsupportedError(
                    f"{restriction}, and at {case.name} torch takes another way than at {example}, the example, which "
                    "the graph would keep: "
                    "write that step with tensors, for every size alike, or give the dim as a number."
                )


def _reference(part: Part) -> TorchRuntime:
    return TorchRuntime(part.module, part.inputs, part.output_names)


def _verify_part(
    part: Part,
    candidate: OnnxRuntime,
    cases: Sequence[Case],
    facts: Mapping[str, Any],
    numbers: OnnxRuntime | None = None,
    tell: Callable[[Stage], object] = lambda stage: None,
) -> list[Outcome]:
    """numbers: the pipeline's own graph, verified before, which a graph of strings is held against with the split in
    Python. (Torch's rounding is no matter there: the texts tried are so strange that a net may multiply it.)"""
    outcomes = compare_facts(part.subject.part, parse_metadata(_as_written(facts)), candidate.metadata)
    reference: Runtime = _reference(part)
    if part.strings:
        assert numbers is not None
        reference = part.strings.reference.around(numbers)
    for place, case in enumerate(cases, 1):
        tell(Stage("verify", part.subject.part, place, len(cases)))
        outcomes += [_weighed(part, case, outcome) for outcome in verify(part.subject, reference, candidate, [case])]
    return outcomes


def _weighed(part: Part, case: Case, outcome: Outcome) -> Outcome:
    """The outcome beside torch in float64, where that can explain it."""
    if part.strings or outcome.passed(TOLERANCE):
        return outcome
    exact = Exact(part.module, part.inputs, part.output_names)
    return weighed(outcome, exact, case.feeds, _reference(part).run(case.feeds))


def _metadata(part: Part, cases: int) -> dict[str, str]:
    """metadata_props, as README's table documents them.

    The verdict may stand in the file before it is reached, since a file that fails it is never put in place.
    """
    values: dict[str, Any] = {
        **part.metadata,
        "versions": _versions(),
        "verification": {"passed": True, "tolerance": TOLERANCE, "cases": cases},
    }
    return _as_written(values)


def _as_written(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    versions = {"seqexport": __version__, **{name: version(name) for name in packages}}
    return versions | {"python": platform.python_version()}
