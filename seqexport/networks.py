"""The recognised network as a torch module: [embedding] → RNN, LSTM or GRU → [linear head]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seqexport import recurrent
from seqexport.recurrent import State
from seqexport.specs import NetworkSpec


class Network(nn.Module):
    """Built from its description; the parameters are called `embedding.*`, `rnn.*` and `head.*`.

    `dropout`, used in training only, falls on what the head reads and between layers.
    """

    def __init__(self, spec: NetworkSpec, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocabulary, spec.features) if spec.vocabulary else None
        self.rnn = _recurrence(spec, dropout if spec.layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(spec.width, spec.outputs, bias=spec.head_bias) if spec.outputs else None

    def forward(self, x: Tensor, *state: Tensor) -> State:
        """x [batch,time,features] or tokens [batch,time], and h0 (c0) [layers*directions, batch, hidden], zero where
        not given → y [batch,time,outputs] ([batch,outputs] where the head pools), hn (cn). Time-major nets have time
        before batch in x and y."""
        if self.embedding is not None:
            x = self.embedding(x)
        time_axis = 0 if self.spec.time_major else 1
        state = state or self.zero_state(x.shape[1 - time_axis])
        y, final = self.rnn(x, state if self.spec.cell == "lstm" else state[0])
        y = self.dropout(_pooled(y, self.spec, time_axis))
        if self.head is not None:
            y = self.head(y)
        return y, *(final if self.spec.cell == "lstm" else (final,))

    def zero_state(self, batch: int) -> State:
        """The state before the first step."""
        weight = next(self.rnn.parameters())
        return tuple(weight.new_zeros(spec.shape({"batch": batch})) for spec in self.spec.state)

    def as_functions(self) -> tuple[Callable[..., tuple[Tensor, State]], Callable[[Tensor], Tensor]]:
        """The network as two functions of tensors, for the body of a loop: the recurrence, on time-major input
        x (T, B, features) or tokens (T, B), state, lengths (B) or None → y (T, B, D*H), state; and the head, y → its
        outputs at any number of steps."""
        run, embedded = recurrent.as_function(self.rnn), self._embedded()
        head = None if self.head is None else (self.head.weight, self.head.bias)

        def read(x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
            return run(embedded(x), state, lengths)

        def answer(y: Tensor) -> Tensor:
            return y if head is None else nn.functional.linear(y, *head)

        return read, answer

    def as_steps(self) -> tuple[recurrent.Steps, Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, State]]]:
        """The recurrence a step at a time: how a loop carries its state, and the step, x (1, B, features) or tokens
        (1, B), what is carried → y (1, B, H), what is carried on."""
        steps, embedded = recurrent.Steps(self.rnn), self._embedded()
        return steps, lambda x, carried: steps(embedded(x), carried)

    def _embedded(self) -> Callable[[Tensor], Tensor]:
        table = None if self.embedding is None else self.embedding.weight
        return lambda x: x if table is None else nn.functional.embedding(x, table)


def _recurrence(spec: NetworkSpec, dropout: float) -> nn.RNNBase:
    options = {
        "num_layers": spec.layers,
        "bias": spec.bias,
        "batch_first": not spec.time_major,
        "bidirectional": spec.bidirectional,
        "dropout": dropout,
    }
    if spec.projection:
        options["proj_size"] = spec.projection
    if spec.cell == "rnn":
        return nn.RNN(spec.features, spec.hidden_size, nonlinearity=spec.nonlinearity, **options)
    return (nn.LSTM if spec.cell == "lstm" else nn.GRU)(spec.features, spec.hidden_size, **options)


def _pooled(y: Tensor, spec: NetworkSpec, time_axis: int) -> Tensor:
    """What the head reads of the recurrence's output y."""
    if spec.pooling == "every":
        return y
    if spec.pooling == "last":
        return y.select(time_axis, -1)
    return y.mean(time_axis) if spec.pooling == "mean" else torch.amax(y, time_axis)
