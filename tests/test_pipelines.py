import numpy as np
import pytest
import torch
from conftest import forecaster

from seqexport import SpecError, UnsupportedError
from seqexport.networks import Network
from seqexport.pipelines import Forecast, Scaling, distribution
from seqexport.specs import CELLS, NetworkSpec


@pytest.mark.parametrize("transform", ["none", "root"])
def test_scaling_is_fitted_applied_and_undone(transform):
    values = torch.rand(500, dtype=torch.float64) * 90 + 3
    scaling = Scaling.fitted(values, transform)
    z = scaling.apply(values)
    assert abs(float(z.mean())) < 1e-12
    assert abs(float(z.std(correction=0)) - 1) < 1e-12
    torch.testing.assert_close(scaling.undo(z), values)
    assert Scaling.from_dict(scaling.to_dict()) == scaling


def test_root_takes_values_below_zero_as_zero_and_gives_none():
    scaling = Scaling("root", 2.0, 1.0)
    assert torch.equal(scaling.apply(torch.tensor([-4.0, 0.0])), torch.tensor([-2.0, -2.0]))
    assert float(scaling.undo(torch.tensor(-9.0))) == 0.0


@pytest.mark.parametrize("fields", [("log", 0, 1), ("none", 0, 0), ("none", float("nan"), 1), ("none", 0, -1)])
def test_a_scaling_that_makes_no_sense_is_refused(fields):
    with pytest.raises(SpecError, match="scaling"):
        Scaling(*fields)


def roll_out(network, scaling, history, noise):
    """One path by the book: the module is called on all values so far, again for every step."""
    values = scaling.apply(history)
    for step in range(noise.shape[0]):
        y, *_ = network(values[None, :, None])
        mean, spread = distribution(y[0, -1])
        values = torch.cat([values, (mean + spread * noise[step])[None]])
    return scaling.undo(values[len(history) :])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_every_path_is_what_rereading_the_whole_series_at_each_step_gives(cell, layers):
    network, scaling = forecaster(cell, layers), Scaling("root", 6.0, 3.0)
    history, noise = torch.rand(3, 20) * 90, torch.randn(3, 4, 7)
    path, *_ = Forecast(network, scaling)(history, noise)
    assert path.shape == (3, 4, 7)
    for row in range(3):
        for which in range(4):
            expected = roll_out(network, scaling, history[row], noise[row, which])
            torch.testing.assert_close(path[row, which], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_history_in_chunks_with_carried_state_gives_the_same_path(cell):
    pipeline = Forecast(forecaster(cell), Scaling("none", 5.0, 2.0))
    history, noise = torch.randn(2, 30), torch.randn(2, 3, 5)
    whole, *after = pipeline(history, noise)
    _, *state = pipeline(history[:, :11], noise)
    _, *state = pipeline(history[:, 11:12], noise, *state)
    path, *carried = pipeline(history[:, 12:], noise, *state)
    torch.testing.assert_close(path, whole)
    for a, b in zip(after, carried, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_zero_noise_is_the_central_path_and_noise_spreads_around_it():
    pipeline = Forecast(forecaster(), Scaling())
    history = torch.randn(1, 40)
    central, *_ = pipeline(history, torch.zeros(1, 1, 1))
    fan, *_ = pipeline(history, torch.randn(1, 4000, 1))
    y, *_ = pipeline.network(history[..., None])
    mean, spread = distribution(y[0, -1])
    assert np.isclose(float(central), float(mean), atol=1e-6)
    assert np.isclose(float(fan.mean()), float(mean), atol=4 * float(spread) / np.sqrt(4000))
    assert np.isclose(float(fan.std()), float(spread), rtol=0.05)


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"outputs": 1}, {"features": 2}, {"pooling": "last"}])
def test_a_network_that_cannot_roll_on_is_refused(change):
    fields = {"cell": "gru", "features": 1, "hidden_size": 4, "outputs": 2} | change
    with pytest.raises(UnsupportedError, match="one-directional net from 1 number to 2"):
        Forecast(Network(NetworkSpec(**fields)), Scaling())
