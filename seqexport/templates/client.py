"""Runs @MODEL@ with numpy and onnxruntime alone: what it has to know stands in the file's metadata.

Written by seqexport deploy; yours to change.

    python @PROGRAM@ [MODEL] [options] < lines

Every line of standard input is a call, in JSON, and is answered by a line. The model's state is carried from line to
line, so that a text or a series may come in pieces; an empty line begins anew. A line is

    "some text"                       for a model that reads text; "" lets a generator go on
    [1, 2.5, 3]                       the next values of a series, or tokens
    [[1, 2], [3, 4]]                  the next steps, each with its numbers
    {"tokens": [[1, 2]], …}           the graph's own inputs by name, as many rows as you like
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MODEL = Path(__file__).parent / "@PATH@"
WORDS = "@WORDS@"  # what a word is, in vocabularies of words
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class Model:
    """An ONNX file and the state of one stream through it."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # below it onnxruntime warns of inputs that have a default, which is on purpose
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        properties = self.session.get_modelmeta().custom_metadata_map
        read = {
            name: json.loads(properties.get(name, "{}"))
            for name in ("state_map", "preprocessing", "network", "metrics")
        }
        self.part = properties.get("part", "module")
        self.time_major = read["network"].get("time_major", False)
        self.horizon = read["metrics"].get("horizon", 12)  # of a forecaster: how many values ahead it was scored at
        self.labels = read["preprocessing"].get("labels", [])
        self.vocabulary = read["preprocessing"].get("vocabulary", {})
        self.numbers = {token: number for number, token in enumerate(self.vocabulary.get("tokens", []))}
        # Inputs with a default may be left out; onnxruntime lists them apart.
        self.inputs = {v.name: v for v in self.session.get_inputs() + self.session.get_overridable_initializers()}
        self.required = {v.name for v in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        # Which output is the next call's state: {"h0": "hn"}. A file without state has the map, but not the inputs.
        self.states = {name: output for name, output in read["state_map"].items() if name in self.inputs}
        self.reset()

    def reset(self) -> None:
        """Begin a new stream: the state is zero again."""
        self.state: dict[str, np.ndarray] = {}
        self.last: list[int] = []  # a generator's last token, which its state has not read yet

    def run(self, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
        """One call: {input: array} without the state → {output: array} without the state, which is kept."""
        if unknown := feeds.keys() - self.inputs.keys():
            raise ValueError(f"there is no input {min(unknown)!r}; expected {', '.join(self.inputs)}")
        arrays: dict[str, Any] = {name: self.array(name, value) for name, value in feeds.items()}
        sizes = {
            dim: size
            for name, array in arrays.items()
            for dim, size in zip(self.inputs[name].shape, array.shape, strict=False)
        }
        for name in self.states:
            if name in self.state:
                arrays[name] = self.state[name]
            elif name in self.required and name not in arrays:  # the file has no default for it: zeros
                shape = [dim if isinstance(dim, int) else sizes[dim] for dim in self.inputs[name].shape]
                arrays[name] = np.zeros(shape, DTYPES[self.inputs[name].type])
        found = dict(zip(self.outputs, self.session.run(self.outputs, arrays), strict=True))
        self.state = {name: found[output] for name, output in self.states.items()}
        return {name: array for name, array in found.items() if name not in self.states.values()}

    def array(self, name: str, value: Any) -> np.ndarray:
        """Nested lists as an array of the input's type."""
        array: np.ndarray = np.asarray(value, DTYPES[self.inputs[name].type])
        if array.dtype == np.object_ and not all(isinstance(part, str) for part in array.flat):
            raise ValueError(f"{name} holds what is no string")
        return array

    def encode(self, text: str) -> list[int]:
        """A text as the numbers of its tokens, 0 for what the model does not know."""
        text.encode()  # raises where the text holds half a character
        if self.vocabulary["lowercase"]:  # of ASCII letters only
            text = re.sub("[A-Z]", lambda letter: letter[0].lower(), text)
        tokens = list(text) if self.vocabulary["unit"] == "character" else re.findall(WORDS, text)
        known = self.numbers
        return [known.get(token) or known.get(token.replace("\u2019", "'"), 0) for token in tokens] or [0]

    def decode(self, numbers: Any) -> str:
        """Numbers of tokens as a text."""
        tokens = self.vocabulary["tokens"]
        between = "" if self.vocabulary["unit"] == "character" else " "
        return between.join(tokens[number] if number else "\ufffd" for number in numbers)


def feeds_of(model: Model, line: Any, options: argparse.Namespace, rng: np.random.Generator) -> dict[str, Any]:
    """What a line says, as the graph's inputs."""
    if isinstance(line, dict):
        return line
    if isinstance(line, str) and not model.vocabulary:
        raise ValueError("the model reads no text: give numbers")
    if model.part in ("classify.text", "generate.text"):  # the graph takes strings as they are
        if not isinstance(line, str):
            raise ValueError("the model reads text: give a string")
        if model.part == "classify.text":
            return {"texts": [line]}
        before = model.decode(model.last)
        between = " " if before and line and model.vocabulary["unit"] == "word" else ""
        return {"prompt": [before + between + line]} | chance(model, options, rng)
    going_on = line == "" and model.part == "generate" and model.last
    steps = [] if going_on else model.encode(line) if isinstance(line, str) else line
    if model.part == "forecast":  # noise of zero gives the central path
        shape = (1, options.paths, options.horizon or model.horizon)
        return {"history": [steps], "noise": np.zeros(shape) if options.paths == 1 else rng.standard_normal(shape)}
    if model.part == "classify":
        return {"tokens": [steps], "lengths": [len(steps)]}
    if model.part == "generate":
        return {"prompt": [model.last + steps]} | chance(model, options, rng)
    name = next(name for name in model.inputs if name not in model.states)
    if name == "x" and not isinstance(steps[0], list):
        steps = [[value] for value in steps]
    return {name: [[step] for step in steps] if model.time_major else [steps]}


def chance(model: Model, options: argparse.Namespace, rng: np.random.Generator) -> dict[str, Any]:
    """What a generator picks its tokens by."""
    chosen = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    known = {name: value for name, value in chosen.items() if name in model.inputs}
    return {"uniforms": rng.random((1, options.steps))} | known


def answer(model: Model, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The outputs as JSON has them, and what they say in words."""
    said: dict[str, Any] = {name: array.tolist() for name, array in outputs.items()}
    if model.part in ("generate", "generate.text") and model.states and len(said["tokens"]) == 1:
        model.last = said["tokens"][0][-1:]
    if model.part == "generate" and model.vocabulary:
        said["text"] = [model.decode(row) for row in said["tokens"]]
    if model.part == "classify" and model.labels:
        said["label"] = [model.labels[row.argmax()] for row in outputs["probabilities"]]
    return said


def main() -> None:
    """Answer every line of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of the numbers that pick tokens")
    parser.add_argument("--horizon", type=int, help="of a forecaster: how many values ahead")
    parser.add_argument("--paths", type=int, default=1, help="of a forecaster: 1 is the central path")
    parser.add_argument("--steps", type=int, default=100, help="of a generator: how many tokens a line gives")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    options = parser.parse_args()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    model, rng = Model(options.model, options.threads), np.random.default_rng(options.seed)
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            model.reset()
            continue
        try:
            outputs = model.run(feeds_of(model, json.loads(line), options, rng))
        except Exception as error:  # onnxruntime's exceptions have no common base
            sys.exit(f"line {number}: {error}")
        print(json.dumps(answer(model, outputs), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
