"""Tables for the tests of score: written and read in every kind, and what was set aside."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet


def write(path, columns, group=3):
    """{name: values} as the table that the path's suffix says."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=group)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([list(columns), *(list(row.values()) for row in rows)])
    return path


def read(path):
    """A table's rows as dicts; of CSV, numbers and lists are read as such."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: parsed(name, value) for name, value in row.items()} for row in csv.DictReader(file)]


def parsed(name, value):
    return value if name in ("id", "text", "label", "continuation") else json.loads(value)


def rejected(output):
    path = output.with_name(output.name + ".rejected.jsonl")
    return {row["row"]: row["reason"] for row in read(path)} if path.exists() else {}


def sixty_texts(folder):
    """in.csv of sixty rows, of which every ninth has no text."""
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("what is"), rng.integers(1, 30))) for _ in range(60)]
    texts[::9] = [""] * len(texts[::9])
    return write(folder / "in.csv", {"id": list(range(60)), "text": texts})


def damaged_further_on(path):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("what is"), 30)) for _ in range(400)]
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)
    return path
