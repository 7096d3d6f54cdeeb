import argparse
import gzip
import io
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import PREPROCESSING, forecaster, randomised, save_classifier, save_forecaster, save_generator
from torch import nn

import seqexport
from seqexport import CheckpointError, Choices, read_checkpoint
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


def lightning(weights):
    hyperparameters = argparse.Namespace(hidden=16, folder=pathlib.PurePosixPath("/data"))
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "hyper_parameters": hyperparameters,
    }


WRAPPED = {
    "bare": (lambda weights: weights, ""),
    "state_dict": (lambda weights: {"state_dict": weights, "epoch": 3}, "state_dict"),
    "model_state_dict": (lambda weights: {"epoch": 3, "model_state_dict": weights}, "model_state_dict"),
    "model_state": (lambda weights: {"model_state": weights, "optimizer_state": {"lr": 0.1}}, "model_state"),
    "model": (lambda weights: {"model": weights, "ema": weights, "best": {"loss": 1.0}}, "model"),
    "two deep": (lambda weights: {"checkpoint": {"net": weights, "step": 5}}, "checkpoint.net"),
    "lightning": (lightning, "state_dict"),
    "DataParallel": (lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()}, ""),
    "compiled": (lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, ""),
    "parts": (
        lambda weights: {
            part: {name.partition(".")[2]: w for name, w in weights.items() if name.startswith(part)}
            for part in ("embedding", "rnn", "fc")
        },
        "",
    ),
    "parts in a wrapper": (
        lambda weights: {
            "step": 1,
            "networks": {
                part: {name.partition(".")[2]: w for name, w in weights.items() if name.startswith(part)}
                for part in ("embedding", "rnn", "fc")
            },
        },
        "networks",
    ),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_found(tmp_path, name, older):
    wrap, where = WRAPPED[name]
    net = randomised(Classifier(nn.LSTM, num_layers=2))
    if older and name == "lightning":
        pytest.raises(CheckpointError, read_saved, tmp_path, wrap(net.state_dict()), older)
        return
    checkpoint = read_saved(tmp_path, wrap(net.state_dict()), older)
    assert checkpoint.spec == NetworkSpec("lstm", 16, 16, layers=2, vocabulary=30, outputs=5)
    expected = {name.replace("fc.", "head."): tensor for name, tensor in net.state_dict().items()}
    assert set(checkpoint.weights) == set(expected)
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in expected.items())
    assert checkpoint.container.endswith(where)
    if name == "lightning":
        assert any("argparse.Namespace" in note for note in checkpoint.notes)
        assert {"epoch", "hyper_parameters"} <= set(checkpoint.unused)
    if name == "model":
        assert any("'model', and not of 'ema'" in note for note in checkpoint.notes)


def read_saved(folder, content, older):
    torch.save(content, folder / "x.anything", _use_new_zipfile_serialization=not older)
    return read_checkpoint(folder / "x.anything")


def save_safetensors(net, path):
    safetensors.torch.save_file(net.state_dict(), path, metadata={"format": "pt"})


def save_scripted(net, path):
    torch.jit.script(net).save(path)


def save_traced(net, path):
    torch.jit.trace(net, torch.ones(2, 3, dtype=torch.int64)).save(path)


class Scripted(nn.Module):
    """TorchScript knows no modules by computed names."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.rnn = nn.GRU(16, 16, 2, batch_first=True, bidirectional=True)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 5))])

    def forward(self, tokens):
        y = self.rnn(self.embedding(tokens))[0]
        for block in self.blocks:
            y = block(y)
        return y


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("save", [save_safetensors, save_scripted, save_traced])
def test_safetensors_and_torchscript(tmp_path, save):
    net = randomised(Scripted())
    save(net, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    options = {"layers": 2, "bidirectional": True, "vocabulary": 30, "outputs": 5}
    assert checkpoint.spec == NetworkSpec("gru", 16, 16, **options)
    tokens = torch.randint(0, 30, (3, 7))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network()(tokens)[0], net(tokens))
    assert seqexport.load(tmp_path / "x.pt").run({"tokens": tokens.numpy()})["y"].shape == (3, 7, 5)


def test_a_torchscript_program_is_not_run(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/code/__torch__.py", "import os")
        archive.writestr("x/data.pkl", b"\x80\x02c__torch__\nNet\n)\x81}b.")
        archive.writestr("x/version", "3")
        archive.writestr("x/byteorder", "little")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the script was loaded"))
    with pytest.raises(CheckpointError, match="no recurrent net"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projections_and_cells_are_inferred(tmp_path, bidirectional):
    net = randomised(nn.LSTM(6, 12, 2, proj_size=5, bidirectional=bidirectional))
    torch.save(net.state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt", Choices(time_major=True))
    options = {"layers": 2, "bidirectional": bidirectional, "time_major": True, "projection": 5}
    assert checkpoint.spec == NetworkSpec("lstm", 6, 12, **options)
    assert seqexport.export(tmp_path / "x.pt", choices=Choices(time_major=True)).passed
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: spec.sample({"batch": 3, "time": 8}, rng) for spec in (checkpoint.spec.input, *checkpoint.spec.state)
    }
    with torch.no_grad():
        y, _ = net(*[torch.from_numpy(feeds["x"]), (torch.from_numpy(feeds["h0"]), torch.from_numpy(feeds["c0"]))])
    np.testing.assert_allclose(seqexport.load(tmp_path / "x.onnx").run(feeds)["y"], y.numpy(), atol=1e-6)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cells_weights_are_a_net_of_one_layer(tmp_path, cell):
    net = randomised(cell(4, 6))
    torch.save({f"decoder.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert checkpoint.spec == NetworkSpec(cell.__name__[:-4].lower(), 4, 6)
    x = torch.randn(3, 5, 4)
    state, steps = None, []
    for step in x.unbind(1):
        state = net(step, state)
        steps.append(state[0] if cell is nn.LSTMCell else state)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network()(x)[0], torch.stack(steps, 1))


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_is_folded(tmp_path, new):
    weight_norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
    net = randomised(Classifier(nn.GRU))
    weight_norm(net.rnn, "weight_hh_l0")
    weight_norm(net.fc, dim=None)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(1.5 if "original0" in name or name.endswith("_g") else 1.0)
    torch.save(net.state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert checkpoint.unused == ()
    tokens = torch.randint(0, 30, (3, 7))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network()(tokens)[0], net(tokens)[0])


def test_a_head_that_is_listed_before_the_recurrence_is_found(tmp_path):
    weights = Classifier(nn.LSTM).state_dict()
    torch.save(dict(sorted(weights.items())), tmp_path / "x.pt")  # embedding, fc, rnn
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert (checkpoint.spec.vocabulary, checkpoint.spec.outputs, checkpoint.unused) == (30, 5, ())


def test_float64_is_exported_as_float32_with_what_that_changes(tmp_path):
    net = randomised(Classifier(nn.LSTM)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-9)
    torch.save(net.state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    (note,) = [note for note in checkpoint.notes if "float64" in note]
    change = float(note.rpartition(" ")[2])
    assert 1e-9 < change < 1e-5
    assert seqexport.export(tmp_path / "x.pt").passed


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


def add_to_tar(path):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("weights"), io.BytesIO())


def cut_safetensors():
    return safetensors.torch.save({"rnn.weight_ih_l0": torch.ones(8, 4)})[:-9]


def overlapping(path):
    """Entries that all name the same bytes: a small file that would unpack to a large one."""
    content = save_forecaster(path).read_bytes()
    start = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    directory = content[start:end] * 40
    count = (40).to_bytes(2, "little")
    tail = content[end : end + 8] + count + count + len(directory).to_bytes(4, "little") + start.to_bytes(4, "little")
    path.write_bytes(content[:start] + directory + tail + b"\0\0")


def array_file(save):
    buffer = io.BytesIO()
    save(buffer, np.ones((4, 4)))
    return buffer.getvalue()


def with_arrays(path):
    torch.save({"rnn.weight_ih_l0": np.ones((8, 4), np.float32)}, path)


def entries(*names, content=b"", compression=zipfile.ZIP_STORED):
    def make(path):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in names:
                archive.writestr(name, content)

    return make


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "text": (lambda path: path.write_text("hello"), "not a checkpoint"),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x0a\x12\x00"), "not a checkpoint.*ONNX model.*`inspect`"),
    "Keras HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5 file, as Keras"),
    "Keras archive": (entries("metadata.json", "config.json", "model.weights.h5"), "is a Keras file"),
    "numpy archive": (lambda path: path.write_bytes(array_file(np.savez)), "archive of numpy arrays"),
    "numpy array": (lambda path: path.write_bytes(array_file(np.save)), "a numpy array"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "gzip archive: unpack it first"),
    "tar": (lambda path: tarfile.open(path, "w").close() or add_to_tar(path), "tar archive: unpack it first"),
    "torch.package": (entries("net/.data/extern_modules", "net/.data/version"), "torch.package archive"),
    "safetensors, cut": (lambda path: path.write_bytes(cut_safetensors()), "damaged safetensors"),
    "TorchScript, empty": (entries("net/code/__torch__.py", "net/data.pkl"), "could not be read as a checkpoint"),
    "overlapping entries": (overlapping, "overlap|damaged"),
    "layers by the billion": (
        with_weights(lambda w: w.update({"rnn.weight_ih_l1000000000": torch.ones(64, 16)})),
        "names a layer 1000000000",
    ),
    "layers by the billion in our own format": (own_format(lambda c: c["network"].update(layers=10**9)), "10+ layers"),
    "mixed layers": (
        with_weights(
            lambda w: w.update({"rnn.weight_ih_l1": torch.ones(48, 16), "rnn.weight_hh_l1": torch.ones(48, 16)})
        ),
        r"weight_ih_l1 has the shape \[48, 16\].*\[64, 16\]",
    ),
    "too large for float32": (
        with_weights(lambda w: w.update({"fc.bias": torch.full((5,), 1e300, dtype=torch.float64)})),
        "fc.bias holds values too large for float32",
    ),
    "numpy arrays in a dict": (with_arrays, "pickled object|no recurrent net"),
    "only names": (lambda path: torch.save({"rnn.weight_ih_l0": 3}, path), "no recurrent net"),
    "weights of other kinds": (
        lambda path: torch.save({"rnn.weight_ih_l0": torch.ones(4, 4, dtype=torch.int8)}, path),
        "no recurrent net",
    ),
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
    "an optimizer": (lambda path: torch.save({"state": {}, "param_groups": [{"lr": 1}]}, path), "optimizer's state"),
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


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        read_checkpoint(tmp_path / "none.pt")
