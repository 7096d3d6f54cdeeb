"""The demo's handlers as plain functions on the shipped models, and its endpoints through a client."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import gradio as gr
import numpy as np
import pytest

import demo
from seqexport.errors import FileError, InputError
from seqexport.timing import Ratio
from tabs import forecast, racing, series

ROOT = Path(demo.__file__).parent
# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
    # Gradio sums up its queue with what pandas has deprecated; as an error it would end the event.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
SINES = [50 + 40 * float(np.sin(i / 20)) for i in range(500)]


@pytest.mark.parametrize("value", [0, 601, -1, 1.5, float("nan"), float("inf"), None, "12", True, [3]])
def test_whole_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^The horizon is .*; expected a whole number from 1 to 600\.$"):
        racing.whole("horizon", value, 1, 600)


class Recorder:
    """A runtime that keeps what it is fed."""

    metadata: ClassVar = {"checkpoint_sha256": "0"}

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.fed: list[np.ndarray] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.fed.append(feeds["noise"])
        return {"path": feeds["noise"] + 100 + self.offset}


def test_a_measurement_feeds_all_the_same_and_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    entrants = {("torch", True): Recorder(), ("torch", False): Recorder(0.001), ("onnxruntime", None): Recorder()}
    monkeypatch.setattr(racing, "load_runtime", lambda _, __, name, onednn: entrants[name, onednn])
    noise = forecast.draw_noise(5, 10, seed=0)
    found = racing.measure("any", "forecast", ["torch", "onnxruntime"], {"noise": noise}, seconds=0.2)
    assert all(fed is noise for entrant in entrants.values() for fed in entrant.fed)
    for name, column in found.columns.items():
        taken = [len(entrant.fed) for (which, _), entrant in entrants.items() if which == name]
        assert 1 <= column.calls < min(taken)
        assert column.outputs["path"].shape == (1, 6, 10)
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert found.columns["torch"].note.startswith("the faster of oneDNN on (")


def test_a_column_against_itself_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "load_runtime", lambda *_: Recorder())
    feeds = {"noise": forecast.draw_noise(5, 10, seed=0)}
    assert racing.measure("any", "forecast", ["onnxruntime"] * 2, feeds, seconds=0.01).ratio is None


def test_laps_are_counted_while_they_are_run() -> None:
    recorder = Recorder()
    told = list(racing.laps(recorder, {"noise": np.zeros((1, 2, 2), np.float32)}, seconds=0.3))
    assert told[-1][0] == len(recorder.fed) - 1  # one to warm up
    assert 2 <= len(told) <= 0.3 / racing.PERIOD + 2
    assert told[-1][1] >= 0.3


def test_an_interval_is_told_the_way_the_factor_is() -> None:
    assert racing.interval_sentence(None) == racing.interval_sentence(Ratio(2.0, None, None)) == ""
    assert "between 1.50 and 2.50" in racing.interval_sentence(Ratio(2.0, 1.5, 2.5))
    assert "between 2.00 and 4.00" in racing.interval_sentence(Ratio(0.3, 0.25, 0.5))
    assert "takes 2.0 times as long" in racing.race_sentence("torch", "onnxruntime", Ratio(0.5, 0.4, 0.6))


@pytest.mark.parametrize("pipeline", ["forecast", "generate"])
@pytest.mark.parametrize("name", list(racing.RUNTIMES))
def test_every_runtime_gives_torchs_answer(name: str, pipeline: str) -> None:
    if name not in racing.present(pipeline):
        pytest.skip(f"{name} is not installed here")
    model, feeds = {
        "forecast": ("sunspots-gru", {"history": np.ones((1, 30), np.float32), "noise": forecast.draw_noise(2, 5, 1)}),
        "generate": ("characters-en", {"prompt": np.array([[3, 4]]), "uniforms": np.full((1, 4), 0.4, np.float32)}),
    }[pipeline]
    expected = racing.load_runtime(model, pipeline, "torch", False).run(feeds)
    found = racing.load_runtime(model, pipeline, name, racing.RUNTIMES[name].onednn[0]).run(feeds)
    if racing.exact([name]):
        first = next(iter(expected))
        np.testing.assert_allclose(found[first], expected[first], rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()


def test_import_does_no_work() -> None:
    code = "import subprocess, sys; made = []; subprocess.Popen.__init__ = lambda *given, **named: made.append(given); "
    code += "import demo; assert not made, made; "  # nothing was started
    code += "assert not {'torch', 'onnxruntime', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_missing_models_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "EXPORTED", tmp_path)
    for cached in (series.shipped, series.starts, racing._load_runtime):
        cached.cache_clear()
    with pytest.raises(FileError, match=r"run python -m training\.publish\.$"):
        series.shipped("sunspots")
    with pytest.raises(gr.Error, match=r"run python -m training\.publish\."):
        forecast.forecast_values(SINES, "gru")
    assert any(
        "python -m training.publish" in str(block.value)
        for block in demo.build().blocks.values()
        if hasattr(block, "value")
    )


def test_through_a_client() -> None:
    client_module = pytest.importorskip("gradio_client")
    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    try:
        client = client_module.Client(url, verbose=False)
        answer = client.predict(SINES, "GRU", 12, 10, 0, "torch", api_name="/forecast_values")
        assert len(answer["central"]) == 12
        other = client.predict(SINES, "GRU", 12, 10, 0, "onnxruntime", api_name="/forecast_values")
        np.testing.assert_allclose(answer["central"], other["central"], atol=1e-2)
        for bad, sentence in (
            ([SINES, "GRU", 0], "The horizon is 0"),
            ([[1.0, None], "GRU", 5], "Value 2 of the series"),
        ):
            with pytest.raises(Exception, match=sentence):
                client.predict(*bad, 10, 0, "torch", api_name="/forecast_values")
        assert (
            len(client.predict(SINES, "gru", horizon=3, series="uk-demand", api_name="/forecast_values")["central"])
            == 3
        )
        question = {"source": "electricity", "start": 24, "text": "", "column": None}
        lead, _, plot, *_, numbers = client.predict(**question, horizon=24, api_name="/forecast")
        assert "times as" in lead
        assert "<svg" in plot
        assert numbers["same"]
        assert numbers["start"] == "20 Jun 2014, 00:00"
        with pytest.raises(Exception, match="The horizon is 100000; expected a whole number from 1 to 600"):
            client.predict(**question, horizon=100_000, api_name="/forecast")
        described = client.view_api(return_format="dict")["named_endpoints"]
        assert {"/forecast", "/forecast_values"} <= set(described)
        assert not {"/measured", "/take_file", "/stream", "/begin", "/choose"} & set(described)
        assert "2 to 20,000" in described["/forecast_values"]["description"]
        texts = (["A fine film.", "dull"], "English")
        one, two = (client.predict(*texts, name, api_name="/sentiment_values") for name in ("torch", "onnxruntime"))
        assert one["labels"] == two["labels"]
        np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-5)
        with pytest.raises(Exception, match="There are 0 texts; expected 1 to 32"):
            client.predict([], "English", "torch", api_name="/sentiment_values")
        listed = client.predict(["还不错。", ""], "中文", "GRU", api_name="/sentiment_list")
        assert listed["labels"][1] is None
        one = client.predict(["还不错。"], "中文", "onnxruntime", "GRU", api_name="/sentiment_values")
        np.testing.assert_allclose(listed["probabilities"][0], one["probabilities"][0], atol=1e-5)
        with pytest.raises(Exception, match="There are 10,001 texts; expected 1 to 10,000"):
            client.predict(["x"] * 10_001, "English", "LSTM", api_name="/sentiment_list")
        described = client.view_api(return_format="dict")["named_endpoints"]
        assert {"/sentiment", "/sentiment_values", "/sentiment_list"} <= set(described)
        taken = {
            one["parameter_name"]: one["python_type"]["type"] for one in described["/sentiment_list"]["parameters"]
        }
        assert list(taken) == ["texts", "language", "cell"]
        assert taken["texts"] == "list[str]"
        asked = ("ROMEO\n", "Shakespeare (English)", 50, 0.8, 0, 1.0, 1)
        one, two = (client.predict(*asked, name, api_name="/characters_values") for name in ("torch", "onnxruntime"))
        assert one["text"] == two["text"]
        assert len(one["text"]) == 50
        with pytest.raises(Exception, match="The prompt is empty"):
            client.predict("", *asked[1:], "torch", api_name="/characters_values")
    finally:
        page.close()
        client.close()
