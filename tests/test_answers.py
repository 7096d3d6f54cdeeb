"""Answers of the visitor's own machine: what the page is asked, and that nothing it sends is believed."""

import base64
import json
import re

import numpy as np
import pytest

from seqexport.errors import InputError
from tabs import answers, forecast, racing, sentiment, series, webfiles

gr = pytest.importorskip("gradio")
from tabs.languages import Words  # noqa: E402

SHAPES = {"path": (1, 3, 2)}
TASKS = {
    "forecast": answers.Task("forecast", forecast.SHOWN, forecast.prepare, forecast.draw_own),
    "classify": answers.Task("classify", sentiment.OUTPUTS, sentiment.prepare, sentiment.draw_own),
}
RUNTIMES = ("torch", "onnxruntime")
QUESTIONS = {
    "forecast": ("sunspots", series.opening("sunspots"), "", None, None, "sunspots", "GRU", 24, 9, 3, *RUNTIMES),
    "classify": ("English", "LSTM", "A wonderful film.\nDull <b>", *RUNTIMES),
}


@pytest.fixture(autouse=True)
def brought(tmp_path, monkeypatch):
    """Small files in place of onnxruntime-web's."""
    monkeypatch.setattr(webfiles, "BROUGHT", tmp_path)
    for name in webfiles.TAKEN.values():
        (tmp_path / name).write_bytes(b"x")


def packed(values):
    data = np.ascontiguousarray(values, "<f4")
    return {"dims": list(data.shape), "data": base64.b64encode(data.tobytes()).decode()}


def page(outputs, **changed):
    """What a page's script sends for these outputs."""
    parts = {name: packed(values) for name, values in outputs.items()}
    return {"number": "n", "outputs": parts, "milliseconds": 1.5, "calls": 25} | changed


GOOD = page({"path": np.arange(6).reshape(1, 3, 2)})
DATA = GOOD["outputs"]["path"]["data"]


def with_path(**changed):
    return GOOD | {"outputs": {"path": GOOD["outputs"]["path"] | changed}}


def test_an_answer_is_taken_as_it_was_sent():
    column = answers.given(GOOD, SHAPES)
    np.testing.assert_array_equal(column.outputs["path"], np.arange(6, dtype=np.float32).reshape(1, 3, 2))
    assert (column.milliseconds, column.calls) == (1.5, 25)
    assert answers.given(json.loads(json.dumps(GOOD | {"milliseconds": 0})), SHAPES).milliseconds == 0


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({}, "is not path"),
        (GOOD | {"outputs": None}, "is not path"),
        (GOOD | {"outputs": [[1.0]]}, "is not path"),
        (GOOD | {"outputs": {}}, "is not path"),
        (GOOD | {"outputs": GOOD["outputs"] | {"more": packed([1])}}, "is not path"),
        (GOOD | {"outputs": {"path": None}}, "has not the shape"),
        (GOOD | {"outputs": {"path": [[[0.0, 1.0]] * 3]}}, "has not the shape"),
        (GOOD | {"outputs": {"path": {"path": packed([1])}}}, "has not the shape"),
        (with_path(dims=[3, 2]), "has not the shape"),
        (with_path(dims=[1, 2, 3]), "has not the shape"),
        (with_path(dims=[1, 3, 2.0]), "has not the shape"),
        (with_path(dims=[True, 3, 2]), "has not the shape"),
        (with_path(dims=[-1, -3, 2]), "has not the shape"),
        (with_path(dims="132"), "has not the shape"),
        (with_path(dims=[[1, 3, 2]]), "has not the shape"),
        (with_path(data=list(range(6))), "has not the shape"),
        (with_path(data=None), "has not the shape"),
        (with_path(data=DATA[:-4]), "has not the shape"),
        (with_path(data=DATA * 100_000), "has not the shape"),
        (with_path(data="?" * len(DATA)), "is not 6 numbers"),
        (with_path(data="é" * len(DATA)), "is not 6 numbers"),
        (with_path(data=DATA[:-4] + "AA=="), "is not 6 numbers"),
        (page({"path": np.full((1, 3, 2), np.nan)}), "holds what is not a number"),
        (page({"path": [[[0, 1], [2, np.inf], [4, 5]]]}), "holds what is not a number"),
        (GOOD | {"calls": 0}, "number of the browser's calls is 0"),
        (GOOD | {"calls": True}, "number of the browser's calls is True"),
        (GOOD | {"calls": "25"}, "number of the browser's calls is 25"),
        (GOOD | {"calls": 2.5}, "number of the browser's calls is 2.5"),
        (GOOD | {"calls": float("nan")}, "number of the browser's calls is nan"),
        (GOOD | {"milliseconds": -1}, "browser's time is -1"),
        (GOOD | {"milliseconds": None}, "browser's time is None"),
        (GOOD | {"milliseconds": float("nan")}, "browser's time is nan"),
        (GOOD | {"milliseconds": 10**400}, "browser's time is 1000"),
        (GOOD | {"milliseconds": "<script>" * 1000}, "browser's time is <script><script><scr;"),
    ],
)
def test_what_is_no_answer_is_refused_with_a_sentence(own, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)) as refused:
        answers.given(own, SHAPES)
    assert len(str(refused.value)) < 150


@pytest.mark.parametrize("pipeline", TASKS)
def test_a_job_holds_what_onnx_runtime_gets_to_the_last_bit(pipeline):
    task, question = TASKS[pipeline], QUESTIONS[pipeline]
    asked, kept = answers.job(task, [], True, *question)
    model, feeds = task.prepare(*question[:-2])
    assert (asked["model"], asked["outputs"], asked["number"]) == (f"{model}.onnx", list(task.outputs), kept.number)
    assert set(asked["inputs"]) == set(feeds)
    for name, values in feeds.items():
        sent = asked["inputs"][name]
        kind = {"float32": "<f4", "int64": "<i8"}[sent["type"]]
        assert np.dtype(kind) == values.dtype
        assert np.frombuffer(base64.b64decode(sent["data"]), kind).reshape(sent["dims"]).tobytes() == values.tobytes()
    json.dumps(asked)


def test_nothing_is_asked_of_a_page_that_has_loaded_nothing():
    task, question = TASKS["classify"], QUESTIONS["classify"]
    for loaded in (None, [], {}, "sentiment-en.onnx"):
        asked, kept = answers.job(task, loaded, False, *question)
        assert asked is None
        assert answers.same(kept.values, question)
    note, _ = answers.job(task, ["sentiment-zh.onnx"], False, *question)
    assert note == {"note": "This net is not in your browser yet: the button loads it."}
    asked, _ = answers.job(task, ["sentiment-en.onnx"], False, *question)
    assert asked["model"] == "sentiment-en.onnx"


def judged(pipeline, change=lambda outputs: outputs, **changed):
    """What the column shows of the server's own answer, changed."""
    task, question = TASKS[pipeline], QUESTIONS[pipeline]
    model, feeds = task.prepare(*question[:-2])
    outputs = racing.load_runtime(model, task.pipeline, "onnxruntime").run(feeds)
    own = page(change({name: np.array(outputs[name]) for name in task.outputs}), **changed)
    return answers.judged(task, own, answers.Asked(question, "n"))


@pytest.mark.parametrize("pipeline", TASKS)
def test_an_answer_that_agrees_is_drawn_like_the_others(pipeline):
    drawn, said = judged(pipeline)
    assert [kind for kind, _ in said] == ["ms", "note", "note"]
    assert said[0][1] == "1.5 ms"
    assert said[1][1] == "Median of 25 calls on your machine, in WebAssembly"
    verdict = "Beside ONNX Runtime on the server: The answers differ by at most 0.0e+00 of the largest value."
    assert said[2][1] == verdict
    *question, left, right = QUESTIONS[pipeline]
    tab = {"forecast": forecast.forecast, "classify": sentiment.sentiment}[pipeline]
    beside = tab(*question, left, right)[4]
    plain = re.compile(r'aria-label="Line chart, [^:]*:')
    assert plain.sub("", drawn) == plain.sub("", beside)
    assert "Line chart, Your browser: " in drawn or pipeline == "classify"
    assert "<b>" not in drawn.replace("<b>positive</b>", "").replace("<b>negative</b>", "")


@pytest.mark.parametrize("pipeline", TASKS)
def test_an_answer_that_differs_has_no_speed(pipeline):
    drawn, said = judged(pipeline, lambda outputs: {name: values * 0.9 for name, values in outputs.items()})
    assert drawn
    assert len(said) == 1
    assert re.search(r"differ by (1.0e-01|9.7e-02), more than 1e-04: no speed is shown\.", said[0][1])


def test_what_is_no_answer_is_said_in_the_column():
    for changed in ({"milliseconds": -1}, {"calls": "many"}, {"number": 7}):
        drawn, said = judged("classify", **changed)
        assert drawn == ""
        assert [kind for kind, _ in said] == ["note"]
        assert "browser" in said[0][1]
    assert answers.judged(TASKS["classify"], "x", answers.Asked(QUESTIONS["classify"], "n"))[1] is not None


def test_an_answer_to_an_earlier_question_is_left_out():
    assert judged("classify", number="earlier") == (gr.skip(), None)
    assert answers.judged(TASKS["classify"], None, answers.Asked()) == ("", None)
    assert answers.judged(TASKS["classify"], GOOD, None) == ("", None)


def test_two_questions_are_the_same_however_an_empty_field_is_sent():
    assert answers.same(("a", None, 132), ["a", "", 132.0])
    assert not answers.same(("a", 1), ("a", 2))
    assert not answers.same(("a",), ("a", "b"))


def test_the_column_speaks_chinese():
    task, question = TASKS["forecast"], QUESTIONS["forecast"]
    asked, _ = answers.job(task, [], True, *question, words=Words("zh"))
    assert asked["words"]["answering"] == "正在您的浏览器中回答……"


def test_the_net_of_a_source():
    assert forecast.model_of("electricity", "sunspots", "LSTM") == "electricity-lstm"
    assert forecast.model_of(forecast.PASTED, "sunspots", "RNN") == "sunspots-rnn"
    for bad in (("x", "sunspots", "GRU"), ("file", "../x", "GRU"), ("sunspots", "sunspots", "../gru")):
        with pytest.raises(InputError):
            forecast.model_of(*bad)
