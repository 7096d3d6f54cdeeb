"""The command line as a user calls it: a process of its own, its exit code, its two streams."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import save_forecaster, save_generator
from torch import nn

from seqexport import FileError, cli, exporter
from seqexport.inspection import inspect
from seqexport.reports import Outcome

ROOT = Path(__file__).parents[1]


def seqexport(*arguments):
    command = [sys.executable, "-m", "seqexport", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "120"})


def test_one_command_writes_a_verified_network_and_pipeline(tmp_path):
    path = save_forecaster(tmp_path / "net.pt", "lstm")
    done = seqexport(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "forecast: LSTM 1→16, 2 layers → linear 16→2 on every step" in done.stdout
    assert "verified: 40 of 40 cases agree with torch" in done.stdout
    for output in ("net.onnx", "net.forecast.onnx"):
        assert str(tmp_path / output) in done.stdout
        assert f"{(tmp_path / output).stat().st_size:,} bytes, opset 20" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"net.pt", "net.onnx", "net.forecast.onnx"}


def test_json_is_one_document_on_stdout(tmp_path):
    path = save_forecaster(tmp_path / "net.pt")
    done = seqexport(path, "-o", tmp_path / "out.onnx", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["passed"] is True
    assert 0 < report["max_abs_error"] <= report["tolerance"] <= 1e-5
    assert {entry["part"] for entry in report["files"]} == {"network", "forecast"}
    assert len(report["cases"]) == 40


def test_a_bare_state_dict_and_its_flags(tmp_path, capsys):
    torch.save(nn.RNN(3, 8).state_dict(), tmp_path / "rnn.pt")
    assert cli.main([str(tmp_path / "rnn.pt")]) == 0
    assert "--nonlinearity relu" in capsys.readouterr().out
    assert cli.main([str(tmp_path / "rnn.pt"), "--nonlinearity", "relu", "--time-major"]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert onnx.load(tmp_path / "rnn.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "time"


def test_exit_code_1_and_an_untouched_file_when_verification_fails(tmp_path, monkeypatch, capsys):
    path = save_forecaster(tmp_path / "net.pt")
    (tmp_path / "net.onnx").write_bytes(b"older")
    wrong = Outcome("network", "batch 1 × time 1", {"y": 0.5})
    monkeypatch.setattr(exporter, "verify", lambda subject, reference, candidate, cases: [wrong] * len(cases))
    assert cli.main([str(path)]) == 1
    output = capsys.readouterr()
    assert "differs from torch" in output.err
    assert output.out == ""
    assert (tmp_path / "net.onnx").read_bytes() == b"older"
    assert cli.main([str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


@pytest.mark.parametrize("arguments", [["{none}"], ["{text}"], ["{folder}"], ["inspect", "{none}"], ["run", "{text}"]])
def test_bad_input_is_exit_code_2_and_one_sentence(tmp_path, capsys, arguments):
    (tmp_path / "text").write_text("hello")
    places = {"none": tmp_path / "none.pt", "text": tmp_path / "text", "folder": tmp_path}
    assert cli.main([argument.format(**places) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("seqexport: ")
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err


def test_debug_shows_the_traceback(tmp_path):
    done = seqexport(tmp_path / "none.pt", "--debug")
    assert "Traceback" in done.stderr


def test_inspect_tells_of_checkpoints_and_onnx_files(exported, capsys):
    assert cli.main(["inspect", str(exported["lstm"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exports as"].startswith("forecast: LSTM 1→16, 2 layers")
    assert found["weights"]["rnn.weight_ih_l0"]["shape"] == [64, 1]
    assert found["state_map"] == {"h0": "hn", "c0": "cn"}
    assert found["parameters"] == 4 * 16 * (1 + 16 + 2) + 4 * 16 * (16 + 16 + 2) + 2 * 16 + 2
    assert cli.main(["inspect", str(exported["lstm"].with_suffix(".forecast.onnx")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operators"]["LSTM"] == 4
    assert found["operators"]["Scan"] == 1
    assert found["inputs"]["h0"] == "float32[2,batch,16], optional"
    assert cli.main(["inspect", str(exported["lstm"].with_suffix(".onnx"))]) == 0
    assert "float32[batch,time,1]" in capsys.readouterr().out


def test_inspect_tells_of_what_can_not_be_exported(tmp_path, capsys):
    net = nn.GRU(3, 8)
    nn.init.constant_(net.bias_hh_l0[:5], float("nan"))
    torch.save({"net": {**net.state_dict(prefix="a."), "steps": torch.tensor(3)}, "epoch": 1}, tmp_path / "x.pt")
    assert cli.main(["inspect", str(tmp_path / "x.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exports as"].startswith("nothing, as it is: ") and "5 values that are NaN" in found["exports as"]
    assert found["weights"]["a.bias_hh_l0"]["nan"] == 5
    assert found["weights"]["a.weight_ih_l0"] | {"min": 0, "max": 0} == {
        "dtype": "float32", "shape": [24, 3], "min": 0, "max": 0, "nan": 0, "infinite": 0
    }  # fmt: skip
    weight = net.weight_ih_l0.detach()
    assert found["weights"]["a.weight_ih_l0"]["max"] == pytest.approx(weight.max().item())
    assert found["parameters"] == sum(parameter.numel() for parameter in net.parameters()) + 1
    assert cli.main(["inspect", str(tmp_path / "x.pt")]) == 0
    shown = capsys.readouterr().out
    assert "bias_hh_l0  float32[24], " in shown and "5 NaN" in shown
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pt")
    assert cli.main(["inspect", str(tmp_path / "linear.pt")]) == 0
    assert "holds no recurrent net" in capsys.readouterr().out


def test_inspect_opens_no_other_file_than_the_one_asked_for(exported, tmp_path, capsys):
    model = onnx.load(exported["gru"].with_suffix(".onnx"))
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10**6))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1000:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "in").mkdir()
    onnx.save_model(model, tmp_path / "in" / "net.onnx")
    secret.unlink()
    assert cli.main(["inspect", str(tmp_path / "in" / "net.onnx")]) == 0
    assert "GRU" in capsys.readouterr().out


def test_inspect_shows_the_beginning_of_a_vocabulary_and_no_control_characters(tmp_path, capsys):
    path = save_generator(
        tmp_path / "net.pt",
        edit=lambda p: p["vocabulary"].update(tokens=["<unknown>", "\n", "\x1b", *"abcdefghijklmnopqrstuvwxyz0"]),
    )
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "<unknown>, '\\n', '\\x1b', a, b" in shown
    assert "… (30 in all; --json has them)" in shown
    assert "\x1b" not in shown


def test_a_damaged_onnx_file_is_shown_or_refused_with_a_sentence(exported, tmp_path):
    content = exported["gru"].with_suffix(".onnx").read_bytes()
    path, refused = tmp_path / "damaged.onnx", 0
    places = [*range(0, 1500, 9), *range(len(content) - 500, len(content), 7)]  # metadata and names; not the weights
    for place in places:
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            inspect(path)
        except FileError as error:
            refused += 1
            assert "ONNX" in str(error)
    assert 0 < refused < len(places)


def test_run_takes_json_files_and_made_arrays(exported, tmp_path, capsys):
    history = np.random.default_rng(0).random((1, 12)) * 50
    np.save(tmp_path / "history.npy", history)
    np.savetxt(tmp_path / "history.csv", history, delimiter=",")
    results = []
    for value in (json.dumps(history.tolist()), tmp_path / "history.npy", tmp_path / "history.csv"):
        file = exported["gru"].with_suffix(".forecast.onnx")
        assert cli.main(["run", str(file), f"history={value}", "noise=zeros[1,1,6]", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["path"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-5)
    torch_too = ["run", str(exported["gru"]), "--pipeline", "forecast", f"history={tmp_path / 'history.npy'}"]
    assert cli.main([*torch_too, "noise=zeros[1,1,6]", "-o", str(tmp_path / "out.npz")]) == 0
    assert "path float32[1, 1, 6]" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["path"], results[0], rtol=1e-5)


def test_run_takes_text_and_gives_text(exported_texts, capsys):
    path = exported_texts["generate"]
    options = ["text=hello A", "uniforms=uniform[1,30]", "temperature=0.7", "--seed", "3"]
    texts = []
    for arguments in (["run", str(path.with_suffix(".generate.onnx"))], ["run", str(path), "--pipeline", "generate"]):
        assert cli.main([*arguments, *options]) == 0
        said = capsys.readouterr()
        assert "does not know 'A'" in said.err
        texts.append(said.out.splitlines()[-1])
    assert texts[0] == texts[1]
    assert len(texts[0].removeprefix("text: ")) == 30
    file = exported_texts["classify"].with_suffix(".classify.onnx")
    assert cli.main(["run", str(file), "text=well, well", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    label = ["no", "yes", "both"][int(np.argmax(answer["probabilities"][0]))]
    assert answer["text"][0].startswith(f"{label} (")


@pytest.mark.parametrize(
    ("task", "text", "sentence"),
    [
        ("generate", "", "prompt is empty"),
        ("generate", "\u4f60", "knows none of the prompt's characters"),
        ("classify", "a\ud800", "lone surrogate"),
        ("forecast", "a text", "reads no text"),
    ],
)
def test_run_refuses_text_that_says_nothing(exported, exported_texts, capsys, task, text, sentence):
    path = exported["gru"] if task == "forecast" else exported_texts[task]
    assert cli.main(["run", str(path.with_suffix(f".{task}.onnx")), f"text={text}"]) == 2
    assert sentence in capsys.readouterr().err


def test_the_verdict_tells_of_tokens_and_ties(exported_texts, capsys):
    path = exported_texts["generate"]
    assert cli.main(["verify", str(path), str(path.with_suffix(".generate.onnx"))]) == 0
    assert "20 of 20 cases agree with torch, 320 tokens the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["history=[[1,2]]"], "'noise' is missing"),
        (["history"], "no name"),
        (["history=[[1,2", "noise=zeros[1,1,2]"], "could not be read"),
        (["history=none.npy", "noise=zeros[1,1,2]"], "none.npy could not be read"),
        (["history={folder}/empty.npy", "noise=zeros[1,1,2]"], "could not be read"),
        (["history=[[1,2]]", "noise=zeros[1,1,0]"], "nothing along 'horizon'"),
        (["history=[[1,2]]", "noise=zeros[1,1,2]", "-o", "{folder}/none/out.npz"], "does not exist"),
        (["history=[[1,NaN]]", "noise=zeros[1,1,2]"], "NaN"),
        (["history=[[1,2]]", "noise=normal[1,100000,100000]"], "at most"),
    ],
)
def test_run_refuses_bad_values(exported, tmp_path, capsys, values, sentence):
    (tmp_path / "empty.npy").touch()
    values = [value.replace("{folder}", str(tmp_path)) for value in values]
    assert cli.main(["run", str(exported["gru"].with_suffix(".forecast.onnx")), *values]) == 2
    assert sentence in capsys.readouterr().err


def test_a_defect_of_ours_is_a_sentence_and_not_a_failed_verification(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise KeyError("surprise")

    monkeypatch.setattr(exporter, "read_checkpoint", broken)
    path = save_forecaster(tmp_path / "net.pt")
    assert cli.main([str(path)]) == 2
    assert "unexpected KeyError" in capsys.readouterr().err
    with pytest.raises(KeyError):
        cli.main([str(path), "--debug"])


def test_verify_has_the_exit_codes_of_export(exported, capsys, tmp_path):
    path = exported["rnn"]
    assert cli.main(["verify", str(path), str(path.with_suffix(".onnx"))]) == 0
    assert "20 of 20 cases agree" in capsys.readouterr().out
    model = onnx.load(path.with_suffix(".onnx"))
    next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 200).raw_data = bytes(16 * 16 * 4)
    onnx.save(model, tmp_path / "broken.onnx")
    assert cli.main(["verify", str(path), str(tmp_path / "broken.onnx")]) == 1
    assert "NOT verified" in capsys.readouterr().out


def test_help_says_what_there_is_and_needs_no_torch():
    show = "print({'torch', 'onnxruntime'} & set(sys.modules))"
    code = f"import sys; from seqexport import cli; cli.main(['--help']); {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    for command in ("", "verify", "inspect", "run", "deploy", "score", "doctor"):
        done = seqexport(*([command] if command else []), "--help")
        assert done.returncode == 0
        assert "example" in done.stdout
    assert seqexport().returncode == 2
