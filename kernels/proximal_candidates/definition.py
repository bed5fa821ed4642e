"""Candidates of a multiobjective proximal gradient step in torch: the oracle, and the form where no kernel serves."""

from __future__ import annotations

import torch
from torch import Tensor


def proximal_candidates_ref(x: Tensor, d: Tensor, h: float, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle: (y [A, *x.shape], g [A]). Of 16-bit floats y is made in float32 and rounded once; g in float64."""
    y = x.new_empty((len(alphas), *x.shape))
    for each, alpha in zip(y, alphas.tolist(), strict=True):
        each.copy_(candidate(x, d, h, alpha))
    new, old = y.flatten().view(len(alphas), x.numel()).double(), x.flatten().double()
    return y, ((new - old) * d.flatten().double()).sum(1) - (new.abs() - old.abs()).sum(1)


def candidate(x: Tensor, d: Tensor, h: float, alpha: float, penalized: bool = True) -> Tensor:
    """soft(x − h α d, h (1 − α)), or x − h α d of what is not penalised; both products are rounded to x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    moved = x.to(wide) - h * alpha * d.to(wide)
    return (shrunk(moved, h * (1 - alpha)) if penalized else moved).to(x.dtype)


def shrunk(u: Tensor, t: float) -> Tensor:
    """The soft threshold of u at t ≥ 0; NaN stays."""
    return u.sign() * (u.abs() - t).relu() + 0.0
