"""Named weights to the network that they are: told from names and shapes, and from the user's choices what they can't.

The recurrence is told by its `weight_ih_l0` (4H rows: LSTM, 3H: GRU, H: RNN), an embedding by standing before it with
its width, a head by standing after it and reading its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seqexport.archives import EXPORT_LIVE
from seqexport.errors import CheckpointError
from seqexport.specs import GATES, Cell, NetworkSpec, Pooling

# Where trainers put the weights in a dict of other things; where several are there, the first.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
_DEPTH = 4  # dicts within dicts that are searched

_RECURRENT = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<kind>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
    r"(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?"
)


@dataclass(frozen=True)
class Choices:
    """What weights can't tell, as the user chose it; None takes the default and says so."""

    nonlinearity: Literal["tanh", "relu"] | None = None
    time_major: bool | None = None
    head: Pooling | None = None


@dataclass(frozen=True)
class NamedWeights:
    """The tensors of a model by name, as they are in the file.

    where: the keys that lead to them. beside: what else the file holds on the way. notes: sentences.
    """

    tensors: Mapping[str, Tensor]
    where: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inferred:
    """A network's description, and its weights under the names of our Network, as they are in the file."""

    spec: NetworkSpec
    weights: Mapping[str, Tensor]
    notes: tuple[str, ...]
    unused: tuple[str, ...]


def find_weights(path: Path, tree: Any, recurrent: bool = True) -> NamedWeights:
    """The model's weights in what a file holds, which may have wrapped them.

    recurrent: whether only dicts with weights of a recurrent net count, or all; a user's own class has its own names.

    Raises CheckpointError if nothing in it is a dict of named weights.
    """
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}; expected a dict of weights: save a state_dict.")
    if "param_groups" in tree and isinstance(tree.get("state"), Mapping):
        raise CheckpointError(f"{path} holds an optimizer's state and no weights: save model.state_dict().")
    found = dict(_dicts_of_tensors(tree, ()))
    trails = [trail for trail, tensors in found.items() if any(map(_RECURRENT.fullmatch, tensors)) or not recurrent]
    if not trails:
        names = [".".join((*trail, name)) for trail, tensors in found.items() for name in tensors]
        raise CheckpointError(
            f"{path} holds no recurrent net: expected weights named like rnn.weight_ih_l0, found "
            f"{', '.join(names[:4] or list(map(str, tree))[:4]) or 'no weights at all'}."
        )
    trail = min(trails, key=_preference)
    tensors, notes = found[trail], []
    others = [other for other in trails if other != trail]
    if others and all(_preference(other) == _preference(trail) for other in others) or _is_one_of_parts(trail, found):
        # Dicts side by side, none of them called the model: parts of one, whose names are joined.
        trail = trail[:-1]
        tensors = {
            ".".join((*other[len(trail) :], name)): tensor
            for other, part in found.items()
            if other[: len(trail)] == trail and len(other) == len(trail) + 1
            for name, tensor in part.items()
        }
    elif others:
        notes.append(f"the weights are those of {_said(trail)}, and not of {', '.join(map(_said, others))}")
    beside = [str(name) for name in _at(tree, trail[:-1])] if trail else []
    return NamedWeights(
        _without_weight_norm(path, tensors), trail, tuple(name for name in beside if name != trail[-1]), tuple(notes)
    )


def _said(trail: Sequence[str]) -> str:
    return repr(".".join(trail))


def _at(tree: Any, trail: Sequence[str]) -> Any:
    for key in trail:
        tree = tree[key]
    return tree


def _preference(trail: Sequence[str]) -> tuple[int, int]:
    """Smaller is better: what is not wrapped, then the usual names of wrappers, then anything."""
    places = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in trail]
    return max(places, default=-1), len(trail)


def _is_one_of_parts(trail: tuple[str, ...], found: Mapping[tuple[str, ...], Any]) -> bool:
    """Whether the weights stand in a dict for a part, such as {"embedding": …, "rnn": …, "head": …}."""
    return (
        bool(trail)
        and trail[-1] not in WRAPPERS
        and any(len(other) == len(trail) and other[:-1] == trail[:-1] for other in found if other != trail)
    )


def _dicts_of_tensors(tree: Mapping[Any, Any], trail: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    tensors = {name: tensor for name, tensor in tree.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        yield trail, tensors
    for name, part in tree.items():
        if isinstance(name, str) and isinstance(part, Mapping) and len(trail) < _DEPTH and "optim" not in name:
            yield from _dicts_of_tensors(part, (*trail, name))


def _without_weight_norm(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w = g v / |v| of torch.nn.utils.weight_norm, in both forms in which it stores g and v; the norm is over the dims
    along which g has one value."""
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = re.fullmatch(r"(.*\.)?parametrizations\.(.+)\.original([01])", name)
        plain = f"{new[1] or ''}{new[2]}" if new else name[:-2] if name.endswith(("_g", "_v")) else None
        if plain is None:
            folded[name] = tensor
            continue
        g_name, v_name = (f"{name[:-1]}0", f"{name[:-1]}1") if new else (f"{plain}_g", f"{plain}_v")
        if g_name not in tensors or v_name not in tensors:
            folded[name] = tensor
        elif name == v_name:
            g, v = tensors[g_name].double(), tensor.double()
            dims = [axis for axis in range(v.ndim) if g.ndim != v.ndim or g.shape[axis] == 1]
            try:
                folded[plain] = (v * (g / v.norm(dim=dims, keepdim=g.ndim == v.ndim))).to(tensor.dtype)
            except (RuntimeError, IndexError):
                raise CheckpointError(
                    f"{path}: {g_name} has the shape {list(g.shape)}, which does not scale {v_name} of the shape "
                    f"{list(v.shape)}; save the whole state_dict."
                ) from None
    return folded


def infer(path: Path, named: NamedWeights, choices: Choices, ordered: bool = True) -> Inferred:
    """Named weights → the network that their names and shapes tell, and notes of what they can't.

    ordered: whether they stand in the order in which the model made them, by which what is before the recurrence is
    told from what is after it; without it an embedding is told by its width and by having no bias.

    Raises CheckpointError where they are no recurrent net, contradict each other, or leave open how parts are joined.
    """
    weights = checked_weights(path, named.tensors)
    prefix, spec = _infer_recurrence(path, weights)
    names = list(weights)
    recurrent = {name: match for name in names if (match := _RECURRENT.fullmatch(name)) and match["prefix"] == prefix}
    first = min(names.index(name) for name in recurrent)
    matrices = [name for name in names if name.endswith("weight") and weights[name].ndim == 2]
    ours = {name: _name_of(match) for name, match in recurrent.items()}
    before = [name for name in matrices if names.index(name) < first]
    if not ordered:
        before = [name for name in matrices if not _has_bias(name, weights)]
        before = [name for name in before if "emb" in name.lower()] or before
    embedding = _infer_embedding(before, weights, spec)
    if embedding:
        spec = replace(spec, vocabulary=weights[embedding].shape[0])
        ours[embedding] = "embedding.weight"
    others = [name for name in matrices if name != embedding]
    head = _infer_head(path, [name for name in others if names.index(name) > first or not ordered], weights, spec)
    if head is None:  # modules may be listed in another order than they are used in; a linear layer has a bias
        linear = [name for name in others if _has_bias(name, weights)]
        head = next((name for name in linear if weights[name].shape[1] == spec.width), None)
    if head:
        spec = replace(spec, outputs=weights[head].shape[0], head_bias=_has_bias(head, weights))
        ours |= {head: "head.weight"} | ({_bias_of(head): "head.bias"} if spec.head_bias else {})
    spec, notes = _apply_choices(spec, choices)
    renamed = {ours[name]: named.tensors[name] for name in names if name in ours}
    unused = [str(name) for name in named.tensors if name not in ours]
    return Inferred(spec, renamed, (*named.notes, *notes), (*unused, *named.beside))


def checked_weights(path: Path, weights: Any) -> dict[str, Tensor]:
    """The weights as contiguous float32 tensors. Raises CheckpointError for one that is not finite."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(f"{path} has no dict of named weights; expected a state_dict.")
    checked = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
            continue
        tensor = tensor.detach()
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{path}: {name} holds {count} values that are NaN or infinite; train or save it again."
            )
        narrowed = tensor.to(torch.float32).contiguous()
        if not narrowed.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values too large for float32; rescale or train it again.")
        checked[name] = narrowed
    return checked


def _name_of(match: re.Match[str]) -> str:
    """The name that nn.RNN, nn.LSTM and nn.GRU give to a weight; a cell's has no layer."""
    return f"rnn.{match['kind']}_l{match['layer'] or 0}{match['reverse'] or ''}"


def _infer_recurrence(path: Path, weights: Mapping[str, Tensor]) -> tuple[str, NetworkSpec]:
    matches = [match for name in weights if (match := _RECURRENT.fullmatch(name))]
    prefixes = list(dict.fromkeys(match["prefix"] for match in matches))
    if not prefixes:
        found = ", ".join(list(weights)[:4]) or "no weights at all"
        raise CheckpointError(
            f"{path} holds no recurrent net: expected weights named like rnn.weight_ih_l0, found {found}."
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds {len(prefixes)} recurrent nets ({', '.join(p.rstrip('.') or 'unnamed' for p in prefixes)}), "
            f"and how they are joined is not in the weights: {EXPORT_LIVE}."
        )
    prefix = prefixes[0]
    kinds: dict[str, str] = {}
    for match in matches:
        if match["layer"] in (None, "0") and not match["reverse"]:
            kinds[match["kind"]] = match[0]
    for kind in ("weight_ih", "weight_hh"):
        if kind not in kinds or weights[kinds[kind]].ndim != 2:
            raise CheckpointError(
                f"{path} lacks the matrix {prefix}{kind}_l0, from which the cell and its size are told."
            )
    rows, features = weights[kinds["weight_ih"]].shape
    projection = None
    hidden_size = weights[kinds["weight_hh"]].shape[1]
    if any(match["kind"] == "weight_hr" for match in matches):
        projection, hidden_size = hidden_size, rows // GATES["lstm"]
    cells: dict[int, Cell] = {gates * hidden_size: cell for cell, gates in GATES.items()}
    if rows not in cells:
        raise CheckpointError(
            f"{path}: {kinds['weight_ih']} has {rows} rows for a hidden size of {hidden_size}; "
            f"expected {hidden_size} (RNN), {3 * hidden_size} (GRU) or {4 * hidden_size} (LSTM)."
        )
    layers = 1 + max(int(match["layer"] or 0) for match in matches)
    if layers > len(matches):  # said before a network of so many layers is made
        raise CheckpointError(
            f"{path} names a layer {layers - 1}, but holds {len(matches)} recurrent weights: "
            "layers are missing; save the whole state_dict."
        )
    return prefix, NetworkSpec(
        cell=cells[rows],
        features=features,
        hidden_size=hidden_size,
        layers=layers,
        bidirectional=any(match["reverse"] for match in matches),
        bias=any(match["kind"].startswith("bias") for match in matches),
        projection=projection,
    )


def _infer_embedding(candidates: list[str], weights: Mapping[str, Tensor], spec: NetworkSpec) -> str | None:
    """The matrix before the recurrence that gives its input, and has no bias."""
    fitting = [name for name in candidates if weights[name].shape[1] == spec.features and not _has_bias(name, weights)]
    return fitting[-1] if fitting else None


def _bias_of(matrix: str) -> str:
    return f"{matrix[: -len('weight')]}bias"


def _has_bias(matrix: str, weights: Mapping[str, Tensor]) -> bool:
    return _bias_of(matrix) in weights


def _infer_head(path: Path, candidates: list[str], weights: Mapping[str, Tensor], spec: NetworkSpec) -> str | None:
    """The matrix after the recurrence that reads its output."""
    if not candidates:
        return None
    if len(candidates) > 1:
        raise CheckpointError(
            f"{path} has {len(candidates)} matrices after the recurrent net ({', '.join(candidates)}), and what lies "
            f"between them is not in the weights: {EXPORT_LIVE}."
        )
    if weights[candidates[0]].shape[1] != spec.width:
        raise CheckpointError(
            f"{path}: {candidates[0]} reads {weights[candidates[0]].shape[1]} numbers, but the recurrent net gives "
            f"{spec.width}: {EXPORT_LIVE}."
        )
    return candidates[0]


def _apply_choices(spec: NetworkSpec, choices: Choices) -> tuple[NetworkSpec, list[str]]:
    """Settle what weights can't tell, by the user's choice or the default, which is noted with its flag."""
    notes = []
    if spec.cell == "rnn" and choices.nonlinearity is None:
        notes.append("the cell is taken to use tanh (--nonlinearity relu)")
    if choices.time_major is None:
        notes.append("batch is taken to come before time (--time-major)")
    if spec.outputs and choices.head is None:
        notes.append("the head is taken to read every step (--head last, mean or max)")
    return replace(
        spec,
        nonlinearity=choices.nonlinearity or "tanh",
        time_major=bool(choices.time_major),
        pooling=choices.head or "every",
    ), notes
