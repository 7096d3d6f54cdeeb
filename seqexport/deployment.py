"""What goes beside an exported file: the model card."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqexport.checkpoint import Checkpoint
from seqexport.files import replace_file
from seqexport.reports import Report


def write_model_card(
    path: str | os.PathLike[str], checkpoint: Checkpoint, report: Report, title: str, command: str
) -> None:
    """Write the card of an exported model, every figure in it taken from the checkpoint and the report.

    title: the heading. command: what rebuilds the model. Raises FileError where the card could not be written.
    """
    replace_file(Path(path), model_card(checkpoint, report, title, command).encode())


@dataclass(frozen=True)
class _Words:
    """What a card says that depends on the task, as Markdown. tag: the Hub's name of the task. results: of the test
    part, what was measured on what set: (set, the Hub's name of the metric, figure)."""

    tag: str
    results: Sequence[tuple[str, str, float]]
    about: str
    data: str
    quality: str
    use: str
    limits: str


def model_card(checkpoint: Checkpoint, report: Report, title: str, command: str) -> str:
    """The card as Markdown."""
    words = {"forecast": _forecast, "classify": _classify, "generate": _generate}[str(checkpoint.task)](checkpoint)
    data = checkpoint.data
    verdict = "passed" if report.passed else "FAILED"
    return f"""\
---
{_front_matter(checkpoint, words)}
---
# {title}

{checkpoint.spec}: {_parameters(checkpoint):,} parameters. {words.about}

Rebuilt by `{command}`; this card is written by that command.

## Data
{data["name"]}: {words.data} Source: {data["source"]}. Licence: {data["licence"]}.
Split: {_split(data["split"])}.

## Quality
{words.quality.rstrip()}

One training run, seed {checkpoint.metrics["seed"]}, {_minutes(checkpoint.metrics["seconds"])}{_before(checkpoint)}.

## Verification
{verdict}: {len(report.outcomes)} cases against torch, the worst difference {report.max_abs_error:.1e} (allowed
{report.tolerance:.0e}){_decided(report)}.

| graph | output | worst difference |
|---|---|---|
{_errors(report)}

{_int8(report)}## Files
| file | what |
|---|---|
| checkpoint.pt | weights, description, preprocessing and metrics, loadable with `weights_only=True` |
{_files(report)}
{_curve(checkpoint)}| report.json | every case of the verification |

## Use
```python
{words.use}
```

## Intended use and limits
Made to show that the runtimes agree and what each costs, and to be read by a learner; not to decide anything by.
{words.limits} The weights are under the licence above; the data that they were learnt from are under theirs.
"""


def _front_matter(checkpoint: Checkpoint, words: _Words) -> str:
    """What the Hub reads of a card, in the form of its own library."""
    from huggingface_hub import EvalResult, ModelCardData

    data, name = checkpoint.data, f"{checkpoint.data['name']}-{checkpoint.spec.cell}"
    hub = list(data.get("hub") or [data["name"]])
    sets = hub if len(hub) == len(words.results) else hub[:1] * len(words.results)
    results = [
        EvalResult(
            task_type=words.tag,
            dataset_type=known,
            dataset_name=part,
            dataset_config=part if len(words.results) > 1 else None,  # without it the Hub's library would merge them
            dataset_split="test",
            metric_type=metric,
            metric_value=float(f"{value:.5g}"),
        )
        for known, (part, metric, value) in zip(sets, words.results, strict=True)
    ]
    card = ModelCardData(
        model_name=name,
        license="mit",
        language=data.get("language"),
        library_name="onnx",
        pipeline_tag=words.tag,
        tags=["onnx", "onnxruntime", checkpoint.spec.cell, "seqexport"],
        datasets=list(data.get("hub") or []) or None,
        metrics=sorted({metric for _, metric, _ in words.results}),
        eval_results=results,
    )
    return card.to_yaml().strip()


def _forecast(checkpoint: Checkpoint) -> _Words:
    metrics, preprocessing = checkpoint.metrics, checkpoint.preprocessing
    test = metrics["test"]
    rows = [(f"this {checkpoint.spec.cell.upper()}", test["mae"]), *metrics["baselines"].items()]
    table = _table(("forecast", "mean absolute error"), [(name, f"{mae:.2f}") for name, mae in rows])
    scores = [(f"this {checkpoint.spec.cell.upper()}", test["crps"]), *metrics["baselines_crps"].items()]
    return _Words(
        tag="time-series-forecasting",
        results=[(checkpoint.data["name"], "mae", test["mae"])],
        about="It reads a history in the data's own units and\ngives, for every step ahead, the distribution of the "
        "next value.",
        data=f"{checkpoint.data['values']:,} values, one {_article(preprocessing['step'])}, split in their order; the "
        "scaling is fitted on the training part alone.",
        quality=f"""\
Mean absolute error ({preprocessing["unit"]}) of the central path, averaged over the next {metrics["horizon"]} steps
and over {test["origins"]:,} starting points of the test part, which neither training nor the choice of the model has
seen:

{table}

The 50 % band holds {_percent(test["coverage_50"])} of the true values,
the 90 % band {_percent(test["coverage_90"])}.
The continuous ranked probability score of all sampled paths (CRPS, at every fifth starting point; the baselines
have the spread of their errors on the validation part):

{_table(("forecast", "CRPS"), [(name, f"{crps:.2f}") for name, crps in scores])}
""",
        use=f"""\
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("checkpoint.forecast.onnx")
# history: float32 [batch, time], in the data's units. noise: [batch, paths, horizon], zero for the central path
noise = numpy.zeros((1, 1, {metrics["horizon"]}), numpy.float32)
path = session.run(["path"], {{"history": history, "noise": noise}})[0]""",
        limits="One series, without other columns; it knows nothing of what is not in the series' past.",
    )


def _classify(checkpoint: Checkpoint) -> _Words:
    metrics, preprocessing = checkpoint.metrics, checkpoint.preprocessing
    vocabulary = preprocessing["vocabulary"]
    rows = [
        (name, *(_accuracy(shares[part]) for part in metrics["test"]))
        for name, shares in {
            f"this {checkpoint.spec.cell.upper()}": {
                part: (test["accuracy"], test["interval"]) for part, test in metrics["test"].items()
            },
            **metrics["baselines"],
        }.items()
    ]
    header = ("accuracy", *(f"{part} ({test['texts']:,} texts)" for part, test in metrics["test"].items()))
    return _Words(
        tag="text-classification",
        results=[(part, "accuracy", test["accuracy"]) for part, test in metrics["test"].items()],
        about=f"It reads a text {vocabulary['unit']} by {vocabulary['unit']}\nand gives the probability of "
        f"{' and '.join(preprocessing['labels'])}, after each of them.",
        data=f"{checkpoint.data['texts']:,} texts, split in blocks of neighbours. None of them is shipped.",
        quality=f"""\
On the test part, which neither training nor the choice of the model has seen, with the 95 % interval:

{_table(header, rows)}

{_calibration(metrics)}{_checklist(metrics.get("checklist"))}""",
        use="""\
import seqexport
from seqexport.text import Vocabulary

runtime = seqexport.load("checkpoint.onnx", pipeline="classify")
vocabulary = Vocabulary.from_dict(runtime.metadata["preprocessing"]["vocabulary"])
tokens, lengths = vocabulary.encode_batch(["one text", "another text"])
outputs = runtime.run({"tokens": tokens, "lengths": lengths})  # probabilities [batch,classes], running""",
        limits=f"One opinion a text, of the kind in the data; {len(vocabulary['tokens']) - 1:,} "
        f"{vocabulary['unit']}s are known.",
    )


def _generate(checkpoint: Checkpoint) -> _Words:
    metrics, preprocessing = checkpoint.metrics, checkpoint.preprocessing
    test = metrics["test"]
    rows = [(f"this {checkpoint.spec.cell.upper()}", test["bits"]), *metrics["baselines"].items()]
    table = _table(("model", "bits per character"), [(name, f"{bits:.3f}") for name, bits in rows])
    return _Words(
        tag="text-generation",
        results=[(checkpoint.data["name"], "perplexity", 2 ** test["bits"])],
        about="It reads a text and gives,\nfor every character, the probabilities of the next.",
        data=f"{checkpoint.data['characters']:,} characters, split in their order. The text itself is not shipped.",
        quality=f"""\
Bits per character of the test part's {test["characters"]:,} characters ({test["unknown"]:,} of them never seen in
training), which neither training nor the choice of the model has seen:

{table}

{_temperature(metrics)}{_samples(metrics.get("samples"))}""",
        use="""\
import numpy
import seqexport
from seqexport.text import Vocabulary, read_prompt

runtime = seqexport.load("checkpoint.onnx", pipeline="generate")
vocabulary = Vocabulary.from_dict(runtime.metadata["preprocessing"]["vocabulary"])
prompt, notes = read_prompt(vocabulary, "a prompt")
uniforms = numpy.random.default_rng(0).random((1, 200), numpy.float32)
outputs = runtime.run({"prompt": prompt, "uniforms": uniforms, "temperature": 0.8})
text = vocabulary.decode(outputs["tokens"][0])""",
        limits=f"It was trained to look back over {preprocessing['window']:,} characters; what it writes has the "
        "style of its source and means nothing.",
    )


def _calibration(metrics: Mapping[str, Any]) -> str:
    errors = {part: test.get("calibration_error") for part, test in metrics["test"].items()}
    if None in errors.values():
        return ""
    told = ", ".join(f"{error:.3f} on {part}" for part, error in errors.items())
    return f"Expected calibration error (15 bins): {told}.\n{_temperature(metrics)}"


def _temperature(metrics: Mapping[str, Any]) -> str:
    """By what the head was divided; nothing where a checkpoint tells nothing of it."""
    if metrics.get("temperature") is None:
        return ""
    return f"The head was divided by a temperature of {metrics['temperature']:.2f}, fitted on the validation part.\n\n"


def _checklist(found: Mapping[str, Any] | None) -> str:
    """What came out of the hand-written sentences; nothing where there are none in the language."""
    if not found:
        return ""
    rows = [(kind, f"{right} of {count}") for kind, (right, count) in found["kinds"].items()]
    wrong = [f"- {text} ({label}; it thinks {_percent(share)} positive)" for text, label, share in found["wrong"]]
    told = "\nThose that it gets wrong:\n" + "\n".join(wrong) + "\n" if wrong else ""
    return f"A small hand-written list of sentences, as it came out:\n\n{_table(('what', 'right'), rows)}\n{told}\n"


def _samples(found: Mapping[str, Any] | None) -> str:
    """What the model writes; nothing where a checkpoint tells nothing of it."""
    if not found:
        return ""
    texts = [f"Seed {seed}:\n```text\n{text.strip()}\n```\n" for seed, text in found["texts"].items()]
    return f"What it writes at temperature {found['temperature']}, with the first seeds, not picked:\n\n" + "\n".join(
        texts
    )


def _accuracy(share: float | tuple[float, float]) -> str:
    if isinstance(share, tuple):
        return f"{100 * share[0]:.1f} % ± {100 * share[1]:.1f}"
    return f"{100 * share:.1f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.weights.values())


def _split(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} for {part}" for part, count in parts.items())


def _curve(checkpoint: Checkpoint) -> str:
    return "| checkpoint.curve.png | the learning curve |\n" if checkpoint.metrics.get("curve") else ""


def _before(checkpoint: Checkpoint) -> str:
    """What the net learnt before its task, if anything."""
    seconds = (checkpoint.metrics.get("pretraining") or {}).get("seconds")
    return f", after {_minutes(seconds)} on the texts' language" if seconds else ""


def _article(noun: str) -> str:
    return f"an {noun}" if noun.startswith("hour") or noun[:1] in "aeio" else f"a {noun}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds of training" if seconds < 120 else f"{seconds / 60:.0f} minutes of training"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _decided(report: Report) -> str:
    parts = [f"{count:,} {noun}s the same" for noun, count in report.decided().items()]
    ties = len(report.ties())
    return "".join(f"; {part}" for part in parts) + (f", {ties} of them ties" if ties else "")


def _errors(report: Report) -> str:
    return "\n".join(
        f"| {part} | {output} | {f'{error:.1e}' if error else '0'} |"
        for (part, output), error in report.worst().items()
    )


def _files(report: Report) -> str:
    lines = []
    for file in report.files:
        what = "network" if file.part == "network" else f"pipeline {file.part}"
        form = "in int8, " if file.int8_bytes else ""
        lines.append(f"| {Path(file.path).name} | the {what}, {form}opset {file.opset}, {file.nodes} nodes |")
    return "\n".join(lines)


def _int8(report: Report) -> str:
    """A section on the int8 files; nothing where there are none."""
    sizes = {precise: sum(f.bytes for f in report.files if bool(f.int8_bytes) != precise) for precise in (True, False)}
    if not sizes[False]:
        return ""
    share = f"The int8 files have {sizes[False] / sizes[True]:.2f} of the float32 files' bytes."
    rows = [(tried.part, tried.name.removeprefix("int8 "), tried.error, tried.allowed) for tried in report.properties]
    marks = [(part, name, f"{error:.1e}", f"{allowed:g}") for part, name, error, allowed in rows]
    notes = [note for tried in report.properties if tried.name == "task metric" for note in tried.notes]
    measured = "".join(f" On the validation part, the {note}." for note in notes)
    return f"## int8\n{share}{measured}\n\n{_table(('graph', 'beside float32', 'difference', 'allowed'), marks)}\n\n"


def results_table(models: Mapping[str, tuple[Mapping[str, Any], float]]) -> str:
    """README's table of the models of one data set: {name: (metrics, worst difference to torch)} → Markdown, the
    baselines below them."""
    first = next(iter(models.values()))[0]
    header, score = _SCORES[first["metric"]]
    rows = [(name, *score(metrics["test"]), f"{error:.1e}") for name, (metrics, error) in models.items()]
    rows += [(name, *score(value), "") for name, value in first["baselines"].items()]
    return _table((*header(first["test"]), "worst difference to torch"), rows)


# metric → the columns of a test part's scores, and how a model's or a baseline's test score is written in them.
_SCORES: Mapping[str, tuple[Any, Any]] = {
    "MAE": (
        lambda test: ("forecast", "mean absolute error", "90 % band holds"),
        lambda test: (
            (f"{test['mae']:.2f}", _percent(test["coverage_90"])) if isinstance(test, dict) else (f"{test:.2f}", "")
        ),
    ),
    "accuracy": (
        lambda test: ("classifier", *test),
        lambda test: tuple(
            _accuracy((part["accuracy"], part["interval"]) if isinstance(part, dict) else part)
            for part in test.values()
        ),
    ),
    "bits per character": (
        lambda test: ("model", "bits per character"),
        lambda test: (f"{test['bits'] if isinstance(test, dict) else test:.3f}",),
    ),
}
