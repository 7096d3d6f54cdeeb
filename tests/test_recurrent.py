"""The operators and their lowering; test_coverage has every configuration of them."""

import numpy as np
import onnx
import pytest
import torch
from conftest import randomised
from torch import nn

import seqexport
from seqexport import recurrent
from seqexport.reports import TOLERANCE
from seqexport.verification import difference

CELLS = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
FEATURES, HIDDEN = 5, 7


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
    found = operator(x, *state, torch.tensor([6, 1, 4]), net._flat_weights, True, 2, True, *more)
    for a, b in zip(packed(net, x, [6, 1, 4], state if cell == "lstm" else state[0]), found, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def packed(net, x, lengths, state):
    """What the net gives for rows as long as `lengths`, laid out as x is, and its final state."""
    rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, final = net(rows, state)
    return [nn.utils.rnn.pad_packed_sequence(y, total_length=len(x))[0], *flat(final)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch, of its kernels
@pytest.mark.parametrize("lengths", [None, [6, 1, 4]])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_the_operator_itself_of_a_projected_lstm_gives_what_torch_gives(both, given, lengths):
    net = randomised(nn.LSTM(FEATURES, HIDDEN, 2, bidirectional=both, proj_size=3), seed=4).requires_grad_(False)
    x, rows = torch.randn(6, 3, FEATURES), 4 if both else 2
    state = (torch.randn(rows, 3, 3), torch.randn(rows, 3, HIDDEN)) if given else None
    read = None if lengths is None else torch.tensor(lengths)
    arguments = (x, *(state or (None, None)), read, list(net._flat_weights), True, 2, both)
    with torch.no_grad():
        expected = flat(net(x, state)) if lengths is None else packed(net, x, lengths, state)
    for a, b in zip(expected, torch.ops.seqexport.lstm_projected(*arguments), strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(torch.ops.seqexport.lstm_projected.default, arguments)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_the_function_itself_does_what_its_module_does_dropout_included(cell, training):
    net = recurrence(cell, 3, True, True, False).train(training)
    net.dropout = 0.5
    x, state = torch.randn(6, 3, FEATURES), tuple(torch.randn(6, 3, HIDDEN) for _ in range(2 if cell == "lstm" else 1))
    own = state if cell == "lstm" else state[0]
    for lengths in (None, [6, 1, 4]):
        torch.manual_seed(5)
        with torch.no_grad():
            expected = flat(net(x, own)) if lengths is None else packed(net, x, lengths, own)
        torch.manual_seed(5)
        with torch.no_grad():
            y, final = recurrent.as_function(net)(x, state, None if lengths is None else torch.tensor(lengths))
        for a, b in zip(expected, (y, *final), strict=True):
            torch.testing.assert_close(a, b)


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


class Packs(nn.Module):
    """Packs, runs, and pads again, or gives the final state alone. total: no total_length, the input's, or 300."""

    def __init__(self, recurrence, enforce_sorted, pad, total):
        super().__init__()
        self.recurrence = recurrence
        self.enforce_sorted, self.pad, self.total = enforce_sorted, pad, total

    def forward(self, x, lengths, state=None):
        batch_first = self.recurrence.batch_first
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=batch_first, enforce_sorted=self.enforce_sorted
        )
        y, final = self.recurrence(packed, state)
        if not self.pad:
            return final
        total = {"none": None, "time": x.shape[1 if batch_first else 0], "300": 300}[self.total]
        value = -1.0 if self.total == "300" else 0.0
        y, lengths = nn.utils.rnn.pad_packed_sequence(y, batch_first, value, total)
        return y, lengths, final


def test_the_longest_row_is_a_dim_of_its_own(tmp_path):
    net = recurrence("gru", 1, True, True, True)
    inputs = {"x": f"float32[batch,time,{FEATURES}]", "lengths": "int64[batch]{1..time}"}
    seqexport.export(Packs(net, False, True, "none"), tmp_path / "net.onnx", inputs=inputs)
    y, lengths, final = onnx.load(tmp_path / "net.onnx").graph.output
    assert [dim.dim_param or dim.dim_value for dim in y.type.tensor_type.shape.dim] == ["batch", "longest", 2 * HIDDEN]
    assert [dim.dim_param for dim in lengths.type.tensor_type.shape.dim] == ["batch"]


def test_rows_of_a_packed_sequence_may_be_worked_on(tmp_path):
    class Works(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 6)
            self.first, self.second = nn.GRU(6, 5, bidirectional=True), nn.LSTM(4, 3)
            self.between = nn.Linear(10, 4)

        def forward(self, tokens, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths, enforce_sorted=False)
            y, _ = self.first(packed)
            rows = torch.relu(self.between(y.data)) + 1.0  # padded rows are no longer zero here
            y = nn.utils.rnn.PackedSequence(rows, y.batch_sizes, y.sorted_indices, y.unsorted_indices)
            y, (hn, _) = self.second(y)
            return nn.utils.rnn.pad_packed_sequence(y)[0], nn.utils.rnn.pad_packed_sequence(packed)[0], hn[-1]

    inputs = {"tokens": "int64[time,batch]{0..19}", "lengths": "int64[batch]{1..time}"}
    assert seqexport.export(randomised(Works()), tmp_path / "net.onnx", inputs=inputs).passed


def test_what_is_computed_over_all_rows_of_a_packed_sequence_is_found(tmp_path):
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.GRU(3, 4)

        def forward(self, x, lengths):
            return self.net(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data.mean(0)

    inputs = {"x": "float32[time,batch,3]", "lengths": "int64[batch]{1..time}"}
    with pytest.raises(seqexport.ParityError, match="differs from torch"):
        seqexport.export(randomised(Means()), tmp_path / "net.onnx", inputs=inputs)
    assert not list(tmp_path.iterdir())


def projected(layers, bidirectional, bias, batch_first, full_rank=True):
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "proj_size": 3}
    net = randomised(nn.LSTM(FEATURES, HIDDEN, layers, **options), seed=layers)
    if not full_rank:
        with torch.no_grad():
            for name, weight in net.named_parameters():
                if "weight_hr" in name:
                    weight[1] = weight[0]
    return net


def projected_specs(net, with_state):
    inputs = specs(net, "lstm", False)
    if with_state:
        rows = net.num_layers * (2 if net.bidirectional else 1)
        inputs["state"] = f"(float32[{rows},batch,3], float32[{rows},batch,{HIDDEN}])"
    return inputs


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, True), (2, False), (3, True)])
def test_projections_of_lower_rank_are_folded_too_without_a_loop(tmp_path, layers, bidirectional, with_state):
    net = projected(layers, bidirectional, True, True, full_rank=False)
    inputs = projected_specs(net, with_state)
    assert seqexport.export(Plain(net), tmp_path / "net.onnx", inputs=inputs).passed
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert sum(node.op_type == "LSTM" for node in nodes) == layers
    assert not any(node.op_type in ("Scan", "Loop") for node in nodes)


@pytest.mark.slow
def test_two_hundred_exports_in_one_process_work_like_the_first(tmp_path):
    net = recurrence("lstm", 1, False, True, True)
    reports = [
        seqexport.export(Plain(net), tmp_path / "net.onnx", inputs=specs(net, "lstm", False)) for _ in range(200)
    ]
    assert all(report.passed for report in reports)
    assert len({report.max_abs_error for report in reports}) == 1
