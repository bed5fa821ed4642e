"""What a tropical product is, in a few lines of torch: the oracle of every kernel in this folder.

C[m, n] = ⊕_k A[m, k] ⊗ B[k, n], with (⊕, ⊗) one of

    max_plus    (max, +)    zero −∞
    min_plus    (min, +)    zero +∞
    max_times   (max, ·)    zero 0, of the semiring on [0, ∞); signed inputs are allowed and take the plain maximum
    log         x ⊕ y = T log(e^(x/T) + e^(y/T)), +: tends to max_plus as the temperature T → 0

Each A ⊗ B is rounded to the dtype before ⊕ compares it, so no order of evaluation changes a bit of the first three, nor
their winners. Integers saturate at the bounds of the dtype that C is in, which serve as ∓∞; int8 is summed in int32,
which holds every candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

SELECTIVE = ("max_plus", "min_plus", "max_times")  # ⊕ selects one candidate: the winner
SEMIRINGS = (*SELECTIVE, "log")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int16, torch.int8)
MOST_CANDIDATES = 1 << 31  # of one output: winners are numbered by 32 bits, signed


def value_dtype(dtype: torch.dtype) -> torch.dtype:
    """What C is in, for A and B of this dtype."""
    return torch.int32 if dtype == torch.int8 else dtype


def winner_dtype(K: int) -> torch.dtype:
    """What winners are kept in between forward and backward: two bytes where they suffice.

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
        return float("inf") if semiring == "min_plus" else float("-inf")
    bounds = torch.iinfo(dtype)
    return bounds.max if semiring == "min_plus" else bounds.min


def scale_of_differences(temperature: float) -> float:
    """What x, y and T are to be multiplied by before (x − y) / T: a power of two, for which x − y does not overflow but
    where the quotient does.
    """
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


def tropical_matmul_ref(
    a: Tensor, b: Tensor, *, semiring: str = "max_plus", temperature: float = 1.0, nan: str = "propagate"
) -> tuple[Tensor, Tensor]:
    """The oracle: values [..., M, N] and winners [..., M, N] (int64; −1 where nothing won; empty for log).

    a: [..., M, K], b: [..., K, N], same dtype, batch dimensions broadcast. Differentiable where K > 0.
    """
    zero = semiring_zero(semiring, value_dtype(a.dtype))
    x = candidates(a.unsqueeze(-1), b.unsqueeze(-3), semiring)  # [..., M, K, N]
    skipped = x.isnan() & (nan == "ignore")
    if x.shape[-2] == 0:
        values = x.new_full((*x.shape[:-2], x.shape[-1]), zero)
        winners = torch.full_like(values, -1, dtype=torch.int64)
        return values, winners.new_empty(0) if semiring == "log" else winners
    if semiring == "log":
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        wide, scale = wide.masked_fill(skipped, zero), scale_of_differences(temperature)
        top = wide.detach().amax(-2, keepdim=True)
        top = top.where(top.isfinite(), 0) * scale  # x / T may be beyond the dtype; x − top is not, where it counts
        held = max(temperature, torch.finfo(wide.dtype).tiny) * scale
        soft = torch.logsumexp((wide * scale - top) / held, -2) * held
        return ((soft + top.squeeze(-2)) / scale).to(x.dtype), torch.empty(0, dtype=torch.int64, device=x.device)
    select = torch.min if semiring == "min_plus" else torch.max  # both return the first of equals, and the first NaN
    if nan == "propagate" or not x.is_floating_point():
        values, winners = select(x, -2)
        return values, winners
    values, _ = select(x.masked_fill(skipped, float("inf") if semiring == "min_plus" else float("-inf")), -2)
    winners = (x == values.unsqueeze(-2)).int().argmax(-2)  # a skipped candidate equals nothing
    empty = skipped.all(-2)
    return values.masked_fill(empty, zero), winners.masked_fill(empty, -1)
