"""onnxruntime-web is brought, checked and served as it should be, and nothing else: no network, no browser here."""

import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from seqexport.errors import FileError, InputError
from seqexport.text import Vocabulary
from tabs import webfiles

gr = pytest.importorskip("gradio")
from starlette.applications import Starlette  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from tabs import answers, browser, characters, forecast, racing, sentiment_nets, series  # noqa: E402
from tabs.languages import spoken  # noqa: E402

ROOT = Path(__file__).parents[1]
# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")


def archive(names=tuple(webfiles.TAKEN)):
    """A package as npm brings one, with small files, and its checksum."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as package:
        for name in (*names, "package/dist/other.js"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            package.addfile(member, io.BytesIO(name.encode()))
    content = packed.getvalue()
    return content, "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """A small package in place of the real one, fetched."""
    content, integrity = archive()
    monkeypatch.setattr(webfiles, "INTEGRITY", integrity)
    monkeypatch.setattr(webfiles, "pack", lambda into: content)
    monkeypatch.setattr(webfiles, "BROUGHT", tmp_path / "brought")
    return webfiles.fetch()


def test_three_files_are_taken_the_large_one_compressed(brought, tmp_path):
    assert sorted(path.name for path in brought) == ["README.md", "ort-wasm.js", "ort-wasm.wasm.gz", "ort.js"]
    assert {path.name for path in (tmp_path / "brought").iterdir()} == {path.name for path in brought}
    assert (
        gzip.decompress((tmp_path / "brought/ort-wasm.wasm.gz").read_bytes())
        == b"%b" % list(webfiles.TAKEN)[2].encode()
    )
    assert webfiles.fetch() == brought  # again, in its own folder


def test_another_package_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    content, _ = archive()
    monkeypatch.setattr(webfiles, "pack", lambda into: content)
    with pytest.raises(
        FileError, match=r"is not onnxruntime-web 1\.30\.0: its checksum is sha512-.*, expected sha512-"
    ):
        webfiles.fetch(tmp_path / "brought")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_stays(brought, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileError, match="holds notes.txt"):
        webfiles.fetch(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("done", "sentence"),
    [
        (FileNotFoundError(), "npm is not here"),
        (subprocess.TimeoutExpired("npm", 1), "within ten minutes"),
        (subprocess.CompletedProcess([], 1, "", "\nnpm error 404 not found\nmore"), r"\(npm error 404 not found\)"),
        (subprocess.CompletedProcess([], 0, "", ""), "it said nothing"),
    ],
)
def test_npm_that_fails_is_one_sentence(done, sentence, tmp_path, monkeypatch, capsys):
    def run(*_, **__):
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(webfiles, "BROUGHT", tmp_path / "brought")
    monkeypatch.setattr(subprocess, "run", run)
    assert webfiles.main() == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_the_tests_package_is_the_same_one():
    lock = json.loads((ROOT / "tests/node/package-lock.json").read_text())
    package = lock["packages"]["node_modules/onnxruntime-web"]
    assert (package["version"], package["integrity"]) == (webfiles.VERSION, webfiles.INTEGRITY)


@pytest.fixture
def client():
    return TestClient(Starlette(routes=browser.routes()), base_url="http://here")


def get(client, name, **how):
    return client.get(f"{browser.PREFIX}/{name}", **how)


def test_what_is_served_and_how(brought, client):
    for name in ("column.js", "runner.js", "worker.js", "client.js", "ort.js", "ort-wasm.js"):
        answered = get(client, name)
        assert answered.status_code == 200, name
        assert answered.headers["content-type"].startswith("text/javascript")
    wasm = get(client, "ort-wasm.wasm.gz")
    assert wasm.headers["content-type"] == "application/gzip"
    assert "content-encoding" not in wasm.headers  # the page's script inflates it
    model = get(client, "models/characters-en.onnx")
    assert model.content == (ROOT / "exported/characters-en/checkpoint.generate.onnx").read_bytes()
    assert "@WORDS@" not in get(client, "client.js").text


@pytest.mark.parametrize("name", ["worker.js", "ort-wasm.wasm.gz"])
def test_a_file_that_the_browser_has_is_not_sent_again(brought, client, name):
    first = get(client, name)
    assert first.headers["cache-control"] == "no-cache"
    for tag in (first.headers["etag"], f"W/{first.headers['etag']}", f'"x", {first.headers["etag"]}'):
        again = get(client, name, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
    assert get(client, name, headers={"if-none-match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "",
        "README.md",
        "demo.py",
        "models/sunspots-cnn.onnx",
        "models/sunspots-gru.int8.onnx",
        "models/characters-en/checkpoint.pt",
        "models/..%2f..%2fdemo.py",
        "..%2fwebfiles.py",
        "%2fetc%2fpasswd",
        "models/characters-en.onnx%00",
        "page/index.html",
        "nul" * 2000,
    ],
)
def test_no_other_name_is_served(brought, client, name):
    answered = get(client, name)
    assert answered.status_code == 404
    assert len(answered.text) < 100


def test_every_net_that_a_tab_offers_is_served_and_no_other_file(brought, client):
    offered = {forecast.model_of(name, None, cell) for name in series.SHIPPED for cell in forecast.CELLS}
    offered |= {net for cells in sentiment_nets.MODELS.values() for net in cells.values()}
    offered |= set(characters.MODELS.values())
    assert offered == set(browser.MODELS)
    for model, pipeline in browser.MODELS.items():
        found = get(client, f"models/{model}.onnx")
        assert found.content == (ROOT / f"exported/{model}/checkpoint.{pipeline}.onnx").read_bytes()
        assert found.headers["content-type"] == "application/octet-stream"


def test_a_net_that_is_not_there_is_not_served(brought, client, tmp_path, monkeypatch):
    monkeypatch.setattr(racing, "EXPORTED", tmp_path)
    assert get(client, "models/uk-demand-gru.onnx").status_code == 404


def test_the_button_tells_what_is_left_to_be_loaded(brought, monkeypatch):
    weighs = {"model": 0.041, "runtime": 3.7}
    monkeypatch.setattr(browser, "sizes", lambda model: weighs)
    assert browser.label("sunspots-gru", None, "Again") == "Run it in your browser too (3.7 MB)"
    assert browser.label("sunspots-gru", ["characters-en.onnx"], "Again") == "Run it in your browser too (0.04 MB)"
    assert browser.label("sunspots-gru", ["sunspots-gru.onnx"], "Again") == "Again"
    assert browser.label("sunspots-gru", {"sunspots-gru.onnx": 1}, "Again") == "Run it in your browser too (3.7 MB)"


def test_only_reading_is_allowed(client):
    assert client.post(f"{browser.PREFIX}/worker.js").status_code == 405


def test_without_the_package_nothing_is_offered(tmp_path, monkeypatch, client):
    monkeypatch.setattr(webfiles, "BROUGHT", tmp_path / "none")
    assert browser.missing() == "onnxruntime-web is not here; python -m tabs.webfiles brings it (it needs npm)."
    assert characters.own_job("Shakespeare (English)", "ROMEO\n", 5, 1, 0, 1, 0) is None
    assert get(client, "ort.js").status_code == 404
    with gr.Blocks():
        place = browser.column("forecast", 72)
        assert answers.offer(place, None, [], print, [], []) == []  # no event is there that could ask for it
    assert place.there is False
    assert place.button.visible is False


def test_a_job_holds_the_servers_numbers_to_the_last_bit(brought):
    question = ("Shakespeare (English)", "ROMEO\n", 40, 0.7, 5, 0.9, 3)
    job = characters.own_job(*question)
    _, vocabulary, feeds, _ = characters.ask(*question)
    sent = np.frombuffer(base64.b64decode(job["uniforms"]), "<f4")
    assert sent.tobytes() == feeds["uniforms"].tobytes()
    assert job["prompt"] == vocabulary.encode("ROMEO\n")
    assert job["settings"] == {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    assert job["megabytes"]["model"] == pytest.approx(7.7, abs=0.1)
    json.dumps(job)


def test_the_browsers_text_is_judged():
    question = ("Shakespeare (English)", "ROMEO\n", 30, 0.8, 0, 1.0, 1)
    folder, vocabulary, feeds, _ = characters.ask(*question)
    tokens = characters.running("onnxruntime", "measurement", folder).run(feeds)["tokens"][0].tolist()
    assert "The same 30 characters" in characters.judged({"tokens": tokens}, *question)
    tokens[7] = (tokens[7] + 1) % len(vocabulary)
    assert "The texts part at character 8." in characters.judged({"tokens": tokens}, *question)
    assert characters.judged(None, *question) == ""


@pytest.mark.parametrize("own", [{}, {"tokens": None}, {"tokens": [1]}, {"tokens": [1.5, 2]}, {"tokens": [-1, 2]}, "x"])
def test_a_browsers_text_that_is_none_is_refused(own):
    with pytest.raises(InputError, match="is not a list of 2 tokens"):
        browser.own_tokens(own, 2)


def test_a_handler_speaks_the_visitors_language():
    def told(value, words):
        return f"{value} {words.language}"

    def several(value, words):
        yield from (value, words.language)

    request = type("Request", (), {"headers": {"accept-language": "zh"}})()
    assert spoken(told)(request, 1) == "1 zh"
    assert list(spoken(several)(request, 1)) == [1, "zh"]


def test_the_vocabularies_are_within_what_the_client_splits_alike():
    """Of a token with many apostrophes, text.Vocabulary leaves spellings out that the client knows: none is shipped."""
    from seqexport.runtimes import onnx_metadata
    from seqexport.text import MOST_MIXED

    for path in ROOT.glob("exported/*/checkpoint.onnx"):
        preprocessing = onnx_metadata(path)["preprocessing"]
        if "vocabulary" in preprocessing:
            tokens = Vocabulary.from_dict(preprocessing["vocabulary"]).tokens
            assert max(token.count("'") for token in tokens) <= MOST_MIXED, path
