"""What is exported of a checkpoint, or of a live module: the graphs to be, what each takes and gives, and its facts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from seqexport.checkpoint import Checkpoint
from seqexport.errors import SeqExportError, SpecError, UnsupportedError
from seqexport.functional import FlatModule, check_function, evaluating, float32_specs, in_float32, unwrapped
from seqexport.modules import UserModule
from seqexport.pipelines import Forecast, Generate, GenerateRows, Pipeline
from seqexport.runtimes import TextRuntime, TorchRuntime, checkpoint_metadata, pipeline_path
from seqexport.sources import first_line, line_of_error
from seqexport.specs import READ, TEXT, InputSpec, NetworkSpec, TensorSpec, as_texts, parse_input, pipeline_inputs
from seqexport.text import Vocabulary
from seqexport.tracing import ATTEMPTS, example, example_sizes
from seqexport.verification import Decision, Subject, difference

State = Literal["optional", "explicit", "none"]


@dataclass(frozen=True)
class Strings:
    """What makes a graph of strings of a part's numbers. inputs: what the part's module takes. reference: the
    pipeline of numbers in torch, and the strings in Python. labels: of a classifier."""

    inputs: tuple[TensorSpec, ...]
    reference: TextRuntime
    vocabulary: Vocabulary
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One graph to be: a module of flat tensors, what it takes and gives, and how it is verified. strings: of a graph
    of strings, which the subject then speaks of."""

    subject: Subject
    module: nn.Module
    output_names: tuple[str, ...]
    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)
    strings: Strings | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specs of what the module takes."""
        return self.strings.inputs if self.strings else self.subject.inputs


def checkpoint_parts(
    checkpoint: Checkpoint, path: Path, state: State, text: bool = False
) -> tuple[list[Part], dict[str, Any]]:
    """A checkpoint's network, and its pipeline where it has a task; and what the report says of them.

    text: also the pipeline with strings in and out. Raises UnsupportedError for a checkpoint that reads no text.
    """
    spec, network = checkpoint.spec, checkpoint.network()
    state_map = spec.state_map if state != "none" else {}
    causal = not spec.bidirectional
    subject = Subject(
        "network",
        _stated((spec.input, *spec.state), spec, state),
        state_map,
        chunked=spec.input.name if causal else None,
        per_step={"y": spec.input.dims.index("time")} if spec.pooling == "every" else {},
        unchunked=("y",) if spec.pooling in ("mean", "max") else (),
    )
    parts = [Part(subject, network, spec.output_names, path, _about(checkpoint, subject))]
    if checkpoint.task:
        pipeline = checkpoint.pipeline(checkpoint.task)
        subject = _pipeline_subject(pipeline, _stated(pipeline.inputs, spec, state), state_map)
        target = pipeline_path(path, pipeline.name)
        parts.append(Part(subject, pipeline, pipeline.output_names, target, _about(checkpoint, subject)))
    found = f"{checkpoint.task}: {spec}" if checkpoint.task else str(spec)
    if text and checkpoint.task not in ("classify", "generate"):
        raise UnsupportedError(
            f"{checkpoint.path} is no classifier or generator of texts ({found}), so its file can't take strings: "
            "leave the text out."
        )
    if text:
        parts.append(_text_part(checkpoint, parts[-1], path))
    return parts, {
        "source": str(checkpoint.path),
        "found": found,
        "notes": checkpoint.notes,
        "unused": checkpoint.unused,
    }


def _text_part(checkpoint: Checkpoint, numbers: Part, path: Path) -> Part:
    """The part of a pipeline with strings in and out. numbers: the pipeline's own part."""
    pipeline, subject = numbers.module, numbers.subject
    assert isinstance(pipeline, Pipeline)
    known = TorchRuntime(pipeline, numbers.inputs, numbers.output_names, metadata=checkpoint_metadata(checkpoint))
    reference = TextRuntime(known, pipeline.name)
    labels = tuple(checkpoint.preprocessing["labels"]) if pipeline.name == "classify" else ()
    if isinstance(pipeline, Generate):
        module: Pipeline = GenerateRows(pipeline.network)
        inner = (*module.inputs[:2], *numbers.inputs[1:])
        last = " " if reference.vocabulary.unit == "word" else None
        told = replace(
            subject,
            carried={"prompt": lambda outputs: as_texts([_last(text, last) for text in outputs["text"]])},
            unchunked=("text", *READ),
            decisions=(replace(subject.decisions[0], margin=partial(_margin, pipeline, reference)),),
            sharpen=partial(_each_beside_an_edge, pipeline, reference),
        )
    else:
        module, first = pipeline, numbers.inputs[0]
        inner = (replace(first, name=READ[1]), *numbers.inputs[1:])
        label = Decision("label", "label", lambda labels: labels, partial(_label_margin, "probabilities"))
        told = replace(subject, decisions=(label, *subject.decisions))
    part = pipeline.name + TEXT
    told = replace(told, part=part, inputs=(pipeline_inputs(part, checkpoint.spec)[0], *reference.inputs[1:]))
    strings = Strings(inner, reference, reference.vocabulary, labels)
    target = pipeline_path(path, part)
    return Part(told, module, numbers.output_names, target, _about(checkpoint, told), strings)


def _last(text: str, between: str | None) -> str:
    """The last token of what a generator wrote."""
    return text[-1:] if between is None else text.rpartition(between)[2]


def _margin(
    pipeline: Generate,
    reference: TextRuntime,
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    place: tuple[int, ...],
) -> float:
    """A token's margin, of the row's prompt alone."""
    row, step = place
    written = {"tokens": expected["tokens"][row : row + 1]}
    return _token_margin(pipeline, reference.alone(feeds, row), written, (0, step))


def _each_beside_an_edge(
    pipeline: Generate, reference: TextRuntime, feeds: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """The same as of numbers, prompt by prompt."""
    rows = [_beside_an_edge(pipeline, reference.alone(feeds, row)) for row in range(len(feeds["prompt"]))]
    return {**feeds, "uniforms": np.concatenate([row["uniforms"] for row in rows])}


def _about(checkpoint: Checkpoint, subject: Subject) -> dict[str, Any]:
    """The metadata of one graph: that of the checkpoint, with a state map only where the graph has a state."""
    metadata = checkpoint_metadata(checkpoint) | {"part": subject.part}
    if not subject.state_map:
        del metadata["state_map"]
    return metadata


def _stated(inputs: Sequence[TensorSpec], spec: NetworkSpec, state: State) -> tuple[TensorSpec, ...]:
    """The inputs as `state` asks for them: without the state, or with nothing optional for runtimes that know no such
    inputs."""
    if state == "none":
        return tuple(part for part in inputs if part.name not in spec.state_map)
    return tuple(replace(part, optional=part.optional and state == "optional") for part in inputs)


def _pipeline_subject(pipeline: Pipeline, inputs: tuple[TensorSpec, ...], state_map: Mapping[str, str]) -> Subject:
    """How a pipeline's graph is fed and what is decided by its outputs."""
    if isinstance(pipeline, Forecast):
        scaling = pipeline.scaling

        def in_units(z: np.ndarray) -> np.ndarray:
            """Some values stay as they are, so that there are some below zero, which a root must take as zero."""
            return np.where(z < -1, z, scaling.undo(torch.from_numpy(z)).numpy())

        return Subject(pipeline.name, inputs, state_map, chunked="history", prepare={"history": in_units})
    if isinstance(pipeline, Generate):
        return Subject(
            pipeline.name,
            inputs,
            state_map,
            chunked="uniforms",
            along="steps",
            carried={"prompt": lambda outputs: outputs["tokens"][:, -1:]},
            per_step={"tokens": 1},
            settings=SAMPLING if all(part.name != "temperature" or part.optional for part in inputs) else SAMPLING[-1:],
            decisions=(Decision("tokens", "token", lambda tokens: tokens, partial(_token_margin, pipeline), True),),
            sharpen=partial(_beside_an_edge, pipeline),
        )
    labels = [
        Decision(name, "label", lambda probabilities: probabilities.argmax(-1), partial(_label_margin, name))
        for name in pipeline.output_names
    ]
    return Subject(pipeline.name, inputs, decisions=tuple(labels))


# What a generator is asked for in turn: its defaults, each way of choosing alone, and all together.
SAMPLING: tuple[Mapping[str, float], ...] = (
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.9},
)


def _label_margin(
    name: str, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], place: tuple[int, ...]
) -> float:
    """How far the first class is ahead of the second."""
    *_, second, first = np.sort(expected[name][place])
    return float(first - second)


def _token_margin(
    pipeline: Generate, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], place: tuple[int, ...]
) -> float:
    row, step = place
    read = np.concatenate([feeds["prompt"][row], expected["tokens"][row, :step]])
    settings = _settings(pipeline, feeds)
    state = [part[:, row : row + 1] for part in settings[3:]]
    u = torch.tensor(feeds["uniforms"][row, step])
    return pipeline.margin(torch.tensor(read)[None], u, *settings[:3], *state)


def _settings(pipeline: Generate, feeds: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    """What follows prompt and uniforms: the values fed, and the defaults of those that are not."""
    sizes = {"batch": len(feeds["prompt"])}
    return [
        torch.tensor(feeds[spec.name] if spec.name in feeds else spec.filled(sizes)) for spec in pipeline.inputs[2:]
    ]


# How far beside the place where the choice turns a uniform number is put: beyond the tolerance, so that it is no tie.
BESIDE = 1.5e-5


def _beside_an_edge(pipeline: Generate, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Each row's first uniform moves to beside the nearest edge of the distribution, on the side where it was: drawn at
    random, it would let errors of a hundredth pass."""
    edges = pipeline.cumulative(torch.tensor(feeds["prompt"]), *_settings(pipeline, feeds)).numpy()  # (B, V)
    uniforms = feeds["uniforms"].copy()
    for first, row in zip(uniforms[:, :1], edges, strict=True):
        inner = row[(row > 2 * BESIDE) & (row < 1 - 2 * BESIDE)]
        if inner.size:
            edge = inner[np.abs(inner - first).argmin()]
            first[:] = edge + (BESIDE if first > edge else -BESIDE)
    return {**feeds, "uniforms": uniforms}


def module_parts(
    user: UserModule, path: Path, inputs: Mapping[str, str], state_map: Mapping[str, str]
) -> tuple[list[Part], dict[str, Any]]:
    """The part of a user's module, in float32, flat, and seen to be a function of its inputs; and what the report says.

    Raises SpecError where the specs are not forward's, UnsupportedError for a module that is no function.
    """
    module = unwrapped(user.module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError(
            "The model is a TorchScript program, which can't be traced: give the module that it was made of, or its "
            "saved file, whose weights are read."
        )
    structure = [parse_input(name, text) for name, text in inputs.items()]
    _check_arguments(module, list(inputs))
    narrow, kinds = in_float32(module)
    notes = [
        *user.notes,
        *(("the model was in train mode and is exported as in eval mode",) if module.training else ()),
    ]
    flat = FlatModule(narrow, float32_specs(structure) if kinds else structure, list(inputs))
    specs = flat.inputs
    if not specs:
        raise SpecError("The model has no inputs: give a spec for each of forward's arguments.")
    with evaluating(flat):
        sizes = _call_once(flat, specs)
    if kinds:
        notes.append(_precision_said(module, flat, structure, kinds, sizes))
    _check_names(specs, flat.output_names)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    metadata: dict[str, Any] = {"part": "module"}
    if user.checkpoint_sha256:
        metadata["checkpoint_sha256"] = user.checkpoint_sha256
    if state_map:
        metadata["state_map"] = dict(state_map)
        _check_state_map(state_map, specs, flat.output_names)
    about = {
        "source": user.source,
        "found": f"{type(module).__name__}, {parameters:,} parameters",
        "notes": tuple(notes),
        "unused": user.unused,
    }
    return [Part(Subject("module", specs, further=sizes), flat, flat.output_names, path, metadata)], about


def _check_arguments(module: nn.Module, given: Sequence[str]) -> None:
    """Raise SpecError for specs of arguments that forward does not have, and for arguments that have none."""
    parameters = inspect.signature(module.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    missing = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in given]
    unknown = [name for name in given if name not in named and not anything]
    if unknown or missing:
        what = f"has no argument {unknown[0]!r}" if unknown else f"also needs {missing[0]!r}"
        raise SpecError(
            f"{type(module).__name__}.forward{inspect.signature(module.forward)} {what}: give a spec for each of its "
            "arguments that has no default, under its own name."
        )


def _call_once(flat: FlatModule, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Sizes at which the module can be called, after it was seen to be a function there."""
    failed: Exception | None = None
    for attempt in range(ATTEMPTS):
        sizes = example_sizes(specs, flat, attempt)
        try:
            check_function(flat, example(specs, sizes))
        except SeqExportError:
            raise
        except Exception as error:  # whatever the user's forward raises: torch itself says best why
            failed = failed or error
            continue
        return sizes
    assert failed is not None
    line = line_of_error(failed)
    raise SpecError(
        f"The model's forward does not take {_listed(specs)} ({type(failed).__name__}: {first_line(failed)})"
        f"{f' at {line}' if line else ''}: check the specs against forward's arguments."
    ) from failed


def _precision_said(
    module: nn.Module, flat: FlatModule, structure: Sequence[InputSpec], kinds: set[str], sizes: Mapping[str, int]
) -> str:
    """What becomes of a model that is not in float32; of float64 by how much its outputs change."""
    found = " and ".join(sorted(kinds))
    if "float64" not in kinds:
        return f"weights of {found} are exported as float32, exactly"
    arguments = example(flat.inputs, sizes)
    wide = [argument.double() if argument.is_floating_point() else argument for argument in arguments]
    original = FlatModule(module, structure, flat.names)
    with evaluating(original), evaluating(flat), torch.no_grad():
        pairs = zip(original(*wide), flat(*arguments), strict=True)
        change = max(difference(a.numpy(), b.numpy().astype(a.numpy().dtype))[0] for a, b in pairs)
    return f"the model of {found} is exported as float32, which changes what it gives by up to {change:.1e}"


def _check_names(specs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
    names = [*(spec.name for spec in specs), *outputs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SpecError(f"The model has {twice[0]!r} twice among its inputs and outputs: rename one of them.")
    if not outputs:
        raise UnsupportedError("The model returns no tensors, so there is nothing to export.")


def _check_state_map(state_map: Mapping[str, str], specs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
    names = [spec.name for spec in specs]
    for source, output in state_map.items():
        if source not in names or output not in outputs:
            raise SpecError(
                f"The state map {source}={output} names {source if source not in names else output!r}, which is not "
                f"there: expected one of the inputs {', '.join(names)} and one of the outputs {', '.join(outputs)}."
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec}" for spec in specs)
