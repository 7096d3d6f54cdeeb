import numpy as np
import pytest

from seqexport import InputError, SpecError
from seqexport.specs import NetworkSpec, TensorSpec, check_feeds, parse_input


def test_specs_are_read_as_written():
    assert parse_input("x", "float32[batch,time,8]") == TensorSpec("x", "float32", ("batch", "time", 8))
    assert parse_input("t", "int64[batch,time]{0..999}") == TensorSpec("t", "int64", ("batch", "time"), 0, 999)
    lengths = parse_input("n", "int64[batch]{1..time}, descending")
    assert lengths == TensorSpec("n", "int64", ("batch",), 1, "time", descending=True)
    assert parse_input("s", "float32[]") == TensorSpec("s", "float32", ())


def test_a_tuple_is_taken_apart_with_numbered_names():
    first, second = parse_input("hidden", "(float32[2,batch,16], float32[2,batch,16])")
    assert (first.name, second.name) == ("hidden_0", "hidden_1")
    assert first.dims == second.dims == (2, "batch", 16)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("float32", "not of the form"),
        ("float31[batch]", "'float31'"),
        ("float32[batch,0]", "'0'"),
        ("float32[batch,-3]", "'-3'"),
        ("int64[batch]{9..1}", "empty"),
        ("float32[batch]{0..1}", "ranges are for integers"),
        ("(float32[2,batch,16]", "does not close"),
        ("()", "empty tuple"),
    ],
)
def test_a_spec_with_a_typo_is_answered_with_the_place(text, sentence):
    with pytest.raises(SpecError, match=sentence):
        parse_input("x", text)


def test_samples_fit_their_spec():
    rng = np.random.default_rng(0)
    lengths = parse_input("n", "int64[batch]{1..time}, descending").sample({"batch": 50, "time": 4}, rng)
    assert lengths.dtype == np.int64
    assert set(lengths) == {1, 2, 3, 4}
    assert (np.diff(lengths) <= 0).all()


X = TensorSpec("x", "float32", ("batch", "time", 2))
H = TensorSpec("h0", "float32", (1, "batch", 4), optional=True)
TOKENS = TensorSpec("tokens", "int64", ("batch", "time"), 0, 9)


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 2, 2)), "y": 1}, "no input 'y'"),
        ({"x": np.zeros((1, 2))}, r"shape \[1, 2\]"),
        ({"x": np.zeros((1, 2, 3))}, "expected 2 there"),
        ({"x": np.zeros((0, 2, 2))}, "nothing along 'batch'"),
        ({"x": np.zeros((1, 0, 2))}, "nothing along 'time'"),
        ({"x": np.full((1, 2, 2), np.nan)}, "4 values that are NaN or infinite"),
        ({"x": np.full((1, 2, 2), 1e300)}, "too large"),
        ({"x": [["a", "b"]]}, "convert it first"),
        ({"x": [[1.0], [2.0, 3.0]]}, "not a regular array"),
        ({"x": np.zeros((2, 2, 2)), "h0": np.zeros((1, 3, 4))}, "expected 2 there"),
    ],
)
def test_values_that_do_not_fit_are_refused(feeds, sentence):
    with pytest.raises(InputError, match=sentence):
        check_feeds((X, H), feeds)


@pytest.mark.parametrize("tokens", [[[0, 10]], [[-1, 3]]])
def test_tokens_out_of_range_are_refused(tokens):
    with pytest.raises(InputError, match="expected 0 to 9"):
        check_feeds((TOKENS,), {"tokens": tokens})


def test_values_are_converted_and_optional_ones_stay_out():
    checked = check_feeds((X, H), {"x": [[[1, 2], [3, 4]]]})
    assert list(checked) == ["x"]
    assert checked["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cell": "elman"}, "cell"),
        ({"layers": 0}, "layers"),
        ({"hidden_size": 2.5}, "hidden_size"),
        ({"bias": 1}, "bias"),
    ],
)
def test_a_network_that_makes_no_sense_is_refused(change, sentence):
    fields = NetworkSpec("lstm", 4, 8).to_dict()
    assert NetworkSpec.from_dict(fields) == NetworkSpec("lstm", 4, 8)
    with pytest.raises(SpecError, match=sentence):
        NetworkSpec.from_dict(fields | change)


def test_unknown_and_missing_fields_of_a_network_are_named():
    with pytest.raises(SpecError, match="depth.*hidden_size"):
        NetworkSpec.from_dict({"cell": "gru", "features": 1, "depth": 3})
