"""Hold the readers against spoilt and hostile files, and write the table that DECISIONS.md has.

    python -m training.fuzz --count 20000 --seconds 1200 --seed 0

Each file goes through `inspect --json` in a forked child, without the isolation that the command line adds, so that the
readers themselves are tried; the first --exports that can still be read go through an export too. A find is: any ending
but exit code 0, 1 or 2 with one sentence, the sentence for an unexpected exception, an archive that was read though its
checksums are wrong, a file written or a marker of executed code, more than 30 s, or more than 2 GiB. Exit code 1 if
there was one. --only N does file N again and --keep FILE keeps it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seqexport import cli, export
from seqexport.checkpoint import write_checkpoint
from seqexport.networks import Network
from seqexport.pipelines import Scaling
from seqexport.specs import NetworkSpec
from training import hostile
from training.command import Parser
from training.mutations import Seed, mutate
from training.publish import ROOT, write_block

SECONDS = 30
MEMORY = 2 << 30
BATCH = 50


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.rnn = nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


def _forecaster(path: Path) -> Path:
    scaling = Scaling("root", 6.0, 3.0).to_dict()
    about = {"scaling": scaling, "context": 8, "season": 4, "unit": "n", "step": "month"}
    network = Network(NetworkSpec("gru", 1, 4, layers=1, outputs=2))
    write_checkpoint(path, network, task="forecast", preprocessing=about, metrics={"mae": 1.5}, data={"name": "test"})
    return path


def make_seeds(folder: Path) -> list[Seed]:
    """Small files of every kind that is read."""
    import safetensors.torch

    torch.manual_seed(0)
    net = _Net()
    weights = net.state_dict()
    lstm = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    saved: dict[str, Any] = {
        "bare": weights,
        "trainer": {
            "epoch": 3,
            "state_dict": {f"model.{k}": v for k, v in weights.items()},
            "optim": {"lr": [0.1, None]},
        },
        "lstm": lstm.state_dict(),
        "double": {name: tensor.double() for name, tensor in nn.RNN(2, 3).state_dict().items()},
        "half": {name: tensor.half() for name, tensor in weights.items()},
        "norm": {
            "rnn.weight_hh_l0_g": torch.ones(9, 1),
            "rnn.weight_hh_l0_v": torch.ones(9, 3),
            **nn.GRU(2, 3).state_dict(prefix="rnn."),
        },
    }
    seeds = []
    for name, content in saved.items():
        for kind in ("archive", "older"):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=kind == "archive")
            seeds.append(Seed(name, kind, buffer.getvalue()))
    seeds += [
        Seed(name, "safetensors", safetensors.torch.save(tensors))
        for name, tensors in (("bare", weights), ("lstm", lstm.state_dict()))
    ]
    path = _forecaster(folder / "own.pt")
    seeds.append(Seed("own", "archive", path.read_bytes()))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(net).save(str(folder / "script.pt"))
    seeds.append(Seed("script", "script", (folder / "script.pt").read_bytes()))
    export(path)
    seeds += [Seed(f.stem, "onnx", f.read_bytes()) for f in sorted(folder.glob("own*.onnx"))]
    torch.save(lstm.state_dict(), folder / "lstm.pt")
    export(folder / "lstm.pt")
    seeds.append(Seed("lstm", "onnx", (folder / "lstm.onnx").read_bytes()))
    return seeds


@dataclass
class Outcome:
    """What became of one file. kind: told, refused, or the name of the find. about: the sentence, or what was seen."""

    index: int
    mutation: str
    kind: str
    about: str = ""
    seconds: float = 0.0
    mib: float = 0.0
    exportable: bool = False

    @property
    def found(self) -> bool:
        """Whether it is a find."""
        return self.kind not in ("told", "refused", "exported", "not exported")


@dataclass
class Fuzzer:
    """Makes file number `index` from the seeds, always the same for the same `seed`, and tries it in `folder`."""

    seeds: Sequence[Seed]
    seed: int
    folder: Path
    exporting: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    def make(self, index: int) -> tuple[Seed, str, bytes]:
        """The seed that it started from, the mutation's name, and the file."""
        rng = random.Random(f"{self.seed}-{index}")
        start = rng.choice(self.seeds)
        mutation, content = mutate(rng, start)
        return start, f"{start.kind}: {mutation}", content

    def run(self, indices: Sequence[int], until: float) -> None:
        """Try the files in forked children, a new one after each crash, until the clock says so."""
        rest, size = list(indices), 10 if self.exporting else BATCH
        while rest and time.monotonic() < until:
            done = self._batch(rest[:size])
            self.outcomes += done
            rest = rest[len(done) :]

    def _batch(self, indices: Sequence[int]) -> list[Outcome]:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            self._serve(indices, writer)
        os.close(writer)
        answers = list(_lines(reader, SECONDS + 10))
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        done = [Outcome(**answer) for answer in answers]
        if len(done) < len(indices):
            index = indices[len(done)]
            how = "no answer" if os.WTERMSIG(status) == signal.SIGKILL else f"crash by signal {os.WTERMSIG(status)}"
            done.append(Outcome(index, self.make(index)[1], how, seconds=SECONDS if how == "no answer" else 0.0))
        return done

    def _serve(self, indices: Sequence[int], writer: int) -> None:
        """The child: never returns."""
        try:
            limit = _status("VmSize") + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with Path(os.devnull).open("w") as null:  # what native code says
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
            signal.signal(signal.SIGALRM, _too_long)
            for index in indices:
                os.write(writer, json.dumps(vars(self.attempt(index))).encode() + b"\n")
        finally:
            os._exit(0)

    def attempt(self, index: int) -> Outcome:
        """Try one file here, in this process."""
        start, mutation, content = self.make(index)
        self._clean()
        suffix = ".onnx" if start.kind == "onnx" else ".pt"
        path = self.folder / "in" / f"net{suffix}"
        path.write_bytes(content)
        before = _tree(self.folder)
        os.chdir(self.folder / "cwd")
        os.environ["HOME"] = str(self.folder / "home")
        outcome = self._called(index, mutation, path)
        left = {
            name
            for name in _tree(self.folder) ^ before
            if not name.startswith("out/net.") or outcome.kind != "exported"
        }
        if left:
            outcome.kind = "executed" if any(hostile.MARKER in name for name in left) else "written"
            outcome.about = ", ".join(sorted(left))
        if outcome.kind in ("told", "exported") and content.startswith(b"PK") and not _sums_right(content):
            outcome.kind = "damaged, but read"
        return outcome

    def _clean(self) -> None:
        """Folders for the file, for what is written, and for what must stay as it is, with a file to be tempted by."""
        if _names(self.folder) in (_CLEAN, _CLEAN | {"in/net.pt"}, _CLEAN | {"in/net.onnx"}):
            for path in (self.folder / "in").glob("net.*"):
                path.unlink()
            return
        for name in ("cwd", "home", "in", "out"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        (self.folder / "secret").write_bytes(bytes(4096))
        (self.folder / "in" / "link").symlink_to("../secret")

    def _called(self, index: int, mutation: str, path: Path) -> Outcome:
        arguments = [str(path), "-o", str(self.folder / "out" / "net.onnx"), "--json"]
        if not self.exporting:
            arguments = ["inspect", str(path), *(["--json"] if index % 10 else [])]
        out, errors = _stream("strict"), _stream("backslashreplace")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        base, start = _status("VmRSS"), time.perf_counter()
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                code: Any = cli.main(arguments)
        except _TooLong:
            code = "too long"
        except BaseException as error:  # a SystemExit too: nothing may come out of main
            code = f"raised {type(error).__name__}: {error}"
        signal.alarm(0)
        outcome = Outcome(index, mutation, *self._judged(code, _said(errors)))
        outcome.seconds = time.perf_counter() - start
        outcome.mib = (_status("VmHWM") - base) / 2**20
        shown = _said(out)
        outcome.exportable = code == 0 and '"exports as": ' in shown and '"exports as": "nothing' not in shown
        if not outcome.found and outcome.mib > MEMORY / 2**20:
            outcome.kind = "memory"
        return outcome

    def _judged(self, code: Any, errors: str) -> tuple[str, str]:
        if code not in (0, 1, 2):
            return str(code)[:300], errors[:300]
        if code == 0:
            return ("exported" if self.exporting else "told"), ""
        if errors.startswith("seqexport: unexpected ") or "Traceback" in errors:
            return "unexpected exception", errors[:300]
        if errors.count("\n") != 1 or not errors.startswith("seqexport: ") or len(errors) > 3000:
            return "not one sentence", errors[:300]
        return ("not exported" if self.exporting else "refused"), errors[:300]


def _stream(errors: str) -> io.TextIOWrapper:
    """As a process has stdout and stderr, in bytes: half a character can't be written to a terminal."""
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)


def _said(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


class _TooLong(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise _TooLong


def _lines(reader: int, patience: float) -> Iterator[dict[str, Any]]:
    """The child's answers, until it ends or says nothing for so long."""
    held = b""
    while select.select([reader], [], [], patience)[0]:
        read = os.read(reader, 1 << 16)
        if not read:
            return
        *whole, held = (held + read).split(b"\n")
        yield from map(json.loads, whole)


def _status(name: str) -> int:
    """Bytes, as Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


_CLEAN = {"cwd", "home", "in", "in/link", "out", "secret"}


def _names(folder: Path) -> set[str]:
    return {os.path.relpath(Path(at, name), folder) for at, *held in os.walk(folder) for name in (*held[0], *held[1])}


def _tree(folder: Path) -> set[str]:
    return {
        f"{name} {(folder / name).lstat().st_size}"
        for name in _names(folder)
        if name not in ("cwd", "in", "out", "home")
    }


def _sums_right(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return all(
                _whole(archive, name) for name in archive.namelist() if "/code/" not in name
            )  # which is not read
    except (zipfile.BadZipFile, NotImplementedError, struct.error, RuntimeError, ValueError):
        return False


def _whole(archive: zipfile.ZipFile, name: str) -> bool:
    archive.read(name)  # raises where the sum is wrong
    return True


def table(outcomes: Sequence[Outcome], exports: Sequence[Outcome], about: str) -> str:
    """Markdown: a row a mutation, and sentences on the worst."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.mutation]["find" if outcome.found else outcome.kind] += 1
    worst = max(itertools.chain(outcomes, exports), key=lambda outcome: outcome.seconds)
    most = max(itertools.chain(outcomes, exports), key=lambda outcome: outcome.mib)
    rows = ["| file: mutation | files | told | refused | finds |", "|---|---|---|---|---|"]
    for mutation, count in sorted(counts.items()):
        rows.append(f"| {mutation} | {count.total():,} | {count['told']:,} | {count['refused']:,} | {count['find']} |")
    total = sum(counts.values(), Counter())
    rows.append(f"| **all** | {total.total():,} | {total['told']:,} | {total['refused']:,} | {total['find']} |")
    done = Counter("find" if outcome.found else outcome.kind for outcome in exports)
    said = (
        f"Of those told, {len(exports):,} were exported: {done['exported']:,} written and verified, "
        f"{done['not exported']:,} refused with a sentence, {done['find']} finds. Longest: {worst.seconds:.1f} s "
        f"({worst.mutation}). Most memory: {most.mib:,.0f} MiB ({most.mutation}). {about}"
    )
    return "\n".join([*rows, "", said])


def _warm(seeds: Sequence[Seed], folder: Path) -> None:
    """Read and export once here, so that the children need not import anything."""
    for seed in seeds:
        path = folder / f"warm{'.onnx' if seed.kind == 'onnx' else '.pt'}"
        path.write_bytes(seed.content)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main(["inspect", str(path)])
            cli.main(["inspect", str(path), "--json"])


def fuzz(count: int, seconds: float, seed: int, exports: int) -> tuple[list[Outcome], list[Outcome]]:
    """Try `count` files, and `exports` of those that can be read; each at most so many seconds.

    Torch must not have started threads of its own, or its forked children would wait for them.
    """
    torch.set_num_threads(1)
    place = Path.cwd()
    memory = Path("/dev/shm")  # where there is one, twenty thousand files need not wait for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        folder = Path(temporary)
        for name in ("seeds", "files"):
            (folder / name).mkdir()
        seeds = make_seeds(folder / "seeds")
        _warm(seeds, folder / "seeds")
        fuzzer = Fuzzer(seeds, seed, folder / "files")
        fuzzer.run(range(count), time.monotonic() + seconds)
        readable = [outcome.index for outcome in fuzzer.outcomes if outcome.exportable][:exports]
        exporter = Fuzzer(seeds, seed, folder / "files", exporting=True)
        exporter.run(readable, time.monotonic() + seconds)
    os.chdir(place)
    return fuzzer.outcomes, exporter.outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, print the table and the finds."""
    parser = Parser(prog="python -m training.fuzz", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="files (default: %(default)s)")
    parser.add_argument("--exports", type=int, default=1000, help="exports of what can be read (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="at most, for each of both (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into DECISIONS.md")
    parser.add_argument("--only", type=int, help="one file again, with its traceback")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where to keep it")
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _again(options.only, options.seed, options.keep)
    start = time.monotonic()
    outcomes, exports = fuzz(options.count, options.seconds, options.seed, options.exports)
    about = f"Seed {options.seed}, {len(outcomes):,} files, {time.monotonic() - start:,.0f} s."
    shown = table(outcomes, exports, about)
    print(shown)
    finds = [outcome for outcome in (*outcomes, *exports) if outcome.found]
    for find in finds:
        print(f"FIND {find.index} ({find.mutation}): {find.kind}: {find.about.strip()}")
    if options.write:
        write_block(ROOT / "DECISIONS.md", "fuzz", shown)
    return 1 if finds else 0


def _again(index: int, seed: int, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, mutation, content = Fuzzer(make_seeds(folder), seed, folder).make(index)
        path = keep or folder / "again"
        path.write_bytes(content)
        print(mutation)
        return cli.main(["inspect", str(path), "--json", "--debug"])


if __name__ == "__main__":
    sys.exit(main())
