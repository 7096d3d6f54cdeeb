"""RNN, LSTM and GRU side by side: the same trainings and the same measurements for each, and what follows.

    python -m training.compare_cells --jobs 2 --write

Each cell at the LSTM's hidden size and, RNN and GRU, at the LSTM's number of parameters besides; on three series, on
opinions, on characters and on the adding problem; with the better, on the validation part, of two learning rates, and
three seeds. Then what each costs, and how far its gradient reaches. Every result is written down in --work as it is
there, so that a stopped run goes on. Trainings of `jobs` processes run at the same time; nothing does while costs are
measured. It takes some two hours on two cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seqexport.errors import FileError, SeqExportError
from seqexport.files import replace_file
from seqexport.footprint import describe_machine
from seqexport.networks import Network
from seqexport.specs import CELLS, Cell, NetworkSpec
from training import cell_costs, cell_findings, chargen, forecasting, memory, sentiment
from training import data as datasets
from training.command import Options, Parser
from training.journal import Journal
from training.publish import ROOT, write_block

SEEDS = (0, 1, 2)
SLOWER = 1 / 3  # the other learning rate that is tried
RESULTS, PAGE = ROOT / "exported" / "cells.json", ROOT / "docs" / "cells.md"


@dataclass(frozen=True)
class Task:
    """One thing to learn. metric: the key of the figure in a training's metrics. plan: the recipe of the LSTM, with
    all but hidden size and learning rate the same for every cell. spec: the network of a recipe with a cell."""

    name: str
    title: str
    metric: str
    plan: Any
    train: Callable[[Options, Any], dict[str, Any]]
    spec: Callable[[Any, Cell], NetworkSpec]
    more_is_better: bool = False


@dataclass(frozen=True)
class Variant:
    """A cell with its size. equal: what it has in common with the LSTM."""

    cell: Cell
    hidden: int
    equal: str

    def __str__(self) -> str:
        return f"{self.cell.upper()} {self.hidden}"


def tasks() -> dict[str, Task]:
    """All that is learnt, with budgets that let every variant be trained four times."""
    found = []
    for name, hidden, steps in (("sunspots", 48, 300), ("electricity", 48, 250), ("uk-demand", 24, 250)):
        base = forecasting.recipe(datasets.load(name), "lstm", "default")
        plan = replace(base, hidden_size=hidden, layers=1, dropout=0.0, steps=steps, patience=None)
        found.append(Task(name, f"{name}, MAE", "mae", plan, _forecasting, forecasting.network_spec))
    reviews = datasets.load_reviews("reviews-zh")
    words = sentiment.Recipe(hidden_size=128, epochs=3, looks=9, unknown=0.2)
    size = len(sentiment.fit_vocabulary(reviews, words.words))
    found.append(
        Task(
            "opinions",
            "opinions in Chinese, accuracy",
            "accuracy",
            words,
            _sentiment,
            lambda plan, cell: sentiment.network_spec(plan, cell, size, len(reviews.labels)),
            more_is_better=True,
        )
    )
    text = datasets.load_text("shakespeare")
    signs = len(set(text.parts["train"])) + 1
    # Short windows of few streams: many steps for little text, without which a gated net has not even begun.
    letters = chargen.Recipe(
        hidden_size=192, layers=1, dropout=0.0, window=64, batch=16, epochs=0.5, looks=6, learning_rate=4e-3
    )
    found.append(
        Task(
            "characters",
            "characters of plays, bits",
            "bits",
            letters,
            _chargen,
            lambda plan, cell: chargen.network_spec(plan, cell, signs),
        )
    )
    title = "adding problem, squared error"
    found.append(Task("adding", title, "mse", memory.Recipe(), memory.train, memory.network_spec))
    return {task.name: task for task in found}


def _forecasting(options: Options, plan: Any) -> dict[str, Any]:
    return forecasting.train(options, plan, beside=False)


def _sentiment(options: Options, plan: Any) -> dict[str, Any]:
    metrics = sentiment.train(replace(options, data="reviews-zh"), plan, beside=False)
    (test,) = metrics["test"].values()
    return {**metrics, "test": test}


def _chargen(options: Options, plan: Any) -> dict[str, Any]:
    return chargen.train(replace(options, data="shakespeare"), plan, beside=False)


def variants(spec: Callable[[Cell, int], NetworkSpec], hidden: int) -> list[Variant]:
    """Every cell at the hidden size, and RNN and GRU at the size at which the network has the LSTM's parameters."""
    target = parameters(spec("lstm", hidden))
    return [
        *(Variant(cell, hidden, "hidden size") for cell in CELLS),
        *(Variant(cell, _matching(spec, cell, target), "parameters") for cell in CELLS if cell != "lstm"),
    ]


def _matching(spec: Callable[[Cell, int], NetworkSpec], cell: Cell, target: int) -> int:
    """The hidden size at which a cell's network has the number of parameters nearest to `target`."""
    size = 1
    while parameters(spec(cell, size + 1)) <= target:
        size += 1
    return min((size, size + 1), key=lambda hidden: abs(parameters(spec(cell, hidden)) - target))


def parameters(spec: NetworkSpec) -> int:
    """How many numbers a network learns."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in Network(spec).parameters())


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    variant: Variant
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Under which its result is kept."""
        return f"{self.task}/{self.variant.cell}-{self.variant.hidden}/{self.rate:g}/{self.seed}"


class Trainings:
    """Runs trainings in processes of their own, each once: what an earlier run of the command found is known."""

    def __init__(self, known: Mapping[str, Task], work: Path, jobs: int) -> None:
        self._tasks, self._work, self._jobs = known, work, jobs
        self._journal = Journal(work / "results.jsonl")
        self._known = dict(self._journal.known)

    def checkpoint(self, run: Run) -> Path:
        """Where a run's network lies."""
        return self._work / f"{run.name.replace('/', '_').replace(' ', '-')}.pt"

    def key(self, run: Run) -> str:
        """A run's name with what its result follows from besides."""
        recipe = self._tasks[run.task].plan
        given = {part.name: (getattr(recipe, part.name), part.default) for part in fields(recipe)}
        chosen = {name: value for name, (value, default) in given.items() if value != default}
        plan = json.dumps(chosen, sort_keys=True, default=str)
        return f"{run.name} {hashlib.sha256(plan.encode()).hexdigest()[:8]}"

    def results(self, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
        """Run → its validation figure, test figure, seconds, steps and parameters, in the order of `runs`."""
        missing = [run for run in runs if self.key(run) not in self._known]
        os.environ["OMP_NUM_THREADS"] = "1"  # which the pool's processes find
        context = multiprocessing.get_context("spawn")
        with (
            concurrent.futures.ProcessPoolExecutor(self._jobs, context) as pool,
            tqdm(total=len(runs), initial=len(runs) - len(missing), desc="trainings", unit="") as bar,
        ):
            waiting = {pool.submit(trained, run, self.checkpoint(run)): run for run in missing}
            for done in concurrent.futures.as_completed(waiting):
                run, result = waiting[done], done.result()
                self._journal.add(self.key(run), result)
                self._known[self.key(run)] = result
                bar.set_postfix_str(run.name)
                bar.update()
        return {run: self._known[self.key(run)] for run in runs}


def trained(run: Run, out: Path) -> dict[str, Any]:
    """Train, and tell what came of it. A training whose loss or figure is not finite has no figures."""
    task = tasks()[run.task]
    plan = replace(task.plan, hidden_size=run.variant.hidden, learning_rate=run.rate)
    data = run.task if run.task in datasets.SERIES else "sunspots"  # each other task takes its own
    options = Options(cell=run.variant.cell, data=data, out=out, seed=run.seed, threads=1)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar, beside the command's own
            metrics = task.train(options, plan)
    except FileError:  # says nothing of the cell
        raise
    except SeqExportError as error:
        return {"failure": str(error), "validation": None, "test": None}
    return {
        "validation": metrics["validation"][task.metric],
        "test": metrics["test"][task.metric],
        **{name: metrics[name] for name in ("seconds", "steps", "parameters")},
    }


def compared(trainings: Trainings, known: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Train all: first both learning rates with the first seed, then the other seeds with the better one."""
    plans: list[tuple[Task, Variant]] = []
    for task in known.values():
        sized = _sized(task)
        plans += [(task, variant) for variant in variants(sized, task.plan.hidden_size)]
    first = trainings.results(
        [
            Run(task.name, variant, rate, SEEDS[0])
            for task, variant in plans
            for rate in (task.plan.learning_rate, task.plan.learning_rate * SLOWER)
        ]
    )
    chosen = {}
    for task, variant in plans:
        tried = [run for run in first if (run.task, run.variant) == (task.name, variant)]
        sign = -1 if task.more_is_better else 1
        chosen[task.name, variant] = min(tried, key=lambda run: _rank(first[run]["validation"], sign))
    wanted = [replace(run, seed=seed) for run in chosen.values() for seed in SEEDS]
    found = trainings.results(wanted)
    rows = []
    for task, variant in plans:
        runs = [replace(chosen[task.name, variant], seed=seed) for seed in SEEDS]
        spec = _sized(task)(variant.cell, variant.hidden)
        rows.append(
            {
                "task": task.name,
                "title": task.title,
                "more_is_better": task.more_is_better,
                **asdict(variant),
                "learning_rate": runs[0].rate,
                "seeds": list(SEEDS),
                "test": [found[run]["test"] for run in runs],
                "validation": [found[run]["validation"] for run in runs],
                "seconds": [found[run].get("seconds") for run in runs],
                "parameters": parameters(spec),
                "multiply_adds": cell_costs.multiply_adds(spec),
            }
        )
    return rows


def _sized(task: Task) -> Callable[[Cell, int], NetworkSpec]:
    return lambda cell, hidden: task.spec(replace(task.plan, hidden_size=hidden), cell)


def _rank(figure: float | None, sign: int) -> float:
    return float("inf") if figure is None or not np.isfinite(figure) else sign * figure


def gradients(trainings: Trainings, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How far the gradient reaches in the nets of characters at one hidden size, before and after training."""
    text = datasets.load_text("shakespeare")
    found = []
    for row in rows:
        if row["task"] == "characters" and row["equal"] == "hidden size":
            variant = Variant(row["cell"], row["hidden"], row["equal"])
            run = Run("characters", variant, row["learning_rate"], SEEDS[0])
            found += cell_costs.gradient_reach(trainings.checkpoint(run), text.parts["test"])
    return found


def finished(
    quality: list[dict[str, Any]], costs: list[dict[str, Any]], reach: list[dict[str, Any]], machine: str
) -> dict[str, Any]:
    """What exported/cells.json holds: what was measured, and the claims with what follows from it for each."""
    adding = {"task": cell_findings.ADDING, "solved": memory.SOLVED, "uninformed": memory.UNINFORMED}
    measured = {"quality": quality, "costs": costs, "gradients": reach, "machine": machine, "adding": adding}
    return {"claims": cell_findings.claim_rows(measured), **measured}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="python -m training.compare_cells", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / ".cells", help="where results and networks are kept")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table of times (default: %(default)s)")
    parser.add_argument("--task", action="append", help="only this task; may be given again (default: all)")
    parser.add_argument("--write", action="store_true", help="write exported/cells.json, docs/cells.md and its plots")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or not options.seconds > 0:
        parser.error(f"--jobs is {options.jobs} and --seconds {options.seconds:g}; expected at least 1, and above 0")
    if options.write and options.task:
        parser.error("--write publishes the whole comparison, and --task asks for a part of it: leave one of them out")
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        known = tasks()
        for name in options.task or ():
            if name not in known:
                parser.error(f"there is no task {name!r}; expected {', '.join(known)}")
        known = {name: task for name, task in known.items() if not options.task or name in options.task}
        trainings = Trainings(known, options.work, options.jobs)
        rows = compared(trainings, known)
        costs = list(_costs(options.seconds))
        results = finished(rows, costs, gradients(trainings, rows), str(describe_machine()))
        for name, text in cell_findings.blocks(results).items():
            print(f"\n{text}")
            if options.write:
                write_block(PAGE, name, text)
        if options.write:
            replace_file(RESULTS, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
            for name, picture in cell_findings.pictures(results).items():
                replace_file(PAGE.with_name(name), picture.encode())
    except SeqExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: Stopped; give the same command again to go on.", file=sys.stderr)
        return 130
    return 0


def _costs(seconds: float) -> Iterator[dict[str, Any]]:
    """What each variant costs, at a usual hidden size and at a large one."""
    for hidden in cell_costs.HIDDEN:
        sized = [(variant.cell, variant.hidden, variant.equal) for variant in variants(cell_costs.spec, hidden)]
        yield from cell_costs.costs(sized, hidden, seconds)


if __name__ == "__main__":
    sys.exit(main())
