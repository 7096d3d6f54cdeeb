"""Texts in batches by length: the same answers in the same order, whatever the batch."""

import numpy as np
import pytest

import seqexport
from seqexport import InputError, UnsupportedError
from seqexport.batching import BATCH, by_length, in_order

TEXTS = ["what", "", "what is this", "this this this this is what", "is", "zebra", "what is " * 40, "this"] * 3


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_every_size_gives_what_each_text_alone_gives(exported_texts, runtime, size):
    path = exported_texts["classify"]
    model = seqexport.load(path if runtime == "torch" else path.with_suffix(".onnx"), runtime, pipeline="classify")
    alone = np.concatenate([seqexport.classify(model, [text]) for text in TEXTS])
    assert len(np.unique(alone.round(5), axis=0)) > 4  # they are not all the same
    found = seqexport.classify(model, TEXTS, size=size)
    assert found.dtype == np.float32 and found.shape == alone.shape
    assert np.abs(found - alone).max() <= 1e-5


def test_batches_hold_each_text_once_the_longest_first_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 400, 1000)
    batches = by_length(lengths)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert [len(batch) for batch in batches[:-1]] == [BATCH] * (len(batches) - 1)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert (
        padded
        < 1.1 * lengths.sum()
        < 1.6 * lengths.sum()
        < sum(len(batch) * lengths[batch].max() for batch in in_order(1000, BATCH))
    )
    assert lengths[batches[0]].min() >= lengths[batches[1]].max()


def test_long_texts_have_few_beside_them():
    batches = by_length([100_000, 9_000, 9_000, 9_000, 9_000, 1, 0], numbers=2**15)
    assert [batch.tolist() for batch in batches] == [[0], [1, 2, 3], [4, 5, 6]]


def test_what_is_no_classifier_and_what_is_no_text_are_sentences(exported, exported_texts):
    network = seqexport.load(exported_texts["classify"].with_suffix(".onnx"))
    generator = seqexport.load(exported_texts["generate"].with_suffix(".onnx"), pipeline="generate")
    forecaster = seqexport.load(exported["gru"].with_suffix(".onnx"), pipeline="forecast")
    for model in (network, generator, forecaster):
        with pytest.raises(
            UnsupportedError, match='expected a classifier.s pipeline: load the file with pipeline="cla'
        ):
            seqexport.classify(model, ["what"])
    classifier = seqexport.load(exported_texts["classify"].with_suffix(".onnx"), pipeline="classify")
    assert seqexport.classify(classifier, []).shape == (0, 3)
    with pytest.raises(InputError, match="lone surrogate"):
        seqexport.classify(classifier, ["what", "\ud800"])
