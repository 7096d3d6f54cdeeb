"""Data as a person would have them in a file: what --data reads."""

from __future__ import annotations

import csv
from pathlib import Path

from training import data as datasets


def written_samples(folder: Path, task: str, name: str, part: str, before: int = 0) -> Path:
    """Write a part (train, validation, test) of a task's data set into the folder, and give the file's path: a CSV of
    the series' values, with so many `before` the part as a model reads first, a CSV of text and label, or the text."""
    suffix = ".txt" if task == "generate" else ".csv"
    path = folder / f"{name}, its {part} part{suffix}"
    if task == "generate":
        path.write_text(datasets.load_text(name).parts[part], encoding="utf-8")
        return path
    rows: list[tuple[object, ...]]
    if task == "classify":
        reviews = datasets.load_reviews(name).parts[part]
        rows = [("text", "label"), *((review.text, review.label) for review in reviews)]
    else:
        series = datasets.load(name)
        places = series.parts[part]
        values = series.values[max(0, places.start - before) : places.stop]
        rows = [("value",), *((repr(float(value)),) for value in values)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path
