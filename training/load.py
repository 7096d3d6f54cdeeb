"""Does the demo hold under load? Many visitors at once, each with questions that only it asks.

    python -m training.load --visitors 200 --minutes 10

Starts its own demo (or asks one at --url), lets the visitors come and ask all tasks in turn, and tells: answers, honest
refusals (the queue is full, a deadline), errors by kind, latencies, and the server's memory over time. Every question
carries a mark of its own, and every answer is held against it: nobody may get another's. Exit code 1 where somebody
did, where anything but a refusal went wrong, or where the demo no longer answers.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqexport.errors import InputError
from seqexport.files import replace_file
from tabs.racing import hardware
from training.command import Parser, exit_code
from training.publish import ROOT, write_block
from training.serving import answers, memory_of, served

PATIENCE = 180.0  # seconds that a visitor waits for an answer
PAUSE = 5.0  # seconds between two questions of a visitor, in the mean
SAMPLE = 1.0  # seconds between two looks at the server's memory
NUMBERS = itertools.count(1)  # of the questions: no two have the same mark
MARK = re.compile(r"visitor(\d+)mark")


@dataclass(frozen=True)
class Task:
    """An endpoint: from a mark and a folder for files, the arguments of a question; and whether an answer is that
    question's."""

    question: Callable[[int, Path], Mapping[str, Any]]
    own: Callable[[int, Any], bool]


def mark(number: int) -> str:
    """What a question carries in its text."""
    return f"visitor{number}mark"


def _checkpoint(number: int, folder: Path) -> Mapping[str, Any]:
    from gradio_client import handle_file

    path = folder / f"{mark(number)}.pt"
    replace_file(path, (ROOT / "exported" / "sunspots-gru" / "checkpoint.pt").read_bytes())
    return {"checkpoint": handle_file(str(path))}


def _seen(answer: Any) -> set[int]:
    return {int(number) for number in MARK.findall(json.dumps(answer, ensure_ascii=False, default=str))}


# By name of the endpoint; what measures the machine for seconds is left out. A number in the question (a seed, a
# length, a count) is the mark where no text comes back.
TASKS: Mapping[str, Task] = {
    "forecast": Task(
        lambda n, _: {"text": "", "column": None, "horizon": 12, "paths": 20, "seed": n},
        lambda n, answer: answer[-1]["seed"] == n,
    ),
    "forecast_values": Task(
        lambda n, _: {"values": [10.0 + n % 97 + i % 12 for i in range(60)], "cell": "GRU", "horizon": 10 + n % 500},
        lambda n, answer: len(answer["central"]) == 10 + n % 500,
    ),
    "sentiment": Task(lambda n, _: {"text": f"A fine film, {mark(n)}."}, lambda n, answer: n in _seen(answer)),
    "sentiment_values": Task(
        lambda n, _: {"texts": ["good " * (1 + n % 300)]}, lambda n, answer: len(answer["running"][0]) == 1 + n % 300
    ),
    "sentiment_list": Task(
        lambda n, _: {"texts": ["A fine film."] * (1 + n % 200)}, lambda n, answer: len(answer["labels"]) == 1 + n % 200
    ),
    "characters_values": Task(
        lambda n, _: {"prompt": f"{mark(n)}\n", "length": 20 + n % 400, "seed": n},
        lambda n, answer: len(answer["text"]) == 20 + n % 400,
    ),
    "convert": Task(_checkpoint, lambda n, answer: True),  # no stranger's mark is asked for below, as of all
    "cells": Task(lambda n, _: {}, lambda n, answer: "claims" in answer),
    "runtimes": Task(lambda n, _: {}, lambda n, answer: "models" in answer),
}


@dataclass
class Seen:
    """What the visitors saw. latencies: seconds of the answers, by task; busy, errors: how often, by task and kind;
    strangers: answers that were another's, or nobody's; memory: (seconds since the start, bytes)."""

    latencies: dict[str, list[float]] = field(default_factory=dict)
    busy: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    strangers: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not self.strangers and not self.errors and any(self.latencies.values())


def kind_of(error: BaseException) -> tuple[bool, str]:
    """Whether an error is an honest refusal, and its kind in a few words."""
    said = str(error)
    if "ueue is full" in said or "too many" in said.lower() or "busy" in said.lower():
        return True, "the queue is full"
    if "is all that this machine takes on" in said:
        return True, "as many files as it takes on are waiting"
    if re.search(r"\bAfter \d+ s\b|longer than \d+ s and was ended|deadline", said):
        return True, "a deadline"
    if isinstance(error, OutOfTime):
        return False, f"no answer within {PATIENCE:.0f} s"
    return False, f"{type(error).__name__}: {said:.120}"


def ask(client: Any, name: str, number: int, folder: Path, seen: Seen) -> None:
    """One question, and what came of it."""
    start = time.monotonic()
    try:
        job = client.submit(**TASKS[name].question(number, folder), api_name=f"/{name}")
        answer = job.result(timeout=PATIENCE)
    except Exception as error:
        honest, kind = kind_of(error)
        with seen.lock:
            (seen.busy if honest else seen.errors)[name, kind] += 1
        return
    seconds = time.monotonic() - start
    own = TASKS[name].own(number, answer) and _seen(answer) <= {number}
    with seen.lock:
        seen.latencies.setdefault(name, []).append(seconds)
        if not own:
            seen.strangers.append(f"/{name}, mark {number}: {str(answer)[:200]}")


def visit(url: str, names: Sequence[str], number: int, end: float, seen: Seen, pause: float) -> None:
    """One visitor: come, ask, wait, ask again, until the time is over."""
    from gradio_client import Client

    rng = random.Random(number)
    time.sleep(min(rng.uniform(0, pause), max(0.0, end - time.monotonic())))
    with tempfile.TemporaryDirectory() as folder:
        try:
            client = Client(url, verbose=False, download_files=folder, httpx_kwargs={"timeout": PATIENCE})
        except Exception as error:
            with seen.lock:
                seen.errors["coming", kind_of(error)[1]] += 1
            return
        while time.monotonic() < end:
            ask(client, rng.choice(list(names)), next(NUMBERS), Path(folder), seen)
            time.sleep(min(rng.expovariate(1 / pause), max(0.0, end - time.monotonic())))
        client.close()


def offered(url: str) -> list[str]:
    """The tasks that the demo there has."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    client.close()
    return [name for name in TASKS if f"/{name}" in named]


def load(url: str, visitors: int, minutes: float, pause: float = PAUSE, process: int | None = None) -> Seen:
    """Ask every task once, so that the models are loaded; then let the visitors come. process: whose memory is looked
    at."""
    names, seen, first = offered(url), Seen(), Seen()
    with tempfile.TemporaryDirectory() as folder:
        from gradio_client import Client

        client = Client(url, verbose=False, download_files=folder, httpx_kwargs={"timeout": PATIENCE})
        for name in names:
            ask(client, name, next(NUMBERS), Path(folder), first)
        client.close()
    seen.errors, seen.strangers = first.errors, first.strangers
    start = time.monotonic()
    end = start + 60 * minutes
    coming = [
        threading.Thread(target=visit, args=(url, names, number, end, seen, pause), daemon=True)
        for number in range(visitors)
    ]
    for thread in coming:
        thread.start()
    while any(thread.is_alive() for thread in coming) and time.monotonic() < end + PATIENCE:
        if process is not None and (held := memory_of(process)) is not None:
            seen.memory.append((time.monotonic() - start, held))
        time.sleep(SAMPLE)
    if stuck := sum(thread.is_alive() for thread in coming):
        seen.errors["leaving", "a visitor was not let go"] += stuck
    if not answers(url, 30):
        seen.errors["afterwards", "the demo no longer answers"] += 1
    return seen


def table(seen: Seen) -> str:
    """What was seen, as Markdown."""
    lines = ["| task | answers | busy | errors | p50 | p95 | most |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name in [*TASKS, *sorted({task for task, _ in seen.errors} - set(TASKS))]:
        taken = seen.latencies.get(name, [])
        busy, wrong = (
            sum(count for (task, _), count in found.items() if task == name) for found in (seen.busy, seen.errors)
        )
        if taken or busy or wrong:
            times = [f"{np.quantile(taken, share):.1f} s" if taken else "–" for share in (0.5, 0.95, 1)]
            lines.append(f"| {name} | {len(taken)} | {busy} | {wrong} | {' | '.join(times)} |")
    lines.append("")
    for what, found in (("busy", seen.busy), ("error", seen.errors)):
        lines += [f"- {what}: {count} × {task}: {kind}" for (task, kind), count in sorted(found.items())]
    lines += [f"- another's answer: {stranger}" for stranger in seen.strangers[:20]]
    lines += ["", f"Answers that were another's: {len(seen.strangers)}."]
    if len(seen.memory) >= 5:
        held = np.array([size for _, size in seen.memory]) / 2**20
        parts = [f"{np.median(part):,.0f}" for part in np.array_split(held, 5)]
        lines.append(
            f"Memory of the server, each fifth of the time: {', '.join(parts)} MiB; most {held.max():,.0f} MiB."
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Let them come, print what they saw."""
    parser = Parser(prog="python -m training.load", description="Does the demo hold under load?")
    parser.add_argument("--visitors", type=int, default=200, help="at once (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: %(default)s)")
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds between questions (%(default)s)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--url", help="a demo that runs already; its memory is not seen")
    place.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args(arguments)

    def work() -> bool:
        if not 1 <= options.visitors <= 10_000 or not 0 < options.minutes <= 10_000 or not 0 < options.pause <= 3600:
            raise InputError(
                f"{options.visitors} visitors for {options.minutes:g} minutes, a pause of {options.pause:g} s; "
                "expected 1 to 10,000 visitors, and minutes and a pause above 0."
            )
        if options.url:
            seen = load(options.url, options.visitors, options.minutes, options.pause)
        else:
            with served() as demo:
                seen = load(demo.url, options.visitors, options.minutes, options.pause, demo.process.pid)
        told = table(seen)
        print(told)
        if options.write:
            came = f"{options.visitors:,} visitors for {options.minutes:g} minutes, a question of each about every "
            about = f"{came}{options.pause:g} s, all on the machine that answers them. {hardware()}."
            write_block(ROOT / "README.md", "load", f"{told}\n\n{about}")
        return seen.good

    return exit_code("load", work)


if __name__ == "__main__":
    sys.exit(main())
