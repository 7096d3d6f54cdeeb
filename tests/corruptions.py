"""What may be wrong with an exported file, as one table: name → what it spoils, what it does, and why it could happen.

The spoiling functions change an onnx.ModelProto in place and raise where there is nothing to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

RECURRENT = ("RNN", "LSTM", "GRU")
HIDDEN = 8  # of every net in tests/test_corruptions.py


@dataclass(frozen=True)
class Corruption:
    """files: the files it applies to, by the names of tests/test_corruptions.py. reason: how it comes about."""

    files: tuple[str, ...]
    spoil: Callable[[onnx.ModelProto], None]
    reason: str


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """All nodes of these kinds, in bodies too."""
    found = [node for graph in graphs(model.graph) for node in graph.node if node.op_type in kinds]
    assert found, f"there is no {' or '.join(kinds)} to spoil"
    return found


def constant(model, name):
    return next((t for graph in graphs(model.graph) for t in graph.initializer if t.name == name), None)


def rewritten(model, name, change):
    tensor = constant(model, name)
    array = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def weight(index, change, layer=0):
    """Change W (1), R (2) or B (3) of the recurrence of a layer."""
    return lambda model: rewritten(model, nodes(model, *RECURRENT)[layer].input[index], change)


def gates(*order):
    """Blocks of HIDDEN rows in another order; of a bias in both of its halves."""

    def change(array):
        blocks = np.split(array, array.shape[1] // HIDDEN, axis=1)
        halves = [blocks[start : start + len(order)] for start in range(0, len(blocks), len(order))]
        return np.concatenate([half[gate] for half in halves for gate in order], axis=1)

    return change


def all_weights(change):
    def spoil(model):
        for index in (1, 2, 3):
            weight(index, change)(model)

    return spoil


def halves_swapped(array):
    return np.concatenate(np.split(array, 2, axis=1)[::-1], axis=1)


def gates_transposed(array):
    blocks = [block.transpose(0, 2, 1) for block in np.split(array, array.shape[1] // HIDDEN, axis=1)]
    return np.concatenate(blocks, axis=1)


def directions_swapped(array):
    return array[::-1]


def smallest_nudged(array):
    """1e-3 on the element nearest to zero, where a check of relative errors would see least."""
    array.flat[int(np.abs(array).argmin())] += 1e-3
    return array


def attribute(kinds, name, value):
    def spoil(model):
        for node in nodes(model, *kinds):
            kept = [entry for entry in node.attribute if entry.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return spoil


def rewired(kind, index, source, which=0):
    def spoil(model):
        nodes(model, kind)[which].input[index] = source

    return spoil


def inputs_swapped(kind, a, b, which=0):
    def spoil(model):
        inputs = nodes(model, kind)[which].input
        inputs[a], inputs[b] = inputs[b], inputs[a]

    return spoil


def layers_swapped(*inputs):
    """The same input of the first two recurrences changes places."""

    def spoil(model):
        first, second = nodes(model, *RECURRENT)[:2]
        for index in inputs:
            first.input[index], second.input[index] = second.input[index], first.input[index]

    return spoil


def replaced(kind, other, which=0, **attributes):
    def spoil(model):
        node = nodes(model, kind)[which]
        node.op_type = other
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    return spoil


def bypassed(kind, which=0, source=0):
    """Whoever reads the node's output reads its input."""

    def spoil(model):
        node = nodes(model, kind)[which]
        _renamed(model, node.output[0], node.input[source], but=node)

    return spoil


def _renamed(model, old, new, but=None):
    for graph in graphs(model.graph):
        for node in graph.node:
            if node is not but:
                for place, name in enumerate(node.input):
                    if name == old:
                        node.input[place] = new


# What steps may read besides constants.
_KNOWN = {
    "noise_shape": ("Shape", ["noise"], {}),
    "uniforms_shape": ("Shape", ["uniforms"], {}),
    "time_now": ("Shape", ["tokens"], {"start": 1, "end": 2}),
    "one_if_any": ("Clip", ["top_k", "", "one_64"], {}),
}


def before(name, *steps):
    """What stands between an input and all that read it: (operator, constants after the value, attributes) each."""

    def spoil(model):
        _renamed(model, name, f"{name}_spoilt")
        made, current = [], name
        for place, (operator, constants, attributes) in enumerate(steps):
            result = f"{name}_spoilt" if place == len(steps) - 1 else f"{name}_spoilt_{place}"
            for known in set(constants_named(constants)) & set(_KNOWN):
                operator_of, sources, options = _KNOWN[known]
                made.append(helper.make_node(operator_of, sources, [known], **options))
                if "one_64" in sources:
                    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one_64"))
            made.append(_step(model, operator, current, constants, attributes, result))
            current = result
        for place, node in enumerate(made):
            model.graph.node.insert(place, node)

    return spoil


def after(name, *steps):
    """What stands between an output and what was computed for it."""

    def spoil(model):
        for node in model.graph.node:
            for place, output in enumerate(node.output):
                if output == name:
                    node.output[place] = f"{name}_honest"
        _renamed(model, name, f"{name}_honest")
        current = f"{name}_honest"
        for place, (operator, constants, attributes) in enumerate(steps):
            result = name if place == len(steps) - 1 else f"{name}_spoilt_{place}"
            model.graph.node.append(_step(model, operator, current, constants, attributes, result))
            current = result

    return spoil


def constants_named(constants):
    return [value for value in constants if isinstance(value, str)]


def _step(model, operator, current, constants, attributes, result):
    names = []
    for place, value in enumerate(constants):
        if isinstance(value, str):
            names.append(value)
            continue
        names.append(f"{result}_{place}")
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[-1]))
    return helper.make_node(operator, [current, *names], [result], **attributes)


def f32(value):
    return np.float32(value)


def ints(*values):
    return np.array(values, np.int64)


def fixed(name, value):
    """An input whose value no longer matters."""
    zero = np.zeros((), np.asarray(value).dtype)
    return before(name, ("Mul", (zero,), {}), ("Add", (value,), {}))


def flipped(axis):
    """Slice from the last to the first."""
    return ("Slice", (ints(-1), ints(-(2**31)), ints(axis), ints(-1)), {})


def first_kept(axis):
    """The first one along an axis in place of each."""
    return ("Slice", (ints(0), ints(1), ints(axis)), {})


def outputs_swapped(a, b):
    def spoil(model):
        names = {a: b, b: a}
        for node in model.graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = names.get(name, name)
            for place, name in enumerate(node.input):
                node.input[place] = names.get(name, name)

    return spoil


def shape_frozen(kind, place, value, which=0, computed=True):
    """A number of the example in a Reshape's or an Expand's target, which is computed from shapes or a constant."""

    def spoil(model):
        producers = {name: node for graph in graphs(model.graph) for node in graph.node for name in node.output}
        found = [node for node in nodes(model, kind) if (producers.get(node.input[1]) is not None) == computed]
        node = found[which]
        name = f"{node.input[1]}_frozen"
        if computed:
            assert producers[node.input[1]].op_type == "Concat"
            producers[node.input[1]].input[place], target = name, ints(value)
        else:
            target = numpy_helper.to_array(constant(model, node.input[1])).copy()
            target[place], node.input[1] = value, name
        model.graph.initializer.append(numpy_helper.from_array(target, name))

    return spoil


def permuted(old, new):
    def spoil(model):
        entries = [entry for node in nodes(model, "Transpose") for entry in node.attribute if list(entry.ints) == old]
        assert entries
        for entry in entries:
            entry.ints[:] = new

    return spoil


def last_of_y(model):
    """hn is the last step of y, which for the reverse direction is its first one."""
    (node,) = nodes(model, *RECURRENT)
    _renamed(model, node.output[1], "y_end", but=node)
    for made in model.graph.node:
        for place, name in enumerate(made.output):
            if name == node.output[1]:
                made.output[place] = f"{name}_honest" if name != "hn" else "hn_honest"
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1), "end"))
    model.graph.node.append(helper.make_node("Gather", [node.output[0], "end"], ["y_end"], axis=0))
    if not any("hn" in made.output for made in model.graph.node):
        model.graph.node.append(helper.make_node("Identity", ["y_end"], ["hn"]))


def recurrence_lengths(step):
    """sequence_lens alone is off by one, and stays between 1 and the time."""

    def spoil(model):
        (node,) = nodes(model, *RECURRENT)
        place = list(model.graph.node).index(node)
        bounds = {"one": np.int32(1), "step": np.int32(step)}
        for name, value in bounds.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        made = [
            helper.make_node("Shape", [node.input[0]], ["steps_64"], start=0, end=1),
            helper.make_node("Cast", ["steps_64"], ["steps"], to=INT32),
            helper.make_node("Add", [node.input[4], "step"], ["stepped"]),
            helper.make_node("Max", ["stepped", "one"], ["from_one"]),
            helper.make_node("Min", ["from_one", "steps"], ["lengths_spoilt"]),
        ]
        node.input[4] = "lengths_spoilt"
        for at, one in enumerate(made):
            model.graph.node.insert(place + at, one)

    return spoil


def declared(place, axis, size):
    def spoil(model):
        model.graph.output[place].type.tensor_type.shape.dim[axis].dim_value = size

    return spoil


def dtype(name, to):
    """An output in another type, and declared so."""

    def spoil(model):
        after(name, ("Cast", (), {"to": to}))(model)
        (value,) = (output for output in model.graph.output if output.name == name)
        value.type.tensor_type.elem_type = to

    return spoil


def default(name, value):
    """What an optional input is when it is left out."""
    return lambda model: rewritten(model, name, lambda array: np.full_like(array, value))


def metadata(key, change):
    def spoil(model):
        (entry,) = (entry for entry in model.metadata_props if entry.key == key)
        old = json.loads(entry.value) if entry.value[:1] in "{[" else entry.value
        new = change(old)
        entry.value = new if isinstance(new, str) else json.dumps(new)

    return spoil


def row_nudged(row):
    def change(array):
        array[row % len(array)] += 1e-3
        return array

    return change


def embedding(change):
    def spoil(model):
        (name,) = {node.input[0] for node in nodes(model, "Gather") if "embedding" in node.input[0]}
        rewritten(model, name, change)

    return spoil


def head(change, which):
    """The head's weight (0) or bias (1), which is a Gemm's, or a MatMul's and an Add's."""

    def spoil(model):
        gemms = [node for graph in graphs(model.graph) for node in graph.node if node.op_type == "Gemm"]
        if gemms:
            return rewritten(model, gemms[-1].input[1 + which], change)
        return rewritten(model, nodes(model, "MatMul" if which == 0 else "Add")[-1].input[1], change)

    return spoil


def number(kind, old, new):
    """A constant that a node of a kind reads, told by its value."""

    def spoil(model):
        for node in nodes(model, kind):
            for place, name in enumerate(node.input):
                tensor = constant(model, name)
                if tensor is not None:
                    array = numpy_helper.to_array(tensor)
                    if array.size == 1 and np.isclose(float(array.reshape(())), old, atol=0):
                        model.graph.initializer.append(
                            numpy_helper.from_array(np.full_like(array, new), f"{name}_spoilt")
                        )
                        node.input[place] = f"{name}_spoilt"
                        return
        raise AssertionError(f"no {kind} reads {old}")

    return spoil


FLOAT64, INT32 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32
LSTM, GRU, RNN = ("lstm",), ("gru",), ("rnn",)
ORDER = "another order of the gates than ONNX's"
ROUNDED = "one number wrong, as by a copy in another precision or a bug in folding"
STATE = "a chunk would start from the wrong state"

LENGTHS_WHOLE = before("lengths", ("Mul", (ints(0)[0],), {}), ("Add", ("time_now",), {}))

TABLE: dict[str, Corruption] = {
    "LSTM gates i and o swapped": Corruption(LSTM, all_weights(gates(1, 0, 2, 3)), ORDER),
    "LSTM gates f and c swapped": Corruption(LSTM, all_weights(gates(0, 1, 3, 2)), ORDER),
    "LSTM gates in torch's order": Corruption(LSTM, all_weights(gates(0, 2, 3, 1)), ORDER),
    "LSTM gates of W alone swapped": Corruption(LSTM, weight(1, gates(1, 0, 2, 3)), ORDER),
    "LSTM gates of R alone swapped": Corruption(LSTM, weight(2, gates(1, 0, 2, 3)), ORDER),
    "LSTM gates of B alone swapped": Corruption(LSTM, weight(3, gates(1, 0, 2, 3)), ORDER),
    "GRU gates z and r swapped": Corruption(GRU, all_weights(gates(1, 0, 2)), ORDER),
    "GRU gates z and h swapped": Corruption(GRU, all_weights(gates(2, 1, 0)), ORDER),
    "GRU gates of the second layer's R swapped": Corruption(GRU, weight(2, gates(1, 0, 2), 1), ORDER),
    "GRU bias halves swapped": Corruption(GRU, weight(3, halves_swapped), "b_ih and b_hh differ where h is made"),
    "GRU linear_before_reset 0": Corruption(GRU, attribute(["GRU"], "linear_before_reset", 0), "ONNX's default"),
    "GRU reset after the bias": Corruption(
        GRU, weight(3, lambda b: b + np.repeat([0, 0, 1, 0, 0, -1], HIDDEN)[None].astype("f") * 0.1), "sums are the same"
    ),
    "bias dropped": Corruption(GRU, rewired("GRU", 3, ""), "optional inputs are easily left out"),
    "bias of W dropped": Corruption(
        RNN, weight(3, lambda b: np.concatenate([b[:, :HIDDEN] * 0, b[:, HIDDEN:]], 1)), "b_ih forgotten"
    ),
    "bias of R dropped": Corruption(
        RNN, weight(3, lambda b: np.concatenate([b[:, :HIDDEN], b[:, HIDDEN:] * 0], 1)), "b_hh forgotten"
    ),
    "direction reversed": Corruption((*LSTM, *GRU), attribute(RECURRENT, "direction", "reverse"), "a wrong default"),
    "directions swapped": Corruption(("both",), all_weights(directions_swapped), "W_ih of the wrong direction"),
    "directions joined in the wrong order": Corruption(
        ("both",), permuted([0, 2, 1, 3], [0, 2, 3, 1]), "y is (T, D, B, H)"
    ),
    "state h dropped": Corruption((*LSTM,), rewired("LSTM", 5, ""), STATE),
    "state c dropped": Corruption((*LSTM,), rewired("LSTM", 6, ""), STATE),
    "state of the GRU dropped": Corruption((*GRU,), rewired("GRU", 5, ""), STATE),
    "state times zero": Corruption(GRU, before("h0", ("Mul", (f32(0),), {})), STATE),
    "state of the other layer": Corruption((*LSTM, *GRU), layers_swapped(5), STATE),
    "h0 and c0 swapped": Corruption(LSTM, inputs_swapped("LSTM", 5, 6), STATE),
    "hn and cn swapped": Corruption(LSTM, outputs_swapped("hn", "cn"), STATE),
    "hn of the layers in the wrong order": Corruption((*LSTM, *GRU), after("hn", flipped(0)), STATE),
    "hn of the rows in the wrong order": Corruption(GRU, after("hn", flipped(1)), "sorting undone the wrong way"),
    "hn is the state before": Corruption(GRU, after("hn", ("Mul", (f32(0),), {}), ("Add", ("h0_expanded",), {})), STATE),
    "hn of the reverse direction from y's wrong end": Corruption(("both",), last_of_y, STATE),
    "default state not zero": Corruption((*GRU, *LSTM), default("h0", 0.01), "the file's own default"),
    "layers' order swapped": Corruption(LSTM, layers_swapped(1, 2, 3), "both fit where features and hidden are equal"),
    "W transposed": Corruption((*LSTM, *GRU), weight(1, gates_transposed), "square, so that it fits"),
    "R transposed": Corruption((*LSTM, *GRU, *RNN), weight(2, gates_transposed), "square, so that it fits"),
    "head transposed": Corruption(("lstm",), head(lambda w: w.T.reshape(w.shape), 0), "a linear layer's layout"),
    "smallest weight of W off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(1, smallest_nudged), ROUNDED),
    "smallest weight of R off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(2, smallest_nudged), ROUNDED),
    "smallest weight of R, second layer": Corruption((*LSTM, *GRU), weight(2, smallest_nudged, 1), ROUNDED),
    "smallest bias off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(3, smallest_nudged), ROUNDED),
    "smallest weight of the head off by 1e-3": Corruption(("lstm", "gru", "generator"), head(smallest_nudged, 0), ROUNDED),
    "smallest bias of the head off by 1e-3": Corruption(("lstm", "gru", "generator"), head(smallest_nudged, 1), ROUNDED),
    "weight of a generator's head off by 1e-2": Corruption(("generate",), head(lambda w: w + 1e-2 * (np.abs(w) == np.abs(w).max()), 0), ROUNDED),
    "bias of a generator's head off by 1e-3": Corruption(("generate",), head(smallest_nudged, 1), ROUNDED),
    "weight of a generator's W off by 1e-3": Corruption(("generate",), weight(1, smallest_nudged), ROUNDED),
    "first row of an embedding": Corruption(("generator", "generate", "both"), embedding(row_nudged(0)), ROUNDED),
    "last row of an embedding": Corruption(("generator", "generate", "both"), embedding(row_nudged(-1)), ROUNDED),
    "rarely read row of an embedding": Corruption(
        ("wide", "wide classify", "wide generate"), embedding(row_nudged(3001)), "thousands of tokens, of which a case reads some"
    ),
    "NaN in a row of an embedding": Corruption(
        ("wide",), embedding(lambda table: np.where(np.arange(len(table))[:, None] == 2999, np.nan, table).astype("f")), ROUNDED
    ),
    "embedding rows swapped": Corruption(
        ("generator",), embedding(lambda table: table[[1, 0, *range(2, len(table))]]), "another order of the vocabulary"
    ),
    "vocabulary shifted by one": Corruption(
        ("generator", "both classify"), embedding(lambda table: np.roll(table, 1, 0)), "the padding token forgotten"
    ),
    "activation Relu for Tanh": Corruption(RNN, attribute(["RNN"], "activations", ["Relu"]), "nonlinearity not handed on"),
    "activation HardSigmoid for Sigmoid": Corruption(
        GRU, attribute(["GRU"], "activations", ["HardSigmoid", "Tanh"]), "Keras' old default"
    ),
    "activation Softsign for Tanh": Corruption(LSTM, attribute(["LSTM"], "activations", ["Sigmoid", "Tanh", "Softsign"]), "the last one"),
    "clip set": Corruption((*LSTM, *GRU), attribute(RECURRENT, "clip", 0.5), "an attribute that torch does not have"),
    "input_forget set": Corruption(LSTM, attribute(["LSTM"], "input_forget", 1), "couples two gates"),
    "batch of the example in an Expand": Corruption(GRU, shape_frozen("Expand", 1, 13), "a size as a constant"),
    "rows of the example in the forecast": Corruption(
        ("forecast",), shape_frozen("Expand", 2, 17, 1), "the number of paths as a constant"
    ),
    "horizon of the example in the forecast": Corruption(("forecast",), shape_frozen("Reshape", 0, 29), "as a constant"),
    "time of the example in a Reshape": Corruption(("both",), shape_frozen("Reshape", 0, 23, computed=False), "a size as a constant"),
    "batch of the example in a Reshape": Corruption(("both",), shape_frozen("Reshape", 1, 13, computed=False), "a size as a constant"),
    "batch and time swapped": Corruption((*LSTM,), permuted([1, 0, 2], [0, 1, 2]), "batch_first lost"),
    "projection folded in the wrong order": Corruption(("projected",), weight(2, gates_transposed), "W_hr W_hh"),
    "projection's state left out": Corruption(
        ("projected",), before("h0", ("Mul", (f32(0),), {})), "W_hh h0 comes in by the input"
    ),
    "projected hn in another order": Corruption(("projected",), after("hn", flipped(2)), "another order of P"),
    "scaler's mean left out": Corruption(("forecast",), bypassed("Sub"), "preprocessing forgotten"),
    "scaler's spread left out": Corruption(("forecast",), bypassed("Div"), "preprocessing forgotten"),
    "scaler's mean off by 1e-3": Corruption(("forecast",), number("Sub", 6.0, 6.001), ROUNDED),
    "square root left out": Corruption(("forecast",), bypassed("Sqrt"), "preprocessing forgotten"),
    "negative values not clamped": Corruption(("forecast",), before("history", ("Abs", (), {})), "clamp(min=0) forgotten"),
    "square root's undo left out": Corruption(("forecast",), after("path", ("Sqrt", (), {})), "postprocessing forgotten"),
    "floor of the spread left out": Corruption(("forecast",), number("Add", 1e-3, 0.0), "softplus(…) + 1e-3"),
    "noise of path 0 used for all": Corruption(
        ("forecast",),
        before("noise", first_kept(1), ("Expand", ("noise_shape",), {})),
        "a broadcast in the wrong place",
    ),
    "noise in the wrong order": Corruption(("forecast",), before("noise", flipped(2)), "a scan over the wrong direction"),
    "noise off by 1e-3": Corruption(("forecast",), before("noise", ("Mul", (f32(1.001),), {})), ROUNDED),
    "history cut": Corruption(
        ("forecast",), before("history", ("Slice", (ints(-3), ints(2**31), ints(1)), {})), "a context as in training"
    ),
    "state of the forecast left out": Corruption(("forecast",), before("h0", ("Mul", (f32(0),), {})), STATE),
    "lengths one less": Corruption(
        ("both classify", "mean classify", "last classify"), before("lengths", ("Sub", (ints(1)[0],), {}), ("Max", (ints(1)[0],), {})), "off by one"
    ),
    "lengths one more": Corruption(
        ("both classify", "mean classify", "last classify"),
        before("lengths", ("Add", (ints(1)[0],), {}), ("Min", ("time_now",), {})),
        "off by one",
    ),
    "lengths of the recurrence alone one less": Corruption(("both classify",), recurrence_lengths(-1), "off by one"),
    "lengths of the recurrence alone one more": Corruption(("both classify",), recurrence_lengths(1), "off by one"),
    "lengths of the recurrence left out": Corruption(("both classify",), rewired("LSTM", 4, ""), "padding is read"),
    "padding counted in the mean": Corruption(("mean classify",), LENGTHS_WHOLE, "a mean over all steps"),
    "last step read at T - 1": Corruption(("last classify",), LENGTHS_WHOLE, "y[:, -1] in place of y[lengths - 1]"),
    "softmax over another axis": Corruption(("both classify",), attribute(["Softmax"], "axis", 0), "axis 0"),
    "softmax left out": Corruption(("both classify",), replaced("Softmax", "Identity"), "logits"),
    "classes in another order": Corruption(("both classify",), after("probabilities", flipped(1)), "labels sorted"),
    "running answers in another order": Corruption(("mean classify",), after("running", flipped(1)), "time reversed"),
    "temperature ignored": Corruption(("generate",), fixed("temperature", f32(1)), "an option not wired up"),
    "temperature upside down": Corruption(("generate",), before("temperature", ("Reciprocal", (), {})), "* for /"),
    "top-k ignored": Corruption(("generate",), fixed("top_k", ints(0)[0]), "an option not wired up"),
    "top-k off by one": Corruption(("generate",), before("top_k", ("Mul", (ints(1)[0],), {}), ("Add", ("one_if_any",), {})), "< for <="),
    "top-p ignored": Corruption(("generate",), fixed("top_p", f32(1)), "an option not wired up"),
    "top-p off by 1e-2": Corruption(("generate",), before("top_p", ("Mul", (f32(0.99),), {})), ROUNDED),
    "uniforms off by 1e-3": Corruption(("generate",), before("uniforms", ("Mul", (f32(0.999),), {})), ROUNDED),
    "uniform of the first step used for all": Corruption(
        ("generate",), before("uniforms", first_kept(1), ("Expand", ("uniforms_shape",), {})), "a broadcast"
    ),
    "default temperature another": Corruption(("generate",), default("temperature", 0.9), "the file's own default"),
    "default top-k another": Corruption(("generate",), default("top_k", 7), "the file's own default"),
    "default top-p another": Corruption(("generate",), default("top_p", 0.9), "the file's own default"),
    "the prompt's last token alone": Corruption(
        ("generate",), before("prompt", ("Slice", (ints(-1), ints(2**31), ints(1)), {})), "the prompt not read"
    ),
    "tokens shifted by one": Corruption(("generate",), after("tokens", ("Sub", (ints(1)[0],), {}), ("Abs", (), {})), "special tokens"),
    "output in float64": Corruption(GRU, dtype("y", FLOAT64), "a cast left in"),
    "tokens in int32": Corruption(("generate",), dtype("tokens", INT32), "a cast left in"),
    "declared output shape false": Corruption((*GRU, *LSTM), declared(0, 1, 23), "the example's"),
    "declared state shape false": Corruption(GRU, declared(1, 1, 13), "the example's"),
    "state map points to the wrong output": Corruption(
        LSTM, metadata("state_map", lambda found: {"h0": "cn", "c0": "hn"}), "callers carry the state by it"
    ),
    "state map left empty": Corruption(GRU, metadata("state_map", lambda found: {}), "callers carry the state by it"),
    "labels permuted in metadata": Corruption(("both classify", "mean classify"), metadata("labels", lambda found: found[::-1]), "read by callers"),
    "vocabulary permuted in metadata": Corruption(
        ("generate",),
        metadata("preprocessing", lambda found: found | {"vocabulary": found["vocabulary"] | {"tokens": found["vocabulary"]["tokens"][::-1]}}),
        "read by callers",
    ),
    "scaling another in metadata": Corruption(
        ("forecast",), metadata("preprocessing", lambda found: found | {"scaling": found["scaling"] | {"mean": 5.0}}), "read by callers"
    ),
    "task another in metadata": Corruption(("forecast",), metadata("task", lambda found: "generate"), "read by callers"),
    "network another in metadata": Corruption(GRU, metadata("network", lambda found: found | {"layers": 3}), "read by callers"),
}  # fmt: skip
