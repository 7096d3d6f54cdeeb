"""The runtimes besides torch and onnxruntime: each gives what torch gives, from its state on to its final state."""

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PREPROCESSING, randomised, save_classifier, save_forecaster, save_generator, text_network

import seqexport
from seqexport import FileError, UnsupportedError, peers, pipelines
from seqexport.networks import Network
from seqexport.peers import Loop, OpenVino, Reference, choose_token
from seqexport.pipelines import LIKELIEST, Generate, _least_of_all
from seqexport.reports import TOLERANCE
from seqexport.runtimes import OnnxRuntime
from seqexport.specs import NetworkSpec
from seqexport.verification import difference

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: requirements-dev.txt has it"
)
OTHERS = ["reference", pytest.param("openvino", marks=needs_openvino)]


def assert_same(expected, found):
    assert list(found) == list(expected)[: len(found)]
    for name, array in found.items():
        error, note = difference(expected[name], np.asarray(array))
        assert error <= TOLERANCE, (name, error, note)


def network_feeds(runtime, batch, time, rng):
    sizes = {"batch": batch, "time": time}
    return {spec.name: spec.sample(sizes, rng) for spec in runtime.inputs}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_networks_with_and_without_their_state(exported, cell, name):
    rng = np.random.default_rng(1)
    reference = seqexport.load(exported[cell])
    runtime = seqexport.load(exported[cell].with_suffix(".onnx"), runtime=name)
    assert runtime.name == name
    for batch, time in ((1, 1), (1, 7), (3, 1), (3, 5)):
        feeds = network_feeds(reference, batch, time, rng)
        assert_same(reference.run(feeds), runtime.run(feeds))
        assert_same(reference.run({"x": feeds["x"]}), runtime.run({"x": feeds["x"]}))


def test_a_state_that_is_left_out_is_not_the_state_of_before(exported):
    runtime = seqexport.load(exported["lstm"].with_suffix(".onnx"), runtime="reference")
    x = np.ones((1, 3, 1), np.float32)
    first = runtime.run({"x": x})
    again = runtime.run({"x": x, "h0": first["hn"], "c0": first["cn"]})
    assert difference(first["hn"], again["hn"])[0] > 0.01


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "options", [{"pooling": "mean"}, {"pooling": "max"}, {"pooling": "max", "bidirectional": True}]
)
def test_padded_texts_are_read_to_their_end_only(tmp_path, name, options):
    path = save_classifier(tmp_path / "net.pt", "lstm", **options)
    seqexport.export(path)
    tokens = np.random.default_rng(3).integers(0, 30, (4, 9))
    for lengths in ([9, 4, 1, 7], [3, 4, 1, 2]):
        feeds = {"tokens": tokens, "lengths": np.array(lengths)}
        expected = seqexport.load(path, pipeline="classify").run(feeds)
        assert_same(expected, seqexport.load(path.with_suffix(".onnx"), runtime=name, pipeline="classify").run(feeds))


def loops(path, pipeline):
    yield Loop(OnnxRuntime(path.with_suffix(".onnx")), pipeline)
    if importlib.util.find_spec("openvino"):
        yield Loop(OpenVino(path.with_suffix(".onnx")), pipeline)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("batch, time, paths, horizon", [(1, 1, 1, 1), (2, 9, 3, 12)])
def test_a_loop_draws_the_paths_of_torch(exported, cell, batch, time, paths, horizon):
    rng = np.random.default_rng(4)
    torch_ = seqexport.load(exported[cell], pipeline="forecast")
    sizes = {"batch": batch, "time": time, "paths": paths, "horizon": horizon}
    feeds = {spec.name: spec.sample(sizes, rng) for spec in torch_.inputs}
    feeds["history"] = rng.random((batch, time), np.float32) * 90 - 5  # of which a root takes what is negative as zero
    for loop in loops(exported[cell], "forecast"):
        assert loop.name.endswith(", step loop")
        assert_same(torch_.run(feeds), loop.run(feeds))
        without = {"history": feeds["history"], "noise": feeds["noise"]}
        assert_same(torch_.run(without), loop.run(without))


SETTINGS = [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"top_k": 7, "top_p": 0.9}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch, time", [(1, 1), (3, 4)])
def test_a_loop_writes_the_text_of_torch(exported_texts, settings, batch, time):
    path, rng = exported_texts["generate"], np.random.default_rng(5)
    torch_ = seqexport.load(path, pipeline="generate")
    sizes = {"batch": batch, "time": time, "steps": 40}
    feeds = {spec.name: spec.sample(sizes, rng) for spec in torch_.inputs if not spec.optional or spec.name[1:] == "0"}
    expected = torch_.run(feeds | settings)
    for loop in loops(path, "generate"):
        assert_same(expected, loop.run(feeds | settings))
    evaluator = seqexport.load(path.with_suffix(".onnx"), "reference", pipeline="generate")
    assert_same(expected, evaluator.run(feeds | settings))


LARGE = 3 * LIKELIEST
CUTS = {
    "top-k within the likeliest": ({"top_k": 40}, True),
    "top-k and top-p within them": ({"top_k": LIKELIEST, "top_p": 0.9}, True),
    "top-p within them": ({"top_p": 0.2}, True),
    "top-k beyond them": ({"top_k": LIKELIEST + 1}, False),
    "top-p beyond them": ({"top_p": 0.999}, False),
    "top-p of a top-k beyond them": ({"top_k": 2 * LIKELIEST, "top_p": 0.3}, False),
}


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory):
    """A generator that tells so many tokens apart that not all are sorted at every step."""
    path = save_generator(tmp_path_factory.mktemp("large") / "net.pt", "lstm", vocabulary=LARGE)
    seqexport.export(path)
    return path


@pytest.mark.parametrize("settings, settled", CUTS.values(), ids=CUTS)
def test_few_of_many_tokens_are_left_as_a_sort_of_all_leaves_them(many_tokens, monkeypatch, settings, settled):
    rng = np.random.default_rng(8)
    feeds = {"prompt": rng.integers(0, LARGE, (2, 3)), "uniforms": rng.random((2, 30), np.float32), **settings}
    sorts = []
    monkeypatch.setattr(pipelines, "_least_of_all", lambda *of: sorts.append(1) or _least_of_all(*of))
    expected = seqexport.load(many_tokens, pipeline="generate").run(feeds)
    assert (not sorts) == settled
    in_graph = seqexport.load(many_tokens.with_suffix(".onnx"), pipeline="generate")
    for runtime in (in_graph, *loops(many_tokens, "generate")):
        assert_same(expected, runtime.run(feeds))


def test_a_network_alone_classifies_each_text_without_its_padding(exported_texts):
    path = exported_texts["classify"]
    tokens = np.random.default_rng(6).integers(0, 30, (3, 8))
    feeds = {"tokens": tokens, "lengths": np.array([8, 1, 5])}
    expected = seqexport.load(path, pipeline="classify").run(feeds)
    for loop in loops(path, "classify"):
        assert loop.name.endswith(", network")
        assert_same({"probabilities": expected["probabilities"]}, loop.run(feeds))


def test_tokens_are_chosen_as_in_torch_where_many_are_equal():
    generate = Generate(text_network(vocabulary=6))
    logits = np.array([[2.0, 1.0, 1.0, 1.0, 0.0, -1.0]], np.float32)
    network = generate.network
    for top_k, top_p in ((2, 1.0), (0, 0.6), (3, 0.7), (0, 0.0)):
        network.as_functions = lambda: (lambda x, state: (torch.zeros(1, 1, 1), state), lambda y: torch.tensor(logits))
        for u in np.linspace(0, 0.999, 37):
            given = torch.tensor([[0]]), torch.tensor([[u]], dtype=torch.float32)
            expected, *_ = generate(*given, torch.tensor(1.0), torch.tensor(top_k), torch.tensor(top_p))
            wide = np.array([[np.float32(u)]], np.float64)
            assert choose_token(logits, wide, 1.0, top_k, top_p) == expected.item()


@needs_openvino
def test_a_signal_after_openvino_is_a_signal(exported):
    program = f"""
import os, signal
import seqexport
handled = []
signal.signal(signal.SIGINT, lambda *_: handled.append(1))
models = [seqexport.load({str(exported["gru"].with_suffix(".onnx"))!r}, runtime="openvino") for _ in range(2)]
del models[0], models[0]
os.kill(os.getpid(), signal.SIGINT)
assert handled
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_openvino
def test_openvino_loops_in_python_where_it_cannot_convert_the_graphs_loop(exported_texts):
    path = exported_texts["generate"].with_suffix(".onnx")
    assert seqexport.load(path, runtime="openvino", pipeline="generate").name in ("openvino, step loop", "openvino")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(peers.compiler()), reason="torch.compile needs a C++ compiler")
def test_torch_compile_gives_what_torch_gives(exported, exported_texts):
    from torch._dynamo.utils import counters

    rng = np.random.default_rng(7)
    compiled = seqexport.load(exported["lstm"], runtime="torch-compile")
    for batch, time in ((1, 1), (2, 6)):
        feeds = network_feeds(compiled, batch, time, rng)
        assert_same(seqexport.load(exported["lstm"]).run(feeds), compiled.run(feeds))
    feeds = {"prompt": rng.integers(0, 30, (2, 4)), "uniforms": rng.random((2, 20), np.float32)}
    for onednn in (True, False):
        found = seqexport.load(exported_texts["generate"], "torch-compile", pipeline="generate", onednn=onednn)
        torch._dynamo.reset()
        counters.clear()
        assert_same(seqexport.load(exported_texts["generate"], pipeline="generate").run(feeds), found.run(feeds))
        assert counters["frames"]["ok"] >= 2  # the step of the loop, and the head


def test_int8_is_the_file_beside(tmp_path):
    path = tmp_path / "net.onnx"
    seqexport.export(save_forecaster(tmp_path / "net.pt", "gru", hidden_size=48))
    with pytest.raises(FileError, match=r"python -m seqexport quantize .*net\.onnx"):
        seqexport.load(path, runtime="onnxruntime-int8")
    assert peers.missing("onnxruntime-int8", path) == f"python -m seqexport quantize {path}"
    seqexport.quantize(path)
    assert seqexport.load(path, runtime="onnxruntime-int8").run({"x": np.ones((1, 2, 1), np.float32)})["y"].shape
    assert seqexport.load(path, runtime="onnxruntime-int8", pipeline="forecast").name == "onnxruntime-int8"
    assert peers.missing("onnxruntime-int8", path) == ""


def test_what_is_not_there_or_does_not_fit_is_a_sentence(exported, monkeypatch):
    path = exported["gru"].with_suffix(".onnx")
    with pytest.raises(UnsupportedError, match="no runtime 'tflite'; expected one of torch, torch-compile"):
        seqexport.load(path, runtime="tflite")
    with pytest.raises(UnsupportedError, match=r"nothing that torch-compile can run; expected a checkpoint"):
        seqexport.load(path, runtime="torch-compile")
    with pytest.raises(UnsupportedError, match="nothing that reference can run; expected an ONNX file"):
        seqexport.load(exported["gru"], runtime="reference")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="openvino is not installed: python -m pip install openvino"):
        seqexport.load(path, runtime="openvino")


def test_a_file_that_others_wrote_needs_onnxruntime(tmp_path):
    seqexport.export(torch.nn.Linear(2, 2), tmp_path / "net.onnx", inputs={"input": "float32[batch,2]"})
    with pytest.raises(UnsupportedError, match="does not say what network it holds"):
        Reference(tmp_path / "net.onnx")


def test_a_generators_prompt_of_one_token_leaves_the_state(tmp_path):
    path = save_generator(tmp_path / "net.pt", "gru")
    seqexport.export(path)
    feeds = {
        "prompt": np.array([[3]]),
        "uniforms": np.array([[0.4]], np.float32),
        "h0": np.ones((2, 1, 16), np.float32),
    }
    found = Loop(OnnxRuntime(path.with_suffix(".onnx")), "generate").run(feeds)
    assert_same(seqexport.load(path, pipeline="generate").run(feeds), found)


def test_time_major_forecasters_loop_too(tmp_path):
    net = randomised(Network(NetworkSpec("gru", 1, 8, outputs=2, time_major=True)))
    about = {"preprocessing": PREPROCESSING, "metrics": {}, "data": {}}
    seqexport.write_checkpoint(tmp_path / "net.pt", net, task="forecast", **about)
    seqexport.export(tmp_path / "net.pt")
    feeds = {"history": np.array([[3.0, 9, 20], [4, 2, 30]]), "noise": np.ones((2, 2, 5), np.float32)}
    found = Loop(OnnxRuntime(tmp_path / "net.onnx"), "forecast").run(feeds)
    assert_same(seqexport.load(tmp_path / "net.pt", pipeline="forecast").run(feeds), found)
