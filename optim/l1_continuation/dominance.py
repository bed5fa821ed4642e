"""Geometry of points (loss, ℓ¹), both to be small: who dominates whom, the area below, the knee."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Pair = tuple[float, float]  # loss, ℓ¹
_TIE = 1e-12  # of the chord's unit: what rounding alone makes of points that lie on one line


def non_dominated(pairs: Sequence[Pair]) -> list[int]:
    """The indices of the points that no other is at least as good as in both, sparsest first.

    Of equal points the first stands for all.
    """
    kept: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: (pairs[i][1], pairs[i][0], i)):
        if not kept or pairs[i][0] < pairs[kept[-1]][0]:
            kept.append(i)
    return kept


def hypervolume(pairs: Sequence[Pair], ref: Pair) -> float:
    """The area that the points dominate below ref: |{z : some point ≤ z ≤ ref}|."""
    inside = [pair for pair in pairs if pair[0] < ref[0] and pair[1] < ref[1]]
    corners = [inside[i] for i in non_dominated(inside)]
    columns = pairwise([*corners, ref])  # each as wide as it is to the next corner
    return math.fsum((end - l1) * (ref[0] - loss) for (loss, l1), (_, end) in columns)


def knee(pairs: Sequence[Pair]) -> int:
    """The non-dominated point farthest below the chord of the front's ends, both axes scaled to [0, 1].

    Of equals, and of fewer than three points, the sparser.
    """
    front = non_dominated(pairs)
    if len(front) < 3:
        return front[0]
    (high, left), (low, right) = pairs[front[0]], pairs[front[-1]]
    depths = [1 - (pairs[i][0] - low) / (high - low) - (pairs[i][1] - left) / (right - left) for i in front]
    deepest = max(depths)
    return next(i for i, depth in zip(front, depths, strict=True) if depth >= deepest - _TIE)
