"""Log and shift in torch: the oracle, and the form that runs where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor


def log_shift_ref(counts: Tensor, *, smoothing: float | Tensor = 1.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The oracle: the formula in float64, rounded once."""
    mass = counts.double() + smoothing
    log_mass = mass.sum(0).log()
    factor = factor_of(scale)
    weight = mass.log() - factor * log_mass if factor else mass.log()
    dtype = dtype_of(counts.dtype)
    return weight.to(dtype), log_mass.to(dtype)


def factor_of(scale: float) -> float:
    """1 − 1/K, what log S is multiplied by."""
    return 1 - 1 / scale


def dtype_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.int64, torch.float64) else torch.float32


def is_transposed(counts: Tensor) -> bool:
    """Whether counts [D, C] lie in memory class after class."""
    return not counts.is_contiguous() and counts.t().is_contiguous()


def log_and_mass(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> tuple[Tensor, Tensor]:
    """counts [D, C], eps [C] or a number -> (weight [D, C], log S [C]); S is added up in float64."""
    mass = counts.to(dtype_of(counts.dtype)) + (number if eps is None else eps.to(dtype_of(counts.dtype)))
    log_mass = mass.sum(0, dtype=torch.float64).log()
    weight = mass.log()
    if factor:
        weight = weight - (factor * log_mass).to(weight.dtype)
    return weight, log_mass.to(weight.dtype)
