"""Kills runs of `score` at random instants: python tests/killing_scores.py MODEL FOLDER KILLS, a JSON object.

A run is killed, again and again at a random instant, until one comes to its end; then the next begins, until there were
so many kills. What each leaves is held against the output of a run that nobody killed, byte by byte.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import seqexport
from seqexport import jobs


def forked(work):
    child = os.fork()
    if not child:
        code = 4
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def noting(log):
    """Have every chunk that is scored written to a log, before and after it is kept."""
    do = jobs.Job.do

    def noted(job, number, place):
        was_kept = job.done(number) is not None
        with log.open("a") as file:
            file.write(f"{number} {int(was_kept)}\n")
        return do(job, number, place)

    jobs.Job.do = noted


def killed(child, seconds):
    """Kill the child after so many seconds; whether it still ran."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(model, folder, kills):
    rng, rows = random.Random(kills), 400
    data = folder / "in.csv"
    texts = ["".join(rng.choices("what is\n", k=rng.randint(0, 30))) for _ in range(rows)]
    data.write_text("id,text\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(texts)))
    names = [suffix + more for suffix in ("csv", "parquet") for more in ("", ".rejected.jsonl")]
    whole, again, log = folder / "whole", folder / "again", folder / "log"
    for place in (whole, again):
        place.mkdir()

    def score(place, suffix):
        seqexport.score(model, data, place / f"out.{suffix}", chunk=9)

    for suffix in ("csv", "parquet"):
        start = time.monotonic()
        score(whole, suffix)
        taken = time.monotonic() - start
    noting(log)
    found = {"kills": 0, "between": 0, "runs": 0, "different": 0, "kept_and_scored_again": 0, "chunks_scored": 0}
    while found["kills"] < kills:
        suffix = ("csv", "parquet")[found["runs"] % 2]
        while True:
            mortal = found["kills"] < kills
            child = forked(lambda suffix=suffix: score(again, suffix))
            # Short lives, so that most runs die often; with some that nearly come to an end.
            if not killed(child, rng.uniform(0, taken * rng.choice((0.2, 0.6, 1.2))) if mortal else 600):
                break
            found["kills"] += 1
            parts = again / f"out.{suffix}.parts"
            found["between"] += parts.exists() and any(parts.glob("part-*.json"))
        found["runs"] += 1
        for name in names:
            if name.startswith(suffix):
                path = again / f"out.{name}"
                found["different"] += not path.exists() or path.read_bytes() != (whole / f"out.{name}").read_bytes()
    lines = log.read_text().splitlines()
    found["chunks_scored"] = len(lines)
    found["kept_and_scored_again"] = sum(line.endswith(" 1") for line in lines)
    expected = {f"out.{name}" for name in names[: 2 * min(2, found["runs"])]}
    found["strays"] = sorted(path.name for path in again.iterdir() if path.name not in expected)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
