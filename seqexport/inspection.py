"""Tell what is in a file: a checkpoint of any kind, exportable or not, or an ONNX model. Plain JSON types."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqexport.errors import CheckpointError, FileError, SeqExportError
from seqexport.files import is_checkpoint
from seqexport.isolation import parse_onnx
from seqexport.runtimes import parse_metadata

if TYPE_CHECKING:
    from seqexport.archives import Content


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file holds: its kind, what it exports as, the tree of its parts with their parameters, each tensor's
    dtype, shape, least and greatest value and number of NaN, the state map, and whatever else stands beside them.

    Raises FileError or CheckpointError if it is neither a checkpoint nor an ONNX model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"There is no file {path}: give a checkpoint or an ONNX file.")
    if is_checkpoint(path):
        return _inspect_checkpoint(path)
    try:
        found = _inspect_onnx(path)
        json.dumps(found)  # fails where such a name came through
        return found
    except (UnicodeDecodeError, TypeError) as error:  # protobuf gives names that are no text as bytes, or fails on them
        raise FileError(f"{path} is a damaged ONNX file: it holds names that are no text; export it again.") from error


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    from seqexport.archives import read_content
    from seqexport.checkpoint import read_as_checkpoint

    content = read_content(path)
    found: dict[str, Any] = {
        "file": str(path),
        "kind": content.kind,
        "bytes": content.bytes,
        "sha256": content.sha256,
    }
    tensors = {name: _summarised(tensor) for name, tensor in _tensors(content).items()}
    try:
        checkpoint = read_as_checkpoint(content)
    except SeqExportError as error:
        return found | {"exports as": f"nothing, as it is: {error}"} | _weights(tensors)
    return {
        **found,
        "kind": checkpoint.container,
        "exports as": f"{checkpoint.task}: {checkpoint.spec}" if checkpoint.task else str(checkpoint.spec),
        "assumed": list(checkpoint.notes),
        "not used": list(checkpoint.unused),
        **_weights(tensors),
        "task": checkpoint.task or "none: a network only",
        "state_map": checkpoint.spec.state_map,
        "preprocessing": dict(checkpoint.preprocessing),
        "metrics": dict(checkpoint.metrics),
        "data": dict(checkpoint.data),
        "versions": dict(checkpoint.versions),
    }


def _tensors(content: Content) -> Mapping[str, Any]:
    """The file's named tensors; none where it has no dict of them."""
    from seqexport.inference import find_weights

    try:
        return find_weights(content.path, content.tree, recurrent=False).tensors
    except CheckpointError:
        return {}


def _summarised(tensor: Any) -> dict[str, Any]:
    """A tensor's summary. Of one that is sparse, quantised, complex or without values, only dtype and shape."""
    import torch

    tensor, values = tensor.detach(), np.empty(0)
    if tensor.numel() and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_complex()):
        values = tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
    return _summary(values, str(tensor.dtype)) | {"shape": list(tensor.shape)}


def _weights(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The entries on tensors that checkpoints and ONNX files have in common."""
    return {
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "architecture": _tree(tensors),
        "weights": dict(tensors),
    }


def _summary(values: np.ndarray, dtype: str) -> dict[str, Any]:
    """One tensor: dtype, shape, least and greatest finite value, and how many are NaN or infinite."""
    finite = values[np.isfinite(values)] if values.dtype.kind in "fiub" else values[:0]
    return {
        "dtype": dtype.removeprefix("torch."),
        "shape": list(values.shape),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "nan": int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0,
        "infinite": int(np.isinf(values).sum()) if values.dtype.kind == "f" else 0,
    }


_LEVELS = 40  # of a tree; a name may be made of dots alone


def _tree(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Dotted names → nested parts, each with its number of parameters; a leaf tells its tensor in a line."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parts, leaf = name.split(".", _LEVELS)
        place = tree
        for part in parts:
            following = place.setdefault(part, {})
            if not isinstance(following, dict):  # a tensor and a part of one name
                following = place[f"{part}."] = {}
            place = following
        place[leaf] = tensor_line(tensor)
    return _counted(tree, tensors, "")


def _counted(tree: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for name, part in tree.items():
        if isinstance(part, str):
            counted[name] = part
            continue
        inside = [tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}{name}.")]
        number = sum(math.prod(tensor["shape"]) for tensor in inside)
        counted[f"{name}  ({number:,} parameters)"] = _counted(part, tensors, f"{prefix}{name}.")
    return counted


def tensor_line(tensor: Mapping[str, Any]) -> str:
    """A tensor's summary as people read it: float32[64,16], -0.25 to 0.25."""
    line = f"{tensor['dtype']}[{','.join(map(str, tensor['shape']))}]"
    if tensor["min"] is not None:
        line += f", {tensor['min']:.4g} to {tensor['max']:.4g}"
    for kind in ("nan", "infinite"):
        if tensor[kind]:
            line += f", {tensor[kind]:,} {'NaN' if kind == 'nan' else kind}"
    return line


def _inspect_onnx(path: Path) -> dict[str, Any]:
    model = parse_onnx(path)
    graph = model.graph
    tensors = {tensor.name: _initializer(tensor) for tensor in graph.initializer}
    optional = {value.name for value in graph.input if value.name in tensors}
    metadata = parse_metadata({prop.key: prop.value for prop in model.metadata_props})
    weights = {name: tensor for name, tensor in tensors.items() if name not in optional}
    return {
        "file": str(path),
        "kind": "ONNX model",
        "bytes": path.stat().st_size,
        "exports as": "nothing: it is exported already",
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": {
            value.name: _type(value) + (", optional" if value.name in optional else "") for value in graph.input
        },
        "outputs": {value.name: _type(value) for value in graph.output},
        "state_map": metadata.get("state_map", {}),
        "operators": _operators(graph),
        **_weights(weights),
        "architecture": _nodes(graph, weights),
        "metadata": metadata,
    }


def _initializer(tensor: Any) -> dict[str, Any]:
    """An initializer's summary. What lies in other files is told of by its shape alone, and not opened."""
    import onnx

    dtype = _dtype(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return {**_summary(np.empty(0), dtype), "shape": list(tensor.dims)}
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except (ValueError, KeyError, TypeError, MemoryError) as error:
        raise FileError(f"The tensor {tensor.name!r} is damaged ({error}): export the model again.") from error
    if values.dtype.kind not in "fiub":
        return {**_summary(np.empty(0), dtype), "shape": list(tensor.dims)}
    with np.errstate(invalid="ignore"):  # a NaN of a kind that processors signal is a NaN all the same
        return _summary(values.astype(np.float64) if values.dtype.kind == "f" else values, dtype)


def _nodes(graph: Any, tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The nodes that hold weights, in their order, those of loop bodies inside theirs; a line a weight."""
    nodes: dict[str, Any] = {}
    for place, node in enumerate(graph.node):
        inside = {name: tensors[name] for name in node.input if math.prod(tensors.get(name, {}).get("shape", [0])) > 1}
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        parts: dict[str, Any] = {name: tensor_line(tensor) for name, tensor in inside.items() if _is_weight(tensor)}
        for body in bodies:
            parts |= _nodes(body, tensors)
        if parts:
            about = _attributes(node)
            nodes[f"{place}: {node.op_type}{f' ({about})' if about else ''}"] = parts
    return nodes


def _is_weight(tensor: Mapping[str, Any]) -> bool:
    return tensor["dtype"] not in ("int64", "bool")


def _attributes(node: Any) -> str:
    """What tells a recurrent node: its size and direction."""
    shown = []
    for attribute in node.attribute:
        if attribute.name == "hidden_size":
            shown.append(f"hidden {attribute.i}")
        elif attribute.name == "direction":
            shown.append(attribute.s.decode("ascii", "replace"))
        elif attribute.name == "activations":
            shown.append(attribute.strings[0].decode("ascii", "replace").lower() if attribute.strings else "")
    return ", ".join(shown)


def _dtype(code: int) -> str:
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(code).lower()
    except ValueError:
        raise FileError(
            f"The model names a type of tensor, {code}, that ONNX does not have: export it again."
        ) from None
    return {"float": "float32", "double": "float64"}.get(name, name)


def _type(value: Any) -> str:
    tensor = value.type.tensor_type
    dims = ",".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{_dtype(tensor.elem_type)}[{dims}]"


def _operators(graph: Any) -> dict[str, int]:
    """Operator → how often, those in loop bodies included."""
    counts: dict[str, int] = {}
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for name, count in _operators(attribute.g).items():
                    counts[name] = counts.get(name, 0) + count
    return dict(sorted(counts.items()))
