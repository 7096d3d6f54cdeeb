"""Rows of a table through a model: what a row's value is to it, and what its answer is in the table.

A value that the model can't read, or an answer that is no number, rejects its row alone, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from seqexport.batching import by_length, encode, of_equal_length, probabilities
from seqexport.errors import InputError, SpecError, UnsupportedError
from seqexport.orders import Order
from seqexport.outputs import Answer
from seqexport.runtimes import Runtime
from seqexport.specs import TensorSpec, check_feeds
from seqexport.text import Vocabulary, read_prompt

MOST_TOKENS = 100_000  # tokens or values of a row: what a batch of one may hold
LOOPED = 256  # rows of a batch that is looped over: a step costs little more for many
LOOPED_NUMBERS = 2**17


class Question:
    """What a model is asked about a row.

    part: classify, forecast, generate or network. column: what a column for it is usually called. answers: what is
    written of its answer.
    """

    part: str
    column: str
    answers: list[Answer]

    def fits(self, value: Any) -> bool:
        """Whether a column with such a value may be the one to read."""
        return isinstance(value, str)

    def read(self, value: Any) -> np.ndarray:
        """The value as the model's numbers, time first. Raises InputError."""
        raise NotImplementedError

    def batches(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """Which rows of these lengths go together."""
        return of_equal_length(lengths, LOOPED, LOOPED_NUMBERS)

    def ask(self, rows: Sequence[np.ndarray], numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        """A batch of what `read` gave, and the rows' numbers → for each row its answers, texts or arrays."""
        raise NotImplementedError


class _Classify(Question):
    part, column = "classify", "text"

    def __init__(self, model: Runtime, order: Order) -> None:
        self.model, self.all = model, order.probabilities
        self.vocabulary = _vocabulary(model, model.inputs[0])
        self.labels = [str(label) for label in model.metadata.get("preprocessing", {}).get("labels", ())]
        if not self.labels:
            raise SpecError("The classifier names no labels: export it from a checkpoint whose preprocessing has them.")
        more = [f"probability_{label}" for label in self.labels] if self.all else ["probability"]
        self.answers = _answers(order, Answer("label", is_text=True), *map(Answer, more))

    def read(self, value: Any) -> np.ndarray:
        text = _text(value)
        if not text.strip():
            raise InputError("is empty")
        return _bounded(encode(self.vocabulary, [text])[0])

    def batches(self, lengths: Sequence[int]) -> list[np.ndarray]:
        return by_length(lengths)

    def ask(self, rows: Sequence[np.ndarray], numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        found = probabilities(self.model, rows, [np.arange(len(rows))])
        labels = [self.labels[place] for place in found.argmax(1)]
        return [(label, *(row if self.all else [row.max()])) for label, row in zip(labels, found, strict=True)]


class _Forecast(Question):
    part, column = "forecast", "history"

    def __init__(self, model: Runtime, order: Order) -> None:
        self.model, self.history = model.only("path"), model.inputs[0]
        self.horizon = order.horizon or int(model.metadata.get("metrics", {}).get("horizon", 12))
        self.answers = _answers(order, Answer("forecast", depth=1))

    def fits(self, value: Any) -> bool:
        return _is_numbers(value)

    def read(self, value: Any) -> np.ndarray:
        return _checked(self.history, _numbers(value))

    def ask(self, rows: Sequence[np.ndarray], numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        noise = np.zeros((len(rows), 1, self.horizon), np.float32)  # the central path
        path = self.model.run({"history": np.stack(rows), "noise": noise})["path"]
        return [(row[0],) for row in path]


class _Generate(Question):
    part, column = "generate", "prompt"

    def __init__(self, model: Runtime, order: Order) -> None:
        self.model, self.order = model.only("tokens"), order
        self.vocabulary = _vocabulary(model, model.inputs[0])
        known = {spec.name for spec in model.inputs}
        settings = {name: getattr(order, name) for name in ("temperature", "top_k", "top_p")}
        self.settings = {name: value for name, value in settings.items() if name in known}
        self.answers = _answers(order, Answer("continuation", is_text=True))

    def read(self, value: Any) -> np.ndarray:
        tokens, _ = read_prompt(self.vocabulary, _text(value))
        return _bounded(tokens[0])

    def ask(self, rows: Sequence[np.ndarray], numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        # Of the row's own number, so that neither batches nor machines nor a stop in between change its text.
        draws = [np.random.default_rng((self.order.seed, number)) for number in numbers]
        uniforms = np.stack([rng.random(self.order.steps, np.float32) for rng in draws])
        tokens = self.model.run({"prompt": np.stack(rows), "uniforms": uniforms, **self.settings})["tokens"]
        return [(self.vocabulary.decode(row),) for row in tokens]


class _Network(Question):
    """A bare network: rows of [time, features], or of tokens, as numbers or as a text."""

    part = "network"

    def __init__(self, model: Runtime, order: Order) -> None:
        required = [spec for spec in model.inputs if not spec.optional and spec.name != "lengths"]
        first = required[0] if required else model.inputs[0]
        if len(required) != 1 or first.dims[:2] != ("batch", "time") or len(first.dims) > 3:
            found = ", ".join(f"{spec.name} {spec}" for spec in required)
            raise UnsupportedError(
                f"The model takes {found}; expected one input, [batch,time] or [batch,time,features], and "
                "lengths at most: score reads one column."
            )
        states = (model.metadata.get("state_map") or {}).values()
        names = [name for name in model.output_names if name not in states]
        self.model, self.input, self.column, self.names = model.only(*names), first, first.name, names
        self.has_lengths = any(spec.name == "lengths" for spec in model.inputs)
        words = model.metadata.get("preprocessing", {}).get("vocabulary")
        self.vocabulary = Vocabulary.from_dict(words) if words and first.dtype == "int64" else None
        # What an output is of one row shows how deep its lists are; the values that are tried don't matter.
        tried = first.sample({"batch": 1, "time": 3}, np.random.default_rng(0))[0]
        self.answers = _answers(order, *map(Answer, names))  # `ask` needs none
        shapes = [array.ndim for array in self.ask([tried], [0])[0]]
        deep = (Answer(name, depth=depth) for name, depth in zip(names, shapes, strict=True))
        self.answers = _answers(order, *deep)

    def fits(self, value: Any) -> bool:
        return _is_numbers(value) or (self.vocabulary is not None and isinstance(value, str))

    def read(self, value: Any) -> np.ndarray:
        if self.vocabulary is not None and isinstance(value, str):
            return _checked(self.input, encode(self.vocabulary, [_text(value)])[0])
        read = _numbers(value, int if self.input.dtype.startswith("int") else float)
        if read.ndim == 1 and self.input.dims[2:] == (1,):
            read = read[:, None]
        return _checked(self.input, read)

    def ask(self, rows: Sequence[np.ndarray], numbers: Sequence[int]) -> list[tuple[Any, ...]]:
        feeds = {self.input.name: np.stack(rows)}
        if self.has_lengths:
            feeds["lengths"] = np.full(len(rows), len(rows[0]), np.int64)
        found = self.model.run(feeds)
        outputs = [found[name] for name in self.names]
        for name, output in zip(self.names, outputs, strict=True):
            if output.shape[:1] != (len(rows),) or output.dtype.kind != "f":
                raise UnsupportedError(
                    f"The model's output {name!r} is {output.dtype}{list(output.shape)} of {len(rows)} rows; expected "
                    "float numbers with the rows first."
                )
        return list(zip(*outputs, strict=True))


def make_question(model: Runtime, order: Order) -> Question:
    """What this model is asked. Raises UnsupportedError for one that is not asked row by row."""
    names = {spec.name for spec in model.inputs}
    kinds: dict[str, tuple[bool, Callable[[Runtime, Order], Question]]] = {
        "forecast": ({"history", "noise"} <= names, _Forecast),
        "generate": ({"prompt", "uniforms"} <= names, _Generate),
        "classify": ("probabilities" in model.output_names, _Classify),
        "network": (True, _Network),
    }
    if any(spec.dtype == "string" for spec in model.inputs):
        raise UnsupportedError(
            "The model is a graph of strings, which score does not run: give the file with numbers beside it, without "
            ".text in its name; score reads texts with that."
        )
    part = next(part for part, (fits, _) in kinds.items() if fits)
    if order.pipeline not in (None, part):
        raise UnsupportedError(f"{order.model} is a {part}'s; expected --pipeline {part}, or the network's file.")
    return kinds[part][1](model, order)


def answer(
    question: Question, numbers: Sequence[int], values: Sequence[Any]
) -> tuple[dict[int, tuple[Any, ...]], list[tuple[int, str]]]:
    """Rows' numbers and values → place → its answers, texts or lists of numbers, and (number, reason) of the others."""
    read: dict[int, np.ndarray] = {}
    rejected: list[tuple[int, str]] = []
    for place, value in enumerate(values):
        try:
            read[place] = question.read(value)
        except InputError as error:
            rejected.append((numbers[place], str(error)))
    places = list(read)
    answers: dict[int, tuple[Any, ...]] = {}
    for batch in question.batches([len(read[place]) for place in places]) if places else ():
        for place, found in _asked(question, [places[index] for index in batch], read, numbers):
            if isinstance(found, str):
                rejected.append((numbers[place], found))
            elif any(not isinstance(part, str) and not np.isfinite(part).all() for part in found):
                rejected.append((numbers[place], "the model's answer is not a number (NaN or infinite)"))
            else:
                answers[place] = tuple(part if isinstance(part, str) else part.tolist() for part in found)
    return answers, rejected


def _asked(
    question: Question, places: list[int], read: dict[int, np.ndarray], numbers: Sequence[int]
) -> list[tuple[int, Any]]:
    """A batch's answers; where the model can't run it, each row alone, and the reason for one that it can't run."""
    try:
        found = question.ask([read[place] for place in places], [numbers[place] for place in places])
        return list(zip(places, found, strict=True))
    except InputError as error:
        if len(places) == 1:
            return [(places[0], str(error))]
        return [pair for place in places for pair in _asked(question, [place], read, numbers)]


def _answers(order: Order, *answers: Answer) -> list[Answer]:
    named = [Answer(order.prefix + answer.name, answer.is_text, answer.depth) for answer in answers]
    if len({answer.name for answer in named}) < len(named):
        raise SpecError(f"The model has two answers of one name ({', '.join(a.name for a in named):.200}).")
    return named


def _vocabulary(model: Runtime, tokens: TensorSpec) -> Vocabulary:
    vocabulary = Vocabulary.from_dict(model.metadata.get("preprocessing", {}).get("vocabulary", {}))
    if isinstance(tokens.high, int) and len(vocabulary) > tokens.high + 1:
        raise SpecError(f"The vocabulary has {len(vocabulary):,} tokens, the network {tokens.high + 1:,}.")
    return vocabulary


def _text(value: Any) -> str:
    if value is None:
        raise InputError("is missing or null")
    if not isinstance(value, str):
        raise InputError(f"is a {type(value).__name__}; expected a text")
    return value


def _bounded(read: np.ndarray) -> np.ndarray:
    if len(read) > MOST_TOKENS:
        raise InputError(f"has {len(read):,} tokens or values; expected at most {MOST_TOKENS:,}")
    return read


def _is_numbers(value: Any) -> bool:
    try:
        return _numbers(value).dtype.kind in "fiu"
    except InputError:
        return False


def _numbers(value: Any, kind: type = float) -> np.ndarray:
    """A list of numbers, or a text of them: JSON, or with blanks, commas or semicolons between them."""
    if value is None:
        raise InputError("is missing or null")
    try:
        if isinstance(value, str):
            is_json = value.lstrip().startswith("[")
            value = (
                json.loads(value) if is_json else [kind(part) for part in re.split(r"[\s,;]+", value.strip()) if part]
            )
        found = np.asarray(value)
    except (ValueError, RecursionError, OverflowError):
        raise InputError("is not a regular list of numbers") from None
    if found.ndim == 0 or (found.size and found.dtype.kind not in "fiu"):
        raise InputError("is not a list of numbers")
    return _bounded(found if found.size else found.astype(kind))


def _checked(spec: TensorSpec, read: np.ndarray) -> np.ndarray:
    return check_feeds([spec], {spec.name: _bounded(read)[None]})[spec.name][0]
