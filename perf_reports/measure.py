"""Timing several ways of doing one thing on a machine that is never quiet.

The calls are timed in turn, round after round, so that a slow minute hits all of them alike. One sample is the mean
time of a call over a stretch long enough for the clock. All samples are kept. What is quoted is the median, with a
bootstrap interval; a ratio resamples whole rounds, which keeps each pair of neighbours together:

    ratio = median_r(a_r) / median_r(b_r),    interval = quantiles of the same over rounds r drawn with replacement
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        return _interval(np.median(times[_drawn(len(times))], axis=1), np.median(times))

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
        return _interval(
            np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1), np.median(above) / np.median(below)
        )


def _drawn(count: int) -> np.ndarray:
    # one seed for all: the same figures from the same samples, each time the page is drawn
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def _interval(drawn: np.ndarray, value: Any) -> Interval:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(value), float(low), float(high))


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log v)); the mean of ratios that does not depend on which side is the base."""
    return float(np.exp(np.mean(np.log(values))))


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
    """Time `calls` round-robin, in an order drawn anew each round.

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
    gc.disable()  # a collection in the middle of a sample would be charged to whoever is running
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


@dataclass(frozen=True)
class Memory:
    """What one call took at its peak, beyond what was held before it."""

    peak_bytes: int
    result_bytes: int  # of the tensors that it returned; the rest is scratch
    how: str


def peak_memory(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[tuple[torch.Tensor, ...], Memory | None]:
    """What a call returns, and its peak memory, inputs not counted; None where this system cannot tell.

    On the CPU: the high-water mark of the resident set (VmHWM), reset before the call, less what was resident then.
    Freed memory is handed back to the system first, else the call could reuse it unseen. To be made before anything
    else has run at this size: buffers that the call keeps for its next time count as well. On CUDA: the peak of the
    caching allocator.
    """
    if torch.cuda.is_available():
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = call()
        synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return results, Memory(peak, _bytes(results), "peak of torch's CUDA allocator")
    gc.collect()
    if not _reset_high_water_mark():
        return call(), None
    before = _status_bytes("VmRSS")
    results = call()
    peak = _status_bytes("VmHWM") - before
    return results, Memory(max(peak, 0), _bytes(results), "high-water mark of the resident set (VmHWM)")


def _bytes(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _reset_high_water_mark() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False  # not glibc: reuse of freed memory would go unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status_bytes("VmHWM")
    except (OSError, LookupError):
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
