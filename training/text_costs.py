"""What strings in the graph cost beside Python's own split: bytes and latency, in float32 and int8.

    python -m training.text_costs --write

Exports the English classifier and generator with --text, then times the graph of strings, and the graph of numbers with
Python's split and join around it, in turns, on one thread. Some five minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import seqexport
from seqexport.errors import InputError
from seqexport.footprint import describe_machine
from seqexport.runtimes import Runtime
from seqexport.tables import duration, ratio_said
from seqexport.text import Vocabulary
from seqexport.timing import Job, take_turns
from training import publish
from training.command import Parser, exit_code
from training.publish import ROOT, write_block
from training.samples import written_samples

NAMES = ("sentiment-en", "characters-en")
SIZES = ((1, 20), (1, 200), (32, 200))  # texts of a batch, tokens of a text
STEPS = 200  # characters that a generator writes
IN_GRAPH, IN_PYTHON = "graph of strings", "Python around the graph of numbers"
HEAD = "| net | runtime | texts × tokens | file | in the graph | Python around | × |\n|---|---|---|---:|---:|---:|---:|"


def texts_of(vocabulary: Vocabulary, count: int, length: int) -> list[str]:
    """So many texts of so many tokens of the vocabulary, drawn at random."""
    rng = np.random.default_rng(0)
    between = " " if vocabulary.unit == "word" else ""
    return [between.join(vocabulary.tokens[k] for k in rng.integers(1, len(vocabulary), length)) for _ in range(count)]


def labels_of(numbers: Runtime, vocabulary: Vocabulary, texts: Sequence[str]) -> list[str]:
    """Classify texts by the graph of numbers."""
    tokens, lengths = vocabulary.encode_batch(texts)
    probabilities = numbers.run({"tokens": tokens, "lengths": lengths})["probabilities"]
    return [numbers.metadata["labels"][best] for best in probabilities.argmax(-1)]


def texts_written(numbers: Runtime, vocabulary: Vocabulary, prompts: Sequence[str], uniforms: np.ndarray) -> list[str]:
    """Write texts on by the graph of numbers, each with its row of the uniforms [batch, steps]."""
    prompt, _ = vocabulary.encode_batch(prompts)
    return [vocabulary.decode(row) for row in numbers.run({"prompt": prompt, "uniforms": uniforms})["tokens"]]


def ways(
    strings: Runtime, numbers: Runtime, task: str, vocabulary: Vocabulary, batch: int, length: int
) -> dict[str, Callable[[], Any]]:
    """Both ways to answer the same texts. Raises InputError where their answers differ."""
    texts = texts_of(vocabulary, batch, length)
    calls: dict[str, Callable[[], Any]]
    if task == "classify":
        strings, numbers = strings.only("label", "probabilities"), numbers.only("probabilities")
        calls = {IN_GRAPH: partial(strings.run, {"texts": texts})}
        calls[IN_PYTHON] = partial(labels_of, numbers, vocabulary, texts)
    else:
        uniforms = np.random.default_rng(1).random((batch, STEPS), np.float32)
        strings, numbers = strings.only("text"), numbers.only("tokens")
        calls = {IN_GRAPH: partial(strings.run, {"prompt": texts, "uniforms": uniforms})}
        calls[IN_PYTHON] = partial(texts_written, numbers, vocabulary, texts, uniforms)
    found = [str(text) for text in calls[IN_GRAPH]()["label" if task == "classify" else "text"]]
    if found != calls[IN_PYTHON]():
        raise InputError(f"The two ways answer differently ({task}, {batch} × {length}): nothing is timed.")
    return calls


def _ignoring(call: Callable[[], Any], _: int) -> Any:
    return call()


def rows_of(name: str, folder: Path, seconds: float) -> list[str]:
    """The rows of one shipped net, whose files are written into `folder`."""
    out = folder / f"{name}.onnx"
    data = next(model.data for model in publish.MODELS if model.name == name)
    source = ROOT / "exported" / name / "checkpoint.pt"
    task = seqexport.read_checkpoint(source).task or ""
    samples = written_samples(folder, task, data, "validation")  # by whose metric int8 is judged
    report = seqexport.export(source, out, precision="fp32,int8", text=True, data=samples)
    sizes = {Path(file.path).name: file.bytes for file in report.files}
    rows = []
    for runtime, kind in (("onnxruntime", ""), ("onnxruntime-int8", ".int8")):
        strings, numbers = (seqexport.load(out, runtime, pipeline=part) for part in (f"{task}.text", task))
        vocabulary = Vocabulary.from_dict(numbers.metadata["preprocessing"]["vocabulary"])
        bytes_ = [sizes[f"{name}.{part}{kind}.onnx"] for part in (f"{task}.text", task)]
        grown = f"{bytes_[1] / 1e6:.2f} MB {100 * (bytes_[0] / bytes_[1] - 1):+.1f} %"
        for batch, length in SIZES if task == "classify" else SIZES[:2]:
            calls = ways(strings, numbers, task, vocabulary, batch, length)
            jobs = {way: Job(partial(_ignoring, call)) for way, call in calls.items()}
            found = take_turns(jobs, seconds, (IN_PYTHON,))
            inside, around = (duration(found.times[way].quantile(0.5)) for way in (IN_GRAPH, IN_PYTHON))
            ratio = ratio_said(found.ratio(IN_GRAPH, IN_PYTHON))
            rows.append(f"| {name} | {runtime} | {batch} × {length} | {grown} | {inside} | {around} | {ratio} |")
            print(rows[-1], flush=True)
    return rows


def table(seconds: float) -> str:
    """All rows as Markdown, and what they come from."""
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in NAMES for row in rows_of(name, Path(folder), seconds)]
    about = (
        f"Medians on one thread, in turns; the generator writes {STEPS} characters after the prompt. The file is the "
        "graph of numbers, and by how much that of strings is larger. × is what Python around takes as a multiple of "
        f"the graph of strings. {describe_machine().processor}, onnxruntime {version('onnxruntime')}."
    )
    return "\n".join([HEAD, *rows, "", about])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write README's table."""
    parser = Parser(prog="python -m training.text_costs", description="What strings in the graph cost.")
    parser.add_argument("--seconds", type=float, default=10, help="for each row (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options: Any = parser.parse_args(arguments)

    def work() -> None:
        told = table(options.seconds)
        if options.write:
            write_block(ROOT / "README.md", "strings", told)

    return exit_code("text_costs", work)


if __name__ == "__main__":
    sys.exit(main())
