"""Tables through a model: every row's answer is what the model gives it alone, and every other row has its reason."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from tables import damaged_further_on, read, rejected, sixty_texts, write

import seqexport
from seqexport import FileError, InputError, UnsupportedError, cli, tabular

ROOT = Path(__file__).parents[1]
TEXTS = ["what", "what is this", 'a zebra, "no"\nor two', "is", "你好", "what is " * 40, "this", "\tyes"]


@pytest.fixture(scope="module")
def classifier(exported_texts):
    return exported_texts["classify"].with_suffix(".onnx")


@pytest.fixture
def many(tmp_path):
    return sixty_texts(tmp_path)


@pytest.fixture(scope="module")
def probabilities(classifier):
    model = seqexport.load(classifier, pipeline="classify")
    return np.concatenate([seqexport.classify(model, [text]) for text in TEXTS])


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("into", [".csv", ".jsonl", ".parquet"])
def test_texts_get_the_answers_that_they_get_alone(classifier, probabilities, tmp_path, kind, into, chunk):
    data = write(tmp_path / f"in{kind}", {"id": list(map(str, range(8))), "text": TEXTS})
    output = tmp_path / f"out{into}"
    found = seqexport.score(classifier, data, output, chunk=chunk)
    assert (found["rows"], found["scored"], found["rejected"]) == (8, 8, 0)
    assert (found["part"], found["column"]) == ("classify", "text")
    rows = read(output)
    assert [row["row"] for row in rows] == list(range(8))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["id"] for row in rows] == list(map(str, range(8)))
    labels = ("no", "yes", "both")
    assert [row["label"] for row in rows] == [labels[place] for place in probabilities.argmax(1)]
    assert np.abs(np.array([row["probability"] for row in rows]) - probabilities.max(1)).max() <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([data.name, output.name])


def test_a_text_a_line_and_every_probability(classifier, probabilities, tmp_path):
    lines = [text.replace("\n", "\x0b") for text in TEXTS]  # as unknown to the model as a line's end
    (tmp_path / "in.txt").write_bytes("\r\n".join(lines).encode())
    found = seqexport.score(classifier, tmp_path / "in.txt", tmp_path / "out.jsonl", probabilities=True, prefix="my_")
    rows = read(tmp_path / "out.jsonl")
    assert found["scored"] == 8 and [row["text"] for row in rows] == lines
    names = [f"my_probability_{label}" for label in ("no", "yes", "both")]
    every = np.array([[row[name] for name in names] for row in rows])
    assert np.abs(every - probabilities).max() <= 1e-5
    assert set(rows[0]) == {"my_row", "text", "my_label", *names}


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_forecast_of_each_history(exported, tmp_path, runtime):
    path = exported["gru"] if runtime == "torch" else exported["gru"].with_suffix(".onnx")
    rng = np.random.default_rng(0)
    histories = [rng.uniform(1, 90, size).round(3).tolist() for size in (40, 48, 40, 7, 48, 40)]
    model = seqexport.load(path, pipeline="forecast")
    expected = [
        model.run({"history": np.array([one]), "noise": np.zeros((1, 1, 5), np.float32)})["path"][0, 0]
        for one in histories
    ]
    texts = [" ".join(map(str, one)) for one in histories[:3]] + [json.dumps(one) for one in histories[3:]]
    tables = {
        "in.csv": {"id": list("abcdef"), "series": texts},
        "in.jsonl": {"id": list("abcdef"), "series": histories},
        "in.parquet": {"id": list("abcdef"), "series": histories},
    }
    for name, columns in tables.items():
        for into in ("out.csv", "out.jsonl", "out.parquet"):
            how = {"column": "series", "keep": ("id",), "horizon": 5, "chunk": 4}
            found = seqexport.score(path, write(tmp_path / name, columns), tmp_path / into, **how)
            rows = read(tmp_path / into)
            assert found["scored"] == 6 and [row["id"] for row in rows] == list("abcdef")
            assert set(rows[0]) == {"row", "id", "forecast"}
            for row, values in zip(rows, expected, strict=True):
                assert np.allclose(row["forecast"], values, rtol=1e-5)


def test_a_text_is_written_on_by_its_rows_number(exported_texts, tmp_path):
    path = exported_texts["generate"].with_suffix(".onnx")
    prompts = ["what", "is", "this", "this", "what is", "a"]
    data = write(tmp_path / "in.csv", {"prompt": prompts})
    how = {"steps": 12, "temperature": 0.8, "top_k": 9, "seed": 5}
    for name, chunk in (("one.jsonl", 100), ("two.jsonl", 2)):
        seqexport.score(path, data, tmp_path / name, chunk=chunk, **how)
    rows = read(tmp_path / "one.jsonl")
    assert rows == read(tmp_path / "two.jsonl")
    assert rows[2]["continuation"] != rows[3]["continuation"]
    model = seqexport.load(path, pipeline="generate")
    vocabulary = seqexport.text.Vocabulary.from_dict(model.metadata["preprocessing"]["vocabulary"])
    for number, prompt in enumerate(prompts):
        uniforms = np.random.default_rng((5, number)).random((1, 12), np.float32)
        feeds = {"prompt": [vocabulary.encode(prompt)], "uniforms": uniforms, "temperature": 0.8, "top_k": 9}
        assert rows[number]["continuation"] == vocabulary.decode(model.run(feeds)["tokens"][0])
    seqexport.score(path, data, tmp_path / "one.jsonl", **(how | {"seed": 6}))
    assert rows != read(tmp_path / "one.jsonl")


def test_a_bare_network_of_features(tmp_path):
    net = torch.nn.LSTM(3, 5, batch_first=True)
    torch.save(net.state_dict(), tmp_path / "bare.pt")
    seqexport.export(tmp_path / "bare.pt")
    rng = np.random.default_rng(1)
    series = [rng.standard_normal((size, 3)).round(3).tolist() for size in (4, 2, 4)]
    for name in ("in.jsonl", "in.parquet"):
        seqexport.score(tmp_path / "bare.onnx", write(tmp_path / name, {"x": series}), tmp_path / "out.parquet")
        with torch.no_grad():
            expected = [net(torch.tensor([one]))[0][0].numpy() for one in series]
        for row, values in zip(read(tmp_path / "out.parquet"), expected, strict=True):
            assert np.abs(np.array(row["y"]) - values).max() < 1e-5
    (tmp_path / "in.jsonl").write_text(
        '{"x": [[1, 2, 3]]}\n{"x": [[1, 2]]}\n{"x": [[1, 2, 3], [4]]}\n{"x": [1, 2, 3]}\n'
    )
    seqexport.score(tmp_path / "bare.onnx", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    reasons = rejected(tmp_path / "out.jsonl")
    assert "has the shape [1, 1, 2], with 2 along 3" in reasons[1]
    assert reasons[2] == "x is not a regular list of numbers"
    assert "has the shape [1, 3]" in reasons[3]


def test_a_bare_network_of_tokens_reads_texts_and_numbers(classifier, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"tokens": "what"}\n{"tokens": [1, 2]}\n{"tokens": [1, 99]}\n{"tokens": [0.5]}\n'
    )
    found = seqexport.score(classifier, tmp_path / "in.jsonl", tmp_path / "out.jsonl", pipeline="network")
    assert (found["part"], found["scored"]) == ("network", 2)
    model = seqexport.load(classifier)
    assert np.allclose(read(tmp_path / "out.jsonl")[1]["y"], model.run({"tokens": [[1, 2]]})["y"][0], atol=1e-6)
    reasons = rejected(tmp_path / "out.jsonl")
    assert "goes from 1 to 99; expected 0 to 29" in reasons[2]
    assert "is float64; expected int64" in reasons[3]


BAD_CSV = b"""id,text
0,what
1,two,many
2
3,""
4,"   "
5,\xff\xfe
6,"open
7,"is" it
8,"what
is
this"

10,this
"""


def test_bad_records_of_csv_are_set_aside_one_by_one(classifier, tmp_path):
    (tmp_path / "in.csv").write_bytes(BAD_CSV)
    for chunk in (1, 2, 100):
        found = seqexport.score(classifier, tmp_path / "in.csv", tmp_path / "out.csv", chunk=chunk)
        assert [row["id"] for row in read(tmp_path / "out.csv")] == ["0", "8", "10"]
        reasons = rejected(tmp_path / "out.csv")
        assert found["rejected"] == 8 and list(reasons) == [1, 2, 3, 4, 5, 6, 7, 9]
        assert reasons[1] == "has 3 fields; expected 2" and reasons[2] == "has 1 fields; expected 2"
        assert reasons[3] == reasons[4] == "text is empty"
        assert reasons[5] == "is not UTF-8 (byte 0xff)"
        assert "is not CSV" in reasons[6] and "is not CSV" in reasons[7]
        assert reasons[9] == "is an empty line; expected 2"


BAD_JSON = [
    ('{"text": "what"}', None),
    ('{"text": ', "is not JSON"),
    ("[1]", "is a list; expected a JSON object"),
    ('{"text": null}', "text is missing or null"),
    ('{"other": 1}', "text is missing or null"),
    ('{"text": 5}', "text is a int; expected a text"),
    ('{"text": "a", "n": NaN}', "is not JSON (NaN is no JSON)"),
    ('{"text": "\\ud800"}', "lone surrogate"),
    ('{"text": "\\ud83d\\ude00"}', None),
    ("[" * 100_000, "is not JSON"),
    ('{"text": "a", "n": ' + "9" * 5000 + "}", "is not JSON"),
    ("", "is an empty line"),
    ('{"text": "a", "label": "taken"}', "has a column 'label', as the answers do"),
]


def test_bad_lines_of_json_are_set_aside_one_by_one(classifier, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line, _ in BAD_JSON))
    seqexport.score(classifier, tmp_path / "in.jsonl", tmp_path / "out.jsonl", chunk=2)
    reasons = rejected(tmp_path / "out.jsonl")
    for number, (_, reason) in enumerate(BAD_JSON):
        assert (reason is None) == (number not in reasons)
        assert reason is None or reason in reasons[number]
    assert [row["row"] for row in read(tmp_path / "out.jsonl")] == [0, 8]


def test_bad_series_are_set_aside_one_by_one(exported, tmp_path):
    path = exported["gru"].with_suffix(".onnx")
    series = ["1 2 3", "1, 2; 3", "1 nan 2", "1 two", "", "[1, [2]]", "[true]", "1e300 1", "1 inf", "[1, null]"]
    data = write(tmp_path / "in.csv", {"history": series})
    found = seqexport.score(path, data, tmp_path / "out.csv")
    reasons = rejected(tmp_path / "out.csv")
    assert found["scored"] == 2 and list(reasons) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert "NaN or infinite" in reasons[2] and "not a regular list of numbers" in reasons[3]
    assert "give at least 1" in reasons[4] and "too large for float32" in reasons[7]
    with parquet.ParquetWriter(tmp_path / "in.parquet", pa.schema([("history", pa.list_(pa.float64()))])) as writer:
        writer.write_table(pa.table({"history": [[1.0, 2.0], None, [1.0, None], [], [float("nan")]]}))
    seqexport.score(path, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert list(rejected(tmp_path / "out.parquet")) == [1, 2, 3, 4]


def test_texts_of_parquet_that_are_none(classifier, tmp_path):
    bytes_ = pa.array([b"what", b"\xff", None, b"is"])
    texts = pa.Array.from_buffers(pa.string(), 4, bytes_.buffers())
    parquet.write_table(pa.table({"text": texts, "n": [1.0, float("nan"), 2.0, float("nan")]}), tmp_path / "in.parquet")
    for into in ("out.jsonl", "out.parquet"):
        seqexport.score(classifier, tmp_path / "in.parquet", tmp_path / into)
        assert [row["row"] for row in read(tmp_path / into)] == [0, 3]
        assert rejected(tmp_path / into) == {
            1: "text is not UTF-8 (invalid start byte)",
            2: "text is missing or null",
        }
    assert read(tmp_path / "out.jsonl")[1]["n"] is None


def test_rows_that_are_too_long_are_never_held(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "MOST_BYTES", 1000)
    monkeypatch.setattr(tabular, "CHUNK_BYTES", 3000)
    long = "what " * 2000
    for name in ("in.txt", "in.jsonl", "in.csv"):
        quote = {"in.txt": "{}", "in.jsonl": '{{"text": "{}"}}', "in.csv": "{}"}[name]
        lines = [quote.format(text) for text in ("what", long, "is", long)]
        (tmp_path / name).write_text(("text\n" if name == "in.csv" else "") + "\n".join(lines))
        seqexport.score(classifier, tmp_path / name, tmp_path / "out.jsonl")
        assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["what", "is"]
        assert list(rejected(tmp_path / "out.jsonl")) == [1, 3]
        assert "at most 1,000" in rejected(tmp_path / "out.jsonl")[1]
    (tmp_path / "in.csv").write_text('text\nwhat\n"opened\n' + "is\n" * 600)
    found = seqexport.score(classifier, tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert (found["rows"], found["scored"]) == (602, 601)
    assert list(rejected(tmp_path / "out.jsonl")) == [1]


def test_json_of_many_forms_becomes_columns(classifier, tmp_path):
    rows = ['{"text": "what", "n": 1, "f": 1, "m": "a", "b": true}', '{"text": "is", "n": null, "f": 2.5, "m": [1]}']
    rows += ['{"text": "is", "n": "no"}', '{"text": "is", "new": 1}', '{"text": "this", "n": 7, "m": {"a": "é"}}']
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    seqexport.score(classifier, tmp_path / "in.jsonl", tmp_path / "out.parquet", chunk=2)
    assert rejected(tmp_path / "out.parquet") == {
        2: 'n is "no", which is no int64, as it is in the first rows',
        3: "has a column 'new', which the first rows lack: name the columns with --keep",
    }
    table = parquet.read_table(tmp_path / "out.parquet")
    assert [str(table.schema.field(name).type) for name in "nfmb"] == ["int64", "double", "string", "bool"]
    assert table.column("m").to_pylist() == ['"a"', "[1]", '{"a": "é"}']
    seqexport.score(classifier, tmp_path / "in.jsonl", tmp_path / "out.csv", keep=("n",))
    with (tmp_path / "out.csv").open() as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["1", "", "no", "", "7"]


# What can't be scored.


def test_what_is_no_table_is_a_sentence(classifier, tmp_path):
    cases = {
        "none.csv": (None, "There is no file"),
        "in.gz": (b"", "is compressed, which is not read: unpack it first"),
        "in.csv": (b"\x1f\x8b\x08\x00", "is gzip inside"),
        "b.csv": (b"PAR1", "is Parquet inside; expected what its name says"),
        "in.parquet": (b"text\nwhat\n", "is no Parquet inside"),
        "c.parquet": (b"PAR1 and no more PAR1", "could not be read as Parquet"),
        "in.xlsx": (b"", "ends with '.xlsx'; expected .csv"),
        "d.csv": (b"", "expected a name a column"),
        "e.csv": (b"text\n", "has no rows"),
        "f.csv": (b"a,a\n1,2\n", "expected a name a column, each once"),
        "g.csv": ("text\nwhat\n".encode("utf-16"), "is UTF-16; expected UTF-8"),
        "h.csv": (b"te\xffxt\nwhat\n", "the header is not UTF-8"),
        "i.csv": (b"a,b\nwhat,is\n", "2 may be what classify reads: give --column"),
        "j.jsonl": (b'{"n": 1}\n', "none of them, in the first rows, is what classify reads"),
        "k.csv": (b"text,label\nwhat,no\n", "has a column 'label', as the answers do: leave it out with --keep"),
    }
    for name, (content, sentence) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises((FileError, InputError), match=sentence):
            seqexport.score(classifier, tmp_path / name, tmp_path / "out.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match="is a folder; expected one file"):
        seqexport.score(classifier, tmp_path / "folder.csv", tmp_path / "out.csv")
    assert not list(tmp_path.glob("out*"))


def test_what_is_asked_wrongly_is_a_sentence(classifier, exported_texts, tmp_path):
    data = write(tmp_path / "in.csv", {"text": TEXTS})
    for how, sentence in (
        ({"column": "none"}, "There is no column 'none'; .* has the columns text"),
        ({"keep": ("none",)}, "There is no column 'none' to keep"),
        ({"keep": ("text", "text")}, "names a column twice"),
        ({"pipeline": "forecast"}, "There is no file .*net.forecast|There is no file"),
        ({"pipeline": "sing"}, "There is no pipeline 'sing'; expected network, forecast"),
        ({"runtime": "abacus"}, "There is no runtime 'abacus'"),
        ({"engine": "steam"}, "There is no engine 'steam'; expected one or ray"),
        ({"workers": 2}, "--workers and --address are for --engine ray"),
        ({"engine": "ray", "workers": 0}, "--workers is 0; expected 1 or more"),
        ({"chunk": 0}, "--chunk is 0; expected 1 to"),
        ({"temperature": float("nan")}, "--temperature is nan; expected 0 to 100"),
    ):
        with pytest.raises((FileError, InputError, UnsupportedError), match=sentence):
            seqexport.score(classifier, data, tmp_path / "out.csv", **how)
    for output, sentence in ((data, "is what is read"), (tmp_path / "o.txt", "would be plain text")):
        with pytest.raises(InputError, match=sentence):
            seqexport.score(classifier, data, output)
    pipeline = exported_texts["classify"].with_suffix(".classify.onnx")
    with pytest.raises(UnsupportedError, match="is a classify's; expected --pipeline classify"):
        seqexport.score(pipeline, data, tmp_path / "out.csv", pipeline="generate")
    parquet.write_table(pa.table({"text": ["what"], "picture": [b"\x00"]}), tmp_path / "in.parquet")
    with pytest.raises(UnsupportedError, match="'picture' is binary, which only Parquet holds"):
        seqexport.score(classifier, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert seqexport.score(classifier, tmp_path / "in.parquet", tmp_path / "out.parquet")["scored"] == 1
    assert not list(tmp_path.glob("*.parts"))


def test_parquet_that_is_damaged_further_on(classifier, tmp_path):
    path = damaged_further_on(tmp_path / "in.parquet")
    with pytest.raises(FileError, match=r"is damaged in its rows \d+ to \d+"):
        seqexport.score(classifier, path, tmp_path / "out.csv", chunk=50)
    assert not (tmp_path / "out.csv").exists()


def test_without_pyarrow_only_parquet_is_missing(classifier, tmp_path, monkeypatch):
    data = write(tmp_path / "in.csv", {"text": TEXTS})
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    assert seqexport.score(classifier, data, tmp_path / "out.csv")["scored"] == 8
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    for one, other in ((data, "out.parquet"), (tmp_path / "in.parquet", "out.csv")):
        with pytest.raises(UnsupportedError, match=r"python -m pip install 'seqexport\[score\]'"):
            seqexport.score(classifier, one, tmp_path / other)


def test_without_ray_the_command_that_installs_it(classifier, tmp_path, monkeypatch):
    data = write(tmp_path / "in.csv", {"text": TEXTS})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"python -m pip install 'seqexport\[ray\]'"):
        seqexport.score(classifier, data, tmp_path / "out.csv", engine="ray")


# The command.


def test_the_command_says_what_it_did(classifier, many, tmp_path, capsys):
    output = tmp_path / "out.csv"
    arguments = ["score", str(classifier), str(many), "-o", str(output), "--keep", "", "--chunk", "7"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "read     classify on the column text, onnxruntime" in out and "scored: " in out and "of 60 rows" in out
    assert "rejected" in out and err == ""
    assert output.read_text().splitlines()[0] == "row,label,probability"
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["rows"] == 60 == found["scored"] + found["rejected"] and err == ""
    assert len(rejected(output)) == found["rejected"] > 0


def test_when_no_row_can_be_scored_the_exit_code_is_2(classifier, tmp_path, capsys):
    data = write(tmp_path / "in.csv", {"text": ["", " "]})
    assert cli.main(["score", str(classifier), str(data), "-o", str(tmp_path / "out.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seqexport: None of the 2 rows could be scored, the first, row 0, since it text is empty")
    assert len(rejected(tmp_path / "out.csv")) == 2
    assert not (tmp_path / "out.csv").exists() and not (tmp_path / "out.csv.parts").exists()
    write(data, {"text": ["what", "is"]})
    assert seqexport.score(classifier, data, tmp_path / "out.csv")["scored"] == 2
    assert rejected(tmp_path / "out.csv") == {}  # those of the earlier run are gone


def test_help_needs_neither_numpy_nor_torch():
    show = "print(sorted({'numpy', 'torch', 'pyarrow', 'ray'} & set(sys.modules)))"
    code = f"import sys; from seqexport import cli\ntry: cli.main(['score', '--help'])\nexcept SystemExit: {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "example: python -m seqexport score" in done.stdout
