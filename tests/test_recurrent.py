"""The operators and their lowering, over cells × layers × directions × batch_first × bias × state."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from conftest import randomised
from torch import nn

import seqexport
from seqexport import recurrent
from seqexport.verification import TOLERANCE, difference

CELLS = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
FEATURES, HIDDEN = 5, 7
SHAPES = ((1, 1), (1, 6), (4, 1), (2, 9), (5, 33))


def recurrence(cell, layers, bidirectional, bias, batch_first):
    more = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    net = CELLS[cell](FEATURES, HIDDEN, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, **more)
    return randomised(net, seed=layers)


class Plain(nn.Module):
    def __init__(self, recurrence):
        super().__init__()
        self.recurrence = recurrence

    def forward(self, x, state=None):
        return self.recurrence(x, state)


def specs(net, cell, with_state):
    lead = "batch,time" if net.batch_first else "time,batch"
    inputs = {"x": f"float32[{lead},{FEATURES}]"}
    if with_state:
        rows = net.num_layers * (2 if net.bidirectional else 1)
        state = f"float32[{rows},batch,{HIDDEN}]"
        inputs["state"] = f"({state}, {state})" if cell == "lstm" else state
    return inputs


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [part for item in value for part in flat(item)]


# cell × layers × both directions × bias × batch_first × state given
GRID = list(itertools.product(CELLS, (1, 2, 3), (False, True), (True, False), (True, False), (True, False)))


@pytest.mark.parametrize(("cell", "layers", "bidirectional", "bias", "batch_first", "with_state"), GRID)
def test_every_configuration_agrees_at_shapes_that_were_not_the_examples(
    tmp_path, cell, layers, bidirectional, bias, batch_first, with_state
):
    net = recurrence(cell, layers, bidirectional, bias, batch_first)
    inputs = specs(net, cell, with_state)
    report = seqexport.export(Plain(net), tmp_path / "net.onnx", inputs=inputs)
    assert report.passed
    runtime = seqexport.load(tmp_path / "net.onnx")
    rng = np.random.default_rng(3)
    # The check is made again here, independently of the verifier: its own shapes, torch's own module.
    for batch, time in SHAPES:
        feeds = {spec.name: spec.sample({"batch": batch, "time": time}, rng) for spec in runtime.inputs}
        x, *state = (torch.tensor(array) for array in feeds.values())
        with torch.no_grad():
            expected = flat(net(x, *([tuple(state) if cell == "lstm" else state[0]] if state else [])))
        found = runtime.run(feeds)
        assert len(expected) == len(found)
        for tensor, array in zip(expected, found.values(), strict=True):
            error, note = difference(tensor.numpy(), array)
            assert error <= TOLERANCE, (batch, time, error, note)


@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_call_is_one_node_a_layer_with_its_weights_laid_out(tmp_path, cell):
    net = recurrence(cell, 2, True, True, True)
    seqexport.export(Plain(net), tmp_path / "net.onnx", inputs=specs(net, cell, False))
    graph = onnx.load(tmp_path / "net.onnx").graph
    nodes = [node for node in graph.node if node.op_type in ("RNN", "LSTM", "GRU")]
    assert len(nodes) == 2
    weights = {tensor.name for tensor in graph.initializer}
    assert all({node.input[1], node.input[2], node.input[3]} <= weights for node in nodes)


@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_itself_gives_what_torch_gives(cell):
    net = recurrence(cell, 2, True, True, False).requires_grad_(False)
    x = torch.randn(6, 3, FEATURES)
    state = tuple(torch.randn(4, 3, HIDDEN) for _ in range(2 if cell == "lstm" else 1))
    operator = getattr(torch.ops.seqexport, cell.partition("_")[0])
    more = (cell[4:],) if cell.startswith("rnn") else ()
    found = operator(x, *state, None, net._flat_weights, True, 2, True, *more)
    with torch.no_grad():
        expected = flat(net(x, state if cell == "lstm" else state[0]))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    for lengths in (None, torch.tensor([6, 1, 4])):
        arguments = (x, *state, lengths, list(net._flat_weights), True, 2, True, *more)
        torch.library.opcheck(operator.default, arguments)


class WithLengths(nn.Module):
    """Padded rows read as far as their lengths say, as a pipeline reads them."""

    def __init__(self, recurrence):
        super().__init__()
        self.recurrence = recurrence

    def forward(self, x, lengths, *state):
        y, final = recurrent.as_function(self.recurrence)(x, state, lengths)
        return y, *final


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_honoured_as_by_packed_sequences(tmp_path, cell, layers, bidirectional, bias):
    net = recurrence(cell, layers, bidirectional, bias, False).requires_grad_(False)
    rows = f"float32[{layers * (1 + bidirectional)},batch,{HIDDEN}]"
    inputs = {"x": f"float32[time,batch,{FEATURES}]", "lengths": "int64[batch]{1..time}", "h0": rows}
    inputs |= {"c0": rows} if cell == "lstm" else {}

    class Named(WithLengths):  # torch.export wants each argument named
        def forward(self, x, lengths, h0, c0=None):
            return super().forward(x, lengths, *([h0] if c0 is None else [h0, c0]))

    assert seqexport.export(Named(net), tmp_path / "net.onnx", inputs=inputs).passed
    runtime = seqexport.load(tmp_path / "net.onnx")
    rng = np.random.default_rng(5)
    for batch, time, lengths in ((1, 1, [1]), (1, 9, [4]), (4, 8, [3, 8, 1, 6]), (3, 20, [2, 5, 5])):
        feeds = {spec.name: spec.sample({"batch": batch, "time": time}, rng) for spec in runtime.inputs}
        feeds["lengths"] = np.array(lengths)
        x, _, *state = (torch.tensor(array) for array in feeds.values())
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        y, final = net(packed, tuple(state) if cell == "lstm" else state[0])
        y, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=time)
        for expected, array in zip([y, *flat(final)], runtime.run(feeds).values(), strict=True):
            error, note = difference(expected.numpy(), array)
            assert error <= TOLERANCE, (batch, time, error, note)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_packed_sequences_and_projections_are_refused_with_a_sentence(tmp_path):
    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.GRU(3, 4, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.net(packed)[1]

    with pytest.raises(seqexport.UnsupportedError, match="packs its sequences"):
        inputs = {"x": "float32[batch,time,3]", "lengths": "int64[batch]{1..time}"}
        seqexport.export(Packs(), tmp_path / "net.onnx", inputs=inputs)
    with pytest.raises(seqexport.UnsupportedError, match="proj_size"):
        seqexport.export(nn.LSTM(3, 8, proj_size=4), tmp_path / "net.onnx", inputs={"input": "float32[time,batch,3]"})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_hundred_exports_in_one_process_work_like_the_first(tmp_path):
    net = recurrence("lstm", 1, False, True, True)
    reports = [
        seqexport.export(Plain(net), tmp_path / "net.onnx", inputs=specs(net, "lstm", False)) for _ in range(200)
    ]
    assert all(report.passed for report in reports)
    assert len({report.max_abs_error for report in reports}) == 1
