"""Checkpoints that others have published, in as many layouts, out of packages; nothing of the packages is run."""

from pathlib import Path

import numpy as np
import published_nets
import pytest
import torch

import seqexport
from seqexport import CheckpointError, Choices, cli, load_module
from seqexport.archives import read_content
from seqexport.inference import find_weights
from seqexport.reports import TOLERANCE
from seqexport.specs import NetworkSpec
from seqexport.verification import difference
from training.packages import PackagedFile, fetch

pytestmark = pytest.mark.slow  # they are fetched

NETS = Path(published_nets.__file__)
FILES = {
    "speaker encoder": PackagedFile(  # the older format of torch.save; weights beside an optimizer's state
        "Resemblyzer", "0.1.4", "resemblyzer/pretrained.pt",
        "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    ),
    "column types": PackagedFile(  # a bare state_dict, time-major
        "cartwright", "0.0.3", "cartwright/models/LSTM_RNN_Cartwright_v_0.0.1_dict.pth",
        "abc4527769d70c28b0d150a09a6502f33a2347db0aaa74c020d511ab6761e95c",
    ),
    "beat tracker": PackagedFile(  # a convolution and a linear layer before the recurrence; an older archive
        "BeatNet", "1.1.3", "BeatNet/models/model_1_weights.pt",
        "619091bc317ca3e83b45591d46f6de3d5a41588bcb39fe9fe7be30cffa6aca84",
    ),
    "pickled beat tracker": PackagedFile(
        "BeatNet", "1.1.3", "BeatNet/models/model-1.pt",
        "80e320ba1efaeae36a7f8b684cada1b3a7d8c645add26d3ed1bb870f92ba11ed",
    ),
    "graphemes to phonemes": PackagedFile(  # two recurrences, and no suffix
        "g2p-fa", "1.1.0", "g2p_fa/data/weights",
        "c83ac4d3d403a3f628cb16688fd1a39c0cd0ab55ced48e33a035ccf0901fdcb8",
    ),
    "voice activity": PackagedFile(  # safetensors, an LSTMCell
        "silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k.safetensors",
        "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
    ),
    "voice activity, TorchScript": PackagedFile(  # two nets in one program
        "silero-vad", "6.2.3", "silero_vad/data/silero_vad.jit",
        "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720",
    ),
    "line reader": PackagedFile(  # wrapped with other things, whole numbers among the weights
        "legere", "0.11.0", "legere/data/model.pt",
        "bfbf943f8c251bf68183d26fa1837a62190872b93351ce1d93e0c756dac86399",
    ),
}  # fmt: skip


def fetched(name, folder):
    path = folder / "checkpoint"  # no suffix: it is the content that counts
    path.write_bytes(fetch(FILES[name]))
    return path


def reference(net, path):
    """Our class with the published weights, put in by torch's own strict loading where the names are the same."""
    content = read_content(path)
    tensors = find_weights(path, content.tree, recurrent=False).tensors
    module = net()
    named = {name: tensors[prefix + name] for prefix in ("", "_model.") for name in module.state_dict()
             if prefix + name in tensors}  # fmt: skip
    module.load_state_dict(named)
    return module.eval()


RECOGNISED = {
    "speaker encoder": (
        Choices(time_major=False, head="last"),
        NetworkSpec("lstm", 40, 256, layers=3, outputs=256, pooling="last"),
        "model_state",
    ),
    "column types": (
        Choices(time_major=True, head="last"),
        NetworkSpec("lstm", 128, 32, vocabulary=89, outputs=82, pooling="last", time_major=True),
        "torch archive",
    ),
    "beat tracker": (Choices(), NetworkSpec("lstm", 150, 150, layers=2, outputs=3), "torch archive"),
    "voice activity": (Choices(), NetworkSpec("lstm", 128, 128), "safetensors"),
    "line reader": (Choices(), NetworkSpec("gru", 192, 128, bidirectional=True, outputs=122), "model"),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_published_checkpoint_is_recognised_and_exported(tmp_path, name):
    path = fetched(name, tmp_path)
    choices, spec, container = RECOGNISED[name]
    checkpoint = seqexport.read_checkpoint(path, choices)
    assert checkpoint.spec == spec
    assert checkpoint.container.endswith(container)
    assert seqexport.export(path, tmp_path / "net.onnx", choices=choices).passed


def run(path, **feeds):
    return list(seqexport.load(path).run(feeds).values())


def test_the_recognised_speaker_encoder_gives_what_the_net_gives_before_its_norm(tmp_path):
    path = fetched("speaker encoder", tmp_path)
    seqexport.export(path, tmp_path / "net.onnx", choices=Choices(time_major=False, head="last"))
    mel = np.random.default_rng(0).standard_normal((2, 160, 40)).astype(np.float32)
    with torch.no_grad():
        expected = reference(published_nets.SpeakerEncoder, path)(torch.from_numpy(mel)).numpy()
    y = np.maximum(run(tmp_path / "net.onnx", x=mel)[0], 0)
    np.testing.assert_allclose(y / np.linalg.norm(y, axis=1, keepdims=True), expected, atol=1e-6)


STATE = "(float32[2,batch,150], float32[2,batch,150])"
CELL_STATE = "(float32[batch,128], float32[batch,128])"
CLASSES = {
    "speaker encoder": ("SpeakerEncoder", ["mel: float32[batch,time,40]"]),
    "beat tracker": ("BeatTracker", ["spectra: float32[batch,time,272]", f"state: {STATE}"]),
    "column types": ("ColumnType", ["characters: int64[time,batch]{0..88}", "lengths: int64[batch]{1..time}"]),
    "graphemes to phonemes": (
        "GraphemesToPhonemes",
        ["letters: int64[time,batch]{0..40}", "phonemes: int64[steps,batch]{0..32}"],
    ),
    "voice activity": ("VoiceActivity", ["features: float32[batch,128]", f"state: {CELL_STATE}"]),
    "voice activity, TorchScript": ("ScriptedActivity", ["features: float32[batch,128]", f"state: {CELL_STATE}"]),
    "line reader": ("ReadsLines", ["features: float32[batch,time,192]"]),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_published_checkpoint_in_a_class_of_ones_own(tmp_path, capsys, name):
    path = fetched(name, tmp_path)
    net, inputs = CLASSES[name]
    options = [part for spec in inputs for part in ("--input", spec)]
    assert cli.main([str(path), "-o", str(tmp_path / "net.onnx"), "--module", f"{NETS}:{net}", *options]) == 0
    assert "verified" in capsys.readouterr().out
    runtime, module = seqexport.load(tmp_path / "net.onnx"), reference(getattr(published_nets, net), path)
    rng = np.random.default_rng(0)
    for batch, time in ((1, 1), (3, 40)):
        sizes = {"batch": batch, "time": time, "steps": 9}
        feeds = {spec.name: spec.sample(sizes, rng) for spec in runtime.inputs}
        feeds["lengths"] = np.full(batch, max(1, time - 3)) if "lengths" in feeds else None
        feeds = {key: value % 33 if value.dtype == np.int64 and key != "lengths" else value
                 for key, value in feeds.items() if value is not None}  # fmt: skip
        values = [torch.from_numpy(value) for value in feeds.values()]
        arguments = [*values[:-2], tuple(values[-2:])] if "state" in " ".join(inputs) else values
        with torch.no_grad():
            expected = module(*arguments)
        flat = [part.numpy() for part in torch.utils._pytree.tree_leaves(expected)]
        for found, wanted in zip(runtime.run(feeds).values(), flat, strict=True):
            error, note = difference(wanted, found)
            assert error <= TOLERANCE, (batch, time, error, note)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pickled beat tracker", r"pickled object \(model.BDA\).*not executed"),
        ("graphemes to phonemes", r"2 recurrent nets \(encoder.rnn, decoder.rnn\).*--module"),
        ("voice activity, TorchScript", "2 recurrent nets .*--module"),
    ],
)
def test_what_can_not_be_told_from_weights_says_the_way_out(tmp_path, name, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        seqexport.read_checkpoint(fetched(name, tmp_path))


def test_a_program_of_two_nets_has_the_weights_of_both(tmp_path):
    path = fetched("voice activity, TorchScript", tmp_path)
    module = load_module(f"{NETS}:ScriptedActivity", {}, path)
    assert any(name.startswith("_model_8k.") for name in module.unused)
