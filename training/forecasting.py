"""Train a forecaster: a recurrent net that reads a series and gives the distribution of its next value.

    python -m training.forecasting --cell gru --data sunspots --out gru.pt

Under a minute on two cores, and twelve months of sunspots ahead with a test MAE of 15.8 (GRU), 16.2 (LSTM) or 17.1
(RNN). Over the seeds 0, 1 and 2 it is 15.6 to 16.5, 16.0 to 17.4 and 16.2 to 17.1. On the same 615 origins a ridge
regression tuned on the validation part has 16.5, the last value 21.6, and the value of eleven years ago 31.4. So the
nets are clearly better than repeating the past and about as good as the best linear model: neighbouring origins share
eleven of their twelve months, and differences of half a point are within what another seed changes.

The same seed gives the same weights on the same machine with the same number of threads.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from tqdm import tqdm

from seqexport.checkpoint import write_checkpoint
from seqexport.errors import SeqExportError
from seqexport.networks import Network
from seqexport.pipelines import Forecast, Scaling, distribution
from seqexport.specs import Cell, NetworkSpec
from training import data as datasets
from training.command import Preset, check_options, run
from training.data import Series
from training.optimisation import descend, initialise, learning_rate_factor

# What the ridge regression is tuned over, on the validation part, so that the net has an honest rival.
RIDGE_WINDOWS = (12, 24, 60, 132, 264)
RIDGE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
RIDGE_TRANSFORMS: dict[str, tuple[Literal["none", "root"], ...]] = {"none": ("none",), "root": ("none", "root")}


@dataclass(frozen=True)
class Recipe:
    """Sizes and hyperparameters. They were chosen on the validation part of the sunspots, never on the test part."""

    hidden_size: int = 48  # validation MAE 14.7 (32: 14.8, 64: 14.4): less than two seeds differ, and cheaper than 64
    layers: int = 1
    context: int = 144  # steps of a window: a solar cycle and a year; 264 took twice the time for the same error
    batch: int = 32  # windows a step: together about twice as many months as the training part has
    steps: int = 1000  # the best weights of a GRU or LSTM come by step 600; after that validation gets worse
    learning_rate: float = 3e-3  # reached after a warm-up of 5 % of the steps, then down to zero along a cosine
    weight_decay: float = 1e-2  # AdamW's own default; thirty times more changed nothing
    clip: float = 1.0  # the norm of the gradient: the usual guard of recurrent nets; other values were not tried
    burn_in: int = 24  # first steps of a window that are not scored: the state is still zero and knows nothing
    rollout: float = 3.0  # weight of the roll-out's error; a GRU's validation MAE: 14.3 to 14.8 with it, 14.8 without
    every: int = 25  # steps between two looks at the validation part, each about as long as a step
    patience: int = 16  # looks without a better one before the training stops


def recipe(cell: Cell, preset: Preset) -> Recipe:
    """The recipe of a cell. `tutorial` has the small sizes that tutorials use; the rest is the same."""
    rate = 1e-3 if cell == "rnn" else Recipe.learning_rate  # without gates 3e-3 is unsteady: 16.2, not 15.8
    if preset == "tutorial":
        return Recipe(hidden_size=32, layers=2 if cell == "gru" else 1, context=20, burn_in=4, learning_rate=rate)
    if cell == "rnn":  # two layers of 32 had a validation MAE of 15.5, one of 48 had 15.8; it learns more slowly
        return Recipe(hidden_size=32, layers=2, steps=1500, learning_rate=rate)
    return Recipe()


def train(
    cell: Cell,
    data: str,
    out: str | os.PathLike[str],
    *,
    preset: Preset = "default",
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Train, score on the test part beside the baselines, write the checkpoint `out`, and return the metrics.

    steps, minutes: caps on the training, for trials; with `minutes` a slower machine gets other weights. Sets torch's
    number of threads. Raises SeqExportError where an option makes no sense, the data can't be had, the loss is not
    finite, or `out` can't be written; an older `out` is then untouched.
    """
    out = Path(out)
    check_options(cell, preset, out, seed, steps, minutes, threads)
    series = datasets.load(data)
    plan = recipe(cell, preset)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    spec = NetworkSpec(cell, 1, plan.hidden_size, plan.layers, outputs=2)
    network = Network(spec)
    initialise(network)
    scaling = fit_scaling(series)
    forecast = Forecast(network, scaling)
    z = scaling.apply(torch.from_numpy(series.values)).float()  # (length,)
    values = torch.from_numpy(series.values).float()  # (length,)
    last_start = series.parts["train"].stop - plan.context - series.horizon  # a window ends within the training part
    total = plan.steps if steps is None else steps
    optimizer = torch.optim.AdamW(network.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total))

    began = time.perf_counter()
    best, best_step, best_weights = math.inf, 0, copy.deepcopy(network.state_dict())
    progress = tqdm(range(1, total + 1), desc=f"{cell} on {data}", unit="step", mininterval=0.5)
    for step in progress:
        starts = rng.integers(0, last_start, size=plan.batch, endpoint=True)
        windows = torch.stack([z[start : start + plan.context + series.horizon] for start in starts])  # (B, T+N)
        history, future = windows[:, : plan.context], windows[:, plan.context :]  # (B, T), (B, N)

        # Teacher forcing: at every step of the window, how likely is the value that comes next?
        y, *state = network(history.unsqueeze(-1))  # (B, T, 2)
        mean, spread = (part.squeeze(-1) for part in distribution(y))  # (B, T)
        following = windows[:, 1 : plan.context + 1]
        likelihood = negative_log_likelihood(following, mean, spread)[:, plan.burn_in :].mean()
        # Roll-out: read the own forecast for N steps, as the pipeline does, and compare in the series' own units.
        path = [mean[:, -1:]]
        for _ in range(series.horizon - 1):
            y, *state = network(path[-1].unsqueeze(-1), *state)
            path.append(distribution(y)[0].squeeze(-1))
        error = (scaling.undo(torch.cat(path, 1)) - scaling.undo(future)).abs().mean() / unit_of(series)
        loss = likelihood + plan.rollout * error

        descend(loss, network, optimizer, schedule, plan.clip, step)

        out_of_time = minutes is not None and time.perf_counter() - began > 60 * minutes
        if step % plan.every == 0 or step == total or out_of_time:
            mae = central_error(forecast, values, series, "validation", plan.context)["mae"]
            if mae < best:
                best, best_step, best_weights = mae, step, copy.deepcopy(network.state_dict())
            progress.set_postfix(loss=f"{loss.item():.3f}", validation=f"{mae:.2f}", best=f"{best:.2f}", refresh=False)
        if out_of_time or step - best_step >= plan.every * plan.patience:
            break
    progress.close()
    seconds = time.perf_counter() - began
    if not math.isfinite(best):
        raise SeqExportError(f"The error on the validation part is not finite after {step} steps: try another seed.")

    network.load_state_dict(best_weights)
    network.eval()
    metrics = {
        "metric": "MAE",
        "horizon": series.horizon,
        "test": {
            **central_error(forecast, values, series, "test", plan.context),
            **coverage(forecast, values, series, "test", plan.context, seed),
            "origins": len(series.origins("test")),
        },
        **baselines(series),
        "validation": {"mae": best},
        "seconds": round(seconds, 1),
        "steps": best_step,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    write_checkpoint(
        out,
        network,
        task="forecast",
        preprocessing={
            "scaling": scaling.to_dict(),
            "context": plan.context,
            "season": series.season,
            "unit": series.unit,
            "step": series.step,
        },
        metrics=metrics,
        data={
            "name": series.name,
            "source": series.source,
            "licence": series.licence,
            "values": len(series.values),
            "split": {part: len(positions) for part, positions in series.parts.items()},
            "sha256": series.sha256,
        },
    )
    return metrics


def training_part(series: Series) -> np.ndarray:
    """The values that scaling and baselines may be fitted on, float64 [length of the training part]."""
    return series.values[: series.parts["train"].stop]


def fit_scaling(series: Series) -> Scaling:
    """Fitted on the training part only: the level of what is to be forecast must not leak into the network's input."""
    return Scaling.fitted(torch.from_numpy(training_part(series)), series.transform)


def unit_of(series: Series) -> float:
    """The training part's standard deviation, which brings an error in the series' own units to the size of z."""
    return float(training_part(series).std()) or 1.0


def negative_log_likelihood(z: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Of a normal distribution, without its constant; all of one shape."""
    return spread.log() + 0.5 * ((z - mean) / spread).square()


def windows_at(values: Tensor, origins: np.ndarray, context: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The `context` values before each origin (O, context), and the `horizon` values from it on (O, horizon)."""
    start = torch.from_numpy(origins).unsqueeze(1)
    return values[start + torch.arange(-context, 0)], values[start + torch.arange(horizon)]


@torch.no_grad()
def central_error(forecast: Forecast, values: Tensor, series: Series, part: str, context: int) -> dict[str, float]:
    """Mean absolute and root mean square error of the central path over all steps of all origins of the part."""
    history, truth = windows_at(values, series.origins(part), context, series.horizon)
    path = forecast(history, torch.zeros(len(history), 1, series.horizon))[0].squeeze(1)  # (O, N)
    error = (path - truth).double()
    return {"mae": error.abs().mean().item(), "rmse": error.square().mean().sqrt().item()}


@torch.no_grad()
def coverage(
    forecast: Forecast, values: Tensor, series: Series, part: str, context: int, seed: int, paths: int = 200
) -> dict[str, float]:
    """The share of true values within the middle 50 % and 90 % of the sampled paths, at every fifth origin."""
    history, truth = windows_at(values, series.origins(part)[::5], context, series.horizon)
    noise = torch.randn(len(history), paths, series.horizon, generator=torch.Generator().manual_seed(seed))
    drawn = forecast(history, noise)[0]  # (O, P, N)
    covered = {}
    for percent in (50, 90):
        tail = (1 - percent / 100) / 2
        low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail]), dim=1)  # (O, N) each
        covered[f"coverage_{percent}"] = ((truth >= low) & (truth <= high)).double().mean().item()
    return covered


def baselines(series: Series) -> dict[str, Any]:
    """The test error (MAE) of what needs no recurrent net, on the origins that the net is scored on."""
    ridge, tuned = tuned_ridge(series)
    forecasts = {
        f"seasonal naive ({series.season})": seasonal_naive(series, "test"),
        "last value": last_value(series, "test"),
    }
    errors = {name: baseline_error(series, "test", path) for name, path in forecasts.items()}
    return {"baselines": {**errors, "ridge": ridge}, "ridge": tuned}


def baseline_error(series: Series, part: str, path: np.ndarray) -> float:
    """Mean absolute error of the forecasts `path` [origins, horizon] over all steps of all origins of the part."""
    truth = series.values[series.origins(part)[:, None] + np.arange(series.horizon)]
    return float(np.abs(path - truth).mean())


def seasonal_naive(series: Series, part: str) -> np.ndarray:
    """What was a season ago, [origins, horizon]. A horizon beyond a season repeats the last season that is known."""
    return series.values[series.origins(part)[:, None] - series.season + np.arange(series.horizon) % series.season]


def last_value(series: Series, part: str) -> np.ndarray:
    """The last value, for every step, [origins, horizon]."""
    return np.repeat(series.values[series.origins(part) - 1, None], series.horizon, axis=1)


def tuned_ridge(series: Series) -> tuple[float, dict[str, Any]]:
    """Ridge regression from a window to all steps: its test error, and the settings best on the validation part."""
    best, best_model = math.inf, None
    tuned: dict[str, Any] = {}
    for transform in RIDGE_TRANSFORMS[series.transform]:
        scaling = Scaling.fitted(torch.from_numpy(training_part(series)), transform)
        z = scaling.apply(torch.from_numpy(series.values))  # (length,) float64
        for window in RIDGE_WINDOWS:
            origins = np.arange(window, series.parts["train"].stop - series.horizon + 1)
            inputs, targets = windows_at(z, origins, window, series.horizon)
            for penalty in RIDGE_PENALTIES:
                model = Ridge(alpha=penalty).fit(inputs.numpy(), targets.numpy())
                mae = baseline_error(series, "validation", ridge_path(model, scaling, series, "validation"))
                if mae < best:
                    best, best_model = mae, (model, scaling)
                    tuned = {"window": window, "penalty": penalty, "transform": transform}
    assert best_model is not None
    return baseline_error(series, "test", ridge_path(*best_model, series, "test")), tuned


def ridge_path(model: Ridge, scaling: Scaling, series: Series, part: str) -> np.ndarray:
    """The forecasts of a fitted ridge regression, [origins, horizon]."""
    z = scaling.apply(torch.from_numpy(series.values))
    inputs, _ = windows_at(z, series.origins(part), model.n_features_in_, series.horizon)
    return scaling.undo(torch.from_numpy(model.predict(inputs.numpy()))).numpy()


def table(metrics: dict[str, Any], cell: str) -> str:
    """The net and the baselines by their test error, the best first."""
    test = metrics["test"]
    rows = {f"{cell} (this model)": test["mae"], **metrics["baselines"]}
    width = max(map(len, rows))
    lines = [f"MAE over {metrics['horizon']} steps, {test['origins']} origins of the test part:"]
    lines += [f"  {name:<{width}}  {mae:8.3f}" for name, mae in sorted(rows.items(), key=lambda row: row[1])]
    lines.append(
        f"RMSE {test['rmse']:.3f}. The 50 % band holds {test['coverage_50']:.0%} of the true values, "
        f"the 90 % band {test['coverage_90']:.0%}."
    )
    lines.append(
        f"{metrics['parameters']:,} parameters, {metrics['seconds']:.0f} s, best weights at step {metrics['steps']}."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(
        train,
        table,
        arguments,
        name="forecasting",
        model="a forecaster",
        sets=datasets.SERIES,
        example="--cell gru --data sunspots --out gru.pt",
    )


if __name__ == "__main__":
    sys.exit(main())
