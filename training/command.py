"""What the commands of all trainings have in common: their options, what they refuse, and how they end."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from seqexport.errors import FileError, SeqExportError, SpecError
from seqexport.specs import CELLS, Cell

Preset = Literal["default", "tutorial"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Options:
    """What every training takes; what would fail after hours is refused here, by SpecError or FileError.

    data: the name of a data set; or file: one's own, with what else its reader takes (training.own_data). out: the
    checkpoint to write. preset: the sizes. seed: of all that is random. steps, minutes: caps on the training, for
    trials; with `minutes` a slower machine gets other weights. threads: of torch, in each process. precision: of the
    sums in the net, as Accelerate names it; weights and checkpoint are float32.
    """

    cell: Cell
    out: Path
    data: str | None = None
    file: Path | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset = "default"
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    threads: int = 2
    precision: Precision = "no"

    def __post_init__(self) -> None:
        if (self.data is None) == (self.file is None):
            raise SpecError("There is nothing to learn from: give either a data set (--data) or a --file of your own.")
        for name, value, allowed in (
            ("cell", self.cell, CELLS),
            ("preset", self.preset, get_args(Preset)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in allowed:
                raise SpecError(f"The {name} is {value!r}; expected {', '.join(allowed)}.")
        if not 0 <= self.seed < 2**63:
            raise SpecError(f"The seed is {self.seed}; expected a whole number from 0 to 2**63 - 1.")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"The number of steps is {self.steps}; expected a whole number from 1.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise SpecError(f"The number of minutes is {self.minutes}; expected a number above 0.")
        if self.threads < 1:
            raise SpecError(f"The number of threads is {self.threads}; expected a whole number from 1.")
        if not self.out.parent.is_dir():
            raise FileError(f"The folder {self.out.parent} does not exist: create it, or choose another --out.")
        if self.out.is_dir() or not os.access(self.out.parent, os.W_OK):
            raise FileError(f"{self.out} can't be written: give the path of a file in a folder that you may write to.")

    @property
    def named(self) -> str:
        """The data set's name, or the file's."""
        return self.data if self.data is not None else Path(str(self.file)).name


class Parser(argparse.ArgumentParser):
    """Refuses a bad option with one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and end with exit code 2."""
        self.exit(2, f"error: {message}; see --help.\n")


def run(
    train: Callable[[Options], dict[str, Any]],
    table: Callable[[dict[str, Any], str], str],
    arguments: Sequence[str] | None,
    *,
    name: str,
    model: str,
    sets: Iterable[str],
    example: str,
    add_reading: Callable[[Any], None],
) -> int:
    """Arguments in, exit code out: 0 when the checkpoint is written, 2 with one sentence when not.

    add_reading: adds the options that say how to read a --file, none of which has a default of its own.
    """
    parser = Parser(
        prog=f"python -m training.{name}",
        description=f"Train {model}, score it beside simple baselines, and write its checkpoint. Stopped, it goes on "
        "where it was when the same command is given again.",
        epilog=f"example: python -m training.{name} {example}",
    )
    parser.add_argument("--cell", required=True, choices=CELLS, help="the recurrent cell")
    parser.add_argument("--data", choices=tuple(sets), help="the data set")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the checkpoint to write")
    parser.add_argument(
        "--preset", default="default", choices=get_args(Preset), help="the sizes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="at most so many steps of training")
    parser.add_argument("--minutes", type=float, help="at most so many minutes of training")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument(
        "--precision", default="no", choices=get_args(Precision), help="mixed precision (default: %(default)s)"
    )
    own = parser.add_argument_group("your own data instead of --data")
    own.add_argument("--file", type=Path, help="the file")
    own.add_argument("--encoding", help="of the file's text (default: UTF-8)")
    add_reading(own)
    given = vars(parser.parse_args(arguments))
    known = {part.name for part in fields(Options)}
    reading = {key: value for key, value in given.items() if key not in known and value is not None}
    try:
        if reading and given["file"] is None:
            raise SpecError(f"--{next(iter(reading)).replace('_', '-')} says how to read a --file, but there is none.")
        options = Options(reading=reading, **{key: value for key, value in given.items() if key in known})
        metrics = train(options)
    except SeqExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: Stopped; give the same command again to go on.", file=sys.stderr)
        return 130
    if metrics:  # which only the main one of several processes has
        print(table(metrics, options.cell.upper()))
        print(f"Wrote {options.out}")
    return 0


def exit_code(name: str, work: Callable[[], bool | None]) -> int:
    """Do the work of the command training.`name` → 0; 1 where it gives False, what came out being not good; 2 where a
    package is missing; of an error of seqexport's, its own. What went wrong is a sentence on stderr."""
    try:
        return 1 if work() is False else 0
    except ImportError as error:
        print(f"{name}: {error}: pip install -r requirements-dev.txt.", file=sys.stderr)
        return 2
    except SeqExportError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
