"""Graphs of strings: they read what Python reads, of any string, and write what Python writes."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import characters, save_classifier, save_forecaster, save_generator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_text import SCRIPTS

import seqexport
from seqexport import FileError, InputError, ParityError, SpecError, UnsupportedError
from seqexport.cli import main
from seqexport.runtimes import OnnxRuntime
from seqexport.specs import READ, as_texts
from seqexport.text import MOST_MIXED, UNKNOWN, Vocabulary
from seqexport.textcases import AWKWARD, differences, joined_as_in_python, split_as_in_python
from seqexport.textgraphs import with_strings

WORDS = (UNKNOWN, "a", "don't", "caf\u00e9", "it\u2019s", "it's", "!", "\u4f60", "''", "3d", "\u0301", "\ud55c\uad6d")
SIGNS = (UNKNOWN, "a", "b", "'", "\x00", " ", "\u0301", "\u4f60", "\U0001f600", "\ufffd", "\n")
VOCABULARIES = {
    f"{unit}{' lower-cased' * lowercase}": Vocabulary(unit, WORDS if unit == "word" else SIGNS, lowercase)
    for unit, lowercase in itertools.product(("word", "character"), (False, True))
}
# Pieces of any script beside any other character; whole surrogates are no characters.
PIECES = st.text(
    st.one_of(st.sampled_from(SCRIPTS), st.sampled_from("".join(AWKWARD)), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)


def graph_of(vocabulary):
    """A graph of strings whose pipeline does next to nothing."""
    nodes = [
        helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "along"], ["probabilities"]),
        helper.make_node("Identity", ["lengths"], ["same"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numbers", TensorProto.INT64, ["batch", "time"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 1])]
    along = onnx.numpy_helper.from_array(np.array([1]), "along")
    graph = helper.make_graph(nodes, "classify.text", inputs, outputs, [along])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    network = {"cell": "gru", "features": 2, "hidden_size": 2, "vocabulary": len(vocabulary), "outputs": 1}
    about = {"part": "classify.text", "network": json.dumps(network | {"pooling": "last"})}
    helper.set_model_props(model, about)
    return with_strings(model, vocabulary, ["only"])


def reader(vocabulary):
    return OnnxRuntime(graph_of(vocabulary).SerializeToString()).only(*READ)


def tried_by_hypothesis(vocabulary, examples, seen):
    """Pieces drawn by Hypothesis, 25 at a time, each alone and before every other: 650 strings an example."""
    runtime = reader(vocabulary)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(PIECES, min_size=25, max_size=25))
    def check(pieces):
        texts = [*pieces, *(first + second for first, second in itertools.product(pieces, pieces))]
        seen.update(map(hash, texts))
        seen[None] = seen.get(None, 0) + len(texts)
        assert differences(runtime, vocabulary, texts) == []

    check()


class Seen(dict):
    """Which strings were tried, and under None how many."""

    def update(self, hashes):
        super().update(dict.fromkeys(hashes))


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_of_any_string_the_graph_reads_what_python_reads(kind):
    seen = Seen()
    tried_by_hypothesis(VOCABULARIES[kind], 3, seen)
    assert seen[None] >= 1_500


@pytest.mark.slow
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_of_a_million_strings_the_graph_reads_what_python_reads(kind):
    """A quarter of a million for each of the four kinds of vocabulary; README has how long it takes."""
    seen = Seen()
    tried_by_hypothesis(VOCABULARIES[kind], 390, seen)
    print(f"{kind}: {seen[None]:,} strings tried, {len(seen) - 1:,} of them different, 0 read otherwise")
    assert seen[None] >= 250_000
