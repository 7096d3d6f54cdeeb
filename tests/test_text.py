"""Vocabularies: the split, its agreement with onnxruntime's Tokenizer, and what is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from seqexport import InputError, SpecError
from seqexport.text import UNKNOWN, Vocabulary, read_prompt

WORDS = Vocabulary.counted(["don't stop, it is good good!", "好看 très café"], "word", lowercase=True)
CHARACTERS = Vocabulary.counted(["hello world", "你好"], "character", lowercase=False)

# Blanks, signs, both cases, and letters of many scripts, next to anything else that is a character.
SCRIPTS = (
    "aZ09 \t\n\r\x0b\x0c\x1c\xa0\u3000\u200b'\u2019\"-_.,;:!?\uff01\uff1f\x00\x7f"
    "éÉßİıΑωΩЖяЎאבگعأंनமกั가힣あアー字龍㐀䶿𠀀😀👍🏽𝔘e\u0301\u0345ﬀŁłʼ\ufeff\uffff"
)
TEXTS = st.text(st.one_of(st.sampled_from(SCRIPTS), st.characters(exclude_categories=["Cs"])), max_size=30)


def tokenizer_session(vocabulary):
    """The nodes that a graph which takes strings begins with."""
    case = "LOWER" if vocabulary.lowercase else "NONE"
    nodes = [
        helper.make_node("StringNormalizer", ["text"], ["cased"], case_change_action=case, locale="C"),
        helper.make_node("Tokenizer", ["cased"], ["tokens"], domain="com.microsoft", **vocabulary.tokenizer),
    ]
    inputs = [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])]
    outputs = [helper.make_tensor_value_info("tokens", TensorProto.STRING, ["batch", "time"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "text", inputs, outputs), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("unit", ["word", "character"])
def test_the_tokenizer_node_splits_as_python_does(unit, lowercase):
    vocabulary = Vocabulary(unit, (UNKNOWN, "a"), lowercase)
    session = tokenizer_session(vocabulary)
    seen = 0

    # 250 batches of 10 for each of the four kinds of vocabulary: 10,000 strings.
    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(TEXTS, min_size=10, max_size=10))
    def check(texts):
        nonlocal seen
        seen += len(texts)
        rows = session.run(None, {"text": np.array(texts, dtype=object)})[0]
        for text, row in zip(texts, rows, strict=True):
            assert [token for token in row if token] == vocabulary.split(text)

    check()
    assert seen >= 2500


def test_words_are_split_and_lower_cased_in_ascii_only():
    assert WORDS.split("Don't STOP—it is good, ÉCOLE!") == ["don't", "stop", "it", "is", "good", "École", "!"]
    assert WORDS.split("très_café 3D 好看？") == ["très", "café", "3d", "好", "看", "？"]
    assert CHARACTERS.split("Aé 你\n") == ["A", "é", " ", "你", "\n"]


def test_numbers_go_by_frequency_and_then_by_the_token():
    vocabulary = Vocabulary.counted(["b a c b", "c d"], "word", lowercase=False)
    assert vocabulary.tokens == (UNKNOWN, "b", "c", "a", "d")
    assert Vocabulary.counted(["b a c b", "c d"], "word", lowercase=False, size=3).tokens == (UNKNOWN, "b", "c")
    assert Vocabulary.counted(["b a c b", "c d"], "word", lowercase=False, least=2).tokens == (UNKNOWN, "b", "c")


def test_encoding_and_decoding():
    assert WORDS.encode("GOOD zebra good") == [WORDS.numbers["good"], 0, WORDS.numbers["good"]]
    assert WORDS.encode("Don\u2019t") == [WORDS.numbers["don't"]]
    assert CHARACTERS.decode(CHARACTERS.encode("hello 你好 ☃")) == "hello 你好 \ufffd"
    assert WORDS.decode(WORDS.encode("it is good")) == "it is good"
    tokens, lengths = WORDS.encode_batch(["good", "it is good!", ""])
    assert tokens.dtype == lengths.dtype == np.int64
    assert lengths.tolist() == [1, 4, 1]
    assert tokens[0, 1:].tolist() == [0, 0, 0]
    assert tokens[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("text", ["", "   ", "…—", "\u3000"])
def test_a_text_without_words_is_one_unknown_token(text):
    assert WORDS.encode(text) == [0]
    assert CHARACTERS.encode("") == [0]


@pytest.mark.parametrize(
    "call", [CHARACTERS.split, WORDS.encode, CHARACTERS.unknown, lambda t: CHARACTERS.encode_batch([t])]
)
def test_a_lone_surrogate_is_refused(call):
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D800, character 3\).*remove it"):
        call("ab\ud800c")


def test_no_text_at_all_is_refused():
    with pytest.raises(InputError, match="no text"):
        WORDS.encode_batch([])


def test_what_a_model_does_not_know_is_told_once():
    assert CHARACTERS.unknown("hexxo ☃ 你x") == ["x", "☃"]
    assert WORDS.unknown("good Zebra don\u2019t zebra") == ["zebra"]


def test_the_dict_form_is_exact():
    for vocabulary in (WORDS, CHARACTERS):
        assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"unit": "syllable"}, "unit is 'syllable'"),
        ({"lowercase": 1}, "lowercase is 1"),
        ({"tokens": ["a", "b"]}, "starts with"),
        ({"tokens": [UNKNOWN]}, "starts with"),
        ({"tokens": [UNKNOWN, "a", "b", "a"]}, "'a' twice"),
        ({"tokens": [UNKNOWN, "a", 7]}, "the token 7"),
        ({"tokens": [UNKNOWN, "a", "two"]}, "'two', which no text splits into"),
        ({"tokens": [UNKNOWN, "a", ""]}, "'', which no text"),
        ({"tokens": None}, "lacks or garbles"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(fields, reason):
    with pytest.raises(SpecError, match=reason):
        Vocabulary.from_dict(CHARACTERS.to_dict() | fields)


def test_a_lowercase_vocabulary_refuses_a_token_that_its_split_never_gives():
    with pytest.raises(SpecError, match="'A', which no text splits into"):
        Vocabulary("character", (UNKNOWN, "A"), lowercase=True)


def test_a_prompt_is_read_with_notes():
    tokens, notes = read_prompt(CHARACTERS, "hello", window=5)
    assert CHARACTERS.decode(tokens[0]) == "hello"
    assert tokens.shape == (1, 5)
    assert notes == []
    _, notes = read_prompt(CHARACTERS, "hello ☃☃", window=5)
    assert ["does not know '☃'" in notes[0], "8 characters" in notes[1], len(notes)] == [True, True, 2]


@pytest.mark.parametrize(
    ("prompt", "reason"), [("", "prompt is empty"), ("☃☂", "knows none of the prompt's characters")]
)
def test_a_prompt_that_says_nothing_is_refused(prompt, reason):
    with pytest.raises(InputError, match=reason):
        read_prompt(CHARACTERS, prompt)
