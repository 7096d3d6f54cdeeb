"""Live modules: what makes one no graph, each refused with its line; a class of the user's own; other precisions."""

import copy
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import user_nets
from conftest import randomised
from onnxscript import opset20 as op
from torch import nn

import seqexport
from seqexport import CheckpointError, InputError, SpecError, UnsupportedError, cli, load_module, recurrent
from seqexport.freezing import check_not_frozen

INPUTS = {"x": "float32[batch,time,3]"}
HERE = Path(user_nets.__file__)

REFUSED = {
    "LoopsOverTime": "fixes the dim 'time' to one size.*nn.GRU",
    "LoopsOverSteps": "fixes the dim 'time'",
    "LoopsOverRows": "fixes the dim 'batch'",
    "CountsSteps": "fixes the dim 'time'",
    "BranchesNear": "asks for the size of 'time'.*takes another way than at time",
    "BranchesFar": "asks for the size of 'time', and at batch .* × time 301",
    "BranchesByBatch": "asks for the size of 'batch', and at batch 100",
    "DecidesByValue": "decides by a value.*torch.where",
    "TakesAnInteger": "decides by a value.*torch._check",
    "GoesThroughNumpy": "could not be traced.*numpy",
    "UsesWhatOnnxHasNot": "uses torch.cummax, which has no ONNX form here",
    "AssignsABuffer": "writes into 'kept'.*argument of forward",
    "WritesIntoABuffer": "writes into 'kept'.*argument of forward",
    "KeepsAnAttribute": "keeps 'hidden' from one call to the next",
    "DropsAlways": "draws random numbers.*self.training",
    "BeginsAtRandom": r"draws random numbers \(randn\)",
}


def marked_line(net):
    """The place of `# here` in the class's source."""
    lines, first = inspect.getsourcelines(net)
    return next(f"{HERE.name}:{first + at}" for at, line in enumerate(lines) if "# here" in line)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused_with_its_line_and_a_way_out(tmp_path, capfd, name):
    net = randomised(getattr(user_nets, name)())
    before = copy.deepcopy(dict(net.named_buffers()))
    (tmp_path / "net.onnx").write_bytes(b"older")
    with pytest.raises(UnsupportedError, match=REFUSED[name]) as caught:
        seqexport.export(net, tmp_path / "net.onnx", inputs=INPUTS)
    assert marked_line(type(net)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "net.onnx").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert net.hidden is None
    assert all(torch.equal(before[key], tensor) for key, tensor in net.named_buffers())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "sentence"), [("KnowsOneLength", "does not take x.*size of tensor"), ("Fails", "AttributeError")]
)
def test_what_torch_itself_can_not_run_is_said_with_its_line(tmp_path, name, sentence):
    net = getattr(user_nets, name)()
    with pytest.raises(SpecError, match=sentence) as caught:
        seqexport.export(net, tmp_path / "net.onnx", inputs=INPUTS)
    assert marked_line(type(net)) in str(caught.value)


@pytest.mark.parametrize("name", ["KeepsForAPlot", "MakesItsStateEachTime"])
def test_what_is_kept_but_never_read_is_no_state(tmp_path, name):
    net = randomised(getattr(user_nets, name)())
    assert seqexport.export(net, tmp_path / "net.onnx", inputs=INPUTS).passed
    assert net.hidden is None
    assert not hasattr(net, "attention")
    x = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(seqexport.load(tmp_path / "net.onnx").run({"x": x})["output_0"], expected, atol=1e-6)


def test_sizes_that_torch_itself_does_not_run_are_left_out_and_said(tmp_path):
    net = randomised(user_nets.NeedsLongInput())
    report = seqexport.export(net, tmp_path / "net.onnx", inputs=INPUTS)
    assert report.passed
    (note,) = report.notes
    assert "does not run at batch 1 × time 1" in note
    runtime = seqexport.load(tmp_path / "net.onnx")
    for time in (41, 42, 500):
        x = np.random.default_rng(0).standard_normal((2, time, 3)).astype(np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(runtime.run({"x": x})["output_0"], expected, atol=5e-6)


def frozen_lowering(change):
    """The lowering of nn.GRU with a Reshape to a target that knows the example."""

    def lower(x, h0, lengths, weights, *options):
        y, *rest = recurrent._lower_gru(x, h0, lengths, weights, *options)
        return op.Reshape(y, op.Constant(value_ints=change(x))), *rest

    return lower


@pytest.mark.parametrize(
    "change", [lambda x: [0, 13, 4], lambda x: [23, 0, -1], lambda x: [-1, 26, 2]], ids=["batch", "time", "twice batch"]
)
def test_a_size_of_the_example_in_the_graph_is_found_with_its_node_and_line(tmp_path, monkeypatch, change):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4)

        def forward(self, x):
            return self.rnn(x)[0] * 2  # the line

    target = change(None)

    def knows(x):
        # Another example has other sizes, which a lowering that freezes them would write.
        now = {13: example["batch"], 23: example["time"], 26: 2 * example["batch"]}
        return [now.get(size, size) for size in target]

    example = {"batch": 13, "time": 23}
    table = recurrent.translations() | {torch.ops.seqexport.gru.default: frozen_lowering(knows)}
    monkeypatch.setattr(recurrent, "translations", lambda: table)
    from seqexport import graphs

    trace = graphs.trace

    def traced(module, specs, sizes):
        example.update(sizes)
        return trace(module, specs, sizes)

    monkeypatch.setattr(graphs, "trace", traced)
    with pytest.raises(UnsupportedError, match="keeps the example's size") as caught:
        seqexport.export(randomised(Net()), tmp_path / "net.onnx", inputs={"x": "float32[time,batch,3]"})
    sentence = str(caught.value)
    assert "(Reshape)" in sentence or "(Constant)" in sentence
    assert f"{Path(__file__).name}:" in sentence
    assert "'batch'" in sentence or "'time'" in sentence
    assert not list(tmp_path.iterdir())


def test_a_number_of_the_users_own_that_looks_like_the_example_is_no_frozen_size():
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 20]> g (float[B, T] x) => (float[B, T] y) '
                              "{ n = Constant<value_ints = [13, 23]>() y = Reshape(x, n) }")  # fmt: skip
    again = []

    def lowered_again():
        again.append(model)
        return model

    check_not_frozen(model, {"batch": 13, "time": 23}, lowered_again)
    assert again  # it was looked at twice


def test_a_declared_shape_that_is_not_so_fails_the_verification(tmp_path, monkeypatch):
    from seqexport import exporter

    build = exporter.build_graph

    def lying(*arguments):
        proto = build(*arguments)
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 23
        return proto

    monkeypatch.setattr(exporter, "build_graph", lying)
    with pytest.raises(seqexport.ParityError, match=r"declared as \['batch', 23, 4\], but of shape"):
        seqexport.export(randomised(user_nets.MakesItsStateEachTime()), tmp_path / "net.onnx", inputs=INPUTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_the_change_is_said(tmp_path, dtype):
    net = randomised(user_nets.Net())
    net.forward = net.rnn.forward
    net = copy.deepcopy(net.rnn).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter) * 1e-4)
    declared = {torch.float64: "float64", torch.float16: "float16"}.get(dtype, "float32")
    inputs = {"input": f"{declared}[batch,time,3]", "hx": f"{declared}[1,batch,4]"}
    report = seqexport.export(net, tmp_path / "net.onnx", inputs=inputs)
    assert report.passed
    assert next(net.parameters()).dtype == dtype
    (note,) = report.notes
    if dtype is torch.float64:
        change = float(note.rpartition(" ")[2])
        assert 1e-9 < change < 1e-5
    else:
        assert "exported as float32, exactly" in note
        weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "net.onnx").graph.initializer]
        expected = np.sort(net.weight_hh_l0.detach().float().numpy(), axis=None)
        assert any(w.size == expected.size and np.array_equal(np.sort(w, axis=None), expected) for w in weights)
    assert {spec.dtype for spec in seqexport.load(tmp_path / "net.onnx").inputs} == {"float32"}


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_single_steps(tmp_path, cell):
    net = randomised(cell(5, 7))
    state = "float32[batch,7]"
    inputs = {"input": "float32[batch,5]", "hx": f"({state}, {state})" if cell is nn.LSTMCell else state}
    assert seqexport.export(net, tmp_path / "net.onnx", inputs=inputs).passed


def test_a_torchscript_module_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.GRU(3, 4))
    with pytest.raises(UnsupportedError, match="TorchScript program"):
        seqexport.export(scripted, tmp_path / "net.onnx", inputs=INPUTS)


def save_sized(path, wrap=lambda weights: weights, **options):
    net = randomised(user_nets.Sized(20, **options))
    torch.save(wrap(net.state_dict()), path)
    return net


WRAPS = {
    "bare": lambda weights: weights,
    "DataParallel": lambda weights: {"epoch": 1, "model": {f"module.{k}": v for k, v in weights.items()}},
    "compiled": lambda weights: {"state_dict": {f"model._orig_mod.{k}": v for k, v in weights.items()}},
}
TOKENS = ["--input", "tokens: int64[batch,time]{0..19}"]
HIDDEN = ["--input", "hidden: (float32[2,batch,16], float32[2,batch,16])"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_class_of_the_users_own_with_its_checkpoint(tmp_path, capsys, wrap):
    net = save_sized(tmp_path / "net.pt", WRAPS[wrap], size=16, layers=2)
    init = ["--init", json.dumps({"vocabulary": 20, "size": 16, "layers": 2})]
    options = ["--module", f"{HERE}:Sized", *init, *TOKENS, *HIDDEN]
    state_map = ["--state-map", "hidden_0=hidden_0", "--state-map", "hidden_1=hidden_1"]
    assert cli.main([str(tmp_path / "net.pt"), *options, *state_map]) == 2  # one name for an input and an output
    assert "'hidden_0' twice" in capsys.readouterr().err
    assert cli.main([str(tmp_path / "net.pt"), "--module", f"{HERE}:Sized", *init, *TOKENS]) == 0
    assert "verified: 8 of 8" in capsys.readouterr().out
    runtime = seqexport.load(tmp_path / "net.onnx")
    assert runtime.metadata["part"] == "module"
    assert len(runtime.metadata["checkpoint_sha256"]) == 64
    tokens = np.random.default_rng(0).integers(0, 20, (3, 7))
    with torch.no_grad():
        expected = net(torch.from_numpy(tokens))["logits"].numpy()
    np.testing.assert_allclose(runtime.run({"tokens": tokens})["logits"], expected, atol=5e-6)
    verify = ["verify", str(tmp_path / "net.pt"), str(tmp_path / "net.onnx"), "--module", f"{HERE}:Sized", *init]
    assert cli.main([*verify, *TOKENS]) == 0
    save_sized(tmp_path / "net.pt", WRAPS[wrap], size=16, layers=2)
    torch.save({k: v + 0.1 for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    assert cli.main([*verify, *TOKENS]) == 2
    assert "another checkpoint" in capsys.readouterr().err


def test_a_state_map_goes_into_the_metadata(tmp_path):
    net = randomised(nn.GRU(3, 4, batch_first=True))
    inputs = {"input": "float32[batch,time,3]", "hx": "float32[1,batch,4]"}
    options = {"inputs": inputs, "state_map": {"hx": "output_1"}}
    assert seqexport.export(net, tmp_path / "net.onnx", **options).passed
    assert seqexport.load(tmp_path / "net.onnx").metadata["state_map"] == {"hx": "output_1"}
    with pytest.raises(SpecError, match="names 'output_7', which is not there.*output_0, output_1"):
        seqexport.export(net, tmp_path / "net.onnx", inputs=inputs, state_map={"hx": "output_7"})


def test_a_class_in_a_package_beside_the_caller(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "sizes.py").write_text("SIZE = 6\n")
    (tmp_path / "mine" / "nets.py").write_text(
        "from torch import nn\nfrom mine.sizes import SIZE\n\n\nclass Net(nn.GRU):\n"
        "    def __init__(self):\n        super().__init__(3, SIZE, batch_first=True)\n"
    )
    torch.save(nn.GRU(3, 6, batch_first=True).state_dict(), tmp_path / "net.pt")
    command = [sys.executable, "-m", "seqexport", "net.pt", "--module", "mine.nets:Net"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, "--input", "input: float32[batch,time,3]", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["found"].startswith("Net, ")


BAD_OPTIONS = {
    "unknown class": (["--module", f"{HERE}:Size"], "has no torch.nn.Module called 'Size' .*Sized"),
    "not a module": (["--module", f"{HERE}:NOT_A_MODULE"], "is a int"),
    "no such file": (["--module", "none.py:Net"], "There is no file none.py"),
    "no such package": (["--module", "no.such.package:Net"], "could not be imported"),
    "no class": (["--module", str(HERE)], "not of the form"),
    "the constructor lacks an argument": (["--init", "{}"], r"could not be made with \{\}.*vocabulary.*--init"),
    "the constructor fails": (["--init", '{"vocabulary": 20, "size": -1}'], r"a size of -1\) at user_nets.py"),
    "init is no JSON": (["--init", "{vocabulary: 20}"], "is not JSON"),
    "init is a list": (["--init", "[20]"], "is a list; expected a JSON object"),
    "other size": (["--init", '{"vocabulary": 20, "size": 4}'], r"has the shape \[20, 8\].*\[20, 4\]"),
    "other layers": (["--init", '{"vocabulary": 20, "layers": 2}'], "lacks 4 of the 11 weights.*rnn.weight_ih_l1"),
    "a typo in the spec": (["--input", "tokens: int46[batch,time]"], "has the dtype 'int46'"),
    "a spec without a name": (["--input", "int64[batch,time]"], "not of the form NAME: VALUE"),
    "a spec twice": (["--input", "tokens: int64[batch,time]", *TOKENS], "twice"),
    "an unknown argument": ([*TOKENS, "--input", "state: float32[batch]"], "has no argument 'state'"),
    "a spec that contradicts forward": (["--input", "tokens: float32[batch,time]"], "forward does not take tokens"),
    "tokens out of range": (["--input", "tokens: int64[batch,time]{0..99}"], "forward does not take tokens.*index out"),
    "a network's flag": ([*TOKENS, "--head", "last"], "--head is for a recognised network"),
    "a state": ([*TOKENS, "--state", "none"], "--state is for a recognised network"),
    "a state map without a sign": ([*TOKENS, "--state-map", "tokens"], "not of the form NAME= VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_get_one_sentence(tmp_path, capsys, name):
    options, sentence = BAD_OPTIONS[name]
    save_sized(tmp_path / "net.pt")
    given = {"--module": f"{HERE}:Sized", "--init": '{"vocabulary": 20}'}
    rest = [part for flag, value in given.items() if flag not in options for part in (flag, value)]
    tokens = [] if "--input" in options else TOKENS
    assert cli.main([str(tmp_path / "net.pt"), *rest, *options, *tokens]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    import re

    assert re.search(sentence, said.err), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_module_options_belong_to_a_module(tmp_path, capsys):
    save_sized(tmp_path / "net.pt")
    for options in (["--init", "{}"], TOKENS, ["--state-map", "h=y"]):
        assert cli.main([str(tmp_path / "net.pt"), *options]) == 2
        assert "give it with --module" in capsys.readouterr().err
    assert cli.main([str(tmp_path / "net.pt"), "--module", f"{HERE}:Sized"]) == 2
    assert "needs an --input" in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    net = user_nets.Sized(20)
    nn.init.constant_(net.head.bias, float("nan"))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="head.bias holds 20 values"):
        load_module(f"{HERE}:Sized", {"vocabulary": 20}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="could not be made"):
        load_module(f"{HERE}:Sized", {"vocabulary": "many"})
