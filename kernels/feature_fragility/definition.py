"""Feature fragility by trial: the oracle. It looks at the network between all places where two of its lines cross."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def feature_fragility_ref(
    x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, *, box: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """The oracle: between two neighbouring crossings the class is one, and the network says which, in float64.

    Its work grows with (K q p)³ for each feature.
    """
    low, high = box or (-math.inf, math.inf)
    X, A, W1, W2 = (tensor.double() for tensor in (x, A, W1, W2))
    change = torch.full_like(X, math.inf)
    classes = torch.full_like(X, -1, dtype=torch.int64)
    lines = (X @ A.T)[:, None, None, :] + W1[None, None] + W2[None, :, :, None]  # [N, K, q, p] at δ = 0
    for n in range(len(X)):
        for i in range(X.shape[1]):
            least = math.inf
            for sign, room in ((1, high - X[n, i]), (-1, X[n, i] - low)):
                ends = _crossings(lines[n].flatten(), (sign * A[:, i]).repeat(W2.numel()))
                ends = torch.cat([ends.new_zeros(1), ends[(ends > 0) & (ends < room)]]).unique()
                between = (ends + torch.cat([ends[1:], torch.clamp(room, max=2 * ends[-1] + 1).reshape(1)])) / 2
                before, after = _class(X[n], A, W1, W2), _class(_moved(X[n], i, sign * between), A, W1, W2)
                for end, other in zip(ends.tolist(), after.tolist(), strict=True):
                    if other != before and end < min(least, room):
                        least = end
                        change[n, i], classes[n, i] = sign * end, other
                        break
    return change.to(x.dtype), classes


def _crossings(height: Tensor, slope: Tensor) -> Tensor:
    """Where two of the lines height + slope δ cross, for all pairs that do."""
    a, b = torch.combinations(torch.arange(len(height), device=height.device)).unbind(1)
    at = (height[b] - height[a]) / (slope[a] - slope[b])
    return at[at.isfinite()]


def _moved(x: Tensor, i: int, by: Tensor) -> Tensor:
    """Copies of x [d], one for each number that is added to its feature i."""
    moved = x.repeat(len(by), 1)
    moved[:, i] += by
    return moved


def _class(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    """The lowest class of the largest score, of each x [..., d]."""
    u = ((x @ A.T).unsqueeze(-2) + W1).amin(-1)
    f = (u.unsqueeze(-2) + W2).amax(-1)
    return _lowest(f == f.amax(-1, keepdim=True))


def _lowest(is_one: Tensor) -> Tensor:
    """The lowest index of each row at which it is true."""
    places = torch.arange(is_one.shape[-1], device=is_one.device)
    return torch.where(is_one, places, is_one.shape[-1]).amin(-1)
