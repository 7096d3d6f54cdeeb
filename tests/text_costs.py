"""What strings in the graph cost beside Python's split: bytes and latency, in float32 and int8.

    python tests/text_costs.py exported/sentiment-en/checkpoint.pt exported/characters-en/checkpoint.pt

exports each checkpoint into a temporary folder, then times the graph of strings and the graph of numbers with Python's
split and join around it, in turns, on one thread: medians of µs a call. Takes a minute or two a checkpoint.
"""

import random
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import seqexport
from seqexport.text import Vocabulary

ROUNDS = 60
SIZES = ((1, 20), (1, 200), (32, 20), (32, 200))  # texts of a batch, tokens of a text; a generator writes 200 steps


def texts_of(vocabulary, count, length):
    rng = np.random.default_rng(0)
    between = " " if vocabulary.unit == "word" else ""
    return [between.join(vocabulary.tokens[k] for k in rng.integers(1, len(vocabulary), length)) for _ in range(count)]


def labels_of(numbers, vocabulary, feeds):
    tokens, lengths = vocabulary.encode_batch(feeds["texts"])
    probabilities = numbers.only("probabilities").run({"tokens": tokens, "lengths": lengths})["probabilities"]
    return [numbers.metadata["labels"][row.argmax()] for row in probabilities]


def texts_written(numbers, vocabulary, feeds):
    prompt, _ = vocabulary.encode_batch(feeds["prompt"])
    written = numbers.only("tokens").run({"prompt": prompt, "uniforms": feeds["uniforms"]})["tokens"]
    return [vocabulary.decode(row) for row in written]


def main():
    for source in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "net.onnx")
            report = seqexport.export(source, out, precision="fp32,int8", text=True)
            print(source)
            for file in report.files:
                print(f"  {Path(file.path).name:<34} {file.bytes:>12,} bytes")
            task = report.found.partition(":")[0]
            for runtime in ("onnxruntime", "onnxruntime-int8"):
                strings = seqexport.load(out, runtime, pipeline=f"{task}.text")
                numbers = seqexport.load(out, runtime, pipeline=task)
                vocabulary = Vocabulary.from_dict(numbers.metadata["preprocessing"]["vocabulary"])
                around = labels_of if task == "classify" else texts_written
                strings = strings.only("label", "probabilities") if task == "classify" else strings.only("text")
                for batch, length in SIZES if task == "classify" else SIZES[:2]:
                    feeds = {strings.inputs[0].name: texts_of(vocabulary, batch, length)}
                    if task == "generate":
                        feeds["uniforms"] = np.random.default_rng(1).random((batch, 200))
                    times = {"in the graph": [], "in Python": []}
                    in_python = partial(around, numbers, vocabulary)
                    calls = [("in the graph", strings.run), ("in Python", in_python)]
                    for turn in range(ROUNDS + 3):
                        random.shuffle(calls)
                        for name, call in calls:
                            start = time.perf_counter()
                            call(feeds)
                            if turn >= 3:
                                times[name].append(1e6 * (time.perf_counter() - start))
                    said = ", ".join(f"{name} {statistics.median(taken):,.0f} µs" for name, taken in times.items())
                    print(f"  {runtime}, {batch} × {length} tokens: {said}", flush=True)


if __name__ == "__main__":
    main()
