"""What `deploy` writes of a file: each target that was asked for, one after another."""

from __future__ import annotations

from pathlib import Path

from seqexport.clients import write_client
from seqexport.errors import InputError
from seqexport.hub import write_hub
from seqexport.isolation import open_apart
from seqexport.triton import write_triton


def deliver(
    path: str,
    *,
    client: str | None,
    output: str | None,
    triton: str | None,
    max_batch: int,
    instances: int,
    threads: int,
    hub: str | None,
    checkpoint: str | None,
) -> list[Path]:
    """Write what was asked for of the ONNX file `path`, opened in a child process first, and give the paths written.

    client: a program's language, and output its path. triton: a model repository, with the sizes of write_triton. hub:
    a folder, and checkpoint its weights. Raises InputError where nothing is asked for, and what each target raises.
    """
    if not (client or triton or hub):
        raise InputError("deploy was not told what to write: give --client LANGUAGE, --triton DIR or --hub DIR.")
    if output and not client:
        raise InputError("--output is the path of a program, and none is asked for: give it with --client.")
    if checkpoint and not hub:
        raise InputError("--checkpoint is for the weights in the Hub's folder: give it with --hub.")
    open_apart(path, *([checkpoint] if checkpoint else []))
    written: list[Path] = []
    if client:
        written.append(write_client(path, client, output))
    if triton:
        written += write_triton(path, triton, max_batch=max_batch, instances=instances, threads=threads)
    if hub:
        written += write_hub(path, hub, checkpoint=checkpoint)
    return written
