"""Triton's model folder: its configuration says what the graph has, and the graph gives what the file gives."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from onnx import helper
from torch import nn
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

import seqexport
from seqexport import FileError, InputError, ParityError, UnsupportedError, cli, export, triton
from seqexport.triton import model_name, write_triton

SHIPPED = Path(__file__).parents[1] / "exported"
FILES = [
    "characters-en/checkpoint.onnx",
    "characters-en/checkpoint.int8.onnx",
    "characters-en/checkpoint.generate.onnx",
    "sentiment-zh/checkpoint.classify.onnx",
    "sentiment-zh-gru/checkpoint.classify.int8.onnx",
    "electricity-gru/checkpoint.onnx",
    "electricity-gru/checkpoint.forecast.onnx",
    "sunspots-rnn/checkpoint.forecast.int8.onnx",
]


def written(path, folder, **how):
    """The configuration, as Triton's protobuf reads it, and the model."""
    write_triton(path, folder, **how)
    place = folder / model_name(Path(path))
    config = text_format.Parse((place / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return config, onnx.load(place / "1" / "model.onnx")


def described(value):
    """An ONNX input or output: its type in Triton's words, and its dims, -1 where they are open."""
    tensor = value.type.tensor_type
    kind = np_to_triton_dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return f"TYPE_{kind}", [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]


def of_config(tensor, rows):
    return model_config_pb2.DataType.Name(tensor.data_type), [-1] * rows + list(tensor.dims)


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("file", FILES)
def test_every_name_type_and_dim_is_the_graphs(tmp_path, file):
    config, model = written(SHIPPED / file, tmp_path, max_batch=16, instances=2, threads=3)
    onnx.checker.check_model(model)
    assert config.name == model_name(Path(file)) and config.backend == "onnxruntime"
    joined = config.max_batch_size > 0
    assert config.max_batch_size == (0 if "generate" in file else 16)
    states = config.sequence_batching.state
    taken = {tensor.name: of_config(tensor, joined) for tensor in config.input}
    taken |= {state.input_name: of_config(state, joined) for state in states}
    given = {tensor.name: of_config(tensor, joined) for tensor in config.output}
    given |= {state.output_name: of_config(state, joined) for state in states}
    assert taken == {value.name: described(value) for value in model.graph.input}
    assert given == {value.name: described(value) for value in model.graph.output}
    assert all(len(tensor.dims) >= 1 for tensor in (*config.input, *config.output))  # Triton takes no empty shape
    # The inputs are required, and onnxruntime sees them so.
    assert {value.name for value in session(model).get_inputs()} == taken.keys()
    assert not session(model).get_overridable_initializers()
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "1",
    }
    original = seqexport.load(SHIPPED / file)
    mapped = {name: output for name, output in original.metadata.get("state_map", {}).items() if name in taken}
    assert {state.input_name: state.output_name for state in states} == mapped
    assert config.HasField("sequence_batching") == bool(mapped)
    assert config.HasField("dynamic_batching") == (not mapped)
    for state in states:
        (first,) = state.initial_state
        assert first.zero_data and first.data_type == state.data_type and min(first.dims) > 0
        assert all(
            size in (dim, 1) and (dim == size or dim == -1) for size, dim in zip(first.dims, state.dims, strict=True)
        )
    assert len({state.initial_state[0].name for state in states}) == len(states)
    assert sorted(mapped[name] for name in mapped) == [mapped[name] for name in sorted(mapped)]


def as_triton_runs(config, model, requests):
    """What Triton does with sequences that wait together: [{sequence: feeds}, …] → [{sequence: outputs}, …].

    The rows of all sequences of a step are joined along the first axis, the kept states too, which are zero at first.
    """
    ready, states, answers = session(model), {}, []
    for step in requests:
        feeds = {name: np.concatenate([step[who][name] for who in step]) for name in next(iter(step.values()))}
        for state in config.sequence_batching.state:
            zero = np.zeros((1, *state.initial_state[0].dims), np.float32)
            feeds[state.input_name] = np.concatenate([states.get((who, state.input_name), zero) for who in step])
        names = [value.name for value in ready.get_outputs()]
        found = dict(zip(names, ready.run(names, feeds), strict=True))
        answers.append({})
        for row, who in enumerate(step):
            for state in config.sequence_batching.state:
                states[who, state.input_name] = found[state.output_name][row : row + 1]
            answers[-1][who] = {tensor.name: found[tensor.name][row : row + 1] for tensor in config.output}
    return answers


@pytest.mark.parametrize("file", ["characters-en/checkpoint.onnx", "electricity-gru/checkpoint.onnx"])
def test_sequences_that_are_joined_give_what_each_gives_alone(tmp_path, file):
    config, model = written(SHIPPED / file, tmp_path)
    runtime, rng = seqexport.load(SHIPPED / file), np.random.default_rng(0)
    spec = runtime.inputs[0]
    plan = [("a", "b", "c"), ("b",), ("c", "a"), ("a", "b", "d")]  # d begins when others are under way
    requests = [
        {who: {spec.name: spec.sample({"batch": 1, "time": 3 + place}, rng)} for who in step}
        for place, step in enumerate(plan)
    ]
    answers = as_triton_runs(config, model, requests)
    for who in "abcd":
        stream = seqexport.Stream(runtime)
        for step, answer in zip(requests, answers, strict=True):
            if who in step:
                expected = stream(step[who])["y"]
                np.testing.assert_allclose(
                    answer[who]["y"], expected, rtol=0, atol=7e-6 * max(1, np.abs(expected).max())
                )


def test_texts_that_are_joined(tmp_path):
    file = SHIPPED / "sentiment-zh/checkpoint.classify.onnx"
    config, model = written(file, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 3000, (4, 1, 9))
    requests = [{who: {"tokens": tokens[who], "lengths": np.array([[9 - who]])} for who in range(4)}]
    (answers,) = as_triton_runs(config, model, requests)
    for who, answer in answers.items():
        alone = seqexport.load(file).run({"tokens": tokens[who], "lengths": np.array([9 - who])})
        for name, array in alone.items():
            np.testing.assert_allclose(answer[name], array, atol=7e-6)


def test_a_generator_goes_on_by_itself(tmp_path):
    file = SHIPPED / "characters-en/checkpoint.generate.onnx"
    config, model = written(file, tmp_path)
    options = {
        "temperature": np.array([0.8], np.float32),
        "top_k": np.array([10]),
        "top_p": np.array([0.9], np.float32),
    }
    uniforms = np.random.default_rng(0).random((1, 30)).astype(np.float32)
    whole = seqexport.load(file).run(
        {"prompt": [[5, 6, 7]], "uniforms": uniforms, **{n: a[0] for n, a in options.items()}}
    )
    state = {s.input_name: np.zeros(s.initial_state[0].dims, np.float32) for s in config.sequence_batching.state}
    ready, prompt, said = session(model), np.array([[5, 6, 7]]), []
    for place in range(0, 30, 10):
        feeds = {"prompt": prompt, "uniforms": uniforms[:, place : place + 10], **options, **state}
        names = ["tokens", *(s.output_name for s in config.sequence_batching.state)]
        tokens, *states = ready.run(names, feeds)
        state = dict(zip(state, states, strict=True))
        said.append(tokens)
        prompt = tokens[:, -1:]
    np.testing.assert_array_equal(np.concatenate(said, 1), whole["tokens"])


def test_time_before_batch_and_a_state_that_was_dropped(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.GRU(3, 8, 2, bidirectional=True).state_dict(), tmp_path / "net.pt")
    export(tmp_path / "net.pt", choices=seqexport.Choices(time_major=True))
    config, model = written(tmp_path / "net.onnx", tmp_path / "repository")
    assert [list(tensor.dims) for tensor in config.input] == [[-1, 3]]
    assert list(config.sequence_batching.state[0].dims) == [4, 8]
    x = np.random.default_rng(0).normal(size=(5, 1, 3)).astype(np.float32)
    (answers,) = as_triton_runs(config, model, [{who: {"x": (x + who).transpose(1, 0, 2)} for who in range(3)}])
    for who, answer in answers.items():
        expected = seqexport.load(tmp_path / "net.onnx").run({"x": x + np.float32(who)})["y"]
        np.testing.assert_allclose(answer["y"], expected.transpose(1, 0, 2), atol=7e-6)
    export(tmp_path / "net.pt", choices=seqexport.Choices(time_major=True), state="none")
    config, model = written(tmp_path / "net.onnx", tmp_path / "repository")
    assert config.HasField("dynamic_batching") and not config.HasField("sequence_batching")
    assert [value.name for value in model.graph.input] == ["x"]


class Crossed(nn.Module):
    """States whose names are in another order than their outputs', and rows that are told apart."""

    def forward(self, x, first, second):
        return x * first[:, None] + second[:, None], second + x.sum(1), first + 1


class Looking(nn.Module):
    """A row that depends on the others."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_states_keep_their_pairs_whatever_the_names(tmp_path):
    specs = {"x": "float32[batch,time,2]", "first": "float32[batch,2]", "second": "float32[batch,2]"}
    pairs = {"first": "output_2", "second": "output_1"}
    export(Crossed(), tmp_path / "net.onnx", inputs=specs, state_map=pairs)
    config, model = written(tmp_path / "net.onnx", tmp_path / "repository")
    states = {state.input_name: state.output_name for state in config.sequence_batching.state}
    # Triton pairs them by their places in alphabetical order.
    assert list(zip(sorted(states), sorted(states.values()), strict=True)) == sorted(states.items())
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["state_map"]) == states
    x = np.ones((1, 3, 2), np.float32)
    answers = as_triton_runs(config, model, [{0: {"x": x}}] * 3)
    assert [answer[0]["output_0"][0, 0, 0] for answer in answers] == [0, 1 + 3, 2 + 6]


def test_rows_that_look_at_each_other_are_not_joined(tmp_path):
    export(Looking(), tmp_path / "net.onnx", inputs={"x": "float32[batch,time,2]"})
    config, model = written(tmp_path / "net.onnx", tmp_path / "repository")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, -1, 2] == described(model.graph.input[0])[1]
    assert not config.HasField("dynamic_batching")


def test_a_graph_that_would_differ_is_not_written(tmp_path, monkeypatch, capsys):
    original = triton._describe

    def spoilt(model, states):
        original(model, states)
        tensor = max((t for t in model.graph.initializer if t.data_type == 1), key=lambda t: len(t.raw_data))
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()

    monkeypatch.setattr(triton, "_describe", spoilt)
    file = SHIPPED / "sunspots-gru/checkpoint.onnx"
    with pytest.raises(ParityError, match="nothing was written"):
        write_triton(file, tmp_path / "repository")
    assert cli.main(["deploy", str(file), "--triton", str(tmp_path / "repository")]) == 1
    assert not (tmp_path / "repository").exists()


def test_a_repository_may_hold_others_and_a_folder_only_its_own(tmp_path, capsys):
    file = SHIPPED / "sunspots-gru/checkpoint.onnx"
    for _ in range(2):
        assert cli.main(["deploy", str(file), "--triton", str(tmp_path), "--json"]) == 0
        written_ = json.loads(capsys.readouterr().out)["written"]
    assert sorted(os.path.relpath(path, tmp_path) for path in written_) == [
        "checkpoint/1/model.onnx",
        "checkpoint/README.md",
        "checkpoint/config.pbtxt",
    ]
    write_triton(file.with_name("checkpoint.forecast.onnx"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "checkpoint_forecast"}
    (tmp_path / "checkpoint" / "2").mkdir()
    (tmp_path / "checkpoint" / "2" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(FileError, match="holds 2/model.onnx"):
        write_triton(file, tmp_path)
    (tmp_path / "foreign" / "checkpoint").mkdir(parents=True)
    (tmp_path / "foreign" / "checkpoint" / "README.md").write_text("mine")
    with pytest.raises(FileError, match="holds README.md"):
        write_triton(file, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "checkpoint" / "README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        write_triton(file, tmp_path / "file")


@pytest.mark.parametrize("size", ["max_batch", "instances", "threads"])
def test_sizes_start_at_one(tmp_path, size):
    with pytest.raises(InputError, match=f"{size} is 0; expected a whole number from 1"):
        write_triton(SHIPPED / "sunspots-gru/checkpoint.onnx", tmp_path, **{size: 0})


def test_a_type_that_triton_has_not(tmp_path):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.COMPLEX64, [1])
    with pytest.raises(UnsupportedError, match="which Triton has not"):
        triton._port(value)


def test_the_readmes_program_feeds_what_the_graph_takes(tmp_path):
    """The program for a client, against a stand-in for the server that runs the graph."""
    file = SHIPPED / "electricity-gru/checkpoint.forecast.onnx"
    config, model = written(file, tmp_path)
    readme = (tmp_path / "checkpoint_forecast" / "README.md").read_text()
    program = readme.split("```python\n")[1].split("```")[0]
    seen = {}

    class Client:
        def __init__(self, url):
            assert url == "localhost:8001"

        def infer(self, name, inputs, **sequence):
            assert name == config.name
            seen.update(sequence)
            feeds = {
                tensor.name(): np.frombuffer(tensor._get_content(), triton_to_np_dtype(tensor.datatype())).reshape(
                    tensor.shape()
                )
                for tensor in inputs
            }
            (answers,) = as_triton_runs(config, model, [{0: feeds}])
            return type("Answer", (), {"as_numpy": lambda self, output: answers[0][output]})()

    import tritonclient.grpc

    program = program.replace("triton.InferenceServerClient", "Client")
    exec(compile(program, "README.md", "exec"), {"Client": Client})
    assert seen == {"sequence_id": 1, "sequence_start": True, "sequence_end": False}
    assert tritonclient.grpc.InferInput
    assert "docker pull" in readme and "docker run" in readme
