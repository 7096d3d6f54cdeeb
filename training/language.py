"""Teach a net the language of its texts before it learns what they are labelled with: it guesses each next token.

What a classifier needs to know of words and their order is then learnt from every token of the training part and not
only from its labels (Dai and Le 2015, "Semi-supervised sequence learning").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqexport.networks import Network
from training.command import Options
from training.loop import Plan, Training
from training.optimisation import initialise

JUDGED = 60_000  # tokens of the validation part at a look: each is compared with the whole vocabulary


@dataclass(frozen=True)
class Recipe:
    """How the language is taught. `streams` places of the texts are read at the same time, `window` tokens a step."""

    epochs: float
    streams: int = 64
    window: int = 80  # tokens over which the error is carried back; the state goes on to the next window
    drawn: int = 1024  # wrong tokens that the right one is held against; twice as many take almost twice the time
    learning_rate: float = 2e-3  # up within 5 % of the steps, down along a cosine
    weight_decay: float = 1e-2  # AdamW's own default
    dropout: float = 0.2  # of what is read and of what the guess is made from
    clip: float = 1.0  # the norm of the gradient: the usual guard of recurrent nets
    looks: int = 10  # at the validation part, evenly over the training


class NextToken(nn.Module):
    """The loss: how unlikely the network finds the token that follows, among some that were drawn by how often they
    come (sampled softmax: Bengio and Senécal 2008, Jean et al. 2015). One matrix reads a token and asks for it."""

    def __init__(self, network: Network, counts: np.ndarray) -> None:
        """network: embedding and recurrence, without a head. counts: how often each token comes, [V]."""
        super().__init__()
        self.network = network
        shares = (counts + 1.0) / (counts + 1.0).sum()
        self.project = nn.Linear(network.spec.width, network.spec.features)
        self.bias = nn.Parameter(torch.tensor(np.log(shares), dtype=torch.float32))
        drawn = shares**0.75 / (shares**0.75).sum()  # flatter than they come, so that rare ones are asked for too
        self.probabilities = drawn
        self.log_probabilities: Tensor
        self.register_buffer("log_probabilities", torch.tensor(np.log(drawn), dtype=torch.float32), persistent=False)

    def forward(self, read: Tensor, following: Tensor, drawn: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Tokens read (B, T), those that follow (B, T), wrong ones (N), and the state, none at first → nats a token
        against the drawn ones, state."""
        y, *after = self.network(read, *state)  # (B, T, width)
        guess, asked = self.project(y).flatten(0, 1), following.flatten()
        table, bias = self._table, self.bias - self.log_probabilities - math.log(len(drawn))
        right = (guess * table[asked]).sum(-1) + bias[asked]  # (B*T)
        wrong = (guess @ table[drawn].T + bias[drawn]).masked_fill(asked[:, None] == drawn, -torch.inf)
        return (torch.logaddexp(right, wrong.float().logsumexp(1)) - right).mean(), *after

    @torch.no_grad()
    def nats(self, streams: Tensor, window: int = 100) -> float:
        """Mean of -ln of the probability, in the whole vocabulary, of each token of the streams (S, T) but
        the first."""
        state: list[Tensor] = []
        nats, asked = 0.0, 0
        for start in range(0, streams.shape[1] - 1, window):
            piece = streams[:, start : start + window + 1]
            y, *state = self.network(piece[:, :-1], *state)
            scores = nn.functional.linear(self.project(y), self._table, self.bias).flatten(0, 1)
            nats += nn.functional.cross_entropy(scores, piece[:, 1:].flatten(), reduction="sum").item()
            asked += piece[:, 1:].numel()
        return nats / asked

    @property
    def _table(self) -> Tensor:
        assert self.network.embedding is not None
        return self.network.embedding.weight


def side_by_side(tokens: np.ndarray, count: int) -> Tensor:
    """The tokens [length] cut into `count` streams of one length (count, length // count); the rest is left out."""
    length = len(tokens) // count
    return torch.from_numpy(tokens[: count * length]).reshape(count, length)


def pretrain(
    network: Network,
    rows: Mapping[str, Sequence[Sequence[int]]],
    plan: Recipe,
    options: Options,
    identity: Mapping[str, Any],
    label: str,
) -> tuple[dict[str, Any], Path]:
    """Teach the network's embedding and recurrence the language of rows["train"], texts as tokens.

    Gives the metrics of this training, and the file that keeps it beside options.out: while that is there, a second
    call takes the weights from it. Whoever has written the checkpoint deletes it.
    """
    out = options.out.with_name(f"{options.out.name}.language")
    bare = replace(network.spec, outputs=None, pooling="every", skip=False)
    texts = [np.array(row, np.int64) for row in rows["train"]]
    counts = np.bincount(np.concatenate(texts), minlength=network.spec.vocabulary or 0)
    reader = Network(bare, plan.dropout)
    initialise(reader)
    assert reader.embedding is not None and network.embedding is not None
    nn.init.normal_(reader.embedding.weight, std=0.1)  # as small as a head, which it is too
    reader.embedding.register_forward_hook(
        lambda module, _, read: nn.functional.dropout(read, plan.dropout, module.training)
    )
    streams = min(plan.streams, max(1, int(counts.sum()) // (2 * plan.window)))
    windows = max(1, (int(counts.sum()) // streams - 1) // plan.window)
    total = options.steps or math.ceil(plan.epochs * windows)
    objective = NextToken(reader, counts)
    training = Training(
        objective,
        Plan(total, plan.learning_rate, plan.weight_decay, plan.clip, max(1, total // plan.looks), "nats"),
        replace(options, out=out),
        {**asdict(plan), **identity},
        f"{label}, its language",
    )
    known = np.concatenate([np.array(row, np.int64) for row in rows["validation"]])[:JUDGED]
    judged = side_by_side(known, min(16, max(1, len(known) // 64)))
    own = training.share(streams)
    texts_in_order, epoch = torch.empty(0), -1
    for step in training:
        reading, place = divmod(step - 1, windows)
        if place == 0:
            training.carried = ()
        if reading != epoch:  # each reading has the texts in another order
            epoch = reading
            order = np.random.default_rng([options.seed, 0, reading]).permutation(len(texts))
            texts_in_order = side_by_side(np.concatenate([texts[index] for index in order]), streams)
        window = texts_in_order[own, place * plan.window : (place + 1) * plan.window + 1].to(training.device)
        drawn = training.rng.choice(len(counts), plan.drawn, p=objective.probabilities)
        loss, *after = training.objective(
            window[:, :-1], window[:, 1:], torch.from_numpy(drawn).to(training.device), *training.carried
        )
        training.carried = tuple(part.detach() for part in after)
        training.descend(loss)
        if training.looks:
            training.judge(lambda: objective.nats(judged.to(training.device)))
    training.finish()
    network.embedding.load_state_dict(reader.embedding.state_dict())
    network.rnn.load_state_dict(reader.rnn.state_dict())
    return training.metrics, training.stopped_file
