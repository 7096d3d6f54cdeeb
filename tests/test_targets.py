"""The commands that measure: what they are held to, at sizes that take no time. Never an asserted time."""

import csv

import numpy as np
import pytest

import seqexport
from seqexport import scenarios
from seqexport.comparison import Row, Table
from seqexport.errors import SeqExportError
from seqexport.timing import Ratio, Times
from training import costs, samples, targets
from training import data as datasets
from training.targets import Target


@pytest.mark.parametrize(
    ("reach", "value", "word"),
    [
        ("≥ 4 ×", 4.0, "yes"),
        ("≥ 4 ×", 3.99, "no"),
        ("≥ 1.6 ×", 1.7, "yes"),
        ("≤ 0.3 s", 0.3, "yes"),
        ("≤ 0.27 ×", 0.271, "no"),
        ("≥ 4 ×", float("nan"), "no"),
        ("≤ 4 ×", float("nan"), "no"),
        ("", 7.0, "–"),
    ],
)
def test_a_target_is_reached_or_not(reach, value, word):
    assert Target("a", "b", f"{value} ×", value, reach).reached == word


def test_no_ratio_is_told_where_an_answer_differs():
    with pytest.raises(SeqExportError, match="there is no ratio to torch"):
        targets.ratio_target("generate", "torch", None)
    timed = Times({0: [1.0]})
    rows = (
        Row("a", "torch", True, 0.5, False, notes=("token 3 differs",)),
        Row("b", "torch", True, 0.0, True, times=timed),
    )
    table = Table("step", "a step", "step", 1, {}, rows, "", 1.0)
    assert targets.only(table, "b").label == "b"
    with pytest.raises(SeqExportError, match="token 3 differs"):
        targets.only(table, "a")
    assert targets.ratio_target("x", "y", Ratio(4.2, 4.0, 4.4), "≥ 4 ×").text == "4.2 (4–4.4) ×"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(targets, "RUNTIMES", ("torch", "onnxruntime", "onnxruntime-int8"))
    monkeypatch.setattr(targets, "HORIZON", 6)
    monkeypatch.setattr(targets, "CONTEXT", 24)
    for name, value in {"CHARACTERS": 12, "HORIZON": 6, "PATHS": 3}.items():
        monkeypatch.setattr(scenarios, name, value)


def test_a_window_read_again_is_the_same_path_where_it_grows(quick, tmp_path):
    path = targets.forecaster(tmp_path)
    seqexport.export(path)
    history = np.random.default_rng(0).normal(50, 20, (1, 3)).astype(np.float32)  # short, so that what slid out tells
    feeds = {"history": history, "noise": np.zeros((1, 1, 6), np.float32)}
    expected = seqexport.load(path.with_suffix(".onnx"), pipeline="forecast").run(feeds)["path"][0, 0]
    network = seqexport.load(path, runtime="torch")
    assert np.abs(targets.reread(network, history, slides=False) - expected).max() <= 1e-4
    assert 1e-4 < np.abs(targets.reread(network, history, slides=True) - expected).max() < 20


def test_the_forecast_is_measured_beside_loops_and_windows(quick, tmp_path):
    found = list(targets.forecasting(tmp_path, 0.2))
    assert [target.reach for target in found] == ["≥ 3 ×", "≥ 20 ×"]
    assert all(target.value > 0 and "GRU 2×32 (untrained)" in target.what for target in found)


def test_an_untrained_generator_passes_its_gate_and_has_that_many_tokens(tmp_path):
    path = targets.generator(tmp_path, 64, 300)
    report = seqexport.export(path, precision="fp32,int8")
    assert report.passed and all(tried.held for tried in report.properties)
    assert seqexport.read_checkpoint(path).spec.vocabulary == 300
    feeds = {"prompt": np.ones((1, 1), np.int64), "uniforms": np.random.default_rng(0).random((1, 400), np.float32)}
    written = seqexport.load(path.with_suffix(".onnx"), pipeline="generate").run(feeds)["tokens"]
    assert 30 < len(np.unique(written)) < 300  # neither always the same, nor drawn evenly


@pytest.mark.slow
def test_the_cost_of_steps_sizes_and_a_soak_is_told_and_drawn(quick, tmp_path, monkeypatch):
    path = targets.generator(tmp_path, 32, 40)
    seqexport.export(path, precision="fp32,int8")
    small = lambda runtime: seqexport.load(path.with_suffix(".onnx"), runtime, pipeline="generate")  # noqa: E731
    monkeypatch.setattr(costs, "shipped", small)
    monkeypatch.setattr(costs, "STEPS", (5, 50))
    monkeypatch.setattr(costs, "HIDDEN", (16, 32))
    monkeypatch.setattr(costs, "TEXT", 8)
    monkeypatch.setattr(costs, "CHUNK", 30)
    curves = [costs.over_steps(0.05), costs.over_sizes(tmp_path, 0.05, "hidden")]
    assert set(curves[0].seconds) == {"onnxruntime", "onnxruntime-int8"}
    assert set(curves[1].seconds) == {"onnxruntime", "onnxruntime-int8", "torch"}
    assert all(value > 0 for curve in curves for seconds in curve.seconds.values() for value in seconds)
    said = costs.table(curves[1])
    assert said.startswith("| hidden size, 2 layers, vocabulary 80 | 16 | 32 |") and "torch, its best" in said
    picture = costs.picture(curves)
    assert picture.startswith("<svg") and "characters written in one call" in picture
    seen = costs.soak("onnxruntime", 1_000)
    assert seen.characters == 1_200 and len(seen.seconds) == 4 and min(seen.memory) > 2**20
    assert costs.soak_said("onnxruntime", seen).startswith("| float32 in-graph | 1,200 |")


def test_the_soak_is_one_text_whose_state_is_carried(tmp_path, monkeypatch):
    path = targets.generator(tmp_path, 32, 40)
    seqexport.export(path)
    model = seqexport.load(path.with_suffix(".onnx"), pipeline="generate")
    runs, fed = model.run, []
    monkeypatch.setattr(model, "run", lambda feeds: fed.append(feeds) or runs(feeds))
    monkeypatch.setattr(costs, "shipped", lambda runtime: model)
    monkeypatch.setattr(costs, "CHUNK", 20)
    costs.soak("onnxruntime", 600)
    uniforms = np.concatenate([feeds["uniforms"] for feeds in fed], 1)
    whole = runs({"prompt": np.ones((10, 1), np.int64), "uniforms": uniforms})["tokens"]
    assert (fed[1]["prompt"] == whole[:, 19:20]).all() and (fed[2]["prompt"] == whole[:, 39:40]).all()


@pytest.mark.parametrize(("task", "name"), [("forecast", "sine"), ("classify", "opinions"), ("generate", "sentences")])
def test_samples_are_files_that_data_reads(tmp_path, task, name):
    path = samples.written_samples(tmp_path, task, name, "validation")
    if task == "generate":
        assert path.read_text(encoding="utf-8") == datasets.load_text(name).parts["validation"]
        return
    with path.open(encoding="utf-8", newline="") as file:
        first, *rows = csv.reader(file)
    if task == "classify":
        assert first == ["text", "label"] and len(rows) == len(datasets.load_reviews(name).parts["validation"])
    else:
        series = datasets.load(name)
        assert first == ["value"] and [float(row[0]) for row in rows] == pytest.approx(
            [series.values[place] for place in series.parts["validation"]], rel=1e-5
        )
