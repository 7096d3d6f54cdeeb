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
    ("graphs", "_translations_kept.from_torchlib", "opset_version"): "torch.onnx names the opset at every call",
    ("freezing", "check_not_frozen", "min(len(other), len(mine))"): "the least of two is so in either order",
    ("freezing", "check_not_frozen", "mine[min(len(mine), len(other)) - 1] → "): "the loop before left the same names",
    ("freezing", "_suspicious", "1 < number"): "no example has a size of 1",
    ("graphs", "build_graph", "check_model"): "a file that is no ONNX is refused by onnxruntime a moment later",
}
