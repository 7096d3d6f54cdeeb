"""A small run of training.fuzz, and by name what it found: each has one sentence, and nothing was executed."""

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from conftest import save_forecaster
from onnx import TensorProto, helper
from torch import nn

from seqexport import CheckpointError, FileError, SeqExportError, cli, read_checkpoint
from seqexport.archives import read_content
from seqexport.inspection import inspect
from training import hostile

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux for its memory")
@pytest.mark.parametrize(
    ("count", "exports", "seed"), [(12, 1, 11), pytest.param(600, 30, 12, marks=[pytest.mark.slow])]
)
def test_spoilt_files_get_one_sentence_and_execute_nothing(count, exports, seed):
    options = ["--count", str(count), "--exports", str(exports), "--seed", str(seed)]
    command = [sys.executable, "-m", "training.fuzz", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"| **all** | {count} |" in done.stdout


SENTENCES = {
    "os.system": "was not executed",
    "eval": "was not executed",
    "setstate of a tensor": "was not executed",
    "storage too large": r"should have 1048576 values of 4 bytes, but has \d+ bytes",
    "storage of petabytes": "copy or save it again",
    "storage of less than nothing": "should have -4 values",
    "bytearray": "would make a builtins.bytearray out of a size alone",
    "new bytearray": "would make a builtins.bytearray",
    "tensor of a Size": "would make a torch.FloatTensor",
    "new storage": "would make a torch.storage.UntypedStorage",
    "expanded to gigabytes": "but its tensors would take more than",
    "one tensor under many names": "should have 50000 values|copy or save",
    "meta": "without its values, on the device meta",
    "deep tuples as a key": "nests its values more than 100 deep",
    "marks": "nests its values more than 100 deep",
    "deep lists": "without end or too deep",
    "laughs of dicts": "without end or too deep",
    "laughs of lists": "without end or too deep",
    "a dict in itself": "without end or too deep",
    "laughs called": "calls what is no function",
    "laughs as a storage's name": "gives a list where a storage has its name",
}


@pytest.mark.parametrize("how", ["archive", "older"])
@pytest.mark.parametrize("name", SENTENCES)
def test_hostile_pickles(tmp_path, monkeypatch, name, how):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    path.write_bytes(hostile.contained(hostile.PICKLES[name], how))
    with pytest.raises(CheckpointError, match=SENTENCES[name]) as caught:
        read_content(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_objects_of_a_script_that_hold_each_other(tmp_path):
    net = hostile.name("__torch__", "Net") + b")\x81"
    pickle = b"\x80\x02" + net + b"q\x00"
    for level in range(40):  # each holds the one before twice
        again = b"h" + bytes([level])
        pickle += net + b"}(" + hostile.text("a") + again + hostile.text("b") + again + b"ubq" + bytes([level + 1])
    (tmp_path / "x.pt").write_bytes(hostile.contained(pickle + b".", "script"))
    with pytest.raises(CheckpointError, match="objects that hold each other, without end"):
        read_content(tmp_path / "x.pt")


def test_one_tensor_under_a_million_names(tmp_path):
    weight = torch.ones(100_000)
    torch.save({f"w{index}": weight for index in range(2000)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="its tensors would take more than"):
        read_content(tmp_path / "x.pt")


def test_an_archive_with_an_entry_twice(tmp_path):
    path = save_forecaster(tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickle = archive.read(name)
    for other in (name, name.upper(), "other/data.pkl"):
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr(other, pickle)
        with pytest.raises(CheckpointError, match="an entry twice"):
            read_content(path)


def test_weight_norm_of_another_shape(tmp_path):
    net = nn.GRU(2, 3)
    spoilt = {"weight_hh_l0_g": torch.ones(7, 1), "weight_hh_l0_v": torch.ones(9, 3)}
    torch.save({**net.state_dict(), **spoilt}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"weight_hh_l0_g has the shape \[7, 1\], which does not scale"):
        read_checkpoint(tmp_path / "x.pt")
    assert inspect(tmp_path / "x.pt")["exports as"].startswith("nothing, as it is: ")


def test_a_network_larger_than_any_memory(tmp_path):
    path = save_forecaster(tmp_path / "x.pt", "gru")
    tree = read_content(path).tree
    torch.save({**tree, "network": {**tree["network"], "hidden_size": 2**31 - 1}}, path)
    with pytest.raises(CheckpointError, match="the network that it describes is larger than any memory"):
        read_checkpoint(path)


def test_a_name_of_dots(tmp_path, capfd):
    (tmp_path / "x.pt").write_bytes(hostile.contained(hostile.PICKLES["a name of dots"], "archive"))
    for options in ([], ["--json"]):
        assert cli.main(["inspect", str(tmp_path / "x.pt"), *options]) == 0
    assert capfd.readouterr().err == ""


def test_names_in_an_onnx_file_that_are_no_text(tmp_path):
    path = save_onnx(tmp_path / "x.onnx", lambda model: model.metadata_props.add(key="name", value="QQQQ"))
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xff\xfe"))
    with pytest.raises(FileError, match="damaged ONNX file: it holds names that are no text"):
        inspect(path)


@pytest.mark.parametrize(("metrics", "code"), [({"a": torch.ones(2)}, 0), ({"a": float("nan")}, 0)])
def test_metrics_that_are_no_json(tmp_path, capfd, metrics, code):
    path = save_forecaster(tmp_path / "x.pt")
    torch.save({**read_content(path).tree, "metrics": metrics}, path)
    assert cli.main(["inspect", str(path), "--json"]) == code
    assert capfd.readouterr().err == ""


def test_a_shape_that_is_large_and_empty(tmp_path):
    (tmp_path / "x.pt").write_bytes(hostile.SAFETENSORS["shape with zero"])
    assert inspect(tmp_path / "x.pt")["weights"]["w"]["shape"] == [1 << 60, 0]


def save_onnx(path, change):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[2])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, ir_version=9)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_type_that_onnx_does_not_know(tmp_path):
    def change(model: onnx.ModelProto):
        model.graph.output[0].type.tensor_type.elem_type = 256

    with pytest.raises(FileError, match="names a type of tensor, 256, that ONNX does not have"):
        inspect(save_onnx(tmp_path / "x.onnx", change))


def test_a_nan_of_the_kind_that_processors_signal(tmp_path):
    def change(model: onnx.ModelProto):
        weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2])
        weight.raw_data = b"\x01\x00\x80\x7f" + b"\x00\x00\x80\x3f"  # and a 1

    assert inspect(save_onnx(tmp_path / "x.onnx", change))["weights"]["w"]["nan"] == 1


def test_folded_weights_that_overflow(tmp_path, capfd):
    net = nn.LSTM(2, 3, proj_size=2)
    huge = {name: torch.full_like(weight, 3e38) for name, weight in net.state_dict().items()}
    torch.save(huge, tmp_path / "x.pt")
    code = cli.main([str(tmp_path / "x.pt")])
    error = capfd.readouterr().err
    assert code == 1 and "RuntimeWarning" not in error, error


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 900 + "]" * 900, "9" * 5000, '"\\ud800"', "NaN?"])
def test_metadata_that_can_not_be_decoded_or_shown(tmp_path, capfd, value):
    path = save_onnx(tmp_path / "x.onnx", lambda model: model.metadata_props.add(key="network", value=value))
    for options in ([], ["--json"]):
        assert cli.main(["inspect", str(path), *options]) == 0
    out, errors = capfd.readouterr()
    assert errors == ""
    assert json.loads(out[out.index("\n{") :])["metadata"]["network"] in (value, "\ud800")


def test_what_a_file_holds_does_not_steer_the_terminal(tmp_path, capfd):
    def change(model: onnx.ModelProto):
        model.metadata_props.add(key="[/]\x1b[2J", value="x")

    assert cli.main(["inspect", str(save_onnx(tmp_path / "x.onnx", change))]) == 0
    assert "'[/]\\x1b[2J'" in capfd.readouterr().out
    torch.save({"a\x1b[2J\n" + "b" * 5000: torch.ones(2)}, tmp_path / "x.pt")
    assert cli.main([str(tmp_path / "x.pt")]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error and len(error) < 3000


@pytest.mark.parametrize("name", hostile.SAFETENSORS)
def test_hostile_safetensors(tmp_path, name):
    (tmp_path / "x.pt").write_bytes(hostile.SAFETENSORS[name])
    try:
        inspect(tmp_path / "x.pt")
    except SeqExportError as error:
        assert "\n" not in str(error)
