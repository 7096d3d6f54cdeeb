"""Programs for files: run without torch and without seqexport, they give what seqexport's own runtime gives."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import characters, save_classifier, save_forecaster, save_generator
from torch import nn

import seqexport
from seqexport import FileError, InputError, UnsupportedError, cli, export
from seqexport.clients import write_client
from seqexport.text import UNKNOWN, Vocabulary

NODE = Path(__file__).parent / "node"
node = pytest.mark.node
# What a client must do without. None in sys.modules makes the import fail.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "seqexport", "onnx", "onnxscript"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LANGUAGES = (
    "python",
    pytest.param("onnxruntime-node", marks=node),
    pytest.param("onnxruntime-web", marks=node),
)


def told(language, path, lines, *options):
    """What the client for `path` answers to each line; None is an empty one, which begins anew."""
    program = write_client(path, "python" if language == "python" else "javascript")
    if language == "python":
        command = [sys.executable, "-I", "-c", ALONE, str(program), *options]
    else:
        command = [*in_node(program, language), *options]
    said = "".join("\n" if line is None else json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(command, input=said, capture_output=True, text=True, cwd="/", env=CLEAN)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_node(program, language):
    """The command that runs a JavaScript client, with the packages of tests/node beside it."""
    modules, beside = NODE / "node_modules", program.parent / "node_modules"
    assert modules.is_dir(), "npm ci --prefix tests/node"
    if not beside.exists():
        beside.symlink_to(modules)
    return ["node", str(program), "--runtime", language]


CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def streamed(path, calls):
    """The runtime's outputs of each call, the state fed back; None begins anew."""
    runtime = seqexport.load(path)
    names, states, outputs = {spec.name for spec in runtime.inputs}, {}, []
    mapped = {name: output for name, output in runtime.metadata.get("state_map", {}).items() if name in names}
    for call in calls:
        if call is None:
            states = {}
            continue
        found = runtime.run({**call, **states})
        states = {name: found.pop(output) for name, output in mapped.items()}
        outputs.append(found)
    return outputs


def assert_same(answers, outputs):
    assert len(answers) == len(outputs)
    for said, found in zip(answers, outputs, strict=True):
        assert found.keys() <= said.keys()
        for name, array in found.items():
            given = np.array(said[name], object if array.dtype == object else None)  # numpy's strings end at a NUL
            assert given.shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(given, array, rtol=0, atol=7e-6 * max(1, np.abs(array).max()))
            else:
                np.testing.assert_array_equal(given, array)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(export of a folder) → the folder, in which it ran once for all languages."""
    folders = {}

    def once(name, write):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            write(folders[name])
        return folders[name]

    yield once
    for folder in folders.values():
        (folder / "node_modules").unlink(missing_ok=True)


@pytest.fixture
def folder(made, tmp_path):
    """A folder with the files of a forecaster."""
    there = made("forecaster", lambda folder: export(save_forecaster(folder / "net.pt")))
    shutil.copytree(there, tmp_path, symlinks=True, dirs_exist_ok=True, ignore=lambda *_: ["node_modules"])
    yield tmp_path
    (tmp_path / "node_modules").unlink(missing_ok=True)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("state", ["optional", "explicit"])
def test_a_network_of_numbers_in_pieces(made, language, state):
    folder = made(f"numbers-{state}", lambda to: export(save_forecaster(to / "net.pt", "lstm"), state=state))
    series = np.random.default_rng(0).normal(size=40).astype(np.float32).tolist()
    pieces = [series[:7], series[7:8], series[8:]]
    lines = [*pieces, None, pieces[1], {"x": [[[0.5], [1.5]], [[2.5], [-1]]]}]
    batch = np.array(lines[-1]["x"], np.float32)
    calls = [None if line is None else {"x": np.reshape(line, (1, -1, 1)).astype(np.float32)} for line in lines[:-1]]
    # A state of one row may be carried to a batch of one only: the last line begins anew.
    lines.insert(-1, None)
    zeros = {name: np.zeros((2, 2, 16), np.float32) for name in ("h0", "c0")} if state == "explicit" else {}
    if state == "explicit":
        first = {name: np.zeros((2, 1, 16), np.float32) for name in ("h0", "c0")}
        calls[0], calls[4] = calls[0] | first, calls[4] | first
    outputs = streamed(folder / "net.onnx", [*calls, None, {"x": batch} | zeros])
    assert_same(told(language, folder / "net.onnx", lines), outputs)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_network_of_tokens_and_of_text(made, language):
    folder = made("tokens", lambda to: export(save_generator(to / "net.pt", "gru")))
    calls = [{"tokens": np.array([numbers])} for numbers in (characters().encode("hello"), [3, 4, 0], [5])]
    answers = told(language, folder / "net.onnx", ["hello", [3, 4, 0], [5]])
    assert_same(answers, streamed(folder / "net.onnx", calls))


@pytest.mark.parametrize("language", LANGUAGES)
def test_time_before_batch(made, language):
    def write(to):
        torch.manual_seed(0)
        torch.save(nn.GRU(3, 8).state_dict(), to / "net.pt")
        export(to / "net.pt", choices=seqexport.Choices(time_major=True))

    folder = made("time-major", write)
    steps = np.random.default_rng(0).normal(size=(5, 1, 3)).astype(np.float32)
    lines = [steps[:2, 0].tolist(), steps[2:, 0].tolist()]
    assert_same(
        told(language, folder / "net.onnx", lines),
        streamed(folder / "net.onnx", [{"x": steps[:2]}, {"x": steps[2:]}]),
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_forecast_that_goes_on(made, language):
    folder = made("lags", lambda to: export(save_forecaster(to / "net.pt", lags=(2, 5))))
    path, histories = folder / "net.forecast.onnx", ([3.0, 9.0, 4.0, 1.0], [2.0], [8.0, 5.0])
    noise = np.random.default_rng(3).standard_normal((1, 2, 6)).astype(np.float32)
    calls = [{"history": np.array([values], np.float32), "noise": np.zeros((1, 1, 9))} for values in histories[:2]]
    calls.append({"history": np.array([histories[2]], np.float32), "noise": noise})
    lines = [*histories[:2], {"history": [histories[2]], "noise": noise.tolist()}]
    answers = told(language, path, lines, "--horizon", "9")
    assert_same(answers, streamed(path, calls))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_opinions(made, language, precision):
    words = Vocabulary("word", (UNKNOWN, "a", "good", "don't", "caf\u00e9", "!", "\u4e2d", "\u6587"), lowercase=True)
    edit = lambda preprocessing: preprocessing.update(vocabulary=words.to_dict())  # noqa: E731
    checkpoint = lambda to: save_classifier(to / "net.pt", vocabulary=8, edit=edit)  # noqa: E731
    folder = made("opinions", lambda to: export(checkpoint(to), precision="fp32,int8"))
    path = folder / ("net.classify.onnx" if precision == "fp32" else "net.classify.int8.onnx")
    texts = ["A GOOD caf\u00e9!", "\u4e2d\u6587 don\u2019t DON'T \u212a\u0130", "\U0001f600", "", "e\u0301 a\u200bgood"]
    calls = [
        {name: array for name, array in zip(("tokens", "lengths"), words.encode_batch([t]), strict=True)} for t in texts
    ]
    answers, outputs = told(language, path, texts), streamed(path, calls)
    assert_same(answers, outputs)
    labels = ("no", "yes", "both")
    assert [said["label"] for said in answers] == [[labels[o["probabilities"][0].argmax()]] for o in outputs]


def generator(to):
    export(save_generator(to / "net.pt", vocabulary=60), precision="fp32,int8")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_text_that_goes_on(made, language, precision):
    folder = made("generator", generator)
    path = folder / ("net.generate.onnx" if precision == "fp32" else "net.generate.int8.onnx")
    answers = told(language, path, ["hello", "", " and", None, "hello"], "--steps", "30", "--temperature", "0")
    whole = seqexport.load(path).run(
        {"prompt": [characters(60).encode("hello")], "uniforms": np.zeros((1, 60), np.float32), "temperature": 0.0}
    )
    written = characters(60).decode(whole["tokens"][0])
    assert answers[0]["text"][0] + answers[1]["text"][0] == written
    assert answers[3] == answers[0]
    prompt = characters(60).encode("hello" + written + " and")
    after = seqexport.load(path).run({"prompt": [prompt], "uniforms": np.zeros((1, 30)), "temperature": 0.0})
    if precision == "fp32":  # int8 rounds a prompt as a whole, so that it depends on how it was cut
        assert answers[2]["tokens"] == after["tokens"].tolist()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_opinions_of_a_graph_that_takes_strings(made, language, precision):
    checkpoint = lambda to: save_classifier(to / "net.pt")  # noqa: E731
    folder = made("opinions as strings", lambda to: export(checkpoint(to), precision="fp32,int8", text=True))
    path = folder / ("net.classify.text.onnx" if precision == "fp32" else "net.classify.text.int8.onnx")
    texts = ["a fine film.", "", "caf\u00e9 \U0001f600 \u4e2d", *(["n\x00l"] if language == "python" else [])]
    answers = told(language, path, [*texts, {"texts": texts}])
    assert_same(answers, streamed(path, [{"texts": [text]} for text in texts] + [{"texts": texts}]))
    assert answers[0]["label"][0] in ("no", "yes", "both")
    assert [said["label"][0] for said in answers[:-1]] == answers[-1]["label"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_graph_that_takes_strings_writes_on(made, language):
    checkpoint = lambda to: save_generator(to / "net.pt", vocabulary=60)  # noqa: E731
    folder = made("generator of strings", lambda to: export(checkpoint(to), text=True))
    lines, options = ["hello", "", " and \u4e00", None, "hello"], ("--steps", "30", "--temperature", "0")
    answers = told(language, folder / "net.generate.text.onnx", lines, *options)
    numbers = told(language, folder / "net.generate.onnx", lines, *options)
    assert [said["text"] for said in answers] == [said["text"] for said in numbers]
    assert [said["tokens"] for said in answers] == [said["tokens"] for said in numbers]
    assert answers[0] == answers[3]


NUL = '"n\\u0000l"'  # Python's onnxruntime keeps it; JavaScript's would end the text there


@pytest.mark.parametrize(
    ("language", "line"),
    [
        *((language, line) for language in LANGUAGES[:1] for line in ("[1, 2]", '{"texts": [1]}', '"\\ud800"')),
        *(
            pytest.param(language, line, marks=node)
            for language in ("onnxruntime-node", "onnxruntime-web")
            for line in ("[1, 2]", '{"texts": [1]}', '"\\ud800"', NUL)
        ),
    ],
)
def test_a_graph_that_takes_strings_takes_nothing_else(made, language, line):
    checkpoint = lambda to: save_classifier(to / "net.pt")  # noqa: E731
    folder = made("opinions as strings", lambda to: export(checkpoint(to), precision="fp32,int8", text=True))
    program = write_client(folder / "net.classify.text.onnx", "python" if language == "python" else "javascript")
    command = [sys.executable, program] if language == "python" else in_node(program, language)
    done = subprocess.run(command, input=f'"fine"\n{line}\n', capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("line 2: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_sampled_text_is_the_runtimes(made, language):
    folder = made("generator", generator)
    uniforms = np.random.default_rng(5).random((2, 50)).astype(np.float32)
    call = {"prompt": np.array([[1, 2, 3], [4, 5, 6]]), "uniforms": uniforms}
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.95}
    line = {name: array.tolist() for name, array in call.items()} | options
    path = folder / "net.generate.onnx"
    (said,), (found,) = told(language, path, [line]), streamed(path, [call | options])
    assert said["tokens"] == found["tokens"].tolist()
    assert said["text"] == [characters(60).decode(row) for row in found["tokens"]]


def test_the_seed_is_the_commands_own(made, capsys):
    path = made("generator", generator) / "net.generate.onnx"
    (said,) = told("python", path, ["hello"], "--steps", "40", "--seed", "7")
    assert cli.main(["run", str(path), "text=hello", "uniforms=uniform[1,40]", "--seed", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == said["text"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_state_that_was_dropped(made, language):
    folder = made("stateless", lambda to: export(save_forecaster(to / "net.pt"), state="none"))
    answers = told(language, folder / "net.onnx", [[1, 2], [3]])
    calls = [{"x": np.array([[[1], [2]]], np.float32)}, {"x": np.array([[[3]]], np.float32)}]
    assert_same(answers, streamed(folder / "net.onnx", calls))


class Counter(nn.Module):
    def forward(self, x, total):
        total = total + x.sum(1)
        return x * total[:, None], total


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_class_of_ones_own(made, language):
    how = {"inputs": {"x": "float32[batch,time,2]", "total": "float32[batch,2]"}, "state_map": {"total": "output_1"}}
    folder = made("class", lambda to: export(Counter(), to / "net.onnx", **how))
    x = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    answers = told(language, folder / "net.onnx", [x[0, :2].tolist(), x[0, 2:].tolist()])
    totals = x[:, :2].sum(1), x.sum(1)
    for said, part, total in zip(answers, (x[:, :2], x[:, 2:]), totals, strict=True):
        np.testing.assert_allclose(said["output_0"], part * total[:, None])


@pytest.mark.parametrize("line", ["{", '{"z": [[1]]}', '"text"', '[["a"]]', "[[[1], [2, 3]]]"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_line_that_does_not_fit(folder, language, line):
    program = write_client(folder / "net.onnx", "python" if language == "python" else "javascript")
    command = [sys.executable, program] if language == "python" else in_node(program, language)
    done = subprocess.run(command, input=f"[1]\n{line}\n", capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("line 2: ") and "Traceback" not in done.stderr


def test_the_command_writes_beside_and_names_what_it_wrote(folder, capsys):
    assert cli.main(["deploy", str(folder / "net.onnx"), "--client", "javascript", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(folder / "net.client.mjs")]}
    (folder / "away").mkdir()
    output = folder / "away" / "ask.py"
    for _ in range(2):  # its own program may be replaced
        assert cli.main(["deploy", str(folder / "net.onnx"), "--client", "python", "-o", str(output)]) == 0
    assert 'Path(__file__).parent / "../net.onnx"' in output.read_text()
    done = subprocess.run([sys.executable, output], input="[1]\n", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["y"]


def test_what_deploy_did_not_write_stays(folder, capsys):
    (folder / "net.client.py").write_text("mine")
    assert cli.main(["deploy", str(folder / "net.onnx"), "--client", "python"]) == 2
    assert "deploy did not write it" in capsys.readouterr().err
    assert (folder / "net.client.py").read_text() == "mine"
    assert cli.main(["deploy", str(folder / "net.onnx")]) == 2
    assert "--client LANGUAGE, --triton DIR or --hub DIR" in capsys.readouterr().err
    with pytest.raises(InputError, match="python or javascript"):
        write_client(folder / "net.onnx", "cobol")
    with pytest.raises(FileError):
        write_client(folder / "none.onnx", "python")
    model = onnx.load(folder / "net.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.COMPLEX64
    onnx.save(model, folder / "complex.onnx")
    with pytest.raises(UnsupportedError, match="takes x of a type that the client does not feed"):
        write_client(folder / "complex.onnx", "python")


@pytest.mark.parametrize("language", ["python", pytest.param("onnxruntime-node", marks=node)])
def test_a_name_can_not_become_code(folder, language):
    path = folder / 'a"""\nprint("owned") \'#? é.onnx'
    shutil.move(folder / "net.onnx", path)
    assert len(told(language, path, [[1, 2]])) == 1
