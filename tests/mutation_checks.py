"""What a slip in our own lowering is held against: nets exported without the verifier, and a few tests that are fast.

Everything that torch gives is computed at once, before any slip, by code that no slip reaches. `checks` gives, for a
module of seqexport, name → a function that raises where something is wrong.
"""

import functools
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_freezing
import test_graphs
import test_live_modules
import test_pipelines
import test_recurrent
import test_verification
import test_written_nets
import torch
import written_calls  # noqa: F401  they register their nets
import written_layers  # noqa: F401
import written_pairs  # noqa: F401
import written_readers  # noqa: F401
from conftest import save_classifier, save_forecaster, save_generator
from written import NETS

from seqexport import graphs, parts
from seqexport.checkpoint import read_checkpoint
from seqexport.functional import evaluating
from seqexport.modules import UserModule
from seqexport.pipelines import Scaling
from seqexport.reports import TOLERANCE
from seqexport.runtimes import OnnxRuntime, TorchRuntime
from seqexport.tracing import example_sizes, trace
from seqexport.verification import plan
from training import configurations
from training.configurations import Configuration

torch.set_num_threads(1)

RECURRENT = (
    Configuration("GRU", 2, bidirectional=True, state=True),
    Configuration("LSTM", 3, batch_first=False, bias=False, state=True),
    Configuration("LSTM", 2, bidirectional=True, packed="unsorted", padded="time", state=True),
    Configuration("RNN tanh", 2, bidirectional=True, packed="sorted", padded="longest", bias=False),
    Configuration("RNN relu", 2, state=True),
    Configuration("RNN relu", 1, bidirectional=True, packed="unsorted", padded="time", bias=False),
    Configuration("LSTM", 1, bidirectional=True, packed="sorted", padded="longest"),
    Configuration("GRU", 1, packed="unsorted", padded="300", batch_first=False),
    Configuration("LSTM with proj_size", 2, bidirectional=True, state=True),
    Configuration("LSTM with proj_size", 2, bidirectional=True, packed="unsorted", padded="longest", state=True),
    Configuration("LSTM with proj_size", 2, bias=False, packed="unsorted", padded="none"),
    Configuration("LSTM with proj_size", 1, bidirectional=True, bias=False, batch_first=False),
)
WRITTEN = {
    "interception": (
        "OwnGRUWithoutForward PackingRNN Compiled[eager] RegularisedLanguageModel[clone] PackedSentiment[tolist] "
        "PackedSentiment[numpy] MaskToTheLongest[slice] MaskedMean[longest] PooledOverTime[avg_pool2d] "
        "PooledOverTime[max_pool1d] DotAttention SelfAttentionOnTop[product] AttentionByGivenMask[bool] "
        "SortsItself[True] PackedWeightNorm[old] KeepsItsWeightsForAPlot FixedWindow PackedStack"
    ),
    "graphs": (
        "ProbabilisticForecaster Hierarchical[view] Results[nested] MaskToTheLongest[slice] Siamese[manhattan] "
        "OneStep[LSTMCell] FeedsItselfAFewSteps MakesItsState[learned] SeveralEmbeddings"
    ),
    "freezing": "Positions[50] Hierarchical[view] FixedWindow",
}
TESTS = {
    "recurrent": (test_recurrent,),
    "graphs": (test_graphs, test_live_modules),
    "freezing": (test_freezing, test_live_modules),
    "interception": (test_live_modules,),
    "pipelines": (test_pipelines,),
    "verification": (test_verification, test_live_modules),
    "reports": (test_verification,),
}
SHAPES = ((1, 1, 1, 1), (3, 1, 2, 2), (1, 5, 3, 4), (3, 7, 2, 3), (2, 26, 1, 5))
SLOW = 3.0  # seconds of a test beyond which it is left to the tests' own run


# What is called when a program was traced already; of the modules that are not named here everything, or nothing.
LOWERING = {
    "recurrent": {
        "_ints",
        "_reordered",
        "_concat",
        "_layer_parameters",
        "_lower",
        "_lower_lstm",
        "_lower_gru",
        "_lower_rnn",
        "_lower_projected",
        "_folded",
        "_first_read",
        "translations",
    }
}
_anew = [True]


def slipped(module, function):
    """Whether nets must be traced anew to see a slip there; otherwise the programs traced before it do."""
    _anew[0] = not (module in ("graphs", "freezing") or function in LOWERING.get(module, ()))


class Exported:
    """One part, exported once by right code; called again it is exported by the code of now and held against torch.

    make: a new part. run: feeds → outputs, by what no slip reaches.
    """

    def __init__(self, make, feeds):
        self.make, self.feeds = make, feeds
        part = make()
        with evaluating(part.module):
            reference = TorchRuntime(part.module, part.inputs, part.output_names)
            self.expected = [reference.run(values) for values in feeds]
        self.honest = self.lowered(*self.traced())
        self.kept = self.traced()  # another one, since a program that was lowered once is not as it was
        self.nodes = count_nodes(onnx.load_from_string(self.honest).graph)
        self.compare(self.honest)

    def traced(self):
        part = self.make()
        with evaluating(part.module):
            sizes = part.subject.further or example_sizes(part.inputs, part.module)
            return part, trace(part.module, part.inputs, sizes)

    def lowered(self, part, traced):
        with evaluating(part.module):
            return graphs.build_graph(part, traced, 20, {}).SerializeToString(deterministic=True)

    def __call__(self):
        if _anew[0]:
            self.compare_torch()
        found = self.lowered(*(self.traced() if _anew[0] else self.kept))
        if found != self.honest:
            self.compare(found)

    def compare_torch(self):
        part = self.make()
        with evaluating(part.module):
            reference = TorchRuntime(part.module, part.inputs, part.output_names)
            for values, expected in zip(self.feeds, self.expected, strict=True):
                same(expected, reference.run(values))

    def compare(self, data):
        model = onnx.load_from_string(data)
        runtime = OnnxRuntime(data)
        assert count_nodes(model.graph) <= getattr(self, "nodes", 1e9), "more nodes than there need be"
        assert len(data) <= 1.01 * len(self.honest), "a larger file than there need be"
        for values, expected in zip(self.feeds, self.expected, strict=True):
            found = runtime.run(values)
            same(expected, found)
            for name, dims in runtime.declared.items():
                fixed = [(dim, size) for dim, size in zip(dims, found[name].shape, strict=True) if isinstance(dim, int)]
                assert all(dim == size for dim, size in fixed), (name, dims)
        # A declared dim that says less than before is a loss for whoever reads it, though no number changes.
        shown = [str(value.type) for value in (*model.graph.input, *model.graph.output)]
        before = onnx.load_from_string(self.honest).graph
        assert shown == [str(value.type) for value in (*before.input, *before.output)]
        assert not any(value.doc_string for value in model.graph.node)


def count_nodes(graph):
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(count_nodes, bodies))


def same(expected, found):
    assert list(expected) == list(found)
    for name, array in expected.items():
        error, note = gap(array, found[name])
        assert error <= TOLERANCE, (name, error, note)


def gap(expected, found):
    """As seqexport.verification.difference, which slips too."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return np.inf, f"{found.dtype} {found.shape}"
    if expected.dtype.kind in "iub":
        return (0.0 if np.array_equal(expected, found) else np.inf), "integers"
    return float(np.abs(expected.astype(float) - found).max() / max(1.0, np.abs(expected).max())), ""


def sampled(specs, row, rng, short=False):
    dims = dict.fromkeys(dim for spec in specs for dim in spec.dims if isinstance(dim, str))
    sizes = {dim: row[place] for place, dim in enumerate(sorted(dims, key=["batch", "time", *dims].index))}
    values = {spec.name: spec.sample(sizes, rng) for spec in specs}
    for spec in specs:
        if short and isinstance(spec.high, str):
            values[spec.name] = np.minimum(values[spec.name], max(1, sizes[spec.high] - 1))
    return values


def live(module, inputs):
    """A user's module, given anew at every export, as exporting may leave traces."""

    def make():
        (part,), _ = parts.module_parts(UserModule(module(), "net"), Path("net.onnx"), inputs, {})
        return part

    return make


@functools.cache
def configuration(chosen):
    rng = np.random.default_rng(3)
    specs = configurations.flat_specs(chosen)
    feeds = [sampled(specs, row, rng, short) for short in (False, True) for row in SHAPES]
    return Exported(live(lambda: configurations.build(chosen), chosen.inputs()), feeds)


@functools.cache
def written(name):
    (net,) = (net for net in NETS if net.name == name)
    make = live(lambda: test_written_nets.made(net), net.inputs)
    return Exported(make, list(test_written_nets.all_feeds(net, make().inputs)))


@functools.cache
def folder():
    return Path(tempfile.mkdtemp())


def pipelines():
    yield save_forecaster(folder() / "gru.pt", "gru")
    unscaled = {"scaling": Scaling("none", 1.0, 3.0).to_dict(), "context": 48, "season": 12, "unit": "n", "step": "day"}
    yield save_forecaster(folder() / "lstm.pt", "lstm", layers=1, preprocessing=unscaled)
    yield save_generator(folder() / "g.pt", bias=False)
    yield save_generator(folder() / "one.pt", "gru", layers=1)
    yield save_classifier(folder() / "mean.pt", "gru", pooling="mean")
    yield save_classifier(folder() / "max.pt", "rnn", pooling="max", layers=1)
    yield save_classifier(folder() / "last.pt", "lstm", pooling="last", layers=1)
    for pooling in ("mean", "max", "last"):
        yield save_classifier(folder() / f"both-{pooling}.pt", "gru", pooling=pooling, layers=1, bidirectional=True)


@functools.cache
def checkpoint(path):
    def make(which=1):
        return parts.checkpoint_parts(read_checkpoint(path), path.with_suffix(".onnx"), "optional")[0][which]

    cases = [case.feeds for case in plan(make().subject).cases if case.chunks is None]
    return Exported(make, cases)


@functools.cache
def tests(module):
    """Each test of a module with each of its parameters, where it needs no fixture but a folder and a monkeypatch."""
    found = {}
    for name, function in vars(module).items():
        marks = getattr(function, "pytestmark", [])
        if not name.startswith("test_") or any(mark.name in ("slow", "whole") for mark in marks):
            continue
        tables = [mark.args for mark in marks if mark.name == "parametrize"]
        for row in itertools.product(*(values for _, values in tables)):
            given, slow = {}, False
            for (names, _), value in zip(tables, row, strict=True):
                slow = slow or any(mark.name == "slow" for mark in getattr(value, "marks", ()))
                names = [one.strip() for one in names.split(",")] if isinstance(names, str) else list(names)
                values = value if len(names) > 1 else (value,)
                if hasattr(value, "marks"):  # a pytest.param
                    values = value.values
                given |= dict(zip(names, values, strict=True))
            wanted = set(function.__code__.co_varnames[: function.__code__.co_argcount]) - set(given)
            if not slow and wanted <= {"tmp_path", "monkeypatch"}:
                found[f"{module.__name__}.{name} {list(map(str, given.values()))}"] = called(function, given, wanted)
    return found


def called(function, given, wanted):
    def run():
        if not _anew[0] and function.__module__ == "test_recurrent":
            return  # they call the operators themselves, which are not lowered
        with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
            more = {"tmp_path": Path(place), "monkeypatch": patch}
            function(**given, **{name: more[name] for name in wanted})

    return run


def checks(module):
    """Name → what raises where a slip in this module shows."""
    found = {}
    if module in ("recurrent", "graphs", "interception", "freezing"):
        few = RECURRENT if module == "recurrent" else (*RECURRENT[1::3], RECURRENT[6])
        found |= {str(chosen): configuration(chosen) for chosen in few}
    if module in ("recurrent", "pipelines", "graphs", "verification"):
        paths = list(pipelines())
        few = {"pipelines": paths, "recurrent": [paths[0], paths[2], paths[6]]}.get(module, paths[:1])
        found |= {path.stem: checkpoint(path) for path in few}
    found |= {name: written(name) for name in WRITTEN.get(module, "").split()}
    for tested in TESTS[module]:
        for name, test in tests(tested).items():
            if module == "recurrent" and "itself" not in name:
                continue  # the nets above are the same
            start = time.monotonic()
            try:
                test()
            except Exception as error:
                print(f"left out {name}: {error}")
                continue
            if time.monotonic() - start < SLOW:
                found[name] = test
    return found
