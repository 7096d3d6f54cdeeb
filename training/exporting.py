"""How long an export takes, its verification included, beside torch.onnx alone: five nets of usual kinds."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import seqexport
from seqexport.specs import TensorSpec, dynamic_dims, parse_input
from seqexport.timing import Job, Measured, take_turns
from training.publish import ROOT


class _Classifies(nn.Module):
    """tokens (B, T) → logits (B, 5): the last hidden states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 64)
        self.rnn = nn.LSTM(64, 128, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(256, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.rnn(self.embedding(tokens))
        return self.head(torch.cat([h[-2], h[-1]], dim=1))


class _Writes(nn.Module):
    """tokens (B, T), h0 and c0 (2, B, 512) → logits (B, T, 80) and the state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 64)
        self.rnn = nn.LSTM(64, 512, 2, batch_first=True)
        self.head = nn.Linear(512, 80)

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(self.embedding(tokens), (h0, c0))
        return self.head(y), h, c


class _Foresees(nn.Module):
    """x (B, T, 8) → (B, T, 1) by an Elman net."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class _Translates(nn.Module):
    """source (B, S), target (B, T) → logits (B, T, 500): a decoder that attends to the encoder's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(500, 48), nn.Embedding(500, 48)
        self.encoder, self.decoder = nn.GRU(48, 96, batch_first=True), nn.GRU(48, 96, batch_first=True)
        self.head = nn.Linear(192, 500)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        read, state = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), state)
        attended = torch.softmax(y @ read.transpose(1, 2), dim=2) @ read
        return self.head(torch.cat([y, attended], dim=2))


class _Continues(nn.Module):
    """The shipped forecaster's network: x (B, T, 1), h0 → y and the state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, ...]:
        return self.network(x, h0)


def nets_to_export(folder: Path) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Name → (module, specs of its inputs): five nets of usual kinds."""
    checkpoint = seqexport.read_checkpoint(folder / "checkpoint.pt")
    state = str(checkpoint.spec.state[0])
    tokens = "int64[batch,time]{{0..{}}}".format
    return {
        "the shipped GRU": (_Continues(checkpoint.network()), {"x": "float32[batch,time,1]", "h0": state}),
        "a BiLSTM 2×128 that classifies": (_Classifies(), {"tokens": tokens(9999)}),
        "an LSTM 2×512 that writes": (
            _Writes(),
            {"tokens": tokens(79), "h0": "float32[2,batch,512]", "c0": "float32[2,batch,512]"},
        ),
        "an RNN 2×64 on every step": (_Foresees(), {"x": "float32[batch,time,8]"}),
        "GRU encoder and decoder with attention": (
            _Translates(),
            {"source": tokens(499), "target": "int64[batch,steps]{0..499}"},
        ),
    }


OURS, BARE = "seqexport.export, with verification", "torch.onnx.export(dynamo=True), none"


def measure_exports(seconds: float) -> dict[str, Measured]:
    """Net → how long seqexport with its verification (the first) and bare torch.onnx took, both warm."""
    nets = nets_to_export(ROOT / "exported" / "sunspots-gru")
    return {name: _measured(module.eval(), inputs, seconds) for name, (module, inputs) in nets.items()}


def _measured(module: nn.Module, inputs: Mapping[str, str], seconds: float) -> Measured:
    specs = [parse_input(name, text) for name, text in inputs.items()]
    flat = [spec for spec in specs if isinstance(spec, TensorSpec)]
    sizes = {dim: 3 + 2 * place for place, dim in enumerate(dynamic_dims(flat))}
    rng, auto = np.random.default_rng(0), torch.export.Dim.AUTO
    arguments = tuple(torch.from_numpy(spec.sample(sizes, rng)) for spec in flat)
    dynamic = {spec.name: {axis: auto for axis, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in flat}

    def bare() -> None:
        # The second export of a recurrent net in one process fails on a stale cache; peers get it cleared.
        for name in ("gru", "lstm"):
            getattr(torch.ops.aten, name).input._dispatch_cache.clear()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=dynamic, verbose=False)
            logging.disable(logging.NOTSET)
        assert program is not None
        program.save(target)

    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "net.onnx"
        jobs = {OURS: Job(lambda _: seqexport.export(module, target, inputs=inputs)), BARE: Job(lambda _: bare())}
        return take_turns(jobs, seconds, (BARE,))
