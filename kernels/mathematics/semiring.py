"""The semirings of the tropical ops: C = ⊕_k A_k ⊗ B_k, with (⊕, ⊗) one of

    max_plus    (max, +)    zero −∞
    min_plus    (min, +)    zero +∞
    max_times   (max, ·)    zero 0, of the semiring on [0, ∞); signed inputs are allowed and take the plain maximum
    log         x ⊕ y = T log(e^(x/T) + e^(y/T)), +: tends to max_plus as the temperature T → 0

Each A ⊗ B is rounded to the dtype before ⊕ compares it, so no order of evaluation changes a bit of the first three, nor
their winners. Integers saturate at the bounds of the dtype that C is in, which serve as ∓∞; int8 is summed in int32,
which holds every candidate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SELECTIVE = ("max_plus", "min_plus", "max_times")  # ⊕ selects one candidate: the winner
SEMIRINGS = (*SELECTIVE, "log")
MOST_CANDIDATES = 1 << 31  # for one output: winners are numbered by 32 bits, signed


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of C, for A and B of this dtype."""
    return torch.int32 if dtype == torch.int8 else dtype


def winner_dtype(K: int) -> torch.dtype:
    """The dtype that winners are kept in between forward and backward: two bytes if they suffice.

    Raises:
        ValueError: K is beyond MOST_CANDIDATES.
    """
    if K > MOST_CANDIDATES:
        raise ValueError(f"winners: there are {K} candidates for each; expected at most 2³¹, which four bytes number")
    return torch.int16 if K <= 1 << 15 else torch.int32


def semiring_zero(semiring: str, dtype: torch.dtype) -> float | int:
    """The value of an empty ⊕ in C's dtype: −∞, +∞ or 0; the bounds stand for ∓∞ in integers."""
    if semiring == "max_times":
        return 0
    if dtype.is_floating_point:
        return math.inf if semiring == "min_plus" else -math.inf
    bounds = torch.iinfo(dtype)
    return bounds.max if semiring == "min_plus" else bounds.min


def worst(semiring: str, dtype: torch.dtype) -> float | int:
    """The value that every candidate beats or equals, where a running ⊕ starts: ∓∞, or the bound of an integer dtype.

    That of max_times is below its zero: products of signed factors are.
    """
    return semiring_zero("min_plus" if semiring == "min_plus" else "max_plus", dtype)


def scale_of_differences(temperature: float) -> float:
    """A factor of x, y and T in (x − y) / T: a power of two, with which x − y overflows only if the quotient does."""
    return 0.25 if temperature > 1 else 1.0


def candidates(a: Tensor, b: Tensor, semiring: str) -> Tensor:
    """A ⊗ B, elementwise and broadcast, in C's dtype: rounded, or saturated at the bounds."""
    product = semiring == "max_times"
    if a.is_floating_point():
        return a * b if product else a + b
    dtype = value_dtype(a.dtype)
    bounds = torch.iinfo(dtype)
    wide = a.long() * b.long() if product else a.long() + b.long()
    return wide.clamp(bounds.min, bounds.max).to(dtype)
