"""How every training starts and slows down: the first weights, and the learning rate."""

from __future__ import annotations

import math

from torch import nn

from seqexport.networks import Network


def initialise(network: Network) -> None:
    """What each cell needs to remember for longer than a few steps from the start."""
    hidden = network.spec.hidden_size
    for layer in range(network.spec.layers):
        if network.spec.cell == "lstm":  # an open forget gate: the second quarter of the rows, in torch's order
            getattr(network.rnn, f"bias_ih_l{layer}").data[hidden : 2 * hidden] = 1.0
        elif network.spec.cell == "rnn":  # an orthogonal matrix neither shrinks nor blows up the state
            nn.init.orthogonal_(getattr(network.rnn, f"weight_hh_l{layer}"))


def learning_rate_factor(step: int, total: int) -> float:
    """Up from 0 to 1 within the first twentieth of the steps, then down to 0 along a cosine."""
    warm_up = max(1, total // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))
