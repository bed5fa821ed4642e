"""Winners from k-blocks: the first k of the block in which the running ⊕ last improved whose candidate is the value.

The numeric equality is exact: the same ⊗ of the same factors gives the same value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring import semiring_zero, worst
from ..mathematics.semiring_in_triton import combine, piece_of_a_row
from ..runtime.grid import cdiv
from ..runtime.remembered import remembered

REFINE = Tuned(
    "tropical_matmul_refine.triton",
    Space({"BLOCK": (128, 256, 512), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK": 128, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _refine_winners_kernel(
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    c_ptr,  # [B, M, N], contiguous
    winner_ptr,  # [B, M, N] int16 or int32, contiguous: on entry the k-block of the winner, on return the winner
    M, N, K,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    WORST: tl.constexpr,
    EMPTY: tl.constexpr,  # the value where every candidate was skipped
    PRODUCT: tl.constexpr, IGNORE_NAN: tl.constexpr,
    BLOCK_K: tl.constexpr,  # of the kernel that made the blocks
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch, m, n = piece_of_a_row(M, N, BLOCK)
    mask = n < N
    value = tl.load(c_ptr + row * N + n, mask=mask, other=0)
    block = tl.load(winner_ptr + row * N + n, mask=mask, other=0).to(tl.int32)
    first = tl.maximum(K - (tl.cdiv(K, BLOCK_K) - block) * BLOCK_K, 0).to(tl.int64)  # only the first is cut short
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    best = value.to(tl.float32) if dtype == tl.bfloat16 else value
    is_nan = best != best
    # rare: no strict improvement marks the block of the first NaN, nor of a WORST that comes after skipped NaNs
    unmarked = mask & ((best == WORST) if IGNORE_NAN else is_nan)
    a_ptrs = a_ptr + batch * stride_ab + m * stride_am
    b_ptrs = b_ptr + batch * stride_bb + n * stride_bn
    # downwards, so that the last one found is the first
    rows = tl.minimum(BLOCK_K, K)
    k = first.to(tl.int32) + rows
    winner = tl.full([BLOCK], -1, tl.int32)
    a_k, b_k = a_ptrs + (first + rows) * stride_ak, b_ptrs + (first + rows) * stride_bk
    for _ in range(rows):
        k -= 1
        a_k -= stride_ak
        b_k -= stride_bk
        x = combine(tl.load(a_k, mask=mask, other=0), tl.load(b_k, mask=mask, other=0), dtype, PRODUCT)
        winner = tl.where(x == best, k, winner)
    if tl.max(unmarked.to(tl.int32)) > 0:
        for u in range(K):
            row_k = (K - 1 - u).to(tl.int64)
            a = tl.load(a_ptrs + row_k * stride_ak + tl.zeros([BLOCK], tl.int32), mask=unmarked, other=0)
            b = tl.load(b_ptrs + row_k * stride_bk, mask=unmarked, other=0)
            x = combine(a, b, dtype, PRODUCT)
            winner = tl.where(unmarked & ((x == best) | (is_nan & (x != x))), K - 1 - u, winner)
    tl.store(winner_ptr + row * N + n, winner.to(winner_ptr.dtype.element_ty), mask=mask)
    if IGNORE_NAN:
        tl.store(c_ptr + row * N + n, tl.where(winner < 0, EMPTY, best).to(dtype), mask=mask)


def refine(a: Tensor, b: Tensor, values: Tensor, blocks: Tensor, semiring: str, ignore_nan: bool, block_k: int) -> None:
    """Turns k-blocks [B, M, N], in place, into winners: the first k of the block whose candidate is the value.

    The block of a NaN is not looked at: its first NaN is searched for in all of K. With ignore_nan, neither is that of
    the worst value; where every candidate was skipped, the winner becomes −1 and the value the semiring's zero.
    """
    (B, M, K), N = a.shape, b.shape[-1]
    grid, constants = _launch(B, M, N, K, a.dtype, values.dtype, a.device, semiring, ignore_nan, block_k)
    _refine_winners_kernel[grid](a, b, values, blocks, M, N, K, *a.stride(), *b.stride(), **constants)


@remembered
def _launch(
    B: int, M: int, N: int, K: int, dtype: torch.dtype, of_values: torch.dtype, device: torch.device, semiring: str,
    ignore_nan: bool, block_k: int,
) -> tuple[tuple[int], dict[str, Any]]:  # fmt: skip
    """(grid, constants) of a launch."""
    config = REFINE.config({"M": M, "N": N, "K": K, "dtype": str(dtype)}, device)
    constants = {
        "WORST": worst(semiring, of_values), "EMPTY": semiring_zero(semiring, of_values),
        "PRODUCT": semiring == "max_times", "IGNORE_NAN": ignore_nan, "BLOCK_K": block_k, **config,
    }  # fmt: skip
    return (B * M * cdiv(N, config["BLOCK"]),), constants
