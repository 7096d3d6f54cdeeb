"""Graphs of strings: they read what Python reads, of any string, and write what Python writes."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import save_classifier, save_forecaster, save_generator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_text import SCRIPTS

import seqexport
from seqexport import FileError, InputError, ParityError, SpecError, UnsupportedError
from seqexport.cli import main
from seqexport.runtimes import OnnxRuntime
from seqexport.specs import READ
from seqexport.text import MOST_MIXED, UNKNOWN, Vocabulary
from seqexport.textcases import AWKWARD, differences, joined_as_in_python, split_as_in_python
from seqexport.textgraphs import with_strings

WORDS = (UNKNOWN, "a", "don't", "caf\u00e9", "it\u2019s", "it's", "!", "\u4f60", "''", "3d", "\u0301", "\ud55c\uad6d")
SIGNS = (UNKNOWN, "a", "b", "'", "\x00", " ", "\u0301", "\u4f60", "\U0001f600", "\ufffd", "\n")
VOCABULARIES = {
    f"{unit}{' lower-cased' * lowercase}": Vocabulary(unit, WORDS if unit == "word" else SIGNS, lowercase)
    for unit, lowercase in itertools.product(("word", "character"), (False, True))
}
# Pieces of any script beside any other character; whole surrogates are no characters.
PIECES = st.text(
    st.one_of(st.sampled_from(SCRIPTS), st.sampled_from("".join(AWKWARD)), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)


def graph_of(vocabulary):
    """A graph of strings whose pipeline does next to nothing."""
    nodes = [
        helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "along"], ["probabilities"]),
        helper.make_node("Identity", ["lengths"], ["same"]),
    ]
    inputs = [
        helper.make_tensor_value_info("numbers", TensorProto.INT64, ["batch", "time"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 1])]
    along = onnx.numpy_helper.from_array(np.array([1]), "along")
    graph = helper.make_graph(nodes, "classify.text", inputs, outputs, [along])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    network = {"cell": "gru", "features": 2, "hidden_size": 2, "vocabulary": len(vocabulary), "outputs": 1}
    about = {"part": "classify.text", "network": json.dumps(network | {"pooling": "last"})}
    helper.set_model_props(model, about)
    return with_strings(model, vocabulary, ["only"])


def reader(vocabulary):
    return OnnxRuntime(graph_of(vocabulary).SerializeToString()).only(*READ)


def tried_by_hypothesis(vocabulary, examples, seen):
    """Pieces drawn by Hypothesis, 25 at a time, each alone and before every other: 650 strings an example, whose hashes
    go to `seen`."""
    runtime = reader(vocabulary)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(PIECES, min_size=25, max_size=25, unique=True))
    def check(pieces):
        texts = [*pieces, *(first + second for first, second in itertools.product(pieces, pieces))]
        seen.update(map(hash, texts))
        assert differences(runtime, vocabulary, texts) == []

    check()


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_of_any_string_the_graph_reads_what_python_reads(kind):
    seen = set()
    tried_by_hypothesis(VOCABULARIES[kind], 3, seen)
    assert len(seen) > 1_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_of_a_million_strings_the_graph_reads_what_python_reads(kind):
    """More than a quarter of a million different ones for each of the four kinds of vocabulary, in a minute of work."""
    seen = set()
    tried_by_hypothesis(VOCABULARIES[kind], 700, seen)
    print(f"{kind}: {len(seen):,} different strings tried, 0 read otherwise")
    assert len(seen) > 250_000


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_awkward_strings_and_every_spelling_of_every_token(kind):
    vocabulary = VOCABULARIES[kind]
    tried = split_as_in_python("classify.text", OnnxRuntime(graph_of(vocabulary).SerializeToString()), vocabulary, 500)
    assert (tried.held, tried.error, tried.notes) == (True, 0, ())
    assert tried.trials > 500 + len(AWKWARD) + len(vocabulary.spellings)


def test_a_graph_that_reads_otherwise_is_noticed():
    """One entry of the table less, another case, another class of characters: each is found, and says at which text."""
    vocabulary = VOCABULARIES["word lower-cased"]
    for spoil in (_drop_an_entry, _keep_the_case, _take_ascii_only):
        model = graph_of(vocabulary)
        spoil({node.op_type: node for node in model.graph.node})
        tried = split_as_in_python("classify.text", OnnxRuntime(model.SerializeToString()), vocabulary, 200)
        assert not tried.held
        assert "is read as something else" in tried.notes[0]


def _drop_an_entry(nodes):
    for attribute in nodes["LabelEncoder"].attribute:
        if attribute.name == "keys_strings":
            attribute.strings[1] = b"other"


def _keep_the_case(nodes):
    for attribute in nodes["StringNormalizer"].attribute:
        if attribute.name == "case_change_action":
            attribute.s = b"NONE"


def _take_ascii_only(nodes):
    for attribute in nodes["Tokenizer"].attribute:
        if attribute.name == "tokenexp":
            attribute.s = b"[A-Za-z0-9']+"


def test_spellings_are_the_rule_of_apostrophes():
    vocabulary = Vocabulary("word", (UNKNOWN, "don't", "it\u2019s", "it's", "'a'b'", "'" * 9), lowercase=False)
    assert vocabulary.encode("don\u2019t don't it\u2019s it's \u2019a'b\u2019") == [1, 1, 2, 3, 4]
    assert vocabulary.encode("\u2019" * 9) == vocabulary.encode("'" * 9) == [5]
    assert vocabulary.encode("\u2019" + "'" * 8) == [0]  # of more than MOST_MIXED apostrophes no mixture is known
    assert len("'a'b'") - 2 <= MOST_MIXED
    assert vocabulary.unknown("don\u2019t \u2019" + "'" * 8) == ["\u2019" + "'" * 8]


@pytest.mark.parametrize("unit", ["word", "character"])
def test_a_nul_character_in_a_token_survives(unit, tmp_path):
    path = save_generator(tmp_path / "g.pt", vocabulary=6, edit=lambda p: p.update(vocabulary=_tokens(unit)))
    seqexport.export(path, precision="fp32,int8", text=True)
    for name in ("g.generate.text.onnx", "g.generate.text.int8.onnx"):
        model = onnx.load(tmp_path / name)
        tried = joined_as_in_python("generate.text", model, Vocabulary.from_dict(_tokens(unit)))
        assert tried.held
        assert tried.trials > 50


def _tokens(unit):
    signs = ("a", "b", "\x00", "\u0301", "\U0001f600") if unit == "character" else ("a", "b", "c's", "\u0301", "!")
    return Vocabulary(unit, (UNKNOWN, *signs)).to_dict()


@pytest.fixture(scope="module")
def strings(tmp_path_factory):
    """Classifiers of one direction and of both, the latter by words, and a generator, each in both precisions."""
    folder = tmp_path_factory.mktemp("strings")
    words = Vocabulary("word", (UNKNOWN, *(f"w{place}" for place in range(26)), "don't", "!", "\u4f60"), lowercase=True)
    both = {"bidirectional": True, "edit": lambda preprocessing: preprocessing.update(vocabulary=words.to_dict())}
    paths = {
        "classifier": save_classifier(folder / "c.pt"),
        "both": save_classifier(folder / "b.pt", "lstm", **both),
        "generator": save_generator(folder / "g.pt"),
    }
    reports = {name: seqexport.export(path, precision="fp32,int8", text=True) for name, path in paths.items()}
    return paths, reports


TASKS = {"classifier": "classify", "both": "classify", "generator": "generate"}


@pytest.mark.parametrize("name", TASKS)
def test_the_files_are_reported_and_verified(strings, name):
    paths, reports = strings
    report, part = reports[name], f"{TASKS[name]}.text"
    stem = paths[name].with_suffix("")
    written = {file.path for file in report.files if file.part == part}
    assert written == {f"{stem}.{part}.onnx", f"{stem}.{part}.int8.onnx"}
    outcomes = [outcome for outcome in report.outcomes if outcome.part == part]
    assert len(outcomes) >= 10
    assert {error for outcome in outcomes for error in outcome.errors.values()} <= {0.0} or report.passed
    tried = [(tried.name, tried.held) for tried in report.properties if tried.part == part and "int8" not in tried.name]
    assert tried[0] == tried[-1] == ("split", True)
    metadata = OnnxRuntime(stem.with_name(f"{stem.name}.{part}.onnx")).metadata
    assert (metadata["part"], metadata["task"], metadata["verification"]["passed"]) == (part, TASKS[name], True)
    assert set(metadata) >= {"network", "preprocessing", "metrics", "data", "checkpoint_sha256", "versions"}


TEXTS = ["hello, world", "", "\x00", "Hello  WORLD w3 don\u2019t \u4f60!", "e\u0301\U0001f600 w7", "q" * 90]


@pytest.mark.parametrize("precision", ["onnxruntime", "onnxruntime-int8"])
@pytest.mark.parametrize("name", ["classifier", "both"])
def test_a_classifier_of_strings_is_the_classifier_of_numbers_after_python_s_split(strings, name, precision):
    path = strings[0][name].with_suffix(".onnx")
    runtime = seqexport.load(path, precision, pipeline="classify.text")
    numbers = seqexport.load(path, precision, pipeline="classify")
    vocabulary = Vocabulary.from_dict(numbers.metadata["preprocessing"]["vocabulary"])
    tokens, lengths = vocabulary.encode_batch(TEXTS)
    expected, found = numbers.run({"tokens": tokens, "lengths": lengths}), runtime.run({"texts": TEXTS})
    for output, value in expected.items():
        np.testing.assert_array_equal(found[output], value)
    labels = numbers.metadata["labels"]
    assert found["label"].tolist() == [labels[row.argmax()] for row in expected["probabilities"]]
    np.testing.assert_array_equal(found["numbers"], tokens)
    assert found["lengths"].tolist() == lengths.tolist()
    assert [piece for piece in found["pieces"][3] if piece] == vocabulary.split(TEXTS[3])


@pytest.mark.parametrize("precision", ["onnxruntime", "onnxruntime-int8", "torch"])
def test_prompts_of_different_lengths_are_written_on_as_each_alone(strings, precision):
    path = strings[0]["generator"].with_suffix(".pt" if precision == "torch" else ".onnx")
    runtime = seqexport.load(path, precision, pipeline="generate.text")
    numbers = seqexport.load(path, precision, pipeline="generate")
    vocabulary = Vocabulary.from_dict(numbers.metadata["preprocessing"]["vocabulary"])
    rng = np.random.default_rng(0)
    uniforms = rng.random((len(TEXTS), 30))
    state = {spec.name: spec.sample({"batch": len(TEXTS)}, rng) for spec in numbers.inputs if spec.name in ("h0", "c0")}
    for more in ({}, {"temperature": 0.7, **state}):
        alone = [
            (
                {"prompt": np.array([vocabulary.encode(text)]), "uniforms": uniforms[row : row + 1]}
                | {name: value[:, row : row + 1] if np.ndim(value) else value for name, value in more.items()}
            )
            for row, text in enumerate(TEXTS)
        ]
        expected = [numbers.run(feeds) for feeds in alone]
        if precision == "onnxruntime-int8":  # whose kernels round a whole batch by one scale
            found = [
                runtime.run({**feeds, "prompt": [text]})["text"][0] for text, feeds in zip(TEXTS, alone, strict=True)
            ]
        else:
            outputs = runtime.run({"prompt": TEXTS, "uniforms": uniforms, **more})
            found = outputs["text"].tolist()
            for name in ("hn", "cn"):
                np.testing.assert_allclose(outputs[name], np.concatenate([row[name] for row in expected], 1), atol=1e-6)
        assert found == [vocabulary.decode(row["tokens"][0]) for row in expected]


def test_a_text_is_gone_on_with_from_its_last_character_and_the_state(strings):
    runtime = seqexport.load(strings[0]["generator"].with_suffix(".onnx"), pipeline="generate.text")
    uniforms = np.random.default_rng(1).random((2, 20))
    whole = runtime.run({"prompt": ["abc", "d"], "uniforms": uniforms})["text"]
    first = runtime.run({"prompt": ["abc", "d"], "uniforms": uniforms[:, :8]})
    state = {"h0": first["hn"], "c0": first["cn"]}
    second = runtime.run({"prompt": [text[-1] for text in first["text"]], "uniforms": uniforms[:, 8:], **state})
    assert (first["text"] + second["text"]).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], "has nothing along 'batch'"),
        ("one text", "is one str; expected a list of texts"),
        (["a", None], "has None at place 1; expected a text"),
        ([b"bytes"], "has b'bytes' at place 0; expected a text"),
        (["ab\ud800"], r"lone surrogate \(U\+D800, character 3\)"),
        ([["nested"]], "expected a text"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(strings, texts, reason):
    runtime = seqexport.load(strings[0]["classifier"].with_suffix(".onnx"), pipeline="classify.text")
    with pytest.raises(InputError, match=reason):
        runtime.run({"texts": texts})


def test_an_empty_batch_is_an_error_of_onnxruntime_and_not_its_end(strings):
    """Its LSTM ends the process at an empty batch; the nodes before it refuse it."""
    for name, source in (("both", "texts"), ("generator", "prompt")):
        runtime = OnnxRuntime(strings[0][name].with_suffix(f".{TASKS[name]}.text.onnx"))
        feeds = {source: np.empty(0, object)} | (
            {"uniforms": np.empty((0, 3), np.float32)} if source == "prompt" else {}
        )
        with pytest.raises(Exception, match="StringNormalizer"):
            runtime.session.run(None, feeds)


def test_without_any_locale_it_is_the_same(strings):
    code = (
        "import onnxruntime, numpy; onnxruntime.set_default_logger_severity(4); "
        f"session = onnxruntime.InferenceSession({str(strings[0]['both'].with_suffix('.classify.text.onnx'))!r}); "
        "print(session.run(['pieces'], {'texts': numpy.array(['W1 \u00c9 W2'], dtype=object)})[0].tolist())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    for locale in ({}, {"LC_ALL": "C"}, {"LC_ALL": "xx_XX.UTF-8", "LOCPATH": "/nonexistent"}):
        command, around = [sys.executable, "-X", "utf8", "-c", code], environment | locale
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=around)
        assert done.stdout.strip() == "[['w1', '\u00c9', 'w2']]", done.stderr


def test_a_file_of_another_checkpoint_is_reported(strings, tmp_path):
    other = save_classifier(tmp_path / "c.pt", seed=3)
    seqexport.export(other)
    shutil.copy(strings[0]["classifier"].with_suffix(".classify.text.onnx"), tmp_path)
    with pytest.raises(FileError, match="export the checkpoint again with --text, so that both belong together"):
        seqexport.load(other.with_suffix(".onnx"), pipeline="classify.text")
    assert seqexport.load(other.with_suffix(".onnx"), pipeline="classify").run
    (tmp_path / "c.classify.text.onnx").unlink()
    with pytest.raises(FileError, match="export the checkpoint with --text"):
        seqexport.load(other.with_suffix(".onnx"), pipeline="classify.text")


def test_what_has_no_text_is_refused_and_nothing_written(tmp_path, capsys):
    path = save_forecaster(tmp_path / "f.pt")
    with pytest.raises(UnsupportedError, match="no classifier or generator of texts.*leave the text out"):
        seqexport.export(path, text=True)
    with pytest.raises(SpecError, match="needs the opset 20 or later.*got 18"):
        seqexport.export(save_generator(tmp_path / "g.pt"), text=True, opset=18)
    assert main([str(path), "--text"]) == 2
    assert "leave the text out" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))


def test_a_wrong_graph_is_not_written(tmp_path, monkeypatch):
    """Labels in another order, and a table with two tokens changed: exit 1, and an older file stays."""
    path = save_classifier(tmp_path / "c.pt")
    seqexport.export(path, text=True)
    file = path.with_suffix(".classify.text.onnx")
    before = file.read_bytes()
    from seqexport import exporter

    monkeypatch.setattr(exporter, "with_strings", lambda g, v, labels: with_strings(g, v, labels[::-1]))
    with pytest.raises(ParityError, match=r"classify\.text"):
        seqexport.export(path, text=True)
    swapped = lambda v: Vocabulary(v.unit, (v.tokens[0], v.tokens[2], v.tokens[1], *v.tokens[3:]), v.lowercase)  # noqa: E731
    monkeypatch.setattr(exporter, "with_strings", lambda g, v, labels: with_strings(g, swapped(v), labels))
    with pytest.raises(ParityError):
        seqexport.export(path, text=True)
    assert file.read_bytes() == before


def test_the_commands_take_files_of_strings(strings, capsys):
    classifier, generator = (strings[0][name] for name in ("classifier", "generator"))
    file = str(classifier.with_suffix(".classify.text.onnx"))
    assert main(["run", file, "text=hello"]) == 0
    assert "label string[1]" in capsys.readouterr().out
    assert main(["run", file, 'texts=["hello", "a\\u0000"]', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pieces"][1][:2] == ["a", "\x00"]
    command = ["run", str(generator), "--pipeline", "generate.text", "text=hello", "uniforms=uniform[1,9]", "--json"]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["text"] == ["".join(said["text"])]
    assert main(["verify", str(classifier), file, "--thorough"]) == 0
    assert main(["inspect", file]) == 0
    assert "string[batch]" in capsys.readouterr().out
