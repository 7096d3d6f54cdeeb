"""int8: what the gate lets through. Every way in which a file may be spoilt is found, and an older file stays."""

import json

import numpy as np
import onnx
import pytest
from conftest import save_classifier, save_generator
from graph_parts import nodes_of, replaced, tensors
from onnx import numpy_helper

import seqexport
from seqexport import cli, quantization
from seqexport.int8 import to_int8
from seqexport.runtimes import onnx_metadata


def spoilt(change):
    """quantization.to_int8, whose models are then changed."""

    def rounded(*arguments):
        made = to_int8(*arguments)
        change(made.model)
        return made

    return rounded


def lstm_input(model, place):
    node = next(node for node in nodes_of(model.graph) if node.op_type == "DynamicQuantizeLSTM")
    return tensors(model)[node.input[place]]


def scales_off(model):
    tensor = lstm_input(model, 8)
    replaced(tensor, numpy_helper.to_array(tensor) * np.float32(1.3))


def one_scale_off(model):
    tensor = lstm_input(model, 10)
    array = numpy_helper.to_array(tensor).copy()
    array[0, 5] *= 20
    replaced(tensor, array)


def zero_points_off(model):
    tensor = lstm_input(model, 9)
    replaced(tensor, numpy_helper.to_array(tensor) + 20)
    for place in (1, 2):  # as if the weights had been meant so: the kernel takes no such zero points of signed weights
        weight = lstm_input(model, place)
        if weight.data_type == onnx.TensorProto.INT8:
            replaced(weight, numpy_helper.to_array(weight) - 20)
            replaced(tensor, numpy_helper.to_array(tensor) * 0)


def gates_in_torchs_order(model):
    for place in (1, 2):
        tensor = lstm_input(model, place)
        i, o, f, c = np.split(numpy_helper.to_array(tensor), 4, axis=2)
        replaced(tensor, np.concatenate([i, f, c, o], axis=2))


def linear_scaled(model):
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 1 and tensor.name.endswith("_scale"):  # those of an LSTM have two dims
            replaced(tensor, numpy_helper.to_array(tensor) * np.float32(1.5))


def embedding_rows_swapped(model):
    tensor = next(tensor for tensor in model.graph.initializer if "embedding" in tensor.name and "int8" in tensor.name)
    replaced(tensor, numpy_helper.to_array(tensor)[::-1])


def not_a_number(model):
    tensor = lstm_input(model, 8)
    replaced(tensor, numpy_helper.to_array(tensor) * np.float32("nan"))


SPOILT = {
    "scales off": scales_off,
    "one scale off": one_scale_off,
    "zero points off": zero_points_off,
    "gates in another order": gates_in_torchs_order,
    "what is no LSTM scaled": linear_scaled,
    "rows of the embedding swapped": embedding_rows_swapped,
    "not a number": not_a_number,
}


@pytest.fixture(scope="module")
def larger_texts(tmp_path_factory):
    """A generator and a classifier whose every matrix is worth rounding, exported once."""
    folder = tmp_path_factory.mktemp("larger")
    sizes = {"features": 40, "hidden_size": 48}
    paths = {"generate": save_generator(folder / "generate.pt", **sizes)}
    paths["classify"] = save_classifier(
        folder / "classify.pt", cell="lstm", labels=[f"n{n}" for n in range(24)], **sizes
    )
    for path in paths.values():
        seqexport.export(path)
    return {task: path.with_suffix(".onnx") for task, path in paths.items()}


@pytest.mark.parametrize("task", ["generate", "classify"])
@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_exit_code_1_and_an_older_one_stays(larger_texts, tmp_path, monkeypatch, capsys, task, name):
    older = {file: file.encode() for file in ("q.onnx", f"q.{task}.onnx")}
    for file, content in older.items():
        (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(quantization, "to_int8", spoilt(SPOILT[name]))
    assert cli.main(["quantize", str(larger_texts[task]), "-o", str(tmp_path / "q.onnx")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "misses the gate “int8 " in said.err and "nothing was written" in said.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == older


def test_a_spoilt_file_at_export_leaves_the_float32_file_as_it_was_too(tmp_path, monkeypatch, capsys):
    path = save_generator(tmp_path / "net.pt", features=40, hidden_size=48)
    (tmp_path / "net.onnx").write_bytes(b"older")
    monkeypatch.setattr(quantization, "to_int8", spoilt(gates_in_torchs_order))
    assert cli.main([str(path), "--precision", "fp32,int8", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False and not all(tried["held"] for tried in report["properties"])
    assert {file.name for file in tmp_path.iterdir()} == {"net.pt", "net.onnx"}
    assert (tmp_path / "net.onnx").read_bytes() == b"older"


def test_where_7_bits_are_too_few_8_are_taken_and_said(exported_texts, tmp_path, monkeypatch):
    source = exported_texts["generate"].with_suffix(".onnx")
    report = seqexport.quantize(source, tmp_path / "seven.onnx")
    seven = onnx_metadata(tmp_path / "seven.onnx")["quantization"]
    assert seven["bits"] == 7 and report.notes == ()
    error = max(tried.error for tried in report.properties if tried.name == "int8 cosine")
    monkeypatch.setattr(quantization, "COSINE", error * 0.99)
    report = seqexport.quantize(source, tmp_path / "eight.onnx")
    assert onnx_metadata(tmp_path / "eight.onnx")["quantization"]["bits"] == 8
    assert "7 bits miss the gate “int8 cosine”" in report.notes[-1]
    assert max(tried.error for tried in report.properties if tried.name == "int8 cosine") < error
    assert lstm_input(onnx.load(tmp_path / "eight.onnx"), 1).data_type == onnx.TensorProto.UINT8


def test_samples_replace_the_cosine_by_the_metric(exported, tmp_path, monkeypatch, capsys):
    data = tmp_path / "series.csv"
    data.write_text("".join(f"{40 + 30 * np.sin(n / 5):.3f}\n" for n in range(90)))
    source = exported["lstm"].with_suffix(".onnx")
    report = seqexport.quantize(source, tmp_path / "q.onnx", data=data)
    assert [(tried.part, tried.name) for tried in report.properties][-1] == ("forecast", "task metric")
    assert "float32" in report.properties[-1].notes[0] and "int8" in report.properties[-1].notes[0]
    assert onnx_metadata(tmp_path / "q.forecast.onnx")["verification"] == {
        "passed": True, "gate": "mean absolute error", "allowed": 0.01, "cases": 31
    }  # fmt: skip
    monkeypatch.setattr(quantization, "to_int8", spoilt(gates_in_torchs_order))
    monkeypatch.setattr(quantization, "COSINE_BESIDE", 10.0)
    monkeypatch.setattr(quantization, "LENGTH", 10.0)
    assert cli.main(["quantize", str(source), "-o", str(tmp_path / "w.onnx"), "--data", str(data)]) == 1
    assert "“task metric” in its forecast" in capsys.readouterr().err
    assert not (tmp_path / "w.onnx").exists()


def test_without_samples_the_report_says_that_no_metric_was_measured(exported_texts, tmp_path, capsys):
    source = exported_texts["generate"].with_suffix(".onnx")
    assert cli.main(["quantize", str(source), "-o", str(tmp_path / "q.onnx")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no task metric was measured: --data FILE of samples gives one" in shown
    assert "bytes of weights" in shown and "that float32 was sure of are the same" in shown
