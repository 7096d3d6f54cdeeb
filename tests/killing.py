"""Kills exports as they write, and lets them race: python tests/killing.py FOLDER TASK[:TRIES]…, a JSON object a line.

A fresh process takes seconds until it exports, so one process imports everything, exports once, and forks a child for
every try. The parent looks at the folder all the time, and kills the child at a change, or a random instant after it.

kill: the package as it is. between: killed just before each rename. halves: the same as kill with a writer that is not
atomic, which has to be found out. race: eight exports to one path, of bare weights; pairs: of networks with pipelines.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import save_forecaster
from torch import nn

import seqexport
from seqexport import exporter, files

BARE, NETWORK, PIPELINE = "bare.onnx", "net.onnx", "net.forecast.onnx"
NAMES = (BARE, NETWORK, PIPELINE)
RACERS = 8


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_sources(folder):
    """Two bare state_dicts and two checkpoints with a pipeline, A and B."""
    for seed, letter in enumerate("AB"):
        torch.manual_seed(seed)
        torch.save(nn.LSTM(3, 96, batch_first=True).state_dict(), folder / f"bare-{letter}.pt")
        save_forecaster(folder / f"net-{letter}.pt", seed=seed, layers=1)


class Remembered:
    """Gives what a function gave before at the same place of the same export: what is slow before a file is written.

    From write_beside on, all is the package's own: writing, loading, verifying, replacing.
    """

    letter, results = "", {}

    def __init__(self, name):
        self.name, self.function, self.calls = name, getattr(exporter, name), 0
        setattr(exporter, name, self)

    def __call__(self, *arguments):
        self.calls += 1
        key = (self.name, self.letter, self.calls)
        if key not in self.results:
            self.results[key] = self.function(*arguments)
        return self.results[key]


REMEMBERED = [Remembered("trace"), Remembered("build_graph")]


def export_both(sources, letter, output):
    Remembered.letter = letter
    for function in REMEMBERED:
        function.calls = 0
    seqexport.export(sources / f"bare-{letter}.pt", output / BARE)
    seqexport.export(sources / f"net-{letter}.pt", output / NETWORK)


def forked(work, *arguments):
    """Start `work` in a child; its exit code is 0, 3 for a SeqExportError, 4 for anything else."""
    child = os.fork()
    if child:
        return child
    code = 4
    try:
        work(*arguments)
        code = 0
    except seqexport.SeqExportError as error:
        print(error, file=sys.stderr)
        code = 3
    finally:
        os._exit(code)


def seen(folder):
    """What changes whenever anything is created, written, renamed or deleted."""
    found = []
    for entry in os.scandir(folder):
        try:
            about = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        found.append((entry.name, about.st_ino, about.st_size, about.st_mtime_ns))
    return sorted(found)


def watch(child, folder, aim, delay):
    """Kill the child `delay` seconds after change number `aim`. Gives the changes seen, and whether it was killed."""
    last, changes = seen(folder), 0
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return changes, False
        now = seen(folder)
        changes += now != last
        last = now
        if changes >= aim:
            if delay:
                end = time.perf_counter() + delay
                while time.perf_counter() < end:
                    pass
            os.kill(child, signal.SIGKILL)
            return changes, os.WIFSIGNALED(os.waitpid(child, 0)[1])


class Range:
    """Files exported from A and from B, and a folder in which children replace the one's by the other's."""

    def __init__(self, folder):
        self.sources, self.output = folder / "sources", folder / "output"
        self.reference = {letter: folder / f"reference-{letter}" for letter in "AB"}
        for made in (self.sources, self.output, *self.reference.values()):
            made.mkdir()
        save_sources(self.sources)
        for letter, reference in self.reference.items():
            export_both(self.sources, letter, reference)
            for name in NAMES:
                seqexport.load(reference / name)
        self.known = {name: {digest(self.reference[x] / name): x for x in "AB"} for name in NAMES}
        assert all(len(digests) == 2 for digests in self.known.values())

    def put(self, letter):
        for name in NAMES:
            copy = self.output / "copy"
            copy.write_bytes((self.reference[letter] / name).read_bytes())
            copy.replace(self.output / name)

    def letters(self):
        """Which checkpoint each file is of, ? for a file that is neither's."""
        paths = [self.output / name for name in NAMES]
        return [self.known[path.name].get(digest(path), "?") if path.exists() else "?" for path in paths]

    def strays(self):
        return sorted({path.name for path in self.output.iterdir()} - set(NAMES))

    def is_reported(self):
        """Whether loading says that the network and the pipeline don't belong together."""
        try:
            seqexport.load(self.output / NETWORK)
        except seqexport.FileError:
            return True
        return False


def kill(field, kills, rng, until_torn=False):
    """Exports over existing files, killed as they write: as many as get killed before they are done."""
    field.put("A")
    most, _ = watch(forked(export_both, field.sources, "B", field.output), field.output, 1_000, 0)
    most = max(most, 8)  # on a busy machine several changes are seen as one, and the last would be hit too seldom
    names = ("tries", "before", "during", "after", "unkilled", "temporaries", "most_temporaries")
    counts = dict.fromkeys((*names, "old", "new", "mixed", "reported", "torn"), 0) | {"changes": most}
    while counts["tries"] - counts["unkilled"] < kills and counts["tries"] < 4 * kills:
        if until_torn and counts["torn"]:
            break
        counts["tries"] += 1
        old, new = "AB" if counts["tries"] % 2 else "BA"
        field.put(old)
        before = set(field.strays())
        aim, delay = rng.randint(0, most), rng.choice((0.0, 0.0, rng.uniform(0, 0.0002), rng.uniform(0, 0.004)))
        if aim == 0:  # before anything is written
            delay = rng.uniform(0, 0.1)
        child = forked(export_both, field.sources, new, field.output)
        _, killed = watch(child, field.output, aim, delay)
        letters, strays = field.letters(), field.strays()
        fresh = set(strays) - before
        moment = "before" if set(letters) == {old} else "after" if set(letters) == {new} else "during"
        counts["unkilled" if not killed else "during" if fresh else moment] += 1
        counts["temporaries"] += bool(fresh)
        counts["most_temporaries"] = max(counts["most_temporaries"], len(strays))
        counts["old"] += letters.count(old)
        counts["new"] += letters.count(new)
        counts["torn"] += letters.count("?")
        if letters[1] != letters[2]:
            counts["mixed"] += 1
            counts["reported"] += "?" not in letters and field.is_reported()
    export_both(field.sources, "B", field.output)
    return counts | {"last": "".join(field.letters()), "strays": field.strays()}


def write_in_halves(drafts):
    """What an exporter does that opens the destination and writes."""
    for draft in drafts:
        content = draft.file.read_bytes()
        with draft.target.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.01)
            file.write(content[len(content) // 2 :])


def halves(field, kills, rng):
    sound = files.put_in_place
    exporter.put_in_place = write_in_halves
    try:
        return kill(field, kills, rng, until_torn=True)
    finally:
        exporter.put_in_place = sound


def between(field, tries, rng):
    """Exports that die just before each rename: what no watching from outside hits for sure. Gives what they left."""

    def dies(rename):
        left = [rename]
        replace = Path.replace

        def counted(self, target):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = counted
        export_both(field.sources, "B", field.output)

    left = []
    for rename in (1, 2, 3, 4):
        field.put("A")
        status = os.waitpid(forked(dies, rename), 0)[1]
        left.append([os.WIFSIGNALED(status), "".join(field.letters()), field.is_reported(), len(field.strays())])
    return {"left": left, "strays": field.strays()}


def race(field, tries, rng):
    sources = [field.sources / f"racer-{seed}.pt" for seed in range(RACERS)]
    for seed, source in enumerate(sources):
        torch.manual_seed(seed)
        torch.save(nn.LSTM(3, 96, batch_first=True).state_dict(), source)
    return race_of(sources, tries, (NETWORK,), field.output.parent / "race")


def pairs(field, tries, rng):
    sources = [save_forecaster(field.sources / f"pair-{seed}.pt", seed=seed, layers=1) for seed in range(RACERS)]
    return race_of(sources, tries, (NETWORK, PIPELINE), field.output.parent / "pairs")


def race_of(sources, tries, names, folder):
    """Eight exports at once to one path, each of its own checkpoint; all wait at a pipe until the last has started."""
    for function in REMEMBERED:
        setattr(exporter, function.name, function.function)
    folder.mkdir()
    digests = [digest(source) for source in sources]
    codes, winners = [], []
    for _ in range(tries):
        reading, writing = os.pipe()

        def run(source, gate=reading, held=writing):
            os.close(held)
            os.read(gate, 1)  # ends when the parent closes its end
            seqexport.export(source, folder / NETWORK)

        children = [forked(run, source) for source in sources]
        os.close(writing)
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.close(reading)
        found = [seqexport.load(folder / name).metadata["checkpoint_sha256"] for name in names]
        winners.append([digests.index(sha256) for sha256 in found])
        for winner, name in zip(winners[-1], names, strict=True):
            assert seqexport.verify_files(sources[winner], folder / name).passed
    strays = sorted({path.name for path in folder.iterdir()} - set(names))
    return {"codes": codes, "winners": winners, "strays": strays}


def main():
    torch.set_num_threads(1)
    field, seed = Range(Path(sys.argv[1])), random.randrange(2**32)
    for task in sys.argv[2:]:
        name, _, tries = task.partition(":")
        start = time.perf_counter()
        counts = {"kill": kill, "halves": halves, "between": between, "race": race, "pairs": pairs}[name](
            field, int(tries or 1), random.Random(seed)
        )
        print(json.dumps({"task": name, "seed": seed, **counts, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
