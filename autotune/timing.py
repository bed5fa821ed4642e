"""Timing several ways of doing one thing on a machine that is never quiet.

The calls are timed in turn, round after round, so that a slow minute hits all of them alike. One sample is the mean
time of a call over a stretch long enough for the clock. All samples are kept. What is quoted is the median, with a
bootstrap interval; a ratio resamples whole rounds, which keeps each pair of neighbours together:

    ratio = median_r(a_r) / median_r(b_r),    interval = quantiles of the same over rounds r drawn with replacement
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and the bootstrap interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Samples:
    """Times of one call, in seconds, each the mean over `calls_per_sample` calls in a row; and the round of each."""

    seconds: tuple[float, ...]
    rounds: tuple[int, ...]
    calls_per_sample: int

    @property
    def median(self) -> Interval:
        """The median time of a call in seconds, with its 95 % interval."""
        times = np.asarray(self.seconds)
        return interval(np.median(times[_drawn(len(times))], axis=1), np.median(times))

    def ratio(self, other: Samples) -> Interval:
        """How many times longer this call took than `other`, over the rounds that both took part in.

        Raises:
            ValueError: there is no such round; the two were not timed together.
        """
        shared = sorted({*self.rounds} & {*other.rounds})
        if not shared:
            raise ValueError("ratio: the samples share no round; expected two calls of one interleaved run")
        above, below = (np.asarray([s.seconds[s.rounds.index(r)] for r in shared]) for s in (self, other))
        drawn = _drawn(len(shared))
        return interval(
            np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1), np.median(above) / np.median(below)
        )


def _drawn(count: int) -> np.ndarray:
    # one seed for all: the same figures from the same samples, each time the page is drawn
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def interval(drawn: np.ndarray, value: Any) -> Interval:
    """A figure with the interval that figures of resamples leave."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(value), float(low), float(high))


def synchronize() -> None:
    """Wait for the accelerator, where there is one; a CPU call is over when it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    budget_s: float,
    sample_s: float = 0.02,
    min_rounds: int = 7,
    max_rounds: int = 200,
    known_s: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Samples]:
    """Time `calls` round-robin, in an order that is drawn for each round.

    Args:
        calls: name -> the call; what it returns is dropped.
        budget_s: seconds to spend. `min_rounds` are made even where they take longer; but a slow call, of which so many
            would take half of the budget, and a second, joins fewer rounds, spread evenly, three at the least.
        sample_s: seconds that one sample lasts at least; quicker calls are repeated within a sample.
        known_s: seconds of a call that was made just before. One of more than a second then needs no warming.
    Returns:
        name -> Samples.
    """
    repeats: dict[str, int] = {}
    joins: dict[str, frozenset[int]] = {}
    for name, call in calls.items():
        estimate = (known_s or {}).get(name, 0.0)
        if estimate < 1.0:
            _sample(call, 1)
            estimate = min(_sample(call, 1), _sample(call, 1))
        repeats[name] = max(1, round(sample_s / max(estimate, 1e-7)))
        joins[name] = frozenset(range(max_rounds))
        if estimate * min_rounds > max(budget_s / 2, 1.0):
            few = max(3, min(min_rounds, int(budget_s / 2 / estimate)))
            joins[name] = frozenset(i * (min_rounds - 1) // (few - 1) for i in range(few))
    samples: dict[str, list[tuple[int, float]]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a sample would be charged to the call that is running
    try:
        start = perf_counter()
        for number in range(max_rounds):
            if number >= min_rounds and perf_counter() - start > budget_s:
                break
            shuffle(order)
            for name in order:
                if number in joins[name]:
                    samples[name].append((number, _sample(calls[name], repeats[name])))
    finally:
        if collecting:
            gc.enable()
    return {
        name: Samples(tuple(s for _, s in taken), tuple(r for r, _ in taken), repeats[name])
        for name, taken in samples.items()
    }


def _sample(call: Callable[[], Any], repeats: int) -> float:
    synchronize()
    start = perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (perf_counter() - start) / repeats
