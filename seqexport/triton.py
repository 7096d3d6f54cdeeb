"""A model repository for NVIDIA's Triton: the file, made fit for it, its configuration, and how to start it.

Triton joins the rows of requests along the first axis of every tensor, and keeps a sequence's state from request to
request ("implicit state"), zero at first. So the graph that it gets has its batch first everywhere, also in the state,
which in the file is [layers*directions, batch, hidden]; its inputs are all required; and what has no axis for Triton to
describe, a number or a row of them, gets one of size 1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqexport.errors import InputError, ParityError, SeqExportError, UnsupportedError
from seqexport.files import write_folder
from seqexport.isolation import check_structure, parse_onnx
from seqexport.reports import TOLERANCE, Outcome, Report
from seqexport.runtimes import OnnxRuntime
from seqexport.specs import Dim, TensorSpec
from seqexport.verification import difference

if TYPE_CHECKING:
    import onnx

MARK = "<!-- written by seqexport deploy: it may be replaced by the next -->"
IMAGE = "nvcr.io/nvidia/tritonserver:25.12-py3"
IDLE_SECONDS = 600  # after which Triton forgets a sequence that was not ended
SEQUENCES = 1024  # that one copy of the model has under way at once; more wait
ROWS = "batch"
TYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_STRING",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
}


@dataclass(frozen=True)
class Port:
    """An input or an output, as the file has it and as Triton gets it.

    name: the file's. served_as: Triton's. kind: ONNX's number of the type. dims: the file's. joined: whether requests'
    rows are joined, for which they have to be along the first axis.
    """

    name: str
    served_as: str
    kind: int
    dims: tuple[Dim, ...]
    joined: bool

    @property
    def order(self) -> list[int]:
        """The axes, that of the rows first where they are joined."""
        first = [self.dims.index(ROWS)] if self.joined else []
        return first + [axis for axis in range(len(self.dims)) if axis not in first]

    @property
    def widened(self) -> bool:
        """Whether an axis of size 1 stands at the end, since Triton wants one to describe."""
        return len(self.dims) == int(self.joined)

    @property
    def served(self) -> tuple[Dim, ...]:
        """The dims of the graph that Triton gets."""
        return (*(self.dims[axis] for axis in self.order), *([1] if self.widened else []))

    @property
    def described(self) -> list[int]:
        """The dims of the configuration: -1 where a size is open, and without the axis of the rows."""
        return [dim if isinstance(dim, int) else -1 for dim in self.served[int(self.joined) :]]

    def outward(self, array: np.ndarray) -> np.ndarray:
        """An array of the file's shape in Triton's."""
        turned = np.transpose(array, self.order)
        return turned[..., None] if self.widened else turned


@dataclass(frozen=True)
class Served:
    """What Triton gets: a graph, its inputs and outputs without the state, and the state's, input and output."""

    model: onnx.ModelProto
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[tuple[Port, Port], ...]

    @property
    def joined(self) -> bool:
        """Whether requests' rows are joined."""
        return self.inputs[0].joined


def write_triton(
    path: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    max_batch: int = 32,
    instances: int = 1,
    threads: int = 1,
) -> list[Path]:
    """Write the folder of the ONNX file `path` into a model repository, and give the paths of what was written: for
    net.onnx net/README.md, net/config.pbtxt and net/1/model.onnx.

    max_batch: rows that Triton may join in one call. instances: copies of the model; threads: of each.

    Raises ParityError if the graph made for Triton does not give what the file gives, carried state included;
    InputError for sizes below 1; FileError for a file that can't be read, and for a folder with something else in it.
    Nothing is written then.
    """
    path = Path(path)
    for name, value in (("max_batch", max_batch), ("instances", instances), ("threads", threads)):
        if value < 1:
            raise InputError(f"Triton's {name} is {value}; expected a whole number from 1.")
    served = serve(path)
    _require_same(path, served)
    name = model_name(path)
    contents = {
        "README.md": _readme(path, name, served, max_batch),
        "config.pbtxt": configuration(path, name, served, max_batch, instances, threads),
    }
    binary = {"1/model.onnx": served.model.SerializeToString(deterministic=True)}
    texts = {file: text.encode() for file, text in contents.items()}
    return write_folder(Path(repository) / name, texts | binary, MARK)


def model_name(path: Path) -> str:
    """net.generate.onnx → net_generate: what stands behind a dot Triton might take for a backend."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem).strip("_") or "model"


def serve(path: Path) -> Served:
    """The file as Triton gets it. Raises FileError for what is no ONNX model, UnsupportedError for a type of its inputs
    or outputs that Triton has not."""
    model = parse_onnx(path)
    check_structure(path, model)
    runtime = OnnxRuntime(path)
    inputs, outputs = [_port(value) for value in model.graph.input], [_port(value) for value in model.graph.output]
    state_map = runtime.metadata.get("state_map") or {}
    names = {port.name for port in inputs}, {port.name for port in outputs}
    pairs = {one: other for one, other in state_map.items() if one in names[0] and other in names[1]}
    joined = all(port.dims.count(ROWS) == 1 for port in (*inputs, *outputs)) and _rows_are_apart(runtime)
    renamed = _state_outputs(pairs)
    ports_in = {port.name: replace(port, joined=joined) for port in inputs}
    ports_out = {
        port.name: replace(port, joined=joined, served_as=renamed.get(port.name, port.name)) for port in outputs
    }
    _adapt(model, [*ports_in.values()], [*ports_out.values()])
    _describe(model, {one: renamed[other] for one, other in pairs.items()})
    return Served(
        model,
        tuple(port for port in ports_in.values() if port.name not in pairs),
        tuple(port for port in ports_out.values() if port.name not in renamed),
        tuple((ports_in[one], ports_out[other]) for one, other in pairs.items()),
    )


def _state_outputs(pairs: Mapping[str, str]) -> dict[str, str]:
    """State output → its name for Triton, which pairs state inputs with outputs by their places in alphabetical order,
    whatever the configuration says (triton-inference-server/server, issue 8586)."""
    in_order = [pairs[name] for name in sorted(pairs)]
    if in_order == sorted(in_order):
        return {name: name for name in in_order}
    return {name: f"next_state_{place:03}" for place, name in enumerate(in_order)}


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    if tensor.elem_type not in TYPES:
        raise UnsupportedError(f"{value.name} has ONNX's type {tensor.elem_type}, which Triton has not: convert it.")
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return Port(value.name, value.name, tensor.elem_type, dims, joined=False)


def _sampled(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Values for an input: the default of one that has it; ones for integers of which no range is known."""
    if spec.optional:
        return spec.filled(sizes)
    if spec.low is None and not spec.dtype.startswith("float"):
        return np.ones(spec.shape(sizes), spec.dtype)
    return spec.sample(sizes, rng)


def _sizes(specs: Sequence[TensorSpec], rows: int, steps: int) -> dict[str, int]:
    return {dim: rows if dim == ROWS else steps for spec in specs for dim in spec.dims if isinstance(dim, str)}


def _rows_are_apart(runtime: OnnxRuntime) -> bool:
    """Whether a row gives alone what it gives beside others. It does in what seqexport builds; a class of one's own may
    look across, as one that packs sequences does, whose output is as long as the longest row."""
    if runtime.metadata.get("part", "module") != "module":
        return True
    rng, sizes = np.random.default_rng(0), _sizes(runtime.inputs, 3, 5)
    together = {spec.name: _sampled(spec, sizes, rng) for spec in runtime.inputs}
    axes = {spec.name: spec.dims.index(ROWS) for spec in runtime.inputs}
    try:
        whole = runtime.run(together)
        for row in range(3):
            alone = runtime.run({name: np.take(array, [row], axes[name]) for name, array in together.items()})
            for name, array in whole.items():
                expected = np.take(array, [row], list(runtime.declared[name]).index(ROWS))
                if not difference(expected, alone[name])[0] <= TOLERANCE:
                    return False
    except SeqExportError:  # of values that it does not take
        return False
    return not any(str(dim).startswith("longest") for dims in runtime.declared.values() for dim in dims)


def _adapt(model: onnx.ModelProto, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Give the graph Triton's shapes: every input required, the rows first, no tensor without an axis to describe."""
    from onnx import helper

    graph = model.graph
    names = {port.name for port in inputs}
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    last = helper.make_tensor("served_last_axis", 7, [1], [-1])
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for port in inputs:
        value = port.name
        if port.widened:
            value = _step(before, "Squeeze", [value, last.name], {})
        if port.order != sorted(port.order):
            value = _step(before, "Transpose", [value], {"perm": np.argsort(port.order).tolist()})
        _rename(graph, port.name, value)
    for port in outputs:
        value = port.name if port.served == port.dims and port.served_as == port.name else f"{port.name}_unserved"
        _rename(graph, port.name, value)
        if value == port.name:
            continue
        if port.order != sorted(port.order):
            value = _step(after, "Transpose", [value], {"perm": port.order})
        if port.widened:
            value = _step(after, "Unsqueeze", [value, last.name], {})
        after.append(helper.make_node("Identity", [value], [port.served_as]))
    if any(port.widened for port in (*inputs, *outputs)):
        graph.initializer.append(last)
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(helper.make_tensor_value_info(port.name, port.kind, port.served) for port in inputs)
    graph.output.extend(helper.make_tensor_value_info(port.served_as, port.kind, port.served) for port in outputs)


def _step(nodes: list[onnx.NodeProto], operator: str, values: list[str], attributes: Mapping[str, Any]) -> str:
    from onnx import helper

    result = f"{values[0]}_{operator.lower()}"
    nodes.append(helper.make_node(operator, values, [result], **attributes))
    return result


def _rename(graph: onnx.GraphProto, name: str, value: str) -> None:
    """Call `name` `value` wherever a node gives or takes it, in loop bodies too."""
    if name == value:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            for place, used in enumerate(names):
                if used == name:
                    names[place] = value
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, name, value)
    for output in graph.output:  # of a loop's body that hands on what it was not given
        if output.name == name:
            output.name = value
    for about in graph.value_info:
        if about.name == name:
            about.name = value


def _describe(model: onnx.ModelProto, states: Mapping[str, str]) -> None:
    """What the metadata says of inputs that are no longer so goes; the state map has Triton's names."""
    kept = [entry for entry in model.metadata_props if entry.key not in ("network", "part", "state_map")]
    kept = [type(entry)(key=entry.key, value=entry.value) for entry in kept]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entries = {"served_for": "triton"} | ({"state_map": json.dumps(states)} if states else {})
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)


def _require_same(path: Path, served: Served) -> None:
    """Raise ParityError unless Triton's graph gives what the file gives, over calls with the state carried."""
    outcomes = tuple(_outcomes(OnnxRuntime(path), OnnxRuntime(served.model.SerializeToString()), served))
    report = Report(outcomes, source=str(path))
    if not report.passed:
        raise ParityError(
            f"The graph made for Triton differs from {path} by {report.max_abs_error:.2g}; expected at most "
            f"{TOLERANCE:.0e}: nothing was written, please report it.",
            report,
        )


def _outcomes(original: OnnxRuntime, candidate: OnnxRuntime, served: Served) -> Iterator[Outcome]:
    rng, specs = np.random.default_rng(0), {spec.name: spec for spec in original.inputs}
    ports = {
        port.name: port for port in (*served.inputs, *served.outputs, *(p for pair in served.states for p in pair))
    }
    for rows in (1, 3):
        sizes = _sizes(original.inputs, rows, 5)
        state = {one.name: specs[one.name].filled(sizes) for one, _ in served.states}
        theirs = {name: ports[name].outward(array) for name, array in state.items()}
        for call in range(3):
            feeds = {port.name: _sampled(specs[port.name], sizes, rng) for port in served.inputs}
            outward = {name: ports[name].outward(array) for name, array in feeds.items()}
            expected, found = original.run({**feeds, **state}), candidate.run({**outward, **theirs})
            errors = {
                name: difference(ports[name].outward(array), found[ports[name].served_as])[0]
                for name, array in expected.items()
            }
            state = {one.name: expected[other.name] for one, other in served.states}
            theirs = {one.name: found[other.served_as] for one, other in served.states}
            yield Outcome("triton", f"{rows} rows, call {call + 1}", errors)


def configuration(path: Path, name: str, served: Served, max_batch: int, instances: int, threads: int) -> str:
    """config.pbtxt, a ModelConfig in protobuf's text form."""
    tensors = {"input": served.inputs, "output": served.outputs}
    listed = "\n".join(f"{kind} [\n{_listed(ports)}\n]" for kind, ports in tensors.items())
    return f"""\
# Written by seqexport deploy for {json.dumps(path.name)}; README.md tells how to start it.
name: {_quoted(name)}
backend: "onnxruntime"
# Rows that are joined in one call; 0: a request is run by itself, its shapes as they are.
max_batch_size: {max_batch if served.joined else 0}
{listed}
{_scheduler(served)}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}
parameters {{ key: "inter_op_thread_count" value: {{ string_value: "1" }} }}
"""


def _listed(ports: Sequence[Port]) -> str:
    return ",\n".join(
        f"  {{ name: {_quoted(port.served_as)} data_type: {TYPES[port.kind]} dims: {port.described} }}"
        for port in ports
    )


def _scheduler(served: Served) -> str:
    if not served.states:
        return "# Requests of equal shapes that wait together are run together.\ndynamic_batching { }" * served.joined
    states = ",\n".join(
        f"    {{ input_name: {_quoted(one.name)} output_name: {_quoted(other.served_as)} data_type: {TYPES[one.kind]} "
        f"dims: {one.described}\n"
        f"      initial_state: {{ name: {_quoted(f'{one.name} of zeros')} data_type: {TYPES[one.kind]} "
        f"dims: {[abs(dim) for dim in one.described]} zero_data: true }} }}"
        for one, other in served.states
    )
    return f"""\
# A sequence's requests go to one copy of the model, one after another, and its state stays with Triton, zero at first.
# Requests of different sequences, of equal shapes, are run together.
sequence_batching {{
  max_sequence_idle_microseconds: {IDLE_SECONDS * 10**6}
  oldest {{ max_candidate_sequences: {SEQUENCES} }}
  state [
{states}
  ]
}}"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _readme(path: Path, name: str, served: Served, max_batch: int) -> str:
    """How to start and to ask it, as Markdown."""
    rows = [
        f"| {kind} | `{port.served_as}` | {TYPES[port.kind]} | {_shape(port)} |"
        for kind, ports in (("input", served.inputs), ("output", served.outputs))
        for port in ports
    ]
    table = "\n".join(("| | name | type | shape |", "|---|---|---|---|", *rows))
    joined = f"Up to {max_batch} rows of requests whose shapes are equal are run in one call."
    alone = "A request is run by itself, since its rows can't be told from others' or an input holds for all of them."
    about = [joined if served.joined else alone]
    if served.states:
        kept = ", ".join(f"`{one.name}` [{', '.join(map(str, one.served))}]" for one, _ in served.states)
        about.append(
            f"The state ({kept}) stays with Triton, and is zero at a sequence's first request: every request names its "
            "sequence, the first says that it starts and the last that it ends. A request of a sequence has one row. "
            f"A sequence that is not asked for {IDLE_SECONDS} seconds is forgotten."
        )
    if any(port.name == "prompt" for port in served.inputs) and served.states:
        about.append("The state is from before the last token: go on with that token as the prompt.")
    said = "\n".join(about)
    carried = " with the state carried" if served.states else ""
    return f"""\
# {name}
{path.name} for NVIDIA's Triton. In the folder above this one:

```
docker pull {IMAGE}
docker run --rm -p 8000:8000 -p 8001:8001 -v "$PWD:/models" {IMAGE} tritonserver --model-repository=/models
```

{table}

{said}

```python
{_example(name, served)}
```

The graph in `1/model.onnx` was held against {path.name} in onnxruntime, in three calls one after another{carried}.
Triton itself did not run it: `curl localhost:8000/v2/models/{name}/config` shows how yours read the configuration.

{MARK}
"""


def _shape(port: Port) -> str:
    return f"[{', '.join(map(str, port.served))}]"


def _example(name: str, served: Served) -> str:
    """A program that asks it, in Python."""
    sizes = {dim: 1 if dim == ROWS else 4 for port in served.inputs for dim in port.served if isinstance(dim, str)}
    lines = [
        "import numpy",
        "import tritonclient.grpc as triton",
        "",
        'client = triton.InferenceServerClient("localhost:8001")',
    ]
    lines.append("inputs = []")
    for port in served.inputs:
        shape = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in port.served]
        kind = TYPES[port.kind].removeprefix("TYPE_").replace("STRING", "BYTES")
        lines += [
            f"inputs.append(triton.InferInput({json.dumps(port.served_as)}, {shape}, {json.dumps(kind)}))",
            f"inputs[-1].set_data_from_numpy(numpy.ones({shape}, triton.triton_to_np_dtype({json.dumps(kind)})))",
        ]
    sequence = ", sequence_id=1, sequence_start=True, sequence_end=False" if served.states else ""
    lines.append(f"answer = client.infer({json.dumps(name)}, inputs{sequence})")
    lines.append(f"print(answer.as_numpy({json.dumps(served.outputs[0].served_as)}))")
    return "\n".join(lines)
