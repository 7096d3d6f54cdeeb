"""Learning a text's language before its labels: the loss is the cross entropy, and what it learns is handed on."""

import math

import numpy as np
import pytest
import torch

from seqexport.networks import Network
from seqexport.specs import NetworkSpec
from training import language
from training.command import Options


def reader(vocabulary=12, features=6):
    torch.manual_seed(0)
    return Network(NetworkSpec("gru", features, 10, vocabulary=vocabulary)).eval()


def test_the_loss_against_every_token_drawn_alike_is_the_cross_entropy():
    objective = language.NextToken(reader(), np.full(12, 7))
    with torch.no_grad():
        objective.bias += torch.randn(12)
    read, following = torch.randint(0, 12, (3, 5)), torch.randint(0, 12, (3, 5))
    # Each token drawn as often as the others, once: together they stand for the whole vocabulary, but for the right
    # one, whose own draw is left out; as many draws of it more make up for that only in the mean.
    loss, *_ = objective(read, following, torch.arange(12))
    y, *_ = objective.network(read)
    scores = torch.nn.functional.linear(objective.project(y), objective.network.embedding.weight, objective.bias)
    scores = scores.flatten(0, 1)
    right = scores.gather(1, following.flatten()[:, None])
    others = scores.masked_fill(torch.arange(12) == following.flatten()[:, None], -math.inf).logsumexp(1, keepdim=True)
    correction = math.log(12) - math.log(12)  # uniform: ln q + ln N is zero for every token
    expected = (torch.logaddexp(right, others + correction) - right).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(scores, following.flatten()).item(), rel=1e-5)


def test_the_figure_of_a_look_is_the_mean_over_all_but_the_first_token():
    objective = language.NextToken(reader(), np.arange(12))
    streams = torch.randint(0, 12, (2, 23))
    y, *_ = objective.network(streams[:, :-1])
    scores = torch.nn.functional.linear(objective.project(y), objective.network.embedding.weight, objective.bias)
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), streams[:, 1:].flatten()).item()
    assert objective.nats(streams, window=5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_it_learns_what_follows_what_and_hands_it_on(tmp_path, skip):
    network = Network(NetworkSpec("lstm", 8, 16, vocabulary=6, outputs=2, pooling="max", skip=skip))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rows = {"train": [[1, 2, 3, 4, 5] * 20] * 10, "validation": [[1, 2, 3, 4, 5] * 20]}
    plan = language.Recipe(epochs=20, streams=4, window=10, drawn=5, dropout=0.0, learning_rate=2e-2)
    options = Options(cell="lstm", data="opinions", out=tmp_path / "net.pt", threads=1)
    metrics, kept = language.pretrain(network, rows, plan, options, {}, "test")
    assert metrics["validation"]["nats"] < 0.2 < math.log(5)
    assert kept == tmp_path / "net.pt.language.stopped" and kept.exists()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) is name.startswith("head"), name
    again = Network(network.spec)
    language.pretrain(again, rows, plan, options, {}, "test")  # taken from the file: the same weights
    assert torch.equal(again.embedding.weight, network.embedding.weight)
