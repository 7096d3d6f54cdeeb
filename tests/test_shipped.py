"""What is shipped is what the code of today makes, and what README and the cards say of it is so."""

import csv
import json
import re

import numpy as np
import pytest

import seqexport
from seqexport.deployment import model_card, results_table
from seqexport.specs import CELLS
from seqexport.verification import Outcome, Report
from training import measure, publish

FOLDERS = {cell: publish.ROOT / "exported" / f"sunspots-{cell}" for cell in CELLS}


def shipped_report(cell):
    content = json.loads((FOLDERS[cell] / "report.json").read_text())
    assert content["passed"] is True
    return Report(tuple(Outcome(case["part"], case["case"], case["errors"]) for case in content["cases"]))


@pytest.mark.parametrize("cell", CELLS)
def test_shipped_files_are_verified_again(cell):
    for file in ("checkpoint.onnx", "checkpoint.forecast.onnx"):
        assert seqexport.verify_files(FOLDERS[cell] / "checkpoint.pt", FOLDERS[cell] / file).passed


@pytest.mark.parametrize("cell", CELLS)
def test_exporting_a_shipped_checkpoint_again_gives_the_shipped_graph(cell, tmp_path):
    report = seqexport.export(FOLDERS[cell] / "checkpoint.pt", tmp_path / "checkpoint.onnx")
    for file in report.files:
        name = file.path.rpartition("/")[2]
        assert file.bytes == pytest.approx((FOLDERS[cell] / name).stat().st_size, abs=64)  # versions' names vary


@pytest.mark.parametrize("cell", CELLS)
def test_a_shipped_model_beats_repeating_the_past_and_its_card_has_its_own_figures(cell):
    checkpoint = seqexport.read_checkpoint(FOLDERS[cell] / "checkpoint.pt")
    metrics = checkpoint.metrics
    naive = metrics["baselines"]["seasonal naive (132)"], metrics["baselines"]["last value"]
    assert metrics["test"]["mae"] < min(naive)
    card = (FOLDERS[cell] / "README.md").read_text()
    for value in (metrics["test"]["mae"], *metrics["baselines"].values()):
        assert f"| {value:.2f} |" in card
    remade = model_card(checkpoint, shipped_report(cell), "", "")
    table = re.search(r"\| graph \| output.*?\n\n", card, re.DOTALL)
    assert table and table[0] in remade


def test_readme_has_the_shipped_models_figures():
    models = {
        cell: (dict(seqexport.read_checkpoint(FOLDERS[cell] / "checkpoint.pt").metrics), shipped_report(cell))
        for cell in CELLS
    }
    assert results_table(models) in (publish.ROOT / "README.md").read_text()


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


def test_taking_turns_runs_every_call_in_every_round():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    seconds = measure.taking_turns({name: lambda name=name: call(name) for name in calls}, rounds=4)
    assert calls == {"a": 6, "b": 6}
    assert set(seconds) == {"a", "b"}
