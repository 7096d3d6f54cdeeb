"""What is shipped is what the code of today makes, and what README and the cards say of it is so."""

import csv
import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

import seqexport
from seqexport.deployment import model_card
from seqexport.quantization import agreement
from seqexport.reports import Outcome, Report
from seqexport.runtimes import int8_path, pipeline_path
from seqexport.specs import CELLS
from training import publish

EXPORTED = publish.ROOT / "exported"
MODELS = {model.name: model for model in publish.MODELS}
FEW = ("sunspots-gru", "uk-demand-lstm", "sentiment-en", "characters-en")  # the others in the slow run
FEW_FIRST = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in MODELS]


def shipped_report(name):
    content = json.loads((EXPORTED / name / "report.json").read_text())
    assert content["passed"] is True
    # Two characters of several thousand may be as likely as rounding lets them be; then either is right.
    assert all(float(re.search(r"decided by a margin of (\S+)", tie)[1]) < 1e-6 for tie in content["ties"])
    return Report(tuple(Outcome(case["part"], case["case"], case["errors"]) for case in content["cases"]))


@pytest.mark.parametrize("name", FEW_FIRST)
def test_shipped_files_are_verified_again(name):
    checkpoint = EXPORTED / name / "checkpoint.pt"
    task = seqexport.read_checkpoint(checkpoint).task
    for file in ("checkpoint.onnx", f"checkpoint.{task}.onnx"):
        assert seqexport.verify_files(checkpoint, EXPORTED / name / file).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_shipped_files_have_every_property(name):
    checkpoint = EXPORTED / name / "checkpoint.pt"
    task = seqexport.read_checkpoint(checkpoint).task
    data = EXPORTED / "sunspots.csv" if name.startswith("sunspots") else None
    for file, samples in (("checkpoint.onnx", None), (f"checkpoint.{task}.onnx", data)):
        report = seqexport.verify_files(checkpoint, EXPORTED / name / file, thorough=True, data=samples)
        assert report.passed, [tried for tried in report.properties if not tried.held]
        assert len(report.properties) >= 8


@pytest.mark.parametrize("name", FEW_FIRST)
def test_exporting_a_shipped_checkpoint_again_gives_the_shipped_graph(name, tmp_path):
    report = seqexport.export(EXPORTED / name / "checkpoint.pt", tmp_path / "checkpoint.onnx")
    for file in report.files:
        shipped = EXPORTED / name / file.path.rpartition("/")[2]
        assert file.bytes == pytest.approx(shipped.stat().st_size, abs=64)  # versions' names vary


def scores(metrics):
    """The figures of a model's test part and of its baselines, as a card writes them; the model's first."""
    if metrics["metric"] == "accuracy":
        model = [f"{100 * part['accuracy']:.1f} %" for part in metrics["test"].values()]
        return model, [f"{100 * share:.1f} %" for shares in metrics["baselines"].values() for share in shares.values()]
    if metrics["metric"] == "MAE":
        return [f"| {metrics['test']['mae']:.2f} |"], [f"| {mae:.2f} |" for mae in metrics["baselines"].values()]
    return [f"| {metrics['test']['bits']:.3f} |"], [f"| {bits:.3f} |" for bits in metrics["baselines"].values()]


@pytest.mark.parametrize("name", MODELS)
def test_a_card_has_its_models_own_figures(name):
    checkpoint = seqexport.read_checkpoint(EXPORTED / name / "checkpoint.pt")
    card = (EXPORTED / name / "README.md").read_text()
    model, baselines = scores(checkpoint.metrics)
    for figure in (*model, *baselines):
        assert figure in card
    remade = model_card(checkpoint, shipped_report(name), "", "")
    table = re.search(r"\| graph \| output.*?\n\n", card, re.DOTALL)
    assert table and table[0] in remade


@pytest.mark.parametrize("name", MODELS)
def test_a_card_is_one_that_the_hubs_library_reads(name):
    """By its reader, which refuses what are no results; its `validate` asks the Hub, which is not asked here."""
    metrics = seqexport.read_checkpoint(EXPORTED / name / "checkpoint.pt").metrics
    about = ModelCard.load(EXPORTED / name / "README.md").data
    assert (about.license, about.library_name) == ("mit", "onnx")
    assert {"onnx", MODELS[name].cell, "seqexport"} <= set(about.tags)
    found = {result.dataset_name: result.metric_value for result in about.eval_results}
    test = metrics["test"]
    if metrics["metric"] == "accuracy":
        expected = {part: score["accuracy"] for part, score in test.items()}
    else:
        expected = {MODELS[name].data: test["mae"] if metrics["metric"] == "MAE" else 2 ** test["bits"]}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_has_learned_something(name):
    metrics = seqexport.read_checkpoint(EXPORTED / name / "checkpoint.pt").metrics
    test, baselines = metrics["test"], metrics["baselines"]
    if metrics["metric"] == "MAE":
        naive = [error for baseline, error in baselines.items() if baseline.startswith(("seasonal", "last"))]
        assert test["mae"] < min(naive)
        assert 0.8 < test["coverage_90"] < 0.97
    elif metrics["metric"] == "accuracy":
        for part, score in test.items():
            assert score["accuracy"] - score["interval"] > baselines["majority"][part] + 0.15
    else:
        assert test["bits"] < max(baselines.values()) - 1


@pytest.mark.parametrize("series", ["sunspots", "electricity", "uk-demand"])
def test_the_best_cell_of_a_series_beats_every_baseline(series):
    found = [seqexport.read_checkpoint(EXPORTED / f"{series}-{cell}" / "checkpoint.pt").metrics for cell in CELLS]
    best = min(found, key=lambda metrics: metrics["test"]["mae"])
    assert best["test"]["mae"] < min(best["baselines"].values())
    assert best["test"]["crps"] < min(best["baselines_crps"].values())


def test_readme_has_the_shipped_models_figures():
    assert publish.tables(EXPORTED) in (publish.ROOT / "README.md").read_text()


def test_what_is_shipped_stays_small_and_holds_nobodys_text():
    files = [path for path in EXPORTED.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 10_000_000
    assert sum(path.stat().st_size for path in files) < 100_000_000
    kinds = {path.name.partition(".")[2] for path in files}
    parts = ("", "forecast.", "classify.", "generate.")
    assert kinds == {
        *("pt", "json", "md", "csv", "curve.png"),
        *(f"{part}{form}onnx" for part in parts for form in ("", "int8.")),
    }


@pytest.mark.parametrize("name", FEW_FIRST)
def test_int8_is_of_the_files_beside_it_and_near_them(name):
    path = EXPORTED / name / "checkpoint.onnx"
    task = seqexport.load(path).metadata["task"]
    for file in (path, pipeline_path(path, task)):
        int8 = seqexport.load(file, "onnxruntime-int8")  # which refuses one that was made of another file
        assert int8.metadata["verification"]["passed"]
        assert all(tried.held for tried in agreement(file, int8_path(file)))


def test_the_shipped_series_is_whole():
    with (publish.ROOT / "exported" / "sunspots.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["month", "sunspots"]
    assert (len(rows), rows[1][0], rows[-1][0]) == (3127, "1749-01", "2009-06")
    values = np.array([float(value) for _, value in rows[1:]])
    assert np.isfinite(values).all()
    assert values.min() >= 0


def test_a_block_is_replaced_between_its_markers_and_only_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: x -->\nold\n<!-- end -->\nb\n<!-- measured: y -->\n<!-- end -->\n")
    publish.write_block(page, "x", r"new \1")
    publish.write_block(page, "y", "other")
    assert page.read_text() == (
        "a\n<!-- measured: x -->\nnew \\1\n<!-- end -->\nb\n<!-- measured: y -->\nother\n<!-- end -->\n"
    )
    with pytest.raises(seqexport.FileError, match="no block"):
        publish.write_block(page, "z", "")
