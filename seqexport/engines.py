"""Who scores a table's chunks: this process, or Ray's actors, on this machine or a cluster. Both do the same Job."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqexport.errors import FileError, InputError, SeqExportError, UnsupportedError
from seqexport.jobs import Done, Job
from seqexport.orders import Order

BLOCKS = 2_000  # what Ray handles as one thing; of a table with more chunks, several each

Say = Callable[[int, int, int, bool], None]  # how far in the table, of how much, rows so far, whether they are news


def score(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    engine: str = "one",
    workers: int | None = None,
    address: str | None = None,
    restart: bool = False,
    isolated: bool = False,
    say: Say | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Answer every row of a table by a model, and give what was done: counts, files, seconds.

    options: the fields of seqexport.orders.Order, such as column, pipeline, keep, seed. engine: one (this process) or
    ray, with so many workers, on the cluster at the address or one that is started here; all its machines must see
    the three paths. restart: throw away what an earlier run got done, with which this one else goes on.
    say: is called after each chunk with how far the table is read, of how much, the rows so far, and whether the chunk
    was scored just now.

    The output has the rows that could be scored, in the data's order; OUTPUT.rejected.jsonl the others, with their
    numbers and reasons. Whatever happens, both are written whole or not at all, and what was scored before is kept for
    the next run in OUTPUT.parts. Raises FileError, InputError, SpecError or UnsupportedError.
    """
    begun = time.monotonic()
    order = Order(os.fspath(model), os.fspath(data), os.fspath(output), **options)
    engines = {"one": _here, "ray": lambda job: _on_ray(job, workers, address)}
    if engine not in engines:
        raise InputError(f"There is no engine {engine!r}; expected one or ray.")
    if engine == "one" and (workers is not None or address is not None):
        raise InputError("--workers and --address are for --engine ray: give it too, or leave them out.")
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; expected 1 or more.")
    job = Job(order, isolated)
    before = 0
    with job.begun(restart) as counts:
        if counts is None:
            at, rows = job.source.start[0], 0
            for start, note, is_new in engines[engine](job):
                at += (job.source.size if note.after is None else note.after[0]) - start
                rows, before = rows + note.rows, before + (0 if is_new else note.rows)
                if say is not None:
                    say(at, job.source.size, rows, is_new)
            counts = job.finish()
        else:
            before = counts["rows"]
            job.tidy()
    return {
        **counts,
        "scored_before": before,
        "seconds": round(time.monotonic() - begun, 3),
        "part": job.question.part,
        "column": job.column,
        "runtime": job.model.name,
        "output": str(job.target),
        "rejected_rows": str(job.rejects) if counts["rejected"] else None,
    }


def _here(job: Job) -> Iterator[tuple[int, Done, bool]]:
    """Chunk after chunk: where it starts, its note, and whether it was scored now."""
    for number, place, note in job.chunks():
        yield place[0], note or job.do(number, place), note is None


class _Worker:
    """An actor of Ray's: a process with a job of its own, which is given chunks and says what was wrong in words, since
    an error that is raised there would come out wrapped."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.job: Job | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        said: dict[str, list[Any]] = {"number": [], "offset": [], "error": []}
        for number, offset, row in zip(batch["number"], batch["offset"], batch["row"], strict=True):
            said["number"].append(int(number))
            said["offset"].append(int(offset))
            try:
                self.job = self.job or Job(self.order)
                self.job.do(int(number), (int(offset), int(row)))
                said["error"].append("")
            except SeqExportError as error:
                said["error"].append(str(error))
        return said


def _on_ray(job: Job, workers: int | None, address: str | None) -> Iterator[tuple[int, Done, bool]]:
    """The same, in the order in which the chunks get done."""
    ray = _ray()
    todo = []
    for number, (offset, row), note in job.chunks():
        if note:
            yield offset, note, False
        else:
            todo.append({"number": number, "offset": offset, "row": row})
    if not todo:
        return
    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of what it started anew
        ours = not ray.is_initialized()
        if ours:
            _start(ray, address, workers, job.order.threads)
        try:
            for found in _spread(ray, job.order, todo, workers).iter_rows():
                if found["error"]:
                    raise FileError(f"On a worker: {found['error']}")
                note = job.done(int(found["number"]))
                if note is None:
                    raise FileError(f"A worker kept a chunk that is not in {job.folder}: give a folder that all share.")
                yield int(found["offset"]), note, True
        finally:
            if ours:
                ray.shutdown()


def _spread(ray: Any, order: Order, todo: list[dict[str, int]], workers: int | None) -> Any:
    """What the workers say of the chunks: a data set, which Ray makes as it is read."""
    there = int(ray.cluster_resources().get("CPU", 1)) // order.threads
    model, data, output = (str(Path(path).absolute()) for path in (order.model, order.data, order.output))
    chunks = ray.data.from_items(todo, override_num_blocks=min(len(todo), BLOCKS))
    return chunks.map_batches(  # whose actors are started anew, and asked again, as often as they die
        _Worker,
        fn_constructor_args=(replace(order, model=model, data=data, output=output),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(workers or max(1, there), len(todo)), max_tasks_in_flight_per_actor=2
        ),
        num_cpus=order.threads,
    )


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a report to its makers, which nobody asked for
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    try:
        import ray
        import ray.data
    except ImportError as error:
        command = "python -m pip install 'seqexport[ray]'"
        raise UnsupportedError(f"--engine ray takes ray, which is not installed: {command}.") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _start(ray: Any, address: str | None, workers: int | None, threads: int) -> None:
    """Join a cluster, or start one on this machine, with room for the workers asked for."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    for patience in (2, 1, 0):  # Ray gives a cluster of one's own 30 seconds, which a busy machine may overrun
        try:
            if address is not None:
                ray.init(address, **quiet)
            else:
                cpus = max(os.cpu_count() or 1, (workers or 1) * threads)
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as error:  # ray's have no common base
            ray.shutdown()
            reason = (str(error).splitlines() or [""])[0]
            if not patience or address is not None or "timed out" not in reason:
                raise UnsupportedError(f"Ray did not start, or could not be reached ({reason:.200}).") from error
        else:
            return
