"""A comparison of the runtimes as HTML: bars, the table with its ratios, whether the answers are the same, the absent.

What is shown is what `seqexport.compare(…).to_dict()` gives: that of exported/runtimes.json, or one made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from seqexport.errors import FileError
from tabs import charts, racing
from tabs.cells import duration, read, size
from tabs.charts import Line
from tabs.languages import Words

NAME, COMMAND = "runtimes.json", "python -m training.measure --only compare"
KINDS = ("step", "sequence", "pipeline", "footprint")
FAR = 20.0  # times the shortest bar from which on the axis is logarithmic
RATIOS = ("torch_default", "torch_best", "best_peer")
PARTS = {"path", "found", "absent", "scenarios", "footprints"}  # of a model, without which there is nothing to show
Row = Mapping[str, Any]


def results() -> dict[str, Any]:
    """All that the file holds. Raises FileError where it is not there, or is no comparison."""
    found = read(racing.EXPORTED / NAME, COMMAND)
    models = found.get("models")
    whole = isinstance(models, list) and all(isinstance(model, dict) and set(model) >= PARTS for model in models)
    if not models or not whole or not {"machine", "threads"} <= set(found):
        raise FileError(f"{racing.EXPORTED.name}/{NAME} holds no comparison: {COMMAND} writes it anew.")
    return found


def models(found: Mapping[str, Any]) -> list[str]:
    """The names of the models that were measured."""
    return [name_of(model) for model in found["models"]]


def name_of(model: Mapping[str, Any]) -> str:
    """A shipped model's name: its folder's."""
    return Path(model["path"]).parent.name


def show(model: Mapping[str, Any], kind: str, found: Mapping[str, Any], words: Words) -> str:
    """One of KINDS of a model that `found` has: all tables of that kind, then who is absent and the machine."""
    parts = [f'<p class="quiet">{escape(str(model["found"]))}</p>']
    if kind == "footprint":
        parts += _footprints(model, words)
    tables = [table for table in model["scenarios"] if kind_of(table) == kind]
    for table in tables:
        parts += _scenario(name_of(model), table, words)
    if not tables and (kind != "footprint" or not model["footprints"]):
        parts.append(f"<p>{escape(words('This was not measured.'))}</p>")
    parts += _absent(model, words)
    parts.append(f'<p class="quiet">{escape(machine(found, words))}</p>')
    return "".join(parts)


def kind_of(table: Mapping[str, Any]) -> str:
    """Under which of KINDS a scenario is shown."""
    key = str(table["key"])
    return key if key in KINDS else "sequence" if key == "throughput" else "pipeline"


def title_of(table: Mapping[str, Any], words: Words) -> str:
    """What is timed, in words."""
    key, sizes = table["key"], table["sizes"]
    if key == "step":
        return words("One step, the state carried on")
    if key in ("sequence", "throughput"):
        return words("{batch} × {time} steps at once", **{"batch": 1, "time": 1} | dict(sizes))
    if key.startswith("forecast"):
        return words("Forecast: {horizon} steps, paths: {paths}", **{"horizon": 0, "paths": 1} | dict(sizes))
    if key == "classify":
        return words("Opinions: {n} texts a call, their split into tokens included", n=table["work"])
    if key.startswith("generate"):
        steps = words("Text: {n} tokens", n=table["work"])
        return steps + (words(", with top-k 40 and top-p 0.9") if key != "generate" else "")
    return str(table["title"])


def _scenario(model: str, table: Mapping[str, Any], words: Words) -> Iterator[str]:
    from seqexport.plots import COLOURS

    rows = table["rows"]
    timed = [row for row in rows if row["seconds"] and row["seconds"]["p50"]]
    title = title_of(table, words)
    yield f'<section><p class="lead">{escape(title)}</p><p>{escape(_fastest(timed, words))}</p>'
    ends = [end for row in timed for end in _ends(row)]
    logarithmic = bool(ends) and max(ends) > FAR * min(ends)
    lines = [Line(row["label"], _times(row, words), COLOURS.get(row["runtime"], "#888888"), _ends(row)) for row in rows]
    note = words("bar: median; line: to the 90th percentile")
    if logarithmic:
        note += words("; logarithmic, each stroke is ten times the one before")
    yield charts.bars(words("Time of a call"), note, lines, logarithmic)
    heads = [words("Runtime"), "p50", "p90", words("a second")]
    if table["default"]:
        heads += [words("× torch’s default"), words("× torch’s best"), words("× best float peer")]
    cells = [_cells(row, table, words) for row in rows]
    records = [_record(model, table, row) for row in rows]
    name = f"{model}-{table['key'].replace(', ', '-').replace(' ', '-')}.csv"
    yield charts.table(name, title, [*heads, words("Answers")], cells, records, words)
    yield f'<p class="quiet">{escape(_caption(table, words))}</p>'
    notes = [f"{row['label']}: {'; '.join(dict.fromkeys(row['notes']))}" for row in rows if row["notes"]]
    if notes:
        yield f'<ul class="quiet">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'
    yield "</section>"


def _fastest(timed: Sequence[Row], words: Words) -> str:
    """Who is fastest, and by what factor beside torch's default and its best, never the one without the other."""
    if not timed:
        return words("Nobody’s answers could be timed.")
    first = min(timed, key=lambda row: row["seconds"]["p50"])
    ratios = [first["faster_than"][name] for name in RATIOS[:2]]
    lead = words("{label} is fastest: {time} a call.", label=first["label"], time=duration(first["seconds"]["p50"]))
    if first["runtime"] == "torch" or None in ratios:
        return lead
    default, best = ratios
    return lead + words(
        " That is {default:.3g} times as fast as torch’s default, {best:.3g} times as fast as torch’s best.",
        default=default["value"], best=best["value"],
    )  # fmt: skip


def _ends(row: Row) -> tuple[float, ...]:
    taken = row["seconds"]
    return () if not taken else tuple(value for value in (taken["p50"], taken["p90"]) if value)


def _times(row: Row, words: Words) -> str:
    taken = row["seconds"]
    if not taken:
        return words("no speed: the answers differ")
    told = duration(taken["p50"])
    return told if taken["p90"] is None else words("{p50}, p90 {p90}", p50=told, p90=duration(taken["p90"]))


def _cells(row: Row, table: Mapping[str, Any], words: Words) -> list[str]:
    taken = row["seconds"]
    ratios = RATIOS if table["default"] else ()
    if not taken:
        return [row["label"], *("–" for _ in range(3 + len(ratios))), answers(row, words)]
    rate = f"{table['work'] / taken['p50']:,.0f}" if taken["p50"] else "–"
    times = [duration(taken["p50"]), "–" if taken["p90"] is None else duration(taken["p90"]), rate]
    return [row["label"], *times, *(ratio(row["faster_than"][name]) for name in ratios), answers(row, words)]


def ratio(value: Mapping[str, Any] | None) -> str:
    """A factor with its interval, where there is one."""
    if value is None:
        return "–"
    ends = f" ({value['low']:.3g}–{value['high']:.3g})" if None not in (value["low"], value["high"]) else ""
    return f"{value['value']:.3g}{ends}"


def answers(row: Row, words: Words) -> str:
    """Whether a row's answers are those of the one that the others are held against."""
    if row["agrees"] and row["error"] is None:
        return words("the others are held against it")
    if not row["agrees"]:
        return words("differ") if row["error"] is not None else words("did not run, or differ")
    if row["runtime"] == "onnxruntime-int8":
        return words("int8, within its gate ({error:.0e})", error=row["error"])
    return words("the same ({error:.0e})", error=row["error"])


def _record(model: str, table: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """A row of the CSV, in seconds."""
    taken, ratios = row["seconds"] or {}, row["faster_than"] or {}
    record = {"model": model, "scenario": table["key"], "runtime": row["label"], "agrees": row["agrees"]}
    record |= {"error": row["error"], "work": table["work"], "unit": table["unit"]}
    record |= {f"{name}_seconds": taken.get(name) for name in ("p50", "p90", "p99")}
    record |= {name: taken.get(name) for name in ("calls", "rounds")}
    for name in RATIOS:
        found = ratios.get(name) or {}
        record |= {f"faster_than_{name}": found.get("value")}
        record |= {f"faster_than_{name}_{end}": found.get(end) for end in ("low", "high")}
    return record


def _caption(table: Mapping[str, Any], words: Words) -> str:
    rounds = max((row["seconds"]["rounds"] for row in table["rows"] if row["seconds"]), default=0)
    text = words("{rounds} rounds in {seconds:.1f} s, in turns.", rounds=rounds, seconds=table["seconds"])
    if table["default"]:
        text += words(
            " × is by what factor a row is faster, in brackets its 95 % interval. Torch’s default: {default}; its "
            "best: {best}; best float peer: {peer}.",
            default=table["default"], best=table["best"], peer=table["peer"],
        )  # fmt: skip
    return text


def _footprints(model: Mapping[str, Any], words: Words) -> Iterator[str]:
    rows = model["footprints"]
    if not rows:
        return
    from seqexport.plots import COLOURS

    title = words("Loading and memory, each in a fresh process")
    yield f'<section><p class="lead">{escape(title)}</p><div class="charts">'
    for label, key, said in (
        (words("Loading"), "load", duration),
        (words("First call, 100 steps"), "first", duration),
        (words("Memory at its peak"), "memory", size),
        (words("The network’s file"), "bytes", size),
    ):
        lines = []
        for row in rows:
            value = row[key]
            told = "–" if value is None else said(value)
            colour = COLOURS.get(runtime_of(row["label"]), "#888888")
            lines.append(Line(row["label"], told, colour, () if value is None else (float(value),)))
        known = [line.values[0] for line in lines if line.values]
        yield charts.bars(label, "", lines, bool(known) and min(known) > 0 and max(known) > FAR * min(known))
    yield "</div>"
    heads = [words("Runtime"), words("Loading"), words("First call"), words("Memory"), words("File")]
    cells = [
        [row["label"], *("–" if value is None else said(value) for value, said in _footprint(row))]
        if not row["failure"]
        else [row["label"], row["failure"], "–", "–", size(row["bytes"])]
        for row in rows
    ]
    records = [{"model": name_of(model), **row} for row in rows]
    yield charts.table(f"{name_of(model)}-footprint.csv", title, heads, cells, records, words) + "</section>"


def _footprint(row: Row) -> list[tuple[Any, Any]]:
    return [(row["load"], duration), (row["first"], duration), (row["memory"], size), (row["bytes"], size)]


def runtime_of(label: str) -> str:
    """The runtime that a label begins with."""
    return label.partition(",")[0]


def _absent(model: Mapping[str, Any], words: Words) -> Iterator[str]:
    for absent in model["absent"]:
        why = words("{runtime} is absent: {why}.", runtime=absent["runtime"], why=absent["why"].rstrip("."))
        command = f" <code>{escape(absent['command'])}</code>" if absent["command"] else ""
        yield f'<p class="absent">{escape(why)}{command}</p>'


def machine(found: Mapping[str, Any], words: Words) -> str:
    """What it was measured on, and with which versions."""
    known = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    return words(
        "{processor}, {cores} cores, {system}; threads of each runtime: {threads}; Python {python}, {versions}.",
        processor=known["processor"], cores=known["cores"], system=known["system"], threads=found["threads"],
        python=known["python"], versions=versions,
    )  # fmt: skip
