import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import randomised, save_forecaster, save_generator
from onnx import numpy_helper
from torch import nn

import seqexport
from seqexport import FileError, SpecError, UnsupportedError
from seqexport.exporter import verify_files
from seqexport.specs import CELLS


def declared(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("cell", CELLS)
def test_names_shapes_and_metadata_are_those_of_the_contract(exported, cell):
    network = onnx.load(exported[cell].with_suffix(".onnx"))
    state = {name: [2, "batch", 16] for name in (("h0", "c0") if cell == "lstm" else ("h0",))}
    final = {name.replace("0", "n"): dims for name, dims in state.items()}
    assert declared(network.graph.input) == {"x": ["batch", "time", 1]} | state
    assert declared(network.graph.output) == {"y": ["batch", "time", 2]} | final
    pipeline = onnx.load(exported[cell].with_suffix(".forecast.onnx"))
    raw = {"history": ["batch", "time"], "noise": ["batch", "paths", "horizon"]}
    assert declared(pipeline.graph.input) == raw | state
    assert declared(pipeline.graph.output) == {"path": ["batch", "paths", "horizon"]} | final
    for model in (network, pipeline):
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    metadata = seqexport.load(exported[cell].with_suffix(".onnx")).metadata
    assert metadata["cell"] == cell
    assert metadata["task"] == "forecast"
    assert metadata["state_map"] == {name: name.replace("0", "n") for name in state}
    assert metadata["preprocessing"]["scaling"] == {"transform": "root", "mean": 6.0, "spread": 3.0}
    assert metadata["verification"]["passed"] is True
    assert metadata["verification"]["cases"] >= 8
    assert metadata["versions"]["torch"] == torch.__version__
    assert len(metadata["checkpoint_sha256"]) == 64


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_the_text_pipelines_are_those_of_the_contract(exported_texts, task):
    pipeline = onnx.load(exported_texts[task].with_suffix(f".{task}.onnx"))
    state = {"h0": [2, "batch", 16], "c0": [2, "batch", 16]}
    final = {"hn": [2, "batch", 16], "cn": [2, "batch", 16]}
    inputs = {
        "classify": {"tokens": ["batch", "time"], "lengths": ["batch"]},
        "generate": {
            "prompt": ["batch", "time"], "uniforms": ["batch", "steps"], "temperature": [], "top_k": [], "top_p": []
        } | state,
    }  # fmt: skip
    outputs = {
        "classify": {"probabilities": ["batch", 3], "running": ["batch", "time", 3]},
        "generate": {"tokens": ["batch", "steps"]} | final,
    }
    assert declared(pipeline.graph.input) == inputs[task]
    assert declared(pipeline.graph.output) == outputs[task]
    onnx.checker.check_model(pipeline, full_check=True)
    assert [(entry.domain, entry.version) for entry in pipeline.opset_import] == [("", 20)]
    metadata = seqexport.load(exported_texts[task].with_suffix(".onnx"), pipeline=task).metadata
    assert (metadata["task"], metadata["part"]) == (task, task)
    assert metadata["preprocessing"]["vocabulary"]["tokens"][:3] == ["<unknown>", "a", "b"]
    assert metadata.get("state_map") == ({"h0": "hn", "c0": "cn"} if task == "generate" else None)
    assert metadata.get("labels") == (["no", "yes", "both"] if task == "classify" else None)
    optional = {tensor.name: numpy_helper.to_array(tensor) for tensor in pipeline.graph.initializer}
    defaults = {name: optional[name].item() for name in ("temperature", "top_k", "top_p") if name in optional}
    assert defaults == ({"temperature": 1, "top_k": 0, "top_p": 1} if task == "generate" else {})


def test_plain_onnxruntime_writes_with_nothing_but_a_prompt_and_numbers(exported_texts):
    file = exported_texts["generate"].with_suffix(".generate.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {"prompt": np.array([[3, 4]]), "uniforms": np.random.default_rng(0).random((1, 30), np.float32)}
    tokens = session.run(["tokens"], feeds)[0]
    asked = {"temperature": np.float32(1), "top_k": np.int64(0), "top_p": np.float32(1)}
    np.testing.assert_array_equal(
        session.run(["tokens"], {**feeds, **{k: np.array(v) for k, v in asked.items()}})[0], tokens
    )
    assert (
        seqexport.load(exported_texts["generate"], pipeline="generate").run(feeds)["tokens"].tolist() == tokens.tolist()
    )


@pytest.mark.parametrize("state", ["explicit", "none"])
def test_a_generators_state_can_be_required_or_left_away(tmp_path, state):
    path = save_generator(tmp_path / "net.pt", "gru")
    assert seqexport.export(path, state=state).passed
    inputs = [(spec.name, spec.optional) for spec in seqexport.load(tmp_path / "net.generate.onnx").inputs]
    options = [(name, state == "none") for name in ("temperature", "top_k", "top_p")]
    rest = [("h0", False)] if state == "explicit" else []
    assert inputs == [("prompt", False), ("uniforms", False), *options, *rest]
    assert seqexport.verify_files(path, tmp_path / "net.generate.onnx").passed


def test_the_loop_is_a_scan_that_shares_its_weights_with_the_reading_of_the_history(exported):
    graph = onnx.load(exported["gru"].with_suffix(".forecast.onnx")).graph
    (loop,) = [node for node in graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    reading = {name for node in graph.node if node.op_type == "GRU" for name in node.input[1:4]}
    looping = {name for node in body.node if node.op_type == "GRU" for name in node.input[1:4]}
    assert reading == looping <= {tensor.name for tensor in graph.initializer}
    contents = [numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer if len(tensor.raw_data) > 256]
    assert len(contents) == len(set(contents))


def test_plain_onnxruntime_streams_with_the_state_fed_back(exported):
    session = onnxruntime.InferenceSession(
        str(exported["lstm"].with_suffix(".onnx")), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((2, 9, 1)).astype(np.float32)
    whole = session.run(None, {"x": x})
    h, c, steps = None, None, []
    for step in range(9):
        state = {} if h is None else {"h0": h, "c0": c}
        y, h, c = session.run(["y", "hn", "cn"], {"x": x[:, step : step + 1]} | state)
        steps.append(y)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole[0], atol=1e-6)
    np.testing.assert_allclose(c, whole[2], atol=1e-6)


@pytest.mark.parametrize("state", ["explicit", "none"])
def test_the_state_can_be_required_or_left_away(tmp_path, state):
    path = save_forecaster(tmp_path / "net.pt", "gru")
    assert seqexport.export(path, state=state).passed
    graph = onnx.load(tmp_path / "net.onnx").graph
    names = {value.name for value in graph.input}
    assert names == ({"x", "h0"} if state == "explicit" else {"x"})
    assert not names & {tensor.name for tensor in graph.initializer}
    assert seqexport.verify_files(path, tmp_path / "net.forecast.onnx").passed


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_is_the_one_asked_for(tmp_path, opset):
    report = seqexport.export(save_forecaster(tmp_path / "net.pt"), opset=opset)
    assert report.passed
    assert {file.opset for file in report.files} == {opset}


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(tmp_path, exported):
    (tmp_path / "gru.pt").write_bytes(exported["gru"].read_bytes())
    command = [sys.executable, "-m", "seqexport", str(tmp_path / "gru.pt")]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=root)
    for suffix in (".onnx", ".forecast.onnx"):
        assert (tmp_path / "gru.pt").with_suffix(suffix).read_bytes() == exported["gru"].with_suffix(
            suffix
        ).read_bytes()


def test_no_path_of_the_exporting_machine_is_in_the_file(exported):
    content = exported["gru"].with_suffix(".forecast.onnx").read_bytes()
    assert str(Path(seqexport.__file__).parent).encode() not in content
    assert b".py" not in content


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    state: tuple


class Tagger(nn.Module):
    """An embedding, a deep recurrence in both directions, a state from the caller, a dataclass for a result."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.rnn = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True, dropout=0.4)
        self.head = nn.Linear(20, 5)

    def forward(self, tokens, hidden):
        y, state = self.rnn(self.embed(tokens), hidden)
        return Result(self.head(y), state)


TAGGER_INPUTS = {
    "tokens": "int64[batch,time]{0..39}",
    "hidden": "(float32[4,batch,10], float32[4,batch,10])",
}


def test_a_live_module_is_exported_under_its_own_names_and_left_as_it_was(tmp_path):
    module = randomised(Tagger()).train()
    report = seqexport.export(module, tmp_path / "net.onnx", inputs=TAGGER_INPUTS)
    assert report.passed
    assert report.max_abs_error <= report.tolerance
    assert any("eval mode" in note for note in report.notes)
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    runtime = seqexport.load(tmp_path / "net.onnx", runtime="onnxruntime")
    assert [spec.name for spec in runtime.inputs] == ["tokens", "hidden_0", "hidden_1"]
    assert runtime.output_names == ("logits", "state_0", "state_1")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert declared(graph.output) == {
        "logits": ["batch", "time", 5],
        "state_0": [4, "batch", 10],
        "state_1": [4, "batch", 10],
    }


class MakesItsOwnState(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, 2, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        h0 = torch.zeros(2, x.size(0), 6)
        y, _ = self.gru(x, h0)
        return self.fc(y[:, -1, :])


def test_a_state_made_inside_forward_has_the_batch_of_the_input(tmp_path):
    report = seqexport.export(
        randomised(MakesItsOwnState()), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,4]"}
    )
    assert report.passed
    assert declared(onnx.load(tmp_path / "net.onnx").graph.output) == {"output_0": ["batch", 2]}


def test_an_unbatched_sequence(tmp_path):
    report = seqexport.export(
        randomised(nn.GRU(4, 6, bidirectional=True)), tmp_path / "net.onnx", inputs={"input": "float32[time,4]"}
    )
    assert report.passed


class Loops(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x):
        h = torch.zeros(x.size(0), 4)
        for step in range(x.size(1)):
            h = self.cell(x[:, step], h)
        return h


def test_a_python_loop_over_time_is_refused_and_not_frozen(tmp_path):
    with pytest.raises(UnsupportedError, match="'time'"):
        seqexport.export(Loops(), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,3]"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"x": "float32[batch,time,5]"}, r"forward does not take x: float32\[batch,time,5\]"),
        ({"y": "float32[batch,time,4]"}, "has no argument 'y'"),
        ({}, "also needs 'x'"),
        (None, "specs of its inputs"),
    ],
)
def test_specs_that_contradict_forward_are_refused(tmp_path, inputs, sentence):
    with pytest.raises(SpecError, match=sentence):
        seqexport.export(MakesItsOwnState(), tmp_path / "net.onnx", inputs=inputs)


def test_an_exports_destination_is_checked(tmp_path):
    path = save_forecaster(tmp_path / "net.pt")
    with pytest.raises(FileError, match="does not exist"):
        seqexport.export(path, tmp_path / "none" / "net.onnx")
    with pytest.raises(FileError, match="is a folder"):
        seqexport.export(path, tmp_path)
    with pytest.raises(FileError, match="the checkpoint itself"):
        seqexport.export(path, path)
    for opset in (3, 17, 24):
        with pytest.raises(SpecError, match=f"opset {opset} is out of reach; expected 18 to 23"):
            seqexport.export(path, opset=opset)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_can_not_be_written_is_said_before_anything_else(tmp_path, monkeypatch):
    path = save_forecaster(tmp_path / "net.pt")
    # The tests may run as root, to whom every folder is writable; so the answer is made up.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FileError, match="is not writable: change its permissions"):
        seqexport.export(path)
    with pytest.raises(FileError, match="is not writable"):
        seqexport.export(MakesItsOwnState(), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,4]"})
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_older_files(tmp_path, monkeypatch):
    path = save_forecaster(tmp_path / "net.pt")
    seqexport.export(path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    save_forecaster(path, "lstm")
    before[path] = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        seqexport.export(path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("head", ["every", "last", "mean", "max"])
@pytest.mark.parametrize("time_major", [False, True])
def test_bare_state_dicts_with_every_choice(tmp_path, head, time_major):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(30, 6)
            self.gru = nn.GRU(6, 8, 2, bidirectional=True, batch_first=not time_major)
            self.fc = nn.Linear(16, 3)

        def forward(self, tokens):
            y, _ = self.gru(self.embedding(tokens))
            axis = 0 if time_major else 1
            pooled = {
                "every": y,
                "last": y.select(axis, -1),
                "mean": y.mean(axis),
                "max": y.amax(axis),
            }
            return self.fc(pooled[head])

    net = randomised(Net())
    torch.save(net.state_dict(), tmp_path / "x.pt")
    report = seqexport.export(tmp_path / "x.pt", choices=seqexport.Choices(None, time_major, head))
    assert report.passed
    tokens = np.random.default_rng(0).integers(0, 30, (4, 9))
    with torch.no_grad():
        expected = net(torch.from_numpy(tokens)).numpy()
    found = seqexport.load(tmp_path / "x.onnx").run({"tokens": tokens})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_verifying_a_file_again(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "lstm")
    seqexport.export(path)
    assert seqexport.verify_files(path, tmp_path / "net.onnx").passed
    assert seqexport.verify_files(path, tmp_path / "net.forecast.onnx").passed
    model = onnx.load(tmp_path / "net.onnx")
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 128])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 1.01, bias.name))
    onnx.save(model, tmp_path / "net.onnx")
    assert not seqexport.verify_files(path, tmp_path / "net.onnx").passed
    with pytest.raises(FileError, match="another checkpoint"):
        seqexport.verify_files(save_forecaster(tmp_path / "other.pt", "lstm", seed=9), tmp_path / "net.onnx")


@pytest.mark.parametrize(("beta", "threshold"), [(1, 20), (2, 20), (0.5, 1), (1, 3)])
def test_softplus_is_lowered_for_every_beta_and_threshold(tmp_path, beta, threshold):
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 8, batch_first=True)
            self.rise = nn.Softplus(beta, threshold)

        def forward(self, x):
            return self.rise(self.rnn(x)[0] * 30)

    module = randomised(Positive())
    assert seqexport.export(module, tmp_path / "net.onnx", inputs={"x": "float32[batch,time,2]"}).passed
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert operators.count("Softplus") == 1
    assert ("Where" in operators) == (threshold < 17)


class Names(nn.Module):
    """Its results bear the names that the exporter gives to values inside the graph, or `name`."""

    def __init__(self, name):
        super().__init__()
        self.gru = nn.GRU(3, 4, 2, batch_first=True)
        self.name = name

    def forward(self, x, unused):
        y, h = self.gru(x)
        return {"transpose": y * 2, "val_3": h, self.name: x, "y": y, "again": y}


def test_users_names_come_before_those_inside_the_graph(tmp_path):
    inputs = {"x": "float32[batch,time,3]", "unused": "float32[batch]"}
    assert seqexport.export(randomised(Names("transpose_1")), tmp_path / "net.onnx", inputs=inputs).passed
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.output] == ["transpose", "val_3", "transpose_1", "y", "again"]
    assert [value.name for value in graph.input] == ["x", "unused"]
    with pytest.raises(SpecError, match="'x' twice"):
        seqexport.export(randomised(Names("x")), tmp_path / "net.onnx", inputs=inputs)


@pytest.mark.parametrize(("returned", "sentence"), [(lambda x: None, "no tensors"), (lambda x: 3, "returns a int")])
def test_a_model_without_tensors_to_give_is_refused(tmp_path, returned, sentence):
    class Nothing(nn.Module):
        def forward(self, x):
            return returned(x)

    with pytest.raises(UnsupportedError, match=sentence):
        seqexport.export(Nothing(), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,3]"})


def test_fixed_dims_and_whole_number_results(tmp_path):
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(3, 4)

        def forward(self, x):
            y, _ = self.gru(x)
            return y.argmax(-1), y > 0

    report = seqexport.export(randomised(Decides()), tmp_path / "net.onnx", inputs={"x": "float32[6,2,3]"})
    assert report.passed
    assert declared(onnx.load(tmp_path / "net.onnx").graph.output) == {"output_0": [6, 2], "output_1": [6, 2, 4]}


@pytest.mark.parametrize("cell", CELLS)
def test_a_net_with_lags_keeps_the_values_that_it_looks_back_at_in_its_state(tmp_path, cell):
    path = save_forecaster(tmp_path / "net.pt", cell, lags=(3, 24), skip=True)
    report = seqexport.export(path, precision="fp32,int8")
    assert report.passed
    network, pipeline = (onnx.load(tmp_path / name) for name in ("net.onnx", "net.forecast.onnx"))
    assert declared(network.graph.input)["x"] == ["batch", "time", 1]
    for model in (network, pipeline):
        assert declared(model.graph.input)["z0"] == [1, "batch", 23]
        assert declared(model.graph.output)["zn"] == [1, "batch", 23]
    assert verify_files(path, tmp_path / "net.onnx", thorough=True).passed
    rng = np.random.default_rng(0)
    feeds = {"history": rng.random((2, 30), np.float32) * 50, "noise": rng.standard_normal((2, 3, 40), np.float32)}
    expected = seqexport.load(path, pipeline="forecast").run(feeds)["path"]
    runtimes = ["onnxruntime", "reference", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    for runtime in runtimes:
        found = seqexport.load(tmp_path / "net.onnx", runtime=runtime, pipeline="forecast").run(feeds)["path"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
