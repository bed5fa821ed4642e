"""The multiobjective step in torch, where no kernel serves: Newton's method for α, on the device, as by_cpp.cpp has it.

A fixed number of passes, and nothing that is read by the host, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PASSES = 16
COLD, LEAST, MOST = 1e-3, 1e-12, 1e12  # of λ, as in by_cpp.cpp


def multiobjective_step(
    p: Sequence[Tensor], d: Sequence[Tensor], x: Sequence[Tensor], state: Tensor, penalized: Sequence[bool],
    h: float, acceleration: float,
) -> None:  # fmt: skip
    """Makes the step of `multiobjective_step_ref`."""
    k, alpha, lam, size = state.unbind()
    wide = torch.promote_types(p[0].dtype, torch.float32)
    counted = [(a.to(wide), b.to(wide)) for a, b, its in zip(p, d, penalized, strict=True) if its]
    others = [(a, b) for a, b, its in zip(p, d, penalized, strict=True) if not its]
    lam = torch.where((lam > 0) | ((lam == 0) & (alpha == 1)), lam, COLD)
    lam, is_sound = _root(counted, others, h, lam)
    alpha, tau = _at(lam)
    c = (k - 1).clamp(min=0) / (k + acceleration)
    step, t, c = (h * alpha).to(wide), (h * tau).to(wide), c.to(wide)
    new, ahead = [], []
    for a, b, old, its in zip(p, d, x, penalized, strict=True):
        u = a.to(wide) - step * b.to(wide)
        y = ((u.sign() * (u.abs() - t).relu() + 0.0) if its else u).to(a.dtype)
        new.append(y)
        moved = y.to(wide) + c * (y.to(wide) - old.to(wide))
        ahead.append(torch.where(c > 0, moved, y.to(wide)).to(a.dtype))
    size_after = _l1(new, penalized, state)
    all_ahead = _l1(ahead, [True] * len(ahead), state)
    goes_on = (_l1(ahead, penalized, state) <= size_after) & all_ahead.isfinite()
    for weight, old, y, extrapolated in zip(p, x, new, ahead, strict=True):
        weight.copy_(torch.where(is_sound, torch.where(goes_on, extrapolated, y), weight))
        old.copy_(torch.where(is_sound, y, old))
    nan = torch.full_like(k, math.nan)
    after = torch.stack([torch.where(goes_on, k + 1, 0), alpha, lam, size_after])
    state.copy_(torch.where(is_sound, after, torch.stack([k, nan, nan, size])))


def _at(lam: Tensor) -> tuple[Tensor, Tensor]:
    alpha = 1 / (1 + lam)
    return alpha, torch.where(lam.isinf(), 1.0, lam * alpha)


def _l1(tensors: Sequence[Tensor], penalized: Sequence[bool], state: Tensor) -> Tensor:
    sizes = [x.abs().sum(dtype=torch.float64) for x, its in zip(tensors, penalized, strict=True) if its]
    return torch.stack([state.new_zeros(()), *sizes]).sum()


def _root(counted, others, h: float, lam: Tensor) -> tuple[Tensor, Tensor]:
    """λ at the root of g, begun at lam, and whether g was finite all the way."""
    zero = torch.zeros_like(lam)
    # 0 · p is NaN where p is not finite
    squares = sum(((b.double() ** 2).sum() + (0 * a.double()).sum() for a, b in others), zero)
    is_empty = sum((a.count_nonzero() for a, _ in counted), zero) == 0
    is_flat = sum((b.count_nonzero() for _, b in counted), zero) + squares == 0
    low, high, is_sound, is_done = zero, zero + math.inf, zero == 0, zero != 0
    for _ in range(PASSES):
        g, slope = _slack(counted, h, lam, squares)
        is_sound = is_sound & g.isfinite() & slope.isfinite()
        is_done = is_done | ((lam == 0) & (g >= 0)) | (lam.isinf() & (g <= 0))
        low, high = torch.where(g < 0, lam, low), torch.where(g < 0, high, lam)
        alpha, tau = _at(lam)
        tau, alpha = tau + g / slope, alpha - g / slope
        newton = torch.where(tau <= 0, 0.0, torch.where(alpha <= 0, math.inf, tau / alpha))
        is_end = ((newton == 0) & (low == 0) & (lam != 0)) | (newton.isinf() & high.isinf() & lam.isfinite())
        takes = ((newton > low) & (newton < high)) | is_end | ((newton - lam).abs() <= 1e-15 * lam)
        middle = low.clamp(min=LEAST).sqrt() * high.clamp(max=MOST).sqrt()
        lam = torch.where(is_done, lam, torch.where(takes & (slope < 0), newton, middle))
    return torch.where(is_empty, torch.where(is_flat, 0.0, math.inf), lam), is_sound


def _slack(counted, h: float, lam: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """g and its slope in α, as by_cpp.cpp adds them up."""
    alpha, tau = _at(lam)
    count = first = second = rest = torch.zeros_like(lam)
    for a, b in counted:
        u = a - (h * alpha).to(a.dtype) * b
        is_out, sign = u.abs() > (h * tau).to(a.dtype), u.sign()
        e = torch.where(is_out, sign * b, 0.0).double()
        count, first, second = count + is_out.sum(), first + e.sum(), second + (e * e).sum()
        rest = rest + (a.abs() - torch.where(is_out, sign * a, a * b)).sum(dtype=torch.float64)
    g = h * (tau * count + (alpha - tau) * first - alpha * (second + squares)) + rest
    return g, -h * (count - 2 * first + second + squares)
