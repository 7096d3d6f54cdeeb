"""The task's own metric: computed here once more by hand, and bad sample files told apart."""

import math

import numpy as np
import pytest
from conftest import characters

import seqexport
from seqexport.errors import FileError, InputError
from seqexport.exporter import verify_files
from seqexport.runtimes import pipeline_path

SENTENCES = ["a good one", "never again!", "what was that?", "so, so."] * 5


def metric(checkpoint, part, data):
    path = checkpoint.with_suffix(".onnx")
    report = verify_files(checkpoint, path if part == "network" else pipeline_path(path, part), data=data)
    return report.properties[-1]


def test_a_forecasters_error_is_that_of_a_loop_by_hand(exported, tmp_path):
    rng = np.random.default_rng(3)
    series = (40 + 30 * np.sin(np.arange(70) / 5) + rng.normal(0, 3, 70)).astype(np.float32)
    data = tmp_path / "series.csv"
    data.write_text("month,value\n" + "".join(f"{place},{value}\n" for place, value in enumerate(series)))
    result = metric(exported["gru"], "forecast", data)
    runtime = seqexport.load(exported["gru"], pipeline="forecast")
    errors = []
    for start in range(len(series) - 48 - 12 + 1):
        history = series[None, start : start + 48]
        path = runtime.run({"history": history, "noise": np.zeros((1, 1, 12), np.float32)})["path"][0, 0]
        errors.append(np.abs(path - series[start + 48 : start + 60]).mean())
    assert result.held
    assert f"torch {np.mean(errors):.5g}" in result.notes[0]
    assert result.trials == len(errors)


def test_a_classifiers_accuracy_counts_the_right_labels(exported_texts, tmp_path):
    runtime = seqexport.load(exported_texts["classify"], pipeline="classify")
    vocabulary = characters()
    right = []
    for place, text in enumerate(SENTENCES):
        tokens, lengths = vocabulary.encode_batch([text])
        right.append(runtime.run({"tokens": tokens, "lengths": lengths})["probabilities"].argmax() == place % 3)
    data = tmp_path / "texts.csv"
    names = ("no", "yes", "2")  # a label by its name, or by its number
    rows = [f'"{text}",{names[place % 3]}' for place, text in enumerate(SENTENCES)]
    data.write_text("\n".join(["text,label", *rows]))
    result = metric(exported_texts["classify"], "classify", data)
    assert result.held
    assert result.trials == len(SENTENCES)
    assert f"torch {np.mean(right):.5g}" in result.notes[0]


def test_a_generators_bits_are_those_of_its_probabilities(exported_texts, tmp_path):
    text = "the same text, and the same bits. " * 3
    data = tmp_path / "text.txt"
    data.write_text(text)
    result = metric(exported_texts["generate"], "network", data)
    tokens, _ = characters().encode_batch([text])
    y = seqexport.load(exported_texts["generate"]).run({"tokens": tokens[:, :-1]})["y"][0].astype(np.float64)
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    bits = -np.mean([math.log2(row[token]) for row, token in zip(p, tokens[0, 1:], strict=True)])
    assert result.held
    assert f"torch {bits:.5g}" in result.notes[0]


@pytest.mark.parametrize(
    ("part", "content", "said"),
    [
        ("forecast", "value\n1\n2\n", "has 2 values; expected at least 60"),
        ("forecast", "value\n1\nx\n", "'x' as value 2"),
        ("forecast", "value\n1\nnan\n", "expected a finite number"),
        ("forecast", "", "has 0 values"),
        ("classify", "words,label\na,no\n", "expected text, label"),
        ("classify", "text,label\na,perhaps\n", "the label 'perhaps' in row 1"),
        ("classify", "text,label\n", "has no text"),
        ("network", "", "expected at least 2"),
    ],
)
def test_bad_samples_are_one_sentence(exported, exported_texts, tmp_path, part, content, said):
    data = tmp_path / "data"
    data.write_text(content)
    tasks = {"forecast": exported["gru"], "network": exported_texts["generate"]}
    with pytest.raises(InputError, match=said):
        metric(tasks.get(part, exported_texts["classify"]), part, data)


def test_samples_that_can_not_be_read_or_have_no_metric(exported, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="not text in UTF-8"):
        metric(exported["gru"], "forecast", tmp_path / "bytes")
    with pytest.raises(FileError, match="could not be read"):
        metric(exported["gru"], "forecast", tmp_path / "missing")
    (tmp_path / "series").write_text("1\n" * 100)
    with pytest.raises(InputError, match="no metric for this graph"):
        metric(exported["gru"], "network", tmp_path / "series")
