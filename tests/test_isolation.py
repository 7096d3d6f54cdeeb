import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import save_forecaster
from onnx import TensorProto, helper
from torch import nn

import seqexport
from seqexport import FileError, UnsupportedError, cli, isolation
from seqexport.isolation import check_structure, open_apart, parse_onnx

SESSION = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of memory")


def save(path, nodes, initializers=(), opsets=(("", 20),)):
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [output], list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())
    return path


def external(path, location, **more):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return save(path, [helper.make_node("Identity", ["w"], ["y"])], [tensor])


def elsewhere(path):
    """The same bytes, written by another process."""
    copied = path.with_name(f"copy-{path.name}")
    shutil.copyfile(path, copied)
    return copied


@pytest.mark.parametrize("ending", ["os.abort()", "os.kill(os.getpid(), 11)"])
def test_a_crash_of_the_child_is_one_sentence(tmp_path, monkeypatch, capsys, ending):
    path = save(tmp_path / "x.onnx", [helper.make_node("RandomNormal", [], ["y"], shape=[2])])
    monkeypatch.setattr(isolation, "_CHILD", f"import os; {ending}")
    for command in (["inspect", str(path)], ["run", str(path)], ["verify", str(path), str(path)], [str(path)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "ended the process by SIG" in error and "get it anew" in error


def test_time_and_memory_are_limited(tmp_path, monkeypatch):
    path = save(tmp_path / "x.onnx", [helper.make_node("RandomNormal", [], ["y"], shape=[2])])
    monkeypatch.setattr(isolation, "_CHILD", "import time; time.sleep(60)")
    start = time.perf_counter()
    with pytest.raises(FileError, match="was not opened within 1 s; expected"):
        isolation.Opening(path, seconds=0.6).finish()
    assert time.perf_counter() - start < 10


@SESSION
def test_a_graph_that_makes_terabytes_is_refused(tmp_path):
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [1 << 34, 1 << 10])
    path = save(tmp_path / "x.onnx", [helper.make_node("ConstantOfShape", ["s"], ["y"])], [shape])
    open_apart(path, kind="parse")
    with pytest.raises(seqexport.SeqExportError) as caught:
        seqexport.load(path, isolated=True).run({})
    assert "\n" not in str(caught.value)


def test_a_python_that_can_not_open_it_does_not_blame_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "x.onnx", [helper.make_node("RandomNormal", [], ["y"], shape=[2])])
    monkeypatch.setattr(isolation, "_CHILD", "import not_there")
    open_apart(path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    open_apart(path)


def test_a_good_file_passes_and_a_file_of_ones_own_needs_no_child(tmp_path, monkeypatch):
    path = save_forecaster(tmp_path / "net.pt")
    seqexport.export(path)
    open_apart(elsewhere(path), elsewhere(path.with_suffix(".onnx")))
    feeds = {"x": np.zeros((1, 3, 1), np.float32)}
    alone = seqexport.load(path.with_suffix(".onnx"), isolated=True).run(feeds)
    np.testing.assert_array_equal(alone["y"], seqexport.load(path.with_suffix(".onnx")).run(feeds)["y"])
    monkeypatch.setattr(isolation.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    open_apart(path, path.with_suffix(".onnx"), path.with_suffix(".forecast.onnx"))
    with pytest.raises(pytest.fail.Exception):
        open_apart(elsewhere(path))


def test_the_child_imports_no_torch(tmp_path):
    torch.save(nn.GRU(2, 3).state_dict(), tmp_path / "x.pt")
    save(tmp_path / "x.onnx", [helper.make_node("RandomNormal", [], ["y"], shape=[2])])
    code = "import sys; from seqexport.isolation import _open; from pathlib import Path; "
    code += "[_open(Path(name), 'session') for name in sys.argv[1:]]; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "x.pt"), str(tmp_path / "x.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "a/../../secret", "", "\0", "."])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    path = external(tmp_path / "in" / "x.onnx", location)
    with pytest.raises(FileError, match="not in its own folder|There is no file"):
        seqexport.load(path)
    with pytest.raises(FileError):
        open_apart(path)


def test_weights_beside_the_model_are_read(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert seqexport.load(external(tmp_path / "x.onnx", "w.bin"), isolated=True).run({})["y"].tolist() == [0, 1, 2, 3]
    (tmp_path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(FileError, match="declares 16 bytes, of which at most 8 are there"):
        seqexport.load(tmp_path / "x.onnx")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FileError, match="There is no file .*w.bin"):
        seqexport.load(tmp_path / "x.onnx")


def loops(depth):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[2])
    for _ in range(depth):
        body = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        node = helper.make_node("Loop", ["", "c"], ["y"], body=body)
    return [node]


@pytest.mark.parametrize(
    ("nodes", "initializers", "error", "sentence"),
    [
        (
            [helper.make_node("Shell", [], ["y"], domain="evil.ops")],
            [],
            UnsupportedError,
            "the operator 'Shell' of the domain 'evil.ops', which onnxruntime does not have",
        ),
        (
            [helper.make_node("Identity", ["w"], ["y"])],
            [TensorProto(name="w", data_type=1, dims=[1 << 40, 4], raw_data=bytes(16))],
            FileError,
            "declares 17,592,186,044,416 bytes, of which at most",
        ),
        (
            [helper.make_node("Identity", ["w"], ["y"])],
            [TensorProto(name="w", data_type=1, dims=[-4], raw_data=bytes(16))],
            FileError,
            r"has the shape \[-4\]",
        ),
        (
            [helper.make_node("Constant", [], ["y"], value=TensorProto(data_type=1, dims=[1 << 50]))],
            [],
            FileError,
            "declares",
        ),
        (loops(14), [], FileError, "more than 12 graphs within graphs"),
    ],
)
def test_what_no_session_should_be_made_of(tmp_path, nodes, initializers, error, sentence):
    opsets = [("", 20), ("evil.ops", 1)]
    path = save(tmp_path / "x.onnx", nodes, initializers, opsets)
    with pytest.raises(error, match=sentence):
        check_structure(path, parse_onnx(path))
    with pytest.raises(error, match=sentence):
        open_apart(path)
    with pytest.raises(error, match=sentence):
        seqexport.load(path)


def test_a_models_own_functions_are_no_unknown_domain(tmp_path):
    path = save(tmp_path / "x.onnx", [helper.make_node("Own", [], ["y"], domain="my")], opsets=[("", 20), ("my", 1)])
    model = onnx.load(path)
    inner = [helper.make_node("RandomNormal", [], ["y"], shape=[2])]
    model.functions.append(helper.make_function("my", "Own", [], ["y"], inner, [helper.make_opsetid("", 20)]))
    path.write_bytes(model.SerializeToString())
    open_apart(path)
    assert seqexport.load(path).run({})["y"].shape == (2,)
