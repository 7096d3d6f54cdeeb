"""The Hub's folder: what its library reads of it, and that it holds the model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard
from huggingface_hub.repocard_data import ModelCardData
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from torch import nn

import seqexport
from seqexport import FileError, UnsupportedError, cli, export, hub
from seqexport.hub import write_hub

SHIPPED = Path(__file__).parents[1] / "exported"


@pytest.mark.parametrize("name", ["sentiment-zh", "electricity-gru", "characters-en"])
def test_the_folder_is_what_the_hub_expects(tmp_path, name):
    task = {"sentiment-zh": "classify", "electricity-gru": "forecast", "characters-en": "generate"}[name]
    paths = write_hub(SHIPPED / name / "checkpoint.onnx", tmp_path / name)
    found = {path.relative_to(tmp_path / name).as_posix() for path in paths}
    graphs = {f"onnx/{graph}{suffix}.onnx" for graph in ("model", task) for suffix in ("", "_quantized")}
    assert found == {"README.md", "config.json", "model.safetensors"} | graphs
    assert {path for path in (tmp_path / name).rglob("*") if path.is_file()} == set(paths)

    card = ModelCard.load(tmp_path / name / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert card.data.library_name == "onnx" and "onnxruntime" in card.data.tags
    assert card.data.pipeline_tag in (tmp_path / name / "README.md").read_text()
    assert card.text.strip().startswith(f"# {name}")
    validate_repo_id(f"user/{name}")
    for path in paths:  # what an upload makes of them: each is read and its hash taken
        CommitOperationAdd(path_in_repo=path.relative_to(tmp_path / name).as_posix(), path_or_fileobj=path)

    config = json.loads((tmp_path / name / "config.json").read_text())
    assert config["model_type"] == {"characters-en": "lstm", "electricity-gru": "gru", "sentiment-zh": "lstm"}[name]
    assert set(config["files"]) == graphs
    if task == "classify":
        assert config["id2label"] == {"0": "negative", "1": "positive"}
        assert config["label2id"] == {"negative": 0, "positive": 1}

    source = {"network": SHIPPED / name / "checkpoint.onnx"}
    assert (tmp_path / name / "onnx" / "model.onnx").read_bytes() == source["network"].read_bytes()
    quantized = SHIPPED / name / f"checkpoint.{task}.int8.onnx"
    assert (tmp_path / name / "onnx" / f"{task}_quantized.onnx").read_bytes() == quantized.read_bytes()
    weights = seqexport.read_checkpoint(SHIPPED / name / "checkpoint.pt").weights
    with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in weights.items())


def test_the_weights_export_to_the_same_numbers(tmp_path):
    """What was pushed can be read again: the safetensors file is a checkpoint."""
    write_hub(SHIPPED / "sunspots-lstm" / "checkpoint.forecast.onnx", tmp_path / "hub")
    export(tmp_path / "hub" / "model.safetensors", tmp_path / "net.onnx")
    x = {"x": np.random.default_rng(0).normal(size=(2, 9, 1)).astype(np.float32)}
    again, shipped = (
        seqexport.load(path).run(x)["y"] for path in (tmp_path / "net.onnx", tmp_path / "hub/onnx/model.onnx")
    )
    np.testing.assert_allclose(again, shipped, atol=7e-6)


def test_a_bare_network(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.RNN(3, 8).state_dict(), tmp_path / "rnn.pt")
    how = seqexport.Choices(nonlinearity="relu", time_major=True)
    export(tmp_path / "rnn.pt", choices=how)
    assert cli.main(["deploy", str(tmp_path / "rnn.onnx"), "--hub", str(tmp_path / "my net!")]) == 0
    card = ModelCard.load(tmp_path / "my net!" / "README.md")
    assert "# my-net\n" in card.text and card.data.pipeline_tag is None
    validate_repo_id("user/my-net")
    assert json.loads((tmp_path / "my net!" / "config.json").read_text())["network"]["nonlinearity"] == "relu"


def test_an_int8_file_alone(tmp_path):
    for name in ("checkpoint.pt", "checkpoint.int8.onnx"):
        shutil.copy(SHIPPED / "sunspots-gru" / name, tmp_path / name)
    write_hub(tmp_path / "checkpoint.int8.onnx", tmp_path / "hub")
    assert [path.name for path in (tmp_path / "hub" / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert "Held against its float32 form" in (tmp_path / "hub" / "README.md").read_text()


def test_the_checkpoint_has_to_be_the_files(tmp_path, capsys):
    shutil.copy(SHIPPED / "sunspots-gru" / "checkpoint.onnx", tmp_path)
    with pytest.raises(FileError, match="give it with --checkpoint"):
        write_hub(tmp_path / "checkpoint.onnx", tmp_path / "hub")
    with pytest.raises(FileError, match="is not the checkpoint"):
        write_hub(
            tmp_path / "checkpoint.onnx", tmp_path / "hub", checkpoint=SHIPPED / "sunspots-lstm" / "checkpoint.pt"
        )
    assert not (tmp_path / "hub").exists()
    right = str(SHIPPED / "sunspots-gru" / "checkpoint.pt")
    assert (
        cli.main(["deploy", str(tmp_path / "checkpoint.onnx"), "--hub", str(tmp_path / "hub"), "--checkpoint", right])
        == 0
    )
    shutil.copy(SHIPPED / "sunspots-lstm" / "checkpoint.forecast.onnx", tmp_path)
    with pytest.raises(FileError, match="was written from the checkpoint"):
        write_hub(tmp_path / "checkpoint.onnx", tmp_path / "hub", checkpoint=right)


def test_a_folder_with_something_else_stays(tmp_path):
    file = SHIPPED / "sunspots-gru" / "checkpoint.onnx"
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileError, match=r"holds README.md, which is not of what would be written there"):
        write_hub(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    write_hub(file, tmp_path / "hub")
    (tmp_path / "hub" / ".git").mkdir()
    (tmp_path / "hub" / ".git" / "config").write_text("a clone of the repository")
    write_hub(file, tmp_path / "hub")
    (tmp_path / "hub" / "onnx" / "older.onnx").write_bytes(b"")
    with pytest.raises(FileError, match="holds onnx/older.onnx"):
        write_hub(file, tmp_path / "hub")


class Own(nn.Module):
    def forward(self, x):
        return x + 1


def test_what_has_no_description(tmp_path, monkeypatch):
    export(Own(), tmp_path / "net.onnx", inputs={"x": "float32[batch,2]"})
    with pytest.raises(UnsupportedError, match="no config.json"):
        write_hub(tmp_path / "net.onnx", tmp_path / "hub")
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install huggingface-hub"):
        write_hub(SHIPPED / "sunspots-gru" / "checkpoint.onnx", tmp_path / "hub")
