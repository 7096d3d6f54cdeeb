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
        """x [batch,time,features] or tokens [batch,time], and h0 (c0) [layers*directions, batch, hidden], with lags z0,
        zero where not given → y [batch,time,outputs] ([batch,outputs] where the head pools), hn (cn, zn). Time-major
        nets have time before batch in x and y."""
        if self.embedding is not None:
            x = self.embedding(x)
        time_axis = 0 if self.spec.time_major else 1
        state = state or self.zero_state(x.shape[1 - time_axis])
        recent: State = ()
        if self.spec.lags:
            x, recent = _with_lags(x.transpose(0, 1), state[-1], self.spec.lags)
            x, state = x.transpose(0, 1), state[:-1]
        y, final = self.rnn(x, state if self.spec.cell == "lstm" else state[0])
        if self.spec.skip:
            y = torch.cat([y, x], -1)
        y = self.dropout(_pooled(y, self.spec, time_axis))
        if self.head is not None:
            y = self.head(y)
        return y, *(final if self.spec.cell == "lstm" else (final,)), *recent

    def zero_state(self, batch: int) -> State:
        """The state before the first step."""
        weight = next(self.rnn.parameters())
        return tuple(weight.new_zeros(spec.shape({"batch": batch})) for spec in self.spec.state)

    def as_functions(self) -> tuple[Callable[..., tuple[Tensor, State]], Callable[[Tensor], Tensor]]:
        """The network as two functions of tensors, for the body of a loop: the recurrence, on time-major input
        x (T, B, features) or tokens (T, B), state, lengths (B) or None → y (T, B, width), state; and the head, y → its
        outputs at any number of steps."""
        run, embedded = recurrent.as_function(self.rnn), self._embedded()
        head = None if self.head is None else (self.head.weight, self.head.bias)
        lags, skip = self.spec.lags, self.spec.skip

        def read(x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
            x = embedded(x)
            recent: State = ()
            if lags:
                x, recent = _with_lags(x, state[-1], lags)
                state = state[:-1]
            y, final = run(x, state, lengths)
            return torch.cat([y, x], -1) if skip else y, (*final, *recent)

        def answer(y: Tensor) -> Tensor:
            return y if head is None else nn.functional.linear(y, *head)

        return read, answer

    def as_steps(self) -> tuple[Steps, Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, State]]]:
        """The recurrence a step at a time: how a loop carries its state, and the step, x (1, B, features) or tokens
        (1, B), what is carried → y (1, B, width), what is carried on."""
        steps, embedded = Steps(self), self._embedded()
        return steps, lambda x, carried: steps(embedded(x), carried)

    def _embedded(self) -> Callable[[Tensor], Tensor]:
        table = None if self.embedding is None else self.embedding.weight
        return lambda x: x if table is None else nn.functional.embedding(x, table)


class Steps:
    """The network's recurrence a single step at a time: recurrent.Steps, and the values that its lags look back at."""

    def __init__(self, network: Network) -> None:
        self._steps, self._lags, self._skip = recurrent.Steps(network.rnn), network.spec.lags, network.spec.skip

    def apart(self, state: State) -> State:
        """State as the network takes it → what the loop carries."""
        if not self._lags:
            return self._steps.apart(state)
        return (*self._steps.apart(state[:-1]), state[-1])

    def together(self, carried: Sequence[Tensor]) -> State:
        """What the loop carried → state."""
        if not self._lags:
            return self._steps.together(carried)
        return (*self._steps.together(carried[:-1]), carried[-1])

    def __call__(self, x: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, State]:
        """x (1, B, F) and what is carried → y (1, B, width), what is carried on."""
        recent: State = ()
        if self._lags:
            window = torch.cat([carried[-1], x], -1)  # (1, B, longest lag)
            longest = max(self._lags)
            x = torch.cat([x, *(window.narrow(-1, longest - lag, 1) for lag in self._lags)], -1)
            recent, carried = (window[..., 1:].contiguous(),), carried[:-1]
        y, final = self._steps(x, carried)
        return torch.cat([y, x], -1) if self._skip else y, (*final, *recent)


def _with_lags(x: Tensor, recent: Tensor, lags: Sequence[int]) -> tuple[Tensor, State]:
    """x (T, B, 1) and the values before it (1, B, longest lag - 1) → x with a column a lag (T, B, 1 + lags), and the
    values before what follows x."""
    joined = torch.cat([recent.permute(2, 1, 0), x])  # (longest lag - 1 + T, B, 1)
    steps, longest = x.shape[0], max(lags)
    columns = [x, *(joined.narrow(0, longest - lag, steps) for lag in lags)]
    return torch.cat(columns, -1), (joined[steps:].permute(2, 1, 0).contiguous(),)


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
