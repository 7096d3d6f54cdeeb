"""Tell what is in a file: a checkpoint or an ONNX model, as plain JSON types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from seqexport.errors import FileError
from seqexport.files import is_checkpoint
from seqexport.runtimes import parse_metadata, read_onnx


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file holds. Raises FileError or CheckpointError if it is neither a checkpoint nor an ONNX model."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"There is no file {path}: give a checkpoint or an ONNX file.")
    if is_checkpoint(path):
        return _inspect_checkpoint(path)
    try:
        return _inspect_onnx(path)
    except (UnicodeDecodeError, TypeError) as error:  # protobuf gives names that are no text as bytes, or fails on them
        raise FileError(f"{path} is a damaged ONNX file: it holds names that are no text; export it again.") from error


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    from seqexport.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    return {
        "file": str(path),
        "kind": "checkpoint of seqexport" if checkpoint.task else "bare state_dict",
        "bytes": path.stat().st_size,
        "sha256": checkpoint.sha256,
        "network": str(checkpoint.spec),
        "task": checkpoint.task or "none: a network only",
        "parameters": sum(tensor.numel() for tensor in checkpoint.weights.values()),
        "weights": {name: f"{list(tensor.shape)}" for name, tensor in checkpoint.weights.items()},
        "assumed": list(checkpoint.notes),
        "not used": list(checkpoint.unused),
        "preprocessing": dict(checkpoint.preprocessing),
        "metrics": dict(checkpoint.metrics),
        "data": dict(checkpoint.data),
        "versions": dict(checkpoint.versions),
    }


def _inspect_onnx(path: Path) -> dict[str, Any]:
    model = read_onnx(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    optional = {value.name for value in graph.input if value.name in weights}
    return {
        "file": str(path),
        "kind": "ONNX model",
        "bytes": path.stat().st_size,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": {
            value.name: _type(value) + (", optional" if value.name in optional else "") for value in graph.input
        },
        "outputs": {value.name: _type(value) for value in graph.output},
        "operators": _operators(graph),
        "metadata": parse_metadata({prop.key: prop.value for prop in model.metadata_props}),
    }


def _type(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    return f"{dtype}[{','.join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)}]"


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
