"""Each property holds for what is right, and a file that breaks it, and little else, is found out by it."""

import numpy as np
import pytest
import torch
from conftest import randomised, save_classifier
from torch import nn

import seqexport
from seqexport.errors import InputError
from seqexport.exporter import verify_files
from seqexport.functional import evaluating
from seqexport.modules import UserModule
from seqexport.opinions import Exact, weighed
from seqexport.parts import checkpoint_parts
from seqexport.properties import LONG, LOOPS, examine
from seqexport.reports import TOLERANCE, Outcome
from seqexport.runtimes import OnnxRuntime, TorchRuntime, pipeline_path

ALWAYS = ["agreement", "permutation", "rows alone", "long sequences", "extremes", "third opinion"]
STATED = ["cuts", "final state"]
APPLY = {
    ("forecast", "network"): [*ALWAYS, *STATED, "causality (time)"],
    ("forecast", "forecast"): [*ALWAYS, *STATED, "causality (horizon)", "causality (paths)", "free running"],
    ("classify", "network"): [*ALWAYS, *STATED],
    ("classify", "classify"): [*ALWAYS, "padding", "causality (time)"],
    ("generate", "generate"): [*ALWAYS, *STATED, "causality (steps)", "free running"],
}


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    """The shipped models write all 1,000, in tests/test_shipped.py."""
    monkeypatch.setitem(LOOPS, "steps", 200)


class Wrong(OnnxRuntime):
    """A file with a fault: `change(feeds, outputs)` is what comes out."""

    def __init__(self, path, change=lambda feeds, outputs: outputs):
        super().__init__(path)
        self.change = change

    def run(self, feeds):
        return self.change(feeds, {name: value.copy() for name, value in super().run(feeds).items()})


def tried(checkpoint, name, *change):
    """Property → how it came out, for the graph `name` of an exported checkpoint."""
    content, path = seqexport.read_checkpoint(checkpoint), checkpoint.with_suffix(".onnx")
    part = next(part for part in checkpoint_parts(content, path, "optional")[0] if part.subject.part == name)
    reference = TorchRuntime(part.module, part.inputs, part.output_names)
    with evaluating(part.module):
        found, samples = examine(part, Wrong(part.path, *change), reference, part.path)
    assert samples
    return {result.name: result for result in found}


@pytest.mark.parametrize(("task", "name"), APPLY)
def test_what_is_right_has_every_property(exported, exported_texts, task, name):
    found = tried({"forecast": exported["lstm"], **exported_texts}[task], name)
    assert sorted(found) == sorted(APPLY[task, name])
    for result in found.values():
        assert result.applies, result
        assert result.held, result
        assert result.trials, result
        assert result.claim


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_free_running_forecast_says_where_it_leaves_the_tolerance_and_a_curve(exported, cell):
    result = tried(exported[cell], "forecast")["free running"]
    assert result.held
    assert "step" in result.notes[0]
    assert len(result.curves["horizon"]) == len(result.curves["path: onnxruntime from torch"]) == 100
    assert max(result.curves["path: torch from its float64"]) > 0


def shifted(condition, name="y", by=1e-3, where=...):
    def change(feeds, outputs):
        if condition(feeds):
            outputs[name][where] += np.asarray(by, outputs[name].dtype)
        return outputs

    return change


def looks_ahead(feeds, outputs):
    outputs["y"] += feeds["x"].sum(axis=1, keepdims=True).astype(np.float32) * 1e-3
    return outputs


def tells_rows_apart(feeds, outputs):
    outputs["y"] += np.arange(len(feeds["x"]), dtype=np.float32)[:, None, None] * 1e-3
    return outputs


def drifts(feeds, outputs):
    outputs["y"][:, 1500:] += 1e-3
    return outputs


NETWORK_FAULTS = {
    "agreement": shifted(lambda feeds: len(feeds["x"]) == 17 and feeds["x"].shape[1] == 31),
    "cuts": shifted(lambda feeds: feeds["x"].shape[1] == 13, "hn", 1e-2),
    "final state": shifted(lambda feeds: feeds["x"].shape[1] == 1 and "h0" in feeds, "hn", 1e-2),
    "permutation": tells_rows_apart,
    "rows alone": shifted(lambda feeds: len(feeds["x"]) == 1),
    "causality (time)": looks_ahead,
    "long sequences": drifts,
    "extremes": shifted(lambda feeds: np.abs(feeds["x"]).max() == 1e4),
    "third opinion": shifted(lambda feeds: feeds["x"].shape[1] == 9, by=1e-4),
}


@pytest.mark.parametrize("name", NETWORK_FAULTS)
def test_a_network_that_lacks_a_property_is_found_out_by_it(exported, name):
    result = tried(exported["lstm"], "network", NETWORK_FAULTS[name])[name]
    assert not result.held
    assert result.error > result.allowed


@pytest.mark.parametrize("own, error, explained", [(4.5e-6, 8e-6, True), (3e-6, 8e-6, False), (9e-6, 1.1e-5, False)])
def test_torchs_own_rounding_explains_a_little_and_no_more(own, error, explained):
    expected = {"y": np.zeros((1, 2), np.float32)}
    exact = Exact(nn.Identity(), (), ("y",))
    exact.run = lambda feeds: {"y": np.full((1, 2), own)}
    outcome = weighed(Outcome("network", "case", {"y": error}), exact, {}, expected)
    assert outcome.explained is explained and outcome.passed(TOLERANCE) is explained


def test_agreement_beyond_the_tolerance_needs_the_explanation(exported):
    off = tried(exported["gru"], "network", shifted(lambda *_: True, by=8.5e-6))["agreement"]
    assert not off.held and off.allowed == TOLERANCE


def test_a_file_that_its_runtime_can_not_run_in_chunks_has_not_the_properties(exported):
    def fails(feeds, outputs):
        if feeds["x"].shape[1] == 1:
            raise InputError("onnxruntime could not run x [2, 1, 1]")
        return outputs

    found = tried(exported["lstm"], "network", fails)
    for name in ("cuts", "final state", "agreement"):
        assert not found[name].held
        assert "could not run" in " ".join(found[name].notes) or name == "agreement"


def reads_padding(feeds, outputs):
    outputs["probabilities"] += feeds["tokens"].sum(-1, keepdims=True).astype(np.float32) * 1e-3
    return outputs


def test_a_classifier_that_reads_its_padding_is_found_out(exported_texts):
    assert not tried(exported_texts["classify"], "classify", reads_padding)["padding"].held


def test_a_generator_that_writes_another_token_late_is_found_out_and_told_where(exported_texts):
    def late(feeds, outputs):
        if outputs["tokens"].shape[1] == 200:
            outputs["tokens"][1, 190] = (outputs["tokens"][1, 190] + 1) % 30
        return outputs

    result = tried(exported_texts["generate"], "generate", late)["free running"]
    assert not result.held
    assert "token [1, 190]" in result.notes[0]
    assert "margin" in result.notes[0]


def test_the_third_opinion_says_which_side_is_off(exported):
    result = tried(exported["lstm"], "network", NETWORK_FAULTS["third opinion"])["third opinion"]
    assert result.notes[0].endswith("; onnxruntime off")


def test_the_curve_over_time_shows_where_a_difference_begins(exported):
    curves = tried(exported["lstm"], "network", drifts)["long sequences"].curves
    errors = np.array(curves["y: onnxruntime from torch"])
    begins = np.array(curves["time"])[errors > 1e-5].min()
    assert 1500 <= begins <= 1500 + LONG / 100


class Looks(nn.Module):
    """A net that reads its padding and looks ahead, as many do."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True, bidirectional=True)

    def forward(self, x):
        y, _ = self.rnn(x)
        return y - y.mean(0, keepdim=True)


def test_what_torch_itself_has_not_is_not_asked_of_the_file(tmp_path):
    user, inputs = UserModule(randomised(Looks()), "Looks"), {"x": "float32[batch,time,3]"}
    seqexport.export(user, tmp_path / "net.onnx", inputs=inputs)
    report = verify_files(user, tmp_path / "net.onnx", inputs=inputs, thorough=True)
    found = {result.name: result for result in report.properties}
    assert report.passed
    assert not found["rows alone"].applies
    assert not found["causality (time)"].applies
    assert "torch itself" in found["causality (time)"].notes[0]
    assert found["permutation"].applies
    assert found["permutation"].held


def test_a_module_that_float64_can_not_run_gets_no_opinion_and_says_so(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x.to(torch.float32))[0]

    user, inputs = UserModule(randomised(Fixed()), "Fixed"), {"x": "float32[batch,time,3]"}
    seqexport.export(user, tmp_path / "net.onnx", inputs=inputs)
    opinion = verify_files(user, tmp_path / "net.onnx", inputs=inputs, thorough=True).properties[-1]
    assert not opinion.applies
    assert "torch in float64 has no opinion" in opinion.notes[0]


def test_lengths_are_honoured_by_a_bidirectional_classifier(tmp_path):
    checkpoint = save_classifier(tmp_path / "c.pt", "lstm", pooling="last", bidirectional=True)
    seqexport.export(checkpoint)
    report = verify_files(checkpoint, pipeline_path(checkpoint.with_suffix(".onnx"), "classify"), thorough=True)
    assert report.passed
    assert {"padding", "third opinion"} <= {result.name for result in report.properties}
