import numpy as np
import onnx
import pytest
from conftest import save_forecaster

import seqexport
from seqexport import FileError, InputError, UnsupportedError
from seqexport.reports import TOLERANCE
from seqexport.specs import CELLS
from seqexport.text import Vocabulary
from seqexport.verification import difference


@pytest.mark.parametrize("cell", CELLS)
def test_both_runtimes_draw_the_same_paths_from_the_same_noise(exported, cell):
    rng = np.random.default_rng(1)
    feeds = {
        "history": rng.random((2, 30), np.float32) * 90,
        "noise": rng.standard_normal((2, 5, 20), np.float32),
    }
    reference = seqexport.load(exported[cell], runtime="torch", pipeline="forecast").run(feeds)
    for onednn in (True, False):
        runtime = seqexport.load(exported[cell], runtime="torch", pipeline="forecast", onednn=onednn)
        assert difference(reference["path"], runtime.run(feeds)["path"])[0] <= TOLERANCE
    found = seqexport.load(exported[cell].with_suffix(".onnx"), pipeline="forecast").run(feeds)
    assert list(reference) == list(found)
    for name, array in reference.items():
        assert difference(array, found[name])[0] <= TOLERANCE


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 5}, {"top_p": 0.9}], ids=str)
def test_a_text_at_once_in_chunks_and_in_torch_is_the_same(exported_texts, settings):
    path = exported_texts["generate"]
    rng = np.random.default_rng(7)
    feeds = {"prompt": rng.integers(0, 30, (1, 6)), "uniforms": rng.random((1, 500), np.float32), **settings}
    fast = seqexport.load(path.with_suffix(".onnx"), pipeline="generate")
    slow = seqexport.load(path, pipeline="generate")
    whole = fast.run(feeds)["tokens"]
    assert whole.shape == (1, 500)
    np.testing.assert_array_equal(slow.run(feeds)["tokens"], whole)
    for runtime in (fast, slow):
        state, prompt, parts = {}, feeds["prompt"], []
        for chunk in np.split(feeds["uniforms"], 5, axis=1):
            outputs = runtime.run({**feeds, "prompt": prompt, "uniforms": chunk, **state})
            prompt = outputs["tokens"][:, -1:]
            state = {"h0": outputs["hn"], "c0": outputs["cn"]}
            parts.append(outputs["tokens"])
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_a_text_in_a_batch_is_classified_as_it_is_alone(exported_texts, suffix):
    runtime = seqexport.load(exported_texts["classify"].with_suffix(suffix), pipeline="classify")
    vocabulary = Vocabulary.from_dict(runtime.metadata["preprocessing"]["vocabulary"])
    texts = ["a", "what is this?", "", "no. never mind the weather"]
    tokens, lengths = vocabulary.encode_batch(texts)
    together = runtime.run({"tokens": tokens, "lengths": lengths})
    for row, text in enumerate(texts):
        tokens, lengths = vocabulary.encode_batch([text])
        alone = runtime.run({"tokens": tokens, "lengths": lengths})
        assert difference(alone["probabilities"][0], together["probabilities"][row])[0] <= TOLERANCE
        assert difference(alone["running"][0], together["running"][row, : lengths[0]])[0] <= TOLERANCE


BAD_PROMPTS = {
    "a token beyond the vocabulary": ({"prompt": [[30]]}, "'prompt' is 30; expected 0 to 29"),
    "a negative token": ({"prompt": [[3, -1]]}, "goes from -1 to 3"),
    "no prompt": ({"prompt": np.zeros((1, 0), int)}, "nothing along 'time'"),
    "no steps": ({"uniforms": np.zeros((1, 0))}, "nothing along 'steps'"),
    "uniforms beyond 1": ({"uniforms": [[0.5, 1.5]]}, "from 0.5 to 1.5; expected 0.0 to 1.0"),
    "a negative temperature": ({"temperature": -0.1}, "'temperature' is -0.1"),
    "a temperature that is not a number": ({"temperature": np.nan}, "NaN"),
    "a negative top_k": ({"top_k": -1}, "'top_k' is -1"),
    "half a top_k": ({"top_k": 1.5}, "'top_k' is float64"),
    "a top_p beyond 1": ({"top_p": 1.1}, "'top_p' is 1.1"),
    "an array of temperatures": ({"temperature": [1.0, 2.0]}, r"has the shape \[2\]"),
    "floats as a prompt": ({"prompt": [[1.0]]}, "float64"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_a_bad_question_to_a_generator_gets_a_sentence(exported_texts, name, suffix):
    change, sentence = BAD_PROMPTS[name]
    runtime = seqexport.load(exported_texts["generate"].with_suffix(suffix), pipeline="generate")
    with pytest.raises(InputError, match=sentence):
        runtime.run({"prompt": [[1]], "uniforms": [[0.5]], **change})


@pytest.mark.parametrize("lengths", [[0], [4], [1, 1]])
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_lengths_beyond_the_tokens_are_refused(exported_texts, lengths, suffix):
    runtime = seqexport.load(exported_texts["classify"].with_suffix(suffix), pipeline="classify")
    with pytest.raises(InputError, match="'lengths'"):
        runtime.run({"tokens": [[1, 2, 3]], "lengths": lengths})


def test_a_state_given_in_part_is_zero_for_the_rest(exported):
    feeds = {"x": np.ones((2, 3, 1)), "c0": np.full((2, 2, 16), 0.5)}
    a = seqexport.load(exported["lstm"]).run(feeds)
    b = seqexport.load(exported["lstm"].with_suffix(".onnx")).run(feeds)
    assert difference(a["cn"], b["cn"])[0] <= TOLERANCE


def test_runtimes_describe_themselves(exported):
    for path in (exported["lstm"], exported["lstm"].with_suffix(".onnx")):
        runtime = seqexport.load(path)
        assert [(spec.name, spec.optional) for spec in runtime.inputs] == [("x", False), ("h0", True), ("c0", True)]
        assert runtime.output_names == ("y", "hn", "cn")
        assert runtime.metadata["preprocessing"]["season"] == 12
    assert seqexport.load(exported["gru"]).name == "torch"
    assert seqexport.load(exported["gru"].with_suffix(".onnx")).name == "onnxruntime"


BAD_SERIES = {
    "nan": ([[1.0, np.nan]], [[[0.0]]], "NaN"),
    "infinite": ([[1.0, np.inf]], [[[0.0]]], "infinite"),
    "empty": (np.zeros((1, 0)), [[[0.0]]], "at least 1"),
    "no horizon": ([[1.0]], np.zeros((1, 1, 0)), "at least 1"),
    "batches differ": ([[1.0]], np.zeros((2, 1, 3)), "expected 1"),
    "text": ([["a"]], [[[0.0]]], "convert it"),
}


@pytest.mark.parametrize("name", BAD_SERIES)
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_bad_values_get_the_same_sentence_from_every_runtime(exported, name, suffix):
    history, noise, sentence = BAD_SERIES[name]
    runtime = seqexport.load(exported["gru"].with_suffix(suffix), pipeline="forecast")
    with pytest.raises(InputError, match=sentence):
        runtime.run({"history": history, "noise": noise})


def test_the_wrong_runtime_or_pipeline_is_refused(exported, tmp_path):
    with pytest.raises(UnsupportedError, match="no runtime 'tensorrt'"):
        seqexport.load(exported["gru"], runtime="tensorrt")
    with pytest.raises(UnsupportedError, match="python -m seqexport"):
        seqexport.load(exported["gru"], runtime="onnxruntime")
    with pytest.raises(UnsupportedError, match="is not a checkpoint"):
        seqexport.load(exported["gru"].with_suffix(".onnx"), runtime="torch")
    with pytest.raises(UnsupportedError, match="no pipeline 'classify'"):
        seqexport.load(exported["gru"], pipeline="classify")
    with pytest.raises(FileError, match=r"gru\.classify\.onnx"):
        seqexport.load(exported["gru"].with_suffix(".onnx"), pipeline="classify")
    with pytest.raises(InputError, match="at least 1 thread"):
        seqexport.load(exported["gru"], threads=0)
    with pytest.raises(FileError, match="could not be read"):
        seqexport.load(tmp_path / "none.onnx")
    for content in (b"hello, this is text", b""):
        (tmp_path / "text.onnx").write_bytes(content)
        with pytest.raises(FileError, match="neither a checkpoint nor an ONNX file"):
            seqexport.load(tmp_path / "text.onnx")


def test_a_mixed_pair_is_reported(tmp_path):
    one, other = save_forecaster(tmp_path / "net.pt"), save_forecaster(tmp_path / "other.pt", seed=5)
    seqexport.export(one)
    seqexport.export(other)
    (tmp_path / "other.forecast.onnx").replace(tmp_path / "net.forecast.onnx")
    for pipeline in (None, "forecast"):
        with pytest.raises(FileError, match="both belong together"):
            seqexport.load(tmp_path / "net.onnx", pipeline=pipeline)


def test_an_onnx_file_of_others_runs_too(tmp_path):
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["a"], ["b"])],
        "g",
        [info("a", onnx.TensorProto.FLOAT, ["n"])],
        [info("b", onnx.TensorProto.FLOAT, ["n"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "neg.onnx")
    np.testing.assert_array_equal(seqexport.load(tmp_path / "neg.onnx").run({"a": [1, 2]})["b"], [-1, -2])
