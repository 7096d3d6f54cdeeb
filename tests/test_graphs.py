"""The translations of our own, and what is left of torch.onnx after it was asked another way."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.onnx._internal.exporter import _fx_passes, _registration

import seqexport
from seqexport import UnsupportedError

SPECS = {"x": "float32[batch,time,3]"}


class Net(nn.Module):
    """x (B, T, 3) → what `call` makes of 12 times x, and the last state of a GRU that reads it."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(3)
        self.call, self.rnn = call, nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        y = self.call(12 * x)
        return y, self.rnn(y.float())[1]


def exported(tmp_path, call):
    """Both answers to values of every size between -36 and 36, and the file's operators."""
    net = Net(call).eval()
    seqexport.export(net, tmp_path / "net.onnx", inputs=SPECS)
    x = np.linspace(-3, 3, 2 * 21 * 3, dtype=np.float32).reshape(2, 21, 3)
    with torch.no_grad():
        expected = [part.numpy() for part in net(torch.from_numpy(x))]
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x})
    return expected, found, [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]


@pytest.mark.parametrize("beta", [1.0, 2.0, 0.5, 3.0])
@pytest.mark.parametrize("threshold", [20.0, 17.0, 16.0, 3.0, 1.0])
def test_softplus_bends_as_sharply_and_ends_where_torchs_does(tmp_path, beta, threshold):
    expected, found, nodes = exported(tmp_path, lambda x: F.softplus(x, beta, threshold))
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape and np.abs(a - b).max() <= 5e-6 * max(1, np.abs(a).max())
    assert nodes.count("Softplus") == 1
    if threshold == 20:  # where torch's own is the same number, nothing is chosen, for a loop pays for every node
        assert "Where" not in nodes and ("Div" in nodes) == (beta != 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.bool])
def test_casts_are_one_node_to_the_same_type(tmp_path, dtype):
    expected, found, nodes = exported(tmp_path, lambda x: x.to(dtype))
    assert found[0].dtype == expected[0].dtype
    assert np.array_equal(expected[0], found[0])
    assert nodes.count("Cast") <= 2


def test_what_has_no_onnx_form_leaves_torch_onnx_as_it_was(tmp_path):
    table = _registration.ONNXRegistry.__dict__["from_torchlib"]
    decompose = _fx_passes.decompose_with_registry
    with pytest.raises(UnsupportedError, match=r"torch\.cummax, which has no ONNX form here"):
        exported(tmp_path, lambda x: x.cummax(1).values)
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is table
    assert _fx_passes.decompose_with_registry is decompose
    exported(tmp_path, lambda x: x * 2)
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is table
    assert _fx_passes.decompose_with_registry is decompose
