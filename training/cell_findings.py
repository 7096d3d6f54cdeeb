"""What a comparison of the cells says: its tables, its pictures, and what was found beside each claim that is repeated.

Everything here follows from the results that training.compare_cells gives; no figure stands in the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from seqexport.plots import GREY, figure, plain, power_axis, time_axis
from seqexport.specs import CELLS
from seqexport.tables import duration
from training.memory import SOLVED, UNINFORMED

Row = Mapping[str, Any]
COLOURS = {"rnn": "#e3872d", "gru": "#1fa7a0", "lstm": "#2f81f7"}
HIDDEN, PARAMETERS = "hidden size", "parameters"
COLUMNS = tuple((cell, HIDDEN) for cell in ("lstm", "gru", "rnn")) + (("gru", PARAMETERS), ("rnn", PARAMETERS))
ADDING = "adding"  # the task whose figure is an error for each length
CLEAR = 2.0  # standard errors of a difference from which on it is called one
NEAR = 0.05  # share by which costs must differ to be put into an order


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """Name of a block of docs/cells.md → its Markdown."""
    found = {
        "cells-quality": quality_table(results["quality"]),
        "cells-memory": memory_table(results["quality"]),
        "cells-costs": costs_table(results["costs"]),
        "cells-claims": claims_table(results),
        "cells-gradients": gradients_table(results["gradients"]),
        "cells-machine": f"Times on one thread of {results['machine']}.",
    }
    return {name: text for name, text in found.items() if text}


# Tables


def quality_table(rows: Sequence[Row]) -> str:
    """A row a task: the mean of the seeds' figures on the test part, and their standard deviation."""
    lines = []
    for task, found in _by_task(rows).items():
        if task != ADDING:
            first = found["lstm", HIDDEN]
            marks = (f"{_figures(found[column])} ({found[column]['hidden']})" for column in COLUMNS)
            lines.append(f"| {first['title']} {'↑' if first['more_is_better'] else '↓'} | {' | '.join(marks)} |")
    return _headed("task", lines)


def memory_table(rows: Sequence[Row]) -> str:
    """A row a length of the adding problem: the seeds' median error, and how many of them solved it."""
    found = _by_task(rows).get(ADDING, {})
    lines = []
    for length in _lengths(found):
        marks = []
        for column in COLUMNS:
            errors = _errors(found[column], length)
            solved = sum(error < SOLVED for error in errors)
            marks.append(f"{np.median(errors):.2g}, {solved} of {len(errors)} ({found[column]['hidden']})")
        lines.append(f"| {int(length):,} | {' | '.join(marks)} |")
    return _headed("steps", lines)


def _lengths(found: Mapping[tuple[str, str], Row]) -> list[str]:
    return list(dict.fromkeys(length for row in found.values() for tested in row["test"] for length in tested or ()))


def _errors(row: Row, length: str) -> list[float]:
    """Of the seeds, at one length of the adding problem."""
    return [math.inf if tested is None else tested[length] for tested in row["test"]]


def _headed(first: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    names = (f"{cell.upper()}, {'LSTM’s ' if cell != 'lstm' else ''}{equal}" for cell, equal in COLUMNS)
    return "\n".join([f"| {first} | {' | '.join(names)} |", "|---" * (len(COLUMNS) + 1) + "|", *lines])


def costs_table(costs: Sequence[Row]) -> str:
    """A row a network: what it is and what it takes."""
    runtimes = list(costs[0]["inference"]["a step"])
    calls = list(costs[0]["inference"])
    head = ["network", "parameters", "multiply-adds a step", "file", "state", "training step"]
    head += [f"training’s memory, {steps} steps" for steps in costs[0]["training_memory"]]
    head += [f"{call}: {runtime}" for call in calls for runtime in runtimes]
    head += [f"memory: {runtime}" for runtime in runtimes]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in costs:
        cells = [
            f"{row['cell'].upper()} {row['hidden']}",
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            _bytes(row["file_bytes"]),
            _bytes(row["state_bytes"]),
            duration(row["training_step"]),
            *(_bytes(size) for size in row["training_memory"].values()),
            *(duration(row["inference"][call][runtime]) for call in calls for runtime in runtimes),
            *(_bytes(row["memory"][runtime]) for runtime in runtimes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gradients_table(found: Sequence[Row]) -> str:
    """A row a cell: how many steps back the gradient has fallen to a share of what it is at the last step."""
    shares = (1e-3, 1e-6)
    head = [f"{state}: to {_share(share)} of it" for state in ("before training", "trained") for share in shares]
    lines = [f"| network | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for cell in CELLS:
        nets = {row["trained"]: row for row in found if row["cell"] == cell}
        if nets:
            known = (nets.get(trained, {"norms": ()})["norms"] for trained in (False, True))
            steps = (_fallen(norms, share) for norms in known for share in shares)
            lines.append(f"| {cell.upper()} {next(iter(nets.values()))['hidden']} | {' | '.join(steps)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _share(share: float) -> str:
    return f"1/{round(1 / share):,}"


def _fallen(norms: Sequence[float], share: float) -> str:
    if not norms:
        return "–"
    steps = next((step for step, norm in enumerate(norms) if norm < share * norms[0]), None)
    return f"beyond {len(norms) - 1}" if steps is None else f"{steps} steps"


# The claims


def claims_table(results: Mapping[str, Any]) -> str:
    """Each claim that is repeated about the cells, what was found, and whether it holds."""
    lines = ["| it is said | it was found | holds |", "|---|---|---|"]
    for claim in claims(results):
        found = "; ".join(text.format(**values) for text, values in claim.found)
        lines.append(f"| {claim.said} | {found} | {claim.holds} |")
    return "\n".join(lines)


Found = tuple[tuple[str, Mapping[str, Any]], ...]


class Claim(NamedTuple):
    """What is said, what was found, and whether it holds: yes, no, partly, or – where it was not measured. found: words
    with places, and the figures that go there, so that the words can be said in another language too."""

    said: str
    found: Found
    holds: str


def claim_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims as plain JSON types, as they stand in exported/cells.json."""
    return [
        {
            "said": claim.said,
            "found": [{"text": text, "values": dict(values)} for text, values in claim.found],
            "holds": claim.holds,
        }
        for claim in claims(results)
    ]


NOT_MEASURED: Found = (("not measured", {}),)
EACH = "RNN {rnn}, GRU {gru}, LSTM {lstm}"


def claims(results: Mapping[str, Any]) -> Iterator[Claim]:
    """Each claim, in the tutorials' order."""
    tasks, costs = _by_task(results["quality"]), _usual(results["costs"])
    yield _ordered("Parameters: RNN fewest, GRU between, LSTM most", costs, lambda row: row["parameters"])
    yield _ordered(
        "Computation: RNN least, GRU between, LSTM most",
        costs,
        lambda row: row["multiply_adds"],
        found=f"multiply-adds a step: {EACH}",
    )
    yield _long_sequences(tasks)
    yield _between("Complex tasks: LSTM slightly ahead of GRU", tasks, ("opinions", "characters"), better="lstm")
    yield _between("Simple tasks: GRU as good as LSTM", tasks, ("sunspots", "electricity", "uk-demand"), better=None)
    yield _order_of_training(costs)
    yield _efficiency(tasks)
    yield _ordered(
        "Memory: RNN least, GRU between, LSTM most (training, 100 steps)",
        costs,
        lambda row: list(row["training_memory"].values())[0],
        _bytes,
    )
    yield _ordered("The same, of the state that a stream keeps", costs, lambda row: row["state_bytes"], _bytes)
    yield _real_time(costs)
    yield _between("Few data: GRU ahead of LSTM (three thousand months)", tasks, ("sunspots",), better="gru")


def _ordered(
    said: str,
    costs: Mapping[str, Row],
    of: Callable[[Row], Any],
    told: Callable[[Any], str] = "{:,}".format,
    found: str = EACH,
) -> Claim:
    """Whether a cost rises from RNN over GRU to LSTM, at the same hidden size."""
    values = {cell: of(costs[cell]) for cell in ("rnn", "gru", "lstm")}
    if any(value is None for value in values.values()):
        return Claim(said, NOT_MEASURED, "–")
    rises = [b > a * (1 + NEAR) for a, b in pairwise(values.values())]
    return Claim(said, ((found, {cell: told(value) for cell, value in values.items()}),), _verdict(rises))


def _order_of_training(costs: Mapping[str, Row]) -> Claim:
    order = sorted(CELLS, key=lambda cell: costs[cell]["training_step"])
    found = ", ".join(f"{cell.upper()} {duration(costs[cell]['training_step'])}" for cell in order)
    steps = [costs[cell]["training_step"] for cell in ("gru", "lstm", "rnn")]
    holds = _verdict([b > a * (1 + NEAR) for a, b in pairwise(steps)])
    said = "Speed of training: GRU fastest, then LSTM, then RNN"
    return Claim(said, (("a step, fastest first: {order}", {"order": found}),), holds)


def _long_sequences(tasks: Mapping[str, Mapping[tuple[str, str], Row]]) -> Claim:
    said = "Long sequences: LSTM and GRU ahead of RNN"
    found = tasks.get(ADDING)
    if found is None:
        return Claim(said, NOT_MEASURED, "–")
    reach = {
        cell: max(
            (int(length) for length in _lengths(found) if np.median(_errors(found[cell, HIDDEN], length)) < SOLVED),
            default=0,
        )
        for cell in CELLS
    }
    text = f"longest adding problem that most seeds solved, in steps: {EACH}"
    told: dict[str, Any] = {cell: f"{length:,}" for cell, length in reach.items()}
    holds = _verdict([reach["lstm"] > reach["rnn"], reach["gru"] > reach["rnn"]])
    return Claim(said, ((text, told),), holds)


def _between(
    said: str, tasks: Mapping[str, Mapping[tuple[str, str], Row]], names: Sequence[str], better: str | None
) -> Claim:
    """LSTM against GRU at one hidden size on some tasks: which is ahead by more than seeds differ, or neither."""
    told, held = [], []
    for name in (name for name in names if name in tasks):
        ahead = _ahead(tasks[name]["lstm", HIDDEN], tasks[name]["gru", HIDDEN])
        winner = {1: "lstm", -1: "gru", 0: None}[ahead]
        text = "{task}: LSTM {lstm}, GRU {gru}"
        figures = {cell: _figures(tasks[name][cell, HIDDEN]) for cell in ("lstm", "gru")}
        told.append((text if winner else f"{text}, no clear difference", {"task": name, **figures}))
        held.append(winner == better or (better is None and winner == "gru"))
    return Claim(said, tuple(told) or NOT_MEASURED, _verdict(held))


def _efficiency(tasks: Mapping[str, Mapping[tuple[str, str], Row]]) -> Claim:
    said = "What parameters are worth: GRU ahead of LSTM, LSTM ahead of RNN"
    wins = {pair: [0, 0, 0] for pair in (("gru", "lstm"), ("lstm", "rnn"))}
    for found in tasks.values():
        of = {"lstm": found["lstm", HIDDEN], "gru": found["gru", PARAMETERS], "rnn": found["rnn", PARAMETERS]}
        for one, other in wins:
            wins[one, other][1 - _ahead(of[one], of[other])] += 1
    text = "at equal parameters, {one} clearly ahead of {other} on {won} of {tasks} tasks, behind on {lost}"
    told = tuple(
        (text, {"one": one.upper(), "other": other.upper(), "won": won, "tasks": len(tasks), "lost": lost})
        for (one, other), (won, _, lost) in wins.items()
    )
    return Claim(said, told, _verdict([won > len(tasks) / 2 for won, _, _ in wins.values()]))


def _real_time(costs: Mapping[str, Row]) -> Claim:
    said = "Real time and few resources: RNN"
    steps = {cell: costs[cell]["inference"]["a step"]["onnxruntime"] for cell in CELLS}
    told: dict[str, Any] = {cell: duration(taken) for cell, taken in steps.items()}
    faster = [steps["rnn"] * (1 + NEAR) < steps[cell] for cell in ("gru", "lstm")]
    return Claim(said, ((f"a single step in onnxruntime: {EACH}", told),), _verdict(faster))


def _verdict(parts: Sequence[bool]) -> str:
    return "–" if not parts else "yes" if all(parts) else "partly" if any(parts) else "no"


def _ahead(one: Row, other: Row) -> int:
    """1 where `one` is ahead by more than CLEAR standard errors of the difference of the seeds' means, -1 where the
    other is, 0 where neither is."""
    a, b = _tested(one), _tested(other)
    if not np.isfinite([*a, *b]).all():
        return int(np.isfinite(a).all()) - int(np.isfinite(b).all())
    spread = math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    apart = float(np.mean(b) - np.mean(a)) * (-1 if one["more_is_better"] else 1)
    return 0 if abs(apart) <= CLEAR * spread else (1 if apart > 0 else -1)


def _tested(row: Row) -> list[float]:
    """The seeds' figures on the test part; one whose training did not end well is infinitely bad. Of the adding problem
    the mean over the lengths, where no error counts as more than that of remembering nothing."""
    return [math.inf if figure is None else _one(figure) for figure in row["test"]]


def _one(figure: float | Mapping[str, float]) -> float:
    if isinstance(figure, Mapping):
        return float(np.mean([min(error, UNINFORMED) for error in figure.values()]))
    return float(figure)


def _figures(row: Row) -> str:
    found = np.array(_tested(row))
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} of {len(found)} failed"
    if row["more_is_better"]:
        return f"{100 * found.mean():.1f} ± {100 * found.std(ddof=1):.1f} %"
    digits = max(0, 3 - math.floor(math.log10(max(found.mean(), 1e-9))) - 1)
    return f"{found.mean():.{digits}f} ± {found.std(ddof=1):.{digits}f}"


def _usual(costs: Sequence[Row]) -> dict[str, Row]:
    """Cell → its row at the LSTM's hidden size, the smaller one."""
    beside = min(row["beside"] for row in costs)
    return {row["cell"]: row for row in costs if row["beside"] == beside and row["equal"] == HIDDEN}


def _by_task(rows: Sequence[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        found.setdefault(row["task"], {})[row["cell"], row["equal"]] = row
    return found


def _bytes(size: float | None) -> str:
    if size is None:
        return "–"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


# Pictures


def pictures(results: Mapping[str, Any]) -> dict[str, str]:
    """File name → SVG."""
    tasks = _by_task(results["quality"])
    found = {}
    if any(task != ADDING for task in tasks):
        found["cells-quality.svg"] = figure(*_quality(tasks))
    if ADDING in tasks:
        found["cells-memory.svg"] = figure(*_memory(tasks))
    if results["gradients"]:
        found["cells-gradients.svg"] = figure(*_gradients(results["gradients"]))
    found["cells-times.svg"] = figure(*_times(results["costs"]))
    return found


Drawing = tuple[Callable[[Any], None], float, str]


def _named(cell: str, equal: str) -> str:
    return cell.upper() if cell == "lstm" else f"{cell.upper()}, LSTM’s {equal}"


def _style(cell: str, equal: str) -> dict[str, Any]:
    return {"color": COLOURS[cell], "linestyle": "-" if equal == HIDDEN else "--", "linewidth": 1.2}


def _legend(figure: Any, axes: Any, columns: int = 2) -> None:
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=7, labelcolor=GREY)


def _quality(tasks: Mapping[str, Mapping[tuple[str, str], Row]]) -> Drawing:
    """A panel a task: each seed a dot, the mean a line."""
    shown = {task: found for task, found in tasks.items() if task != ADDING}

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(shown), 1, squeeze=False)
        for (_, found), (axes,) in zip(shown.items(), grid, strict=True):
            plain(axes)
            for place, (cell, equal) in enumerate(COLUMNS):
                tested = [value for value in _tested(found[cell, equal]) if math.isfinite(value)]
                face = COLOURS[cell] if equal == HIDDEN else "none"
                axes.plot(tested, [place] * len(tested), "o", color=COLOURS[cell], markerfacecolor=face, markersize=4)
                if tested:
                    axes.plot([np.mean(tested)], [place], "|", color=COLOURS[cell], markersize=11)
            axes.set_yticks(range(len(COLUMNS)), [_named(*column) for column in COLUMNS], fontsize=7)
            axes.set_ylim(len(COLUMNS) - 0.5, -0.5)
            first = found["lstm", HIDDEN]
            better = "more is better" if first["more_is_better"] else "less is better"
            axes.set_title(f"{first['title']} ({better})", fontsize=8, loc="left", x=0)
            axes.grid(axis="x", color=GREY, alpha=0.25)

    return draw, 0.3 + 1.25 * len(shown), "Each cell on each task, a dot a seed"


def _memory(tasks: Mapping[str, Mapping[tuple[str, str], Row]]) -> Drawing:
    found = tasks[ADDING]
    lengths = _lengths(found)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        plain(axes)
        for column in COLUMNS:
            errors = [float(np.median(_errors(found[column], length))) for length in lengths]
            axes.plot(list(map(int, lengths)), errors, "o", markersize=3, label=_named(*column), **_style(*column))
        axes.axhline(UNINFORMED, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            "remembers nothing", (int(lengths[0]), UNINFORMED), (0, 3), textcoords="offset points", fontsize=7
        )
        axes.set(xscale="log", yscale="log", xlabel="steps of the sequence", ylabel="squared error, median of seeds")
        power_axis(axes.yaxis)
        axes.set_xticks(list(map(int, lengths)), [f"{int(length):,}" for length in lengths])
        axes.minorticks_off()
        axes.grid(color=GREY, alpha=0.25)
        _legend(figure, axes)

    return draw, 3.2, "The adding problem: error over the length"


def _gradients(rows: Sequence[Row]) -> Drawing:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        plain(axes)
        for row in rows:
            norms = np.maximum(row["norms"], 1e-12)
            label = f"{row['cell'].upper()}, {'trained' if row['trained'] else 'at its start'}"
            line = "-" if row["trained"] else ":"
            axes.plot(range(len(norms)), norms, color=COLOURS[row["cell"]], linestyle=line, linewidth=1.1, label=label)
        axes.set(yscale="log", xlabel="characters back", ylabel="norm of the loss’s gradient (median)")
        power_axis(axes.yaxis)
        axes.grid(color=GREY, alpha=0.25)
        _legend(figure, axes)

    return draw, 3.2, "How far back the gradient reaches"


def _times(costs: Sequence[Row]) -> Drawing:
    """A panel a kind of call, a bar a network, at the smaller hidden size."""
    beside = min(row["beside"] for row in costs)
    rows = [row for row in costs if row["beside"] == beside]
    kinds: list[tuple[str, Callable[[Row], float]]] = [("training step", lambda row: row["training_step"])]
    for call in rows[0]["inference"]:
        for runtime in rows[0]["inference"][call]:
            kinds.append((f"{call}, {runtime}", lambda row, c=call, r=runtime: row["inference"][c][r]))  # type: ignore[misc]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        plain(axes)
        for place, row in enumerate(rows):
            face = COLOURS[row["cell"]] if row["equal"] == HIDDEN else "none"
            axes.plot(
                [of(row) for _, of in kinds],
                [line + 0.12 * (place - 2) for line in range(len(kinds))],
                "o",
                color=COLOURS[row["cell"]],
                markerfacecolor=face,
                markersize=4,
                label=f"{row['cell'].upper()} {row['hidden']}",
            )
        axes.set_yticks(range(len(kinds)), [name for name, _ in kinds], fontsize=7)
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.set(xscale="log")
        axes.grid(color=GREY, alpha=0.25)
        time_axis(axes.xaxis)
        _legend(figure, axes, 3)

    return draw, 0.9 + 0.36 * len(kinds), "Time of a training step and of each runtime"
