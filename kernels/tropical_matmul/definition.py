"""The tropical matrix product in a few lines of torch: the oracle of its kernels.

C[m, n] = ⊕_k A[m, k] ⊗ B[k, n]; ../mathematics/semiring.py says what ⊕ and ⊗ may be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..mathematics.semiring import candidates, scale_of_differences, semiring_zero, value_dtype


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
