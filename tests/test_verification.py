"""The verifier is itself verified: what is wrong with a graph must be found."""

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from conftest import forecaster, save_classifier, save_forecaster, save_generator
from corruptions import TABLE

import seqexport
from seqexport import ParityError, exporter, opinions, parts, recurrent, tracing
from seqexport.checkpoint import read_checkpoint
from seqexport.reports import TOLERANCE, Outcome, Report, require
from seqexport.runtimes import Runtime
from seqexport.specs import parse_input
from seqexport.verification import SIZES, Case, Decision, Subject, difference, plan, verify


def test_the_cases_hold_what_users_run():
    pairs = {row[:2] for row in SIZES}
    assert len(pairs) >= 8
    assert {(1, 1)} < pairs
    assert any(batch == 1 and time > 1 for batch, time in pairs)
    assert any(batch > 1 and time == 1 for batch, time in pairs)
    specs = [parse_input("x", "float32[batch,time,3]")]
    example = tracing.example_sizes(specs, torch.nn.GRU(3, 4))
    assert max(time for _, time in pairs) > 10 * example["time"]
    assert all(batch != example["batch"] and time != example["time"] for batch, time in pairs)


@pytest.mark.parametrize(
    ("found", "error", "note"),
    [
        (None, np.inf, "missing"),
        (np.zeros((2, 3), np.float32), np.inf, "shape"),
        (np.zeros((2, 2), np.float64), np.inf, "float64"),
        (np.full((2, 2), 10.5, np.float32), 0.05, ""),
        (np.full((2, 2), 10, np.float32), 0.0, ""),
    ],
)
def test_difference_looks_at_shape_then_dtype_then_numbers(found, error, note):
    measured, said = difference(np.full((2, 2), 10, np.float32), found)
    assert measured == pytest.approx(error)
    assert note in said


@pytest.mark.parametrize("errors", [{"y": np.nan}, {"y": np.inf}, {"y": 1e-3}, {}])
def test_nan_a_large_error_and_nothing_compared_all_fail(errors):
    report = Report((Outcome("network", "case", errors),))
    assert not report.passed
    with pytest.raises(ParityError, match="nothing was written") as caught:
        require(report, "net.onnx")
    assert caught.value.exit_code == 1
    assert caught.value.report is report


def test_a_report_without_cases_has_not_passed():
    with pytest.raises(ParityError, match="no case"):
        require(Report(()), "net.onnx")


@pytest.mark.parametrize("name", ["GRU linear_before_reset 0", "state map left empty"])
def test_a_deliberate_corruption_is_caught_and_nothing_is_written(tmp_path, monkeypatch, name):
    path = save_forecaster(tmp_path / "net.pt", "gru")
    build = exporter.build_graph

    def corrupted(part, traced, opset, metadata):
        model = build(part, traced, opset, metadata)
        if part.subject.part == "network":
            before = model.SerializeToString()
            TABLE[name].spoil(model)
            assert model.SerializeToString() != before, "the corruption changed nothing"
        return model

    (tmp_path / "net.onnx").write_bytes(b"an older file")
    monkeypatch.setattr(exporter, "build_graph", corrupted)
    with pytest.raises(ParityError) as caught:
        seqexport.export(path)
    assert {outcome.part for outcome in caught.value.report.failures()} == {"network"}
    assert (tmp_path / "net.onnx").read_bytes() == b"an older file"
    assert {file.name for file in tmp_path.iterdir()} == {"net.pt", "net.onnx"}


def test_a_file_that_says_another_thing_of_itself_than_its_checkpoint_is_found_later(tmp_path, exported):
    path = exported["gru"].with_suffix(".forecast.onnx")
    model = onnx.load(path)
    assert seqexport.verify_files(exported["gru"], path).passed
    TABLE["scaling another in metadata"].spoil(model)
    onnx.save(model, tmp_path / "spoilt.onnx")
    report = seqexport.verify_files(exported["gru"], tmp_path / "spoilt.onnx")
    assert [outcome.case for outcome in report.failures()] == ["what the file says of itself"]


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        pytest.param(cell, options, id=f"{cell} {options}", marks=[] if options in few else [pytest.mark.slow])
        for cell, few in {
            "rnn": [{"layers": 1}],
            "gru": [{"bidirectional": True, "layers": 1}],
            "lstm": [{"layers": 3}, {"bidirectional": True, "layers": 1}],
        }.items()
        for options in ({"layers": 1}, {"layers": 3}, {"bidirectional": True, "layers": 1})
    ],
)
def test_text_pipelines_of_every_cell_are_exported_and_verified(tmp_path, cell, options):
    pooling = {"rnn": "last", "gru": "mean", "lstm": "max"}[cell]  # the others: tests/test_pipelines.py
    report = seqexport.export(save_classifier(tmp_path / "c.pt", cell, pooling=pooling, **options))
    assert report.passed
    assert report.decided()["label"] > 30
    if "bidirectional" not in options:
        report = seqexport.export(save_generator(tmp_path / "g.pt", cell, **options))
        assert report.passed
        assert report.decided() == {"token": 320}
        assert report.ties() == []


class Fixed(Runtime):
    """Gives the same outputs whatever it is fed."""

    inputs, metadata = (), {}

    def __init__(self, **outputs):
        self.outputs, self.output_names = outputs, tuple(outputs)

    def run(self, feeds):
        return self.outputs


def compare_tokens(expected, found, margin, hn=(0.0, 0.0)):
    """One case of two rows of tokens, decided by `margin` at every place; hn is 0 in the reference."""
    tokens = Decision("tokens", "token", lambda tokens: tokens, lambda *_: margin, leads_on=True)
    state = np.zeros((1, 2, 1), np.float32)
    other = np.array(hn, np.float32).reshape(1, 2, 1)
    (outcome,) = verify(
        Subject("generate", (), decisions=(tokens,)),
        Fixed(tokens=np.array(expected), hn=state),
        Fixed(tokens=np.array(found), hn=other),
        [Case("a case", {})],
    )
    return outcome


def test_a_token_that_differs_fails_unless_the_reference_was_undecided():
    alike = compare_tokens([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]], margin=np.nan)
    assert alike.passed(TOLERANCE)
    assert (alike.decided, alike.ties) == ({"token": 6}, ())
    wrong = compare_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 9], [4, 5, 6]], margin=1e-4)
    assert not wrong.passed(TOLERANCE)
    assert wrong.notes[0] == "a case: token [0, 1] is 9, not 2, decided by a margin of 1.0e-04"
    tie = compare_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 9], [4, 5, 6]], margin=1e-6)
    assert tie.passed(TOLERANCE)
    assert tie.ties == ("a case: token [0, 1] is 9, not 2, decided by a margin of 1.0e-06",)


def test_after_a_tie_only_its_row_is_left_out():
    parted = compare_tokens([[1, 2], [4, 5]], [[1, 9], [4, 5]], margin=0.0, hn=(7.0, 0.0))
    assert parted.passed(TOLERANCE)
    elsewhere = compare_tokens([[1, 2], [4, 5]], [[1, 9], [4, 5]], margin=0.0, hn=(7.0, 1e-3))
    assert not elsewhere.passed(TOLERANCE)
    assert elsewhere.errors["hn"] == pytest.approx(1e-3)


def test_a_margin_that_is_not_a_number_is_no_tie():
    assert not compare_tokens([[1], [2]], [[3], [2]], margin=np.nan).passed(TOLERANCE)


@pytest.mark.parametrize("found", [np.array([[1, 2], [4, 5]], np.int32), np.array([[1], [4]])])
def test_tokens_of_another_type_or_shape_fail(found):
    assert not compare_tokens([[1, 2], [4, 5]], found, margin=0.0).passed(TOLERANCE)


@pytest.mark.parametrize(("found", "passes", "ties"), [(0.5000001, True, 1), (0.51, False, 1), (0.4999999, True, 0)])
def test_a_label_on_the_edge_is_a_tie_and_elsewhere_a_failure(found, passes, ties):
    margin = partial(parts._label_margin, "probabilities")
    decision = Decision("probabilities", "label", lambda p: p.argmax(-1), margin)
    reference = Fixed(probabilities=np.array([[0.50000006, 0.49999994]], np.float32))
    candidate = Fixed(probabilities=np.array([[1 - found, found]], np.float32))
    (outcome,) = verify(Subject("classify", (), decisions=(decision,)), reference, candidate, [Case("edge", {})])
    assert (outcome.passed(TOLERANCE), len(outcome.ties)) == (passes, ties)


@pytest.mark.parametrize(("off", "own", "passes"), [
    (6e-6, 0.0, True), (9e-6, 0.0, False), (9e-6, 4e-6, False), (9e-6, 5e-6, True), (1.2e-5, 1e-4, False),
])  # fmt: skip
def test_beyond_the_tolerance_torchs_own_rounding_must_explain_it(tmp_path, monkeypatch, off, own, passes):
    path = save_forecaster(tmp_path / "net.pt", "gru")
    seqexport.export(path)
    monkeypatch.setattr(opinions, "distance", lambda exact, found: own)
    monkeypatch.setattr(exporter, "verify", lambda subject, reference, candidate, cases: [
        Outcome(subject.part, case.name, {"y": off}) for case in cases
    ])  # fmt: skip
    report = seqexport.verify_files(path, tmp_path / "net.onnx")
    assert report.passed is passes
    assert bool(report.explained()) is (passes and off > TOLERANCE)
    if report.explained():
        assert report.explained()[0].notes == ("torch itself is 5.0e-06 from its float64",)


def test_torchs_own_rounding_is_that_of_the_net(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "gru")
    (part, _), _ = parts.checkpoint_parts(read_checkpoint(path), tmp_path / "net.onnx", "optional")
    case = plan(part.subject).cases[0]
    weighed = exporter._weighed(part, case, Outcome("network", case.name, {"y": 9e-6}))
    own = float(weighed.notes[0].split()[3])
    assert 0 < own < 1e-6 and not weighed.explained
    broken = exporter._weighed(part, case, Outcome("network", case.name, {"y": np.nan}))
    assert not broken.explained and broken.notes == ()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_wrong_gate_order_in_the_lowering_is_caught(tmp_path, monkeypatch, cell):
    path = save_forecaster(tmp_path / "net.pt", cell)
    order = recurrent.ONNX_GATE_ORDER[cell]
    monkeypatch.setitem(recurrent.ONNX_GATE_ORDER, cell, (order[1], order[0], *order[2:]))
    with pytest.raises(ParityError):
        seqexport.export(path)


def test_a_reference_that_gives_nan_is_not_a_pass(tmp_path):
    class Divides(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = forecaster()

        def forward(self, x):
            return self.net(x)[0] / 0.0 * 0.0

    with pytest.raises(ParityError, match="nan"):
        seqexport.export(Divides(), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,1]"})
    assert not list(tmp_path.iterdir())
