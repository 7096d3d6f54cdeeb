"""What needs no recurrent net: the forecasts that a net is held against, each tuned on the validation part."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import scoringrules
import torch
from sklearn.linear_model import Ridge, SGDRegressor
from statsforecast import StatsForecast
from statsforecast.models import AutoETS
from torch import Tensor

from seqexport.pipelines import TRANSFORMS, Scaling
from training.data import Series

RIDGE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)


def baselines(series: Series) -> dict[str, Any]:
    """The test error (MAE) of what needs no recurrent net, on the origins that the net is scored on; their CRPS; and
    what was tuned."""
    paths: dict[str, Callable[[str], np.ndarray]] = {
        f"seasonal naive ({series.season})": lambda part: seasonal_naive(series, part),
        "last value": lambda part: last_value(series, part),
    }
    ridge, tuned = tuned_ridge(series)
    paths["ridge"] = ridge
    paths["linear, absolute error"], tuned_linear = tuned_linear_absolute(series, tuned)
    name, paths_of_smoothing = tuned_exponential_smoothing(series)
    paths[name] = paths_of_smoothing
    found = {name: {part: path(part) for part in ("validation", "test")} for name, path in paths.items()}
    return {
        "baselines": {name: baseline_error(series, "test", of["test"]) for name, of in found.items()},
        "baselines_crps": {name: baseline_crps(series, of) for name, of in found.items()},
        "ridge": tuned,
        "linear": tuned_linear,
    }


def truth_of(series: Series, part: str) -> np.ndarray:
    """The values to forecast, [origins, horizon]."""
    return series.values[series.origins(part)[:, None] + np.arange(series.horizon)]


def baseline_error(series: Series, part: str, path: np.ndarray) -> float:
    """Mean absolute error of the forecasts `path` [origins, horizon] over all steps of all origins of the part."""
    return float(np.abs(path - truth_of(series, part)).mean())


def baseline_crps(series: Series, paths: Mapping[str, np.ndarray]) -> float:
    """The CRPS of point forecasts, [origins, horizon] of each part, with the spread of their errors on the validation
    part: at each step as many quantiles of these as a net draws paths."""
    errors = truth_of(series, "validation") - paths["validation"]
    spread = np.quantile(errors, (np.arange(200) + 0.5) / 200, axis=0)  # [paths, horizon]
    sampled = paths["test"][::5, None, :] + spread
    return float(scoringrules.crps_ensemble(truth_of(series, "test")[::5], sampled, m_axis=1).mean())


def seasonal_naive(series: Series, part: str) -> np.ndarray:
    """What was a season ago, [origins, horizon]. A horizon beyond a season repeats the last season that is known."""
    return series.values[series.origins(part)[:, None] - series.season + np.arange(series.horizon) % series.season]


def last_value(series: Series, part: str) -> np.ndarray:
    """The last value, for every step, [origins, horizon]."""
    return np.repeat(series.values[series.origins(part) - 1, None], series.horizon, axis=1)


def exponential_smoothing(series: Series, part: str, differences: bool) -> np.ndarray:
    """The forecasts of an exponential smoothing, [origins, horizon], its form chosen and fitted once, on the values
    before the part, and then brought up to each origin. differences: of each value to that of a season before, since
    the smoothing's own seasons have up to 24 steps."""
    origins, lag = series.origins(part), series.season if differences else 0
    values = series.values[lag : origins[-1] + series.horizon]
    if differences:
        values = values - series.values[: len(values)]
    frame = pandas.DataFrame({"unique_id": 0, "ds": np.arange(len(values)), "y": values})
    own = 1 if differences or series.season > 24 else series.season
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that did not converge, after which the next form is tried
        found = StatsForecast([AutoETS(season_length=own)], freq=1).cross_validation(
            df=frame, h=series.horizon, step_size=1, n_windows=len(origins), refit=False
        )
    path = found["AutoETS"].to_numpy().reshape(len(origins), series.horizon)
    return path + seasonal_naive(series, part) if differences else path


def tuned_exponential_smoothing(series: Series) -> tuple[str, Callable[[str], np.ndarray]]:
    """The better one on the validation part of the smoothing of the values and that of the seasonal differences: its
    name, and part → its forecasts."""
    ways = {"AutoETS": False, f"AutoETS of differences ({series.season})": True}
    name = min(
        ways,
        key=lambda name: baseline_error(series, "validation", exponential_smoothing(series, "validation", ways[name])),
    )
    return name, lambda part: exponential_smoothing(series, part, ways[name])


def regression_data(series: Series, scaling: Scaling, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The training part's windows [O, window] and what follows them [O, horizon], scaled."""
    z = scaling.apply(torch.from_numpy(series.values))
    origins = np.arange(window, series.parts["train"].stop - series.horizon + 1)
    inputs, targets = windows_at(z, origins, window, series.horizon)
    return inputs.numpy(), targets.numpy()


def ridge_windows(series: Series) -> list[int]:
    """The windows that a regression may read: up to two seasons, as far as the training part has enough of them."""
    season = series.season
    several = {12, 24, 60, season // 7, season, season + 1, season * 8 // 7, season * 3 // 2, season * 2, season * 3}
    most = min(series.parts["train"].stop // 3, series.parts["train"].stop - series.horizon - 50)
    return sorted(window for window in several if 2 <= window <= most)


def tuned_ridge(series: Series) -> tuple[Callable[[str], np.ndarray], dict[str, Any]]:
    """Ridge regression from a window to all steps: part → its forecasts, and the settings best on the validation part:
    window, penalty and transform."""
    best, best_model = math.inf, None
    tuned: dict[str, Any] = {}
    positive = bool((series.values >= 0).all())
    for transform in TRANSFORMS if positive else TRANSFORMS[:1]:
        scaling = Scaling.fitted(torch.from_numpy(training_part(series)), transform)
        for window in ridge_windows(series):
            inputs, targets = regression_data(series, scaling, window)
            for penalty in RIDGE_PENALTIES:
                model = Ridge(alpha=penalty).fit(inputs, targets)
                path = regression_path(model.predict, scaling, series, "validation", window)
                mae = baseline_error(series, "validation", path)
                if mae < best:
                    best, best_model = mae, (model.predict, scaling)
                    tuned = {"window": window, "penalty": penalty, "transform": transform}
    assert best_model is not None
    predict, scaling = best_model
    return lambda part: regression_path(predict, scaling, series, part, tuned["window"]), tuned


def tuned_linear_absolute(
    series: Series, ridge: Mapping[str, Any]
) -> tuple[Callable[[str], np.ndarray], dict[str, Any]]:
    """The ridge's like whose absolute error is least, as the net's is, and not its square: part → its forecasts, and
    the penalty best on the validation part, with the ridge's window and transform."""
    scaling = Scaling.fitted(torch.from_numpy(training_part(series)), ridge["transform"])
    inputs, targets = regression_data(series, scaling, ridge["window"])
    start = Ridge(alpha=ridge["penalty"]).fit(inputs, targets)
    best, best_models, tuned = math.inf, [], {}
    for penalty in (1e-6, 1e-5, 1e-4):
        models = []
        for step in range(series.horizon):
            model = SGDRegressor(
                loss="epsilon_insensitive", epsilon=0.0, alpha=penalty, eta0=1e-3, max_iter=30, tol=None, random_state=0
            )
            model.fit(inputs, targets[:, step], coef_init=start.coef_[step], intercept_init=start.intercept_[step])
            models.append(model)
        path = regression_path(_all_of(models), scaling, series, "validation", ridge["window"])
        mae = baseline_error(series, "validation", path)
        if mae < best:
            best, best_models, tuned = mae, models, {"penalty": penalty}
    return lambda part: regression_path(_all_of(best_models), scaling, series, part, ridge["window"]), tuned


def _all_of(models: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda inputs: np.stack([model.predict(inputs) for model in models], axis=1)


def regression_path(
    predict: Callable[[np.ndarray], np.ndarray], scaling: Scaling, series: Series, part: str, window: int
) -> np.ndarray:
    """The forecasts of a fitted regression, [origins, horizon]."""
    z = scaling.apply(torch.from_numpy(series.values))
    inputs, _ = windows_at(z, series.origins(part), window, series.horizon)
    return scaling.undo(torch.from_numpy(predict(inputs.numpy()))).numpy()


def training_part(series: Series) -> np.ndarray:
    """The values that scaling and baselines may be fitted on, float64 [length of the training part]."""
    return series.values[: series.parts["train"].stop]


def windows_at(values: Tensor, origins: np.ndarray, context: int, horizon: int) -> tuple[Tensor, Tensor]:
    """The `context` values before each origin (O, context), and the `horizon` values from it on (O, horizon)."""
    start = torch.from_numpy(origins).unsqueeze(1)
    return values[start + torch.arange(-context, 0)], values[start + torch.arange(horizon)]
