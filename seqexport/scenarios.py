"""What is compared: who takes part, what each is asked, and whether its answers are torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seqexport.batching import BATCH, by_length, encode, in_order, probabilities
from seqexport.checkpoint import Checkpoint
from seqexport.errors import SeqExportError
from seqexport.parts import checkpoint_parts
from seqexport.peers import Loop, OpenVino, TorchCompile, load, missing
from seqexport.reports import Outcome
from seqexport.runtimes import OnnxRuntime, Runtime, TorchRuntime, int8_path, pipeline_path, torch_runtime
from seqexport.sources import first_line
from seqexport.specs import NetworkSpec
from seqexport.text import Vocabulary
from seqexport.timing import Job
from seqexport.verification import Case, Subject, compare_outputs, make_case

CHAINED = 20  # steps whose answers are compared before a step is timed
LENGTH = 100  # of the sequence
GRID = tuple((batch, length) for length in (10, 100) for batch in (1, 8, 32))  # of the throughput
CHARACTERS, HORIZON, PATHS, TEXTS, SLICE, PROMPT = 500, 50, 200, 1000, 250, 10


@dataclass(frozen=True)
class Entrant:
    """One that takes part. label: what it is called; runtime: the name by which it is asked for. peer: whether it is
    one of those that the graph with the loop in it is measured against, all of them in float32."""

    label: str
    runtime: str
    model: Runtime
    peer: bool = True


@dataclass(frozen=True)
class Absent:
    """A runtime that does not take part: why, and the command that would change it, where there is one."""

    runtime: str
    why: str
    command: str = ""


@dataclass(frozen=True)
class Source:
    """What is compared: a checkpoint, None where there is only a file, and the network's file in ONNX."""

    path: Path
    checkpoint: Checkpoint | None
    onnx: Path
    spec: NetworkSpec
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str | None:
        """The pipeline, of which there must be a file too."""
        task = self.checkpoint.task if self.checkpoint else self.metadata.get("task")
        return task if task and pipeline_path(self.onnx, task).is_file() else None


def enter(source: Source, part: str | None, names: Sequence[str], threads: int) -> tuple[list[Entrant], list[Absent]]:
    """Everyone of the runtimes `names` that can run the network (part None) or the pipeline, torch's default first."""
    entrants: list[Entrant] = []
    absent = []
    for name in names:
        if name.startswith("torch") and source.checkpoint is None:
            absent.append(Absent(name, f"{source.path} is no checkpoint, and torch runs nothing else"))
            continue
        if command := missing(name, source.onnx):
            why = "there is no quantised file beside the network's" if "quantize" in command else "it is not installed"
            absent.append(Absent(name, why, command))
            continue
        try:
            entrants += _entrants(source, part, name, threads)
        except SeqExportError as error:
            absent.append(Absent(name, str(error)))
        except Exception as error:  # what a broken installation raises
            absent.append(Absent(name, f"{type(error).__name__}: {first_line(error)}"))
    return entrants, absent


def _entrants(source: Source, part: str | None, name: str, threads: int) -> list[Entrant]:
    if name in ("torch", "torch-compile"):
        assert source.checkpoint is not None
        kind = TorchRuntime if name == "torch" else TorchCompile
        return [
            Entrant(label, name, _in_torch(source.checkpoint, part, threads, onednn, kind))
            for label, onednn in ((f"{name}, oneDNN on", True), (f"{name}, oneDNN off", False))
        ]
    model = load(source.onnx, name, pipeline=part, threads=threads)
    # What runs a pipeline's graph runs seqexport's loop: only a loop in Python is a peer of that.
    peer = name == "openvino" and (part is None or isinstance(model, Loop))
    graph = Entrant(model.name if name == "openvino" else name, name, model, peer)
    if part is None or name not in ("onnxruntime", "openvino") or isinstance(model, Loop):
        return [graph]
    kind_: Any = OnnxRuntime if name == "onnxruntime" else OpenVino
    loop = Loop(kind_(source.onnx, threads=threads), part)
    return [graph, Entrant(loop.name, name, loop)]


def _in_torch(
    checkpoint: Checkpoint, part: str | None, threads: int, onednn: bool, kind: type[TorchRuntime]
) -> TorchRuntime:
    """A classifier in torch gives the probabilities alone, as one would write it: the running ones cost it a loop."""
    runtime = torch_runtime(checkpoint, part, threads=threads, onednn=onednn, kind=kind)
    if part == "classify":
        import torch

        pipeline: Any = runtime.module
        runtime.module = lambda tokens, lengths: (torch.softmax(pipeline.logits(tokens, lengths), -1),)
        runtime.output_names = ("probabilities",)
    return runtime


@dataclass(frozen=True)
class Scenario:
    """One thing that everyone is asked.

    work: how many of `unit` one call does. feeds: what is fed, the same to all. answer: entrant → outputs, to be held
    against the first one's. job: entrant → what is timed. judge: expected, found → how they compare.
    """

    key: str
    title: str
    unit: str
    work: int
    entrants: Sequence[Entrant]
    answer: Callable[[Entrant], Mapping[str, np.ndarray]]
    job: Callable[[Entrant], Job]
    judge: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Outcome]
    sizes: Mapping[str, int] = field(default_factory=dict)


def step(entrants: Sequence[Entrant], spec: NetworkSpec) -> Scenario:
    """One step of one row, the state carried from call to call."""
    rng = np.random.default_rng(1)
    sizes = {"batch": 1, "time": 1}
    feeds = {part.name: part.sample(sizes, rng) for part in (spec.input, *spec.state)}
    xs = [spec.input.sample(sizes, rng) for _ in range(CHAINED)]

    def known(model: Runtime, values: Mapping[str, Any]) -> dict[str, Any]:
        names = {part.name for part in model.inputs}
        return {name: value for name, value in values.items() if name in names}

    def answer(entrant: Entrant) -> Mapping[str, np.ndarray]:
        model, state, ys = entrant.model, dict(feeds), []
        for x in xs:
            outputs = model.run(known(model, state | {spec.input.name: x}))
            state |= {source: outputs[output] for source, output in spec.state_map.items()}
            ys.append(np.asarray(outputs["y"]))
        return {"y": np.stack(ys)} | {output: np.asarray(state[name]) for name, output in spec.state_map.items()}

    def job(entrant: Entrant) -> Job:
        model = entrant.model
        values = model.native(known(model, feeds))
        places = [(name, model.output_names.index(spec.state_map[name])) for name in values if name in spec.state_map]

        def call(_: int) -> None:
            outputs = model.call(values)
            for name, place in places:
                values[name] = outputs[place]

        return Job(call, model.ready)

    return Scenario("step", "one step, state carried", "step", 1, entrants, answer, job, _network_judge(spec), sizes)


def sequence(entrants: Sequence[Entrant], spec: NetworkSpec, batch: int, length: int, key: str) -> Scenario:
    """A batch of sequences at once, from the zero state."""
    sizes = {"batch": batch, "time": length}
    feeds = {spec.input.name: spec.input.sample(sizes, np.random.default_rng(2))}
    title = f"{batch} × {length} steps at once"
    asked = (entrants, *_plain(feeds), _network_judge(spec))
    return Scenario(key, title, "step", batch * length, *asked, sizes)


def _network_judge(spec: NetworkSpec) -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Outcome]:
    subject, case = Subject("network", (spec.input, *spec.state), spec.state_map), Case("the same input", {})
    return lambda expected, found: compare_outputs(subject, case, expected, found)


def _plain(feeds: Mapping[str, np.ndarray]) -> tuple[Callable[..., Any], Callable[[Entrant], Job]]:
    def job(entrant: Entrant) -> Job:
        values = entrant.model.native(feeds)
        return Job(lambda _: entrant.model.call(values), entrant.model.ready)

    return (lambda entrant: entrant.model.run(feeds)), job


def subject_of(source: Source, part: str) -> Subject:
    """How the pipeline is fed, and what is decided by its outputs."""
    if source.checkpoint is None:
        from seqexport.specs import pipeline_inputs

        return Subject(part, pipeline_inputs(part, source.spec), source.spec.state_map)
    parts, _ = checkpoint_parts(source.checkpoint, source.onnx, "optional")
    return replace(parts[-1].subject, sharpen=dict)


def pipelines(
    source: Source, part: str, entrants: Sequence[Entrant], texts: Sequence[str], about: str
) -> list[Scenario]:
    """The pipeline as it is used. texts: what a classifier reads, and what is said of them."""
    subject = subject_of(source, part)
    if part == "classify":
        return [_classify(source, subject, entrants, texts, about)]
    rng = np.random.default_rng(3)
    context = int(source.metadata.get("preprocessing", {}).get("context", 100))
    asked: Sequence[tuple[str, str, dict[str, int], dict[str, float]]] = (
        (
            ("generate", f"{CHARACTERS} tokens", {"time": PROMPT, "steps": CHARACTERS}, {}),
            (
                "generate, top-k and top-p",
                f"{CHARACTERS} tokens, top-k 40 and top-p 0.9",
                {"time": PROMPT, "steps": CHARACTERS},
                {"top_k": 40, "top_p": 0.9},
            ),
        )
        if part == "generate"
        else (
            ("forecast", f"{HORIZON} steps", {"time": context, "paths": 1, "horizon": HORIZON}, {}),
            (
                "forecast, many paths",
                f"{HORIZON} steps, {PATHS} paths",
                {"time": context, "paths": PATHS, "horizon": HORIZON},
                {},
            ),
        )
    )
    scenarios = []
    for key, title, sizes, settings in asked:
        case = make_case(subject, [title], {"batch": 1, **sizes}, False, settings, rng)
        work, unit = (CHARACTERS, "token") if part == "generate" else (HORIZON * sizes["paths"], "step")
        scenarios.append(
            Scenario(key, title, unit, work, entrants, *_plain(case.feeds), _judge(subject, case), case.sizes)
        )
    return scenarios


def _judge(subject: Subject, case: Case) -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Outcome]:
    return lambda expected, found: compare_outputs(subject, case, expected, found)


def _classify(
    source: Source, subject: Subject, entrants: Sequence[Entrant], texts: Sequence[str], about: str
) -> Scenario:
    """Texts, their split into tokens included, in each way of giving them; a turn takes SLICE of them, the same for
    everyone, and the next turn the next ones."""
    vocabulary = Vocabulary.from_dict(source.metadata["preprocessing"]["vocabulary"])
    takers = {replace(entrant, label=f"{entrant.label}, {way}"): way for entrant in entrants for way in _ways(entrant)}

    def classified(model: Runtime, way: str, texts: Sequence[str]) -> np.ndarray:
        rows = encode(vocabulary, texts)
        return probabilities(model, rows, WAYS[way]([len(row) for row in rows]))

    per_turn = min(SLICE, len(texts))
    slices = [texts[start : start + per_turn] for start in range(0, len(texts) - per_turn + 1, per_turn)]

    def answer(entrant: Entrant) -> Mapping[str, np.ndarray]:
        return {"probabilities": classified(entrant.model, takers[entrant], texts)}

    def job(entrant: Entrant) -> Job:
        model, way = entrant.model, takers[entrant]
        return Job(lambda number: classified(model, way, slices[number % len(slices)]), model.ready)

    case = Case(about, {}, None, {"batch": len(texts)})
    title = f"{len(texts):,} {about}, {per_turn} at a time"
    return Scenario("classify", title, "text", per_turn, list(takers), answer, job, _judge(subject, case))


# How texts are given: one by one, padded in the file's order, or padded in the order of their lengths.
FILE_ORDER = f"batches of {BATCH}"
WAYS: Mapping[str, Callable[[Sequence[int]], list[np.ndarray]]] = {
    FILE_ORDER: lambda lengths: in_order(len(lengths), BATCH),
    f"{FILE_ORDER} by length": by_length,
    "one by one": lambda lengths: in_order(len(lengths), 1),
}


def _ways(entrant: Entrant) -> list[str]:
    """A network alone can't take padded texts; onnx's evaluator would take minutes for so many, and has said its
    opinion at the network."""
    if entrant.runtime == "reference":
        return []
    return ["one by one"] if isinstance(entrant.model, Loop) else list(WAYS)


def made_texts(preprocessing: Mapping[str, Any], count: int) -> list[str]:
    """Texts of the vocabulary's own words, drawn at random, of 5 words up to what the model was trained to read."""
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    rng = np.random.default_rng(4)
    longest = max(6, int(preprocessing.get("window") or 100))
    lengths = rng.integers(5, longest + 1, count)
    return [vocabulary.decode(rng.integers(1, len(vocabulary), length)) for length in lengths]


def file_of(source: Source, runtime: str) -> Path:
    """The file of the network that the runtime reads."""
    if runtime.startswith("torch"):
        return source.path
    return int8_path(source.onnx) if runtime.endswith("int8") else source.onnx
