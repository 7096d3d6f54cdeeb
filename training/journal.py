"""A journal of results, from which a run that was cut off goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file with a JSON line for each result. known: name → the entry of an earlier run."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        content = path.read_text() if path.exists() else ""
        whole, _, cut_off = content.rpartition("\n")
        if cut_off:  # a line that a killed run left half written
            path.write_text(f"{whole}\n" if whole else "")
        entries = [json.loads(line) for line in whole.splitlines()]
        self.known: dict[str, dict[str, Any]] = {entry.pop("name"): entry for entry in entries}

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Write one result down; threads may do so at the same time."""
        line = json.dumps({"name": name, **entry})
        with self._lock, self._path.open("a") as file:
            file.write(f"{line}\n")
