"""Two proximal gradient steps on the parameters of a network, in torch: the oracles.

A parameter is penalised, then its ‖·‖₁ counts, or not. d = ∇L at the weights p; h is the step.

`multiobjective_step_ref` descends L and ‖·‖₁ at once, by equal amounts:

    y(α) = soft(p − h α d, h (1 − α)),    g(α) = ⟨d, y − p⟩ − (‖y‖₁ − ‖p‖₁),    α with g(α) = 0,    λ = (1 − α)/α

g is continuous, piecewise linear and falls: α = 1 where g(1) ≥ 0, α = 0 where g(0) ≤ 0. Of a parameter that is not
penalised y = p − h α d, and ‖·‖₁ leaves it out. Then the momentum: p = y + c (y − x), x = y, unless ‖p‖₁ > ‖y‖₁.

`held_step_ref` holds λ: v ← μ v + d, x ← soft(x − h v, h λ / (1 − μ)).

Source: Amakor, Sonntag & Peitz, "A multiobjective continuation method to compute the regularization path of deep neural
networks", Machine Learning with Applications 19, 2025. The rule of the momentum is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..proximal_candidates.definition import candidate, shrunk


def multiobjective_step_ref(
    p: Sequence[Tensor], d: Sequence[Tensor], x: Sequence[Tensor], state: Tensor, penalized: Sequence[bool],
    h: float, acceleration: float,
) -> None:  # fmt: skip
    """The oracle of `multiobjective_step`: α by bisection."""
    k, _, _, size = state.tolist()
    alpha = _root(lambda alpha: slack(p, d, h, alpha, penalized))
    if math.isnan(alpha):
        state.copy_(state.new_tensor([k, math.nan, math.nan, size]))
        return
    y = [candidate(a, b, h, alpha, its) for a, b, its in zip(p, d, penalized, strict=True)]
    c = max(k - 1, 0) / (k + acceleration)
    ahead = [_ahead(new, old, c) for new, old in zip(y, x, strict=True)]
    size = l1(y, penalized)
    is_dropped = not (l1(ahead, penalized) <= size and math.isfinite(l1(ahead, [True] * len(ahead))))
    for weight, old, new, extrapolated in zip(p, x, y, ahead, strict=True):
        weight.copy_(new if is_dropped else extrapolated)
        old.copy_(new)
    lam = (1 - alpha) / alpha if alpha else math.inf
    state.copy_(state.new_tensor([0 if is_dropped else k + 1, alpha, lam, size]))


def slack(p: Sequence[Tensor], d: Sequence[Tensor], h: float, alpha: float, penalized: Sequence[bool]) -> float:
    """g(α), all of it in float64."""
    total = 0.0
    for a, b, is_penalized in zip(p, d, penalized, strict=True):
        a, b = a.double(), b.double()
        y = candidate(a, b, h, alpha, is_penalized)
        total += ((y - a) * b).sum().item()
        if is_penalized:
            total -= (y.abs() - a.abs()).sum().item()
    return total


def l1(tensors: Sequence[Tensor], penalized: Sequence[bool]) -> float:
    """‖·‖₁ of those that are penalised."""
    return sum(x.double().abs().sum().item() for x, its in zip(tensors, penalized, strict=True) if its)


def _root(g) -> float:
    """The α in [0, 1] where g falls below 0, or the end that is the nearer to it; NaN where g is not finite."""
    low, high = 0.0, 1.0
    ends = g(low), g(high)
    if not all(map(math.isfinite, ends)):
        return math.nan
    if ends[1] >= 0:
        return high
    if ends[0] <= 0:
        return low
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if g(middle) > 0 else (low, middle)
    return middle


def _ahead(new: Tensor, old: Tensor, c: float) -> Tensor:
    """new + c (new − old); of 16-bit floats in float32, rounded once."""
    if not c:
        return new
    wide = torch.promote_types(new.dtype, torch.float32)
    return (new.to(wide) + c * (new.to(wide) - old.to(wide))).to(new.dtype)


def held_step_ref(
    x: Sequence[Tensor], d: Sequence[Tensor], v: Sequence[Tensor], penalized: Sequence[bool],
    h: float, lam: float | Tensor, momentum: float,
) -> None:  # fmt: skip
    """The oracle of `held_step`."""
    t = h * float(lam) / (1 - momentum)
    for a, b, velocity, is_penalized in zip(x, d, v, penalized, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        velocity.copy_(momentum * velocity.to(wide) + b.to(wide))
        moved = a.to(wide) - h * velocity.to(wide)
        a.copy_(shrunk(moved, t) if is_penalized else moved)
