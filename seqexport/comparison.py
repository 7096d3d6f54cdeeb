"""Runtimes side by side: their answers first, then the speed of those whose answers are torch's."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqexport.checkpoint import Checkpoint, read_checkpoint
from seqexport.errors import InputError, UnsupportedError
from seqexport.exporter import export
from seqexport.files import is_checkpoint
from seqexport.footprint import Footprint, Machine, describe_machine, footprint
from seqexport.inference import Choices
from seqexport.metrics import read_texts
from seqexport.networks import Network
from seqexport.peers import RUNTIMES
from seqexport.quantization import agreement
from seqexport.reports import TOLERANCE, Property
from seqexport.runtimes import int8_path, located, network_inputs, onnx_metadata, pipeline_path
from seqexport.scenarios import (
    FILE_ORDER,
    GRID,
    LENGTH,
    TEXTS,
    Absent,
    Entrant,
    Scenario,
    Source,
    enter,
    file_of,
    made_texts,
    pipelines,
    sequence,
    step,
)
from seqexport.sources import first_line
from seqexport.specs import NetworkSpec
from seqexport.timing import Measured, Ratio, Times, take_turns

SCENARIOS = ("step", "sequence", "throughput", "pipeline", "footprint", "map")
SECONDS = 180.0
# Shares of the time, for each timing of the kind.
SHARES = {"step": 2.0, "sequence": 2.0, "throughput": 1.0, "pipeline": 4.0, "map": 0.5}
# Hidden sizes, batches and lengths of the map, and of the larger one.
MAP = ((64, 256), (1, 16), (1, 50))
LARGE_MAP = ((32, 128, 512), (1, 8, 32), (1, 10, 100))
Say = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One entrant in one scenario.

    error: of its answers, |a - b| / max(1, max|torch|); None where it is the one that the others are held against.
    agrees: whether it may be timed. notes: what differs, ties, and why there is no speed. times: None where it was not
    timed. default, best, peer: by what factor it is faster than torch's default, torch's best, and the best float peer.
    """

    label: str
    runtime: str
    is_peer: bool
    error: float | None
    agrees: bool
    decided: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    times: Times | None = None
    default: Ratio | None = None
    best: Ratio | None = None
    peer: Ratio | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; seconds are those of a call."""
        timed = self.times is not None
        seconds: dict[str, Any] | None = None
        if self.times is not None:
            seconds = {name: self.times.quantile(share) for name, share in QUANTILES.items()}
            seconds |= {"interval": self.times.interval(), "calls": self.times.calls, "rounds": len(self.times.rounds)}
        ratios = {"torch_default": self.default, "torch_best": self.best, "best_peer": self.peer}
        return {
            "label": self.label,
            "runtime": self.runtime,
            "peer": self.is_peer,
            "error": None if self.error is None or self.error == np.inf else self.error,
            "agrees": self.agrees,
            "decided": dict(self.decided),
            "notes": list(self.notes),
            "seconds": seconds,
            "faster_than": {name: ratio and ratio.to_dict() for name, ratio in ratios.items()} if timed else None,
        }


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Table:
    """One scenario's rows, the fastest first. work: units of a call. default, best, peer: who the ratios are to."""

    key: str
    title: str
    unit: str
    work: int
    sizes: Mapping[str, int]
    rows: tuple[Row, ...]
    ended: str
    seconds: float
    default: str = ""
    best: str = ""
    peer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**vars(self), "sizes": dict(self.sizes), "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True)
class Cell:
    """One place of the map: an untrained net of this hidden size, and its table. weights: bytes read in a step."""

    hidden: int
    batch: int
    length: int
    weights: int
    table: Table

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**vars(self), "table": self.table.to_dict()}


@dataclass(frozen=True)
class Model:
    """What was found of one file. gate: what int8 was held to, beside float32. weights: bytes of float32 that a step
    reads, all but the embedding's other rows."""

    path: str
    found: str
    notes: tuple[str, ...]
    weights: int
    absent: tuple[Absent, ...]
    gate: tuple[Property, ...]
    tables: tuple[Table, ...]
    footprints: tuple[Footprint, ...]
    cells: tuple[Cell, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "path": self.path,
            "found": self.found,
            "notes": list(self.notes),
            "weights": self.weights,
            "absent": [vars(absent) for absent in self.absent],
            "int8": [tried.to_dict() for tried in self.gate],
            "scenarios": [table.to_dict() for table in self.tables],
            "footprints": [vars(found) for found in self.footprints],
            "map": [cell.to_dict() for cell in self.cells],
        }


@dataclass(frozen=True)
class Comparison:
    """Runtimes side by side on one file or several. threads: of each runtime. seconds: that it took."""

    models: tuple[Model, ...]
    machine: Machine
    threads: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: what README describes."""
        models = [model.to_dict() for model in self.models]
        about = {"threads": self.threads, "tolerance": TOLERANCE, "machine": self.machine.to_dict()}
        return {**about, "seconds": round(self.seconds, 1), "models": models}


def compare(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    runtimes: Sequence[str] = RUNTIMES,
    threads: int = 1,
    scenarios: Sequence[str] = SCENARIOS,
    seconds: float = SECONDS,
    data: str | os.PathLike[str] | None = None,
    texts: int | None = None,
    large_map: bool = False,
    choices: Choices | None = None,
    say: Say = lambda text: None,
) -> Comparison:
    """Hold runtimes against torch, and time those that give what it gives, in turns, on the same number of threads.

    paths: a checkpoint, or several; one without its ONNX files beside it, or with older ones, is exported into a
    temporary folder. Of an ONNX file alone, onnxruntime is what the others are held against. seconds: for the timing of
    each path, without loading, compiling, and asking for the answers. data: a CSV of text and label, of which a
    classifier reads up to 1,000, or up to `texts`.
    say: is told what is going on.

    Raises SeqExportErrors for what can't be read, exported or used; a runtime that is not there is listed as absent.
    """
    start = time.perf_counter()
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    _check(given, runtimes, threads, scenarios, seconds)
    if texts is not None and texts < 1:
        raise InputError(f"A classifier needs at least 1 text, got {texts}.")
    opinions = None if data is None else Path(data)
    asked = [name for name in RUNTIMES if name in runtimes]
    models = []
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(place) for place in range(len(given))]
        sources = []
        for path, folder in zip(given, folders, strict=True):
            say(f"reading {path}")
            sources.append(_source(Path(path), folder, choices))
        if data is not None and ("pipeline" not in scenarios or "classify" not in {source.task for source in sources}):
            raise InputError("--data is of use to a classifier's pipeline only: leave it out.")
        for source, folder in zip(sources, folders, strict=True):
            model = _Model(source, asked, threads, scenarios, seconds, say, texts or TEXTS)
            models.append(model.measured(opinions, LARGE_MAP if large_map else MAP, folder))
        say("measuring the machine")
        machine = describe_machine()
    return Comparison(tuple(models), machine, threads, time.perf_counter() - start)


def _check(
    paths: Sequence[Any], runtimes: Sequence[str], threads: int, scenarios: Sequence[str], seconds: float
) -> None:
    for what, names, known in (("runtime", runtimes, RUNTIMES), ("scenario", scenarios, SCENARIOS)):
        for name in names:
            if name not in known:
                raise InputError(f"There is no {what} {name!r}; expected some of {', '.join(known)}.")
        if not names:
            raise InputError(f"There is no {what} to compare; give some of {', '.join(known)}.")
    if not paths:
        raise InputError("There is no file to compare; give a checkpoint or an ONNX file.")
    if threads < 1:
        raise InputError(f"A runtime needs at least 1 thread, got {threads}.")
    if not seconds > 0:
        raise InputError(f"The time to measure is {seconds} seconds; expected more than 0.")


def _source(path: Path, folder: Path, choices: Choices | None) -> Source:
    """The checkpoint with the network's file, which is exported anew where it is not there or of other weights."""
    if not is_checkpoint(path):
        metadata = onnx_metadata(located(path, None))
        if metadata.get("part") != "network" or not network_inputs(metadata):
            raise UnsupportedError(
                f"{path} is not a network's file that seqexport wrote of a checkpoint, so nothing is known of what to "
                "feed it: give the checkpoint, or the network's file, NAME.onnx."
            )
        note = "there is no checkpoint, so onnxruntime is what the others are held against: torch can't run this file"
        return Source(path, None, path, NetworkSpec.from_dict(metadata["network"]), metadata, (note,))
    checkpoint = read_checkpoint(path, choices)
    beside, notes = path.with_suffix(".onnx"), checkpoint.notes
    reason = _stale(beside, checkpoint)
    if reason:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{path.stem}.onnx"
        report = export(path, beside, choices=choices)
        notes = (*notes, f"{reason}: exported into a temporary folder, in {report.seconds:.1f} s")
    return Source(path, checkpoint, beside, checkpoint.spec, onnx_metadata(beside), notes)


def _stale(path: Path, checkpoint: Checkpoint) -> str:
    """Why the ONNX file can't be compared with this checkpoint; nothing where it can."""
    if not path.is_file():
        return f"there is no {path.name} beside it"
    metadata = onnx_metadata(path)
    if metadata.get("checkpoint_sha256") != checkpoint.sha256 or metadata.get("part") != "network":
        return f"{path.name} beside it is of other weights"
    if metadata.get("network") != checkpoint.spec.to_dict() or "state_map" not in metadata:
        return f"{path.name} beside it was exported with other options"
    if checkpoint.task and not pipeline_path(path, checkpoint.task).is_file():
        return f"there is no {pipeline_path(path, checkpoint.task).name} beside it"
    located(path, checkpoint.task)
    return ""


class _Model:
    """One source on its way through the scenarios, the time for them shared out."""

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        threads: int,
        asked: Sequence[str],
        seconds: float,
        say: Say,
        most: int,
    ) -> None:
        self.source, self.names, self.threads, self.asked, self.say = source, names, threads, asked, say
        self.left, self.shares, self.most = seconds, 0.0, most
        self.gates: dict[str, tuple[Property, ...]] = {}
        self.absent: dict[str, Absent] = {}

    def measured(self, data: Path | None, sizes: tuple[tuple[int, ...], ...], folder: Path) -> Model:
        source, spec = self.source, self.source.spec
        entrants = self._enter(None)
        scenarios: list[tuple[str, Scenario]] = []
        if "step" in self.asked:
            scenarios.append(("step", step(entrants, spec)))
        if "sequence" in self.asked:
            scenarios.append(("sequence", sequence(entrants, spec, 1, LENGTH, "sequence")))
        fast = [entrant for entrant in entrants if entrant.runtime != "reference"]
        if "throughput" in self.asked:
            scenarios += [("throughput", sequence(fast, spec, *cell, "throughput")) for cell in GRID]
        if "pipeline" in self.asked and source.task:
            self.say(f"loading {source.task}")
            texts, about = self._texts(data) if source.task == "classify" else ((), "")
            takers = self._enter(source.task)
            scenarios += [("pipeline", made) for made in pipelines(source, source.task, takers, texts, about)]
        places = [(h, b, t) for h in sizes[0] for b in sizes[1] for t in sizes[2]] if "map" in self.asked else []
        self.shares = sum(SHARES[kind] for kind, _ in scenarios) + SHARES["map"] * len(places)
        tables = tuple(self._table(kind, scenario) for kind, scenario in scenarios)
        cells = tuple(self._cells(places, folder))
        footprints = tuple(self._footprints(entrants)) if "footprint" in self.asked else ()
        found = f"{source.task}: {spec}" if source.task else str(spec)
        absent, notes = tuple(self.absent.values()), source.notes
        weights = _weights(spec)
        gate = tuple(tried for gate in self.gates.values() for tried in gate)
        return Model(str(source.path), found, notes, weights, absent, gate, tables, footprints, cells)

    def _enter(self, part: str | None) -> list[Entrant]:
        entrants, absent = enter(self.source, part, self.names, self.threads)
        self.absent |= {found.runtime: found for found in absent if found.runtime not in self.absent}
        if not entrants:
            reasons = "; ".join(f"{found.runtime}: {found.command or found.why}" for found in absent)
            raise UnsupportedError(f"None of the runtimes can run {self.source.path} ({reasons}).")
        return entrants

    def _texts(self, data: Path | None) -> tuple[Sequence[str], str]:
        preprocessing = self.source.metadata["preprocessing"]
        if data is None:
            return made_texts(preprocessing, self.most), "texts of the vocabulary's own words, drawn at random"
        texts = read_texts(data, preprocessing)
        chosen = [texts[index] for index in np.linspace(0, len(texts) - 1, min(self.most, len(texts))).astype(int)]
        return chosen, f"texts of {data.name}"

    def _gate(self, kind: str, scenario: Scenario) -> tuple[Property, ...]:
        """What the quantised file that takes part is held to; nothing where there is none, or nothing to hold it to."""
        quantised = any(entrant.runtime == "onnxruntime-int8" for entrant in scenario.entrants)
        if not quantised or int8_path(self.source.onnx) == self.source.onnx:
            return ()
        task = self.source.task if kind == "pipeline" else None
        part = task or "network"
        if part not in self.gates:
            self.say(f"holding the {part}'s int8 form against float32")
            file = pipeline_path(self.source.onnx, task) if task else self.source.onnx
            self.gates[part] = agreement(file, int8_path(file))
        return self.gates[part]

    def _table(self, kind: str, scenario: Scenario) -> Table:
        self.say(f"{scenario.key}: {scenario.title}")
        share = self.left * SHARES[kind] / self.shares
        table = tabled(scenario, share, self._gate(kind, scenario))
        self.left, self.shares = max(self.left - table.seconds, 0.0), self.shares - SHARES[kind]
        return table

    def _cells(self, places: Sequence[tuple[int, int, int]], folder: Path) -> list[Cell]:
        cells: list[Cell] = []
        for hidden in dict.fromkeys(place[0] for place in places):
            spec, entrants = _untrained(self.source.spec, hidden, folder, self.names, self.threads)
            for _, batch, length in (place for place in places if place[0] == hidden):
                scenario = sequence(entrants, spec, batch, length, f"map, hidden {hidden}")
                cells.append(Cell(hidden, batch, length, _weights(spec), self._table("map", scenario)))
        return cells

    def _footprints(self, entrants: Sequence[Entrant]) -> list[Footprint]:
        found = []
        for entrant in entrants:
            if not entrant.label.endswith("oneDNN off"):
                self.say(f"a fresh process: {entrant.label}")
                path = file_of(self.source, entrant.runtime)
                found.append(footprint(entrant.label, entrant.runtime, path, self.threads))
        return found


def _untrained(
    spec: NetworkSpec, hidden: int, folder: Path, names: Sequence[str], threads: int
) -> tuple[NetworkSpec, list[Entrant]]:
    """An untrained net like this one, of another hidden size, and who can run it. torch.compile, which would take a
    minute for each, and onnx's evaluator are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = replace(spec, hidden_size=hidden, projection=None)
    if (
        spec.outputs != spec.vocabulary and spec.vocabulary
    ):  # a step reads one row of the embedding, however many it has
        wanted = replace(wanted, vocabulary=min(spec.vocabulary, 500))
    torch.manual_seed(0)
    path = folder / f"untrained-{hidden}.pt"
    torch.save(Network(wanted).state_dict(), path)
    nonlinearity, head = (spec.nonlinearity if spec.cell == "rnn" else None), (spec.pooling if spec.outputs else None)
    source = _source(path, folder, Choices(nonlinearity, spec.time_major or None, head))
    chosen = [name for name in names if name in ("torch", "onnxruntime", "openvino")]
    return source.spec, enter(source, None, chosen, threads)[0]


def _weights(spec: NetworkSpec) -> int:
    """Bytes of float32 weights that a step reads."""
    network = Network(spec)
    table = 0 if network.embedding is None else network.embedding.weight.numel()
    return 4 * (sum(parameter.numel() for parameter in network.parameters()) - table)


def tabled(
    scenario: Scenario,
    seconds: float,
    gate: Sequence[Property] = (),
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Table:
    """Answers first; then the times of those that agree, in at most about so many seconds; then who is faster."""
    rows = _answered(scenario, gate)
    jobs = {entrant.label: scenario.job(entrant) for entrant in scenario.entrants if rows[entrant.label].agrees}
    default = next((e.label for e in scenario.entrants if e.runtime == "torch" and e.label in jobs), "")
    off = [e.label for e in scenario.entrants if e.runtime == "torch" and e.label in jobs and e.label != default]
    against = [label for label in (default, *off) if label] or list(jobs)[:1]
    measured = take_turns(jobs, seconds, against, clock=clock)
    best, peer = (_fastest(measured, labels) for labels in (against if default else [], _peers(rows, jobs)))
    if default and scenario.key == "classify":
        default = next(label for label in against if label.endswith(FILE_ORDER))
    timed = {
        label: replace(
            row,
            times=measured.times[label],
            default=measured.ratio(label, default),
            best=measured.ratio(label, best),
            peer=measured.ratio(label, peer) if not row.is_peer else None,
        )
        if label in measured.times
        else row
        for label, row in rows.items()
    }
    ordered = sorted(timed.values(), key=lambda row: (row.times and row.times.quantile(0.5)) or np.inf)
    about = (scenario.key, scenario.title, scenario.unit, scenario.work, scenario.sizes)
    return Table(*about, tuple(ordered), measured.ended, measured.seconds, default, best, peer)


def held_said(tried: Property) -> str:
    """What int8 was held to, in a few words."""
    return f"{tried.part}, {tried.name.removeprefix('int8 ')} {tried.error:.2g} (at most {tried.allowed:g})"


def _peers(rows: Mapping[str, Row], jobs: Mapping[str, Any]) -> list[str]:
    return [label for label in jobs if rows[label].is_peer]


def _fastest(measured: Measured, labels: Sequence[str]) -> str:
    return min(labels, key=lambda label: measured.times[label].quantile(0.5) or np.inf, default="")


def _answered(scenario: Scenario, gate: Sequence[Property]) -> dict[str, Row]:
    """Everyone's answers beside the first one's."""
    first, *others = scenario.entrants
    expected = scenario.answer(first)
    rows = {first.label: Row(first.label, first.runtime, first.peer, None, True)}
    for entrant in others:
        about = (entrant.label, entrant.runtime, entrant.peer)
        try:
            outcome = scenario.judge(expected, scenario.answer(entrant))
        except Exception as error:  # whatever a runtime raises where it can't run its model after all
            rows[entrant.label] = Row(*about, None, False, notes=(f"could not run: {first_line(error)}",))
            continue
        worst = max(outcome.errors.values(), key=lambda error: np.inf if np.isnan(error) else error)
        agrees, notes = outcome.passed(TOLERANCE), (*outcome.notes, *(f"tie: {tie}" for tie in outcome.ties))
        if entrant.runtime == "onnxruntime-int8" and gate:
            notes = tuple(f"misses its gate: {held_said(tried)}" for tried in gate if not tried.held)
            agrees = not notes
        if not agrees:
            notes = (*notes, "its answers differ, so no speed is told")
        rows[entrant.label] = Row(*about, worst, agrees, outcome.decided, notes)
    return rows
