"""Candidates of a multiobjective proximal gradient step in torch: the oracle, and the form that runs where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor


def proximal_candidates_ref(x: Tensor, d: Tensor, h: float, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The oracle: (y [A, *x.shape], g [A]). Of 16-bit floats y is made in float32 and rounded once; g in float64."""
    y = (
        torch.stack([candidate(x, d, h, alpha) for alpha in alphas.tolist()])
        if len(alphas)
        else x.new_empty(0, *x.shape)
    )
    wide, size = x.double(), tuple(range(1, y.dim()))
    gained = ((y.double() - wide) * d.double()).flatten(1).sum(1) if size else (y.double() - wide) * d.double()
    grown = (y.double().abs() - wide.abs()).flatten(1).sum(1) if size else y.double().abs() - wide.abs()
    return y, gained - grown


def candidate(x: Tensor, d: Tensor, h: float, alpha: float, penalized: bool = True) -> Tensor:
    """soft(x − h α d, h (1 − α)), or x − h α d of what is not penalised; both products are rounded to x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    moved = x.to(wide) - h * alpha * d.to(wide)
    return (shrunk(moved, h * (1 - alpha)) if penalized else moved).to(x.dtype)


def shrunk(u: Tensor, t: float) -> Tensor:
    """The soft threshold of u at t ≥ 0; NaN stays."""
    return u.sign() * (u.abs() - t).relu() + 0.0
