"""The Forecast tab's handlers as plain functions on the shipped models."""

import html
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from seqexport.errors import InputError
from tabs import contest, forecast, racing, series
from tabs.languages import ENGLISH, Words
from tabs.racing import Column, Measurement
from tabs.series import SHIPPED

# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("demand"),
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
]
QUESTION = {
    "source": "sunspots",
    "start": 224,
    "text": "",
    "table": None,
    "column": None,
    "net": "sunspots",
    "cell": "GRU",
    "horizon": 24,
    "paths": 20,
    "seed": 3,
    "left": "torch",
    "right": "onnxruntime",
}
SINES = [50 + 40 * float(np.sin(i / 20)) for i in range(500)]
CHINESE = gr.Request(headers={"accept-language": "zh-CN"})


def asked(**change: object) -> forecast.Question:
    values = {name: value for name, value in (QUESTION | change).items() if name not in ("left", "right")}
    return forecast.ask(ENGLISH, *values.values())


def test_noise_is_repeatable_and_first_path_central() -> None:
    noise = forecast.draw_noise(50, 40, seed=1)
    assert noise.shape == (1, 51, 40)
    assert noise.dtype == np.float32
    assert not noise[:, 0].any()
    assert abs(noise[:, 1:].std() - 1) < 0.05
    np.testing.assert_array_equal(noise, forecast.draw_noise(50, 40, seed=1))
    assert (noise[:, 1:] != forecast.draw_noise(50, 40, seed=2)[:, 1:]).any()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_net_reads_its_own_series_and_only_its_context(name: str) -> None:
    for cell in forecast.CELLS:
        question = asked(source=name, start=series.opening(name), cell=cell, net="sunspots")
        assert question.model == f"{name}-{cell.lower()}"
        assert question.feeds["history"].shape == (1, question.context)
        np.testing.assert_array_equal(question.feeds["history"][0], question.series.history[-question.context :])
        assert len(question.series.history) >= 2 * question.season
        assert len(question.series.truth) == 24


@pytest.mark.parametrize(("name", "cell"), [("sunspots", "RNN"), ("electricity", "GRU"), ("uk-demand", "LSTM")])
def test_both_columns_show_the_same_forecast(name: str, cell: str) -> None:
    question = QUESTION | {"source": name, "cell": cell, "start": series.opening(name)}
    lead, left, left_plot, right, right_plot, numbers = forecast.forecast(**question)
    assert numbers["same"]
    assert numbers["difference"] <= 1e-5
    assert numbers["speed_up"] > 0
    assert "times as" in lead
    assert f"Both roll {series.label_of(name)} on from {numbers['start']} for 24" in lead
    assert "oneDNN on" in left
    assert "ms" in right
    assert len(numbers["left"]["central"]) == 24
    assert numbers["score"]["known"] == 24
    assert 0 < numbers["score"]["central"] < numbers["score"]["naive"] * 3
    for plot, runtime in ((left_plot, "torch"), (right_plot, "ONNX Runtime")):
        assert f'aria-label="Line chart, {runtime}: what was observed, then 24' in plot
        assert plot.count("<polyline") == 3
    assert (
        left_plot.split('class="beside"')[1].split("<svg")[0] == right_plot.split('class="beside"')[1].split("<svg")[0]
    )


def test_in_chinese() -> None:
    lead, left, plot, *_ = forecast.forecast(**QUESTION, request=CHINESE)
    assert "太阳黑子" in lead
    assert "Both" not in lead
    assert "观测值" in plot
    assert 'aria-label="折线图' in plot
    assert "轮流" in left


def test_own_numbers_have_no_truth() -> None:
    text = ", ".join(f"{value:.1f}" for value in SINES)
    lead, *_, numbers = forecast.forecast(**QUESTION | {"source": "pasted", "text": text, "net": "electricity"})
    assert "score" not in numbers
    assert "known since" not in lead
    assert "Both roll your 500 values on for 24 values; the net knows electricity use only" in lead
    assert numbers["same"]
    assert numbers["net"] == "electricity"
    assert numbers["start"] is None


def test_an_uploaded_file_is_read_and_rolled_on(tmp_path: Path) -> None:
    path = tmp_path / "<b>.csv"
    days = np.datetime64("2024-01-01") + np.arange(60)
    rows = "".join(f"{day},{'' if number == 7 else 20 + number % 7}\n" for number, day in enumerate(days))
    path.write_text(f"day,<i>\n{rows}")
    table, choice, preview = forecast.take_file(str(path))
    assert not path.exists()
    assert choice["value"] == "<i>"
    assert "&lt;i&gt;" in preview
    question = QUESTION | {"source": "file", "table": table, "column": "<i>", "net": "uk-demand"}
    lead, _, plot, *_, numbers = forecast.forecast(**question)
    assert numbers["same"]
    assert "Gaps filled along straight lines: 1." in lead
    assert "for 24 days" in lead
    assert "&lt;i&gt;" in plot
    assert "<i>" not in plot
    assert "Mar" in plot
    with pytest.raises(gr.Error, match="There is no file; upload a CSV"):
        forecast.take_file(None)


@pytest.mark.parametrize("net", SHIPPED)
@pytest.mark.parametrize("text", ["1 2", "0 0 0 0", "-5 -1000000000 1000000000", "7 " * series.MAX_VALUES])
def test_unusual_series_are_answered(text: str, net: str) -> None:
    answer = forecast.forecast(**QUESTION | {"source": "pasted", "text": text, "net": net})
    assert answer[-1]["same"]
    assert "nan" not in answer[2]


@pytest.mark.slow
def test_largest_question_is_answered() -> None:
    numbers = forecast.forecast(**QUESTION | {"horizon": series.MAX_HORIZON, "paths": forecast.MAX_PATHS})[-1]
    assert len(numbers["right"]["central"]) == series.MAX_HORIZON


def test_same_runtime_twice_is_no_race() -> None:
    lead, *_, numbers = forecast.forecast(**QUESTION | {"right": "torch"})
    assert numbers["speed_up"] is None
    assert numbers["difference"] == 0
    assert "Both columns run torch" in lead


def test_int8_is_another_net_and_its_speed_is_shown() -> None:
    question = QUESTION | {"right": "onnxruntime-int8", "source": "electricity", "start": series.opening("electricity")}
    lead, left, *_, numbers = forecast.forecast(**question)
    assert not numbers["same"]
    assert numbers["difference"] > racing.TOLERANCE
    assert numbers["speed_up"] > 0
    assert "an int8 net is another net, rounded" in lead
    assert " ms" in left


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"horizon": 0}, "The horizon is 0; expected a whole number from 1 to 600."),
        ({"horizon": 100_000}, "The horizon is 100000; expected a whole number from 1 to 600."),
        ({"paths": 1_000_000}, "The number of paths is 1000000; expected a whole number from 1 to 200."),
        ({"seed": None}, "The seed is None; expected a whole number from 0 to"),
        ({"seed": -1}, "The seed is -1; expected a whole number from 0 to"),
        ({"start": 626}, "The start is 626; expected a whole number from 0 to 625."),
        ({"start": 219, "source": "electricity"}, "The start is 219; expected a whole number from 0 to 218."),
        ({"start": -1}, "The start is -1"),
        ({"cell": "GRU2"}, "The cell is 'GRU2'; expected RNN, LSTM, GRU."),
        ({"left": "../x"}, "The left runtime is '../x'; expected torch, "),
        (
            {"source": "../sunspots"},
            "The series is '../sunspots'; expected sunspots, electricity, uk-demand, pasted, file",
        ),
        ({"source": "pasted", "net": "../x"}, "The net is '../x'; expected sunspots, electricity, uk-demand."),
        ({"source": ["sunspots"]}, "The series is ['sunspots']"),
        ({"source": "pasted", "text": "1 x"}, "Value 2 of the series is “x”"),
        ({"source": "pasted", "text": None}, "The series has the length 0"),
        ({"source": "file"}, "There is no file yet; upload a CSV"),
    ],
)
def test_bad_questions_get_a_sentence(change: dict, sentence: str) -> None:
    for handler in (forecast.forecast, forecast.measured):
        with pytest.raises(gr.Error) as error:
            handler(**QUESTION | change)
        assert error.value.message.startswith(sentence)


def given(runtime: str, paths: np.ndarray, milliseconds: float) -> Column:
    return Column(runtime, {"path": paths[None]}, milliseconds, "")


@pytest.mark.parametrize(("offset", "shown"), [(0.0, True), (0.002, True), (0.02, False), (float("nan"), False)])
def test_no_speed_where_answers_differ(monkeypatch: pytest.MonkeyPatch, offset: float, shown: bool) -> None:
    paths = np.full((21, 24), 100, np.float32)
    columns = {"torch": given("torch", paths, 6.0), "onnxruntime": given("onnxruntime", paths + offset, 2.0)}
    found = Measurement(columns, racing.Ratio(3.0, 2.0, 4.0))
    agreed = contest.agreement(list(columns), *(column.outputs for column in columns.values()), ["path"])
    numbers = forecast.numbers_of(asked(), *columns.values(), agreed, found)
    assert numbers["speed_up"] == (3.0 if shown else None)
    assert numbers["interval"] == ([2.0, 4.0] if shown else None)
    assert ("milliseconds" in numbers["left"]) is shown
    text = forecast.say(asked(), list(columns), agreed, found, None)
    assert ("ONNX Runtime is 3.0 times as fast as torch." in text) is shown
    assert ("between 2.00 and 4.00" in text) is shown
    assert ("no speed is shown" in text) is not shown
    monkeypatch.setattr(racing, "measure", lambda *_: found)
    if np.isnan(offset):
        with pytest.raises(InputError, match="The forecast of ONNX Runtime left the range of float32"):
            forecast.answer(asked(), list(columns), 0.1, ENGLISH)


def test_a_measurement_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "CAREFUL", 1.5)
    lead, left, *_, numbers = forecast.measured(**QUESTION | {"paths": 2, "horizon": 2})
    assert "The factor lies between" in lead
    assert "p95" in left
    assert numbers["left"]["p95_milliseconds"] >= numbers["left"]["milliseconds"]
    assert numbers["interval"][0] <= numbers["speed_up"] <= numbers["interval"][1]


# Without torch.compile, which compiles half a minute; tests/test_demo.py holds it to torch's answer.
@pytest.mark.parametrize("runtime", [name for name in racing.present("forecast") if name != "torch-compile"])
def test_forecast_values(runtime: str) -> None:
    answer = forecast.forecast_values(SINES, "lstm", horizon=30, paths=40, seed=5, runtime=runtime)
    bands = answer["bands"]
    assert len(answer["central"]) == 30
    assert list(bands) == ["q05", "q25", "q75", "q95"]
    assert all(low <= high for low, high in zip(bands["q05"], bands["q95"], strict=True))
    assert answer["milliseconds"] > 0
    assert answer["series"] == "sunspots"


def test_forecast_values_of_another_series_net() -> None:
    one, other = (
        forecast.forecast_values(SINES, "gru", 5, series=name)["central"] for name in ("sunspots", "uk-demand")
    )
    assert np.abs(np.subtract(one, other)).max() > 1
    with pytest.raises(gr.Error, match="The net is 'moon'; expected sunspots, electricity, uk-demand"):
        forecast.forecast_values(SINES, "gru", series="moon")


@pytest.mark.parametrize("source", [*SHIPPED, "pasted", "file"])
def test_a_series_brings_its_inputs(source: str) -> None:
    start, said, text, upload, net, horizon = forecast.choose(source, CHINESE)
    shipped = source in SHIPPED
    assert start["visible"] is said["visible"] is shipped
    assert text["visible"] is (source == "pasted")
    assert upload["visible"] is (source == "file")
    assert net["visible"] is not shipped
    if shipped:
        assert start["maximum"] == len(series.starts(source)) - 1
        assert horizon["value"] == SHIPPED[source].horizon
        assert "起点：" in html.unescape(said["value"])
        assert forecast.show_start(source, start["value"], CHINESE) == said["value"]
    with pytest.raises(gr.Error, match="The series is 'moon'"):
        forecast.choose("moon")


def test_a_race_asks_the_same_question() -> None:
    values = {name: value for name, value in QUESTION.items() if name not in ("left", "right")}
    model, feeds = forecast.prepare(*values.values())
    assert model == "sunspots-gru"
    np.testing.assert_array_equal(feeds["noise"], asked().noise)
    *_, last = contest.run("forecast", model, ["torch", "onnxruntime"], feeds, forecast.SHOWN, Words(), 0.3)
    assert "times as often" in last[0]
