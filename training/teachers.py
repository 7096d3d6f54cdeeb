"""What linear models think of texts that they have not learnt from: soft targets for a net, and labels for fragments.

A regression on the TF-IDF of neighbouring tokens is hard to beat where texts are few. So a net learns not only what a
text was labelled with, but also what a regression that was fitted without that text and its neighbours thinks of it
(Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"), and what it thinks of fragments of it: a sentence
of a long review is as short as the texts of which there are few labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from training.data import BLOCK

Tokens = list[int]


@dataclass(frozen=True)
class Recipe:
    """How much a net is taught by linear models."""

    folds: int = 5  # a fold's teacher learns from the others: four fifths of the texts
    grams: int = 2  # neighbouring tokens that are a feature, at most
    strength: float = 3.0  # C of the regression, as tuned on the validation part
    share: float = 0.5  # of a text's target that is its teacher's; the rest is its label
    every: int = 60  # tokens of a text, for each of which a fragment is drawn; shorter texts have none
    fragment: tuple[int, int] = (8, 40)  # tokens of a fragment: from, to below


def taught(
    rows: Sequence[Tokens], labels: np.ndarray, classes: int, plan: Recipe, seed: int
) -> tuple[list[Tokens], np.ndarray]:
    """Texts as tokens, in an order in which neighbours may resemble each other, and their labels [texts] → the texts
    and fragments of them, and their targets, probabilities float32 [texts and fragments, classes]."""
    folds = np.arange(len(rows)) // BLOCK % plan.folds
    targets = np.eye(classes, dtype=np.float32)[labels]
    fragments: list[Tokens] = []
    of_fragments = [np.zeros((0, classes), np.float32)]
    rng = np.random.default_rng([seed, 1])
    for fold in range(plan.folds):
        own = np.flatnonzero(folds == fold).tolist()
        others = np.flatnonzero(folds != fold).tolist()
        teacher = Teacher([rows[index] for index in others], labels[others], plan)
        targets[own] += plan.share * (teacher([rows[index] for index in own], classes) - targets[own])
        drawn = [piece for index in own for piece in _fragments(rows[index], plan, rng)]
        if drawn:
            fragments += drawn
            of_fragments.append(teacher(drawn, classes))
    return [*rows, *fragments], np.concatenate([targets, *of_fragments])


class Teacher:
    """A logistic regression on the TF-IDF of tokens and of their neighbours."""

    def __init__(self, rows: Sequence[Tokens], labels: np.ndarray, plan: Recipe) -> None:
        self._grams = plan.grams
        self._tfidf = TfidfVectorizer(analyzer=self._features, min_df=2, sublinear_tf=True)
        regression = LogisticRegression(C=plan.strength, solver="liblinear", random_state=0)
        model = regression if len(set(labels.tolist())) == 2 else OneVsRestClassifier(regression)
        self._model = model.fit(self._tfidf.fit_transform(rows), labels)

    def __call__(self, rows: Sequence[Tokens], classes: int) -> np.ndarray:
        """The probabilities of texts' labels, float32 [texts, classes]; zero of a label that it has not seen."""
        found = np.zeros((len(rows), classes), np.float32)
        found[:, self._model.classes_] = self._model.predict_proba(self._tfidf.transform(rows))
        return found

    def _features(self, row: Tokens) -> list[tuple[int, ...]]:
        return [tuple(row[at : at + n]) for n in range(1, self._grams + 1) for at in range(len(row) - n + 1)]


def _fragments(row: Tokens, plan: Recipe, rng: np.random.Generator) -> list[Tokens]:
    pieces = []
    for length in rng.integers(*plan.fragment, size=len(row) // plan.every):
        start = int(rng.integers(0, len(row) - length))
        pieces.append(row[start : start + int(length)])
    return pieces
