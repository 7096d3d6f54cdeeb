"""Nets as people write them, exported and compared with torch at shapes of this file's own, without the verifier."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
import written_calls  # noqa: F401  they register their nets
import written_layers  # noqa: F401
import written_pairs  # noqa: F401
import written_readers  # noqa: F401
from conftest import randomised
from torch import nn
from written import NETS

import seqexport
from seqexport.reports import TOLERANCE
from seqexport.specs import parse_input
from seqexport.verification import difference

# The sizes of the dims in the order in which the inputs name them. None is the example's.
SIZES = ((1, 1, 1, 1), (1, 6, 2, 3), (4, 1, 1, 2), (2, 9, 4, 1), (3, 61, 7, 4))


def made(net):
    """A new instance, its weights random and its running statistics too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = net.make()
        randomised(module)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
        getattr(module, "settle", lambda: None)()
    return module


def flat(value):
    """The tensors of a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None:
        return []
    if dataclasses.is_dataclass(value):
        value = [getattr(value, entry.name) for entry in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = value.values()
    return [part for item in value for part in flat(item)]


def all_feeds(net, specs):
    """Values at each size; lengths, of which some are the whole time, also with all of them below it, and all 1."""
    rng = np.random.default_rng(7)
    dims = dict.fromkeys(dim for spec in specs for dim in spec.dims if isinstance(dim, str))
    for row in SIZES:
        sizes = {
            dim: min(max(row[place], net.least.get(dim, 1)), net.most.get(dim, 999)) for place, dim in enumerate(dims)
        }
        sampled = {spec.name: spec.sample(sizes, rng) for spec in specs}
        yield sampled
        lengths = {spec.name: sizes[spec.high] for spec in specs if isinstance(spec.high, str)}
        for most in (lambda size: max(1, size - 1), lambda size: 1) if lengths else ():
            yield sampled | {name: np.minimum(sampled[name], most(size)) for name, size in lengths.items()}


def call(module, structure, feeds):
    """What torch gives, in the order of the outputs."""
    tensors = {name: torch.tensor(array) for name, array in feeds.items()}
    arguments = {
        name: tuple(tensors[part.name] for part in spec) if isinstance(spec, tuple) else tensors[name]
        for name, spec in structure.items()
    }
    with torch.no_grad():
        return [tensor.numpy().copy() for tensor in flat(module(**arguments))]


def compare(net, module, runtime):
    structure = {name: parse_input(name, text) for name, text in net.inputs.items()}
    specs = [spec for part in structure.values() for spec in (part if isinstance(part, tuple) else (part,))]
    for feeds in all_feeds(net, specs):
        expected = call(module, structure, feeds)
        found = runtime.run(feeds)
        assert len(expected) == len(found) == len(net.outputs)
        for array, (name, other) in zip(expected, found.items(), strict=True):
            error, note = difference(array, other)
            shapes = {key: value.shape for key, value in feeds.items()}
            assert error <= TOLERANCE, (name, shapes, error, note)


def declared(path):
    """`name[dims]` of each output."""
    outputs = onnx.load(path).graph.output
    dims = {v.name: [str(d.dim_param or d.dim_value) for d in v.type.tensor_type.shape.dim] for v in outputs}
    return [(name, sizes) for name, sizes in dims.items()]


def assert_declared(net, path):
    for wanted, (name, dims) in zip(net.outputs, declared(path), strict=True):
        title, _, sizes = wanted.rstrip("]").partition("[")
        assert title in ("", name)
        sizes = sizes.split(",") if sizes else []
        assert [size if size != "?" or dim.isdigit() else dim for size, dim in zip(sizes, dims, strict=True)] == dims


def params(nets):
    return [
        pytest.param(
            net,
            id=net.name,
            marks=[
                *([pytest.mark.slow] if net.slow or place % 6 else []),  # the default run has to stay short
                *([pytest.mark.filterwarnings(f"ignore:{net.warns}")] if net.warns else []),
            ],
        )
        for place, net in enumerate(nets)
    ]


@pytest.mark.parametrize("net", params(NETS))
def test_a_net_as_people_write_it(tmp_path, net):
    module = made(net)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = seqexport.export(module, tmp_path / "net.onnx", inputs=net.inputs)
    assert report.passed
    assert_declared(net, tmp_path / "net.onnx")
    compare(net, made(net), seqexport.load(tmp_path / "net.onnx"))  # another instance: exporting leaves no trace
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
