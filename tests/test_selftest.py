import math
import os
import sys

import numpy as np
import pytest
import torch

from seqexport import selftest
from seqexport.selftest import Probe, probe, probe_compiler


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(name, code) puts a package before the real one, for this process's children too."""

    def make(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    return make


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("raise ImportError('broken\\non purpose')", "raised ImportError: broken"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("import os, sys; print('why', file=sys.stderr, flush=True); os._exit(7)", "ended with exit code 7 (why)"),
    ],
)
def test_a_package_that_cannot_be_imported_is_told_and_not_a_crash(fake, code, failure):
    fake("onnxscript", code)
    found = probe("onnxscript")
    assert (found.imported, found.failure) == (False, failure)
    assert found.about["file"].endswith("onnxscript.py")


def test_a_package_that_hangs_is_not_waited_for(fake):
    fake("onnxscript", "import time; time.sleep(60)")
    found = probe("onnxscript", seconds=0.5)
    assert (found.imported, found.failure) == (False, "gave no answer within 0.5 s")


def test_a_package_that_dies_later_was_imported(fake):
    fake("onnxruntime", "import os\n__version__ = '9.9'\nprint('chatter')\ndef __getattr__(name): os.abort()")
    found = probe("onnxruntime")
    assert (found.imported, found.output, found.failure) == (True, (), "was ended by SIGABRT")
    assert found.about["version"] == "9.9"


def test_the_node_of_the_selftest_is_torchs_lstm():
    """The child's LSTM, from torch.nn itself and not from what the child says of torch."""
    values = {name: torch.from_numpy(array) for name, array in selftest._values().items()}
    lstm = torch.nn.LSTM(selftest.FEATURES, selftest.HIDDEN)
    lstm.load_state_dict({name: values[name] for name in lstm.state_dict()})
    with torch.no_grad():
        y, (h, c) = lstm(values["x"], (values["h0"], values["c0"]))
    expected = np.concatenate([part.numpy().ravel() for part in (y, h, c)])
    for package in ("onnx", "onnxruntime"):
        found = probe(package)
        assert found.failure == ""
        np.testing.assert_allclose(found.output, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0.5  # numbers that a swapped gate would change


def test_a_difference_is_relative_to_the_largest_and_no_number_is_infinitely_far():
    reference = Probe(output=(4.0, 0.0))
    assert Probe(output=(4.0, 0.02)).difference(reference) == pytest.approx(0.005)
    assert Probe(output=(math.nan, 0.0)).difference(reference) == math.inf
    assert Probe().difference(reference) is None
    assert reference.difference(Probe()) is None


def test_the_compiler_is_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert probe_compiler().failure == "needs a C++ compiler, and there is no no-such-compiler"
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'a.cpp:1: fatal error: Python.h: No such file' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    assert probe_compiler() == Probe(
        True, {"version": os.environ["CXX"]}, (), f"needs {tmp_path}/c++, which failed (Python.h: No such file)"
    )
    (tmp_path / "c++").write_text("#!/bin/sh\nexit 0\n")
    assert probe_compiler().failure == ""
