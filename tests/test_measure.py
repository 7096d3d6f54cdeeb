"""The command that measures README's tables of speed and what the demo shows of them, at sizes that take no time."""

import functools
import json
from pathlib import Path

import jsonschema
import pytest
from test_comparison import MACHINE

import seqexport
from seqexport import comparison, scenarios, tables
from training import measure, publish


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A README and an exported/ of their own."""
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- measured: compare -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "runtimes.json")
    monkeypatch.setattr(measure, "SCENARIOS", ("step", "pipeline"))
    monkeypatch.setattr(comparison, "describe_machine", lambda: MACHINE)
    for name, value in {"CHARACTERS": 4, "HORIZON": 4, "PATHS": 2}.items():
        monkeypatch.setattr(scenarios, name, value)
    return tmp_path


@pytest.fixture
def few_runtimes(monkeypatch):
    compare = functools.partial(seqexport.compare, runtimes=("torch", "onnxruntime"))
    monkeypatch.setattr(measure.seqexport, "compare", compare)


def test_one_run_goes_into_the_file_and_into_readme(place, few_runtimes, monkeypatch):
    (place / "exported").symlink_to(publish.ROOT / "exported")
    monkeypatch.setattr(measure, "MODELS", ("sunspots-gru",))
    monkeypatch.chdir(place)
    found = measure.measure_compare(0.2, ["sunspots-gru", "uk-demand-rnn"])
    table = measure.write_comparison(found)
    written = json.loads((place / "runtimes.json").read_text())
    jsonschema.validate(written, json.loads(tables.SCHEMA.read_text()))
    names = [Path(model["path"]).parent.name for model in written["models"]]
    assert names == ["sunspots-gru", "uk-demand-rnn"]
    assert written["machine"]["processor"] == MACHINE.processor
    assert all(row["agrees"] for model in written["models"] for part in model["scenarios"] for row in part["rows"])
    readme = (place / "README.md").read_text()
    assert table in readme and "sunspots-gru" in readme and "uk-demand" not in readme and "old" not in readme


def test_classifiers_read_opinions_of_their_own_language(place, monkeypatch):
    asked = []

    def compare(path, data, **_):
        asked.append((path, data and data.name))
        return comparison.Comparison((), MACHINE, 1, 1.5)

    monkeypatch.setattr(measure.seqexport, "compare", compare)
    monkeypatch.setattr(measure, "written_samples", lambda folder, task, name, part: folder / f"{name}, {part}")
    found = measure.measure_compare(1, ["sentiment-zh", "characters-en", "sentiment-en"])
    assert [data for _, data in asked] == ["reviews-zh, test", None, "reviews-en, test"]
    assert found.seconds == 4.5


@pytest.mark.parametrize("every", [False, True])
def test_every_model_is_asked_for_by_name(place, monkeypatch, every):
    asked = []
    monkeypatch.setattr(measure, "measure_compare", lambda seconds, names: asked.extend([seconds, *names]))
    monkeypatch.setattr(measure, "write_comparison", lambda found: "a table")
    assert measure.main(["--only", "compare", "--seconds", "7", *(["--every"] if every else [])]) == 0
    seconds, *names = asked
    assert seconds == 7 and names[: len(measure.MODELS)] == list(measure.MODELS)
    assert set(names) == ({model.name for model in publish.MODELS} if every else set(measure.MODELS))
    assert len(names) == len(set(names))
