"""The task's own metric on a person's samples: what a runtime's file is worth in the end, beside its differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqexport.errors import FileError, InputError
from seqexport.reports import Property
from seqexport.runtimes import Runtime
from seqexport.text import Vocabulary

ALLOWED = 1e-3  # of float32, relatively: rounding moves no metric by as much as a thousandth
ORIGINS = 200  # forecasts of a series, spread over it
CHARACTERS = 20_000  # of a text: what a generator's bits are measured on
Metric = Callable[[Runtime], float]


@dataclass(frozen=True)
class Samples:
    """What a task's metric is measured on: name of the metric, how many samples, and runtime → the figure."""

    metric: str
    count: int
    measure: Metric


def read_samples(path: Path, part: str, metadata: Mapping[str, Any]) -> Samples | None:
    """The samples in a file for the graph `part` (network, or the pipeline's name) of what `metadata` describes.

    A forecaster takes a CSV whose last column is the series; a classifier a CSV with the columns text and label; a
    generator a text, of which its network is asked the bits per character. None for a graph that has no metric.
    Raises FileError or InputError for a file that does not fit.
    """
    text, preprocessing = _read(path), metadata.get("preprocessing", {})
    if part == "forecast":
        series = _series(text, path)
        horizon = int(metadata.get("metrics", {}).get("horizon", 12))
        return _forecasts(series, int(preprocessing.get("context", 10 * horizon)), horizon, path)
    if part in ("classify", "classify.text"):
        return _labels(_labelled(text, path, preprocessing), preprocessing)
    if part == "network" and metadata.get("task") == "generate":
        return _bits(text, preprocessing, path)
    return None


def read_texts(path: Path, preprocessing: Mapping[str, Any]) -> list[str]:
    """The texts of a classifier's samples, in the file's order. Raises FileError or InputError as `read_samples`."""
    return [text for text, _ in _labelled(_read(path), path, preprocessing)]


def task_metric(
    part: str,
    samples: Samples,
    reference: Runtime,
    candidate: Runtime,
    allowed: float = ALLOWED,
    reason: str = "a thousandth of the metric, far more than rounding moves",
    names: tuple[str, str] = ("torch", "onnxruntime"),
) -> Property:
    """The metric of both runtimes side by side; the difference is relative to the reference's."""
    ours, theirs = samples.measure(candidate), samples.measure(reference)
    apart = abs(ours - theirs) / max(abs(theirs), 1e-12)
    note = f"{samples.metric} of {samples.count:,} samples: {names[0]} {theirs:.5g}, {names[1]} {ours:.5g}"
    claim = f"the task's own metric on real samples is {names[0]}'s"
    return Property(part, "task metric", claim, samples.count, apart, allowed, reason, notes=(note,))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror}): give a file of samples with --data.") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8.") from error


def _series(text: str, path: Path) -> np.ndarray:
    values: list[float] = []
    for row in csv.reader(io.StringIO(text)):
        if not row:
            continue
        try:
            value = float(row[-1])
        except ValueError:
            if values or row[-1].strip() == "":
                raise InputError(
                    f"{path} has {row[-1]!r} as value {len(values) + 1} of its last column; expected a number: fill "
                    "gaps first."
                ) from None
            continue  # the heading
        if not math.isfinite(value):
            raise InputError(f"{path} has {row[-1]!r} as value {len(values) + 1}; expected a finite number.")
        values.append(value)
    return np.array(values, np.float32)


def _forecasts(series: np.ndarray, context: int, horizon: int, path: Path) -> Samples:
    if len(series) < context + horizon:
        raise InputError(
            f"{path} has {len(series)} values; expected at least {context + horizon}, of which the model reads "
            f"{context} and forecasts {horizon}."
        )
    starts = np.unique(np.linspace(0, len(series) - context - horizon, ORIGINS).astype(int))
    history = np.stack([series[start : start + context] for start in starts])
    truth = np.stack([series[start + context : start + context + horizon] for start in starts])

    def error(runtime: Runtime) -> float:
        noise = np.zeros((len(starts), 1, horizon), np.float32)
        path = runtime.run({"history": history, "noise": noise})["path"][:, 0]
        return float(np.abs(path.astype(np.float64) - truth).mean())

    return Samples("mean absolute error", len(starts), error)


def _labelled(text: str, path: Path, preprocessing: Mapping[str, Any]) -> list[tuple[str, int]]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"text", "label"} <= set(rows.fieldnames or ()):
        raise InputError(f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}; expected text, label.")
    names = [str(label) for label in preprocessing.get("labels", ())]
    pairs = []
    for place, row in enumerate(rows, 1):
        said = str(row["label"]).strip()
        if said not in names and not (said.isdigit() and int(said) < len(names)):
            raise InputError(f"{path} has the label {said!r} in row {place}; expected one of {', '.join(names)}.")
        if row["text"] and row["text"].strip():
            pairs.append((row["text"], names.index(said) if said in names else int(said)))
    if not pairs:
        raise InputError(f"{path} has no text in it; expected rows of text and label.")
    return pairs


def _labels(pairs: Sequence[tuple[str, int]], preprocessing: Mapping[str, Any]) -> Samples:
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    encoded = [vocabulary.encode_batch([text]) for text, _ in pairs]

    def accuracy(runtime: Runtime) -> float:
        right, of_strings = 0, runtime.inputs[0].name == "texts"
        for (tokens, lengths), (text, label) in zip(encoded, pairs, strict=True):
            feeds: dict[str, Any] = {"texts": [text]} if of_strings else {"tokens": tokens, "lengths": lengths}
            right += int(runtime.run(feeds)["probabilities"].argmax() == label)
        return right / len(pairs)

    return Samples("accuracy", len(pairs), accuracy)


def _bits(text: str, preprocessing: Mapping[str, Any], path: Path) -> Samples:
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    tokens, _ = vocabulary.encode_batch([text[: CHARACTERS + 1]])
    if tokens.shape[1] < 2:
        raise InputError(f"{path} has {tokens.shape[1]} characters; expected at least 2.")

    def bits(runtime: Runtime) -> float:
        logits = runtime.run({"tokens": tokens[:, :-1]})["y"][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(-np.take_along_axis(logs, tokens[0, 1:, None], 1).mean() / math.log(2))

    return Samples("bits per character", tokens.shape[1] - 1, bits)
