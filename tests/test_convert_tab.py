"""The Convert tab without a browser: conversions in the child, hostile files, limits, names, and what is left."""

import gc
import json
import os
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

gr = pytest.importorskip("gradio")
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from conftest import randomised, save_classifier  # noqa: E402
from torch import nn  # noqa: E402

import demo  # noqa: E402
from seqexport.errors import CheckpointError, FileError, InputError  # noqa: E402
from tabs import convert, drawing, examples, jobs, worker  # noqa: E402
from training import hostile  # noqa: E402

# Gradio leaves event loops and their sockets to the garbage collector, and sums up its queue with what is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
PLAIN = {"state": "optional", "precision": "fp32", "text": False}
PLAIN |= dict.fromkeys(("nonlinearity", "time_major", "head"))


@pytest.fixture(scope="module", autouse=True)
def no_child_is_left():
    yield
    jobs.retire()
    gc.collect()


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """The folder of uploads, and the one in which jobs work, both of this test alone."""
    folder = tmp_path / "gradio"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(jobs.tempfile, "gettempdir", lambda: str(tmp_path / "work"))
    return folder


def last(things):
    *_, found = things
    return found


class Tagger(nn.Module):
    """An LSTM, time first, and a linear layer on its last step: what weights alone can't tell."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 5, 2), nn.Linear(5, 4)

    def forward(self, x, h0, c0):
        y, state = self.lstm(x, (h0, c0))
        return self.fc(y[-1]), *state


def tagger(folder, name="my net.pt"):
    net = randomised(Tagger())
    torch.save(net.state_dict(), folder / name)
    return net, folder / name


def agree(net, path, time_steps=13, batch=3):
    """The file gives what torch gives, on random input with random state."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(time_steps, batch, 3), (2, batch, 5), (2, batch, 5)]
    feeds = [torch.randn(shape, generator=draw) for shape in shapes]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(["y", "hn", "cn"], dict(zip(("x", "h0", "c0"), (f.numpy() for f in feeds), strict=True)))
    with torch.no_grad():
        for expected, value in zip(net(*feeds), found, strict=True):
            np.testing.assert_allclose(value, expected.numpy(), atol=1e-5)


def test_a_bare_checkpoint_is_recognised_asked_about_and_converted(uploads):
    net, path = tagger(uploads)
    about, questions, *asked, go, verdict, _, files, _ = last(convert.recognise(str(path)))
    assert "Recognised: LSTM" in about
    assert "3 numbers a step, 5 hidden, 2 layers" in about
    assert questions["visible"]
    assert go["interactive"]
    assert [question["visible"] for question in asked] == [False, True, True, False]  # no RNN, no texts
    assert (verdict, files["visible"]) == ("", False)

    shown = list(convert.converted(str(path), "tanh", "time", "last", False, "explicit", "fp32"))
    assert any("Case 20 of 20" in update[0] for update in shown if isinstance(update[0], str)) or len(shown) > 5
    verdict, graphs, files, program, go = shown[-1]
    assert "Verified: all 20 cases agree with torch." in verdict
    assert go["interactive"]
    assert graphs.count("<svg") == 1
    assert ">LSTM<" in graphs
    names = [Path(file).name for file in files["value"]]
    assert names == ["my_net.zip", "my_net.onnx", "my_net.report.html", "my_net.report.json", "run_my_net.py"]
    agree(net, files["value"][1])
    report = json.loads(Path(files["value"][3]).read_text())
    assert report["passed"]
    assert report["source"] == "my_net.pt"  # and not where the server keeps it
    assert str(uploads) not in Path(files["value"][2]).read_text()
    with zipfile.ZipFile(files["value"][0]) as archive:
        assert archive.namelist() == names[1:]
        assert archive.read("my_net.onnx") == Path(files["value"][1]).read_bytes()
    assert Path(files["value"][4]).read_text() == program["value"]
    assert len(program["value"].splitlines()) <= 10
    done = subprocess.run([sys.executable, files["value"][4]], cwd=Path(files["value"][1]).parent,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{'y': (1, 4), 'hn': (2, 1, 5), 'cn': (2, 1, 5)}"] * 3
    assert list((uploads.parent / "work").iterdir()) == []


def test_programs_run_and_feed_the_state_back(exported, exported_texts, tmp_path):
    """Of files that lie about already: those of a forecaster and a generator, optional state among them."""
    paths = [exported["lstm"].with_suffix(".onnx"), exported["lstm"].with_suffix(".forecast.onnx")]
    paths += [
        exported_texts["generate"].with_suffix(".generate.onnx"),
        exported_texts["classify"].with_suffix(".classify.onnx"),
    ]
    for path in paths:
        program = worker.program(path)
        assert len(program.splitlines()) <= 10, program
        assert ("feeds |=" in program) is ("classify" not in path.name), program
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert 'feeds |= {"h0": outputs["hn"], "c0": outputs["cn"]' in worker.program(paths[0])
    assert 'outputs["tokens"][:, -1:]' in worker.program(paths[2])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("net.pt", "net.pt"),
        ("../../etc/passwd", "passwd.pt"),
        ("..\\..\\boot.ini", "boot.pt"),
        ("a b;rm -rf $HOME.ckpt", "a_b_rm_-rf_HOME.ckpt"),
        ("<img src=x onerror=alert(1)>.PT", "img_src_x_onerror_alert_1.pt"),
        ("numpy.py", "numpy.pt"),
        ("net.int8.pth", "net_int8.pth"),
        ("模型.pt", "net.pt"),
        ("", "net.pt"),
        (".onnx", "onnx.pt"),
        ("-o.safetensors", "o.safetensors"),
        ("x" * 300 + ".pt", "x" * 40 + ".pt"),
        ("a\0b\n.pt", "ab.pt"),
    ],
)
def test_names_that_mean_something_become_plain(given, name):
    assert jobs.plain_name(given) == name


def test_only_what_was_uploaded_is_read(uploads, tmp_path, monkeypatch):
    outside = tmp_path / "secret.pt"
    outside.write_bytes(b"secret")
    (uploads / "link.pt").symlink_to(outside)
    for path in (
        str(outside),
        "/etc/passwd",
        str(uploads / ".." / "secret.pt"),
        str(uploads / "link.pt"),
        str(tmp_path),
    ):
        for given in (path, {"path": path, "meta": {"_type": "gradio.FileData"}}):
            with pytest.raises(InputError, match="is not a file that was uploaded"):
                jobs.uploaded(given)
    for nothing in (None, "", {}, {"path": None}, 7, ["x"]):
        with pytest.raises(InputError, match="There is no checkpoint yet"):
            jobs.uploaded(nothing)
    with pytest.raises(InputError, match="deleted within the hour, so upload it again"):
        jobs.uploaded(str(uploads / "gone.pt"))
    (uploads / "large.pt").write_bytes(b"PK" + bytes(100))
    monkeypatch.setattr(jobs, "MOST_UPLOAD", 100)
    with pytest.raises(InputError, match="has 102 bytes; expected at most 100 here"):
        jobs.uploaded(str(uploads / "large.pt"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state": "never"}, "The state is 'never'; expected optional, explicit, none."),
        ({"precision": "fp16"}, "The precision is 'fp16'"),
        ({"text": 1}, "The choice of texts is 1"),
        ({"head": ["last"]}, "The head is"),
        ({"nonlinearity": "gelu"}, "The nonlinearity is 'gelu'; expected None, tanh, relu."),
        ({"time_major": "yes"}, "The choice of time before batch is 'yes'"),
    ],
)
def test_bad_options_get_a_sentence(change, sentence):
    with pytest.raises(InputError) as error:
        convert.options_of(**PLAIN | change)
    assert sentence in str(error.value)


HOSTILE = {
    "os.system": (hostile.contained(hostile.PICKLES["os.system"], "archive"), "would run code to be read"),
    "setstate": (hostile.contained(hostile.PICKLES["stack global"], "older"), "save its weights with torch.save"),
    "storage of petabytes": (hostile.contained(hostile.PICKLES["storage of petabytes"], "archive"), "hostile.pt"),
    "expanded": (hostile.contained(hostile.PICKLES["expanded"], "archive"), "its tensors would take more than"),
    "laughs": (hostile.contained(hostile.PICKLES["laughs of lists"], "archive"), "hostile.pt"),
    "deep tuples": (hostile.contained(hostile.PICKLES["deep tuples"], "archive"), "hostile.pt"),
    "safetensors": (hostile.SAFETENSORS["shape of petabytes"], "is a damaged safetensors file"),
    "no checkpoint": (b"<script>alert(1)</script>", "is neither a checkpoint nor an ONNX file"),
    "empty": (b"", "hostile.pt"),
}


@pytest.mark.parametrize("name", ["os.system", "expanded"])
def test_hostile_files_are_refused_with_their_sentence(uploads, name):
    refuse(uploads, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_more_hostile_files(uploads, name):
    refuse(uploads, name)


def refuse(uploads, name):
    content, sentence = HOSTILE[name]
    path = uploads / "hostile.pt"
    path.write_bytes(content)
    about, *_, go, _, _, _, _ = last(convert.recognise(str(path)))
    assert 'class="refused"' in about
    assert sentence in about, about
    assert str(uploads) not in about
    assert "<script>" not in about
    assert not go["interactive"]
    assert not any(hostile.MARKER in place.name for place in uploads.parent.rglob("*"))
    assert not (jobs.ROOT / hostile.MARKER).exists()


def test_a_pickled_module_is_refused_with_both_ways_out(uploads):
    path = uploads / "net.pt"
    path.write_bytes(examples.example("pickled").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"torch\.save\(model\.state_dict\(\).*or export the module with --module"
    ):
        last(jobs.convert(path, PLAIN))


def test_a_file_named_like_a_module_is_not_imported(uploads):
    path = uploads / "json.py"
    path.write_text("open('executed', 'w')")
    jobs.retire()  # so that the child starts after the file is there
    with pytest.raises(FileError, match="json.pt is neither a checkpoint nor an ONNX file"):
        last(jobs.inspect(path))


def test_a_deadline_is_a_sentence_and_ends_the_child(uploads, monkeypatch):
    _, path = tagger(uploads)
    started = []
    take = jobs._taken
    monkeypatch.setattr(jobs, "_taken", lambda: started.append(take()) or started[-1])
    monkeypatch.setattr(jobs, "SECONDS", 0.05)
    with pytest.raises(FileError, match="my_net.pt took more than 0 s and was stopped; expected a net that takes less"):
        last(jobs.convert(path, PLAIN))
    assert started[0].poll() is not None
    assert list((uploads.parent / "work").iterdir()) == []


def test_memory_is_limited(uploads, monkeypatch):
    _, path = tagger(uploads)
    monkeypatch.setattr(jobs, "MEMORY", 500 << 20)  # less than the libraries take, so that nothing more is given
    with pytest.raises(FileError, match=r"my_net.pt takes more than 500 MiB of memory; expected a smaller"):
        last(jobs.convert(path, PLAIN))


def test_who_leaves_ends_the_child_and_frees_the_place(uploads, monkeypatch):
    _, path = tagger(uploads)
    started = []
    take = jobs._taken
    monkeypatch.setattr(jobs, "_taken", lambda: started.append(take()) or started[-1])
    things = convert.converted(str(path), "tanh", "batch", "every", False, "optional", "fp32")
    next(things)
    next(things)
    assert started[0].poll() is None
    things.close()
    assert started[0].poll() is not None
    assert jobs.CONVERSIONS._here == []
    assert list((uploads.parent / "work").iterdir()) == []


def test_beyond_the_line_one_is_told_that_it_is_busy():
    line = jobs.Line(2)
    places = [line.place() for _ in range(3)]
    assert [place.__enter__()() for place in places] == [0, 1, 2]
    with pytest.raises(InputError, match="and 2 wait already.*try again in a minute"), line.place():
        pass
    places[0].__exit__(None, None, None)
    with line.place() as ahead:
        assert ahead() == 2
    for place in places[1:]:
        place.__exit__(None, None, None)
    assert line._here == []


SAYS = "import sys, os, json; job = json.loads(sys.stdin.readline()); os.chdir(job['folder']); "


def child_that(monkeypatch, code):
    """In place of the child, one that was taken over."""

    def start():
        command = [sys.executable, "-c", SAYS + code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    monkeypatch.setattr(jobs, "_taken", start)
    monkeypatch.setattr(jobs, "prepare", lambda: None)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("print('nonsense')", "say what can't be understood"),
        ("print('[1, 2]')", "say what can't be understood"),
        ("print('[' * 1000000)", "say what can't be understood"),
        ("print(json.dumps({'stage': 'x' * (9 << 20)}))", "say what can't be understood"),
        ("[print(json.dumps({'x': 'y' * 100000})) for _ in range(100)]", "say what can't be understood"),
        ("os.kill(os.getpid(), 11)", "net.pt ended the process by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "net.pt took too long or too much memory"),
        ("sys.exit(0)", "net.pt ended its process"),
        ("print(json.dumps({'error': '<b>\\x1b[2J' + 'x' * 9000, 'kind': 'SystemExit'}))", r"^<b>\\x1b\[2Jx+ … x+$"),
    ],
)
def test_what_a_child_says_is_not_trusted(uploads, monkeypatch, code, sentence):
    (uploads / "net.pt").write_bytes(b"PK")
    child_that(monkeypatch, code)
    with pytest.raises(FileError, match=sentence):
        last(jobs.convert(uploads / "net.pt", PLAIN))


@pytest.mark.parametrize(
    "thing", [{"done": {}}, {"done": {"report": 1, "graphs": {}, "programs": {}}}, {"stage": 7}, {"stage": {"at": "x"}}]
)
def test_what_is_no_answer_is_a_sentence(uploads, monkeypatch, thing):
    (uploads / "net.pt").write_bytes(b"PK")
    child_that(monkeypatch, f"print({json.dumps(thing)!r})")
    monkeypatch.setattr(convert, "EVERY", 0.0)
    question = (str(uploads / "net.pt"), "tanh", "batch", "every", False, "optional", "fp32")
    verdict, *_, go = last(convert.converted(*question))
    assert "can&#x27;t be understood" in verdict
    assert go["interactive"]


DONE = "print(json.dumps({'done': {'report': {}, 'graphs': {}, 'programs': {}}}))"


def test_of_what_a_child_leaves_only_plain_files_are_handed_out(uploads, monkeypatch):
    (uploads / "net.pt").write_bytes(b"PK")
    code = (
        "open('net.onnx', 'w').write('x'); os.symlink('/etc/passwd', 'a.json'); open('b.exe', 'w'); os.mkdir('c.py');"
    )
    child_that(monkeypatch, code + "os.link('net.onnx', '.d.py'); open('large.py', 'w').truncate(2000);" + DONE)
    monkeypatch.setattr(jobs, "MOST_FILE", 1000)
    result = last(jobs.convert(uploads / "net.pt", PLAIN))
    assert [Path(file).name for file in result.files] == ["net.zip", "net.onnx"]
    folder = Path(result.files[0]).parent
    assert folder.parent == uploads
    assert len(folder.name) > 40  # which nobody guesses
    assert folder.stat().st_mode & 0o077 == 0


def test_a_child_gets_nothing_of_the_servers_environment(uploads, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    child = jobs._start()
    try:
        place, end = Path(f"/proc/{child.pid}/environ"), time.monotonic() + 30
        while not (environment := place.read_bytes()) and time.monotonic() < end:  # the kernel may not have it yet
            time.sleep(0.01)
    finally:
        jobs._stop(child)
    assert b"SECRET_TOKEN" not in environment
    assert b"PATH=" in environment


def test_a_verification_that_fails_is_a_clear_sentence(monkeypatch, uploads):
    case = {"part": "network", "case": "batch 1 <b>", "passed": False, "errors": {"y": "inf"}, "notes": ["y: <i>"]}
    thing = {"error": "net.onnx differs from torch in 1 of 1 cases", "kind": "ParityError", "report": {"cases": [case]}}
    (uploads / "net.pt").write_bytes(b"PK")
    child_that(monkeypatch, f"print({json.dumps(thing)!r})")
    verdict, graphs, files, program, go = last(
        convert.converted(str(uploads / "net.pt"), "tanh", "batch", "every", False, "optional", "fp32")
    )
    assert "Not verified: nothing was written." in verdict
    assert "differs from torch in 1 of 1 cases" in verdict
    assert "batch 1 &lt;b&gt;" in verdict
    assert "<i>" not in verdict
    assert (graphs, files["visible"], program["visible"], go["interactive"]) == ("", False, False, True)


BAD = '"><img src=x onerror=alert(1)>'


def test_nothing_of_a_file_is_markup():
    network = {"cell": BAD, "nonlinearity": BAD, "vocabulary": 5, "features": 1, "hidden_size": 2, "projection": None}
    network |= {"layers": 1, "bidirectional": True, "outputs": 3, "pooling": "every"}
    found = {"kind": BAD, "bytes": 1, "task": BAD, "parameters": 3, "questions": [BAD], "not used": [BAD] * 30}
    node = {"op": BAD, "about": BAD, "inputs": [BAD], "outputs": [BAD * 2], "shape": BAD, "weights": 3}
    body = {"inputs": [], "outputs": [], "nodes": [], "count": 500}
    graph = {"inputs": [{"name": BAD, "label": BAD, "shape": BAD}], "outputs": [], "count": 1}
    shown = [
        convert.show_found(BAD, found | {"network": network}),
        convert.show_found(BAD, found | {"network": None, "exports as": f"nothing: {BAD}"}),
        drawing.draw(BAD, graph | {"nodes": [node | {"bodies": [body]}]}),
        convert.show_stage({"doing": BAD, "part": BAD, "at": 1, "count": 2}),
        convert.refused(BAD, BAD),
    ]
    for part in shown:
        assert BAD in elements(part)["text"] or part is shown[3], part
        assert elements(part)["tags"] <= TAGS
        assert not any(name.startswith("on") or name in ("src", "href") for name in elements(part)["attributes"])
    assert "and 18 more" in shown[0]


TAGS = {
    "div",
    "p",
    "table",
    "tr",
    "th",
    "td",
    "progress",
    "details",
    "summary",
    "b",
    "span",
    "svg",
    "path",
    "g",
    "rect",
}
TAGS |= {"text"}


def elements(markup):
    """What a browser makes of it: the elements, their attributes, and the text between them."""
    found = {"tags": set(), "attributes": set(), "text": ""}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found["tags"].add(tag)
            found["attributes"] |= {name for name, _ in attributes}

        def handle_data(self, data):
            found["text"] += data

    Reader().feed(markup)
    return found


def chain(count, far=False):
    """A graph of nodes that each read the one before, and, far, the input too."""
    given = {"name": "v0", "label": "v0", "shape": ""}
    nodes = []
    for place in range(count):
        inputs = [f"v{place}", "v0"] if far else [f"v{place}"]
        plain = {"op": "Add", "about": "", "shape": "", "weights": 0, "bodies": []}
        nodes.append(plain | {"inputs": inputs, "outputs": [f"v{place + 1}"]})
    return {"inputs": [given], "outputs": [], "nodes": nodes, "count": count}


def test_boxes_of_a_drawing_do_not_touch_and_stand_below_what_they_read():
    graph = worker.graph_of(worker.parse_onnx(jobs.ROOT / "exported/sunspots-lstm/checkpoint.forecast.onnx").graph)
    boxes = drawing._boxes(graph, drawing.ENGLISH)
    rows = drawing._rows(boxes)
    drawing._arrange(boxes, rows)
    assert len(rows) > 10
    for row in rows:
        edges = [(boxes[place].x - boxes[place].width / 2, boxes[place].x + boxes[place].width / 2) for place in row]
        assert all(left[1] < right[0] for left, right in zip(edges, edges[1:], strict=False))
    assert all(boxes[source].row == box.row - 1 for box in boxes for source in box.reads)
    shown = drawing.draw("net.onnx", graph)
    assert shown.count("<svg") == 2  # and the body of the loop
    assert "inside Scan" in shown
    assert "8 nodes inside" in shown


@pytest.mark.parametrize(("graph", "svg"), [(chain(60), 1), (chain(401), 0), (chain(390, far=True), 1)])
def test_drawings_end_in_time(graph, svg):
    start = time.monotonic()
    shown = drawing.draw("net", graph)
    assert shown.count("<svg") == svg
    assert ("Too large to be drawn." in shown) is not svg
    assert time.monotonic() - start < 20


def test_folders_of_jobs_are_swept_by_age(uploads):
    old, young = uploads / f"{jobs.PREFIX}{'a' * 32}", uploads / f"{jobs.PREFIX}{'b' * 32}"
    other, link = uploads / "c", uploads / f"{jobs.PREFIX}{'d' * 32}"
    for folder in (old, other):
        folder.mkdir()
        (folder / "x.onnx").write_bytes(b"x")
    link.symlink_to(other)
    time.sleep(0.2)
    young.mkdir()
    jobs.sweep(older_than=0.15)
    assert sorted(path.name for path in uploads.iterdir()) == sorted([young.name, other.name, link.name])
    jobs.sweep(older_than=0.0)
    assert not young.exists()
    assert (other / "x.onnx").exists()


@pytest.mark.slow
def test_uploads_are_deleted_by_gradio_and_programs_can_convert(tmp_path, monkeypatch):
    """Through a client: the endpoint, paths that were not uploaded, and that what was uploaded goes by itself."""
    client_module = pytest.importorskip("gradio_client")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(jobs, "SWEEP", 1.0)
    monkeypatch.setattr(jobs, "KEPT", 25.0)
    net, path = tagger(tmp_path, "net.pt")
    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    try:
        client = client_module.Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
        file = client_module.handle_file(path)
        report, files = client.predict(file, None, True, "last", api_name="/convert")
        assert report["passed"]
        assert report["files"][0]["name"] == "net.onnx"
        assert [Path(file).name for file in files][:2] == ["net.zip", "net.onnx"]
        agree(net, files[1])
        with pytest.raises(Exception, match="is not a file that was uploaded"):
            client.predict(str(path), api_name="/convert")
        said = raw(client, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}})
        assert said.startswith("event: error"), said  # gradio keeps the sentence from plain HTTP
        end = time.monotonic() + 90
        while left := [place for place in (tmp_path / "gradio").rglob("*") if place.suffix in (".pt", ".onnx", ".zip")]:
            assert time.monotonic() < end, left
            time.sleep(0.5)
    finally:
        page.close()
        client.close()


def raw(client, file):
    """A call that names a path of the server's, as no client does by itself."""
    import httpx

    call = httpx.post(f"{client.src.rstrip('/')}/gradio_api/call/convert", json={"data": [file]}, timeout=60).json()
    url = f"{client.src.rstrip('/')}/gradio_api/call/convert/{call['event_id']}"
    return httpx.get(url, timeout=120).text


@pytest.mark.slow
def test_a_classifier_is_asked_about_texts_and_gets_int8(uploads):
    path = save_classifier(uploads / "texts.pt", cell="lstm", hidden_size=32)
    about, _, *asked, _, _, _, _, _ = last(convert.recognise(str(path)))
    assert [question["visible"] for question in asked] == [False, False, False, True]
    assert "Not in the file" not in about
    shown = last(convert.converted(str(path), "relu", "time", "max", True, "none", "fp32,int8"))
    verdict, graphs, files, program, _ = shown
    assert "Verified: all" in verdict
    names = {Path(file).name for file in files["value"]}
    wanted = (
        "texts.onnx",
        "texts.int8.onnx",
        "texts.classify.onnx",
        "texts.classify.int8.onnx",
        "texts.classify.text.onnx",
    )
    assert set(wanted) <= names
    assert graphs.count("<details") >= len(wanted)
    folder = Path(files["value"][0]).parent
    for script in folder.glob("run_*.py"):
        done = subprocess.run([sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (script.name, done.stderr)
    assert "feeds |=" not in program["value"]  # the state was left out
    assert os.sep not in "".join(names)
