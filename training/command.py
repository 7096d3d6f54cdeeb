"""What the commands of all trainings have in common: their options, what they refuse, and how they end."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from seqexport.errors import FileError, SeqExportError, SpecError
from seqexport.specs import CELLS

Preset = Literal["default", "tutorial"]


class Parser(argparse.ArgumentParser):
    """Refuses a bad option with one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and end with exit code 2."""
        self.exit(2, f"error: {message}; see --help.\n")


def run(
    train: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any], str], str],
    arguments: Sequence[str] | None,
    *,
    name: str,
    model: str,
    sets: Iterable[str],
    example: str,
) -> int:
    """Arguments in, exit code out: 0 when the checkpoint is written, 2 with one sentence when not."""
    parser = Parser(
        prog=f"python -m training.{name}",
        description=f"Train {model}, score it beside simple baselines, and write its checkpoint.",
        epilog=f"example: python -m training.{name} {example}",
    )
    parser.add_argument("--cell", required=True, choices=CELLS, help="the recurrent cell")
    parser.add_argument("--data", required=True, choices=tuple(sets), help="the data set")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the checkpoint to write")
    parser.add_argument(
        "--preset", default="default", choices=get_args(Preset), help="the sizes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="at most so many steps of training")
    parser.add_argument("--minutes", type=float, help="at most so many minutes of training")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    try:
        metrics = train(**options)
    except SeqExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: Stopped; no file is left half written.", file=sys.stderr)
        return 130
    print(table(metrics, options["cell"].upper()))
    print(f"Wrote {options['out']}")
    return 0


def check_options(
    cell: str, preset: str, out: Path, seed: int, steps: int | None, minutes: float | None, threads: int
) -> None:
    """Refuse before the training what would fail after it."""
    if cell not in CELLS:
        raise SpecError(f"The cell is {cell!r}; expected {', '.join(CELLS)}.")
    if preset not in get_args(Preset):
        raise SpecError(f"The preset is {preset!r}; expected {', '.join(get_args(Preset))}.")
    if not 0 <= seed < 2**63:
        raise SpecError(f"The seed is {seed}; expected a whole number from 0 to 2**63 - 1.")
    if steps is not None and steps < 1:
        raise SpecError(f"The number of steps is {steps}; expected a whole number from 1.")
    if minutes is not None and not 0 < minutes < math.inf:
        raise SpecError(f"The number of minutes is {minutes}; expected a number above 0.")
    if threads < 1:
        raise SpecError(f"The number of threads is {threads}; expected a whole number from 1.")
    if not out.parent.is_dir():
        raise FileError(f"The folder {out.parent} does not exist: create it, or choose another --out.")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise FileError(f"{out} can't be written: give the path of a file in a folder that you may write to.")
