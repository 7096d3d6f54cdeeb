import io
import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import PREPROCESSING, forecaster, randomised, save_classifier, save_forecaster, save_generator
from torch import nn

from seqexport import CheckpointError, Choices, UnsupportedError, read_checkpoint
from seqexport.specs import NetworkSpec


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "lstm", seed=4)
    checkpoint = read_checkpoint(path)
    expected = forecaster("lstm", seed=4).state_dict()
    assert checkpoint.spec == NetworkSpec("lstm", 1, 16, layers=2, outputs=2)
    assert checkpoint.preprocessing == PREPROCESSING
    assert checkpoint.metrics == {"mae": 1.5}
    assert set(expected) == set(checkpoint.weights)
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in expected.items())
    content = torch.load(path, weights_only=True)  # noqa: TID251  that it loads so is what is tested
    assert content["format"] == "seqexport/1"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_leaves_an_older_file_when_it_fails(tmp_path, monkeypatch):
    path = save_forecaster(tmp_path / "net.pt")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        save_forecaster(path, "lstm")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Classifier(nn.Module):
    def __init__(self, cell, names=("embedding", "rnn", "fc"), **options):
        super().__init__()
        self.add_module(names[0], nn.Embedding(30, 16))
        self.add_module(names[1], cell(16, 16, batch_first=True, **options))
        self.add_module(names[2], nn.Linear(16 * (2 if options.get("bidirectional") else 1), 5))
        self.names = names

    def forward(self, tokens):
        embedding, rnn, head = (getattr(self, name) for name in self.names)
        y, state = rnn(embedding(tokens))
        return head(y), state


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
def test_a_bare_state_dict_is_inferred_from_names_and_shapes(tmp_path, cell, options):
    net = randomised(Classifier(cell, names=("emb", "encoder", "out"), **options))
    torch.save(net.state_dict(), tmp_path / "x.bin")
    checkpoint = read_checkpoint(tmp_path / "x.bin")
    assert checkpoint.spec == NetworkSpec(
        cell.__name__.lower(),
        16,
        16,
        layers=options.get("num_layers", 1),
        bidirectional=options.get("bidirectional", False),
        bias=options.get("bias", True),
        vocabulary=30,
        outputs=5,
    )
    tokens = torch.randint(0, 30, (3, 7))
    with torch.no_grad():
        expected, _ = net(tokens)
        torch.testing.assert_close(checkpoint.network()(tokens)[0], expected)
    assert checkpoint.unused == ()
    assert any("--head" in note for note in checkpoint.notes)


def test_a_net_without_embedding_and_head_and_one_without_names(tmp_path):
    torch.save(nn.GRU(3, 8).state_dict(), tmp_path / "gru.pt")
    assert read_checkpoint(tmp_path / "gru.pt").spec == NetworkSpec("gru", 3, 8)


def test_choices_settle_what_weights_cannot_tell(tmp_path):
    torch.save(Classifier(nn.RNN).state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt", Choices("relu", True, "last"))
    assert (checkpoint.spec.nonlinearity, checkpoint.spec.time_major, checkpoint.spec.pooling) == ("relu", True, "last")
    assert checkpoint.notes == ()


def test_extra_keys_are_listed_and_other_precisions_are_widened_and_said(tmp_path):
    weights = Classifier(nn.GRU).to(torch.bfloat16).state_dict() | {"norm.weight": torch.ones(16)}
    torch.save(weights, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert checkpoint.unused == ("norm.weight",)
    assert any("bfloat16" in note for note in checkpoint.notes)
    assert torch.equal(checkpoint.weights["head.bias"], weights["fc.bias"].float())


class Hostile:
    """What runs when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickled_module_and_a_hostile_pickle_are_refused_and_never_executed(tmp_path):
    torch.save(Classifier(nn.GRU), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"pickled object \(\S*Classifier\).*state_dict"):
        read_checkpoint(tmp_path / "module.pt")
    marker = tmp_path / "executed"
    for name, options in (("zip.pt", {}), ("legacy.pt", {"_use_new_zipfile_serialization": False})):
        torch.save({"weights": Hostile(marker)}, tmp_path / name, **options)
        with pytest.raises(CheckpointError, match="was not executed"):
            read_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_a_damaged_archive_is_noticed_by_its_checksum(tmp_path):
    path = save_forecaster(tmp_path / "net.pt")
    content = bytearray(path.read_bytes())
    position = content.find(forecaster().state_dict()["rnn.weight_hh_l0"].numpy().tobytes()[:64])
    assert position > 0
    content[position + 8] ^= 0x10
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # noqa: TID251  torch itself reads the wrong weights without a word
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(path)


def truncated(path):
    content = save_forecaster(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"0" * 100_000)


def with_weights(change):
    def make(path):
        weights = Classifier(nn.LSTM, num_layers=2).state_dict()
        change(weights)
        torch.save(weights, path)

    return make


def own_format(change):
    def make(path):
        content = torch.load(save_forecaster(path), weights_only=True)  # noqa: TID251  to spoil it
        change(content)
        torch.save(content, path)

    return make


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "text": (lambda path: path.write_text("hello"), "not a checkpoint"),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x0a\x12\x00"), "not a checkpoint"),
    "garbage that looks like a pickle": (
        lambda path: path.write_bytes(b"\x80\x02garbage"),
        "could not be read|pickled",
    ),
    "truncated": (truncated, "damaged archive"),
    "compressed": (compressed, "compressed archive"),
    "some zip": (lambda path: zipfile.ZipFile(path, "w").close(), "without a checkpoint"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "holds a Tensor"),
    "a list": (lambda path: torch.save([1, 2], path), "holds a list"),
    "an empty dict": (lambda path: torch.save({}, path), "no weights at all"),
    "no recurrent net": (lambda path: torch.save(nn.Linear(2, 2).state_dict(), path), "no recurrent net.*weight"),
    "an optimizer": (lambda path: torch.save({"state": {}, "param_groups": [{"lr": 1}]}, path), "no recurrent net"),
    "NaN": (with_weights(lambda w: w["rnn.bias_hh_l1"].fill_(np.nan)), "64 values"),
    "missing layer": (with_weights(lambda w: w.pop("rnn.weight_ih_l1")), r"lacks the weight rnn.weight_ih_l1"),
    "rows": (with_weights(lambda w: w.update({"rnn.weight_ih_l0": torch.ones(40, 16)})), "40 rows"),
    "shape": (with_weights(lambda w: w.update({"rnn.weight_hh_l1": torch.ones(64, 9)})), r"\[64, 9\].*\[64, 16\]"),
    "head": (with_weights(lambda w: w.update({"fc.weight": torch.ones(5, 99)})), "reads 99 numbers"),
    "two heads": (with_weights(lambda w: w.update({"fc2.weight": torch.ones(5, 5)})), "2 matrices after"),
    "two nets": (with_weights(lambda w: w.update(nn.GRU(2, 3).state_dict(prefix="b."))), "2 recurrent nets"),
    "other format": (own_format(lambda c: c.update(format="seqexport/9")), "seqexport/9"),
    "no weights": (own_format(lambda c: c.pop("state_dict")), "lacks state_dict"),
    "other task": (own_format(lambda c: c.update(task="translate")), "translate"),
    "bad network": (own_format(lambda c: c["network"].update(layers=-1)), "contradicts itself.*layers"),
    "other network": (own_format(lambda c: c["network"].update(layers=3)), "lacks the weight rnn.weight_ih_l2"),
    "bad scaling": (
        own_format(lambda c: c["preprocessing"]["scaling"].update(spread=0.0)),
        "contradicts itself.*spread",
    ),
    "no scaling": (own_format(lambda c: c.update(preprocessing={})), "contradicts itself"),
    "a vocabulary of another size": (
        lambda path: save_generator(path, edit=lambda p: p["vocabulary"]["tokens"].pop()),
        "contradicts itself.*29 tokens, but the network's embedding 30",
    ),
    "a vocabulary with half a character": (
        lambda path: save_generator(
            path,
            edit=lambda p: p["vocabulary"].update(tokens=["<unknown>", *(chr(0xD800 + index) for index in range(29))]),
        ),
        "contradicts itself.*lone surrogate",
    ),
    "no labels": (
        lambda path: save_classifier(path, edit=lambda p: p.pop("labels")),
        "contradicts itself.*labels",
    ),
    "not a forecaster": (own_format(lambda c: c["network"].update(pooling="last")), "contradicts itself.*forecast"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(tmp_path, name):
    make, sentence = BAD[name]
    make(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        read_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_torchscript_and_projections(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        read_checkpoint(tmp_path / "none.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
        archive.writestr("net/data.pkl", "")
    (tmp_path / "script.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")
    torch.save(nn.LSTM(3, 8, proj_size=4).state_dict(), tmp_path / "proj.pt")
    with pytest.raises(UnsupportedError, match="proj_size"):
        read_checkpoint(tmp_path / "proj.pt")
