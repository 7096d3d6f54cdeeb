"""Each kind of state in the runtime that needs it, run as its users run it: the file alone, without seqexport."""

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import save_forecaster, save_generator

from seqexport import export
from seqexport.checkpoint import read_checkpoint

CELLS = {"rnn": ("h0",), "gru": ("h0",), "lstm": ("h0", "c0")}
BATCHES = (1, 3)
LAYERS, HIDDEN = 2, 16  # of the forecasters


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every optional input
    return onnxruntime.InferenceSession(path, options)


def compiled(path):
    openvino = pytest.importorskip("openvino", reason="python -m pip install openvino")
    return openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def written(folder, cell, state):
    export(save_forecaster(folder / "net.pt", cell), state=state)
    return folder / "net.onnx"


def question(cell, batch, steps=7):
    """Values (B, T, 1), and a state that is not zero."""
    rng = np.random.default_rng(batch)
    shape = (LAYERS, batch, HIDDEN)
    state = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name in CELLS[cell]}
    return rng.normal(size=(batch, steps, 1)).astype(np.float32), state


def in_torch(folder, x, state):
    """The network's own answer: y, and the states after the last step."""
    carried = tuple(torch.from_numpy(value) for value in state.values())
    with torch.no_grad():
        outputs = read_checkpoint(folder / "net.pt").network()(torch.from_numpy(x), *carried)
    return [output.numpy() for output in outputs]


def zeros(state):
    return {name: np.zeros_like(value) for name, value in state.items()}


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_optional_in_onnxruntime(tmp_path, cell):
    """Left out, it is zero at every batch; fed back, two pieces are the whole."""
    model = session(written(tmp_path, cell, "optional"))
    assert {value.name for value in model.get_inputs()} == {"x"}
    assert {value.name for value in model.get_overridable_initializers()} == set(CELLS[cell])
    for batch in BATCHES:
        x, state = question(cell, batch)
        assert_close(model.run(None, {"x": x}), in_torch(tmp_path, x, zeros(state)))
        assert_close(model.run(None, {"x": x, **state}), in_torch(tmp_path, x, state))
        first, *after = model.run(None, {"x": x[:, :2], **state})
        rest, *last = model.run(None, {"x": x[:, 2:], **dict(zip(state, after, strict=True))})
        assert_close([np.concatenate([first, rest], 1), *last], in_torch(tmp_path, x, state))


@pytest.mark.parametrize("cell", CELLS)
def test_required_in_openvino(tmp_path, cell):
    """OpenVINO has no optional inputs: of the file with optional state it makes one without, and says nothing."""
    (tmp_path / "optional").mkdir()
    dropped = compiled(written(tmp_path / "optional", cell, "optional"))
    assert [value.get_any_name() for value in dropped.inputs] == ["x"]
    model = compiled(written(tmp_path, cell, "explicit"))
    assert {value.get_any_name() for value in model.inputs} == {"x", *CELLS[cell]}
    for batch in BATCHES:
        x, state = question(cell, batch)
        assert_close(list(model({"x": x, **state}).values()), in_torch(tmp_path, x, state))
        first, *after = model({"x": x[:, :2], **zeros(state)}).values()
        rest, *last = model({"x": x[:, 2:], **dict(zip(state, after, strict=True))}).values()
        assert_close([np.concatenate([first, rest], 1), *last], in_torch(tmp_path, x, zeros(state)))


@pytest.mark.parametrize("cell", CELLS)
def test_none_in_both(tmp_path, cell):
    """A file that only reads whole sequences, for servers that join requests of many callers."""
    path = written(tmp_path, cell, "none")
    model, other = session(path), compiled(path)
    assert [value.name for value in model.get_inputs()] == ["x"]
    assert model.get_overridable_initializers() == []
    for batch in BATCHES:
        x, state = question(cell, batch)
        expected, *_ = in_torch(tmp_path, x, zeros(state))
        (found,) = model.run(["y"], {"x": x})
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(other({"x": x})["y"], expected, atol=1e-5)


@pytest.mark.parametrize("state", ["optional", "explicit", "none"])
def test_a_generators_graph_writes_the_same_text(tmp_path, state):
    """The pipeline's own file: with and without its state the same tokens, where the state is zero."""
    export(save_generator(tmp_path / "net.pt", "lstm"), state=state)
    model = session(tmp_path / "net.generate.onnx")
    rng = np.random.default_rng(5)
    feeds = {"prompt": np.array([[3, 1, 4]]), "uniforms": rng.random((1, 20), dtype=np.float32)}
    required = {value.name for value in model.get_inputs()}
    assert ({"h0", "c0"} <= required) == (state == "explicit")
    if state == "explicit":
        feeds |= {name: np.zeros((2, 1, 16), np.float32) for name in ("h0", "c0")}
        feeds |= {"temperature": np.array(1, np.float32), "top_k": np.array(0), "top_p": np.array(1, np.float32)}
    feeds = {name: value for name, value in feeds.items() if name in required or name in ("prompt", "uniforms")}
    tokens = model.run(["tokens"], feeds)[0]
    reference = session(_optional(tmp_path)).run(["tokens"], {name: feeds[name] for name in ("prompt", "uniforms")})[0]
    np.testing.assert_array_equal(tokens, reference)


def _optional(folder):
    (folder / "optional").mkdir()
    export(save_generator(folder / "optional" / "net.pt", "lstm"))
    return folder / "optional" / "net.generate.onnx"
