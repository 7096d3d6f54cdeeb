"""The child in which a visitor's file is opened: `python -m tabs.worker`, which reads one job, a line of JSON.

It goes into the job's folder and limits itself first, then says what it does in lines of JSON: {"stage": …} as it
goes, and at last {"found": …} or {"done": …}, or {"error": …, "kind": …} for what could not be done. It imports no
gradio, and runs nothing of the file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from seqexport.errors import ParityError, SeqExportError
from seqexport.files import replace_file
from seqexport.isolation import limit_process, parse_onnx
from seqexport.specs import TensorSpec

Say = Callable[[Mapping[str, Any]], None]

# What the file's weights can't tell: the flag of the command in the inspection's notes → the choice.
QUESTIONS = {"--nonlinearity": "nonlinearity", "--time-major": "time_major", "--head": "head"}
SIZES = {"batch": 1, "time": 20, "paths": 1, "horizon": 12, "steps": 50}  # of the values in a program
MOST_NODES = 400  # of a graph that is drawn; a pipeline of seqexport's has some 60


def inspected(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the file is: the inspection without its values, the network's fields, and the questions that it leaves."""
    from seqexport.checkpoint import read_checkpoint
    from seqexport.inspection import inspect

    found = inspect(job["file"])
    kept = ("kind", "bytes", "exports as", "assumed", "not used", "task", "parameters")
    about = {name: found[name] for name in kept if name in found}
    if "assumed" not in found:  # the inspection says in a sentence why nothing can be made of it
        return about | {"questions": [], "network": None}
    asked = questions(found["assumed"])
    if about["task"] in ("classify", "generate"):
        asked.append("text")
    return about | {"questions": asked, "network": read_checkpoint(job["file"]).spec.to_dict()}


def questions(assumed: Iterable[str]) -> list[str]:
    """The choices that a file leaves open, by the notes of what was assumed in their place."""
    notes = list(assumed)
    return [choice for flag, choice in QUESTIONS.items() if any(flag in note for note in notes)]


def converted(job: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Export the file, verified, and write the report and the programs beside it. Raises ParityError and its like."""
    from onnx.shape_inference import infer_shapes

    from seqexport.checkpoint import read_checkpoint
    from seqexport.exporter import export
    from seqexport.inference import Choices
    from seqexport.pages import write_report

    options, network = job["options"], Path(job["output"])
    open_ = questions(read_checkpoint(job["file"]).notes)
    report = export(
        job["file"],
        network,
        state=options["state"],
        precision=options["precision"],
        text=options["text"],
        choices=Choices(**{name: options[name] for name in open_}),  # what the file tells is not chosen otherwise
        tell=lambda stage: say({"stage": vars(stage)}),
    )
    say({"stage": {"doing": "describe", "part": "", "at": 0, "count": 0}})
    for suffix in ("html", "json"):
        write_report(f"{network.stem}.report.{suffix}", report)
    graphs, programs = {}, {}
    for file in report.files:
        path = Path(file.path)
        graphs[path.name] = graph_of(infer_shapes(parse_onnx(path)).graph)
        if not file.int8_bytes:  # an int8 file takes and gives the same
            programs[path.name] = program(path)
            replace_file(Path(f"run_{path.stem.replace('.', '_')}.py"), programs[path.name].encode())
    return {"report": report.to_dict(), "graphs": graphs, "programs": programs}


def program(path: Path) -> str:
    """At most ten lines of Python that run the ONNX file, its state fed back where a stream can be cut."""
    from seqexport.runtimes import OnnxRuntime

    runtime = OnnxRuntime(path)
    part, network = runtime.metadata.get("part", "network"), runtime.metadata.get("network", {})
    carried = {spec.name for spec in runtime.inputs} & set(runtime.metadata.get("state_map", {}))
    given = [spec for spec in runtime.inputs if not spec.optional]
    shown = ", ".join(f"{spec.name} {spec}" for spec in given)
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "onnxruntime.set_default_logger_severity(3)  # below it, it warns of every input that may be left out",
        f'net = onnxruntime.InferenceSession("{path.name}", providers=["CPUExecutionProvider"])',
        "names = [output.name for output in net.get_outputs()]",
        f"feeds = {_literal({spec.name: _values(spec, spec.name in carried) for spec in given})}  # {shown}",
    ]
    call = "outputs = dict(zip(names, net.run(names, feeds)))"
    show = "print({name: values.shape for name, values in outputs.items()})"
    if not carried or network.get("bidirectional") or part.endswith(".text"):
        return "\n".join([*lines, call, show, ""])
    back = {name: f'outputs["{output}"]' for name, output in runtime.metadata["state_map"].items() if name in carried}
    if part == "generate":  # the state is from before the last token is read
        back["prompt"] = 'outputs["tokens"][:, -1:]'
    carry = f"feeds |= {_literal(back)}"
    loop = "for piece in range(3):  # of a stream: each goes on with the state of the one before it"
    return "\n".join([*lines, loop, *(f"    {line}" for line in (call, carry, show)), ""])


def _literal(entries: Mapping[str, str]) -> str:
    """A dict of expressions, as Python has it."""
    return f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in entries.items())}}}"


def _values(spec: TensorSpec, state: bool) -> str:
    """An expression for values of an input: zeros for a state, the length for lengths, text for text, else ones."""
    shape = spec.shape(SIZES)
    if spec.dtype == "string":
        return 'np.array(["some text"], object)'
    if state:
        return f"np.zeros({shape}, np.{spec.dtype})"
    if isinstance(spec.high, str):  # as long as the other inputs' dim
        return f"np.full({shape}, {SIZES[spec.high]}, np.{spec.dtype})"
    if spec.low == 0 and spec.high in (0, 1):  # such as uniform numbers, or the tokens of the smallest vocabulary
        return f"np.zeros({shape}, np.{spec.dtype})"
    return f"np.ones({shape}, np.{spec.dtype})"


def graph_of(graph: Any, outside: Mapping[str, int] | None = None) -> dict[str, Any]:
    """An ONNX graph as plain data to draw: inputs and outputs {name, shape}, nodes {op, about, inputs, outputs, shape,
    weights, bodies}; weights counts the numbers that a node reads from the file, outside those of graphs around it."""
    constants = dict(outside or {}) | {
        tensor.name: 0 if tensor.data_type in _NO_WEIGHTS else math.prod(tensor.dims) for tensor in graph.initializer
    }
    given = [value.name for value in graph.input]
    constants = {name: count for name, count in constants.items() if name not in given}
    if len(graph.node) > MOST_NODES:
        return {"inputs": [], "outputs": [], "nodes": [], "count": len(graph.node)}
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    nodes = []
    for node in graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        about = {attribute.name: attribute for attribute in node.attribute}
        names = [*node.input, *(name for body in bodies for name in _reached(body))]
        nodes.append(
            {
                "op": node.op_type,
                "about": about["direction"].s.decode("ascii", "replace") if "direction" in about else "",
                "inputs": list(dict.fromkeys(name for name in names if name and name not in constants)),
                "outputs": [name for name in node.output if name],
                "shape": next((shapes.get(name, "") for name in node.output if name), ""),
                "weights": sum(constants.get(name, 0) for name in dict.fromkeys(names)),
                "bodies": [graph_of(body, constants) for body in bodies],
            }
        )
    return {
        "inputs": [{"name": name, "label": _label(name), "shape": shapes[name]} for name in given],
        "outputs": [
            {"name": value.name, "label": _label(value.name), "shape": shapes[value.name]} for value in graph.output
        ],
        "nodes": nodes,
        "count": len(nodes),
    }


def _label(name: str) -> str:
    """A value's name without what torch appends to those in a loop's body."""
    return name.partition("_scan_combine_graph")[0]


def _reached(body: Any) -> Iterable[str]:
    """What a loop's body reads from the graph around it."""
    inside = {name for node in body.node for name in node.output}
    inside |= {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    for node in body.node:
        deeper = [name for part in node.attribute if part.HasField("g") for name in _reached(part.g)]
        yield from (name for name in (*node.input, *deeper) if name and name not in inside)


_NO_WEIGHTS = (6, 7, 8, 9)  # int32, int64, string, bool: shapes, axes, tables of words
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16"}


def _shape(value: Any) -> str:
    """A value's type as people read it: float32[batch,time,48]; nothing where the graph does not say."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return ""
    dims = ",".join(
        dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim
    )
    dims = re.sub(r"\bunk__\d+", "?", dims)  # what inference could not tell
    return f"{_DTYPES.get(tensor.elem_type, '')}[{dims}]"


def main() -> None:
    """Wait for a job, do it, and end at once."""
    for module in ("exporter", "inspection", "pages"):  # with torch: what takes longest, before there is a job
        importlib.import_module(f"seqexport.{module}")
    line = sys.stdin.readline()
    if not line:  # whoever started this has ended
        return
    job = json.loads(line)
    os.chdir(job["folder"])
    os.environ["TMPDIR"], tempfile.tempdir = job["folder"], job["folder"]
    limit_process(job["memory"], job["seconds"])
    _limit_files(job["bytes"])
    channel = os.dup(1)
    os.dup2(2, 1)  # what libraries print is none of our lines

    def say(thing: Mapping[str, Any]) -> None:
        os.write(channel, json.dumps(thing).encode() + b"\n")

    try:
        say({"found": inspected(job)} if job["do"] == "inspect" else {"done": converted(job, say)})
    except ParityError as error:
        say({"error": str(error), "kind": "ParityError", "report": error.report.to_dict()})
    except Exception as error:  # whatever it is, it ends with a sentence
        if _is_short_of_memory(error):
            sentence = f"{job['file']} takes more than {job['memory'] >> 20:,} MiB of memory; expected a smaller net."
            say({"error": sentence, "kind": "FileError"})
        elif isinstance(error, SeqExportError):
            say({"error": str(error), "kind": type(error).__name__})
        else:  # a defect
            say({"error": f"{job['file']} could not be converted ({type(error).__name__}).", "kind": "FileError"})
    os._exit(0)


def _is_short_of_memory(error: BaseException | None) -> bool:
    """Whether that is behind the error; libraries have their own words for it."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search(
            r"bad_alloc|can't allocate memory|failed to allocate", str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit_files(size: int) -> None:
    """No file larger than this; a write beyond it is an error here and not the end of the process."""
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


if __name__ == "__main__":
    main()
