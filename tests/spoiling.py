"""What spoils an exported file: functions that change an onnx.ModelProto in place, and raise where nothing changes."""

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

RECURRENT = ("RNN", "LSTM", "GRU")
HIDDEN = 8  # of every net in tests/test_corruptions.py
FLOAT64, INT32 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32


def graphs(graph):
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def nodes(model, *kinds):
    """All nodes of these kinds, in bodies too."""
    found = [node for graph in graphs(model.graph) for node in graph.node if node.op_type in kinds]
    assert found, f"there is no {' or '.join(kinds)} to spoil"
    return found


def constant(model, name):
    return next((t for graph in graphs(model.graph) for t in graph.initializer if t.name == name), None)


def rewritten(model, name, change):
    tensor = constant(model, name)
    honest = numpy_helper.to_array(tensor)
    array = change(honest.copy())
    assert (array.dtype, array.shape) == (honest.dtype, honest.shape), "a runtime would refuse it, whoever verifies"
    tensor.CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))


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
        names.append(f"{result}_constant_{place}")
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


def tokens_reversed(found):
    vocabulary = found["vocabulary"]
    return found | {"vocabulary": vocabulary | {"tokens": vocabulary["tokens"][::-1]}}


def row_nudged(row, by=1e-3):
    def change(array):
        array[row % len(array)] += by
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
        if which == 1:
            return rewritten(model, nodes(model, "Add")[-1].input[1], change)
        # There a token's weights are a column.
        return rewritten(model, nodes(model, "MatMul")[-1].input[1], lambda weight: change(weight.T).T)

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
