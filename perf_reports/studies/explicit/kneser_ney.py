"""Interpolated Kneser–Ney, the baseline of language models of counts (Kneser & Ney, 1995; Chen & Goodman, 1999).

    p_n(w | h) = max(c(h w) − d_n, 0) / c(h)  +  d_n N₁₊(h ·) / c(h)  p_{n−1}(w | h')         p_0 = 1 / V

c counts n-grams at the highest order and, below it, how many different tokens stood before them. h' is h without its
oldest token; an h that was not seen leaves p_{n−1}.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class KneserNey:
    """n-grams as numbers in base V, sorted, so that all positions of a text are looked up at once: V^n below 2^63.

    Args:
        tokens: [T] integers in [0, V).
        vocabulary: V.
        order: n; a context has n − 1 tokens.
        discounts: d of each order from 1 up, or None for n₁ / (n₁ + 2 n₂), from how many n-grams occur once and twice.
    """

    def __init__(
        self, tokens: np.ndarray, vocabulary: int, order: int, discounts: Sequence[float] | None = None
    ) -> None:
        self.vocabulary, self.order = vocabulary, order
        self.levels = []  # from the unigrams up
        grams, counts = np.unique(self._grams(tokens), return_counts=True)
        for n in range(order, 0, -1):
            once, twice = (counts == 1).sum(), (counts == 2).sum()
            d = once / max(once + 2 * twice, 1) if discounts is None else discounts[n - 1]
            histories, first, fan_out = np.unique(grams // vocabulary, return_index=True, return_counts=True)
            self.levels.insert(0, (n, d, grams, counts, histories, np.add.reduceat(counts, first), fan_out))
            grams, counts = np.unique(grams % vocabulary ** (n - 1), return_counts=True)

    def _grams(self, tokens: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), self.order)
        return windows @ self.vocabulary ** np.arange(self.order)[::-1]

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """p(last token | the ones before) of n-grams [B], numbers in base V."""
        p = np.full(len(grams), 1 / self.vocabulary)
        for n, d, keys, counts, histories, mass, fan_out in self.levels:
            gram = grams % self.vocabulary**n
            at = keys.searchsorted(gram).clip(max=len(keys) - 1)
            of = histories.searchsorted(gram // self.vocabulary).clip(max=len(histories) - 1)
            c = np.where(keys[at] == gram, counts[at], 0)
            seen = (np.maximum(c - d, 0) + d * fan_out[of] * p) / mass[of]
            p = np.where(histories[of] == gram // self.vocabulary, seen, p)
        return p

    def cross_entropy(self, tokens: np.ndarray) -> float:
        """The mean of −log p in nats, over all n-grams of a text."""
        return float(-np.log(self.probabilities(self._grams(tokens))).mean())
