"""What a cell costs: multiply-adds, files, memory, the time of a training step and of each runtime; and how far back
its gradient reaches."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqexport.checkpoint import read_checkpoint
from seqexport.exporter import export
from seqexport.files import replace_file
from seqexport.footprint import footprint, peak_memory
from seqexport.networks import Network
from seqexport.peers import load, missing
from seqexport.runtimes import Runtime
from seqexport.specs import Cell, NetworkSpec
from seqexport.text import Vocabulary
from seqexport.timing import Job, take_turns
from training.optimisation import initialise

FEATURES, OUTPUTS = 64, 80  # of the nets whose costs are measured: what characters have
HIDDEN = (128, 512)  # of the LSTM
BATCH, STEPS = 32, 100  # of a training step, and of the calls with many rows
LONG = 1000  # steps of a sequence whose training's memory is measured
CALLS = {"a step": (1, 1), "a sequence": (1, STEPS), "a batch": (BATCH, STEPS)}
INFERENCE = ("torch", "onnxruntime", "openvino")
GATES: Mapping[str, int] = {"rnn": 1, "gru": 3, "lstm": 4}
REACH = 256  # steps back over which the gradient is followed
WINDOWS = 64  # places of the text at which it starts


def spec(cell: Cell, hidden: int) -> NetworkSpec:
    """One layer that reads FEATURES numbers and answers at every step."""
    return NetworkSpec(cell, FEATURES, hidden, outputs=OUTPUTS)


def multiply_adds(of: NetworkSpec) -> int:
    """Products of a weight that one step of one sequence takes, the head's among them. A tanh or a sigmoid, of which
    there are a handful for each unit of the state, is not counted."""
    total, read = 0, of.features
    for _ in range(of.layers):
        total += of.directions * GATES[of.cell] * of.hidden_size * (read + of.hidden_size)
        read = of.directions * of.hidden_size
    return total + of.width * (of.outputs or 0)


def costs(sized: Sequence[tuple[Cell, int, str]], hidden: int, seconds: float) -> list[dict[str, Any]]:
    """The costs of each (cell, hidden size, what it has in common with the LSTM), measured in turns on one thread.
    hidden: the LSTM's size, under which they are told."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        paths = [_exported(Path(name), cell, size) for cell, size, _ in sized]
        rows = [
            {"equal": equal, "beside": hidden, **_sizes(path, cell, size)}
            for (cell, size, equal), path in zip(sized, paths, strict=True)
        ]
        for row, taken in zip(rows, _training_steps(sized, seconds), strict=True):
            row["training_step"] = taken
        for what, (batch, steps) in CALLS.items():
            for runtime in INFERENCE:
                if missing(runtime):
                    continue
                models = [load(_file(path, runtime), runtime, threads=1) for path in paths]
                for row, taken in zip(rows, _calls(models, batch, steps, seconds), strict=True):
                    row.setdefault("inference", {}).setdefault(what, {})[runtime] = taken
    return rows


def _sizes(path: Path, cell: Cell, hidden: int) -> dict[str, Any]:
    """What a network is and holds, in bytes where it is not said otherwise."""
    known = [runtime for runtime in INFERENCE if not missing(runtime)]
    return {
        "cell": cell,
        "hidden": hidden,
        "parameters": sum(tensor.numel() for tensor in read_checkpoint(path).weights.values()),
        "multiply_adds": multiply_adds(spec(cell, hidden)),
        "file_bytes": path.with_suffix(".onnx").stat().st_size,
        "state_bytes": 4 * hidden * (2 if cell == "lstm" else 1),
        "memory": {runtime: footprint(runtime, runtime, _file(path, runtime)).memory for runtime in known},
        "training_memory": {str(steps): training_memory(cell, hidden, steps) for steps in (STEPS, LONG)},
    }


def _exported(folder: Path, cell: Cell, hidden: int) -> Path:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(Network(spec(cell, hidden)).state_dict(), buffer)
    path = folder / f"{cell}-{hidden}.pt"
    replace_file(path, buffer.getvalue())
    export(path)
    return path


def _file(checkpoint: Path, runtime: str) -> Path:
    return checkpoint if runtime == "torch" else checkpoint.with_suffix(".onnx")


def _calls(models: Sequence[Runtime], batch: int, steps: int, seconds: float) -> list[float]:
    """Seconds of a call of each, the median, taking turns."""
    x = np.random.default_rng(0).standard_normal((batch, steps, FEATURES)).astype(np.float32)

    def job(model: Runtime) -> Job:
        values = model.native({"x": x})
        return Job(lambda _: model.call(values), model.ready)

    return _medians({str(place): job(model) for place, model in enumerate(models)}, seconds)


def _medians(jobs: Mapping[str, Job], seconds: float) -> list[float]:
    measured = take_turns(jobs, seconds, list(jobs)[:1])
    return [float(measured.times[name].quantile(0.5) or np.nan) for name in jobs]


def training_step(cell: Cell, hidden: int, steps: int) -> Callable[[], None]:
    """One step of a training, forward, backward and the weights' change, on BATCH sequences of so many steps."""
    torch.manual_seed(0)
    network = Network(spec(cell, hidden))
    initialise(network)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    x, following = torch.randn(BATCH, steps, FEATURES), torch.randint(0, OUTPUTS, (BATCH * steps,))

    def take() -> None:
        y, *_ = network(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(y.flatten(0, 1), following).backward()
        optimizer.step()

    return take


def _training_steps(sized: Sequence[tuple[Cell, int, str]], seconds: float) -> list[float]:
    steps = {str(place): training_step(cell, size, STEPS) for place, (cell, size, _) in enumerate(sized)}
    return _medians({name: Job(lambda _, take=take: take()) for name, take in steps.items()}, seconds)  # type: ignore[misc]


def training_memory(cell: Cell, hidden: int, steps: int) -> int | None:
    """Bytes by which a process grows at most over three steps of a training, in a fresh process."""
    arguments = [sys.executable, "-m", "training.cell_costs", cell, str(hidden), str(steps)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The child of `training_memory`: one line of JSON on stdout."""
    cell, hidden, steps = sys.argv[1:]
    torch.set_num_threads(1)
    training_step("gru", 2, 2)()  # what torch itself loads at the first step is not the cell's
    take, before = training_step(cell, int(hidden), int(steps)), peak_memory()  # type: ignore[arg-type]
    for _ in range(3):
        take()
    after = peak_memory()
    print(json.dumps(None if before is None or after is None else after - before))


def gradient_reach(checkpoint: Path, text: str) -> list[dict[str, Any]]:
    """How strongly what was read k steps ago moves the loss of the next character: the norm of the loss's gradient with
    respect to the embedding read then, its median over WINDOWS places of the text, for k from 0; of the trained net,
    and of the same net at its start."""
    known = read_checkpoint(checkpoint)
    tokens = np.array(Vocabulary.from_dict(known.preprocessing["vocabulary"]).encode(text))
    starts = np.linspace(0, len(tokens) - REACH - 1, WINDOWS).astype(int)
    windows = torch.from_numpy(np.stack([tokens[start : start + REACH + 1] for start in starts]))
    torch.manual_seed(0)
    fresh = Network(known.spec)
    initialise(fresh)
    return [
        {"cell": known.spec.cell, "hidden": known.spec.hidden_size, "trained": trained, "norms": _norms(net, windows)}
        for trained, net in ((False, fresh), (True, known.network()))
    ]


def _norms(network: Network, windows: Tensor) -> list[float]:
    """For windows (B, T+1) of tokens, by the distance from the last that is read."""
    assert network.embedding is not None and network.head is not None
    embedded = network.embedding(windows[:, :-1]).detach().requires_grad_()
    y, _ = network.rnn(embedded)
    loss = nn.functional.cross_entropy(network.head(y[:, -1]), windows[:, -1], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, embedded)
    return [float(f"{norm:.3g}") for norm in gradient.norm(dim=2).median(0).values.flip(0).tolist()]


if __name__ == "__main__":
    main()
