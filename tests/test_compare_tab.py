"""The Compare tab: what the files of results say, in figures, tables and CSV; and runtimes measured here."""

import ast
import base64
import csv
import io
import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import jsonschema
import pytest

gr = pytest.importorskip("gradio")
import made_up  # noqa: E402
from test_comparison import MACHINE  # noqa: E402

from seqexport import InputError, comparison, tables  # noqa: E402
from seqexport.errors import FileError  # noqa: E402
from tabs import cells, charts, compare, measuring, racing, speeds  # noqa: E402
from tabs.languages import ENGLISH, Words, catalogue  # noqa: E402

# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")
ROOT = Path(__file__).parents[1]
CHINESE = Words("zh")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An exported/ with nothing in it."""
    folder = tmp_path / "exported"
    folder.mkdir()
    monkeypatch.setattr(racing, "EXPORTED", folder)
    return folder


@pytest.fixture
def with_cells(folder):
    (folder / "cells.json").write_text(json.dumps(made_up.results(), allow_nan=False))
    return folder


@pytest.fixture(scope="module")
def compared(exported):
    """A real comparison of a small net, as plain JSON types."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "describe_machine", lambda: MACHINE)
        found = comparison.compare(
            exported["gru"], runtimes=("torch", "onnxruntime"), scenarios=("step", "pipeline"), seconds=0.5
        )
    return json.loads(json.dumps(found.to_dict(), allow_nan=False))


def text_of(html):
    return unescape(re.sub(r"<[^>]+>", " ", html))


def saved(html):
    """File name → the rows of the CSV that a link on the page holds."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    return {
        name: list(csv.DictReader(io.StringIO(base64.b64decode(content).decode("utf-8-sig"))))
        for name, content in found
    }


# --- the cells


def test_claims_stand_with_what_was_found(with_cells):
    claims, shown = compare.show_cells("quality", "small")
    said = text_of(claims)
    assert "Of 11 claims that tutorials repeat, 6 hold here, 3 hold in part, 2 do not." in said
    assert "RNN 10,000, GRU 20,000, LSTM 30,000" in said
    rows = saved(claims)["cells-claims.csv"]
    assert len(rows) == 11
    assert rows[2] == {
        "said": "Long sequences: LSTM and GRU ahead of RNN",
        "found": "longest adding problem that most seeds solved, in steps: RNN 30, GRU 1,000, LSTM 1,000",
        "holds": "yes",
    }
    assert "20.2 ± 0.2" in text_of(shown)  # of 20, 20.25, 20.5: the mean, the standard deviation 0.25
    assert re.search("79.8 ± 0.[23] %", text_of(shown))  # 0.25, which may be rounded to either
    quality = saved(shown)["cells-quality.csv"]
    assert len(quality) == 5 * 5 * 3  # tasks without the adding problem, networks, seeds
    assert [row["test"] for row in quality[:3]] == ["20.0", "20.25", "20.5"]


def test_all_that_the_file_says_is_known_in_chinese(with_cells):
    found = cells.results()
    for claim in found["claims"]:
        assert {claim["said"], claim["holds"], *(part["text"] for part in claim["found"])} <= set(catalogue("zh"))
        told = cells.told(claim, CHINESE)
        assert not any(task in told for task in ("sunspots", "opinions", "characters"))
    assert {row["title"] for row in found["quality"] if row["task"] != "adding"} <= set(catalogue("zh"))
    claims = cells.claims(found, CHINESE)
    assert "教程中常见的 11 个说法里" in claims and "复杂任务：LSTM 略胜 GRU" in claims


def test_a_claim_of_a_newer_file_is_said_as_it_stands():
    found = [{"text": "it is {shade}", "values": {"shade": "teal"}}]
    claim = {"said": "Colour: GRU greenest", "found": found, "holds": "?"}
    html = cells.claims({"claims": [claim]}, CHINESE)
    assert "Colour: GRU greenest" in html and "it is teal" in html


@pytest.mark.parametrize("words", [ENGLISH, CHINESE])
@pytest.mark.parametrize("view", cells.VIEWS)
def test_every_view_has_a_figure_and_a_table_of_the_same(view, words):
    found = made_up.results()
    html = cells.show(view, "small", found, words)
    assert "<figure" in html and "<table>" in html and len(saved(html)) == 1
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("role") == "img" and "LSTM" in root.get("aria-label")
        assert "currentColor" in svg and "mathdefault" not in svg and "<style" not in svg
    assert bool(re.search("<svg", html)) == (view in ("memory", "gradients"))


def test_names_of_one_picture_are_not_those_of_another():
    found = made_up.results()
    views = [cells.show(view, "small", found, ENGLISH) for view in ("memory", "gradients")]
    named = [set(re.findall(r'\bid="([^"]+)"', view)) for view in views]
    assert named[0] and named[1] and not named[0] & named[1]


def test_costs_are_those_beside_the_chosen_lstm():
    found = made_up.results()
    small, large = (saved(cells.show("sizes", nets, found, CHINESE))["cells-sizes.csv"] for nets in cells.NETS)
    assert [row["hidden"] for row in small] == ["128", "128", "128", "192", "224"]
    assert {row["cell"] + row["hidden"] for row in large} == {"lstm512", "gru512", "rnn512", "gru576", "rnn608"}
    assert small[0]["State that a stream keeps"] == "1024" and small[0]["Memory of openvino"] == ""
    times = saved(cells.show("times", "small", found, ENGLISH))["cells-times.csv"]
    assert times[0]["Training step"] == "0.03" and float(times[0]["a batch: onnxruntime"]) == pytest.approx(0.03)


def test_a_training_that_failed_is_told():
    found = made_up.results()
    for row in found["quality"]:
        if row["cell"] == "rnn" and row["task"] in ("characters", "adding"):
            row["test"] = [None, None, row["test"][2]]
    assert "2 of 3 failed" in text_of(cells.show("quality", "small", found, ENGLISH))
    memory = text_of(cells.show("memory", "small", found, ENGLISH))
    assert "inf, 1 of 3" in memory


# --- files that are not there, or not what they should be


def test_without_files_a_sentence_says_what_writes_them(folder):
    claims, shown = compare.show_cells("quality", "small")
    assert "python -m training.compare_cells --write measures and writes it" in claims and shown == ""
    assert "python -m training.measure --only compare measures and writes it" in compare.show_runtimes(None, "step")
    for endpoint in (compare.cells, compare.runtimes):
        with pytest.raises(gr.Error, match="There is no .*json in exported/ yet"):
            endpoint()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"models": [{}]}', b"null"])
def test_a_file_that_is_no_result_is_told(folder, content):
    for name, shown in (
        ("cells.json", lambda: compare.show_cells("quality", "small")[0]),
        ("runtimes.json", lambda: compare.show_runtimes(None, "step")),
    ):
        (folder / name).write_bytes(content)
        said = text_of(shown())
        assert name in said and "writes it anew" in said and said.count("exported/") == 1


def test_the_page_is_built_and_read_without_any_file(folder):
    with gr.Blocks() as page, gr.Tab("Compare") as here:
        compare.tab(page, here)
    assert {"/cells", "/runtimes", "/measure_here"} <= set(page.get_api_info()["named_endpoints"])


# --- the runtimes


def test_the_runtimes_are_shown_with_their_ratios_and_answers(folder, compared):
    jsonschema.validate(compared, json.loads(tables.SCHEMA.read_text()))
    (folder / "runtimes.json").write_text(json.dumps(compared))
    html = compare.show_runtimes(None, "step")
    said = text_of(html)
    assert "is fastest" in said and "times as fast as torch’s best" in said
    assert "the others are held against it" in said and "the same (" in said
    (rows,) = saved(html).values()
    assert {row["runtime"] for row in rows} == {"torch, oneDNN on", "torch, oneDNN off", "onnxruntime"}
    assert all(float(row["p50_seconds"]) > 0 and float(row["faster_than_torch_best"]) > 0 for row in rows)
    assert len(saved(compare.show_runtimes(None, "pipeline"))) == 2  # one path, and many
    assert "This was not measured." in compare.show_runtimes(None, "sequence")
    ((model,), (own,)) = compare.runtimes()["models"], compared["models"]
    assert {**model, "path": own["path"]} == {**own, "model": speeds.name_of(own)} and "path" not in model


def test_whoever_differs_has_no_speed(compared):
    found = json.loads(json.dumps(compared))
    (table, *_) = found["models"][0]["scenarios"]
    row = next(row for row in table["rows"] if row["runtime"] == "onnxruntime")
    row |= {"agrees": False, "error": 0.5, "seconds": None, "faster_than": None, "notes": ["y differs <b>"]}
    html = speeds.show(found["models"][0], "step", found, ENGLISH)
    said = text_of(html)
    assert "no speed: the answers differ" in said and "differ" in said
    assert "y differs &lt;b&gt;" in html
    for other in table["rows"]:
        other["seconds"], other["faster_than"] = None, None
    assert "Nobody’s answers could be timed." in text_of(speeds.show(found["models"][0], "step", found, ENGLISH))


def test_the_absent_are_listed_with_their_command(compared):
    found = json.loads(json.dumps(compared))
    model = found["models"][0]
    command = "python -m pip install openvino"
    model["absent"] = [{"runtime": "openvino", "why": "it is not installed", "command": command}]
    html = speeds.show(model, "step", found, ENGLISH)
    assert f"openvino is absent: it is not installed. <code>{command}</code>" in html


def test_footprints_are_shown_and_saved(compared):
    found = json.loads(json.dumps(compared))
    model = found["models"][0]
    model["footprints"] = [
        {"label": "torch, oneDNN on", "bytes": 5000, "load": 2.0, "first": 0.01, "memory": 2**28, "failure": ""},
        {"label": "onnxruntime", "bytes": 6000, "load": None, "first": None, "memory": None, "failure": "it broke"},
    ]
    html = speeds.show(model, "footprint", found, ENGLISH)
    assert "256 MiB" in text_of(html) and "it broke" in text_of(html)
    ((_, rows),) = saved(html).items()
    assert rows[0]["load"] == "2.0" and rows[1]["memory"] == ""


# --- charts


def test_bars_are_as_long_as_their_values_and_on_a_logarithmic_axis_where_they_are_far_apart():
    ends = {"a": (1.0,), "b": (2.0, 4.0), "c": ()}
    lines = [charts.Line(name, "", "red", values) for name, values in ends.items()]
    plain = charts.bars("t", "", lines)
    assert "width:25.00%" in plain and "width:50.00%" in plain and "left:50.00%;width:50.00%" in plain
    assert plain.count("track") == 2 and "decade" not in plain
    far = charts.bars("t", "", [charts.Line("a", "", "red", (1.0,)), charts.Line("b", "", "red", (1000.0,))], True)
    assert far.count("decade") == 8 and "width:25.00%" in far and "width:100.00%" in far  # from 0.1 over four decades


def test_what_is_shown_is_escaped():
    bad = '<script>"x"</script>'
    html = charts.bars(bad, bad, [charts.Line(bad, bad, "red", (1.0,))]) + charts.dots(bad, bad, [])
    html += charts.table("x.csv", bad, [bad], [[bad, bad]], [{bad: bad}], ENGLISH) + charts.legend([(bad, "red", True)])
    assert "<script" not in html and '"x"' not in html


# --- measured here


def child(code):
    return (sys.executable, "-c", f"import json, sys, time; say = lambda x: print(json.dumps(x), flush=True)\n{code}")


@pytest.fixture
def as_child(monkeypatch):
    monkeypatch.setattr(measuring, "PERIOD", 0.02)
    return lambda code: monkeypatch.setattr(measuring, "COMMAND", child(code))


def test_stages_are_told_and_then_what_was_found(as_child):
    said, found = "say({'said': 'step'})", "say({'found': {'asked': sys.argv[1:]}})"
    as_child(f"print('a library speaks'); {said}; time.sleep(0.2); {found}")
    *stages, found = measuring.measured("net", "step", 5)
    assert found == {"asked": ["net", "step", "5.0"]}
    assert {stage.said for stage in stages} == {"", "step"}
    assert [stage.seconds for stage in stages] == sorted(stage.seconds for stage in stages)


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        ("say({'kind': 'InputError', 'error': 'No such thing.'})", InputError, "No such thing."),
        ("say({'kind': 'FileError', 'error': 'No file.'})", FileError, "No file."),
        ("sys.exit(3)", FileError, "ended without an answer \\(exit code 3\\): try again"),
        ("time.sleep(60)", FileError, "took longer than 0 s and was stopped"),
    ],
)
def test_a_process_that_fails_or_takes_too_long_is_a_sentence(as_child, code, kind, sentence):
    as_child(code)
    start = time.monotonic()
    with pytest.raises(kind, match=sentence):
        list(measuring.measured("net", "step", 0.1, grace=0.2 if "sleep" in code else 30))
    assert time.monotonic() - start < 20


def test_a_visitor_who_leaves_ends_the_process(as_child, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(measuring.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    as_child("time.sleep(60)")
    visit = measuring.measured("net", "step", 5)
    next(visit)
    assert started[0].poll() is None
    visit.close()
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (("../secret", "step", 5), "The model is '../secret'; expected"),
        (("net", "map", 5), "The scenario is 'map'; expected step, sequence, pipeline."),
        (("net", "step", 31), "The time to measure in seconds is 31; expected a number from 5 to 30."),
        (("net", "step", float("nan")), "The time to measure in seconds is nan"),
        (("net", "step", None), "The time to measure in seconds is None"),
        ((["net"], "step", 5), "The model is ['net']"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_a_process_is_made(folder, monkeypatch, question, sentence):
    (folder / "net").mkdir()
    (folder / "net" / "checkpoint.pt").touch()
    monkeypatch.setattr(measuring.subprocess, "Popen", None)
    for ask in (compare.measure_here, lambda *asked: list(compare.measure(*asked))):
        with pytest.raises(gr.Error) as error:
            ask(*question)
        assert sentence in error.value.message


def test_the_page_shows_progress_and_then_the_table(folder, as_child, compared):
    (folder / "net").mkdir()
    (folder / "net" / "checkpoint.pt").touch()
    (folder / "found.json").write_text(json.dumps(compared))
    place = str(folder / "found.json")
    found = f"say({{'found': json.load(open({place!r}))}})"
    as_child("say({'said': 'reading <it>'}); time.sleep(0.2); " + found)
    *during, last = compare.measure("net", "step", 5)
    assert all("<progress" in html for html in during) and "reading &lt;it&gt;" in during[-1]
    assert "is fastest" in text_of(last) and "Left out here, for they would take too long: torch-compile." in last
    assert compare.measure_here("net", "step", 5)["models"][0]["scenarios"] == compared["models"][0]["scenarios"]


@pytest.mark.slow
def test_a_shipped_model_is_measured_in_a_process_of_its_own():
    found = compare.measure_here("sunspots-gru", "step", 5)
    (table,) = found["models"][0]["scenarios"]
    labels = {row["label"] for row in table["rows"]}
    assert {"torch, oneDNN on", "torch, oneDNN off", "onnxruntime"} <= labels
    assert all(row["agrees"] for row in table["rows"])
    assert found["models"][0]["model"] == "sunspots-gru"
    assert found["machine"]["cores"] >= 1


# --- what may import what


def test_tabs_need_no_training():
    for path in (ROOT / "tabs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "training" not in {name.split(".")[0] for name in names}, path


def test_the_measuring_process_imports_no_page():
    code = "import sys, tabs.measuring; print(sorted({'gradio', 'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
