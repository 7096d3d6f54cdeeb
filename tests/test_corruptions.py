"""Whatever is wrong with a file, the verifier finds it: every row of tests/corruptions.py, on nets where it matters."""

import functools
from dataclasses import replace

import onnx
import pytest
from conftest import PREPROCESSING, characters, randomised
from corruptions import TABLE
from spoiling import HIDDEN

from seqexport import exporter, graphs
from seqexport.checkpoint import Checkpoint
from seqexport.functional import evaluating
from seqexport.networks import Network
from seqexport.parts import checkpoint_parts
from seqexport.reports import TOLERANCE
from seqexport.runtimes import OnnxRuntime, TorchRuntime
from seqexport.specs import NetworkSpec
from seqexport.text import UNKNOWN, Vocabulary
from seqexport.tracing import example_sizes, trace
from seqexport.verification import plan, verify


def words(size):
    return {"vocabulary": Vocabulary("word", (UNKNOWN, *(f"w{n}" for n in range(size - 1)))).to_dict()}


TOKENS = {"vocabulary": characters().to_dict()}
LABELS = {"labels": ["no", "yes", "both"]}
TEXT = {"vocabulary": 30, "outputs": 3}
# File → its network, its task, its preprocessing. HIDDEN features where nothing says how many, so that W is square.
NETS = {
    "lstm": ({"cell": "lstm", "layers": 2, "outputs": HIDDEN}, None, {}),
    "gru": ({"cell": "gru", "layers": 2, "outputs": 3}, None, {}),
    "rnn": ({"cell": "rnn", "outputs": 3}, None, {}),
    "projected": ({"cell": "lstm", "projection": 4}, None, {}),
    "both": ({"cell": "lstm", "bidirectional": True, "pooling": "last"} | TEXT, "classify", TOKENS | LABELS),
    "mean": ({"cell": "gru", "pooling": "mean"} | TEXT, "classify", TOKENS | LABELS),
    "last": ({"cell": "lstm", "pooling": "last"} | TEXT, "classify", TOKENS | LABELS),
    "forecast": ({"cell": "gru", "features": 1, "outputs": 2}, "forecast", PREPROCESSING),
    "generator": ({"cell": "lstm", "vocabulary": 30, "outputs": 30}, "generate", TOKENS),
    "wide": ({"cell": "rnn", "vocabulary": 5000, "outputs": 3, "pooling": "last"}, "classify", words(5000) | LABELS),
    "wide generator": ({"cell": "rnn", "vocabulary": 1500, "outputs": 1500}, "generate", words(1500)),
}
# File → the net that it belongs to, where it is the pipeline's.
PIPELINES = {
    "both classify": "both",
    "mean classify": "mean",
    "last classify": "last",
    "forecast": "forecast",
    "generate": "generator",
    "wide classify": "wide",
    "wide generate": "wide generator",
}
# torch says so of every projected LSTM.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
ROWS = [(name, file) for name, row in TABLE.items() for file in row.files]


def param(place, name, file):
    """Every third is in the default run, which has to stay short; CI does all."""
    return pytest.param(name, file, marks=[pytest.mark.slow] if place % 3 else [])


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """File → its part, the honest model, the cases with what torch gives, and torch; made when first asked for."""
    folder = tmp_path_factory.mktemp("honest")

    @functools.cache
    def parts_of(net):
        options, task, preprocessing = NETS[net]
        network = randomised(Network(NetworkSpec(**{"features": HIDDEN, "hidden_size": HIDDEN} | options)))
        checkpoint = Checkpoint(
            path=folder / f"{net}.pt",
            spec=network.spec,
            weights=network.state_dict(),
            sha256="0" * 64,
            task=task,
            preprocessing=preprocessing,
        )
        return checkpoint_parts(checkpoint, folder / f"{net}.onnx", "optional")[0]

    @functools.cache
    def made(file):
        part = parts_of(PIPELINES.get(file, file))[file in PIPELINES]
        with evaluating(part.module):
            traced = trace(part.module, part.inputs, example_sizes(part.inputs, part.module))
            planned = plan(part.subject)
            model = graphs.build_graph(part, traced, 20, exporter._metadata(part, len(planned.cases)))
            reference = TorchRuntime(part.module, part.inputs, part.output_names)
            cases = [replace(case, expected=reference.run(case.feeds)) for case in planned.cases]
        return part, model, cases, reference

    return made


def caught(part, model, cases, reference):
    """The first case that does not pass, or what the file says wrongly of itself."""
    candidate = OnnxRuntime(model.SerializeToString())  # that loads it: what no runtime loads needs no verifier
    for outcome in exporter._verify_part(part, candidate, [], part.metadata):  # without cases: what it says of itself
        return outcome.notes[0]
    for case in cases:
        (outcome,) = verify(part.subject, reference, candidate, [case])
        if not outcome.passed(TOLERANCE):
            return outcome.case
    return None


@pytest.mark.parametrize("file", [*dict.fromkeys(file for _, file in ROWS)])
def test_the_honest_file_passes(honest, file):
    assert caught(*honest(file)) is None


@pytest.mark.parametrize(("name", "file"), [param(place, *row) for place, row in enumerate(ROWS)])
def test_a_corruption_is_caught(honest, name, file):
    part, model, cases, reference = honest(file)
    spoilt = onnx.ModelProto.FromString(model.SerializeToString())
    TABLE[name].spoil(spoilt)
    assert spoilt.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True), (
        "nothing changed"
    )
    assert caught(part, spoilt, cases, reference) is not None, TABLE[name].reason


def test_there_are_many_kinds():
    assert len(TABLE) >= 25
    assert all(row.reason and row.files for row in TABLE.values())
