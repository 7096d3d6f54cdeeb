"""What `score` is asked to do: a model, a table, where the answers go, and how; checked before anything is opened."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from seqexport.errors import InputError

# What a table is, by the end of its name.
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
_RANGES = {
    "horizon": (1, 10_000),
    "steps": (1, 100_000),
    "temperature": (0, 100),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "seed": (0, 2**63 - 1),
    "chunk": (1, 1_000_000),
    "threads": (1, 1024),
}


@dataclass(frozen=True)
class Order:
    """One scoring of a table. Paths as they were given; what is None is read off the model or the table.

    pipeline: classify, forecast, generate or network. column: what the model reads. keep: the columns that go along.
    prefix: before the names of the answers' columns. chunk: rows that are scored and kept together.
    """

    model: str
    data: str
    output: str
    pipeline: str | None = None
    runtime: str | None = None
    column: str | None = None
    keep: tuple[str, ...] | None = None
    prefix: str = ""
    probabilities: bool = False
    horizon: int | None = None
    steps: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    chunk: int = 10_000
    threads: int = 1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise InputError(f"--{name.replace('_', '-')} is {value}; expected {low} to {high:,}.")
        kind_of(self.data)
        if kind_of(self.output) == "text":
            raise InputError(f"{self.output} would be plain text, which has no columns; expected {_suffixes('text')}.")
        if self.keep is not None and len(set(self.keep)) < len(self.keep):
            raise InputError(f"--keep names a column twice ({', '.join(self.keep)}): name each once.")

    def deciding(self) -> dict[str, Any]:
        """Whatever else than the contents of model and data decides what is written."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("model", "data", "threads")}
        return kept | {"output": kind_of(self.output), "keep": None if self.keep is None else list(self.keep)}


def kind_of(path: str) -> str:
    """What kind of table the path names. Raises InputError for one that is not read or written."""
    suffix = Path(path).suffix.lower()
    if suffix in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        raise InputError(f"{path} is compressed, which is not read: unpack it first (Parquet is compressed inside).")
    if suffix not in KINDS:
        raise InputError(f"{path} ends with {suffix or 'no suffix'!r}; expected {_suffixes()}.")
    return KINDS[suffix]


def _suffixes(without: str = "") -> str:
    known = [suffix for suffix, kind in KINDS.items() if kind != without]
    return f"{', '.join(known[:-1])} or {known[-1]}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command line takes: the fields of an Order, and how it is carried out."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, or a checkpoint, which torch then runs")
    parser.add_argument("data", metavar="DATA", help="CSV with a header, TSV, JSON lines, Parquet, or a text a line")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the table to write: .csv, .tsv, .jsonl or .parquet"
    )
    parser.add_argument("--column", help="what the model reads (default: the one that fits, or is named like it)")
    parser.add_argument("--keep", metavar="A,B", help="columns of DATA that go along (default: all; '': none)")
    parser.add_argument("--prefix", default="", help="before the names of the answers' columns")
    parser.add_argument("--pipeline", help="classify, forecast, generate or network (default: MODEL's own)")
    parser.add_argument("--runtime", help="as in compare (default: onnxruntime, and torch for a checkpoint)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("--chunk", type=int, default=10_000, help="rows scored and kept together (default: 10,000)")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run got done")
    group = parser.add_argument_group("of a classifier, a forecaster, a generator")
    group.add_argument("--probabilities", action="store_true", help="a column for each label's probability")
    group.add_argument("--horizon", type=int, help="values ahead (default: what it was scored at)")
    group.add_argument("--steps", type=int, default=200, help="tokens to write (default: 200)")
    group.add_argument("--temperature", type=float, default=1.0, help="0 picks the likeliest (default: 1)")
    group.add_argument("--top-k", type=int, default=0, help="of the k likeliest tokens only (default: 0, off)")
    group.add_argument("--top-p", type=float, default=1.0, help="of the likeliest with this share (default: 1, off)")
    group.add_argument("--seed", type=int, default=0, help="with the row's number, of its random numbers (default: 0)")
    group = parser.add_argument_group("on several processes or machines")
    group.add_argument("--engine", choices=("one", "ray"), default="one", help="one process, or Ray Data")
    group.add_argument("--workers", type=int, help="of ray: processes that score (default: as many as CPUs allow)")
    group.add_argument("--address", help="of ray: a running cluster, such as auto (default: one on this machine)")


def order_of(options: argparse.Namespace) -> Order:
    """What add_options' arguments ask for."""
    asked = {field.name: getattr(options, field.name) for field in fields(Order)}
    if options.keep is not None:
        asked["keep"] = tuple(name for name in options.keep.split(",") if name)
    return Order(**asked)
