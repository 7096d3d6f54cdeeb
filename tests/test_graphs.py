"""The translations of our own, and what is left of torch.onnx after it was asked another way."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import characters, text_network
from torch import nn
from torch.nn import functional as F
from torch.onnx._internal.exporter import _fx_passes, _registration

import seqexport
from seqexport import UnsupportedError, graphs
from seqexport.checkpoint import write_checkpoint

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


def answers(tmp_path, net, specs, feeds):
    """Torch's outputs, the file's by name, and the file."""
    net.requires_grad_(False)
    seqexport.export(net.eval(), tmp_path / "net.onnx", inputs=specs)
    with torch.no_grad():
        expected = net(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    return expected, found, onnx.load(tmp_path / "net.onnx")


def declared(model):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }


class PassesOn(nn.Module):
    """Gives its input back, a result twice, a weight, and what a GRU makes of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.rnn, self.weight = nn.GRU(3, 4, batch_first=True), nn.Parameter(torch.randn(5))

    def forward(self, x):
        y, h = self.rnn(x)
        return {"x_again": x, "y": y, "y_again": y, "h": h, "weight": self.weight, "weight_again": self.weight}


def test_an_output_may_be_an_input_a_weight_or_given_twice(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    expected, found, model = answers(tmp_path, PassesOn(), SPECS, {"x": x})
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == tuple(value.shape) and np.abs(found[name] - value.numpy()).max() <= 1e-6
    assert declared(model) == {
        "x": ["batch", "time", 3],
        "x_again": ["batch", "time", 3],
        **dict.fromkeys(("y", "y_again"), ["batch", "time", 4]),
        "h": [1, "batch", 4],
        **dict.fromkeys(("weight", "weight_again"), [5]),
    }
    names = [output for node in model.graph.node for output in node.output]
    assert len(names) == len(set(names)) and model.graph.name == "module"


class AsksWithItsTable(nn.Module):
    """A table that is read by tokens, asked with as the head, at every step of a loop too, and given."""

    def __init__(self, share):
        super().__init__()
        torch.manual_seed(6)
        self.table, self.rnn = nn.Embedding(90, 32), nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 90)
        if share:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        y, h = self.rnn(self.table(tokens))
        return {"y": self.head(y), "last": self.head(h[-1]), "table": self.table.weight, "turned": self.head.weight.T}


@pytest.mark.parametrize("share", [True, False])
def test_a_matrix_that_is_also_read_transposed_is_kept_once(tmp_path, share):
    tokens = np.random.default_rng(0).integers(0, 90, (3, 7))
    specs = {"tokens": "int64[batch,time]{0..89}"}
    expected, found, model = answers(tmp_path, AsksWithItsTable(share), specs, {"tokens": tokens})
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == tuple(value.shape) and np.abs(found[name] - value.numpy()).max() <= 2e-6
    kept = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) == 90 * 32]
    assert [tensor.dims[:] for tensor in kept] == ([[90, 32]] if share else [[90, 32], [90, 32]])


def test_a_generator_asks_with_the_table_that_it_reads(tmp_path):
    network = text_network(features=32, hidden_size=32, layers=1, vocabulary=90, pooling="every")
    network.embedding.weight = network.head.weight
    about = {"preprocessing": {"vocabulary": characters(90).to_dict(), "window": 20}, "metrics": {}, "data": {}}
    write_checkpoint(tmp_path / "net.pt", network, task="generate", **about)
    for file in seqexport.export(tmp_path / "net.pt").files:
        sizes = [np.prod(tensor.dims) for tensor in onnx.load(file.path).graph.initializer]
        assert sizes.count(90 * 32) == 1, file.path


class TakesNames(nn.Module):
    """Its inputs and outputs bear the names that torch.onnx gives to what is inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, mul, mul_0, add):
        inside = (mul * mul_0) + add
        more = (inside * mul) + inside * add
        return {"getitem": self.rnn(more)[0], "add_1": inside * 2, "mul_1": more}


def test_names_that_are_taken_inside_are_the_users_outside(tmp_path):
    rng = np.random.default_rng(1)
    feeds = {name: rng.standard_normal((2, 5, 3)).astype(np.float32) for name in ("mul", "mul_0", "add")}
    expected, found, model = answers(tmp_path, TakesNames(), dict.fromkeys(feeds, SPECS["x"]), feeds)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.abs(found[name] - value.numpy()).max() <= 1e-5
    names = [output for node in model.graph.node for output in node.output] + list(feeds)
    assert len(names) == len(set(names))


class PacksTwice(nn.Module):
    """Two packed sequences, each as long as its own longest row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.one, self.other = nn.GRU(3, 4, batch_first=True), nn.LSTM(3, 2, batch_first=True)

    def read(self, rnn, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]

    def forward(self, x, lengths, others):
        return self.read(self.one, x, lengths), self.read(self.other, x, others)


def test_each_longest_row_has_a_name_of_its_own(tmp_path):
    lengths = "int64[batch]{1..time}"
    specs = {**SPECS, "lengths": lengths, "others": lengths}
    x = np.random.default_rng(2).standard_normal((3, 7, 3)).astype(np.float32)
    feeds = {"x": x, "lengths": np.array([4, 1, 6]), "others": np.array([2, 3, 1])}
    expected, found, model = answers(tmp_path, PacksTwice(), specs, feeds)
    for a, b in zip(expected, found.values(), strict=True):
        assert b.shape == tuple(a.shape) and np.abs(b - a.numpy()).max() <= 1e-6
    shapes = declared(model)
    assert (shapes["output_0"], shapes["output_1"]) == (["batch", "longest", 4], ["batch", "longest_1", 2])


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_a_state_that_is_left_out_is_zero_at_every_batch(tmp_path, cell, time_major):
    torch.manual_seed(7)
    net = cell(3, 4, 2, bidirectional=True, batch_first=not time_major)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    seqexport.export(tmp_path / "net.pt", choices=seqexport.Choices(time_major=time_major))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = [value.name for value in session.get_overridable_initializers()]
    assert names == (["h0"] if cell is nn.GRU else ["h0", "c0"])
    for batch, time in ((1, 1), (3, 5), (5, 3), (2, 1)):
        x = torch.randn((time, batch, 3) if time_major else (batch, time, 3))
        state = torch.randn(len(names), 4, batch, 4)
        for given in (None, state):
            feeds = {} if given is None else {name: given[place].numpy() for place, name in enumerate(names)}
            with torch.no_grad():
                y, after = net(x, None if given is None else given[0] if len(names) == 1 else tuple(given))
            found = session.run(None, {"x": x.numpy(), **feeds})
            for a, b in zip([y, *([after] if len(names) == 1 else after)], found, strict=True):
                assert b.shape == tuple(a.shape) and np.abs(b - a.numpy()).max() <= 1e-6
    inside = {output for node in onnx.load(tmp_path / "net.onnx").graph.node for output in node.output}
    assert {"h0_batch", "h0_shape", "h0_expanded"} <= inside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s0", "batch"),
        ("s0 + s1", "batch + time"),
        ("s0*s1//s0", "time"),
        ("s0*s1//2", "batch*time//2"),
        ("Max(1, s0)//s1", "Max(1, batch)//time"),
        ("s77", "s77"),
    ],
)
def test_sizes_are_told_in_the_names_of_the_dims(text, expected):
    assert graphs._renamed(ir.SymbolicDim(text), {"s0": "batch", "s1": "time"}) == expected
    assert graphs._renamed(7, {}) == 7 and graphs._renamed(ir.SymbolicDim(None), {}) is None
