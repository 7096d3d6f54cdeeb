"""What `score` takes: rows a second, memory while it runs, one process against Ray, and runs that are killed.

    python -m training.scoring_measure --write              # as it is reported: an hour or so, on a quiet machine
    python -m training.scoring_measure --rows 20000 --shipped 500 --kills 8     # to see that it works

It prints Markdown tables, and with --write puts them into README.md. The tiny net is an untrained classifier of
characters, a GRU of 16 in one layer, on texts of 4 to 24 characters; the shipped one is exported/sentiment-en on texts
of 20 to 200 of its own words. Each run is a fresh process of the command, whose memory (with that of its children) is
read ten times a second.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from seqexport import export, write_checkpoint
from seqexport.errors import InputError
from seqexport.files import put_in_place, write_beside
from seqexport.footprint import describe_machine
from seqexport.networks import Network
from seqexport.runtimes import onnx_metadata
from seqexport.specs import NetworkSpec
from seqexport.tabular import open_source
from seqexport.text import UNKNOWN, Vocabulary
from training.command import Parser, exit_code
from training.publish import write_block

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "exported" / "sentiment-en" / "checkpoint.onnx"
MACHINES = 100


def tiny_net(folder: Path) -> Path:
    """An untrained classifier of characters, exported."""
    vocabulary = Vocabulary("character", (UNKNOWN, *"abcdefghijklmnopqrstuvwxyz ,.!?"))
    spec = NetworkSpec("gru", 12, 16, vocabulary=len(vocabulary), outputs=3, pooling="mean")
    preprocessing = {"vocabulary": vocabulary.to_dict(), "window": 20, "labels": ["no", "yes", "both"]}
    about: dict[str, Any] = {"metrics": {"none": 0}, "data": {"name": "none"}}
    write_checkpoint(folder / "tiny.pt", Network(spec), task="classify", preprocessing=preprocessing, **about)
    export(folder / "tiny.pt")
    return folder / "tiny.onnx"


def table(path: Path, rows: int, pieces: list[str], between: str, fewest: int, most: int) -> Path:
    """A CSV of so many texts of so many pieces, made by the thousand."""

    def lines() -> Iterator[bytes]:
        yield b"id,text\n"
        rng = np.random.default_rng(0)
        for start in range(0, rows, 1000):
            texts = (between.join(rng.choice(pieces, rng.integers(fewest, most + 1))) for _ in range(1000))
            yield "".join(
                f"{start + place},{text}\n" for place, text in enumerate(texts) if start + place < rows
            ).encode()

    draft = write_beside(path, lambda file: file.writelines(lines()))
    put_in_place([draft])
    draft.drop()
    return path


def memory_of(process: int) -> int:
    """KiB that a process and those that it started have in memory."""
    total, waiting = 0, [process]
    while waiting:
        about = Path("/proc", str(waiting.pop()))
        try:
            found = re.search(r"VmRSS:\s+(\d+)", (about / "status").read_text())
            total += int(found[1]) if found else 0
            for task in (about / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it ended
            continue
    return total


def watched(output: Path, chunk: int, *arguments: str | Path) -> dict[str, Any]:
    """One run of the command: what it says; its memory, as (seconds, MiB); and rows a second between the first and the
    last sight of its parts, which leaves out what it takes to start and to join them."""
    how = ["-o", str(output), "--chunk", str(chunk), "--json"]
    command = [sys.executable, "-m", "seqexport", "score", *map(str, arguments), *how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    start, memory, parts, over = time.monotonic(), [], [(0.0, 0)], threading.Event()
    folder = output.with_name(output.name + ".parts")

    def watch() -> None:
        while not over.wait(0.1):
            memory.append((time.monotonic() - start, memory_of(run.pid) / 1024))
            done = sum(1 for _ in folder.glob("part-*.json"))
            if done > parts[-1][1]:
                parts.append((time.monotonic() - start, done))

    thread = threading.Thread(target=watch)
    thread.start()
    out, err = run.communicate()
    over.set()
    thread.join()
    if run.returncode:
        raise InputError(f"The run failed: {err.strip()}")
    (begun, first), (ended, last) = parts[min(1, len(parts) - 1)], parts[-1]
    steady = (last - first) * chunk / (ended - begun) if ended > begun else float("nan")
    return {**json.loads(out), "memory": memory, "steady": steady}


def memory_row(found: dict[str, Any]) -> str:
    """The run's memory, in MiB: at the end of each fifth of its time, and the peak."""
    seen = [(at, size) for at, size in found["memory"] if size]  # none once it ended
    fifths = [seen[min(len(seen) - 1, len(seen) * part // 5)][1] for part in range(1, 6)]
    return " · ".join(f"{size:,.0f}" for size in fifths) + f" | {max(size for _, size in seen):,.0f}"


Case = tuple[str, Path, Path]  # a net's name, its file, a table for it


def cases(folder: Path, rows: int, shipped: int) -> list[Case]:
    """The two nets, and a table of so many rows for each."""
    words = onnx_metadata(SHIPPED)["preprocessing"]["vocabulary"]["tokens"][1:5000]
    return [
        ("tiny", tiny_net(folder), table(folder / "tiny.csv", rows, list("abcdefgh .!"), "", 4, 24)),
        ("sentiment-en", SHIPPED, table(folder / "shipped.csv", shipped, words, " ", 20, 200)),
    ]


def throughput(folder: Path, of: list[Case]) -> Iterator[str]:
    """Rows a second, and memory: the lines of a table."""
    yield "| net | rows | seconds | rows a second | MiB over time, by fifths | peak |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, model, data in of:
        found = watched(folder / "out.parquet", 10_000, model, data)
        about = f"{found['rows']:,} | {found['seconds']:,.0f} | {found['rows'] / found['seconds']:,.0f}"
        yield f"| {name} | {about} | {memory_row(found)} |"


def scaling(folder: Path, of: list[Case]) -> Iterator[str]:
    """One process against Ray's one and two workers, the same bytes: the lines of a table, and what a hundred machines
    would take."""
    yield "| net | engine | rows | seconds in all | rows a second once begun | same bytes |"
    yield "|---|---|---:|---:|---:|---|"
    told = []
    for name, model, data in of:
        engines: list[tuple[str, list[str]]] = [("one process", [])]
        engines += [(f"ray, workers: {count}", ["--engine", "ray", "--workers", str(count)]) for count in (1, 2)]
        first, rates, rows = b"", [], 0
        for engine, more in engines:
            output = folder / "out.csv"
            chunk = 10_000 if name == "tiny" else 500
            found = watched(output, chunk, model, data, *more)
            content = output.read_bytes()
            first, rows = first or content, found["rows"]
            rates.append(found["steady"])
            about = f"{rows:,} | {found['seconds']:,.1f} | {found['steady']:,.0f}"
            yield f"| {name} | {engine} | {about} | {'yes' if content == first else 'no'} |"
        told.append(arithmetic(name, data, rows, rates))
    yield ""
    yield from told


def arithmetic(name: str, data: Path, rows: int, rates: list[float]) -> str:
    """What Amdahl's law makes of it: the driver alone looks for where the chunks start, the rest is shared."""
    source, start = open_source(str(data), 10_000), time.perf_counter()
    place: tuple[int, int] | None = source.start
    while place is not None:
        place = source.read(place, parse=False).after
    alone = (time.perf_counter() - start) / rows  # seconds a row
    shared = 1 / (MACHINES * rates[2])
    return (
        f"{name}: one process looks for the chunks' starts in {1 / alone:,.0f} rows a second. {MACHINES} machines like "
        f"this one, with two workers each, would score {1 / shared:,.0f} rows a second, and with that "
        f"{1 / (shared + alone):,.0f}: ten million rows in {1e7 * (shared + alone):,.0f} s, where one process takes "
        f"{1e7 / rates[0]:,.0f} s. Computed, not measured; storage is taken to keep up."
    )


def kills(folder: Path, count: int) -> Iterator[str]:
    """Runs that are killed at random instants, by tests/killing_scores.py: what came of them."""
    place = folder / "kills"
    place.mkdir()
    command = [sys.executable, "tests/killing_scores.py", str(tiny_net(folder)), str(place), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    found = json.loads(done.stdout)
    yield (
        f"Of {found['runs']} runs, killed {found['kills']} times at random instants and gone on with, "
        f"{found['different']} gave another result; {found['kept_and_scored_again']} of {found['chunks_scored']:,} "
        f"chunks were scored again though they had been kept; {len(found['strays'])} files were left lying."
    )


def measure(options: Any, folder: Path) -> str:
    """All that was asked for, printed as it comes."""
    few = min(options.rows, options.ray_rows), max(1_000, options.shipped // 5)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "throughput": lambda: throughput(folder, cases(folder, options.rows, options.shipped)),
        "scaling": lambda: scaling(folder, cases(folder, *few)),
        "kills": lambda: kills(folder, options.kills),
    }
    lines = []
    for part, lines_of in parts.items():
        if options.only not in (None, part):
            continue
        for line in lines_of():
            lines.append(line)
            print(line, flush=True)
        lines.append("")
        print()
    machine = describe_machine()
    lines.append(
        f"tiny: a GRU of 16 on texts of 4 to 24 characters; sentiment-en: the shipped net on texts of 20 to 200 words. "
        f"{machine.processor}, onnxruntime {version('onnxruntime')}."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write README's tables."""
    parser = Parser(prog="python -m training.scoring_measure", description="What `score` takes.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="for the tiny net (default: %(default)s)")
    parser.add_argument(
        "--shipped", type=int, default=100_000, help="rows for exported/sentiment-en (default: %(default)s)"
    )
    parser.add_argument(
        "--ray-rows", type=int, default=1_000_000, help="for the tiny net beside Ray (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=200, help="runs that are killed (default: %(default)s)")
    parser.add_argument("--only", choices=("throughput", "scaling", "kills"), help="one of them alone")
    parser.add_argument("--write", action="store_true", help="put all of it into README.md")
    options: Any = parser.parse_args(arguments)

    def work() -> None:
        if options.write and options.only:
            raise InputError(f"--only {options.only} would write a part for the whole: leave out --only or --write.")
        with tempfile.TemporaryDirectory() as name:
            told = measure(options, Path(name))
        if options.write:
            write_block(ROOT / "README.md", "scoring", told)

    return exit_code("scoring_measure", work)


if __name__ == "__main__":
    sys.exit(main())
