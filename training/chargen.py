"""Train a generator of characters: a recurrent net that reads a text and gives the probabilities of what comes next.

    python -m training.chargen --cell lstm --data shakespeare --out characters.pt --threads 1 --precision bf16

Fourteen readings of the plays, 107 minutes on a core that had other things to do besides (some 50 on a free one with
AMX, without it three times that), and 2.04 bits a character of the test part, the last tenth of the text, where
interpolated n-grams of up to nine characters, tuned on the validation part, have 2.18. With `--data sanguo` 55
minutes, and 6.33 bits a character against 6.96 of the n-grams. One seed each.

The same seed gives the same weights on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from seqexport.checkpoint import write_checkpoint
from seqexport.errors import InputError
from seqexport.networks import Network
from seqexport.pipelines import Generate
from seqexport.specs import Cell, NetworkSpec
from seqexport.text import Vocabulary
from training import data as datasets
from training import ngrams
from training.command import Options, Preset, run
from training.language import side_by_side
from training.loop import Plan, Training
from training.optimisation import initialise
from training.own_data import add_text_reading, read_text

SAMPLE_SEEDS, SAMPLE_LENGTH, SAMPLE_TEMPERATURE = (0, 1, 2), 300, 0.8
TEMPERATURES = np.arange(80, 151, 2) / 100  # that are tried for the head
LONGEST = 9  # order of the n-grams that are tried; fewer where their numbers would not fit into 64 bits


@dataclass(frozen=True)
class Recipe:
    """Sizes and hyperparameters. The validation part chooses among the weights of a run, and it alone was looked at
    where two recipes were compared.

    What is dropped stays dropped over a whole window, in which one mask falls on every step: a recurrent net would
    learn to look past a new one each step (Gal and Ghahramani 2016). Dropped recurrent weights are those of Merity,
    Keskar and Socher 2018 (AWD-LSTM).
    """

    embedding: int = 64  # of 80 characters: almost a dimension for each
    hidden_size: int = 256  # with two layers 0.9 million parameters, 3.5 MB, and some 13 minutes
    layers: int = 2
    tied: bool = False  # the head's matrix is the embedding's, which then has the hidden size
    window: int = 128  # characters over which the error is carried back; the state goes on to the next window
    batch: int = 32  # streams: as many places of the text are read at the same time
    epochs: float = 5  # the validation part still gets better at the end, along the cosine
    learning_rate: float = 4e-3  # reached after a warm-up of 5 % of the steps, then down to zero along a cosine
    weight_decay: float = 1e-2  # AdamW's own default
    dropout: float = 0.1  # of what the head reads, and between layers; little, where a text is long for the net
    embedded: float = 0.0  # dropout of what the recurrence reads
    unread: float = 0.0  # share of the vocabulary whose embeddings are zero for a step of the training
    recurrent: float = 0.0  # dropout of the weights from state to state
    unknown: float = 0.005  # share of characters that are read, never asked for, as the unknown one, to teach it
    # Share of the characters which the training part has only once that are read and asked for as the unknown one: they
    # are as rare as what a net will meet and does not know, so that it learns how often, and where, that happens.
    rare: float = 0.0
    clip: float = 1.0  # the norm of the gradient: the usual guard of recurrent nets
    looks: int = 10  # at the validation part, evenly over the training; each reads all of it


def recipe(data: str, preset: Preset) -> Recipe:
    """The recipe for a data set. `tutorial` has the small sizes that tutorials use; the rest is the same."""
    plan = Recipe()
    if data == "shakespeare":
        # 1.9 million parameters, 7.5 MB, which a text of four million characters read fourteen times can fill: the
        # validation part gets better up to the end. The wider net learns at a lower rate and with more dropout.
        plan = replace(plan, hidden_size=384, epochs=14, learning_rate=3e-3, dropout=0.2, looks=28)
    if data == "sanguo":
        # A tenth of the text and fifty times the characters: nearly all parameters are a character's row, so one
        # matrix of them serves twice, and everything is dropped. 8.5 MB.
        plan = replace(plan, embedding=328, hidden_size=328, layers=1, tied=True, window=64, epochs=40, dropout=0.5)
        plan = replace(plan, embedded=0.25, unread=0.1, recurrent=0.3, rare=0.5, looks=20)
    if preset == "tutorial":
        return replace(plan, embedding=64, hidden_size=128, layers=2, tied=False, epochs=5, looks=10)
    return plan


def network_spec(plan: Recipe, cell: Cell, vocabulary: int) -> NetworkSpec:
    """The network of a recipe, over so many characters."""
    return NetworkSpec(
        cell,
        plan.embedding,
        plan.hidden_size,
        plan.layers,
        vocabulary=vocabulary,
        outputs=vocabulary,
        pooling="every",
    )


class NextCharacter(nn.Module):
    """The loss: how unlikely the network finds the characters that follow, with all that a recipe drops dropped."""

    def __init__(self, network: Network, plan: Recipe) -> None:
        super().__init__()
        self.network, self.plan = network, plan

    def forward(self, read: Tensor, following: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Tokens read (B, T) and those that follow them (B, T), and the state, none at first → nats a token, state."""
        network, plan = self.network, self.plan
        assert network.embedding is not None and network.head is not None
        state = state or network.zero_state(len(read))
        table = network.embedding.weight * _mask(network.embedding.weight, (-1, 1), plan.unread)
        x = nn.functional.embedding(read, table)
        x = x * _mask(x, (-1, 1, x.shape[2]), plan.embedded)  # (B, T, E)
        weights = {
            name: weight * _mask(weight, weight.shape, plan.recurrent)
            for name, weight in network.rnn.named_parameters()
            if name.startswith("weight_hh")
        }
        lstm = network.spec.cell == "lstm"
        y, after = functional_call(network.rnn, weights, (x, state if lstm else state[0]))
        y = network.head(y * _mask(y, (-1, 1, y.shape[2]), plan.dropout))  # (B, T, V)
        loss = nn.functional.cross_entropy(y.flatten(0, 1), following.flatten())
        return loss, *(after if lstm else (after,))


def _mask(of: Tensor, shape: Sequence[int], share: float) -> Tensor | float:
    """A factor of this shape (-1: as the tensor's own first dim) that is 0 for a share of the places and makes up for
    them at the others; 1 where nothing is dropped."""
    if not share:
        return 1.0
    kept = torch.rand([of.shape[0] if dim == -1 else dim for dim in shape], device=of.device) >= share
    return kept.to(of.dtype) / (1 - share)


def train(options: Options, plan: Recipe | None = None, beside: bool = True) -> dict[str, Any]:
    """Train, score on the test part beside the baselines, write the checkpoint, and return the metrics.

    plan: instead of the data set's recipe. beside: whether the baselines are computed, which takes a while.
    Sets torch's number of threads. Raises SeqExportError where the data can't be had, the loss is not finite, or the
    checkpoint can't be written; an older one is then untouched.
    """
    text = datasets.load_text(options.data) if options.data else read_text(Path(str(options.file)), **options.reading)
    plan = plan or recipe(text.name, options.preset)
    torch.manual_seed(options.seed)
    vocabulary = Vocabulary.counted([text.parts["train"]], "character", lowercase=False)
    tokens = {part: np.array(vocabulary.encode(content), np.int64) for part, content in text.parts.items()}
    size = len(vocabulary)
    spec = network_spec(plan, options.cell, size)
    network = Network(spec, plan.dropout)
    initialise(network)
    if plan.tied:
        tie(network)
    streams = side_by_side(tokens["train"], plan.batch)  # (B, length of a stream)
    windows = (streams.shape[1] - 1) // plan.window  # of one reading of the training part
    if windows < 1 or min(map(len, tokens.values())) < 2:
        raise InputError(f"The text {text.name!r} is too short for {plan.batch} streams of {plan.window} characters.")
    total = options.steps or math.ceil(plan.epochs * windows)
    training = Training(
        NextCharacter(network, plan),
        Plan(total, plan.learning_rate, plan.weight_decay, plan.clip, max(1, total // plan.looks), "bits"),
        options,
        {**asdict(plan), "sha256": text.sha256},
        f"{options.cell} on {text.name}",
    )
    own = training.share(plan.batch)
    spare = streams.shape[1] - windows * plan.window
    once = torch.from_numpy(np.bincount(tokens["train"], minlength=size) == 1)
    for step in training:
        reading, place = divmod(step - 1, windows)
        if place == 0:
            training.carried = ()
        # Each reading starts elsewhere, so that windows are never cut at the same places.
        start = np.random.default_rng([options.seed, 0, reading]).integers(0, spare) + place * plan.window
        window = streams[:, start : start + plan.window + 1]  # (B, T+1)
        if plan.rare:
            window = window.masked_fill(
                once[window] & torch.from_numpy(training.rng.random(window.shape) < plan.rare), 0
            )
        unknown = torch.from_numpy(training.rng.random((plan.batch, plan.window)) < plan.unknown)
        read = window[:, :-1].masked_fill(unknown, 0)[own].to(training.device)
        loss, *after = training.objective(read, window[own, 1:].to(training.device), *training.carried)
        training.carried = tuple(part.detach() for part in after)
        training.descend(loss)
        if training.looks:
            training.judge(lambda: bits_per_character(network, tokens["validation"]))
    training.finish()
    if not training.main:
        return {}

    metrics = {
        "metric": "bits per character",
        "temperature": calibrate(network, tokens["validation"]),
        "test": {
            "bits": bits_per_character(network, tokens["test"]),
            "characters": len(tokens["test"]),
            "unknown": int((tokens["test"] == 0).sum()),
        },
        **(baselines(tokens, size) if beside else {}),
        "samples": samples(network, vocabulary),
        **training.metrics,
    }
    write_checkpoint(
        options.out,
        network,
        task="generate",
        preprocessing={"vocabulary": vocabulary.to_dict(), "window": plan.window},
        metrics=metrics,
        data={
            "name": text.name,
            "source": text.source,
            "licence": text.licence,
            "characters": len(text.text),
            "split": {part: len(content) for part, content in text.parts.items()},
            "sha256": text.sha256,
            "language": text.language,
        },
    )
    training.close()
    return metrics


def tie(network: Network) -> None:
    """One matrix for reading a character and for asking for it, which halves what few data have to teach (Press and
    Wolf 2017). It starts as small as a head does."""
    assert network.embedding is not None and network.head is not None
    network.embedding.weight = network.head.weight


@torch.no_grad()
def calibrate(network: Network, tokens: np.ndarray) -> float:
    """Divide the head by the temperature of TEMPERATURES at which these tokens [length] are likeliest (Guo et al. 2017,
    "On Calibration of Modern Neural Networks"), and return it: a net that has read one text often is too sure of
    another. A head that is the embedding's matrix stays that: the weights that read the embedding make up for it."""
    assert network.embedding is not None and network.head is not None
    temperature = float(TEMPERATURES[bits_at(network, tokens, TEMPERATURES).argmin()])
    if network.head.weight is network.embedding.weight:
        for name, weight in network.rnn.named_parameters():
            if name.startswith("weight_ih_l0"):
                weight.mul_(temperature)
    for parameter in network.head.parameters():
        parameter.div_(temperature)
    return temperature


def bits_per_character(network: Network, tokens: np.ndarray, count: int = 16, window: int = 256) -> float:
    """Mean of -log2 of the probability of each token but the first of each stream, given all before it in its stream.

    The part is read as `count` streams side by side, their state carried from end to end, by a network in evaluation
    mode.
    """
    return float(bits_at(network, tokens, np.ones(1), count, window)[0])


@torch.no_grad()
def bits_at(
    network: Network, tokens: np.ndarray, temperatures: np.ndarray, count: int = 16, window: int = 256
) -> np.ndarray:
    """bits_per_character at each of the temperatures [count of them] that the logits are divided by, in one reading."""
    device = next(network.parameters()).device
    streams = side_by_side(tokens, min(count, max(1, len(tokens) // 64))).to(device)
    state: list[Tensor] = []
    nats, asked = np.zeros(len(temperatures)), 0
    for start in range(0, streams.shape[1] - 1, window):
        piece = streams[:, start : start + window + 1]
        y, *state = network(piece[:, :-1], *state)  # (B, T, V)
        following = piece[:, 1:].flatten()
        for place, temperature in enumerate(temperatures):
            logits = y.flatten(0, 1) / float(temperature)
            nats[place] += nn.functional.cross_entropy(logits, following, reduction="sum").item()
        asked += len(following)
    return nats / asked / math.log(2)


def samples(network: Network, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the network writes with the first seeds, none of them picked, after the commonest token: {temperature,
    texts: {seed: text}}."""
    shape = (len(SAMPLE_SEEDS), 1)
    uniforms = [np.random.default_rng(seed).random(SAMPLE_LENGTH, np.float32) for seed in SAMPLE_SEEDS]
    with torch.no_grad():
        tokens, *_ = Generate(network)(
            torch.ones(shape, dtype=torch.int64),
            torch.from_numpy(np.stack(uniforms)),
            torch.tensor(SAMPLE_TEMPERATURE),
            torch.tensor(0),
            torch.tensor(1.0),
        )
    texts = {str(seed): vocabulary.decode(row) for seed, row in zip(SAMPLE_SEEDS, tokens.tolist(), strict=True)}
    return {"temperature": SAMPLE_TEMPERATURE, "texts": texts}


def baselines(tokens: dict[str, np.ndarray], size: int) -> dict[str, Any]:
    """Bits a character of the test part of what needs no recurrent net: single characters' frequencies, and
    interpolated n-grams whose order and trust are tuned on the validation part."""
    counts, setting = ngrams.tuned(tokens["train"], tokens["validation"], size, LONGEST)
    order = int(setting["order"])
    return {
        "baselines": {
            f"interpolated n-grams (order {order})": counts.bits(tokens["test"], order, setting["trust"]),
            "frequencies of the characters": counts.bits(tokens["test"], 1, ngrams.TRUSTS[0]),
        },
        "ngrams": setting,
    }


def table(metrics: dict[str, Any], cell: str) -> str:
    """The net and the baselines by their bits per character of the test part, the best first."""
    test = metrics["test"]
    rows = {f"{cell} (this model)": test["bits"], **metrics["baselines"]}
    width = max(map(len, rows))
    lines = [
        f"Bits per character over {test['characters']:,} characters of the test part, {test['unknown']:,} unknown:"
    ]
    lines += [f"  {name:<{width}}  {bits:8.3f}" for name, bits in sorted(rows.items(), key=lambda row: row[1])]
    lines.append(
        f"{metrics['parameters']:,} parameters, {metrics['seconds']:.0f} s, best weights at step {metrics['steps']} "
        f"(validation {metrics['validation']['bits']:.3f})."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(
        train,
        table,
        arguments,
        name="chargen",
        model="a generator of characters",
        sets=datasets.TEXTS,
        example="--cell lstm --data shakespeare --out characters.pt",
        add_reading=add_text_reading,
    )


if __name__ == "__main__":
    sys.exit(main())
