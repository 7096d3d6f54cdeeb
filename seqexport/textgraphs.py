"""Strings around a pipeline's graph: the split into tokens before it, and behind it the label or the joined text.

The nodes are onnxruntime's own, so that nothing has to be installed beside it: StringNormalizer, Tokenizer and
LabelEncoder read, StringConcat in a Loop writes. (onnxruntime's Scan corrupts strings that it carries; its Loop does
not.) What they do is what `Vocabulary` does in Python, from the same tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from seqexport.errors import SpecError
from seqexport.specs import READ
from seqexport.text import REPLACEMENT, Vocabulary

LEAST_OPSET = 20  # where StringConcat begins
TOKENIZER, LABEL_ENCODER = ("com.microsoft", 1), ("ai.onnx.ml", 2)  # domains and versions
SOME_TOKEN = "a"  # a text of one token, by words and by characters
FOREVER = 2**62  # the end of a slice that has none


def check_opset(opset: int) -> None:
    """Raise SpecError for an opset without the operators that join strings."""
    if opset < LEAST_OPSET:
        raise SpecError(
            f"A graph of strings needs the opset {LEAST_OPSET} or later, where StringConcat begins; got {opset}: leave "
            "the opset or the text out."
        )


def with_strings(
    graph_of_numbers: onnx.ModelProto, vocabulary: Vocabulary, labels: Sequence[str] = ()
) -> onnx.ModelProto:
    """The model of a pipeline whose first inputs are numbers int64 [batch,time] and lengths int64 [batch], with strings
    in their place.

    labels: of a classifier, whose graph then takes texts string [batch] and also gives label string [batch]; a
    generator's, without labels, takes prompt string [batch] and gives text string [batch]. Both also give what they
    read: pieces string [batch,time], numbers and lengths.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph_of_numbers)
    graph = model.graph
    nodes = _Nodes(graph)
    source = "texts" if labels else "prompt"
    _read(nodes, vocabulary, source)
    nodes.list.extend(graph.node)
    answer = _name_the_label(nodes, labels) if labels else _join(nodes, vocabulary)
    outputs = [_strings(answer, "batch"), *graph.output, _strings("pieces", "batch", "time")]
    inputs = {value.name: value for value in graph.input}
    outputs += [inputs.pop(name) for name in READ[1:]]
    replacements = ((graph.node, nodes.list), (graph.input, [_strings(source, "batch"), *inputs.values()]))
    for field, values in (*replacements, (graph.output, outputs)):
        kept = [_copied(value) for value in values]
        del field[:]
        field.extend(kept)
    for domain, version in (TOKENIZER, LABEL_ENCODER):
        model.opset_import.append(helper.make_opsetid(domain, version))
    onnx.checker.check_model(model)
    return model


def joining_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of a generator's graph of strings the part that joins: tokens int64 [batch,steps] → text string [batch]."""
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    kept = [node for node in graph.node if node.name.startswith(_JOIN)]
    used = {name for node in kept for name in node.input}
    bodies = [attribute.g for node in kept for attribute in node.attribute]
    used |= {name for body in bodies for node in body.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "steps"])
    for field in (graph.value_info, graph.initializer, graph.node, graph.input, graph.output):
        del field[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    graph.input.append(tokens)
    graph.output.append(_strings("text", "batch"))
    return alone


_READ, _LABEL, _JOIN = "read/", "label/", "join/"  # what the nodes' names begin with, which torch's never do


def _read(nodes: _Nodes, vocabulary: Vocabulary, source: str) -> None:
    """Strings [batch] → pieces [batch,time], numbers [batch,time], 0 behind a text's end, lengths [batch]."""
    # StringNormalizer lower-cases ASCII alone in the locale "C", the one that every system has. It stands here also
    # where nothing is lower-cased, for it refuses an empty batch, at which onnxruntime's LSTM ends the process.
    case = "LOWER" if vocabulary.lowercase else "NONE"
    cased = nodes(_READ, "StringNormalizer", [source], case_change_action=case, locale="C")
    # One more text, which has a token, so that there is a step also where none of the others has a token.
    more = nodes(_READ, "Concat", [cased, nodes.texts(_READ, "one_more", [SOME_TOKEN])], axis=0)
    split = nodes(_READ, "Tokenizer", [more], domain=TOKENIZER[0], **vocabulary.tokenizer)
    rows = [nodes.numbers(_READ, name, [value]) for name, value in (("first", 0), ("last", -1), ("rows", 0))]
    nodes(_READ, "Slice", [split, *rows], to="pieces")
    known = vocabulary.spellings
    table: dict[str, Any] = {"keys_strings": list(known), "values_int64s": list(known.values()), "default_int64": 0}
    nodes(_READ, "LabelEncoder", ["pieces"], to="numbers", domain=LABEL_ENCODER[0], **table)
    empty = nodes(_READ, "Equal", ["pieces", nodes.texts(_READ, "nothing", [""])])
    there = nodes(_READ, "Cast", [nodes(_READ, "Not", [empty])], to_type=TensorProto.INT64)
    count = nodes(_READ, "ReduceSum", [there, nodes.numbers(_READ, "along", [1])], keepdims=0)
    # A text without tokens is one unknown token, which is what stands behind a text's end.
    nodes(_READ, "Max", [count, nodes.numbers(_READ, "least", [1])], to="lengths")


def _name_the_label(nodes: _Nodes, labels: Sequence[str]) -> str:
    """probabilities [batch,classes] → label string [batch], the first of those that are equally likely."""
    likeliest = nodes(_LABEL, "ArgMax", ["probabilities"], axis=-1, keepdims=0)
    return nodes(_LABEL, "Gather", [nodes.texts(_LABEL, "names", labels), likeliest], to="label")


def _join(nodes: _Nodes, vocabulary: Vocabulary) -> str:
    """tokens [batch,steps] → text string [batch]: characters one after another, words with a blank between them."""
    table = nodes.texts(_JOIN, "table", [REPLACEMENT, *vocabulary.tokens[1:]])
    one, two, axis = (nodes.numbers(_JOIN, name, [value]) for name, value in (("one", 1), ("two", 2), ("axis", 1)))
    zero, end = (nodes.numbers(_JOIN, name, [value]) for name, value in (("zero", 0), ("end", FOREVER)))
    written = nodes(_JOIN, "Gather", [table, "tokens"])
    if vocabulary.unit == "word":
        first = nodes(_JOIN, "Slice", [written, zero, one, axis])
        others = nodes(_JOIN, "Slice", [written, one, end, axis])
        spaced = nodes(_JOIN, "StringConcat", [nodes.texts(_JOIN, "blank", [" "]), others])
        written = nodes(_JOIN, "Concat", [first, spaced], axis=1)
    batch = nodes(_JOIN, "Shape", ["tokens"], start=0, end=1)
    column = nodes(_JOIN, "Concat", [batch, one], axis=0)
    nothing = nodes(_JOIN, "Expand", [nodes.texts(_JOIN, "nothing", [""]), column])  # [batch,1]
    several = nodes(_JOIN, "Greater", [nodes(_JOIN, "Shape", ["tokens"], start=1, end=2), one])
    several = nodes(_JOIN, "Squeeze", [several])
    # Neighbours are joined in pairs until one string is left: each character is copied as often as the number of
    # steps can be halved. Joined one by one, it would be as often as there are steps after it.
    inside = _Nodes(onnx.GraphProto(), f"{_JOIN}pairs/")
    whole = inside("", "Concat", ["parts", nothing], axis=1)  # so that the last one has a neighbour
    even = inside("", "Slice", ["parts", zero, end, axis, two])
    odd = inside("", "Slice", [whole, one, end, axis, two])
    joined = inside("", "StringConcat", [even, odd])
    left = inside("", "Greater", [inside("", "Shape", [joined], start=1, end=2), one])
    again = inside("", "Squeeze", [left])
    scalars = [helper.make_tensor_value_info("pass", TensorProto.INT64, [])]
    scalars += [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", again)]
    parts = [_strings(name, "batch", f"{name}_steps") for name in ("parts", joined)]
    body = helper.make_graph(inside.list, "pairs", [*scalars[:2], parts[0]], [scalars[2], parts[1]])
    single = nodes(_JOIN, "Loop", ["", several, written], body=body)
    return nodes(_JOIN, "Squeeze", [single, axis], to="text")


class _Nodes:
    """Nodes in their order, each named by what it is for; a call adds one and gives its output's name."""

    def __init__(self, graph: onnx.GraphProto, prefix: str = "") -> None:
        self.graph, self.prefix = graph, prefix
        self.list: list[onnx.NodeProto] = []

    def __call__(
        self,
        what: str,
        operator: str,
        inputs: Sequence[str],
        *,
        to: str = "",
        to_type: int | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        name = f"{self.prefix}{what}{operator}_{len(self.list)}"
        if to_type is not None:
            attributes["to"] = to_type
        output = to or name
        self.list.append(helper.make_node(operator, inputs, [output], name, domain=domain or None, **attributes))
        return output

    def numbers(self, what: str, name: str, values: Sequence[int]) -> str:
        """A constant of whole numbers."""
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), what + name))
        return what + name

    def texts(self, what: str, name: str, values: Sequence[str]) -> str:
        """A constant of strings. (Made by onnx's helper it would lose NUL characters at a text's end.)"""
        tensor = TensorProto(name=what + name, data_type=TensorProto.STRING, dims=[len(values)])
        tensor.string_data.extend(value.encode() for value in values)
        self.graph.initializer.append(tensor)
        return what + name


def _strings(name: str, *dims: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.STRING, dims)


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
