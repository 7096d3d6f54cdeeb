"""The character model that needs no network: counts of n-grams, interpolated from the shortest context to the longest.

P(w | h) = (c(h w) + k different(h) P(w | h without its first character)) / (c(h) + k different(h))

where c counts in the training part, different(h) is the number of different characters that follow h there, and the
shortest context gives every token of the vocabulary the same probability. A context that was never seen passes its
shorter one on. k = 1 is Witten and Bell's (1991); a larger k trusts short contexts more and is much better here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from seqexport.errors import InputError

TRUSTS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0)  # k
Seen: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # c(h w), c(h), different(h), each int64


class NGrams:
    """The counts of all n-grams of the tokens (int64 [length], below `size`) up to the longest order."""

    def __init__(self, tokens: np.ndarray, size: int, longest: int) -> None:
        if size**longest >= 2**63:
            raise InputError(f"{size} tokens to the power of {longest} do not fit into 64 bits: take a shorter order.")
        self.size = size
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []  # n-grams as numbers, sorted, and their counts
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # the same, and different followers
        for order in range(1, longest + 1):
            grams, counts = np.unique(numbered(tokens, size, order), return_counts=True)
            contexts, first = np.unique(grams // size, return_index=True)
            followers = np.diff(np.append(first, len(grams)))
            self.grams.append((grams, counts))
            self.contexts.append((contexts, np.add.reduceat(counts, first), followers))

    def seen(self, tokens: np.ndarray) -> list[Seen]:
        """What the training part tells of each token, by the order of the n-gram that ends there."""
        result = []
        for order, ((grams, counts), (contexts, totals, followers)) in enumerate(
            zip(self.grams, self.contexts, strict=True), start=1
        ):
            numbers = numbered(tokens, self.size, order)  # those that end at the tokens from order - 1 on
            before = numbers // self.size
            result.append(
                (
                    _looked_up(numbers, grams, counts),
                    _looked_up(before, contexts, totals),
                    _looked_up(before, contexts, followers),
                )
            )
        return result

    def probabilities(self, tokens: np.ndarray, order: int, trust: float) -> np.ndarray:
        """The probability of each token given at most `order` - 1 tokens before it, float64 [length]."""
        return list(self._interpolated(self.seen(tokens), trust))[order - 1]

    def bits(self, tokens: np.ndarray, order: int, trust: float) -> float:
        """Bits a token."""
        return float(-np.log2(self.probabilities(tokens, order, trust)).mean())

    def _interpolated(self, seen: Sequence[Seen], trust: float) -> Iterator[np.ndarray]:
        """The probability of each token by single ones, pairs, and so on."""
        found = np.full(len(seen[0][0]), 1 / self.size)
        for order, (count, total, different) in enumerate(seen, start=1):
            shorter = found[order - 1 :]  # the first tokens have fewer before them
            weight = trust * different
            longer = (count + weight * shorter) / np.maximum(total + weight, 1)
            found = np.append(found[: order - 1], np.where(total > 0, longer, shorter))
            yield found


def tuned(train: np.ndarray, validation: np.ndarray, size: int, longest: int) -> tuple[NGrams, dict[str, float]]:
    """The counts of the training part, and the order and trust k that are best on the validation part."""
    while size**longest >= 2**63:
        longest -= 1
    counts = NGrams(train, size, longest)
    seen = counts.seen(validation)
    best, setting = math.inf, {}
    for trust in TRUSTS:
        for order, found in enumerate(counts._interpolated(seen, trust), start=1):
            bits = float(-np.log2(found).mean())
            if bits < best:
                best, setting = bits, {"order": order, "trust": trust, "validation": bits}
    return counts, setting


def numbered(tokens: np.ndarray, size: int, order: int) -> np.ndarray:
    """Each n-gram of the tokens as one number, its last token the last digit, int64 [length - order + 1]."""
    numbers = np.zeros(max(0, len(tokens) - order + 1), dtype=np.int64)
    for start in range(order):
        numbers = numbers * size + tokens[start : start + len(numbers)]
    return numbers


def _looked_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each key, 0 for an unknown one."""
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, values[places], 0)
