"""Fragility beyond the conformance suite: exact rational arithmetic, ties, what the network says on both sides."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tropigrad.kernels import feature_fragility
from tropigrad.kernels.runtime import native

NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
BACKENDS = ["torch"]
KINDS = ["equal slopes", "slopes of their own", "dense", "sparse"]


def network(seed: int, kind: str, numbers: str, N: int = 2, d: int = 2, q: int = 5, K: int = 3) -> tuple[Tensor, ...]:
    """x, A, W1, W2: small integers, of which many are equal, or normal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        if numbers == "integers":
            return torch.randint(-3, 4, size, generator=generator).double()
        return torch.randn(size, generator=generator, dtype=torch.float64)

    diagonal = torch.eye(d, dtype=torch.float64)
    A = {
        "equal slopes": lambda: 2 * torch.cat([diagonal, -diagonal]),
        "slopes of their own": lambda: torch.cat([diagonal * (drawn(d) + 0.5), diagonal * (drawn(d) - 0.5)]),
        "dense": lambda: drawn(2 * d, d),
        "sparse": lambda: drawn(2 * d, d) * (torch.rand(2 * d, d, generator=generator) < 0.4),
    }[kind]()
    return drawn(N, d), A, drawn(q, 2 * d), drawn(K, q)


def classes_of(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    """What the network says of x [N, d]."""
    u = ((x @ A.T)[:, None] + W1).amin(2)
    return (u[:, None] + W2).amax(2).argmax(1)


def exactly(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, n: int, i: int, box=None) -> tuple[float, int]:
    """Change and class of one feature by rational numbers: the network between all crossings of two of its lines."""
    point, rows, leaves, units = (
        [[Fraction(v) for v in row] for row in tensor.tolist()] for tensor in (x[n : n + 1], A, W1, W2)
    )
    z = [sum(a * b for a, b in zip(row, point[0], strict=True)) for row in rows]
    slopes = [row[i] for row in rows]

    def class_at(delta: Fraction) -> int:
        moved = [height + slope * delta for height, slope in zip(z, slopes, strict=True)]
        u = [min(v + w for v, w in zip(moved, leaf, strict=True)) for leaf in leaves]
        f = [max(v + w for v, w in zip(u, unit, strict=True)) for unit in units]
        return f.index(max(f))

    lines = {
        (z[r] + leaves[j][r] + unit[j], slopes[r]) for unit in units for j in range(len(leaves)) for r in range(len(z))
    }
    crossings = {(b[0] - a[0]) / (a[1] - b[1]) for a, b in itertools.combinations(lines, 2) if a[1] != b[1]}
    nearest = []
    for sign in (1, -1):
        room = math.inf if box is None else (Fraction(box[1]) - point[0][i]) * (sign > 0) or point[0][i] - Fraction(box[0])
        ends = sorted({Fraction(0)} | {sign * at for at in crossings if 0 < sign * at < room})
        beyond = 2 * ends[-1] + 2 if room == math.inf else room
        for end, following in zip(ends, [*ends[1:], beyond], strict=True):
            other = class_at(sign * (end + following) / 2)
            if other != class_at(Fraction(0)) and end < room:
                nearest.append((float(end), sign, other))
                break
    if not nearest:
        return math.inf, -1
    end, sign, other = min(nearest, key=lambda each: each[0])
    return sign * end, other
