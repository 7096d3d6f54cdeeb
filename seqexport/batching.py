"""Many texts through a classifier: in batches of texts that are about as long, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqexport.errors import UnsupportedError
from seqexport.runtimes import Runtime
from seqexport.text import Vocabulary, pad

# Texts of a batch; the reason is in DECISIONS.md, with what other sizes gave.
BATCH = 32
# Numbers of a batch, its padding among them: a long text has few beside it, so that memory stays flat.
NUMBERS = 2**15


def by_length(lengths: Sequence[int] | np.ndarray, size: int = BATCH, numbers: int = NUMBERS) -> list[np.ndarray]:
    """Lengths of texts → which of them go together, the longest first: at most `size`, and so many that with their
    padding they have at most `numbers` tokens, or one that has more alone."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, min(size, numbers // longest))
        batches.append(order[start:end])
        start = end
    return batches


def of_equal_length(lengths: Sequence[int] | np.ndarray, size: int, numbers: int = NUMBERS) -> list[np.ndarray]:
    """The same with no padding at all, for models that are told of no lengths: only rows of one length go together."""
    found = np.asarray(lengths)
    batches = []
    for length in np.unique(found):
        places, most = np.flatnonzero(found == length), max(1, min(size, numbers // max(1, int(length))))
        batches += [places[start : start + most] for start in range(0, len(places), most)]
    return batches


def in_order(count: int, size: int) -> list[np.ndarray]:
    """So many texts in batches as they come."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def encode(vocabulary: Vocabulary, texts: Sequence[str]) -> list[np.ndarray]:
    """Texts → the numbers of their tokens, an int64 array each."""
    return [np.array(vocabulary.encode(text), np.int64) for text in texts]


def probabilities(model: Runtime, rows: Sequence[np.ndarray], batches: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of texts, and which go together → the probabilities, float32 [texts, classes], in the texts' order."""
    answers: np.ndarray | None = None
    model = model.only("probabilities")
    with model.ready():
        for batch in batches:
            tokens, lengths = pad([rows[place] for place in batch])
            found = np.asarray(model.call(model.native({"tokens": tokens, "lengths": lengths}))[0])
            if answers is None:
                answers = np.empty((len(rows), found.shape[1]), found.dtype)
            answers[batch] = found
    assert answers is not None
    return answers


def classify(model: Runtime, texts: Sequence[str], *, size: int = BATCH) -> np.ndarray:
    """Texts → the probabilities of the labels, float32 [texts, classes], in the texts' order.

    model: a classifier's pipeline, as seqexport.load(path, pipeline="classify") gives it, whose metadata names the
    labels.
    size: texts that are read at once, of about the same length; padding changes no answer.

    Raises UnsupportedError for a model that is no classifier of texts, SpecError for one whose vocabulary is garbled,
    and InputError for a text with half a character.
    """
    preprocessing = model.metadata.get("preprocessing", {})
    if model.metadata.get("task") != "classify" or "lengths" not in {spec.name for spec in model.inputs}:
        raise UnsupportedError(
            f"The model is {model.metadata.get('task', 'of no task')!r}; expected a classifier's pipeline: load the "
            'file with pipeline="classify".'
        )
    vocabulary = Vocabulary.from_dict(preprocessing.get("vocabulary", {}))
    if not len(texts):
        return np.empty((0, len(preprocessing.get("labels", ()))), np.float32)
    rows = encode(vocabulary, texts)
    return probabilities(model, rows, by_length([len(row) for row in rows], size))
