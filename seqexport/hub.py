"""A folder in the conventions of the Hugging Face Hub: card, config.json, the weights as safetensors, and onnx/ with
the names that Transformers.js looks for. Pushing it is one command, which the card's last lines give."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seqexport.errors import FileError, UnsupportedError
from seqexport.files import is_checkpoint, write_folder
from seqexport.runtimes import check_pair, int8_path, network_path, onnx_metadata, pipeline_path
from seqexport.specs import PIPELINES

MARK = "<!-- written by seqexport deploy: it may be replaced by the next -->"
TAGS = {
    "forecast": "time-series-forecasting",
    "classify": "text-classification",
    "generate": "text-generation",
}
# Precision → what Transformers.js puts behind a file's name; its q8 is what onnxruntime calls int8.
SUFFIXES = {"fp32": "", "int8": "_quantized"}
REMEDY = "python -m pip install huggingface-hub"


def write_hub(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, checkpoint: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write the folder of a model, and give the paths of what was written.

    path: a network's ONNX file or its pipeline's; the others of the same checkpoint beside it, and their int8 forms, go
    along. checkpoint: the weights; unless given, the file beside it of which the metadata has the sha256.

    Raises FileError where the files are not of one checkpoint, the checkpoint is not found, or the folder has something
    else in it; UnsupportedError where huggingface_hub is not installed, and for a class of one's own, whose weights no
    description goes with. Nothing is written then.
    """
    if find_spec("huggingface_hub") is None:
        raise UnsupportedError(f"The card is written by huggingface_hub, which is not installed: {REMEDY}.")
    path = Path(path)
    metadata = onnx_metadata(path)
    if "network" not in metadata:
        raise UnsupportedError(
            f"{path} is of a class of your own, for which there is no config.json: give the file of a recognised "
            "network, or its pipeline's."
        )
    variants = dict(_variants(path, metadata))
    weights = _weights(path, metadata, checkpoint)
    metadata = onnx_metadata(next(iter(variants.values())))  # the float32 file's, where it is there
    config = _config(metadata, variants)
    contents = {
        "README.md": _card(_title(Path(folder)), metadata, variants).encode(),
        "config.json": (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
        "model.safetensors": weights,
        **{name: file.read_bytes() for name, file in variants.items()},
    }
    return write_folder(Path(folder), contents, MARK)


def _variants(path: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """(name in the folder, file) of the network's and the pipeline's graph, in each precision that is there."""
    task, part = metadata.get("task"), metadata.get("part", "network")
    network = network_path(path, part) if part in PIPELINES else path
    floats = network.with_name(f"{network.stem.removesuffix('.int8')}{network.suffix}")
    graphs = {"model": floats} | ({task: pipeline_path(floats, task)} if task in PIPELINES else {})
    digest = metadata.get("checkpoint_sha256")
    for name, file in graphs.items():
        for precision, suffix in SUFFIXES.items():
            beside = int8_path(file) if precision == "int8" else file
            if not beside.is_file():
                continue
            check_pair(beside)
            about = onnx_metadata(beside)
            if about.get("checkpoint_sha256") != digest or about.get("precision", "fp32") != precision:
                raise FileError(f"{beside} is not the {precision} form of {path}'s checkpoint: export it again.")
            yield f"onnx/{name}{suffix}.onnx", beside


def _weights(path: Path, metadata: Mapping[str, Any], checkpoint: str | os.PathLike[str] | None) -> bytes:
    """The checkpoint's weights, as safetensors with torch's names."""
    digest = metadata.get("checkpoint_sha256")
    source = _found(path, digest) if checkpoint is None else Path(checkpoint)
    from safetensors.torch import save as in_safetensors

    from seqexport.checkpoint import read_checkpoint
    from seqexport.inference import Choices

    choices = Choices(*(metadata["network"].get(name) for name in ("nonlinearity", "time_major", "pooling")))
    read = read_checkpoint(source, choices)
    if read.sha256 != digest:
        raise FileError(f"{source} is not the checkpoint that {path} was exported from: give that one.")
    tensors = {name: tensor.contiguous().clone() for name, tensor in read.weights.items()}
    return in_safetensors(tensors, {"format": "pt", "checkpoint_sha256": read.sha256})


def _found(path: Path, digest: str | None) -> Path:
    """The file beside `path` that has this sha256."""
    for beside in sorted(path.absolute().parent.iterdir()):
        fits = beside.is_file() and beside.suffix != ".onnx" and is_checkpoint(beside)
        if fits and sha256(beside.read_bytes()).hexdigest() == digest:
            return beside
    raise FileError(
        f"The checkpoint that {path} was exported from is not beside it: give it with --checkpoint, for its weights."
    )


def _config(metadata: Mapping[str, Any], variants: Mapping[str, Path]) -> dict[str, Any]:
    """config.json: the network's description and preprocessing as in the metadata, labels as the Hub has them."""
    labels = metadata.get("labels") or []
    named = {str(place): label for place, label in enumerate(labels)}
    parts = ("task", "cell", "network", "preprocessing", "state_map", "checkpoint_sha256", "versions")
    return {
        "model_type": metadata.get("cell"),
        "architectures": ["seqexport"],
        "torch_dtype": "float32",
        **({"id2label": named, "label2id": {label: place for place, label in enumerate(labels)}} if labels else {}),
        "files": list(variants),
        **{name: metadata[name] for name in parts if name in metadata},
    }


def _title(folder: Path) -> str:
    """The folder's name, as the Hub allows it for a repository."""
    return re.sub(r"[^A-Za-z0-9_-]+|--+", "-", folder.resolve().name).strip("-")[:96] or "model"


def _card(title: str, metadata: Mapping[str, Any], variants: Mapping[str, Path]) -> str:
    """README.md: the Hub's front matter, and what there is to know."""
    from huggingface_hub import ModelCardData

    data, task = metadata.get("data") or {}, metadata.get("task")
    front = ModelCardData(
        library_name="onnx",
        language=data.get("language"),
        pipeline_tag=TAGS.get(str(task)),
        tags=["onnx", "onnxruntime", str(metadata.get("cell")), "seqexport"],
        datasets=list(data.get("hub") or []) or None,
    )
    first = next(iter(variants))
    about = "".join(f"\n{line}\n" for line in _said(metadata))
    return f"""\
---
{front.to_yaml().strip()}
---
# {title}

{_spec(metadata)}.
{about}
## Files
| file | what |
|---|---|
| model.safetensors | the weights, with torch's names |
| config.json | the network's description, its preprocessing with the vocabulary, labels |
{chr(10).join(_file_rows(variants))}

{_held(metadata)}

## Use
```python
import onnxruntime
from huggingface_hub import hf_hub_download

session = onnxruntime.InferenceSession(hf_hub_download("USER/{title}", "{first}"))
print([(value.name, value.type, value.shape) for value in session.get_inputs()])
```

Each graph's metadata has all that a program needs: the state map, the preprocessing, the vocabulary.

## Push
```
hf upload USER/{title} . .
```

{MARK}
"""


def _held(metadata: Mapping[str, Any]) -> str:
    """How the first graph was verified."""
    verdict = metadata.get("verification") or {}
    if "tolerance" in verdict:
        cases, allowed = verdict.get("cases", 0), verdict["tolerance"]
        return f"The float32 network was held against torch at export, in {cases} cases: at most {allowed:g} apart."
    return f"Held against its float32 form by {verdict['gate']}." if "gate" in verdict else "Not verified."


def _spec(metadata: Mapping[str, Any]) -> str:
    from seqexport.specs import NetworkSpec

    task = metadata.get("task")
    return f"{f'{task}: ' if task else ''}{NetworkSpec.from_dict(metadata['network'])}"


def _said(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What is known of data and quality, a line each."""
    data, metrics = metadata.get("data") or {}, metadata.get("metrics") or {}
    if "name" in data:
        source = f" Source: {data['source']}." if "source" in data else ""
        licence = f" Licence: {data['licence']}." if "licence" in data else ""
        yield f"Trained on {data['name']}.{source}{licence}"
    if "metric" in metrics and "test" in metrics:
        test, baselines = (json.dumps(metrics.get(part, {}), ensure_ascii=False) for part in ("test", "baselines"))
        yield f"On the test part ({metrics['metric']}): `{test}`; simpler models on the same part: `{baselines}`."


def _file_rows(variants: Mapping[str, Path]) -> Iterator[str]:
    for name in variants:
        graph, quantized = Path(name).stem.removesuffix("_quantized"), name.endswith("_quantized.onnx")
        what = "the network" if graph == "model" else f"the pipeline {graph}, raw values in and the answer out"
        yield f"| {name} | {what}{', int8, with operators of com.microsoft' if quantized else ''} |"
