"""Which recurrent nets come out right: seqexport beside torch.onnx's two exporters, on the same configurations.

    python -m training.coverage

Writes README's table. Every configuration of `grid` and `singles` is exported, loaded by onnxruntime and run at the
sizes of SHAPES, none of which is the example's, in a process apart: one that crashes or hangs counts as wrong and is
replaced. As it stands it takes about ten minutes on two slow cores: seqexport does one configuration in sixteen of each
row and torch.onnx one in forty, but no fewer than LEAST; --every 1 --peers-every 1 is everything, and takes hours, most
of them torch.onnx's. With --only and --seconds it does a part, and leaves README as it is.

Right means: exported without an error, runs at every size, and every output, final states included, has torch's shape
and dtype and is within TOLERANCE of it, |a - b| / max(1, max|torch|). The shapes that a file declares are not looked
at: torch.onnx's are often the example's.

torch.onnx.export(dynamo=True) is right if it is with any of DYNAMIC, its ways of asking for dynamic dims. Before each
export its stale cache is cleared, without which a second LSTM or GRU in one process fails; and its table of
translations, which it builds anew at every export, is kept as seqexport keeps it, which changes no result.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import multiprocessing
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from tqdm import tqdm

import seqexport
from seqexport.graphs import _translations_kept
from seqexport.specs import TensorSpec
from seqexport.verification import difference
from training.command import Parser
from training.configurations import Configuration, arguments, build, feeds, flat_specs, grid, singles, structure
from training.journal import Journal
from training.publish import ROOT, write_block

# Batch and time of the peers' example: neither 0 nor 1, which torch.export would freeze, nor equal.
EXAMPLE = (3, 5)
SHAPES = ((1, 1), (1, 6), (4, 1), (2, 9), (5, 33))
TOLERANCE = 1e-5
TIMEOUT = 120.0
LEAST = 8


@dataclass(frozen=True)
class Outcome:
    """How one export came out.

    error: the worst difference to torch, infinite where there is none. note: what went wrong.
    seconds: of the export alone, seqexport's with its verification.
    """

    right: bool
    error: float
    note: str
    seconds: float


Export = Callable[[Configuration, nn.Module, Path], float]


def _seqexport(configuration: Configuration, module: nn.Module, path: Path) -> float:
    return seqexport.export(module, path, inputs=configuration.inputs()).max_abs_error


def _dynamo(dims: Mapping[str, Any]) -> Export:
    def axes(spec: TensorSpec) -> dict[int, Any]:
        return {axis: dims[dim] for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}

    def run(configuration: Configuration, module: nn.Module, path: Path) -> float:
        shapes = {
            name: tuple(map(axes, part)) if isinstance(part, tuple) else axes(part)
            for name, part in structure(configuration).items()
        }
        with _peer(), _translations_kept():
            torch.onnx.export(
                module,
                arguments(configuration, feeds(configuration, *EXAMPLE, short=False, seed=0)),
                path,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[spec.name for spec in flat_specs(configuration)],
                verbose=False,
            )
        return 0.0

    return run


def _old(configuration: Configuration, module: nn.Module, path: Path) -> float:
    specs = flat_specs(configuration)
    with _peer():
        torch.onnx.export(
            module,
            arguments(configuration, feeds(configuration, *EXAMPLE, short=False, seed=0)),
            str(path),
            dynamo=False,
            input_names=[spec.name for spec in specs],
            dynamic_axes={
                spec.name: {axis: dim for axis, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in specs
            },
        )
    return 0.0


# The ways to ask torch.onnx for dynamic dims. A string for a dim, and dynamic_axes, are the second one by other names.
DYNAMIC: dict[str, Mapping[str, Any]] = {
    "Dim.AUTO": dict.fromkeys(("batch", "time"), torch.export.Dim.AUTO),
    "Dim.DYNAMIC": dict.fromkeys(("batch", "time"), torch.export.Dim.DYNAMIC),
    "named dims": {name: torch.export.Dim(name) for name in ("batch", "time")},
}
EXPORTS: dict[str, Export] = {
    "seqexport": _seqexport,
    **{name: _dynamo(dims) for name, dims in DYNAMIC.items()},
    "dynamo=False": _old,
}
# The table's columns, each with the exports of which one has to be right.
COLUMNS: dict[str, tuple[str, ...]] = {
    "seqexport": ("seqexport",),
    "torch.onnx, dynamo=True": tuple(DYNAMIC),
    "torch.onnx, dynamo=False": ("dynamo=False",),
}


@contextlib.contextmanager
def _peer() -> Iterator[None]:
    """torch.onnx at its best, and without its talk."""
    names = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
    operators = [getattr(torch.ops.aten, name) for name in names]
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(None), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        for operator in operators:
            for overload in operator.overloads():
                getattr(operator, overload)._dispatch_cache.clear()
        try:
            yield
        finally:
            logging.disable(disabled)


def check(configuration: Configuration, export: str) -> Outcome:
    """Export a configuration by one of EXPORTS, and run what it gave beside torch at every one of SHAPES."""
    module = build(configuration)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            error = EXPORTS[export](configuration, module, path)
            seconds = time.perf_counter() - start
            error, note = _compare(configuration, module, path, error)
        except Exception as problem:  # whatever an exporter or a runtime raises makes it wrong
            return Outcome(False, math.inf, _reason(problem), time.perf_counter() - start)
    return Outcome(error <= TOLERANCE, error, note, seconds)


def _compare(configuration: Configuration, module: nn.Module, path: Path, error: float) -> tuple[float, str]:
    """The worst difference and a word on where it is, of those that are too large the first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    # Packed rows are as long as the input once, and once they all end before it.
    for (batch, steps), short in itertools.product(SHAPES, (False, True)[: 2 if configuration.packed != "none" else 1]):
        values = feeds(configuration, batch, steps, short, seed=steps)
        with torch.no_grad():
            expected = flat(module(*arguments(configuration, values)))
        # An exporter may drop an input that makes no difference.
        found = session.run(None, {name: array for name, array in values.items() if name in names})
        if len(found) != len(expected):
            return math.inf, f"{len(found)} outputs, expected {len(expected)}"
        for index, (tensor, array) in enumerate(zip(expected, found, strict=True)):
            apart, note = difference(tensor.numpy(), array)
            if not apart <= TOLERANCE:
                return apart, f"output {index} at {batch}×{steps}: {note or f'differs by {apart:.1e}'}"
            error = max(error, apart)
    return error, ""


def _reason(problem: BaseException) -> str:
    """The first line of what an exception came from, since torch.onnx's own first line is always the same."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')[:200]}"


def flat(value: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order."""
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in flat(part)]


class Worker:
    """A process that checks one export at a time.

    If it dies, or takes longer than TIMEOUT, that export is wrong, and the next one goes to a new process.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._connection: Any = None

    def check(self, configuration: Configuration, export: str) -> Outcome:
        """What `check` gives, in the other process."""
        if self._process is None:
            self._connection, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # so that the process's end is the connection's end
        start = time.perf_counter()
        problem = f"no answer in {TIMEOUT:.0f} s"
        try:
            self._connection.send((configuration, export))
            if self._connection.poll(TIMEOUT):
                return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            problem = f"the process ended with {self._process.exitcode}"
        self.close()
        return Outcome(False, math.inf, problem, time.perf_counter() - start)

    def close(self) -> None:
        """End the process, if there is one: it ends with its connection, unless it hangs."""
        if self._process is not None:
            self._connection.close()
            self._process.join(1.0)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nothing:  # C++ prints graphs and warnings past Python's streams
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(check(*connection.recv()))


Task = tuple[Configuration, str]
Results = dict[Task, Outcome]


def _named(task: Task) -> str:
    return f"{task[0]!r}, {task[1]}"


def measure(tasks: Sequence[Task], processes: int, seconds: float, journal: Journal | None = None) -> Results:
    """The outcome of every task, a configuration and a column, or of those begun within so many seconds."""
    end = time.monotonic() + seconds
    own = threading.local()
    workers: list[Worker] = []
    known = journal.known if journal else {}
    results: Results = {
        task: Outcome(**{**known[name], "error": float(known[name]["error"])})
        for task in tasks
        if (name := _named(task)) in known
    }

    def run(task: Task) -> None:
        if time.monotonic() > end:
            return
        if not hasattr(own, "worker"):
            own.worker = Worker()
            workers.append(own.worker)
        configuration, column = task
        notes, spent = [], 0.0
        for export in COLUMNS[column]:
            outcome: Outcome = own.worker.check(configuration, export)
            notes.append(f"{export}: {outcome.note or 'right'}")
            spent += outcome.seconds
            if outcome.right:
                break
        results[task] = replace(outcome, note=notes[-1] if outcome.right else "; ".join(notes), seconds=spent)
        if journal:
            journal.add(_named(task), {**vars(results[task]), "error": str(results[task].error)})

    pool = ThreadPoolExecutor(processes)
    try:
        futures = [pool.submit(run, task) for task in tasks if task not in results]
        for future in tqdm(as_completed(futures), total=len(futures), unit="net"):
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        end = 0.0
        for worker in workers:
            worker.close()
    return results


def sampled(configurations: Sequence[Configuration], every: int) -> list[Configuration]:
    """One in `every` of each row of the table, at least LEAST of them, drawn at random, but the same ones each time."""
    rng = np.random.default_rng(0)
    picked = []
    for group in kinds(configurations).values():
        count = max(math.ceil(len(group) / every), LEAST)
        picked += [group[index] for index in sorted(rng.permutation(len(group))[:count])]
    return picked


def kinds(configurations: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    """Row of the table → its configurations."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(configuration.kind, []).append(configuration)
    return groups


def table(configurations: Sequence[Configuration], results: Results) -> str:
    """README's table: for each row, how many there are, and how many of those that each exporter did came out right;
    and how many seqexport got right of those that torch.onnx did too."""
    lines = [
        "| net and input | configurations | " + " | ".join(COLUMNS) + " | seqexport on torch.onnx's |",
        "|" + "---|" * (3 + len(COLUMNS)),
    ]
    for kind, group in (kinds(configurations) | {"**all**": list(configurations)}).items():
        done = {column: [one for one in group if (one, column) in results] for column in COLUMNS}
        shared = [one for one in group if all((one, column) in results for column in COLUMNS)]
        cells = [_right_of(results, column, ones) for column, ones in done.items()]
        cells.append(_right_of(results, "seqexport", shared))
        lines.append(f"| {kind} | {len(group):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _right_of(results: Results, column: str, configurations: Sequence[Configuration]) -> str:
    return f"{sum(results[one, column].right for one in configurations):,} of {len(configurations):,}"


def details(configurations: Sequence[Configuration], results: Results) -> str:
    """What the table leaves out: seqexport's worst difference, each exporter's time, and what went wrong how often."""
    lines = ["worst difference of seqexport to torch:"]
    for kind, group in kinds(configurations).items():
        errors = [results[one, "seqexport"].error for one in group if (one, "seqexport") in results]
        lines.append(f"  {max(errors, default=math.nan):.1e}  {kind}")
    for column in COLUMNS:
        outcomes = {one: outcome for (one, name), outcome in results.items() if name == column}
        seconds = {right: [o.seconds for o in outcomes.values() if o.right is right] for right in (True, False)}
        spent = ", ".join(
            f"{len(values)} {'right' if right else 'wrong'} at {statistics.median(values):.2f} s (median)"
            for right, values in seconds.items()
            if values
        )
        lines.append(f"{column}: {spent}")
        reasons = Counter((one.kind, re.sub(r"\d+", "N", outcome.note)) for one, outcome in outcomes.items())
        lines += [f"  {count:4d} × {kind}: {reason}" for (kind, reason), count in sorted(reasons.items())]
    lines += [
        f"seqexport is wrong: {one}: {o.note}"
        for (one, name), o in results.items()
        if name == "seqexport" and not o.right
    ]
    return "\n".join(lines)


def footnote(every: int, peers_every: int) -> str:
    """What the table's figures mean."""
    ours, theirs = ("all" if n == 1 else f"one in {n}" for n in (every, peers_every))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    return (
        f"Right: exported, and at {len(SHAPES)} sizes of batch and time that were not the example's every output and "
        f"final state has torch's shape and dtype and is within {TOLERANCE:.0e} of it. Measured: {ours} of each row by "
        f"seqexport, {theirs} by torch.onnx, drawn at random, no fewer than {LEAST}; dynamo=True is right where it is "
        f"with one of {', '.join(DYNAMIC)}. {versions}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write README's table if nothing was left out. Gives 1 where seqexport got one wrong."""
    parser = Parser(prog="python -m training.coverage", description="Measure README's coverage table.")
    parser.add_argument(
        "--every", type=int, default=16, metavar="N", help="seqexport does one in N of each row (default: %(default)s)"
    )
    parser.add_argument(
        "--peers-every",
        type=int,
        default=40,
        metavar="N",
        help="torch.onnx does one in N of each row (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, default=2, help="how many work at once (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose description has it in it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after so many seconds")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="write outcomes there too, and go on from there")
    options = parser.parse_args(argv)
    whole = [*grid(), *singles()]
    configurations = [one for one in whole if options.only in str(one)]
    if min(options.every, options.peers_every, options.processes) < 1:
        parser.error("--every, --peers-every and --processes take a whole number from 1")
    if not configurations:
        parser.error(f"no configuration has {options.only!r} in its description, such as '{whole[0]}'")
    compared = set(sampled(configurations, options.peers_every))
    ours = set(sampled(configurations, options.every)) | compared
    order = np.random.default_rng(0).permutation(len(configurations))  # so that what is done and what is left are alike
    shuffled = [configurations[index] for index in order]
    tasks = [
        (one, column) for one in shuffled for column in COLUMNS if one in (ours if column == "seqexport" else compared)
    ]
    journal = Journal(options.journal) if options.journal else None
    results = measure(tasks, options.processes, options.seconds, journal)
    text = table(configurations, results)
    print(details(configurations, results), text, sep="\n\n")
    if len(results) == len(tasks) and configurations == whole:
        write_block(ROOT / "README.md", "coverage", f"{text}\n\n{footnote(options.every, options.peers_every)}")
    else:
        print("coverage: README.md is left as it is, since this is not the whole.", file=sys.stderr)
    return 0 if all(outcome.right for (_, column), outcome in results.items() if column == "seqexport") else 1


if __name__ == "__main__":
    sys.exit(main())
