"""Checkpoints to try the conversion with, of every kind that people have: made when they are asked for, in a folder of
their own. All but the shipped ones have random weights: what is shown is the conversion, not a skill."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tabs.racing import EXPORTED

if TYPE_CHECKING:
    from torch import nn


def _shipped(model: str) -> Callable[[Path], object]:
    return lambda path: shutil.copyfile(EXPORTED / model / "checkpoint.pt", path)


def _save_bare(path: Path) -> None:
    """A state_dict alone: an LSTM of two layers and a linear layer, as torch.save(model.state_dict()) writes it."""
    import torch
    from torch import nn

    parts = nn.ModuleDict({"lstm": nn.LSTM(8, 32, 2), "fc": nn.Linear(32, 4)})
    torch.save(_drawn(parts).state_dict(), path)


def _save_lightning(path: Path) -> None:
    """What a Lightning trainer writes: the weights under `state_dict` with a prefix, beside what it goes on with."""
    import torch
    from torch import nn

    both = nn.GRU(12, 24, batch_first=True, bidirectional=True)
    parts = nn.ModuleDict({"embedding": nn.Embedding(200, 12), "gru": both, "classifier": nn.Linear(48, 3)})
    weights = {f"model.{name}": tensor for name, tensor in _drawn(parts).state_dict().items()}
    about = {"epoch": 9, "global_step": 4_200, "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 1e-3}}
    torch.save(about | {"state_dict": weights, "optimizer_states": [], "lr_schedulers": []}, path)


def _save_torchscript(path: Path) -> None:
    """A TorchScript archive of an RNN: its program stays unread, its weights are taken."""
    import torch
    from torch import nn

    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated; its files are still about
        torch.jit.save(torch.jit.script(_drawn(nn.Sequential(nn.RNN(6, 20, batch_first=True)))), path)


def _save_pickled(path: Path) -> None:
    """A whole module, which can't be read without running what the file says."""
    import torch
    from torch import nn

    torch.save(_drawn(nn.GRU(4, 8)), path)


def _drawn(module: nn.Module) -> nn.Module:
    """The module with weights drawn from a seed of its own, whatever else draws in this process."""
    import torch

    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.3, 0.3, generator=generator)
    return module


# What the button says, the file's name, and how it is made.
EXAMPLES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "sunspots": ("sunspots.pt", _shipped("sunspots-lstm")),
    "reviews": ("reviews_zh.pt", _shipped("sentiment-zh-rnn")),
    "bare": ("lstm_state_dict.pt", _save_bare),
    "lightning": ("lightning_gru.ckpt", _save_lightning),
    "torchscript": ("rnn_torchscript.pt", _save_torchscript),
    "pickled": ("whole_module.pt", _save_pickled),
}


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="seqexport-examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def example(name: str) -> Path:
    """The path of an example, by its key in EXAMPLES."""
    file, save = EXAMPLES[name]
    path = _folder() / file
    if not path.exists():
        draft = path.with_suffix(".draft")
        save(draft)
        draft.replace(path)
    return path
