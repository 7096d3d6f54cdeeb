"""The report as a page and as JSON: whole, by its schema, and safe to open whatever names a checkpoint brings."""

import json
import math
from html.parser import HTMLParser

import jsonschema
import pytest

from seqexport import cli
from seqexport.errors import FileError, InputError
from seqexport.pages import SCHEMA, report_page, write_report
from seqexport.reports import Outcome, Property, Report, Sample, WrittenFile
from seqexport.runtimes import pipeline_path

HOSTILE = "<script>alert('x')</script> $x_1$ & more"


def full(error=2e-6, held=True):
    curves = {"time": [1, 2, 3], "y: onnxruntime from torch": [0, error, error]}
    properties = (
        Property("network", "agreement", HOSTILE, 3, error if held else 1.0, curves=curves, notes=(HOSTILE,)),
        Property("network", "causality (time)", "looks back", 1, 0.0, applies=False),
    )
    return Report(
        (Outcome("network", HOSTILE, {"y": error, HOSTILE: 1e-9}, (HOSTILE,)),),
        source=HOSTILE,
        found=HOSTILE,
        notes=(HOSTILE,),
        files=(WrittenFile("network", HOSTILE, 10, 20, 3),),
        properties=properties,
        samples=(Sample("network", HOSTILE, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]), Sample("g", "text", ["a<b"], ["a<b"])),
        identity={"checkpoint_sha256": None, "file_sha256": "ab", "versions": {"torch": "2"}},
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


def tags_of(page):
    parser = Tags()
    parser.feed(page)
    return parser


def test_nothing_of_a_report_becomes_markup_or_asks_for_anything():
    found = tags_of(report_page(full()))
    assert "script" not in found.tags
    assert found.tags.count("svg") == 3
    assert all(link.startswith("#") for link in found.links)
    assert HOSTILE not in report_page(full())


@pytest.mark.parametrize("error", [2e-6, 1.0, math.inf, math.nan, 0.0])
def test_the_page_says_what_the_report_says(error):
    report = full(error)
    page = report_page(report)
    assert ("NOT verified" in page) == (not report.passed)
    assert ("Cases that differ" in page) == (not report.passed)


def test_a_property_that_does_not_hold_is_seen():
    report = full(held=False)
    assert not report.passed
    page = report_page(report)
    assert "does not hold" in page
    assert "NOT verified" in page
    assert "does not apply" in page


@pytest.mark.parametrize("report", [full(), full(math.nan), full(math.inf), full(held=False), Report(())])
def test_the_json_is_by_its_schema(tmp_path, report):
    write_report(tmp_path / "report.json", report)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), schema)


def test_the_schema_refuses_what_it_does_not_name(tmp_path):
    content = full().to_dict() | {"further": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads(SCHEMA.read_text()))


def test_the_same_report_is_the_same_page():
    assert report_page(full()) == report_page(full())


def test_the_command_writes_both_and_the_shipped_report_is_by_the_schema(exported, tmp_path, capsys):
    path = pipeline_path(exported["lstm"].with_suffix(".onnx"), "forecast")
    command = ["verify", str(exported["lstm"]), str(path)]
    assert cli.main([*command, "--thorough", "--report", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert "third opinion" in said
    assert "causality (horizon)" in said
    page = (tmp_path / "r.html").read_text()
    assert tags_of(page).tags.count("svg") == 3  # outputs, the free running path, the samples
    assert cli.main([*command, "--json", "--report", str(tmp_path / "r.json")]) == 0
    printed, schema = json.loads(capsys.readouterr().out), json.loads(SCHEMA.read_text())
    jsonschema.validate(printed, schema)
    assert printed == json.loads((tmp_path / "r.json").read_text())


@pytest.mark.parametrize(("name", "kind"), [("r.pdf", InputError), ("r", InputError), ("no/r.html", FileError)])
def test_a_place_where_no_report_can_be_is_told_before_the_work(exported, tmp_path, name, kind):
    with pytest.raises(kind):
        write_report(tmp_path / name, full())
