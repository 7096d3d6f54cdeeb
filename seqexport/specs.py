"""What goes into and comes out of a model, and what a recognised network is made of. Frozen, and without torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from seqexport.errors import InputError, SpecError

Cell: TypeAlias = Literal["rnn", "lstm", "gru"]
Dim: TypeAlias = int | str
Bound: TypeAlias = int | float | str
CELLS: tuple[Cell, ...] = ("rnn", "lstm", "gru")
GATES: Mapping[Cell, int] = {"rnn": 1, "lstm": 4, "gru": 3}
MOST_LAGS = 10_000  # steps that a net may look back for a value of its input
STATES: Mapping[Cell, tuple[str, ...]] = {"rnn": ("h",), "lstm": ("h", "c"), "gru": ("h",)}
DTYPES = ("float32", "float64", "float16", "int64", "int32", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """One array: its name, its numpy dtype, and its dims, fixed (a number) or dynamic (a name).

    `low` and `high` bound the values, both included; either may be the name of a dim. `descending` asks for sampled
    values sorted from high to low. An `optional` input may be left out, and is then filled with `default`.
    """

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    low: Bound | None = None
    high: Bound | None = None
    descending: bool = False
    optional: bool = False
    default: float = 0.0

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape when every dynamic dim has the size given for its name."""
        return tuple(_resolve(dim, sizes) for dim in self.dims)

    def sample(self, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """An array of this spec: uniform within the range, both ends of which integers may reach; without a range
        standard normal floats, and integers 0 and 1."""
        shape = self.shape(sizes)
        low = _resolve(self.low if self.low is not None else 0, sizes)
        high = _resolve(self.high if self.high is not None else 1, sizes)
        if self.dtype.startswith("float"):
            drawn = rng.standard_normal(shape) if self.low is None else rng.uniform(low, high, shape)
            return np.asarray(drawn, self.dtype)
        values: np.ndarray = rng.integers(low, high, size=shape, endpoint=True)
        if self.descending:
            values = -np.sort(-values, axis=-1)
        return np.asarray(values, self.dtype)

    def filled(self, sizes: Mapping[str, int]) -> np.ndarray:
        """What an optional input is when it is left out."""
        return np.full(self.shape(sizes), self.default, self.dtype)


InputSpec: TypeAlias = TensorSpec | tuple[TensorSpec, ...]


def _resolve(dim: Any, sizes: Mapping[str, int]) -> Any:
    if not isinstance(dim, str):
        return dim
    if dim not in sizes:
        raise SpecError(f"The spec uses the dim {dim!r}, but only {', '.join(sizes) or 'no dims'} are known here.")
    return sizes[dim]


_TENSOR = re.compile(
    r"(?P<dtype>\w+)\s*\[(?P<dims>[^\[\]]*)\]\s*"
    r"(?:\{\s*(?P<low>-?\w+)\s*\.\.\s*(?P<high>-?\w+)\s*\})?\s*(?P<descending>,\s*descending)?"
)


def parse_input(name: str, text: str) -> InputSpec:
    """The spec of forward's argument `name`, written as `float32[batch,time,8]`, `int64[batch]{1..time}, descending`,
    or, for a tuple, `(float32[2,batch,16], float32[2,batch,16])`, whose parts are then called NAME_0, NAME_1.

    Raises SpecError with the place that could not be read.
    """
    text = text.strip()
    if not text.startswith("("):
        return _parse_tensor(name, text)
    if not text.endswith(")"):
        raise SpecError(f"The spec of {name!r}, {text!r}, opens a tuple and does not close it: add ')' at its end.")
    parts = [part for part in _split_tuple(text[1:-1]) if part.strip()]
    if not parts:
        raise SpecError(f"The spec of {name!r} is an empty tuple: name its parts, as in (float32[2,batch,16]).")
    return tuple(_parse_tensor(f"{name}_{index}", part.strip()) for index, part in enumerate(parts))


def _split_tuple(text: str) -> list[str]:
    """Split at the commas between the parts of a tuple: those followed by a dtype and its bracket."""
    return re.split(r",(?=\s*\w+\s*\[)", text.rstrip().rstrip(","))


def _parse_tensor(name: str, text: str) -> TensorSpec:
    match = _TENSOR.fullmatch(text)
    if match is None:
        raise SpecError(
            f"The spec of {name!r}, {text!r}, is not of the form dtype[dim,dim]{{low..high}}: "
            "write it like float32[batch,time,8] or int64[batch,time]{0..999}."
        )
    if match["dtype"] not in DTYPES:
        raise SpecError(f"The spec of {name!r} has the dtype {match['dtype']!r}; expected one of {', '.join(DTYPES)}.")
    dims = tuple(_parse_dim(name, dim.strip()) for dim in match["dims"].split(",")) if match["dims"].strip() else ()
    low, high = (_parse_bound(match[end]) for end in ("low", "high"))
    if low is not None and match["dtype"].startswith("float"):
        raise SpecError(f"The spec of {name!r} gives a range to {match['dtype']}; ranges are for integers.")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        raise SpecError(f"The spec of {name!r} has the range {low}..{high}, which is empty: put the lower bound first.")
    return TensorSpec(name, match["dtype"], dims, low, high, descending=match["descending"] is not None)


def _parse_dim(name: str, dim: str) -> Dim:
    if dim.isascii() and dim.isdigit() and int(dim) > 0:
        return int(dim)
    if dim.isidentifier():
        return dim
    raise SpecError(f"The spec of {name!r} has the dim {dim!r}; a dim is a number from 1 (fixed) or a name (dynamic).")


def _parse_bound(text: str | None) -> Dim | None:
    if text is None:
        return None
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def dynamic_dims(inputs: Sequence[TensorSpec]) -> list[str]:
    """The names of the dynamic dims, batch and time first, the others in the order in which the inputs name them."""
    found = dict.fromkeys(dim for spec in inputs for dim in spec.dims if isinstance(dim, str))
    return [dim for dim in ("batch", "time") if dim in found] + [dim for dim in found if dim not in ("batch", "time")]


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values as arrays of the specs' dtypes, in the specs' order; left-out optional inputs stay out.

    Raises InputError for a name that is missing or unknown, a type that would lose information, a shape that does not
    fit (a named dim has one size everywhere, every dim is at least 1), an integer out of range, or a value that is
    not finite.
    """
    names = [spec.name for spec in specs]
    unknown = [name for name in feeds if name not in names]
    if unknown:
        known = ", ".join(f"{spec.name} {spec}" for spec in specs)
        raise InputError(f"There is no input {unknown[0]!r}; expected {known}.")
    sizes: dict[str, int] = {}
    checked = {}
    for spec in specs:
        if spec.name in feeds:
            checked[spec.name] = _check_array(spec, feeds[spec.name], sizes)
        elif not spec.optional:
            raise InputError(f"The input {spec.name!r} is missing: give it as {spec}.")
    return checked


def check_whole(text: str) -> None:
    """Raise InputError for a lone surrogate, which is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text holds a lone surrogate (U+{ord(text[error.start]):04X}, character {error.start + 1}), which is "
            "half a character and belongs to no text: remove it."
        ) from None


def as_texts(texts: Sequence[str]) -> np.ndarray:
    """Texts as an array of Python's own strings: numpy's drop NUL characters at a text's end."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _texts(spec: TensorSpec, value: Any) -> np.ndarray:
    texts = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(texts, (list, tuple)):
        raise InputError(f"The input {spec.name!r} is one {type(texts).__name__}; expected a list of texts ({spec}).")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"The input {spec.name!r} has {text!r:.40} at place {place}; expected a text ({spec}).")
        check_whole(text)
    return as_texts(texts)


def _check_array(spec: TensorSpec, value: Any, sizes: dict[str, int]) -> np.ndarray:
    try:
        array = _texts(spec, value) if spec.dtype == "string" else np.asarray(value)
    except ValueError as error:
        raise InputError(f"The input {spec.name!r} is not a regular array ({error}); expected {spec}.") from error
    known = spec.dtype in ("string", array.dtype)
    if not known and not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
        raise InputError(f"The input {spec.name!r} is {array.dtype}; expected {spec}: convert it first.")
    if array.ndim != len(spec.dims):
        raise InputError(f"The input {spec.name!r} has the shape {list(array.shape)}; expected {spec}.")
    for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
        if size < 1:
            raise InputError(f"The input {spec.name!r} has nothing along {dim!r} (axis {axis}); give at least 1.")
        expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
        if size != expected:
            raise InputError(
                f"The input {spec.name!r} has the shape {list(array.shape)}, with {size} along {dim!r}; "
                f"expected {expected} there ({spec})."
            )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"The input {spec.name!r} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite; "
            "fill or drop them first."
        )
    _check_range(spec, array, sizes)
    if known:  # the rule in a loop of single steps, where every microsecond counts
        return array if array.flags.c_contiguous else array.copy()
    with np.errstate(over="ignore"):
        converted = array.astype(spec.dtype)
    if converted.dtype.kind == "f" and not np.isfinite(converted).all():
        raise InputError(f"The input {spec.name!r} holds values too large for {spec.dtype}: rescale them.")
    return converted


def _check_range(spec: TensorSpec, array: np.ndarray, sizes: Mapping[str, int]) -> None:
    if spec.low is None or spec.high is None:
        return
    low, high = _resolve(spec.low, sizes), _resolve(spec.high, sizes)
    least, most = (array.item(),) * 2 if array.size == 1 else (array.min(), array.max())
    if least < low or most > high:
        found = f"is {least}" if array.size == 1 else f"goes from {least} to {most}"
        raise InputError(f"The input {spec.name!r} {found}; expected {low} to {high}.")


Pooling: TypeAlias = Literal["every", "last", "mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("every", "last", "mean", "max")


@dataclass(frozen=True)
class NetworkSpec:
    """A recognised network: [embedding] → RNN, LSTM or GRU → [linear head].

    features: size F of what the recurrence reads at a step (the embedding's width where there is a vocabulary).
    vocabulary: number V of tokens of the embedding; None where the input is numbers.
    outputs: what the head gives; None where there is no head and y is the recurrence's own output.
    pooling: which steps the head reads: every one, the last, their mean or their maximum.
    time_major: x, or tokens, and y have time before batch.
    projection: size P to which an LSTM's h is projected (torch's proj_size); None where it is not.
    lags: of a net that reads one number a step, which earlier values it reads besides, counted back from the value
    that comes next: 24 is, of hours, what was a day before that one. The net keeps them in its state.
    skip: the head reads, behind the recurrence's output, what the recurrence read at that step.
    """

    cell: Cell
    features: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    vocabulary: int | None = None
    outputs: int | None = None
    head_bias: bool = True
    pooling: Pooling = "every"
    time_major: bool = False
    projection: int | None = None
    lags: tuple[int, ...] = ()
    skip: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (("cell", CELLS), ("nonlinearity", ("tanh", "relu")), ("pooling", POOLINGS)):
            if getattr(self, field) not in allowed:
                raise SpecError(f"The network's {field} is {getattr(self, field)!r}; expected {', '.join(allowed)}.")
        for field in ("features", "hidden_size", "layers", "vocabulary", "outputs", "projection"):
            value = getattr(self, field)
            optional = field in ("vocabulary", "outputs", "projection")
            if not (value is None and optional) and (type(value) is not int or value < 1):
                raise SpecError(f"The network's {field} is {value!r}; expected a whole number from 1.")
        for field in ("bidirectional", "bias", "head_bias", "time_major", "skip"):
            if type(getattr(self, field)) is not bool:
                raise SpecError(f"The network's {field} is {getattr(self, field)!r}; expected true or false.")
        if self.projection is not None and (self.cell != "lstm" or self.projection >= self.hidden_size):
            raise SpecError(
                f"The network projects a {self.cell} of {self.hidden_size} to {self.projection}; "
                "expected an lstm and a smaller size."
            )
        self._check_lags()

    def _check_lags(self) -> None:
        if type(self.lags) is not tuple or not all(type(lag) is int and lag >= 2 for lag in self.lags):
            raise SpecError(f"The network's lags are {self.lags!r}; expected whole numbers from 2.")
        if list(self.lags) != sorted(set(self.lags)) or max(self.lags, default=0) > MOST_LAGS:
            raise SpecError(f"The network's lags are {self.lags!r}; expected each once, rising, up to {MOST_LAGS:,}.")
        if self.lags and (self.vocabulary or self.bidirectional or self.time_major):
            raise SpecError("The network has lags; expected numbers as input, batch first, and one direction.")
        if self.lags and self.features != 1 + len(self.lags):
            raise SpecError(
                f"The network reads {self.features} numbers a step, but with its {len(self.lags)} lags these are "
                f"{1 + len(self.lags)}."
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NetworkSpec:
        """The spec of a checkpoint's `network` entry. Raises SpecError for fields that are unknown or missing."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in fields if name not in known]
        missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in fields]
        if unknown or missing:
            raise SpecError(
                f"The network's description has unknown fields ({', '.join(map(str, unknown)) or 'none'}) "
                f"or lacks some ({', '.join(missing) or 'none'}); expected {', '.join(known)}."
            )
        lags = fields.get("lags", ())
        return cls(**{**fields, "lags": tuple(lags) if isinstance(lags, list) else lags})

    def to_dict(self) -> dict[str, Any]:
        """The `network` entry of a checkpoint, as JSON has it."""
        return {**dataclasses.asdict(self), "lags": list(self.lags)}

    def __str__(self) -> str:
        cell = self.cell.upper() + (f" ({self.nonlinearity})" if self.cell == "rnn" else "")
        parts = [f"embedding {self.vocabulary}×{self.features}"] if self.vocabulary else []
        projected = f"→{self.projection}" if self.projection else ""
        sizes = f"{self.features}→{self.hidden_size}{projected}, {self.layers} layer{'s' if self.layers > 1 else ''}"
        lags = f", lags {', '.join(map(str, self.lags))}" if self.lags else ""
        parts.append(f"{cell} {sizes}{', both directions' if self.bidirectional else ''}{lags}")
        if self.outputs:
            where = "every step" if self.pooling == "every" else f"the {self.pooling} step"
            if self.pooling in ("mean", "max"):
                where = f"the {self.pooling} over the steps"
            parts.append(f"linear {self.width}→{self.outputs} on {where}{', with its input' if self.skip else ''}")
        return " → ".join(parts)

    @property
    def directions(self) -> int:
        """1, or 2 where the recurrence reads in both directions."""
        return 2 if self.bidirectional else 1

    @property
    def width(self) -> int:
        """Size of what the head reads at a step: directions * (projection or hidden_size), and with `skip` the
        features."""
        return self.directions * (self.projection or self.hidden_size) + (self.features if self.skip else 0)

    @property
    def input(self) -> TensorSpec:
        """`x` [batch,time,features], of one feature where there are lags, or `tokens` [batch,time]."""
        lead = ("time", "batch") if self.time_major else ("batch", "time")
        if self.vocabulary is None:
            return TensorSpec("x", "float32", (*lead, 1 if self.lags else self.features))
        return TensorSpec("tokens", "int64", lead, 0, self.vocabulary - 1)

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        """`h0` (and `c0` for an LSTM), [layers*directions, batch, hidden], zero where left out; h0 is as wide as the
        projection where there is one. With lags `z0` [1, batch, longest lag - 1], the values before x, the last one
        last."""
        rows = self.layers * self.directions
        shapes = {"h": (rows, self.projection or self.hidden_size), "c": (rows, self.hidden_size)}
        shapes["z"] = (1, max(self.lags, default=2) - 1)
        return tuple(
            TensorSpec(f"{name}0", "float32", (shapes[name][0], "batch", shapes[name][1]), optional=True)
            for name in self._states
        )

    @property
    def _states(self) -> tuple[str, ...]:
        return (*STATES[self.cell], *(("z",) if self.lags else ()))

    @property
    def state_map(self) -> dict[str, str]:
        """State input → the output that is fed back to it: {"h0": "hn", …}."""
        return {f"{name}0": f"{name}n" for name in self._states}

    @property
    def output_names(self) -> tuple[str, ...]:
        """`y`, then the final state."""
        return ("y", *self.state_map.values())


PIPELINES = ("forecast", "classify", "generate")
# The same with strings in and out: the pipeline's name and this.
TEXT = ".text"
TEXT_PIPELINES = ("classify.text", "generate.text")


def pipeline_inputs(pipeline: str, spec: NetworkSpec) -> tuple[TensorSpec, ...]:
    """What the pipeline takes, with a network of this description."""
    last = (spec.vocabulary or 1) - 1
    if pipeline == "classify.text":
        return (TensorSpec("texts", "string", ("batch",)),)
    if pipeline == "generate.text":
        return TensorSpec("prompt", "string", ("batch",)), *pipeline_inputs("generate", spec)[1:]
    if pipeline == "forecast":
        noise = TensorSpec("noise", "float32", ("batch", "paths", "horizon"))
        return TensorSpec("history", "float32", ("batch", "time")), noise, *spec.state
    if pipeline == "classify":
        tokens = TensorSpec("tokens", "int64", ("batch", "time"), 0, last)
        return tokens, TensorSpec("lengths", "int64", ("batch",), 1, "time")
    return (
        TensorSpec("prompt", "int64", ("batch", "time"), 0, last),
        TensorSpec("uniforms", "float32", ("batch", "steps"), 0.0, 1.0),
        TensorSpec("temperature", "float32", (), 0.0, 100.0, optional=True, default=1.0),
        TensorSpec("top_k", "int64", (), 0, 1_000_000, optional=True),
        TensorSpec("top_p", "float32", (), 0.0, 1.0, optional=True, default=1.0),
        *spec.state,
    )


# What a text graph says that it read: pieces string [batch,time], "" behind a text's end, their numbers int64
# [batch,time], and lengths int64 [batch].
READ = ("pieces", "numbers", "lengths")


def pipeline_outputs(pipeline: str, spec: NetworkSpec) -> tuple[str, ...]:
    """The names of what the pipeline gives: its answer, and, where it takes a state, the state to go on from. With
    strings in and out, the answer in words comes first, and what was read last."""
    if pipeline in TEXT_PIPELINES:
        words = "label" if pipeline == "classify.text" else "text"
        return words, *pipeline_outputs(pipeline.removesuffix(TEXT), spec), *READ
    if pipeline == "classify":
        return ("probabilities",) if spec.bidirectional else ("probabilities", "running")
    return ("path" if pipeline == "forecast" else "tokens"), *spec.state_map.values()
