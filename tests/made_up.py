"""Results of the comparison of the cells with made-up numbers, clearly so: round ones that nobody would measure."""

from __future__ import annotations

from typing import Any

from training import cell_findings, compare_cells

MACHINE = "a made-up machine"
SEEDS = [0, 1, 2]
HIDDEN = {("lstm", "hidden size"): 48, ("gru", "hidden size"): 48, ("rnn", "hidden size"): 48}
HIDDEN |= {("gru", "parameters"): 56, ("rnn", "parameters"): 104}
FIGURES = {"lstm": 20.0, "gru": 22.0, "rnn": 30.0}
TASKS = {
    "sunspots": "sunspots, MAE",
    "electricity": "electricity, MAE",
    "uk-demand": "uk-demand, MAE",
    "opinions": "opinions in Chinese, accuracy",
    "characters": "characters of plays, bits",
}


def row(task: str, title: str, cell: str, equal: str, test: list[Any]) -> dict[str, Any]:
    return {
        "task": task, "title": title, "more_is_better": task == "opinions", "cell": cell, "hidden": HIDDEN[cell, equal],
        "equal": equal, "learning_rate": 0.01, "seeds": SEEDS, "test": test, "validation": test, "seconds": [1.0] * 3,
        "parameters": 1000, "multiply_adds": 2000,
    }  # fmt: skip


def quality() -> list[dict[str, Any]]:
    rows = []
    for cell, equal in cell_findings.COLUMNS:
        for task, title in TASKS.items():
            figure = FIGURES[cell] - (1.0 if equal == "parameters" else 0.0)
            test: list[Any] = [figure, figure + 0.25, figure + 0.5]
            if task == "opinions":
                test = [1 - value / 100 for value in test]
            rows.append(row(task, title, cell, equal, test))
        errors = {str(length): 0.001 if cell != "rnn" or length < 100 else 0.2 for length in (10, 30, 100, 300, 1000)}
        rows.append(row("adding", "adding problem, squared error", cell, equal, [errors] * 3))
    return rows


def costs(beside: int = 128) -> list[dict[str, Any]]:
    place = {"rnn": 1, "gru": 2, "lstm": 3}
    calls = {"a step": 1e-5, "a sequence": 1e-4, "a batch": 1e-2}
    return [
        {
            "equal": equal, "beside": beside, "cell": cell,
            "hidden": beside if equal == "hidden size" else beside + 32 * (4 - place[cell]),
            "parameters": 10_000 * place[cell], "multiply_adds": 9_000 * place[cell],
            "file_bytes": 40_000 * place[cell], "state_bytes": 512 * (2 if cell == "lstm" else 1),
            "memory": {"torch": 100 * 2**20, "onnxruntime": 20 * 2**20 * place[cell], "openvino": None},
            "training_memory": {"100": 2**20 * 10 * place[cell], "1000": 2**20 * 100 * place[cell]},
            "training_step": 0.01 * place[cell],
            "inference": {
                call: {name: seconds * place[cell] for name in ("torch", "onnxruntime", "openvino")}
                for call, seconds in calls.items()
            },
        }
        for cell, equal in cell_findings.COLUMNS
    ]  # fmt: skip


def gradients() -> list[dict[str, Any]]:
    fall = {"rnn": 0.8, "gru": 0.95, "lstm": 0.97}
    return [
        {
            "cell": cell,
            "hidden": 192,
            "trained": trained,
            "norms": [(fall[cell] - 0.1 * (not trained)) ** k for k in range(256)],
        }
        for cell in ("rnn", "lstm", "gru")
        for trained in (False, True)
    ]


def results() -> dict[str, Any]:
    """What `python -m training.compare_cells --write` puts into exported/cells.json, of made-up measurements."""
    return compare_cells.finished(quality(), [*costs(), *costs(512)], gradients(), MACHINE)
