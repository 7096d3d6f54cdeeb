"""The freeze detector's second half on graphs made by hand: what tracing lets through is rare and can't be ordered."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from seqexport.errors import UnsupportedError
from seqexport.freezing import check_not_frozen

SIZES = {"batch": 13, "time": 23}
OTHERS = {"batch": 23, "time": 36}
FAR = 2**31
PLACES = {
    "input": ("Reshape", "its input"),
    "narrow": ("Reshape", "its input"),
    "constant": ("Constant", "its value"),
    "numbers": ("Constant", "its value_ints"),
    "number": ("Constant", "its value_int"),
    "declared": ("Reshape", "its declared shape"),
    "body": ("Constant", "its value_int"),
}


def lowered(place="", numbers=(7,), more=0):
    """A graph with these numbers in one place, and with other numbers, none suspicious, in the others."""

    def at(here):
        return list(numbers) if here == place else [7]

    def initializer(name, values, dtype=np.int64):
        return numpy_helper.from_array(np.array(values, dtype), name)

    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["shaped"], "reshape"),
        helper.make_node("Reshape", ["x", "narrow"], ["cut"], "narrow"),
        helper.make_node("Constant", [], ["tensor"], "constant", value=initializer("", at("constant"))),
        helper.make_node("Constant", [], ["ints"], "numbers", value_ints=at("numbers")),
        helper.make_node("Constant", [], ["int"], "number", value_int=at("number")[0]),
        helper.make_node("Constant", [], ["words"], "words", value_string="23"),
        helper.make_node("Gather", ["shaped", "weights"], ["gathered"], "gather"),
        helper.make_node("Add", ["x", "floats"], ["sum"], "add"),
        helper.make_node("Clip", ["sum", "", "top"], ["clipped"], "clip"),
    ]
    inside = helper.make_node("Constant", [], ["inner"], "inside", value_int=at("body")[0])
    body = helper.make_graph([inside], "body", [], [helper.make_tensor_value_info("inner", TensorProto.INT64, [])])
    nodes.append(helper.make_node("If", ["flag"], ["chosen"], "if", then_branch=body, else_branch=body))
    nodes += [helper.make_node("Identity", ["x"], [f"copy{one}"], f"copy{one}", key=7) for one in range(more)]
    tensors = [
        initializer("target", at("input")),
        initializer("narrow", at("narrow"), np.int32),
        initializer("weights", np.full(17, 23)),  # too many to be a shape
        initializer("floats", [23.0], np.float32),
        initializer("top", 7.0, np.float32),
    ]
    shaped = helper.make_tensor_value_info("shaped", TensorProto.FLOAT, ["n", *at("declared")])
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time"]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [],
        tensors,
        value_info=[shaped],
    )
    return ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def never():
    raise AssertionError("lowered again, though no size of the example is in the graph")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [13, 23, 46])
def test_a_size_of_the_example_is_found_wherever_it_stands_and_named(place, number):
    operator, what = PLACES[place]
    other = OTHERS["batch"] if number == 13 else number // 23 * OTHERS["time"]
    dim = "batch" if number == 13 else "time"
    with pytest.raises(
        UnsupportedError, match=rf"\({operator}\) keeps the example's size of '{dim}' in {what} \["
    ) as e:
        check_not_frozen(lowered(place, (number,)), SIZES, lambda: lowered(place, (other,)))
    assert str([number]) in str(e.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_the_same_for_another_example_is_the_modules_own(place):
    again = []
    check_not_frozen(lowered(place, (23,)), SIZES, lambda: again.append(0) or lowered(place, (23,)))
    assert again


@pytest.mark.parametrize("number", [0, -1, -23, 7, 12, 24, 23 * FAR, 13 * FAR])
def test_numbers_that_no_size_divides_or_that_stand_for_the_end_are_not_looked_at_twice(number):
    check_not_frozen(lowered("input", (number,)), SIZES, never)


@pytest.mark.parametrize("number", [2, 2**30 + 2, FAR - 2])
def test_numbers_up_to_the_end_are_looked_at_twice(number):
    with pytest.raises(UnsupportedError, match="its input"):
        check_not_frozen(lowered("input", (number,)), {"batch": 2}, lambda: lowered("input", (number - 2,)))


@pytest.mark.parametrize("number", [FAR, 2 * FAR - 2])
def test_the_end_itself_and_what_is_beyond_are_not(number):
    check_not_frozen(lowered("input", (number,)), {"batch": 2}, never)


def test_sixteen_numbers_may_be_a_shape_and_seventeen_are_weights():
    with pytest.raises(UnsupportedError, match="its value_ints"):
        check_not_frozen(lowered("numbers", (23,) * 16), SIZES, lambda: lowered("numbers", (36,) * 16))
    with pytest.raises(UnsupportedError, match="its input"):
        check_not_frozen(lowered("input", (23,) * 16), SIZES, lambda: lowered("input", (36,) * 16))
    for place in ("numbers", "input", "constant"):
        check_not_frozen(lowered(place, (23,) * 17), SIZES, never)


@pytest.mark.parametrize(("mine", "other"), [(0, 2), (2, 0)])
def test_a_loop_that_was_unrolled_is_seen_by_the_count_of_its_nodes(mine, other):
    """Whichever example has more nodes, the last place that both have is named."""
    first, second = lowered("input", (23,), mine), lowered("input", (23,), other)
    with pytest.raises(UnsupportedError, match=r"node inside \(Constant\) .* of a dim in its declared shape"):
        check_not_frozen(first, SIZES, lambda: second)
