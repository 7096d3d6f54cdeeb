"""Streaming: whatever the cuts, a stream gives what one call gives, in every runtime, and its state is the caller's."""

import numpy as np
import pytest
from conftest import save_forecaster, save_generator

import seqexport
from seqexport.errors import InputError, UnsupportedError


@pytest.fixture(scope="module", params=["rnn", "lstm", "gru"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    path = save_forecaster(folder / "net.pt", request.param, layers=2)
    seqexport.export(path)
    return path


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
@pytest.mark.parametrize("cuts", [[1] * 9, [4, 1, 1, 3], [2, 2, 2, 2, 1], [9]])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_gives_what_one_call_gives(exported, suffix, cuts, batch):
    runtime = seqexport.load(exported.with_suffix(suffix))
    x = np.random.default_rng(0).standard_normal((batch, 9, 1)).astype(np.float32)
    rng = np.random.default_rng(1)
    specs = [spec for spec in runtime.inputs if spec.name in runtime.metadata["state_map"]]
    state = {spec.name: spec.sample({"batch": batch}, rng) for spec in specs}
    whole = runtime.run({"x": x, **state})
    stream = seqexport.Stream(runtime)
    stream.reset(state)
    parts = [stream({"x": part})["y"].copy() for part in np.split(x, np.cumsum(cuts)[:-1], axis=1)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole["y"], atol=2e-6)
    for name, output in runtime.metadata["state_map"].items():
        np.testing.assert_allclose(stream.state[name], whole[output], atol=2e-6)
    stream.reset()
    np.testing.assert_allclose(stream({"x": x})["y"], runtime.run({"x": x})["y"], atol=1e-7)


def test_the_steps_after_the_first_are_written_into_the_same_arrays(exported):
    stream = seqexport.Stream(seqexport.load(exported.with_suffix(".onnx")))
    x = np.ones((1, 1, 1), np.float32)
    stream({"x": x})
    second, state = stream({"x": x}), stream.state
    kept = {name: array.copy() for name, array in state.items()}
    third = stream({"x": x})
    assert third["y"] is second["y"]
    stream({"x": x})
    for name, array in state.items():  # what was handed out stays
        np.testing.assert_array_equal(array, kept[name])


def test_two_streams_of_one_runtime_do_not_meet(exported):
    runtime = seqexport.load(exported.with_suffix(".onnx"))
    one, other, alone = (seqexport.Stream(runtime) for _ in range(3))
    rng = np.random.default_rng(2)
    for _ in range(5):
        x = rng.standard_normal((1, 1, 1)).astype(np.float32)
        a = one({"x": x})["y"].copy()
        other({"x": -x})
        np.testing.assert_array_equal(a, alone({"x": x})["y"])


def test_another_batch_than_the_states_is_refused_and_a_reset_allows_it(exported):
    stream = seqexport.Stream(seqexport.load(exported.with_suffix(".onnx")))
    stream({"x": np.ones((2, 1, 1), np.float32)})
    with pytest.raises(InputError, match="batch"):
        stream({"x": np.ones((3, 1, 1), np.float32)})
    stream.reset()
    assert stream({"x": np.ones((3, 1, 1), np.float32)})["y"].shape[0] == 3


def test_bad_values_are_refused_before_they_reach_the_state(exported):
    stream = seqexport.Stream(seqexport.load(exported.with_suffix(".onnx")))
    x = np.ones((1, 1, 1), np.float32)
    stream({"x": x})
    before = stream.state
    for bad in (np.full((1, 1, 1), np.nan, np.float32), np.ones((1, 1, 2), np.float32), np.ones((1, 0, 1), np.float32)):
        with pytest.raises(InputError):
            stream({"x": bad})
    for name, array in stream.state.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_text_written_on_in_calls_is_the_text_written_at_once(tmp_path):
    seqexport.export(save_generator(tmp_path / "net.pt"))
    runtime = seqexport.load(tmp_path / "net.onnx", pipeline="generate")
    uniforms = np.random.default_rng(3).random((1, 12), np.float32)
    whole = runtime.run({"prompt": [[1, 2]], "uniforms": uniforms})["tokens"][0]
    stream, prompt, written = seqexport.Stream(runtime), np.array([[1, 2]]), []
    for u in np.split(uniforms, 12, axis=1):
        tokens = stream({"prompt": prompt, "uniforms": u})["tokens"]
        written += tokens[0].tolist()
        prompt = tokens.copy()
    assert written == whole.tolist()


def test_a_model_without_state_is_refused(tmp_path):
    path = save_forecaster(tmp_path / "net.pt")
    seqexport.export(path, state="none")
    with pytest.raises(UnsupportedError, match="no state to carry on"):
        seqexport.Stream(seqexport.load(tmp_path / "net.onnx"))
