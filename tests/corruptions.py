"""What may be wrong with an exported file: name → what it spoils, what it does, and why it could happen."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from spoiling import (
    FLOAT64,
    HIDDEN,
    INT32,
    RECURRENT,
    after,
    all_weights,
    attribute,
    before,
    bypassed,
    declared,
    default,
    directions_swapped,
    dtype,
    embedding,
    f32,
    first_kept,
    fixed,
    flipped,
    gates,
    gates_transposed,
    halves_swapped,
    head,
    inputs_swapped,
    ints,
    last_of_y,
    layers_swapped,
    metadata,
    number,
    outputs_swapped,
    permuted,
    recurrence_lengths,
    replaced,
    rewired,
    row_nudged,
    shape_frozen,
    smallest_nudged,
    tokens_reversed,
    weight,
)


@dataclass(frozen=True)
class Corruption:
    """files: the files it applies to, by the names of tests/test_corruptions.py. reason: how it comes about."""

    files: tuple[str, ...]
    spoil: Callable[[onnx.ModelProto], None]
    reason: str


LSTM, GRU, RNN = ("lstm",), ("gru",), ("rnn",)
ORDER = "another order of the gates than ONNX's"
ROUNDED = "one number wrong, as by a copy in another precision or a bug in folding"
STATE = "a chunk would start from the wrong state"

LENGTHS_WHOLE = before("lengths", ("Mul", (ints(0)[0],), {}), ("Add", ("time_now",), {}))

LENGTHS_LESS = before("lengths", ("Sub", (ints(1)[0],), {}), ("Max", (ints(1)[0],), {}))
TABLE: dict[str, Corruption] = {
    "LSTM gates i and o swapped": Corruption(LSTM, all_weights(gates(1, 0, 2, 3)), ORDER),
    "LSTM gates f and c swapped": Corruption(LSTM, all_weights(gates(0, 1, 3, 2)), ORDER),
    "LSTM gates in torch's order": Corruption(LSTM, all_weights(gates(0, 2, 3, 1)), ORDER),
    "LSTM gates of W alone swapped": Corruption(LSTM, weight(1, gates(1, 0, 2, 3)), ORDER),
    "LSTM gates of R alone swapped": Corruption(LSTM, weight(2, gates(1, 0, 2, 3)), ORDER),
    "LSTM gates of B alone swapped": Corruption(LSTM, weight(3, gates(1, 0, 2, 3)), ORDER),
    "GRU gates z and r swapped": Corruption(GRU, all_weights(gates(1, 0, 2)), ORDER),
    "GRU gates z and h swapped": Corruption(GRU, all_weights(gates(2, 1, 0)), ORDER),
    "GRU gates of the second layer's R swapped": Corruption(GRU, weight(2, gates(1, 0, 2), 1), ORDER),
    "GRU bias halves swapped": Corruption(GRU, weight(3, halves_swapped), "b_ih and b_hh differ where h is made"),
    "GRU linear_before_reset 0": Corruption(GRU, attribute(["GRU"], "linear_before_reset", 0), "ONNX's default"),
    "GRU reset after the bias": Corruption(
        GRU,
        weight(3, lambda b: b + np.repeat([0, 0, 1, 0, 0, -1], HIDDEN)[None].astype("f") * 0.1),
        "sums are the same",
    ),
    "bias dropped": Corruption(GRU, rewired("GRU", 3, ""), "optional inputs are easily left out"),
    "bias of W dropped": Corruption(
        RNN, weight(3, lambda b: np.concatenate([b[:, :HIDDEN] * 0, b[:, HIDDEN:]], 1)), "b_ih forgotten"
    ),
    "bias of R dropped": Corruption(
        RNN, weight(3, lambda b: np.concatenate([b[:, :HIDDEN], b[:, HIDDEN:] * 0], 1)), "b_hh forgotten"
    ),
    "direction reversed": Corruption((*LSTM, *GRU), attribute(RECURRENT, "direction", "reverse"), "a wrong default"),
    "directions swapped": Corruption(("both",), all_weights(directions_swapped), "W_ih of the wrong direction"),
    "directions joined in the wrong order": Corruption(
        ("both",), permuted([0, 2, 1, 3], [0, 2, 3, 1]), "y is (T, D, B, H)"
    ),
    "state h dropped": Corruption((*LSTM,), rewired("LSTM", 5, ""), STATE),
    "state c dropped": Corruption((*LSTM,), rewired("LSTM", 6, ""), STATE),
    "state of the GRU dropped": Corruption((*GRU,), rewired("GRU", 5, ""), STATE),
    "state times zero": Corruption(GRU, before("h0", ("Mul", (f32(0),), {})), STATE),
    "state of the other layer": Corruption((*LSTM, *GRU), layers_swapped(5), STATE),
    "h0 and c0 swapped": Corruption(LSTM, inputs_swapped("LSTM", 5, 6), STATE),
    "hn and cn swapped": Corruption(LSTM, outputs_swapped("hn", "cn"), STATE),
    "hn of the layers in the wrong order": Corruption((*LSTM, *GRU), after("hn", flipped(0)), STATE),
    "hn of the rows in the wrong order": Corruption(GRU, after("hn", flipped(1)), "sorting undone the wrong way"),
    "hn is the state before": Corruption(
        GRU, after("hn", ("Mul", (f32(0),), {}), ("Add", ("h0_expanded",), {})), STATE
    ),
    "hn of the reverse direction from y's wrong end": Corruption(("both",), last_of_y, STATE),
    "default state not zero": Corruption((*GRU, *LSTM), default("h0", 0.01), "the file's own default"),
    "layers' order swapped": Corruption(LSTM, layers_swapped(1, 2, 3), "both fit where features and hidden are equal"),
    "W transposed": Corruption((*LSTM, *GRU), weight(1, gates_transposed), "square, so that it fits"),
    "R transposed": Corruption((*LSTM, *GRU, *RNN), weight(2, gates_transposed), "square, so that it fits"),
    "head transposed": Corruption(("lstm",), head(lambda w: w.T.reshape(w.shape), 0), "a linear layer's layout"),
    "smallest weight of W off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(1, smallest_nudged), ROUNDED),
    "smallest weight of R off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(2, smallest_nudged), ROUNDED),
    "smallest weight of R, second layer": Corruption((*LSTM, *GRU), weight(2, smallest_nudged, 1), ROUNDED),
    "smallest bias off by 1e-3": Corruption((*LSTM, *GRU, *RNN), weight(3, smallest_nudged), ROUNDED),
    "smallest weight of the head off by 1e-3": Corruption(
        ("lstm", "gru", "generator"), head(smallest_nudged, 0), ROUNDED
    ),
    "smallest bias of the head off by 1e-3": Corruption(
        ("lstm", "gru", "generator"), head(smallest_nudged, 1), ROUNDED
    ),
    "one token's weights in a generator's head off by 1e-2": Corruption(
        ("generate",), head(row_nudged(3, 1e-2), 0), ROUNDED
    ),
    "bias of a generator's head off by 1e-3": Corruption(("generate",), head(smallest_nudged, 1), ROUNDED),
    "weight of a generator's W off by 1e-3": Corruption(("generate",), weight(1, smallest_nudged), ROUNDED),
    "first row of an embedding": Corruption(("generator", "generate", "both"), embedding(row_nudged(0)), ROUNDED),
    "last row of an embedding": Corruption(("generator", "generate", "both"), embedding(row_nudged(-1)), ROUNDED),
    "rarely read row of an embedding": Corruption(
        ("wide", "wide classify", "wide generate"),
        embedding(row_nudged(3001)),
        "thousands of tokens, of which a case reads some",
    ),
    "NaN in a row of an embedding": Corruption(("wide",), embedding(row_nudged(2999, np.nan)), ROUNDED),
    "embedding rows swapped": Corruption(
        ("generator",), embedding(lambda table: table[[1, 0, *range(2, len(table))]]), "another order of the vocabulary"
    ),
    "vocabulary shifted by one": Corruption(
        ("generator", "both classify"), embedding(lambda table: np.roll(table, 1, 0)), "the padding token forgotten"
    ),
    "activation Relu for Tanh": Corruption(
        RNN, attribute(["RNN"], "activations", ["Relu"]), "nonlinearity not handed on"
    ),
    "activation HardSigmoid for Sigmoid": Corruption(
        GRU, attribute(["GRU"], "activations", ["HardSigmoid", "Tanh"]), "Keras' old default"
    ),
    "activation Softsign for Tanh": Corruption(
        LSTM, attribute(["LSTM"], "activations", ["Sigmoid", "Tanh", "Softsign"]), "the last one"
    ),
    "clip set": Corruption((*LSTM, *GRU), attribute(RECURRENT, "clip", 0.5), "an attribute that torch does not have"),
    "input_forget set": Corruption(LSTM, attribute(["LSTM"], "input_forget", 1), "couples two gates"),
    "batch of the example in an Expand": Corruption(GRU, shape_frozen("Expand", 1, 13), "a size as a constant"),
    "rows of the example in the forecast": Corruption(
        ("forecast",), shape_frozen("Expand", 2, 17, 1), "the number of paths as a constant"
    ),
    "horizon of the example in the forecast": Corruption(
        ("forecast",), shape_frozen("Reshape", 0, 29), "as a constant"
    ),
    "time of the example in a Reshape": Corruption(
        ("both",), shape_frozen("Reshape", 0, 23, computed=False), "a size as a constant"
    ),
    "batch of the example in a Reshape": Corruption(
        ("both",), shape_frozen("Reshape", 1, 13, computed=False), "a size as a constant"
    ),
    "batch and time swapped": Corruption((*LSTM,), permuted([1, 0, 2], [0, 1, 2]), "batch_first lost"),
    "projection folded in the wrong order": Corruption(("projected",), weight(2, gates_transposed), "W_hr W_hh"),
    "projection's state left out": Corruption(
        ("projected",), before("h0", ("Mul", (f32(0),), {})), "W_hh h0 comes in by the input"
    ),
    "projected hn in another order": Corruption(("projected",), after("hn", flipped(2)), "another order of P"),
    "scaler's mean left out": Corruption(("forecast",), bypassed("Sub"), "preprocessing forgotten"),
    "scaler's spread left out": Corruption(("forecast",), bypassed("Div"), "preprocessing forgotten"),
    "scaler's mean off by 1e-3": Corruption(("forecast",), number("Sub", 6.0, 6.001), ROUNDED),
    "square root left out": Corruption(("forecast",), bypassed("Sqrt"), "preprocessing forgotten"),
    "negative values not clamped": Corruption(
        ("forecast",), before("history", ("Abs", (), {})), "clamp(min=0) forgotten"
    ),
    "square root's undo left out": Corruption(
        ("forecast",), after("path", ("Sqrt", (), {})), "postprocessing forgotten"
    ),
    "floor of the spread left out": Corruption(("forecast",), number("Add", 1e-3, 0.0), "softplus(…) + 1e-3"),
    "noise of path 0 used for all": Corruption(
        ("forecast",),
        before("noise", first_kept(1), ("Expand", ("noise_shape",), {})),
        "a broadcast in the wrong place",
    ),
    "noise in the wrong order": Corruption(
        ("forecast",), before("noise", flipped(2)), "a scan over the wrong direction"
    ),
    "noise off by 1e-3": Corruption(("forecast",), before("noise", ("Mul", (f32(1.001),), {})), ROUNDED),
    "history cut": Corruption(
        ("forecast",), before("history", ("Slice", (ints(-3), ints(2**31), ints(1)), {})), "a context as in training"
    ),
    "state of the forecast left out": Corruption(("forecast",), before("h0", ("Mul", (f32(0),), {})), STATE),
    "lengths one less": Corruption(("both classify", "mean classify", "last classify"), LENGTHS_LESS, "off by one"),
    "lengths one more": Corruption(
        ("both classify", "mean classify", "last classify"),
        before("lengths", ("Add", (ints(1)[0],), {}), ("Min", ("time_now",), {})),
        "off by one",
    ),
    "lengths of the recurrence alone one less": Corruption(("both classify",), recurrence_lengths(-1), "off by one"),
    "lengths of the recurrence alone one more": Corruption(("both classify",), recurrence_lengths(1), "off by one"),
    "lengths of the recurrence left out": Corruption(("both classify",), rewired("LSTM", 4, ""), "padding is read"),
    "padding counted in the mean": Corruption(("mean classify",), LENGTHS_WHOLE, "a mean over all steps"),
    "last step read at T - 1": Corruption(("last classify",), LENGTHS_WHOLE, "y[:, -1] in place of y[lengths - 1]"),
    "softmax over another axis": Corruption(("both classify",), attribute(["Softmax"], "axis", 0), "axis 0"),
    "softmax left out": Corruption(("both classify",), replaced("Softmax", "Identity"), "logits"),
    "classes in another order": Corruption(("both classify",), after("probabilities", flipped(1)), "labels sorted"),
    "running answers in another order": Corruption(("mean classify",), after("running", flipped(1)), "time reversed"),
    "temperature ignored": Corruption(("generate",), fixed("temperature", f32(1)), "an option not wired up"),
    "temperature upside down": Corruption(("generate",), before("temperature", ("Reciprocal", (), {})), "* for /"),
    "top-k ignored": Corruption(("generate",), fixed("top_k", ints(0)[0]), "an option not wired up"),
    "top-k off by one": Corruption(
        ("generate",), before("top_k", ("Mul", (ints(1)[0],), {}), ("Add", ("one_if_any",), {})), "< for <="
    ),
    "top-p ignored": Corruption(("generate",), fixed("top_p", f32(1)), "an option not wired up"),
    "top-p off by 1e-2": Corruption(("generate",), before("top_p", ("Mul", (f32(0.99),), {})), ROUNDED),
    "uniforms off by 1e-3": Corruption(("generate",), before("uniforms", ("Mul", (f32(0.999),), {})), ROUNDED),
    "uniform of the first step used for all": Corruption(
        ("generate",), before("uniforms", first_kept(1), ("Expand", ("uniforms_shape",), {})), "a broadcast"
    ),
    "default temperature another": Corruption(("generate",), default("temperature", 0.9), "the file's own default"),
    "default top-k another": Corruption(("generate",), default("top_k", 7), "the file's own default"),
    "default top-p another": Corruption(("generate",), default("top_p", 0.9), "the file's own default"),
    "the prompt's last token alone": Corruption(
        ("generate",), before("prompt", ("Slice", (ints(-1), ints(2**31), ints(1)), {})), "the prompt not read"
    ),
    "tokens shifted by one": Corruption(
        ("generate",), after("tokens", ("Sub", (ints(1)[0],), {}), ("Abs", (), {})), "special tokens"
    ),
    "output in float64": Corruption(GRU, dtype("y", FLOAT64), "a cast left in"),
    "tokens in int32": Corruption(("generate",), dtype("tokens", INT32), "a cast left in"),
    "declared output shape false": Corruption((*GRU, *LSTM), declared(0, 1, 23), "the example's"),
    "declared state shape false": Corruption(GRU, declared(1, 1, 13), "the example's"),
    "state map points to the wrong output": Corruption(
        LSTM, metadata("state_map", lambda found: {"h0": "cn", "c0": "hn"}), "callers carry the state by it"
    ),
    "state map left empty": Corruption(GRU, metadata("state_map", lambda found: {}), "callers carry the state by it"),
    "labels permuted in metadata": Corruption(
        ("both classify", "mean classify"), metadata("labels", lambda found: found[::-1]), "read by callers"
    ),
    "vocabulary permuted in metadata": Corruption(
        ("generate",),
        metadata("preprocessing", tokens_reversed),
        "read by callers",
    ),
    "scaling another in metadata": Corruption(
        ("forecast",),
        metadata("preprocessing", lambda found: found | {"scaling": found["scaling"] | {"mean": 5.0}}),
        "read by callers",
    ),
    "task another in metadata": Corruption(
        ("forecast",), metadata("task", lambda found: "generate"), "read by callers"
    ),
    "network another in metadata": Corruption(
        GRU, metadata("network", lambda found: found | {"layers": 3}), "read by callers"
    ),
}
