"""The portable Triton kernels of the selective semirings: any GPU that Triton knows, and its interpreter on the CPU.

One program makes one [BLOCK_M, BLOCK_N] tile of C[m, n] = max_k A[m, k] ⊗ B[k, n], k after k, and keeps the winner by
a compare and a select: tl.max(return_indices=True) is wrong around NaN and ties in some versions.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..triton_or_stub import tl, triton
from .definition import FLOATS, semiring_zero, winner_dtype

DTYPES = (*FLOATS, torch.int32)
FORWARD = Tuned(
    "tropical_matmul.triton",
    Space({"BLOCK_M": (16, 32, 64, 128), "BLOCK_N": (16, 32, 64, 128), "num_warps": (2, 4, 8)}),
    default=lambda problem: {
        # 64 x 64 with 4 warps spills on sm_80
        "BLOCK_M": 32 if int(problem["M"]) > 16 else 16,
        "BLOCK_N": 64 if int(problem["N"]) > 32 else 16,
        "num_warps": 4,
    },
    source=Path(__file__),
)
SCATTER = Tuned(
    "tropical_winners_scatter.triton",
    Space({"BLOCK": (128, 256, 512, 1024), "num_warps": (4, 8)}),
    default=lambda problem: {"BLOCK": 256, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def combine(a, b, dtype: tl.constexpr, PRODUCT: tl.constexpr):
    """A ⊗ B, rounded to the dtype (16-bit floats: through fp32, whose second rounding is innocuous) or saturated."""
    if dtype == tl.int32:
        a, b = a.to(tl.int64), b.to(tl.int64)
    elif dtype == tl.float16 or dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    x = a * b if PRODUCT else a + b
    if dtype == tl.int32:
        x = tl.minimum(tl.maximum(x, -2147483648), 2147483647).to(tl.int32)
    elif dtype == tl.float16 or dtype == tl.bfloat16:
        x = x.to(dtype).to(tl.float32)
    return x


@triton.jit
def _tropical_matmul_fwd_kernel(
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    c_ptr,  # [B, M, N], contiguous
    winner_ptr,  # [B, M, N] int32, contiguous
    M, N, K,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    WORST: tl.constexpr,  # what every candidate beats or equals: ∓∞, or the dtype's bound
    EMPTY: tl.constexpr,  # the value where every candidate was skipped
    MINIMUM: tl.constexpr, PRODUCT: tl.constexpr, WINNERS: tl.constexpr, IGNORE_NAN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    batch = (pid // (tiles_m * tiles_n)).to(tl.int64)
    pid_m, pid_n = pid // tiles_n % tiles_m, pid % tiles_n
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    a_ptrs = a_ptr + batch * stride_ab + offs_m * stride_am
    b_ptrs = b_ptr + batch * stride_bb + offs_n * stride_bn

    dtype: tl.constexpr = a_ptr.dtype.element_ty
    narrow: tl.constexpr = dtype == tl.float16 or dtype == tl.bfloat16
    best = tl.full([BLOCK_M, BLOCK_N], WORST, tl.float32 if narrow else dtype)
    winner = tl.full([BLOCK_M, BLOCK_N], -1 if IGNORE_NAN else 0, tl.int32)
    for k in range(K):
        a = tl.load(a_ptrs, mask=mask_m, other=0)
        b = tl.load(b_ptrs, mask=mask_n, other=0)
        x = combine(a[:, None], b[None, :], dtype, PRODUCT)
        if WINNERS or IGNORE_NAN:
            wins = x < best if MINIMUM else x > best  # strict, so an earlier k keeps a tie
            if IGNORE_NAN:
                wins = wins | ((winner < 0) & (x == x))
            elif dtype.is_floating():
                wins = wins | ((x != x) & (best == best))  # the first NaN enters and nothing leaves it
            best = tl.where(wins, x, best)
            winner = tl.where(wins, k, winner)
        elif MINIMUM:
            best = tl.minimum(best, x, propagate_nan=tl.PropagateNan.ALL)
        else:
            best = tl.maximum(best, x, propagate_nan=tl.PropagateNan.ALL)
        a_ptrs += stride_ak
        b_ptrs += stride_bk

    if IGNORE_NAN:
        best = tl.where(winner < 0, EMPTY, best)
    offs = (batch * M + offs_m[:, None]) * N + offs_n[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    tl.store(c_ptr + offs, best.to(dtype), mask=mask)
    if WINNERS:
        tl.store(winner_ptr + offs, winner, mask=mask)


@triton.jit
def _tropical_winners_scatter_kernel(
    dc_ptr,  # [B, M, N]
    winner_ptr,  # [B, M, N] int16 or int32, contiguous
    a_ptr,  # [B, M, K], read for a product alone
    b_ptr,  # [B, K, N], likewise
    da_ptr,  # [B, M, K], contiguous, zero on entry, fp32 for 16-bit gradients
    db_ptr,  # [B, K, N], likewise
    M, N, K,
    stride_cb, stride_cm, stride_cn,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    PRODUCT: tl.constexpr, NEEDS_A: tl.constexpr, NEEDS_B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program routes a piece of one row: dividing by sizes is for scalars
    pid = tl.program_id(0)
    pieces = tl.cdiv(N, BLOCK)
    row = (pid // pieces).to(tl.int64)
    batch, m = row // M, row % M
    n = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(winner_ptr + row * N + n, mask=n < N, other=-1).to(tl.int64)
    won = (k >= 0) & (k < K)  # nothing is ever written out of bounds
    accumulator: tl.constexpr = da_ptr.dtype.element_ty
    dc = tl.load(dc_ptr + batch * stride_cb + m * stride_cm + n * stride_cn, mask=won, other=0).to(accumulator)
    if NEEDS_A:
        dx = dc
        if PRODUCT:
            dx = dc * tl.load(b_ptr + batch * stride_bb + k * stride_bk + n * stride_bn, mask=won, other=0)
        tl.atomic_add(da_ptr + row * K + k, dx.to(accumulator), mask=won)
    if NEEDS_B:
        dx = dc
        if PRODUCT:
            dx = dc * tl.load(a_ptr + batch * stride_ab + m * stride_am + k * stride_ak, mask=won, other=0)
        tl.atomic_add(db_ptr + (batch * K + k) * N + n, dx.to(accumulator), mask=won)


def forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] -> values [B, M, N], int32 winners [B, M, N] or [0]. All sizes ≥ 1."""
    (B, M, K), N = a.shape, b.shape[-1]
    values = a.new_empty(B, M, N)
    winners = torch.empty((B, M, N) if with_winners else (0,), dtype=torch.int32, device=a.device)
    config = FORWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype), "winners": with_winners}, a.device)
    # a running ⊕ starts below (for min: above) every candidate, products of signed factors included
    worst = semiring_zero("min_plus" if semiring == "min_plus" else "max_plus", a.dtype)
    grid = (B * triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    _tropical_matmul_fwd_kernel[grid](
        a, b, values, winners, M, N, K, *a.stride(), *b.stride(),
        WORST=worst, EMPTY=semiring_zero(semiring, a.dtype),
        MINIMUM=semiring == "min_plus", PRODUCT=semiring == "max_times", WINNERS=with_winners,
        IGNORE_NAN=ignore_nan and a.is_floating_point(), **config,
    )  # fmt: skip
    return values, winners.to(winner_dtype(K))


def scatter(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> tuple[Tensor, Tensor]:
    """dc, winners [B, M, N] -> da [B, M, K], db [B, K, N], or [0] where not needed; added atomically, in any order."""
    B, M, N = dc.shape
    wide = torch.float32 if dc.dtype in (torch.float16, torch.bfloat16) else dc.dtype
    da = torch.zeros((B, M, K) if needs_a else (0,), dtype=wide, device=dc.device)
    db = torch.zeros((B, K, N) if needs_b else (0,), dtype=wide, device=dc.device)
    winners = winners.contiguous()
    config = SCATTER.config({"M": M, "N": N, "K": K, "dtype": str(dc.dtype)}, dc.device)
    _tropical_winners_scatter_kernel[(B * M * triton.cdiv(N, config["BLOCK"]),)](
        dc, winners, dc if a is None else a, dc if b is None else b, da, db, M, N, K,
        *dc.stride(), *((0, 0, 0) if a is None else a.stride()), *((0, 0, 0) if b is None else b.stride()),
        PRODUCT=semiring == "max_times", NEEDS_A=needs_a, NEEDS_B=needs_b, **config,
    )  # fmt: skip
    return da.to(dc.dtype), db.to(dc.dtype)
