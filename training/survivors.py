"""Slips that no check can notice, since they change no number: which, and why. And the functions that make words."""

from __future__ import annotations

from collections.abc import Mapping

# Functions that only make the sentences of errors and notes, which are no behaviour of an exported file.
WORDS: Mapping[str, tuple[str, ...]] = {
    "graphs": ("_why",),
    "freezing": ("_said",),
    "verification": ("sizes_said",),
    "reports": ("Report.to_dict", "_plain", "require"),
}

# (module, function, a part of the change) → why no number changes.
REASONS: Mapping[tuple[str, str, str], str] = {}
