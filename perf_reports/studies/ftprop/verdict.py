"""Means over seeds, their spread, and whether two methods may be ranked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

# quantiles of Student's t at 97.5 %, by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.96


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in per cent."""
    mean = f"{statistics.mean(values):.2%}"
    return mean if len(values) == 1 else f"{mean[:-1]} ± {statistics.stdev(values) * 100:.2f} %"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t; of one value, all numbers."""
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return -math.inf, math.inf
    t = _T[n - 2] if n - 2 < len(_T) else _NORMAL
    half = t * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def verdict(accuracies: Mapping[str, Sequence[float]], first: str = "soft_hinge", second: str = "sste") -> str:
    """One sentence: which of two methods is ahead, or that their intervals do not tell.

    Args:
        accuracies: method → those of its seeds.
    """
    of_both = {name: accuracies[name] for name in (first, second)}
    seeds = " and ".join(dict.fromkeys(str(len(values)) for values in of_both.values()))
    if min(len(values) for values in of_both.values()) < 2:
        return f"{first} and {second} are not ranked: one seed has no interval"
    intervals = {name: interval(values) for name, values in of_both.items()}
    shown = "; ".join(f"{name} {low * 100:.2f} to {high * 100:.2f} %" for name, (low, high) in intervals.items())
    (low, high), (other_low, other_high) = intervals.values()
    told = f"95 % intervals of the mean of {seeds} seeds: {shown}"
    if low > other_high:
        return f"{first} is ahead of {second}: {told}"
    if other_low > high:
        return f"{second} is ahead of {first}: {told}"
    return f"{first} and {second} are not ranked, as the intervals overlap ({told})"
