"""A coverage-guided fuzzer on the readers: inputs that reach new lines are kept, and spoilt further.

    python -m training.guided --seconds 600

Needs atheris (`pip install atheris`), which nothing else does. The seeds and the mutations are those of training.fuzz;
libFuzzer chooses which inputs are worth going on from. Anything but a SeqExportError ends it with the input kept in the
current folder.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seqexport.errors import FileError, SeqExportError
from training.command import Parser

READERS = ["screening", "archives", "inference", "checkpoint", "inspection", "isolation", "runtimes"]


_SEEDS = """import pathlib, sys
from training.fuzz import make_seeds
folder = pathlib.Path(sys.argv[1])
for number, seed in enumerate(make_seeds(folder / "made")):
    (folder / "corpus" / str(number)).write_bytes(seed.content)
"""


def _kind(content: bytes) -> str:
    """As training.mutations calls it."""
    if content.startswith(b"PK"):
        return "archive"
    if content.startswith(b"\x80"):
        return "older"
    return "safetensors" if content[8:9] == b"{" else "onnx"


def mutator() -> Callable[[bytes, int, int], bytes]:
    """What libFuzzer calls for an input to follow another."""
    from training.mutations import ANY, MUTATORS

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        for way in (rng.choice(MUTATORS[_kind(content)]), rng.choice(ANY)):
            try:
                return (way(rng, content) or b"\0")[:longest]
            except Exception:  # what is spoilt already may be too broken for a way that knows the format
                continue
        return content

    return mutate


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz for so many seconds; libFuzzer ends the process."""
    parser = Parser(prog="python -m training.guided", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        import atheris
    except ImportError:
        print(f"error: {FileError('atheris is not installed: pip install atheris.')}", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=[f"seqexport.{name}" for name in READERS]):
        from seqexport import checkpoint  # noqa: F401  for its lines to count
        from seqexport.inspection import inspect
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("corpus", "made"):
            (folder / name).mkdir()
        # In a process of its own: torch does not export from modules that are instrumented.
        subprocess.run([sys.executable, "-W", "ignore", "-c", _SEEDS, str(folder)], check=True)
        path = folder / f"net-{os.getpid()}"

        def attempt(content: Any) -> None:
            path.write_bytes(content)
            try:
                inspect(path)
            except SeqExportError as error:
                if "\n" in str(error):
                    raise AssertionError("not one sentence") from error

        limits = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-timeout=30", "-rss_limit_mb=4096"]
        command = [sys.argv[0], str(folder / "corpus"), *limits, "-max_len=200000", "-print_final_stats=1"]
        mutate = mutator()
        atheris.Setup(command, attempt, custom_mutator=mutate)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
