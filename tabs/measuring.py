"""Runtimes measured here: `seqexport.compare` in a process of its own, which is ended where it takes too long.

    python -m tabs.measuring MODEL SCENARIO SECONDS

is that process: a line of JSON for what it is at, and one for what was found. It imports no gradio.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqexport.errors import FileError, InputError, SeqExportError, UnsupportedError

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "tabs.measuring")
SCENARIOS = ("step", "sequence", "pipeline")
# torch.compile compiles for a minute, which nobody waits for; onnx's evaluator takes seconds for a pipeline.
LEFT_OUT = {"step": ("torch-compile",), "sequence": ("torch-compile",), "pipeline": ("torch-compile", "reference")}
GRACE = 90.0  # seconds for loading, answers and a busy machine, besides the time that is measured
TEXTS = 48  # that a classifier reads
PERIOD = 0.5  # seconds between two signs of life
_ERRORS = {error.__name__: error for error in (FileError, InputError, UnsupportedError)}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Stage:
    """What the process is at, and the seconds since it began."""

    said: str
    seconds: float


def measured(model: str, scenario: str, seconds: float, grace: float = GRACE) -> Iterator[Stage | dict[str, Any]]:
    """Stages, every PERIOD seconds or so, and in the end what `seqexport.compare` found, as plain JSON types.

    Raises SeqExportErrors that the process met, FileError where it ended without an answer or took longer than
    `seconds` and `grace`. A caller that goes away ends it.
    """
    start = time.monotonic()
    command = [*COMMAND, model, scenario, repr(float(seconds))]
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | _ONE_THREAD, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    said = ""
    try:
        while (taken := time.monotonic() - start) < seconds + grace:
            yield Stage(said, taken)
            try:
                line = lines.get(timeout=PERIOD)
            except queue.Empty:
                continue
            if line is None:
                raise FileError(
                    f"The measuring process ended without an answer (exit code {child.wait()}): try again, or run "
                    f"python -m seqexport compare exported/{model}/checkpoint.pt."
                )
            told = json.loads(line)
            if "error" in told:
                raise _ERRORS.get(told["kind"], SeqExportError)(told["error"])
            if "found" in told:
                yield told["found"]
                return
            said = told["said"]
        raise FileError(
            f"Measuring took longer than {seconds + grace:.0f} s and was stopped; expected about {seconds:.0f} s: the "
            "machine is too busy for this model now, so try again later or choose a smaller one."
        )
    finally:
        child.kill()
        child.wait()
        reader.join(timeout=5)  # which ends with the process, and closes what it read from


def _read(child: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if line.startswith("{"):  # a library may print too
                lines.put(line)
    lines.put(None)


def main(model: str, scenario: str, seconds: str) -> None:
    """The process."""

    def tell(line: Mapping[str, Any]) -> None:
        print(json.dumps(line, allow_nan=False), flush=True)

    from seqexport.comparison import compare
    from seqexport.peers import RUNTIMES

    try:
        found = compare(
            f"exported/{model}/checkpoint.pt",
            runtimes=[name for name in RUNTIMES if name not in LEFT_OUT[scenario]],
            scenarios=(scenario,),
            seconds=float(seconds),
            texts=TEXTS,
            say=lambda said: tell({"said": said}),
        )
    except SeqExportError as error:
        tell({"kind": type(error).__name__, "error": str(error)})
    else:
        tell({"found": found.to_dict()})


if __name__ == "__main__":
    main(*sys.argv[1:])
