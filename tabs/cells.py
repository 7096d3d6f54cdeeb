"""What exported/cells.json says of RNN, LSTM and GRU: claims with what was found, and what was measured, in figures and
tables. `python -m training.compare_cells --write` writes the file."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from seqexport.errors import FileError
from tabs import charts, racing
from tabs.charts import Line
from tabs.languages import ENGLISH, Words, fixed

NAME, COMMAND = "cells.json", "python -m training.compare_cells --write"
VIEWS = ("quality", "memory", "times", "sizes", "gradients")
NETS = ("small", "large")  # of the costs: beside which of the LSTMs
HIDDEN, PARAMETERS = "hidden size", "parameters"
COLUMNS = tuple((cell, HIDDEN) for cell in ("lstm", "gru", "rnn")) + (("gru", PARAMETERS), ("rnn", PARAMETERS))
COLOURS = {"rnn": "#d9772b", "gru": "#14958e", "lstm": "#2f81f7"}  # told apart by those who see no red or green too
MARKS = {"rnn": "^", "gru": "s", "lstm": "o"}
Row = Mapping[str, Any]
# What the file says in English and the tab in the visitor's language. Nothing of it goes to the browser as it stands
# here: the test of the languages finds it by `fixed`.
SAID = (
    fixed("Parameters: RNN fewest, GRU between, LSTM most"),
    fixed("Computation: RNN least, GRU between, LSTM most"),
    fixed("Long sequences: LSTM and GRU ahead of RNN"),
    fixed("Complex tasks: LSTM slightly ahead of GRU"),
    fixed("Simple tasks: GRU as good as LSTM"),
    fixed("Speed of training: GRU fastest, then LSTM, then RNN"),
    fixed("What parameters are worth: GRU ahead of LSTM, LSTM ahead of RNN"),
    fixed("Memory: RNN least, GRU between, LSTM most (training, 100 steps)"),
    fixed("The same, of the state that a stream keeps"),
    fixed("Real time and few resources: RNN"),
    fixed("Few data: GRU ahead of LSTM (three thousand months)"),
    fixed("RNN {rnn}, GRU {gru}, LSTM {lstm}"),
    fixed("multiply-adds a step: RNN {rnn}, GRU {gru}, LSTM {lstm}"),
    fixed("a step, fastest first: {order}"),
    fixed("longest adding problem that most seeds solved, in steps: RNN {rnn}, GRU {gru}, LSTM {lstm}"),
    fixed("a single step in onnxruntime: RNN {rnn}, GRU {gru}, LSTM {lstm}"),
    fixed("{task}: LSTM {lstm}, GRU {gru}"),
    fixed("{task}: LSTM {lstm}, GRU {gru}, no clear difference"),
    fixed("at equal parameters, {one} clearly ahead of {other} on {won} of {tasks} tasks, behind on {lost}"),
    fixed("not measured"),
    fixed("yes"),
    fixed("no"),
    fixed("partly"),
    fixed("sunspots"),
    fixed("electricity"),
    fixed("uk-demand"),
    fixed("opinions"),
    fixed("characters"),
    fixed("sunspots, MAE"),
    fixed("electricity, MAE"),
    fixed("uk-demand, MAE"),
    fixed("opinions in Chinese, accuracy"),
    fixed("characters of plays, bits"),
    fixed("a step"),
    fixed("a sequence"),
    fixed("a batch"),
)


def read(path: Path, command: str) -> dict[str, Any]:
    """A file of results. Raises FileError with the command that writes it, where it is not there or can't be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(
            f"There is no {path.name} in {path.parent.name}/ yet: {command} measures and writes it."
        ) from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path.parent.name}/{path.name} can't be read ({error}): {command} writes it anew.") from error
    if not isinstance(found, dict):
        raise FileError(f"{path.parent.name}/{path.name} holds no results: {command} writes it anew.")
    return found


def results() -> dict[str, Any]:
    """All that the file holds. Raises FileError where it is not there, or of an older kind."""
    found = read(racing.EXPORTED / NAME, COMMAND)
    if missing := {"claims", "quality", "costs", "gradients", "machine", "adding"} - set(found):
        raise FileError(f"{racing.EXPORTED.name}/{NAME} has no {min(missing)}: {COMMAND} writes it anew.")
    return found


# The claims


def claims(found: Mapping[str, Any], words: Words) -> str:
    """Each claim, what was found, and whether it holds."""
    items, counts = [], dict.fromkeys(("yes", "partly", "no"), 0)
    for claim in found["claims"]:
        counts[claim["holds"]] = counts.get(claim["holds"], 0) + 1
        said, verdict = escape(known(claim["said"], words)), escape(known(claim["holds"], words))
        kind = claim["holds"] if claim["holds"] in ("yes", "partly", "no") else "unknown"
        items.append(
            f'<li><span class="verdict {kind}">{verdict}</span><div><p class="said">{said}</p>'
            f'<p class="quiet">{escape(told(claim, words))}</p></div></li>'
        )
    lead = words(
        "Of {all} claims that tutorials repeat, {yes} hold here, {partly} hold in part, {no} do not.",
        all=len(found["claims"]), yes=counts["yes"], partly=counts["partly"], no=counts["no"],
    )  # fmt: skip
    detail = words(
        "A difference counts where it is larger than two standard errors of the seeds’ means; a task is one data set, "
        "so read “ahead” as “ahead here”."
    )
    records = [
        {"said": known(claim["said"], words), "found": told(claim, words), "holds": known(claim["holds"], words)}
        for claim in found["claims"]
    ]
    saved = charts.download("cells-claims.csv", words("Claims"), records, words)
    return (
        f'<p class="lead">{escape(lead)}</p><p class="quiet">{escape(detail)}</p><ul class="claims">{"".join(items)}'
        f"</ul>{saved}"
    )


def told(claim: Mapping[str, Any], words: Words) -> str:
    """What was found, in words; figures stay as they are, a task's name is said in the visitor's language."""
    parts = []
    for part in claim["found"]:
        values = {name: known(value, words) if name == "task" else value for name, value in part["values"].items()}
        parts.append(known(part["text"], words, **values))
    return words("; ").join(parts)


def known(text: str, words: Words, **values: Any) -> str:
    """A text of the file, one of SAID, in the visitor's language; in English where it is another one."""
    return words(text, **values)


# The figures


def show(view: str, nets: str, found: Mapping[str, Any], words: Words) -> str:
    """One of VIEWS, of costs beside the smaller or the larger LSTM (NETS)."""
    views: Mapping[str, Callable[[], Iterator[str]]] = {
        "quality": lambda: _quality(found, words),
        "memory": lambda: _memory(found, words),
        "times": lambda: _costs(found, nets, _times, "cells-times", words),
        "sizes": lambda: _costs(found, nets, _sizes, "cells-sizes", words),
        "gradients": lambda: _gradients(found, words),
    }
    return "".join(views[view]())


def by_task(rows: Sequence[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    """Task → (cell, what is equal) → its row."""
    tasks: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], {})[row["cell"], row["equal"]] = row
    return tasks


def name_of(row: Row) -> str:
    """A network, by its cell and hidden size."""
    return f"{row['cell'].upper()} {row['hidden']:,}"


def _hollow(row: Row) -> bool:
    return row["equal"] == PARAMETERS


def _legend(words: Words) -> str:
    entries = [(cell.upper(), COLOURS[cell], False) for cell in ("lstm", "gru", "rnn")]
    return charts.legend(
        [
            *entries,
            (words("filled: the LSTM’s hidden size"), "currentColor", False),
            (words("hollow: the LSTM’s number of parameters"), "currentColor", True),
        ]
    )


def figures(row: Row, words: Words) -> str:
    """Mean and standard deviation of the seeds' figures, or how many of them failed."""
    tested = [value for value in row["test"] if value is not None]
    if len(tested) < len(row["test"]):
        return words("{n} of {all} failed", n=len(row["test"]) - len(tested), all=len(row["test"]))
    spread = stdev(tested) if len(tested) > 1 else 0.0
    if row["more_is_better"]:
        return f"{100 * mean(tested):.1f} ± {100 * spread:.1f} %"
    digits = max(0, 3 - math.floor(math.log10(max(mean(tested), 1e-9))) - 1)
    return f"{mean(tested):.{digits}f} ± {spread:.{digits}f}"


def _quality(found: Mapping[str, Any], words: Words) -> Iterator[str]:
    tasks = {task: rows for task, rows in by_task(found["quality"]).items() if task != found["adding"]["task"]}
    seeds = max((len(row["test"]) for rows in tasks.values() for row in rows.values()), default=0)
    text = words("Of the test part, {n} seeds: a dot for each, the stroke is their mean ± standard deviation.", n=seeds)
    yield f'<p class="quiet">{escape(text)}</p>{_legend(words)}<div class="charts">'
    for rows in tasks.values():
        first = rows["lstm", HIDDEN]
        better = words("more is better") if first["more_is_better"] else words("less is better")
        lines = [
            Line(
                name_of(row), figures(row, words), COLOURS[row["cell"]],
                tuple(value for value in row["test"] if value is not None), _hollow(row),
            )
            for row in (rows[column] for column in COLUMNS if column in rows)
        ]  # fmt: skip
        yield charts.dots(known(first["title"], words), better, lines)
    yield "</div>"
    heads = [words("Task"), *(_column(*column, words) for column in COLUMNS)]
    cells = [
        [
            known(rows["lstm", HIDDEN]["title"], words),
            *(
                f"{figures(rows[column], words)} ({rows[column]['hidden']:,})" if column in rows else "–"
                for column in COLUMNS
            ),
        ]
        for rows in tasks.values()
    ]
    caption = words("Mean ± standard deviation; in brackets the hidden size")
    records = [record for rows in tasks.values() for row in rows.values() for record in _records(row)]
    yield charts.table("cells-quality.csv", caption, heads, cells, records, words)


def _column(cell: str, equal: str, words: Words) -> str:
    if cell == "lstm":
        return "LSTM"
    return words("{cell}, same size", cell=cell.upper()) if equal == HIDDEN else words(
        "{cell}, same parameters", cell=cell.upper()
    )  # fmt: skip


def _records(row: Row) -> Iterator[dict[str, Any]]:
    """A line of the CSV for each seed."""
    about = {name: row.get(name) for name in ("task", "cell", "hidden", "equal", "parameters", "learning_rate")}
    for seed, tested, validation in zip(row["seeds"], row["test"], row["validation"], strict=True):
        yield {**about, "seed": seed, "test": tested, "validation": validation}


def _memory(found: Mapping[str, Any], words: Words) -> Iterator[str]:
    about = found["adding"]
    rows = by_task(found["quality"]).get(about["task"], {})
    shown = [rows[column] for column in COLUMNS if column in rows]
    lengths = list(dict.fromkeys(length for row in shown for tested in row["test"] for length in tested or ()))
    text = words(
        "The adding problem: two numbers of a random sequence are marked, and their sum is asked for at its end. "
        "Squared error, the seeds’ median; solved is below {solved:g}, who remembers nothing has {uninformed:.3f}.",
        solved=about["solved"], uninformed=about["uninformed"],
    )  # fmt: skip
    yield f'<p class="quiet">{escape(text)}</p>{_legend(words)}'

    def draw(figure: Any) -> None:
        axes = _axes(figure)
        for row in shown:
            errors = [median(_errors(row, length)) for length in lengths]
            axes.plot([int(length) for length in lengths], errors, **_style(row["cell"], _hollow(row)))
        axes.axhline(about["uninformed"], color="#888888", linewidth=1, linestyle=":")
        axes.axhline(about["solved"], color="#888888", linewidth=1, linestyle=":")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks([int(length) for length in lengths], [f"{int(length):,}" for length in lengths])
        axes.minorticks_off()
        _powers(axes)

    title = words("Error over the steps of the sequence; dotted: remembers nothing, and solved")
    reach = "; ".join(
        f"{name_of(row)}: {', '.join(f'{length} → {median(_errors(row, length)):.2g}' for length in lengths)}"
        for row in shown
    )
    yield charts.picture(title, f"{title}. {reach}", draw, 3.0)
    heads = [words("Steps"), *map(name_of, shown)]
    cells = [
        [f"{int(length):,}", *(_solved(_errors(row, length), about["solved"], words) for row in shown)]
        for length in lengths
    ]
    records = [
        {"cell": row["cell"], "hidden": row["hidden"], "equal": row["equal"], "seed": seed, "steps": int(length)}
        | {"error": None if tested is None else tested[length]}
        for row in shown
        for seed, tested in zip(row["seeds"], row["test"], strict=True)
        for length in lengths
    ]
    caption = words("Median error, and how many seeds solved it")
    yield charts.table("cells-memory.csv", caption, heads, cells, records, words)


def _errors(row: Row, length: str) -> list[float]:
    return [math.inf if tested is None else tested[length] for tested in row["test"]]


def _solved(errors: Sequence[float], below: float, words: Words) -> str:
    solved = sum(error < below for error in errors)
    return words("{error:.2g}, {n} of {all}", error=median(errors), n=solved, all=len(errors))


def _powers(axes: Any) -> None:
    from seqexport.plots import power_axis

    power_axis(axes.yaxis)


def _axes(figure: Any) -> Any:
    from seqexport.plots import plain

    axes = figure.subplots()
    plain(axes)
    axes.grid(color="#888888", alpha=0.25)
    axes.tick_params(labelsize=10)
    return axes


def _style(cell: str, hollow: bool) -> dict[str, Any]:
    colour = COLOURS[cell]
    face = "none" if hollow else colour
    line = {"color": colour, "linestyle": "--" if hollow else "-", "linewidth": 1.6}
    return {**line, "marker": MARKS[cell], "markersize": 6, "markerfacecolor": face}


def _gradients(found: Mapping[str, Any], words: Words) -> Iterator[str]:
    rows = found["gradients"]
    text = words(
        "How strongly a character that was read so many steps ago moves the loss of the next one: the median norm of "
        "the loss’s gradient, in the nets of characters at one hidden size. Solid: trained; dotted: at the start."
    )
    marks = charts.legend([(cell.upper(), COLOURS[cell], False) for cell in ("lstm", "gru", "rnn")])
    yield f'<p class="quiet">{escape(text)}</p>{marks}'

    def draw(figure: Any) -> None:
        axes = _axes(figure)
        for row in rows:
            norms = [max(norm, 1e-12) for norm in row["norms"]]
            look = {"color": COLOURS[row["cell"]], "linestyle": "-" if row["trained"] else ":", "linewidth": 1.6}
            marker = MARKS[row["cell"]] if row["trained"] else ""
            axes.plot(range(len(norms)), norms, marker=marker, markevery=max(1, len(norms) // 8), markersize=5, **look)
        axes.set(yscale="log")
        _powers(axes)

    title = words("Gradient over the characters back")
    near, far = ([(row, row["norms"][min(at, len(row["norms"]) - 1)]) for row in rows] for at in (0, 100))
    about = "; ".join(
        f"{row['cell'].upper()}, {words('trained') if row['trained'] else words('at the start')}: "
        f"0 → {norm:.2g}, {min(100, len(row['norms']) - 1)} → {last:.2g}"
        for (row, norm), (_, last) in zip(near, far, strict=True)
    )
    yield charts.picture(title, f"{title}. {about}", draw, 3.0)
    places = [at for at in (0, 1, 3, 10, 30, 100, 255) if all(at < len(row["norms"]) for row in rows)]
    heads = [words("Network"), *(words("{n} back", n=at) for at in places)]
    cells = [
        [
            f"{name_of(row)}, {words('trained') if row['trained'] else words('at the start')}",
            *(f"{row['norms'][at]:.2g}" for at in places),
        ]
        for row in rows
    ]
    records = [
        {"cell": row["cell"], "hidden": row["hidden"], "trained": row["trained"], "back": back, "norm": norm}
        for row in rows
        for back, norm in enumerate(row["norms"])
    ]
    yield charts.table("cells-gradients.csv", words("Norm of the gradient"), heads, cells, records, words)


# The costs

Costs = Iterator[tuple[str, Callable[[Row], float | None], Callable[[float], str]]]


def _times(row: Row, words: Words) -> Costs:
    """(what is timed, seconds of a row, how they are told)."""
    yield words("Training step"), lambda row: row["training_step"], duration
    for call, runtimes in row["inference"].items():
        for runtime in runtimes:
            label = words("{call}: {runtime}", call=known(call, words), runtime=runtime)
            yield label, lambda row, c=call, r=runtime: row["inference"][c][r], duration  # type: ignore[misc]


def _sizes(row: Row, words: Words) -> Costs:
    yield words("Parameters"), lambda row: row["parameters"], "{:,}".format
    yield words("Multiply-adds a step"), lambda row: row["multiply_adds"], "{:,}".format
    yield words("File"), lambda row: row["file_bytes"], size
    yield words("State that a stream keeps"), lambda row: row["state_bytes"], size
    for steps in row["training_memory"]:
        label = words("Memory of training, {steps} steps", steps=steps)
        yield label, lambda row, s=steps: row["training_memory"][s], size  # type: ignore[misc]
    for runtime in row["memory"]:
        label = words("Memory of {runtime}", runtime=runtime)
        yield label, lambda row, r=runtime: row["memory"][r], size  # type: ignore[misc]


def _costs(
    found: Mapping[str, Any], nets: str, kinds: Callable[[Row, Words], Costs], name: str, words: Words
) -> Iterator[str]:
    beside = (min if nets == "small" else max)(row["beside"] for row in found["costs"])
    rows = [row for row in found["costs"] if row["beside"] == beside]
    asked = list(kinds(rows[0], words))
    text = words(
        "Beside an LSTM of hidden size {hidden}: one layer that reads 64 numbers and answers with 80. A step is 1 × 1, "
        "a sequence 1 × 100, a batch 32 × 100, as in the training step.",
        hidden=beside,
    )
    machine = words("One thread of {machine}.", machine=found["machine"])
    yield f'<p class="quiet">{escape(text)} {escape(machine)}</p>{_legend(words)}<div class="charts">'
    for label, of, said in asked:
        lines = []
        for row in rows:
            value = of(row)
            figure = "–" if value is None else said(value)
            values = () if value is None else (float(value),)
            lines.append(Line(name_of(row), figure, COLOURS[row["cell"]], values, _hollow(row)))
        yield charts.bars(label, "", lines)
    yield "</div>"
    heads = [words("Network"), *(label for label, *_ in asked)]
    cells = [
        [name_of(row), *("–" if (value := of(row)) is None else said(value) for _, of, said in asked)] for row in rows
    ]
    plain = list(kinds(rows[0], ENGLISH))  # the file's columns have the same names for everybody
    records = [
        {name: row[name] for name in ("cell", "hidden", "equal")} | {label: of(row) for label, of, _ in plain}
        for row in rows
    ]
    yield charts.table(f"{name}.csv", words("Costs"), heads, cells, records, words)


def duration(seconds: float) -> str:
    """Seconds in a unit that is read at a glance."""
    return _tables().duration(seconds)


@functools.cache
def _tables() -> Any:
    from seqexport import tables  # which imports torch

    return tables


def size(count: float) -> str:
    """Bytes in a unit that is read at a glance."""
    for scale, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
