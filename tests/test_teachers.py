"""Linear models as teachers: no text is taught by a model that learnt from it or its neighbours."""

import numpy as np
import pytest

from training import teachers
from training.data import BLOCK


def reviews(count=400, length=12, seed=0):
    """Texts of tokens 1 to 29, of which 1 says yes and 2 says no, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    rows = [[*rng.integers(3, 30, length - 1).tolist(), int(2 - label)] for label in labels]
    return rows, labels


def test_a_text_is_taught_by_models_that_do_not_know_its_block():
    rows, labels = reviews()
    rows = [[*row, 100 + place // BLOCK] for place, row in enumerate(rows)]  # a token that gives the block away
    labels[:BLOCK] = 1 - labels[:BLOCK]  # and in the first block the words say the opposite
    texts, targets = teachers.taught(rows, labels, 2, teachers.Recipe(folds=4), seed=0)
    assert texts == rows and targets.shape == (400, 2) and targets.dtype == np.float32
    assert np.allclose(targets.sum(1), 1, atol=1e-5)
    soft = 2 * targets - np.eye(2)[labels]  # the teachers' half
    wrong = soft.argmax(1) != labels
    assert wrong[:BLOCK].mean() > 0.9 and wrong[BLOCK:].mean() < 0.1


def test_fragments_are_pieces_of_the_texts_and_labelled_by_the_teachers():
    rows, labels = reviews(length=130)
    plan = teachers.Recipe(every=40, fragment=(5, 9))
    texts, targets = teachers.taught(rows, labels, 2, plan, seed=3)
    fragments = texts[len(rows) :]
    assert len(fragments) == 3 * len(rows) and len(targets) == len(texts)
    assert {len(piece) for piece in fragments} == {5, 6, 7, 8}
    whole = {tuple(row[at : at + 5]) for row in rows for at in range(126)}
    assert all(tuple(piece[:5]) in whole for piece in fragments)
    again = teachers.taught(rows, labels, 2, plan, seed=3)
    assert again[0] == texts and np.array_equal(again[1], targets)
    assert teachers.taught(rows, labels, 2, plan, seed=4)[0] != texts


def test_short_texts_have_no_fragments_and_a_share_of_none_leaves_the_labels():
    rows, labels = reviews()
    texts, targets = teachers.taught(rows, labels, 2, teachers.Recipe(share=0.0), seed=0)
    assert texts == rows and np.array_equal(targets, np.eye(2, dtype=np.float32)[labels])


@pytest.mark.parametrize("grams, expected", [(1, [(1,), (2,), (3,)]), (2, [(1,), (2,), (3,), (1, 2), (2, 3)])])
def test_features_are_tokens_and_their_neighbours(grams, expected):
    rows, labels = reviews(40)
    assert teachers.Teacher(rows, labels, teachers.Recipe(grams=grams))._features([1, 2, 3]) == expected


def test_a_teacher_of_several_classes_gives_a_place_to_each():
    rows, labels = reviews()
    labels = np.where(labels == 1, 3, labels)  # of four labels it sees two, and then three
    found = teachers.Teacher(rows, labels, teachers.Recipe())(rows[:9], 4)
    assert found.shape == (9, 4) and not found[:, 1:3].any() and np.allclose(found.sum(1), 1, atol=1e-5)
    labels[::3] = 1
    found = teachers.Teacher(rows, labels, teachers.Recipe())(rows[:9], 4)
    assert found[:, 1].all() and not found[:, 2].any() and np.allclose(found.sum(1), 1, atol=1e-5)
