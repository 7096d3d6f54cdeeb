"""The character model that needs no network: counts of n-grams, interpolated from the shortest context to the longest.

P(w | h) = max(c(h w) - D, 0) / c(h)  +  D * different(h) / c(h) * P(w | h without its first character)

where c counts in the training part, different(h) is the number of different characters that follow h there, and the
shortest context gives every token of the vocabulary the same probability. A context that was never seen passes its
shorter one on. (Absolute discounting: Ney, Essen and Kneser 1994.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seqexport.errors import InputError

DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9)


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

    def probabilities(self, tokens: np.ndarray, order: int, discount: float) -> np.ndarray:
        """The probability of each token given at most `order` - 1 tokens before it, float64 [length]."""
        found = np.full(len(tokens), 1 / self.size)
        for length in range(1, order + 1):
            grams = numbered(tokens, self.size, length)  # those that end at the tokens from length - 1 on
            count = _looked_up(grams, *self.grams[length - 1])
            contexts, totals, followers = self.contexts[length - 1]
            total = _looked_up(grams // self.size, contexts, totals)
            different = _looked_up(grams // self.size, contexts, followers)
            shorter = found[length - 1 :]
            longer = (np.maximum(count - discount, 0) + discount * different * shorter) / np.maximum(total, 1)
            found[length - 1 :] = np.where(total > 0, longer, shorter)
        return found

    def bits(self, tokens: np.ndarray, order: int, discount: float) -> float:
        """Bits a token."""
        return float(-np.log2(self.probabilities(tokens, order, discount)).mean())


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


def tuned(
    train: np.ndarray, validation: np.ndarray, size: int, orders: Sequence[int]
) -> tuple[NGrams, dict[str, float]]:
    """The counts of the training part, and the order and discount that are best on the validation part."""
    fitting = [order for order in orders if size**order < 2**63]
    counts = NGrams(train, size, max(fitting))
    best, setting = math.inf, {}
    for order in fitting:
        for discount in DISCOUNTS:
            bits = counts.bits(validation, order, discount)
            if bits < best:
                best, setting = bits, {"order": order, "discount": discount, "validation": bits}
    return counts, setting
