"""The model folder in a real Triton, which keeps the state and joins the requests; only its onnxruntime backend, which
no package has, is replaced by a small one (tests/triton_backend)."""

import os
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client

import seqexport
from seqexport.triton import write_triton

SHIPPED = Path(__file__).parents[1] / "exported"
BACKEND = Path(__file__).parent / "triton_backend"
pytestmark = pytest.mark.triton


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with four models, and what it wrote."""
    assert "SEQEXPORT_TRITON" in os.environ, "unpack nvidia-pytriton 0.7.0, and name the folder in SEQEXPORT_TRITON"
    package, folder = Path(os.environ["SEQEXPORT_TRITON"]), tmp_path_factory.mktemp("triton")
    for file in ("characters-en/checkpoint", "characters-en/checkpoint.generate.int8"):
        write_triton(SHIPPED / f"{file}.onnx", folder / "models", max_batch=8)
    write_triton(SHIPPED / "electricity-gru/checkpoint.forecast.onnx", folder / "models")
    write_triton(SHIPPED / "sentiment-zh/checkpoint.classify.onnx", folder / "models")
    (folder / "backends" / "onnxruntime").mkdir(parents=True)
    about = sysconfig.get_config_vars()
    library = Path(about["LIBDIR"]) / about["INSTSONAME"]
    flags = ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", f'-DLIBPYTHON="{library}"']
    target = folder / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    subprocess.run(["gcc", *flags, BACKEND / "backend.c", "-o", target, library, "-ldl"], check=True)
    binary, libraries, port = (
        package / "pytriton/tritonserver/bin/tritonserver",
        package / "nvidia_pytriton.libs",
        free_port(),
    )
    binary.chmod(0o755)
    (shared,) = libraries.glob("libtritonserver-*.so")
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{libraries}:{about['LIBDIR']}",
        "LIBTRITONSERVER": str(shared),
        "PYTHONPATH": os.pathsep.join([str(BACKEND), *filter(None, sys.path)]),
    }
    options = ("--disable-auto-complete-config", "--allow-metrics=false", "--allow-http=false", f"--grpc-port={port}")
    where = (f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}")
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([binary, *where, *options], stdout=file, stderr=file, env=environment)
    try:
        asked = client.InferenceServerClient(f"127.0.0.1:{port}")
        for _ in range(240):
            if process.poll() is not None or "Started GRPCInferenceService" in log.read_text():
                break
            time.sleep(0.5)
        assert process.poll() is None and asked.is_server_ready(), log.read_text()[-3000:]
        yield asked, log
        asked.close()
    finally:
        process.terminate()
        process.wait(60)


def ask(asked, name, feeds, output, **sequence):
    inputs = []
    for label, array in feeds.items():
        inputs.append(client.InferInput(label, list(array.shape), client.np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return asked.infer(name, inputs, client_timeout=60, **sequence).as_numpy(output)


def test_sequences_at_once_keep_their_states(server):
    asked, log = server
    rng = np.random.default_rng(0)
    texts = [[rng.integers(0, 81, (1, steps)) for steps in (4, 1, 1, 3, 1, 2)] for _ in range(12)]

    def read(who):
        ends = [{"sequence_id": 100 + who, "sequence_start": k == 0, "sequence_end": k == 5} for k in range(6)]
        return [
            ask(asked, "checkpoint", {"tokens": piece}, "y", **end) for piece, end in zip(texts[who], ends, strict=True)
        ]

    with ThreadPoolExecutor(12) as together:
        answers = list(together.map(read, range(12)))
    runtime = seqexport.load(SHIPPED / "characters-en/checkpoint.onnx")
    for pieces, answer in zip(texts, answers, strict=True):
        expected = runtime.run({"tokens": np.concatenate(pieces, 1)})["y"]
        np.testing.assert_allclose(np.concatenate(answer, 1), expected, rtol=0, atol=7e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(read(0)[0], answers[0][0])  # a sequence of the same number begins at zero again
    assert any(f"together {count} " in log.read_text() for count in range(2, 9))
    hidden = runtime.metadata["network"]["hidden_size"]
    assert f"'h0': [1, 2, {hidden}]" in log.read_text()  # how Triton hands a state on: the rows first


def test_a_forecast_with_two_states(server):
    asked, _ = server
    rng, state = np.random.default_rng(0), {}
    runtime = seqexport.load(SHIPPED / "electricity-gru/checkpoint.forecast.onnx")
    for place, steps in enumerate((200, 1, 24)):
        feeds = {
            "history": rng.normal(2500, 500, (1, steps)).astype(np.float32),
            "noise": rng.standard_normal((1, 3, 24)).astype(np.float32),
        }
        expected = runtime.run({**feeds, **state})
        state = {"h0": expected["hn"], "z0": expected["zn"]}
        ends = {"sequence_id": 9, "sequence_start": place == 0, "sequence_end": place == 2}
        np.testing.assert_allclose(
            ask(asked, "checkpoint_forecast", feeds, "path", **ends), expected["path"], rtol=7e-6
        )


def test_text_that_goes_on(server):
    asked, _ = server
    uniforms, prompt, said = np.random.default_rng(0).random((1, 60)).astype(np.float32), np.array([[5, 6, 7]]), []
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.95}
    kinds = {"temperature": np.float32, "top_k": np.int64, "top_p": np.float32}
    runtime = seqexport.load(SHIPPED / "characters-en/checkpoint.generate.int8.onnx")
    whole = runtime.run({"prompt": prompt, "uniforms": uniforms, **options})["tokens"]
    for place in range(0, 60, 20):
        feeds = {"prompt": prompt, "uniforms": uniforms[:, place : place + 20]}
        feeds |= {name: np.array([value], kinds[name]) for name, value in options.items()}
        ends = {"sequence_id": 7, "sequence_start": place == 0, "sequence_end": place == 40}
        said.append(ask(asked, "checkpoint_generate_int8", feeds, "tokens", **ends))
        prompt = said[-1][:, -1:].copy()
    np.testing.assert_array_equal(np.concatenate(said, 1), whole)


def test_requests_without_state_are_joined(server):
    asked, _ = server
    tokens = np.random.default_rng(0).integers(0, 3000, (12, 1, 20))
    feeds = [{"tokens": row, "lengths": np.array([[20 - who]])} for who, row in enumerate(tokens)]
    with ThreadPoolExecutor(12) as together:
        answers = list(together.map(lambda f: ask(asked, "checkpoint_classify", f, "probabilities"), feeds))
    runtime = seqexport.load(SHIPPED / "sentiment-zh/checkpoint.classify.onnx")
    for given, answer in zip(feeds, answers, strict=True):
        expected = runtime.run({"tokens": given["tokens"], "lengths": given["lengths"][0]})["probabilities"]
        np.testing.assert_allclose(answer, expected, atol=7e-6)
