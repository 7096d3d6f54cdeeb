"""The static page: what is in its folder, and that it is written as a whole. test_browser_column opens it."""

import json
import re

import pytest

from seqexport.runtimes import onnx_metadata
from tabs import webfiles
from training import static_page

PAGE = static_page.PAGE


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder with files in the place of onnxruntime-web's."""
    folder = tmp_path / "web"
    folder.mkdir()
    for name in webfiles.TAKEN.values():
        (folder / name).write_text(f"// {name}")
    monkeypatch.setattr(webfiles, "BROUGHT", folder)
    return folder


def test_the_folder_holds_all_that_the_page_asks_for(web, tmp_path, capsys):
    out = tmp_path / "out"
    assert static_page.main([str(out)]) == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert "column.js" not in written
    told = capsys.readouterr().out
    assert f"{sum((out / name).stat().st_size for name in written):,}  bytes in {out}" in told
    for name in written:
        if name.endswith((".js", ".html")) and not name.startswith("ort"):
            text = (out / name).read_text()
            asked = re.findall(
                r'from "\./([^"]+)"|new URL\("([^"]+)", import|(?:href|src)="([^"]+)"|json\("([^"]+)"\)', text
            )
            assert {part for parts in asked for part in parts if part} - {"./net.onnx"} <= written, name  # a default
            assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)|(?:href|src)="/', text), name
    facts = json.loads((out / "nets.json").read_text())
    assert [(net["task"], net["language"]) for net in facts["nets"]] == [
        ("forecast", None), ("classify", "en"), ("classify", "zh"), ("generate", "en"), ("generate", "zh"),
    ]  # fmt: skip
    for net in facts["nets"]:
        assert (out / "models" / net["file"]).stat().st_size == net["bytes"]
    series = facts["series"]
    assert len(series["values"]) == 3126
    assert series["from"] <= static_page.OPENING <= series["to"]
    assert (series["from"] - 1749) * 12 >= 2500  # what the net was trained and chosen on ends there


def test_the_int8_nets_on_demand(web):
    contents = static_page.contents("int8")
    assert len(contents["models/sentiment-en.onnx"]) < 2.2e6
    metadata = onnx_metadata(static_page.NETS[0].path("int8"))
    assert metadata["precision"] == "int8"


def test_a_folder_of_its_own_is_replaced_and_another_stays(web, tmp_path, capsys):
    out = tmp_path / "out"
    assert static_page.main([str(out)]) == 0
    (web / "ort.js").write_text("// newer")
    assert static_page.main([str(out)]) == 0
    assert (out / "ort.js").read_text() == "// newer"
    (out / "mine.txt").write_text("mine")
    (web / "ort.js").write_text("// newest")
    assert static_page.main([str(out)]) == 2
    assert "holds mine.txt" in capsys.readouterr().err
    assert (out / "ort.js").read_text() == "// newer"
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    assert static_page.main([str(other)]) == 2
    assert [path.name for path in other.iterdir()] == ["index.html"]


def test_without_onnxruntime_web_one_sentence_and_no_folder(web, tmp_path, capsys):
    (web / "ort.js").unlink()
    assert static_page.main([str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("python -m tabs.webfiles brings it (it needs npm).\n")
    assert not (tmp_path / "out").exists()


def test_without_the_nets_one_sentence(web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(static_page, "EXPORTED", tmp_path / "none")
    assert static_page.main([str(tmp_path / "out")]) == 2
    assert "run python -m training.publish." in capsys.readouterr().err


def test_every_text_of_the_page_is_translated_and_no_translation_is_left_over():
    said = set(re.findall(r"data-say>([^<]+)<", (PAGE / "index.html").read_text(encoding="utf-8")))
    for path in PAGE.glob("*.js"):
        said |= set(re.findall(r'\bsay\("((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")))
    said |= set(onnx_metadata(static_page.NETS[1].path("fp32"))["labels"])
    translated = json.loads((PAGE / "zh.json").read_text(encoding="utf-8"))
    assert set(translated) == said
    for english, chinese in translated.items():
        assert sorted(re.findall(r"\{\w+\}", chinese)) == sorted(re.findall(r"\{\w+\}", english)), english


def test_the_page_may_ask_its_own_host_only():
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (PAGE / "index.html").read_text()).group(1)
    assert policy == "default-src 'self'"
