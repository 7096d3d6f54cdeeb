"""Any PyTorch recurrent net (RNN, LSTM, GRU) to a verified, deployable ONNX file.

Importing this package imports neither torch nor onnxruntime; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqexport.errors import (
    CheckpointError,
    FileError,
    InputError,
    ParityError,
    SeqExportError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from seqexport.batching import classify
    from seqexport.checkpoint import read_checkpoint, write_checkpoint
    from seqexport.comparison import compare
    from seqexport.engines import score
    from seqexport.exporter import export, verify_files
    from seqexport.inference import Choices
    from seqexport.modules import load_module
    from seqexport.peers import load
    from seqexport.quantization import quantize
    from seqexport.streaming import Stream

__version__ = "0.1.0"

_LAZY = {
    "Choices": "inference",
    "Stream": "streaming",
    "classify": "batching",
    "compare": "comparison",
    "read_checkpoint": "checkpoint",
    "write_checkpoint": "checkpoint",
    "export": "exporter",
    "verify_files": "exporter",
    "load": "peers",
    "load_module": "modules",
    "quantize": "quantization",
    "score": "engines",
}

__all__ = [
    "CheckpointError",
    "Choices",
    "FileError",
    "InputError",
    "ParityError",
    "SeqExportError",
    "SpecError",
    "Stream",
    "UnsupportedError",
    "classify",
    "compare",
    "export",
    "load",
    "load_module",
    "quantize",
    "read_checkpoint",
    "score",
    "verify_files",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"seqexport.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'seqexport' has no attribute {name!r}")
