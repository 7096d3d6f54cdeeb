"""What the demo costs whoever opens it: seconds until it answers and until its first result, requests and bytes.

    python -m training.page_costs --write

Starts the demo afresh for each round, opens it in Chromium with an empty cache, and prints medians; two minutes, on
a machine that does nothing else. Needs playwright and a Chromium (--chromium).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from seqexport.errors import FileError, InputError
from tabs.racing import hardware
from training.command import Parser, exit_code
from training.publish import ROOT, write_block
from training.serving import served

ROUNDS = 5
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
RESULT = "#result .lead"  # where the first answer stands


@dataclass(frozen=True)
class Opening:
    """One opening of a demo that was just started: seconds from its start until it answers, from asking for the page
    until something is painted, and until the first result; requests, bytes on the wire; bytes of the server's memory
    after it."""

    answers: float
    painted: float
    result: float
    requests: int
    received: int
    memory: int


def open_once(chromium: Path) -> Opening:
    """Start the demo, open it, wait for its first result."""
    from playwright.sync_api import sync_playwright

    with served() as demo, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        wire = page.context.new_cdp_session(page)
        wire.send("Network.enable")
        received: list[float] = []
        wire.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
        start = time.monotonic()
        page.goto(demo.url)
        page.wait_for_selector(RESULT, timeout=120_000)
        seconds = time.monotonic() - start
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN") / 1000
        browser.close()
        return Opening(demo.seconds, painted, seconds, len(received), round(sum(received)), demo.memory() or 0)


def table(openings: Sequence[Opening]) -> str:
    """The medians as Markdown, and what they come from."""
    answered, painted, result, requests, received, memory = (
        median(values) for values in zip(*map(astuple, openings), strict=True)
    )
    rows = {
        "from `python demo.py` to the first answer": f"{answered:.1f} s",
        "from opening the page to its first paint": f"{painted:.2f} s",
        "from opening the page to its first result": f"{result:.1f} s",
        "requests of the first load, with an empty cache": f"{requests:.0f}",
        "bytes of the first load, as sent": f"{received / 1e6:.2f} MB",
        "memory of the server after it": f"{memory / 2**20:.0f} MiB",
    }
    lines = ["| opening the demo | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())]
    about = (
        f"Medians of {len(openings)} opening{'s' * (len(openings) > 1)} of a demo just started. {hardware()}, Python "
    )
    about += f"{platform.python_version()}, gradio {version('gradio')}."
    return "\n".join([*lines, "", about])


def measure(rounds: int, chromium: Path) -> str:
    """The table. Raises InputError or FileError where it can't be measured."""
    if not 1 <= rounds <= 100:
        raise InputError(f"The number of rounds is {rounds}; expected a whole number from 1 to 100.")
    if not chromium.is_file():
        raise FileError(f"There is no browser at {chromium}: install chromium, or say where it is with --chromium.")
    return table([open_once(chromium) for _ in range(rounds)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write README's table."""
    parser = Parser(prog="python -m training.page_costs", description="What the demo costs whoever opens it.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="openings (default: %(default)s)")
    parser.add_argument("--chromium", type=Path, default=CHROMIUM, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options: Any = parser.parse_args(arguments)

    def work() -> None:
        told = measure(options.rounds, options.chromium)
        print(told)
        if options.write:
            write_block(ROOT / "README.md", "demo", told)

    return exit_code("page_costs", work)


if __name__ == "__main__":
    sys.exit(main())
