"""The candidates in Triton: a program makes all of them for a piece of x, torch adds up the pieces' parts of g."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv

CANDIDATES = Tuned(
    "proximal_candidates.triton",
    # nothing to choose from: another block, or another number of warps, adds in another order
    Space({"BLOCK": (1024,), "num_warps": (4,)}),
    default=lambda problem: {"BLOCK": 1024, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _proximal_candidates_kernel(
    x_ptr, d_ptr,  # [size]
    steps_ptr, thresholds_ptr,  # [A], h α and h (1 − α), of the type that is computed with
    y_ptr,  # [A, size]
    parts_ptr,  # [A, programs] float64
    size, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    COMPUTE: tl.constexpr = steps_ptr.dtype.element_ty
    x = tl.load(x_ptr + offs, mask, other=0.0).to(COMPUTE)
    d = tl.load(d_ptr + offs, mask, other=0.0).to(COMPUTE)
    wide, slope = x.to(tl.float64), d.to(tl.float64)
    places = offs
    for a in range(count):
        u, t = x - tl.load(steps_ptr + a) * d, tl.load(thresholds_ptr + a)
        y = tl.where(tl.abs(u) <= t, 0.0, tl.where(u < 0, u + t, u - t)).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + places, y, mask)
        places += size
        new = y.to(tl.float64)
        slack = slope * (new - wide) - (tl.abs(new) - tl.abs(wide))
        tl.store(parts_ptr + a * tl.num_programs(0) + tl.program_id(0), tl.sum(slack, 0))


def proximal_candidates(x: Tensor, d: Tensor, h: float, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """(y [A, *x.shape], g [A]) of contiguous tensors."""
    count, size = len(alphas), x.numel()
    y = x.new_empty((count, *x.shape))
    if count == 0 or size == 0:
        return y, torch.zeros_like(alphas)
    config = CANDIDATES.config({"size": size, "A": count, "dtype": str(x.dtype)}, x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    programs = cdiv(size, config["BLOCK"])
    parts = alphas.new_empty((count, programs))
    steps, thresholds = (h * alphas).to(wide), (h * (1 - alphas)).to(wide)
    _proximal_candidates_kernel[(programs,)](x, d, steps, thresholds, y, parts, size, count, **config)
    return y, parts.sum(1)
