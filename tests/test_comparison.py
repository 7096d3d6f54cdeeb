"""Answers before speed, who is absent, and what comes out: never an asserted time."""

import importlib.util
import json
from dataclasses import replace

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from conftest import save_classifier, save_forecaster
from test_timing import Clock

import seqexport
from seqexport import InputError, UnsupportedError, cli, comparison, footprint, scenarios, tables
from seqexport.comparison import Comparison, compare, tabled
from seqexport.footprint import Footprint, Machine
from seqexport.quantization import COSINE_BESIDE
from seqexport.runtimes import OnnxRuntime, TorchRuntime
from seqexport.scenarios import Entrant
from seqexport.timing import Job

MACHINE = Machine("a processor", ("avx2",), 2, "Linux", "3.11", {"torch": "2.13"}, {1: 4e10, 256: 1e10})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No children, and lengths that take no time: what is tested is who is compared with whom."""
    monkeypatch.setattr(comparison, "describe_machine", lambda: MACHINE)
    monkeypatch.setattr(comparison, "footprint", lambda label, *_: Footprint(label, 10, 1.5, 0.1, 2**20))
    monkeypatch.setattr(comparison, "GRID", ((1, 3), (2, 3)))
    monkeypatch.setattr(comparison, "MAP", ((4, 8), (1, 2), (1, 3)))
    monkeypatch.setattr(comparison, "TEXTS", 12)
    monkeypatch.setenv("COLUMNS", "160")
    for name, value in {"CHARACTERS": 12, "HORIZON": 5, "PATHS": 3, "SLICE": 6}.items():
        monkeypatch.setattr(scenarios, name, value)


FAST = ("torch", "onnxruntime")
PARTS = ("step", "sequence", "throughput", "pipeline", "footprint")


def rows_of(found, key):
    table = next(table for table in found.models[0].tables if table.key == key)
    return {row.label: row for row in table.rows}


def test_a_forecaster_from_its_step_to_its_pipeline(exported):
    found = compare(exported["lstm"], runtimes=(*FAST, "reference"), scenarios=PARTS, seconds=1)
    steps = rows_of(found, "step")
    assert set(steps) == {"torch, oneDNN on", "torch, oneDNN off", "onnxruntime", "reference"}
    assert all(row.agrees and row.times.calls for row in steps.values())
    assert steps["torch, oneDNN on"].error is None
    assert 0 < steps["onnxruntime"].error <= 1e-5
    paths = rows_of(found, "forecast")
    assert set(paths) == {*steps, "onnxruntime, step loop"}
    assert [row.label for row in paths.values() if row.is_peer] != []
    assert not paths["onnxruntime"].is_peer and not paths["reference"].is_peer
    assert paths["onnxruntime, step loop"].is_peer and paths["onnxruntime, step loop"].peer is None
    table = found.models[0].tables[0]
    assert (table.default, table.best in ("torch, oneDNN on", "torch, oneDNN off")) == ("torch, oneDNN on", True)
    assert {table.key for table in found.models[0].tables} == {
        *("step", "sequence", "throughput", "forecast", "forecast, many paths")
    }


def test_torchs_default_never_stands_alone(exported):
    found = compare(exported["gru"], runtimes=FAST, scenarios=("step",), seconds=0.5)
    row = rows_of(found, "step")["onnxruntime"]
    assert row.default is not None and row.best is not None
    assert row.best.value <= row.default.value * 1.5
    assert "| × torch's default | × torch's best |" in tables.markdown(found)


def test_whoever_differs_gets_no_speed(exported, monkeypatch):
    class Wrong(OnnxRuntime):
        def _run(self, feeds):
            y, *state = super()._run(feeds)
            return [y + np.float32(0.01), *state]

    monkeypatch.setattr(scenarios, "load", lambda path, name, **options: Wrong(path))
    found = compare(exported["gru"], runtimes=FAST, scenarios=("step", "sequence"), seconds=0.5)
    for key in ("step", "sequence"):
        row = rows_of(found, key)["onnxruntime"]
        assert not row.agrees and row.times is None and row.default is None
        assert row.error > 1e-3
        assert "no speed" in row.notes[-1]
        assert row.to_dict()["seconds"] is None
    assert "| onnxruntime | – | – |" in tables.markdown(found)


def test_another_text_is_another_answer_and_a_crash_is_a_note(exported_texts, monkeypatch):
    class Other(OnnxRuntime):
        def _run(self, feeds):
            tokens, *state = super()._run(feeds)
            return [(tokens + 1) % 30, *state]

    class Broken(OnnxRuntime):
        def _run(self, feeds):
            raise RuntimeError("no such kernel\nand more")

    for kind, note in ((Other, "token"), (Broken, "could not run: no such kernel")):
        monkeypatch.setattr(
            scenarios,
            "load",
            lambda path, name, pipeline=None, kind=kind, **_: kind(
                path if pipeline is None else path.with_name(f"{path.stem}.{pipeline}.onnx")
            ),
        )
        found = compare(exported_texts["generate"], runtimes=FAST, scenarios=("pipeline",), seconds=0.5)
        row = rows_of(found, "generate")["onnxruntime"]
        assert row.times is None and not row.agrees
        assert note in row.notes[0]
        jsonschema.validate(
            json.loads(json.dumps(found.to_dict(), allow_nan=False)), json.loads(tables.SCHEMA.read_text())
        )


def test_generators_and_classifiers_decide_alike(exported_texts):
    found = compare(list(exported_texts.values()), runtimes=FAST, scenarios=("pipeline",), seconds=1)
    generate, classify = found.models
    for table in generate.tables:
        assert all(row.decided == {"token": 12} for row in table.rows if row.error is not None)
    (table,) = classify.tables
    assert table.title == "12 texts of the vocabulary's own words, drawn at random, 6 at a time"
    labels = {row.label for row in table.rows}
    assert {
        "torch, oneDNN on, batches of 32",
        "torch, oneDNN on, batches of 32 by length",
        "torch, oneDNN on, one by one",
        "onnxruntime, network, one by one",
    } <= labels
    assert "onnxruntime, network, batches of 32" not in labels
    assert table.default == "torch, oneDNN on, batches of 32"
    assert all(row.decided == {"label": 12} for row in table.rows if row.error is not None)


def test_real_texts_come_from_a_file(exported_texts, tmp_path):
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n" + "\n".join(f"what is this {place},yes" for place in range(7)))
    found = compare(exported_texts["classify"], runtimes=FAST, scenarios=("pipeline",), seconds=0.5, data=data)
    assert found.models[0].tables[0].title == "7 texts of reviews.csv, 6 at a time"
    with pytest.raises(InputError, match="--data is of use to a classifier's pipeline only"):
        compare(exported_texts["generate"], runtimes=FAST, scenarios=("pipeline",), seconds=0.5, data=data)


def test_the_absent_are_listed_with_their_command(exported, monkeypatch):
    found_by = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "openvino" else found_by(name))
    asked = ("torch", "openvino", "onnxruntime-int8")
    found = compare(exported["gru"], runtimes=asked, scenarios=("step",), seconds=0.2)
    absent = {entry.runtime: entry.command for entry in found.models[0].absent}
    quantise = f"python -m seqexport quantize {exported['gru'].with_suffix('.onnx')}"
    assert absent == {"openvino": "python -m pip install openvino", "onnxruntime-int8": quantise}
    assert "absent: openvino: it is not installed: `python -m pip install openvino`" in tables.markdown(found)
    with pytest.raises(UnsupportedError, match=r"None of the runtimes can run .*pip install openvino"):
        compare(exported["gru"], runtimes=("openvino",), scenarios=("step",))


def test_int8_has_a_gate_of_its_own(tmp_path, monkeypatch):
    path = save_forecaster(tmp_path / "net.pt", "gru", hidden_size=48)
    seqexport.export(path, precision="fp32,int8")
    asked = ("torch", "onnxruntime-int8")
    found = compare(path, runtimes=asked, scenarios=("step",), seconds=0.2)
    assert [tried.name for tried in found.models[0].gate] == ["int8 cosine", "int8 length"]
    assert all(tried.held and tried.error > 0 for tried in found.models[0].gate)
    jsonschema.validate(json.loads(json.dumps(found.to_dict())), json.loads(tables.SCHEMA.read_text()))
    assert "| gated |" in tables.markdown(found) and "int8 beside float32: network, cosine" in tables.markdown(found)
    assert rows_of(found, "step")["onnxruntime-int8"].times.calls
    model = onnx.load(tmp_path / "net.int8.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            tensor.raw_data = (-np.frombuffer(tensor.raw_data, np.int8)).tobytes()
    onnx.save(model, tmp_path / "net.int8.onnx")
    found = compare(path, runtimes=asked, scenarios=("step",), seconds=0.2)
    row = rows_of(found, "step")["onnxruntime-int8"]
    assert not found.models[0].gate[0].held and row.times is None
    assert row.notes[0].startswith("misses its gate: network, cosine")


def test_each_int8_file_has_a_gate_and_a_metric_widens_the_networks(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "gru", hidden_size=48)
    samples = tmp_path / "series.csv"
    samples.write_text("value\n" + "\n".join(f"{20 + 10 * np.sin(place / 4):.3f}" for place in range(300)))
    seqexport.export(path, precision="fp32,int8", data=samples)
    found = compare(path, runtimes=("torch", "onnxruntime-int8"), scenarios=("step", "pipeline"), seconds=0.5)
    gate = {(tried.part, tried.name): tried for tried in found.models[0].gate}
    assert {part for part, _ in gate} == {"network", "forecast"}
    assert {tried.allowed for (_, name), tried in gate.items() if name == "int8 cosine"} == {COSINE_BESIDE}


def test_a_checkpoint_without_its_file_or_with_an_older_one_is_exported_aside(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "rnn")
    found = compare(path, runtimes=FAST, scenarios=("step",), seconds=0.2)
    assert "there is no net.onnx beside it: exported into a temporary folder" in found.models[0].notes[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]
    seqexport.export(path)
    before = (tmp_path / "net.onnx").read_bytes()
    save_forecaster(path, "rnn", seed=5)
    found = compare(path, runtimes=FAST, scenarios=("step",), seconds=0.2)
    assert "net.onnx beside it is of other weights" in found.models[0].notes[-1]
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_a_bare_state_dict_is_compared_without_a_pipeline(tmp_path):
    torch.save(torch.nn.GRU(3, 8).state_dict(), tmp_path / "gru.pt")
    found = compare(tmp_path / "gru.pt", runtimes=FAST, scenarios=("step", "pipeline"), seconds=0.2)
    assert [table.key for table in found.models[0].tables] == ["step"]


def test_an_onnx_file_alone_is_held_against_onnxruntime(exported):
    path = exported["gru"].with_suffix(".onnx")
    asked = ("torch", "onnxruntime", "reference")
    found = compare(path, runtimes=asked, scenarios=("step", "pipeline"), seconds=0.5)
    assert "onnxruntime is what the others are held against" in found.models[0].notes[0]
    assert [entry.runtime for entry in found.models[0].absent] == ["torch"]
    rows = rows_of(found, "step")
    assert rows["onnxruntime"].error is None and rows["reference"].error <= 1e-5
    assert "torch's best" not in tables.markdown(found).partition("Each runtime")[0]
    with pytest.raises(UnsupportedError, match=r"is not a network's file .*give the checkpoint"):
        compare(path.with_name("gru.forecast.onnx"), runtimes=asked)


def test_the_map_says_who_is_fastest_at_every_place(exported):
    found = compare(exported["gru"], runtimes=(*FAST, "torch-compile"), scenarios=("map",), seconds=1)
    cells = found.models[0].cells
    assert {(cell.hidden, cell.batch, cell.length) for cell in cells} == {
        (h, b, t) for h in (4, 8) for b in (1, 2) for t in (1, 3)
    }
    assert all({row.runtime for row in cell.table.rows} == set(FAST) for cell in cells)
    said = tables.markdown(found)
    assert "untrained nets of this kind (without torch-compile, onnxruntime-int8, reference)" in said
    assert "| 4 | 1 × 1 |" in said


def test_the_time_is_shared_out_and_kept_to(monkeypatch):
    clock = Clock()
    entrants = [Entrant(name, "torch", None) for name in ("torch, oneDNN on", "torch, oneDNN off")]
    asked = scenarios.Scenario(
        *("step", "", "step", 1, entrants),
        lambda entrant: {"y": np.zeros(1, np.float32)},
        lambda entrant: Job(
            lambda _: setattr(clock, "now", clock.now + np.random.default_rng(int(clock.now * 1e6)).random())
        ),
        scenarios._network_judge(seqexport.specs.NetworkSpec("gru", 1, 4)),
    )
    table = tabled(asked, 30.0, clock=clock)
    assert 20 < clock.now < 33
    assert table.ended == "the time was used up"


def test_the_document_and_the_files(exported, tmp_path, capsys):
    asked = ["--runtimes", "torch,onnxruntime", "--seconds", "1", "-o", str(tmp_path / "made"), "--json"]
    assert cli.main(["compare", str(exported["gru"]), *asked]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"threads", "tolerance", "machine", "seconds", "models"}
    (model,) = document["models"]
    assert set(model) == {*("path", "found", "notes", "weights", "absent", "int8", "scenarios", "footprints", "map")}
    scenario = model["scenarios"][0]
    assert set(scenario) == {
        *("key", "title", "unit", "work", "sizes", "rows", "ended", "seconds", "default", "best", "peer")
    }
    row = next(row for row in scenario["rows"] if row["label"] == "onnxruntime")
    assert set(row["seconds"]) == {"p50", "p90", "p99", "interval", "calls", "rounds"}
    assert set(row["faster_than"]) == {"torch_default", "torch_best", "best_peer"}
    assert set(row["faster_than"]["torch_best"]) == {"value", "low", "high"}
    assert model["footprints"][0]["memory"] == 2**20
    made = {path.name for path in (tmp_path / "made").iterdir()}
    pictures = {"latency.svg", "map.svg", "roofline.svg"}
    assert made == {"comparison.md", "comparison.json"} | (
        pictures if importlib.util.find_spec("matplotlib") else set()
    )
    assert json.loads((tmp_path / "made" / "comparison.json").read_text()) == document
    jsonschema.validate(document, json.loads(tables.SCHEMA.read_text()))
    for name in pictures & made:
        text = (tmp_path / "made" / name).read_text()
        assert text.startswith("<svg") and "onnxruntime" in text and "#000000" not in text


def test_the_terminal_shows_the_same_cells(exported, capsys):
    asked = ["--runtimes", "torch,onnxruntime", "--scenarios", "step,footprint", "--seconds", "0.5"]
    assert cli.main(["compare", str(exported["gru"]), *asked]) == 0
    shown = capsys.readouterr().out
    for text in ("one step, state carried", "torch, oneDNN off", "in a fresh process", "1 MiB", "a processor (avx2)"):
        assert text in shown


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["{none}"], "There is no file"),
        (["{net}", "--runtimes", "tflite"], "There is no runtime 'tflite'; expected some of torch, torch-compile"),
        (["{net}", "--runtimes", ","], "There is no runtime to compare"),
        (["{net}", "--scenarios", "race"], "There is no scenario 'race'; expected some of step"),
        (["{net}", "--threads", "0"], "A runtime needs at least 1 thread, got 0."),
        (["{net}", "--seconds", "0"], "The time to measure is 0.0 seconds; expected more than 0."),
        (["{text}"], "text"),
        (["{net}", "-o", "{text}/below"], "could not be made"),
    ],
)
def test_bad_input_is_one_sentence(exported, tmp_path, capsys, arguments, sentence):
    (tmp_path / "text").write_text("hello")
    places = {"none": tmp_path / "none.pt", "net": exported["gru"], "text": tmp_path / "text"}
    assert cli.main(["compare", *(argument.format(**places) for argument in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and sentence in output.err
    assert len(output.err.strip().splitlines()) == 1


def test_a_fresh_process_tells_its_time_and_memory(exported):
    found = footprint.footprint("onnxruntime", "onnxruntime", exported["gru"].with_suffix(".onnx"))
    assert found.failure == ""
    assert found.load > 0 and found.first > 0
    assert found.memory is None or found.memory > 2**20
    assert found.bytes == exported["gru"].with_suffix(".onnx").stat().st_size
    broken = exported["gru"].with_name("gru.forecast.onnx")  # no network: its inputs are other ones
    assert footprint.footprint("reference", "nothing", broken).failure


def test_reading_takes_as_long_as_the_bandwidth_at_that_size_says():
    assert MACHINE.seconds_to_read(2**20) == pytest.approx(2**20 / 4e10)
    assert MACHINE.seconds_to_read(2**28) == pytest.approx(2**28 / 1e10)
    assert MACHINE.seconds_to_read(2**20) < MACHINE.seconds_to_read(2**24) < MACHINE.seconds_to_read(2**28)
    assert replace(MACHINE, bandwidth={}).seconds_to_read(10) is None
    assert footprint.bandwidth((0.25,), 0.01)[0] > 0


def test_made_texts_are_read_back_by_their_vocabulary(tmp_path):
    preprocessing = seqexport.read_checkpoint(save_classifier(tmp_path / "c.pt")).preprocessing
    texts = scenarios.made_texts(preprocessing, 20)
    assert texts == scenarios.made_texts(preprocessing, 20)
    assert all(5 <= len(text) <= 20 for text in texts)


def test_torch_writes_the_probabilities_alone(exported_texts):
    source = comparison._source(exported_texts["classify"], exported_texts["classify"].parent, None)
    (first, _), _ = scenarios.enter(source, "classify", ["torch"], 1)
    assert isinstance(first.model, TorchRuntime)
    feeds = {"tokens": np.array([[1, 2, 3], [4, 0, 0]]), "lengths": np.array([3, 1])}
    whole = seqexport.load(exported_texts["classify"], pipeline="classify").run(feeds)
    np.testing.assert_allclose(first.model.run(feeds)["probabilities"], whole["probabilities"], atol=1e-6)


def test_nothing_is_left_out_of_a_comparison_without_models():
    assert Comparison((), MACHINE, 1, 0.0).to_dict()["models"] == []
