"""Data as a person would have them in a file: what --data reads."""

from __future__ import annotations

import csv
from pathlib import Path

from training import data as datasets


def written_samples(folder: Path, task: str, name: str, part: str) -> Path:
    """Write a part (train, validation, test) of a task's data set into the folder, and give the file's path: a CSV of
    the series' values, a CSV of text and label, or the text."""
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
        rows = [("value",), *((f"{series.values[place]:g}",) for place in series.parts[part])]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path
