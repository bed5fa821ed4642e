"""The portable Triton kernels of log and shift: any GPU that Triton knows, and its interpreter on the CPU.

One launch adds up chunks of the rows, torch adds up the chunks, a second launch takes the logarithms.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from .definition import dtype_of, is_transposed


def _default(problem):
    return {"BLOCK_C": min(128, max(16, next_power_of_2(int(problem["C"])))), "num_warps": 4}


MASS = Tuned(
    "log_shift_mass.triton",
    Space({"BLOCK_C": (16, 32, 64, 128, 256), "num_warps": (1, 2, 4)}),
    default=lambda problem: {**_default(problem), "num_warps": 1},
    source=Path(__file__),
)
FORWARD = Tuned(
    "log_shift.triton",
    Space({"BLOCK_D": (1, 4, 16, 64), "BLOCK_C": (16, 32, 64, 128, 256), "num_warps": (4, 8)}),
    default=lambda problem: {"BLOCK_D": 16, **_default(problem)},
    source=Path(__file__),
)
_CHUNK, _ROWS = 256, 8  # rows of a program, and of those that are asked for at once


@triton.jit
def _mass(count_ptr, eps, mask, OUT: tl.constexpr):
    return tl.load(count_ptr, mask=mask, other=1).to(OUT) + eps


@triton.jit
def _log_shift_mass_kernel(
    count_ptr,  # [D, C]
    eps_ptr,  # [C]
    part_ptr,  # [chunks, C] float64
    D, C, stride_d, stride_c,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(C, BLOCK_C)
    chunk = (pid // pieces).to(tl.int64)
    columns = (pid % pieces).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    eps = tl.load(eps_ptr + columns, mask=inside, other=0)
    total = tl.zeros([BLOCK_C], tl.float64)
    first = chunk * CHUNK
    for start in range(0, tl.minimum(CHUNK, D - first), ROWS):
        for r in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
            row = first + start + r
            mask = inside & (row < D)
            mass = _mass(count_ptr + row * stride_d + columns * stride_c, eps, mask, eps_ptr.dtype.element_ty)
            total += tl.where(mask, mass.to(tl.float64), 0.0)
    tl.store(part_ptr + chunk * C + columns, total, mask=inside)


@triton.jit
def _log_shift_fwd_kernel(
    count_ptr,  # [D, C]
    eps_ptr, shift_ptr,  # [C]
    weight_ptr,  # [D, C]
    D, C, stride_d, stride_c, stride_wd, stride_wc,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(C, BLOCK_C)
    rows = ((pid // pieces).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D))[:, None]
    columns = (pid % pieces).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    eps = tl.load(eps_ptr + columns, mask=inside, other=0)[None, :]
    shift = tl.load(shift_ptr + columns, mask=inside, other=0)[None, :]
    mask, columns = (rows < D) & inside[None, :], columns[None, :]
    mass = _mass(count_ptr + rows * stride_d + columns * stride_c, eps, mask, eps_ptr.dtype.element_ty)
    tl.store(weight_ptr + rows * stride_wd + columns * stride_wc, tl.log(mass) - shift, mask=mask)


def forward(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> tuple[Tensor, Tensor]:
    """counts [D, C], eps [C], in place of number -> (weight [D, C] in the memory order of counts, log S [C])."""
    (D, C), dtype, device = counts.shape, dtype_of(counts.dtype), counts.device
    by_class = is_transposed(counts)
    weight = torch.empty((C, D), dtype=dtype, device=device).t() if by_class else counts.new_empty((D, C), dtype=dtype)
    eps = torch.full((C,), number, dtype=dtype, device=device) if eps is None else eps.to(dtype).contiguous()
    if D == 0 or C == 0:
        return weight, torch.full_like(eps, float("-inf"))
    problem = {"D": D, "C": C, "dtype": str(counts.dtype)}
    config, chunks = MASS.config(problem, device), cdiv(D, _CHUNK)
    parts = torch.empty((chunks, C), dtype=torch.float64, device=device)
    _log_shift_mass_kernel[(chunks * cdiv(C, config["BLOCK_C"]),)](
        counts, eps, parts, D, C, *counts.stride(), CHUNK=_CHUNK, ROWS=_ROWS, **config
    )
    log_mass = parts.sum(0).log()
    shift = (factor * log_mass if factor else torch.zeros_like(log_mass)).to(dtype)
    config = FORWARD.config(problem, device)
    programs = cdiv(D, config["BLOCK_D"]) * cdiv(C, config["BLOCK_C"])
    _log_shift_fwd_kernel[(programs,)](counts, eps, shift, weight, D, C, *counts.stride(), *weight.stride(), **config)
    return weight, log_mass.to(dtype)
