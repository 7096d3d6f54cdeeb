"""The nets of the Sentiment tab: which there are, and what their files say of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqexport.text import Vocabulary
from tabs import racing
from tabs.languages import ENGLISH, Words
from tabs.racing import one_of

MODELS: Mapping[str, Mapping[str, str]] = {
    "English": {"LSTM": "sentiment-en"},
    "中文": {"LSTM": "sentiment-zh", "GRU": "sentiment-zh-gru", "RNN": "sentiment-zh-rnn"},
}
CELLS = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Net:
    """A classifier in exported/. metrics: what was found of it on texts that it never saw."""

    language: str
    cell: str
    model: str
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    metrics: Mapping[str, Any]


def net(language: Any, cell: Any) -> Net:
    """The net of a language with a cell. Raises InputError where there is none."""
    cells = MODELS[one_of("language", language, tuple(MODELS))]
    model = cells[one_of(f"cell of the {language} net", cell, tuple(cells))]
    return _read(language, cell, model, racing.EXPORTED)


@functools.cache
def _read(language: str, cell: str, model: str, exported: Path) -> Net:
    metadata = racing.load_runtime(model, "classify", "onnxruntime").metadata
    preprocessing = metadata["preprocessing"]
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    return Net(language, cell, model, vocabulary, tuple(preprocessing["labels"]), metadata["metrics"])


def about(found: Net, words: Words = ENGLISH) -> str:
    """How good the net is, and what its probabilities are worth, in a few sentences."""
    tests = [(name, test) for name, test in found.metrics["test"].items() if math.isfinite(test["accuracy"])]
    right = ", ".join(f"{100 * test['accuracy']:.1f} % ± {100 * test['interval']:.1f} ({name})" for name, test in tests)
    apart = ", ".join(f"{100 * test['calibration_error']:.1f} ({name})" for name, test in tests)
    return words(
        "{cell} with {parameters:,} parameters. Right on texts that it never saw: {right}. Its probabilities are "
        "calibrated: where it says 80 %, about 80 of 100 are right; on average it is off by so many points: {apart}.",
        cell=found.cell,
        parameters=found.metrics["parameters"],
        right=right,
        apart=apart,
    )
