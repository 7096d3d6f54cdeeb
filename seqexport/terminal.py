"""What a person reads in the terminal: reports, trees and tables by rich, sentences in one line, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from seqexport.comparison import Comparison
    from seqexport.diagnosis import Diagnosis, Finding
    from seqexport.reports import Report

LONGEST = 2000  # characters of an error's sentence
WIDE = 120  # columns of a terminal that has room for intervals
SHOWN = 20  # entries of a list, such as a vocabulary's tokens, that a terminal shows


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(file=sys.stderr if stderr else sys.stdout, highlight=False)


def status(text: str) -> Any:
    """A spinner on stderr where a person watches."""
    return _console(stderr=True).status(text)


@contextlib.contextmanager
def progress(hidden: bool) -> Iterator[Callable[[int, int, int, bool], None]]:
    """A bar on stderr where a person watches: how far, rows a second, how long still. Gives what moves it on."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[about]}"), TimeRemainingColumn())
    console = _console(stderr=True)
    with Progress(*columns, console=console, disable=hidden or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, about="")
        begun, furthest, fresh, last = 0.0, 0, 0, 0

        def say(at: int, of: int, rows: int, is_new: bool) -> None:
            nonlocal begun, furthest, fresh, last
            if begun:
                fresh += rows - last if is_new else 0
            else:
                begun = time.monotonic()  # not before, when the model was loaded; so the first rows don't count
            furthest, last = max(furthest, at), rows
            rate = fresh / max(1e-9, time.monotonic() - begun)
            bar.update(task, total=of, completed=furthest, about=f"{rows:,} rows, {rate:,.0f} a second")

        yield say


def show_scoring(found: dict[str, Any]) -> None:
    """What `score` did."""
    from rich.text import Text

    console = _console()
    about = f"{found['part']} on the column {printable(found['column'])}, {found['runtime']}"
    console.print(Text.assemble(("read     ", "bold"), about), soft_wrap=True)
    console.print(Text.assemble(("file     ", "bold"), printable(found["output"])), soft_wrap=True)
    if found["rejected"]:
        said = f"{found['rejected']:,} rows, with the reasons: {printable(found['rejected_rows'])}"
        console.print(Text.assemble(("rejected ", "bold yellow"), said), soft_wrap=True)
    before = f", {found['scored_before']:,} of them before" if found["scored_before"] else ""
    verdict = Text(f"scored: {found['scored']:,} of {found['rows']:,} rows{before}", "bold green")
    console.print(Text.assemble(verdict, (f"  ({found['seconds']:.1f} s)", "dim")))


def print_json(document: Any) -> None:
    """One JSON document on stdout; a NaN in it becomes its name."""
    document = json.loads(json.dumps(document), parse_constant=str)  # what a file holds may be NaN, which JSON has not
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode())  # half a character, as a name may have, has no UTF-8


def printable(value: Any) -> str:
    """What a file holds must not steer the terminal: line ends and control characters are shown as escapes."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def one_line(text: str) -> str:
    """An error's sentence, which may name what a file holds: names of any length, line ends, control characters."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def show_inspection(found: dict[str, Any]) -> None:
    """What seqexport.inspection found, its architecture as a tree."""
    console = _console()
    for name, value in found.items():
        if name == "architecture":
            console.print(_tree(f"architecture  ({found['parameters']:,} parameters)", value))
        elif name != "weights" and value not in ({}, []):  # the tree has the weights
            _print_entry(console, name, value)


def _tree(label: str, parts: dict[str, Any]) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(label, "bold"))
    for name, part in parts.items():
        if isinstance(part, dict):
            tree.add(_tree(printable(name), part))
        else:
            tree.add(Text.assemble((f"{printable(name)}  ", ""), (printable(part), "dim")))
    return tree


def _print_entry(console: Console, name: str, value: Any, depth: int = 0) -> None:
    from rich.text import Text

    label = f"{'  ' * depth}{printable(name)}"
    if isinstance(value, dict):
        console.print(Text(label, "" if depth else "bold"))
        for key, part in value.items():
            _print_entry(console, str(key), part, depth + 1)
        return
    if isinstance(value, list):
        more = f" … ({len(value):,} in all; --json has them)" if len(value) > SHOWN else ""
        value = ", ".join(map(printable, value[:SHOWN])) + more
    console.print(f"{label:<24} {printable(value)}", highlight=False, markup=False, soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """Runtimes side by side: a table for each scenario, and how it was measured."""
    from rich.text import Text

    from seqexport import tables

    console = _console()
    for model in comparison.models:
        console.print(Text.assemble((printable(model.path), "bold"), f"  {model.found}"))
        for note in tables.about_model(model):
            console.print(Text(printable(note)))
        for table in model.tables:
            console.print(Text.assemble("\n", (f"{table.key}: ", "bold"), printable(table.title)))
            _print_rows(console, tables.headings(table), [tables.cells(table, row) for row in table.rows])
            console.print(Text(tables.caption(table), "dim"))
            for note in tables.notes(table):
                console.print(Text(printable(note), "yellow"))
        if model.footprints:
            console.print(Text("\nin a fresh process", "bold"))
            _print_rows(console, tables.FOOTPRINT, tables.footprint_cells(model))
        if model.cells:
            about = f"\nfastest, untrained nets of this kind, {tables.without_label(model)}"
            console.print(Text(about, "bold"))
            _print_rows(console, tables.MAP, tables.map_cells(model))
        for absent in model.absent:
            console.print(Text.assemble((f"\nabsent: {absent.runtime}: ", "bold"), printable(absent.why)))
            if absent.command:  # never broken into lines, so that it can be copied
                console.print(Text(absent.command), soft_wrap=True)
        console.print()
    for sentence in tables.about(comparison):
        console.print(Text(sentence, "dim"))


def _print_rows(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    narrow = console.width < WIDE  # there --json and -o have the intervals of ratios, and the rates
    told = [place for place in range(len(headings)) if any(row[place] != "–" for row in rows)]
    for place in (told := [place for place in told if not (narrow and headings[place] == "a second")]):
        heading = headings[place]
        if narrow:
            heading = heading.replace("torch's ", "").replace("best peer", "peer")
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        shown = (row[place].partition(" (")[0] if narrow and "×" in headings[place] else row[place] for place in told)
        table.add_row(*(Text(printable(cell)) for cell in shown))
    console.print(table)


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """What doctor found, and the fix of each finding."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in diagnosis.overview().items():
        grid.add_row(Text(name, "bold"), Text(text))
    grid.add_row()
    for runtime in diagnosis.runtimes:
        style = {"runs": "green", "there": "green", "absent": "dim"}.get(runtime.state, "red")
        grid.add_row(Text(runtime.name, "bold"), Text.assemble((f"{runtime.state}: ", style), printable(runtime.about)))
    console.print(grid)
    for finding in diagnosis.findings:
        if finding.level != "ok":
            console.print()
            _print_finding(console, finding)
    problems, notes = diagnosis.count("problem"), diagnosis.count("note")
    verdict = Text(f"problems: {problems}", "bold red" if problems else "bold green")
    console.print(Text.assemble("\n", verdict, f", notes: {notes}", (f"  ({diagnosis.seconds:.1f} s)", "dim")))


def _print_finding(console: Console, finding: Finding) -> None:
    from rich.table import Table
    from rich.text import Text

    style = "bold red" if finding.level == "problem" else "bold yellow"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(Text(f"{finding.level:<7}", style), Text(printable(f"{finding.found} (expected: {finding.expected})")))
    if not finding.is_command:
        grid.add_row(Text("fix", "bold"), Text(printable(finding.fix)))
    console.print(grid)
    if finding.is_command:  # never broken into lines, so that it can be copied
        console.print(Text.assemble(("fix      ", "bold"), finding.fix), soft_wrap=True)


def show_report(report: Report, as_json: bool) -> None:
    """A verification: what was found, the files, the worst difference of each output, the verdict."""
    if as_json:
        print_json(report.to_dict())
        return
    from rich.text import Text

    console = _console()
    console.print(Text.assemble(("found    ", "bold"), report.found))
    for note in report.notes:
        console.print(Text.assemble(("assumed  ", "bold yellow"), note))
    if report.unused:
        more = f", and {len(report.unused) - SHOWN} more (--json lists them)" if len(report.unused) > SHOWN else ""
        names = ", ".join(map(printable, report.unused[:SHOWN])) + more
        console.print(Text.assemble(("not used ", "bold yellow"), names))
    for file in report.files:
        about = f"{file.part}, {file.bytes:,} bytes, opset {file.opset}, {file.nodes} nodes"
        if file.int8_bytes:
            about += f", int8: {file.int8_bytes:,} of {file.weight_bytes:,} bytes of weights"
        console.print(Text.assemble(("file     ", "bold"), file.path, (f"  {about}", "dim")), soft_wrap=True)
    if report.outcomes:
        _print_worst(console, report)
    if report.properties:
        _print_properties(console, report)
    count = len(report.outcomes)
    for tie in report.ties():
        console.print(Text.assemble(("tie      ", "bold yellow"), tie))
    for outcome in report.explained():
        about = f"{outcome.part}, {outcome.case}: {'; '.join(outcome.notes)}"
        console.print(Text.assemble(("rounded  ", "bold yellow"), printable(about)))
    if report.passed and not count:
        verdict = Text("int8 holds what it is held to", "bold green")
    elif report.passed:
        decided = "".join(f", {number:,} {noun}s the same" for noun, number in report.decided().items())
        decided += f", {len(report.ties())} of them ties" if report.ties() else ""
        verdict = Text(f"verified: {count} of {count} cases agree with torch{decided}", "bold green")
    else:
        broken = [tried.name for tried in report.properties if not tried.held]
        said = f"{len(report.failures())} of {count} cases differ from torch"
        verdict = Text(f"NOT verified: {said}{', and not held: ' if broken else ''}{', '.join(broken)}", "bold red")
    console.print(Text.assemble(verdict, (f"  ({report.seconds:.1f} s)", "dim")))


def _print_worst(console: Console, report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("part", "output"):
        table.add_column(column)
    for column in ("worst difference", "allowed"):
        table.add_column(column, justify="right")
    for (part, output), error in report.worst().items():
        style = "" if error <= report.tolerance else "red"
        table.add_row(part, output, Text(f"{error:.1e}" if error else "0", style), f"{report.tolerance:.0e}")
    console.print(table)


def _print_properties(console: Console, report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    several = len({tried.part for tried in report.properties}) > 1
    table.add_column("property")
    for column in ("trials", "worst", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("")
    for tried in report.properties:
        if not tried.applies:
            figures = ("", "", "", Text("does not apply", "dim"))
        else:
            held = Text("holds", "green") if tried.held else Text("DOES NOT HOLD", "bold red")
            figures = (f"{tried.trials}", f"{tried.error:.1e}" if tried.error else "0", f"{tried.allowed:.0e}", held)
        table.add_row(f"{tried.part}: {tried.name}" if several else tried.name, *figures)
    console.print()
    console.print(table)
    for tried in report.properties:
        for note in tried.notes:
            name = f"{tried.part}: {tried.name}" if several else tried.name
            console.print(Text.assemble((f"{name}: ", "bold"), printable(note)))
