"""The training of forecasters: series and parts, baselines, a small training of each cell, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from seqexport.checkpoint import read_checkpoint
from seqexport.errors import SeqExportError, SpecError
from seqexport.pipelines import Forecast
from seqexport.specs import CELLS
from training import baselines, data, forecasting
from training.command import Options
from training.data import Series
from training.optimisation import learning_rate_factor

pytestmark = pytest.mark.usefixtures("baselines_once")


def series_of(values: np.ndarray, **changes: object) -> Series:
    return dataclasses.replace(data.sine(), values=values.astype(float), **changes)


def trained(path: Path, **options: object) -> dict:
    options = {"cell": "gru", "preset": "tutorial", "steps": 3, "threads": 1, **options}
    return forecasting.train(Options(data="sine", out=path, **options))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "seqexport"


# --- data


def test_parts_are_in_order_and_cover_the_series():
    for length in (1000, 3126, 101):
        series = series_of(np.arange(length))
        train, validation, test = series.parts.values()
        assert [*train, *validation, *test] == list(range(length))
        assert abs(len(train) - 0.7 * length) < 1 and abs(len(test) - 0.2 * length) <= 1


def test_origins_keep_every_value_to_forecast_within_the_part():
    series = series_of(np.arange(1000))
    for part, positions in series.parts.items():
        origins = series.origins(part)
        assert origins[0] == positions[0]
        assert origins[-1] + series.horizon - 1 == positions[-1]


def test_labels_are_months_where_the_series_has_a_start():
    series = series_of(np.arange(14), start="1749-01", step="month")
    assert str(series.labels[0]) == "1749-01"
    assert str(series.labels[13]) == "1750-02"
    assert series_of(np.arange(3)).labels.tolist() == [0, 1, 2]


def test_a_series_with_a_hole_is_refused():
    with pytest.raises(SeqExportError, match="'sine' is not one row of finite numbers"):
        series_of(np.array([1.0, np.nan]))


def test_the_sine_is_the_same_every_time():
    assert np.array_equal(data.sine().values, data.sine().values)
    assert data.sine().sha256 == hashlib.sha256(data.sine().values.tobytes()).hexdigest()


def test_an_unknown_data_set_is_refused():
    with pytest.raises(
        SpecError, match="There is no data set 'moon'; expected sunspots or electricity or uk-demand or sine"
    ):
        data.load("moon")


# --- what is fitted, and the baselines


def test_scaling_is_fitted_on_the_training_part_only():
    series = data.sine()
    changed = series.values.copy()
    changed[series.parts["train"].stop :] += 1000
    assert forecasting.fit_scaling(series_of(changed)) == forecasting.fit_scaling(series)
    changed[series.parts["train"].stop - 1] += 1000
    assert forecasting.fit_scaling(series_of(changed)) != forecasting.fit_scaling(series)


def test_training_does_not_see_the_test_part(tmp_path, monkeypatch):
    series = data.sine()
    weights = []
    for shift in (0, 1000):
        values = series.values.copy()
        values[series.parts["test"].start :] += shift
        monkeypatch.setitem(data.SERIES, "sine", lambda values=values: series_of(values))
        trained(tmp_path / "net.pt")
        weights.append(read_checkpoint(tmp_path / "net.pt").weights)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_seasonal_naive_equals_a_hand_computation():
    # 20 values, the last 4 are the test part; horizon 3, so origins 16 and 17; season 2.
    values = np.array([*range(12), 5, 7, 1, 4, 2, 8, 3, 6])
    series = series_of(values, season=2, horizon=3)
    path = baselines.seasonal_naive(series, "test")
    assert path.tolist() == [[1, 4, 1], [4, 2, 4]]  # never a value from the origin on
    # truths 2 8 3 and 8 3 6: errors 1 4 2 and 4 1 2
    assert baselines.baseline_error(series, "test", path) == pytest.approx(14 / 6)
    assert baselines.last_value(series, "test").tolist() == [[4, 4, 4], [2, 2, 2]]


def test_ridge_finds_a_linear_rule():
    noise = np.random.default_rng(1).standard_normal(600) * 1e-3
    series = series_of(5 + np.sin(np.arange(600) * 0.3) + noise)
    path, tuned = baselines.tuned_ridge(series)
    assert baselines.baseline_error(series, "test", path("test")) < 5e-3
    assert path("validation").shape == (len(series.origins("validation")), series.horizon)
    assert set(tuned) == {"window", "penalty", "transform"}


def test_central_error_and_coverage_of_a_net_that_always_says_the_same(tmp_path):
    trained(tmp_path / "net.pt", steps=1)
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    network = checkpoint.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.head.bias[1] = math.log(math.e - 1)  # softplus of it is 1: standard normal noise, in scaled units
    values = np.random.default_rng(2).normal(10, 3, 2000)
    series = series_of(values)
    forecast = Forecast(network, forecasting.fit_scaling(series))
    tensor = torch.from_numpy(series.values).float()
    errors = forecasting.central_error(forecast, tensor, series, "test", 5)
    mean = series.values[: series.parts["train"].stop].mean()
    truth = series.values[series.origins("test")[:, None] + np.arange(series.horizon)]
    assert errors["mae"] == pytest.approx(np.abs(truth - mean).mean(), rel=1e-5)
    assert errors["rmse"] == pytest.approx(np.sqrt(np.square(truth - mean).mean()), rel=1e-5)
    found = forecasting.spread_of_paths(forecast, tensor, series, "test", 5, seed=0)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.06)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.04)
    spread = series.values[: series.parts["train"].stop].std()
    away = (truth[::5] - mean) / spread  # the CRPS of a normal distribution (Gneiting and Raftery 2007, equation 21)
    density, below = norm.pdf(away), norm.cdf(away)
    expected = spread * (away * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)).mean()
    assert found["crps"] == pytest.approx(expected, rel=0.02)


# --- training


@pytest.mark.parametrize("cell", CELLS)
def test_metrics_stand_beside_baselines_and_in_the_checkpoint(cell, tmp_path):
    metrics = trained(tmp_path / "net.pt", cell=cell)
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["metric"] == "MAE" and metrics["horizon"] == 12
    names = ["seasonal naive (24)", "last value", "ridge", "linear, absolute error", "AutoETS"]
    assert list(metrics["baselines"]) == list(metrics["baselines_crps"]) == names
    assert set(metrics["test"]) == {"mae", "rmse", "coverage_50", "coverage_90", "crps", "origins"}
    assert metrics["test"]["origins"] == 200 - 12 + 1
    assert all(math.isfinite(value) for value in (*metrics["test"].values(), *metrics["baselines"].values()))
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    assert checkpoint.metrics == metrics
    assert (checkpoint.spec.cell, checkpoint.spec.hidden_size) == (cell, 32)
    assert checkpoint.spec.layers == (2 if cell == "gru" else 1)
    assert checkpoint.preprocessing["context"] == 20
    assert checkpoint.data["split"] == {"train": 700, "validation": 100, "test": 200}
    series = data.sine()
    values = torch.from_numpy(series.values).float()
    again = forecasting.central_error(checkpoint.pipeline("forecast"), values, series, "test", 20)
    assert again["mae"] == pytest.approx(metrics["test"]["mae"], rel=1e-5)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(tmp_path / f"{name}.pt", seed=seed)
    a, b, c = (read_checkpoint(tmp_path / f"{name}.pt").weights for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["rnn.weight_hh_l0"], c["rnn.weight_hh_l0"])


def test_some_steps_beat_the_last_value_on_the_sine(tmp_path):
    metrics = trained(tmp_path / "net.pt", cell="lstm", steps=100)
    assert metrics["test"]["mae"] < metrics["baselines"]["last value"] / 2


def test_the_cap_on_minutes_stops_the_training(tmp_path):
    metrics = trained(tmp_path / "net.pt", steps=None, minutes=1e-6)
    assert metrics["steps"] == 1


def test_the_learning_rate_warms_up_and_anneals():
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == 0.2 and factors[5] == 1.0 and factors[100] == pytest.approx(0)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert all(0 <= learning_rate_factor(step, total) <= 1 for total in (1, 2, 20) for step in range(total + 1))


def test_a_loss_that_is_not_finite_stops_and_leaves_an_older_file(tmp_path, monkeypatch):
    out = tmp_path / "net.pt"
    out.write_bytes(b"older")
    monkeypatch.setattr(forecasting, "negative_log_likelihood", lambda z, mean, spread: mean * math.inf)
    with pytest.raises(SeqExportError, match=r"The loss is (nan|inf|-inf) at step 1: "):
        trained(out)
    assert out.read_bytes() == b"older"


# --- the command line


def test_the_command_writes_a_checkpoint_and_prints_a_table(tmp_path, capsys):
    out = tmp_path / "net.pt"
    command = f"--cell rnn --data sine --out {out} --preset tutorial --steps 2 --threads 1"
    assert forecasting.main(command.split()) == 0
    printed = capsys.readouterr()
    for row in ("RNN (this model)", "ridge", "last value", "seasonal naive (24)"):
        assert row in printed.out
    assert f"Wrote {out}" in printed.out
    assert "100%" in printed.err
    path, *_ = read_checkpoint(out).pipeline("forecast")(torch.ones(1, 20), torch.zeros(1, 1, 4))
    assert path.shape == (1, 1, 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--steps 0", "The number of steps is 0"),
        ("--minutes nan", "The number of minutes is nan"),
        ("--seed -1", "The seed is -1"),
        ("--threads 0", "The number of threads is 0"),
        ("--out missing/net.pt", "The folder missing does not exist"),
        ("--out .", "can't be written"),
        ("--cell transformer", "invalid choice: 'transformer'"),
        ("--steps many", "invalid int value: 'many'"),
        ("--unknown", "unrecognized arguments: --unknown"),
    ],
)
def test_bad_options_are_refused_with_one_sentence(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = forecasting.main(["--cell", "gru", "--data", "sine", "--out", "net.pt", *options.split()])
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    assert code == 2
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_sunspots_arrive_and_the_baselines_are_the_known_ones(cache):
    series = data.load("sunspots")
    assert len(series.values) == 3126
    assert (series.values[0], series.values[-1]) == (58.0, 2.6)
    assert [str(label) for label in series.labels[[0, -1]]] == ["1749-01", "2009-06"]
    found = baselines.baselines(series)["baselines"]
    assert found["last value"] == pytest.approx(21.58, abs=0.01)
    assert found["seasonal naive (132)"] == pytest.approx(31.43, abs=0.01)
    assert 15.5 < found["ridge"] < 17.7


@pytest.mark.slow
def test_the_electricity_series_arrive_whole():
    hours, halves = data.load("electricity"), data.load("uk-demand")
    assert (len(hours.values), len(halves.values)) == (26_304, 4_032)
    assert [str(label) for label in hours.labels[[0, -1]]] == ["2012-01-01T00", "2014-12-31T23"]
    assert [str(label) for label in halves.labels[[0, -1]]] == ["2000-06-05T00:00", "2000-08-27T23:30"]
    assert halves.values[:3].tolist() == [22_262, 21_756, 22_247]
    assert hours.values[0] == pytest.approx(1300.576324)
