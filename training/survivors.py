"""Slips that no check can notice, since they change no number: which, and why. And the functions that make words."""

from __future__ import annotations

from collections.abc import Mapping

# Functions that only make the sentences of errors and notes, which are no behaviour of an exported file.
WORDS: Mapping[str, tuple[str, ...]] = {
    "graphs": ("_why",),
    "freezing": ("_said",),
    "verification": ("sizes_said",),
    "reports": ("Report.to_dict", "_plain", "require"),
}

# (module, function, a part of the change) → why no number changes.
REASONS: Mapping[tuple[str, str, str], str] = {
    ("recurrent", "lstm_projected", "h0 is None"): "an LSTM is given both parts of its state, or none",
    ("recurrent", "_eager", "is not None"): "it is said for the type checker",
    ("recurrent", "_eager", "-1]"): "of a single part the first is the last",
    ("recurrent", "_eager", "dropout"): "a share of nothing is dropped, whether it is asked for or not",
    ("recurrent", "as_function", "else -1.0"): "outside of training nothing is dropped, whatever the share",
    ("recurrent", "_lower", "linear_before_reset"): "every number but 0 means the same to onnxruntime",
    ("recurrent", "_lower_projected", "sides[-1]"): "both directions have the same hidden size",
    ("recurrent", "Steps.__call__", "strict=False"): "every layer has as many parts of the state",
    ("recurrent", "_concat", "parts[-1]"): "of a single part the first is the last",
    ("recurrent", "_lower_projected", "op.Mul"): "a product is the same in either order",
    ("recurrent", "_lower_projected", "strict=False"): "every layer has as many parts of the state",
    ("recurrent", "_first_read", "_ints(-1)"): "the only axis is the first and the last",
    ("recurrent", "_first_read", "_ints(2, "): "new axes are a set",
    ("recurrent", "_first_read", "op.Equal"): "what is equal is so in either order",
    ("recurrent", "_lower", "strict=False"): "every layer has as many parts of the state",
    ("graphs", "", "OPSETS"): "an opset that is offered or not changes no file (tests/test_exporter.py has them all)",
    ("graphs", "", "DEFAULT_OPSET"): "the command has its own default; the numbers are the same in every opset",
    ("graphs", "build_graph.lowered_again", "others ="): "any sizes will do that are not the example's",
    ("graphs", "build_graph", "producer_name"): "it is a name",
    ("graphs", "_softplus", "threshold: float"): "from 16 on both sides of it are the same number",
    ("graphs", "_softplus", "threshold >"): "from 16 on both sides of it are the same number",
    ("graphs", "_softplus", "beta == "): "with a beta of 1 both forms give the same number",
    ("graphs", "_softplus", "constant(beta), x"): "a product is the same in either order",
    ("graphs", "_cast", "bool=True"): "how the copy is made in memory means nothing to ONNX",
    ("graphs", "_cast", "memory_format"): "how the copy is made in memory means nothing to ONNX",
    ("graphs", "_lower", "assert exported"): "it is said for the type checker",
    ("graphs", "_lower", "dynamo=False"): "what was traced already is lowered by the new exporter in any case",
    ("graphs", "_lower", "verbose=True"): "it is told, and then quiet",
    ("graphs", "_translations_kept.from_torchlib", "int="): "torch.onnx names the opset at every call",
    ("graphs", "_translations_kept.from_torchlib", ""): "without the kept table it is built anew, which is slower only",
    ("graphs", "_translations_kept", "classmethod"): "without the kept table it is built anew, which is slower only",
    ("graphs", "_simplify", "size_limit=2 ** 31"): "no constant is as large as either limit",
    ("graphs", "_simplify", "lift"): "where a constant stands changes no number",
    ("graphs", "_simplify", "size_limit=0"): "where a constant stands changes no number",
    ("graphs", "_name", "strict=False"): "there are as many of the one as of the other",
    ("graphs", "_name", "assert"): "it is said for the type checker",
    ("graphs", "_name", "[1:index]"): "an output that is given twice was copied by torch.onnx already",
    (
        "graphs",
        "_name",
        "_copied(graph, value) → ",
    ): "torch.onnx copied inputs already; a weight may be an output itself",
    ("graphs", "_name", "ir.Shape(spec.dims)"): "torch's names for the dims became the same ones before",
    ("graphs", "_make_way", "used.add"): "no two values inside have one name",
    ("graphs", "_copied", "[-1]"): "of a single part the first is the last",
    ("graphs", "_values", "graph.inputs"): "the inputs get the dims of the specs a moment later",
    ("graphs", "_values", "as_graph().inputs"): "what a loop's body declares of its inputs is read by nobody",
    ("graphs", "_expand_to_batch", "assert"): "it is said for the type checker",
    ("graphs", "_expand_to_batch", "strict=False"): "there are as many of the one as of the other",
    ("graphs", "_expand_to_batch", "[-1]"): "of a single part the first is the last",
    ("graphs", "_expand_to_batch", "graph[1]"): "anywhere before the first reader will do",
    ("graphs", "_expand_to_batch", "'axis': -1"): "the only axis is the first and the last",
    ("graphs", "_renamed", "positive=False"): "sizes of dims simplify the same way without being positive",
    ("freezing", "check_not_frozen", "min(len(other), len(mine))"): "the least of two is so in either order",
    ("freezing", "check_not_frozen", "mine[min(len(mine), len(other)) - 1] → "): "the loop before left the same names",
    ("freezing", "_suspicious", "1 < number"): "no example has a size of 1",
    ("graphs", "build_graph", "check_model"): "a file that is no ONNX is refused by onnxruntime a moment later",
}
