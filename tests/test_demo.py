"""The demo's handlers as plain functions on the shipped models, and its endpoints through a client."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import gradio as gr
import numpy as np
import pytest

import demo
from seqexport.errors import FileError, InputError
from seqexport.timing import Ratio
from tabs import forecast, racing
from tabs.racing import Column

ROOT = Path(demo.__file__).parent
# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
    # Gradio sums up its queue with what pandas has deprecated; as an error it would end the event.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
QUESTION = {
    "source": forecast.SUNSPOTS,
    "start": 1976,
    "text": "",
    "cell": "GRU",
    "horizon": 24,
    "paths": 20,
    "seed": 3,
    "left": "torch",
    "right": "onnxruntime",
}
SINES = [50 + 40 * float(np.sin(i / 20)) for i in range(500)]


@pytest.fixture(scope="module", autouse=True)
def collect_loops() -> Iterator[None]:
    """Collect gradio's event loops while their warnings are still ignored, not in another module's test."""
    yield
    gc.collect()


@pytest.mark.parametrize("text", ["1, 2.5, -3e1", "1 2.5\t-30", "1\n2.5\n-30\n", " 1;2.5 ,, -30 "])
def test_parse_series_separators(text: str) -> None:
    values = forecast.parse_series(text)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [1, 2.5, -30])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has the length 0; expected 2 to 20,000 values"),
        ("7", "has the length 1; expected 2 to 20,000 values"),
        ("1 " * 20_001, "has the length 20,001; expected 2 to 20,000 values"),
        ("1, two, 3", "Value 2 of the series is “two”"),
        ("1, nan", "Value 2 of the series is “nan”"),
        ("inf 1", "Value 1 of the series is “inf”"),
        ("1 2 3e9", "Value 3 of the series is “3e9”; expected a number of at most 1,000,000,000"),
    ],
)
def test_parse_series_refuses(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        forecast.parse_series(text)
    assert sentence in str(error.value)


def test_parse_series_takes_the_most() -> None:
    assert len(forecast.parse_series("1 " * forecast.MAX_VALUES)) == forecast.MAX_VALUES


@pytest.mark.parametrize("value", [0, 601, -1, 1.5, float("nan"), float("inf"), None, "12", True, [3]])
def test_whole_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"^The horizon is .*; expected a whole number from 1 to 600\.$"):
        racing.whole("horizon", value, 1, 600)


def test_noise_is_repeatable_and_first_path_central() -> None:
    noise = forecast.draw_noise(50, 40, seed=1)
    assert noise.shape == (1, 51, 40)
    assert noise.dtype == np.float32
    assert not noise[:, 0].any()
    assert abs(noise[:, 1:].std() - 1) < 0.05
    np.testing.assert_array_equal(noise, forecast.draw_noise(50, 40, seed=1))
    assert (noise[:, 1:] != forecast.draw_noise(50, 40, seed=2)[:, 1:]).any()


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


def column(runtime: str, paths: np.ndarray, milliseconds: float) -> Column:
    return Column(runtime, {"path": paths[None]}, milliseconds, "")


@pytest.mark.parametrize(("offset", "same"), [(0.0, True), (0.009, True), (0.02, False), (float("nan"), False)])
def test_no_speed_where_answers_differ(offset: float, same: bool) -> None:
    paths = np.full((3, 4), 100, np.float32)
    numbers = forecast.compare(column("torch", paths, 6.0), column("onnxruntime", paths + offset, 2.0))
    assert numbers["same"] is same
    assert numbers["speed_up"] == (3.0 if same else None)
    text = forecast.say(numbers)
    assert ("3.0 times as fast" in text) is same
    assert "milliseconds" in numbers["left"] or not same
    assert ("no speed is shown" in text) is not same


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        (6.0, 2.0, "ONNX Runtime is 3.0 times as fast as torch."),
        (2.0, 6.0, "ONNX Runtime takes 3.0 times as long as torch."),
    ],
)
def test_sentence_of_the_result(left: float, right: float, sentence: str) -> None:
    paths = np.ones((3, 4), np.float32)
    numbers = forecast.compare(column("torch", paths, left), column("onnxruntime", paths, right))
    assert sentence in forecast.say(numbers)


def test_import_does_no_work() -> None:
    code = "import sys, demo; assert not {'torch', 'onnxruntime', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_missing_models_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "EXPORTED", tmp_path)
    for cached in (forecast.sunspots, racing._load_runtime):
        cached.cache_clear()
    with pytest.raises(FileError, match=r"run python -m training\.publish\.$"):
        forecast.sunspots()
    with pytest.raises(gr.Error, match=r"run python -m training\.publish\."):
        forecast.forecast(**QUESTION)
    assert any(
        "python -m training.publish" in str(block.value)
        for block in demo.build().blocks.values()
        if hasattr(block, "value")
    )


@pytest.mark.parametrize("cell", forecast.CELLS)
def test_forecast_gives_the_same_in_both_columns(cell: str) -> None:
    lead, left, left_plot, right, right_plot, numbers = forecast.forecast(**QUESTION | {"cell": cell})
    assert numbers["same"]
    assert numbers["difference"] <= 1e-5
    assert numbers["speed_up"] > 0
    assert "times as" in lead
    assert "oneDNN on" in left
    assert "ms" in right
    assert len(numbers["left"]["central"]) == 24
    assert numbers["score"]["known"] == 24
    for plot in (left_plot, right_plot):
        (axes,) = plot.axes
        labels = [text.get_text() for text in plot.legends[0].get_texts()]
        assert labels == ["observed", "central path", "90 % of paths", "50 % of paths", "last 132 months again"]
        assert axes.get_ylabel() == "sunspot number"
    assert left_plot.axes[0].get_ylim() == right_plot.axes[0].get_ylim()


def test_truth_follows_the_history() -> None:
    months, values = forecast.sunspots()
    series = forecast.cut_sunspots(1990, 24, 360)
    start = months.index("1990-01")
    np.testing.assert_array_equal(series.history, values[start - 360 : start])
    np.testing.assert_array_equal(series.truth, values[start : start + 24])
    assert series.times(360, 361)[0] == pytest.approx(1990)
    assert len(forecast.cut_sunspots(forecast.start_years()[1], 600, 360).truth) < 600


def test_start_years_lie_in_the_last_fifth() -> None:
    months, _ = forecast.sunspots()
    first, last = forecast.start_years()
    assert first <= forecast.OPENING_YEAR <= last
    assert months.index(f"{first}-01") >= 0.8 * len(months) > months.index(f"{first - 1}-01")


def test_pasted_values_have_no_truth() -> None:
    text = ", ".join(f"{value:.1f}" for value in SINES)
    lead, *_, numbers = forecast.forecast(**QUESTION | {"source": forecast.PASTED, "text": text})
    assert "score" not in numbers
    assert "known since" not in lead
    assert numbers["same"]


@pytest.mark.parametrize("text", ["1 2", "0 0 0 0", "-5 -1000000000 1000000000", "7 " * forecast.MAX_VALUES])
def test_unusual_series_are_answered(text: str) -> None:
    assert forecast.forecast(**QUESTION | {"source": forecast.PASTED, "text": text})[-1]["same"]


def test_largest_question_is_answered() -> None:
    numbers = forecast.forecast(**QUESTION | {"horizon": forecast.MAX_HORIZON, "paths": forecast.MAX_PATHS})[-1]
    assert len(numbers["right"]["central"]) == forecast.MAX_HORIZON


def test_same_runtime_twice_is_no_race() -> None:
    lead, *_, numbers = forecast.forecast(**QUESTION | {"right": "torch"})
    assert numbers["speed_up"] is None
    assert numbers["difference"] == 0
    assert "Both columns run torch" in lead


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"horizon": 0}, "The horizon is 0; expected a whole number from 1 to 600."),
        ({"horizon": 100_000}, "The horizon is 100000; expected a whole number from 1 to 600."),
        ({"paths": 1_000_000}, "The number of paths is 1000000; expected a whole number from 1 to 200."),
        ({"seed": None}, "The seed is None; expected a whole number from 0 to"),
        ({"seed": -1}, "The seed is -1; expected a whole number from 0 to"),
        ({"start": 1700}, "The year of the start is 1700; expected a whole number from 1,958 to 2,009."),
        ({"cell": "GRU2"}, "The cell is 'GRU2'; expected RNN, LSTM, GRU."),
        ({"left": "../x"}, "The left runtime is '../x'; expected torch, "),
        ({"source": "Moon"}, "The series is 'Moon'; expected Sunspots, Your own values."),
        ({"source": forecast.PASTED, "text": "1 x"}, "Value 2 of the series is “x”"),
        ({"source": forecast.PASTED, "text": None}, "The series has the length 0"),
    ],
)
def test_bad_questions_get_a_sentence(change: dict, sentence: str) -> None:
    with pytest.raises(gr.Error) as error:
        forecast.forecast(**QUESTION | change)
    assert error.value.message.startswith(sentence)


@pytest.mark.parametrize("runtime", racing.present("forecast"))
def test_forecast_values(runtime: str) -> None:
    answer = forecast.forecast_values(SINES, "lstm", horizon=30, paths=40, seed=5, runtime=runtime)
    bands = answer["bands"]
    assert len(answer["central"]) == 30
    assert list(bands) == ["q05", "q25", "q75", "q95"]
    assert all(low <= high for low, high in zip(bands["q05"], bands["q95"], strict=True))
    assert answer["milliseconds"] > 0


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
        lead, _, plot, *_, numbers = client.predict(**QUESTION, api_name="/forecast")
        assert "times as" in lead
        assert plot["plot"].startswith("data:image/png;base64,")
        assert numbers["same"]
        with pytest.raises(Exception, match="The horizon is 100000; expected a whole number from 1 to 600"):
            client.predict(**QUESTION | {"horizon": 100_000}, api_name="/forecast")
        texts = (["A fine film.", "dull"], "English")
        one, two = (client.predict(*texts, name, api_name="/sentiment_values") for name in ("torch", "onnxruntime"))
        assert one["labels"] == two["labels"]
        np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-5)
        with pytest.raises(Exception, match="There are 0 texts; expected 1 to 32"):
            client.predict([], "English", "torch", api_name="/sentiment_values")
        asked = ("ROMEO\n", "Shakespeare (English)", 50, 0.8, 0, 1.0, 1)
        one, two = (client.predict(*asked, name, api_name="/characters_values") for name in ("torch", "onnxruntime"))
        assert one["text"] == two["text"]
        assert len(one["text"]) == 50
        with pytest.raises(Exception, match="The prompt is empty"):
            client.predict("", *asked[1:], "torch", api_name="/characters_values")
    finally:
        page.close()
        client.close()
