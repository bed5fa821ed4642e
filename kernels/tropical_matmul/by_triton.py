"""The portable Triton forward of the selective semirings: any GPU that Triton knows, and its interpreter on the CPU.

One program makes one [BLOCK_M, BLOCK_N] tile of C[m, n] = max_k A[m, k] ⊗ B[k, n] in registers. The tile is held as
[N1, BLOCK_M, N0], n = n1 · N0 + n0, because Triton lays threads along the last axis first: lanes along n0, warps along
m, and a thread keeps BLOCK_M / num_warps rows times N1 columns. Per k it loads that many factors, each alone, and
makes their product of candidates: no shared memory and no barrier, so warps hide each other's latency.

Rounding and saturation never change the order of two numbers, so they may follow the maximum: bfloat16 runs in
unrounded fp32 and int16 in unsaturated int32, and each k-block's result is rounded or saturated once, before it is
compared with the blocks before.

A maximum is unchanged by a repeated candidate, so all k-blocks are whole: the second starts early and repeats some of
the first.

Winners, for K above 128, come in two phases, as in refine.py: the loop keeps the k-block in which the running ⊕ last
improved (strictly, so the first wins a tie), one compare and one select per BLOCK_K; refining finds the first k in that
block. A shorter sum keeps its k as it goes, by three more instructions a step: refining would cost about as many, and a
launch. (tl.max(return_indices=True) is wrong around NaN and ties in some versions.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring import semiring_zero, value_dtype, winner_dtype, worst
from ..mathematics.semiring_in_triton import candidate, rounded
from ..runtime.grid import cdiv
from ..runtime.remembered import remembered
from .refine import refine


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    """32 elements a thread once such tiles fill a GPU and where none spills; else 16, or 8."""
    M, N, K = (int(problem[size]) for size in "MNK")
    dtype, winners = problem["dtype"], problem["winners"]
    fills = M * N >= 1 << 20 and min(M, N) >= 128
    # rows, columns, warps: found by compiling for sm_80, sm_90 and sm_100
    if winners and dtype != "torch.float32" and K > 128:
        narrow = (16, 32, 2) if dtype in ("torch.float16", "torch.int32", "torch.int8") else (16, 64, 8)
        tile = (16, 128, 4) if N > 64 else narrow
    elif winners and dtype == "torch.bfloat16":
        tile = (32, 32, 4)
    elif fills and dtype in ("torch.float32", "torch.int32"):
        tile = (64, 128, 8)
    elif fills and dtype != "torch.float64" and not winners:
        tile = (32, 128, 4)
    else:
        tight = dtype == "torch.float64" or (winners and dtype == "torch.int16")
        tile = (32 if M > 16 and not tight else 16, 64 if N > 32 else 32 if N > 16 else 16, 4)
    return {
        "BLOCK_M": tile[0],
        "BLOCK_N": tile[1],
        # an output's refining costs 18 BLOCK_K instructions and its blocks 3 K / BLOCK_K: together least at 0.4 √K
        "BLOCK_K": 1 if K <= 128 else 8 if K <= 512 else 16 if K <= 2048 else 32,
        "num_warps": tile[2],
    }


FORWARD = Tuned(
    "tropical_matmul.triton",
    Space(
        {
            "BLOCK_M": (16, 32, 64, 128),
            "BLOCK_N": (16, 32, 64, 128),
            "BLOCK_K": (1, 8, 16, 32),  # 1: winners are kept as the loop goes, and nothing is refined
            "num_warps": (2, 4, 8),
        }
    ),
    default=_default,
    source=Path(__file__),
)
_WORD = 8  # bytes of the widest element that Triton loads


@triton.jit
def _select(best, x, MINIMUM: tl.constexpr, IGNORE_NAN: tl.constexpr):
    """best ⊕ x. A NaN enters and stays, or never enters."""
    if IGNORE_NAN:  # the maximum that drops NaN would be one instruction, but Triton's interpreter has none
        best = tl.where(x < best if MINIMUM else x > best, x, best)
    elif best.dtype == tl.float64:  # its maximum is 20 instructions on NVIDIA GPUs
        best = tl.where((x < best if MINIMUM else x > best) | (x != x), x, best)
    elif MINIMUM:
        best = tl.minimum(best, x, propagate_nan=tl.PropagateNan.ALL)
    else:
        best = tl.maximum(best, x, propagate_nan=tl.PropagateNan.ALL)
    return best


@triton.jit
def _tropical_matmul_fwd_kernel(
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    c_ptr,  # [B, M, N], contiguous
    winner_ptr,  # [B, M, N] int16 or int32, contiguous: if KEEP is "k" the winner, if "block" its k-block
    M, N,
    K,  # at least BLOCK_K
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    WORST: tl.constexpr,  # what every candidate beats or equals: ∓∞, or the dtype's bound
    EMPTY: tl.constexpr,  # the value where every candidate was skipped; refining sees to it if KEEP is "block"
    MINIMUM: tl.constexpr, PRODUCT: tl.constexpr, IGNORE_NAN: tl.constexpr,
    KEEP: tl.constexpr,  # beside the value: "k", "block" or "nothing"
    PACK: tl.constexpr,  # consecutive k of A that one load takes
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    bits: tl.constexpr = 64 // PACK
    bare: tl.constexpr = tl.int8 if bits == 8 else tl.int16 if bits == 16 else tl.int32  # pyright: ignore[reportAssignmentType]
    integer: tl.constexpr = dtype == tl.int16 or dtype == tl.int8
    widened: tl.constexpr = tl.float32 if dtype == tl.bfloat16 else dtype  # pyright: ignore[reportAssignmentType]
    accumulator: tl.constexpr = tl.int32 if integer else widened  # pyright: ignore[reportAssignmentType]
    N0: tl.constexpr = min(BLOCK_N, 32)  # pyright: ignore[reportAssignmentType]
    N1: tl.constexpr = BLOCK_N // N0
    UNROLL: tl.constexpr = min(BLOCK_K, 8)  # pyright: ignore[reportAssignmentType]

    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    batch = (pid // (tiles_m * tiles_n)).to(tl.int64)
    offs_m = (pid // tiles_n % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n0 = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, N0)
    n1 = tl.arange(0, N1)[:, None].to(tl.int64) * N0
    offs_n = n1 + n0[None, :]
    mask_n = offs_n < N
    # A: one pointer that moves, and rows that stay; a row past the end repeats the last
    a_at = a_ptr + batch * stride_ab
    offs_a = tl.minimum(offs_m, M - 1) * stride_am
    # B: one pointer a lane that moves, and distances between columns that are constants where stride_bn is 1
    b_ptrs = b_ptr + batch * stride_bb + n0 * stride_bn
    offs_b = n1 * stride_bn

    best = tl.full([N1, BLOCK_M, N0], WORST, accumulator)
    winner = tl.full([N1, BLOCK_M, N0], -1 if KEEP == "k" and IGNORE_NAN else 0, tl.int32)
    k = 0
    blocks = tl.cdiv(K, BLOCK_K)
    for i in range(blocks):
        # a block's own ⊕, or where blocks are not kept, the running one
        top = tl.full([N1, BLOCK_M, N0], WORST, accumulator) if KEEP == "block" else best
        for _ in range(BLOCK_K // UNROLL):
            for _ in tl.static_range(UNROLL // PACK):
                if PACK > 1:
                    word = tl.load((a_at + offs_a).to(tl.pointer_type(tl.int64), bitcast=True))
                for u in tl.static_range(PACK):
                    a = (word >> u * bits).to(bare).to(dtype, bitcast=True) if PACK > 1 else tl.load(a_at + offs_a)
                    b = tl.load(b_ptrs[None, :] + offs_b, mask=mask_n)
                    x = candidate(a[None, :, None], b[:, None, :], dtype, PRODUCT)
                    if KEEP == "k":
                        x = rounded(x, dtype)
                        if IGNORE_NAN:
                            wins = (x < top if MINIMUM else x > top) | ((winner < 0) & (x == x))
                        else:  # strictly better, or the first NaN
                            wins = ~(x >= top if MINIMUM else x <= top) & (top == top)
                        winner = tl.where(wins, k, winner)
                    top = _select(top, x, MINIMUM, IGNORE_NAN)
                    a_at += stride_ak
                    b_ptrs += stride_bk
                    k += 1
        if KEEP == "block":
            top = rounded(top, dtype)
            winner = tl.where(top < best if MINIMUM else top > best, i, winner)
            best = _select(best, top, MINIMUM, IGNORE_NAN)
        else:
            best = top
        repeated = tl.where(i == 0, blocks * BLOCK_K - K, 0)
        k -= repeated
        a_at -= repeated.to(tl.int64) * stride_ak
        b_ptrs -= repeated.to(tl.int64) * stride_bk

    offs = (batch * M + offs_m[None, :, None]) * N + offs_n[:, None, :]
    mask = (offs_m < M)[None, :, None] & mask_n[:, None, :]
    if KEEP == "k" and IGNORE_NAN:
        best = tl.where(winner < 0, EMPTY, best)
    tl.store(c_ptr + offs, rounded(best, dtype).to(c_ptr.dtype.element_ty), mask=mask)
    if KEEP != "nothing":
        tl.store(winner_ptr + offs, winner.to(winner_ptr.dtype.element_ty), mask=mask)


def forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] -> values and winners [B, M, N] (see definition.py for dtypes); winners [0] unasked.

    All sizes ≥ 1.
    """
    (_, M, K), N = a.shape, b.shape[-1]
    strides = a.stride()
    grid, shape, kept, dtypes, constants = _launch(
        a.shape, strides, a.data_ptr() % _WORD == 0, N, a.dtype, a.device, semiring, with_winners, ignore_nan
    )
    values = a.new_empty(shape, dtype=dtypes[0])
    winners = torch.empty(kept, dtype=dtypes[1], device=a.device)
    _tropical_matmul_fwd_kernel[grid](a, b, values, winners, M, N, K, *strides, *b.stride(), **constants)
    if constants["KEEP"] == "block":
        refine(a, b, values, winners, semiring, constants["IGNORE_NAN"], constants["BLOCK_K"])
    return values, winners if with_winners or not kept[-1] else winners.new_empty(0)


@remembered
def _launch(
    a_shape: torch.Size, a_strides: tuple[int, ...], is_aligned: bool, N: int, dtype: torch.dtype, device: torch.device,
    semiring: str, with_winners: bool, ignore_nan: bool,
) -> tuple[tuple[int], tuple[int, ...], tuple[int, ...], tuple[torch.dtype, torch.dtype], dict[str, Any]]:  # fmt: skip
    """(grid, the shapes of values and of what is kept of winners, the dtypes of both, constants) of a launch."""
    B, M, K = a_shape
    ignore_nan = ignore_nan and dtype.is_floating_point
    # where all candidates of a product were skipped, the value is 0 and not the −∞ that the running maximum starts from
    keeps = with_winners or (ignore_nan and semiring == "max_times")
    config = FORWARD.config({"M": M, "N": N, "K": K, "dtype": str(dtype), "winners": with_winners}, device)
    # no block is longer than K, and one that is not kept is as long as the loop is unrolled
    block_k = min(config["BLOCK_K"] if config["BLOCK_K"] > 1 else 8, 1 << (K.bit_length() - 1))
    of_values = value_dtype(dtype)
    constants = {
        "WORST": worst(semiring, of_values), "EMPTY": semiring_zero(semiring, of_values),
        "MINIMUM": semiring == "min_plus", "PRODUCT": semiring == "max_times", "IGNORE_NAN": ignore_nan,
        "KEEP": "nothing" if not keeps else "block" if config["BLOCK_K"] > 1 else "k",
        "PACK": _packed(a_shape, a_strides, is_aligned, dtype, block_k), **config, "BLOCK_K": block_k,
    }  # fmt: skip
    grid = (B * cdiv(M, config["BLOCK_M"]) * cdiv(N, config["BLOCK_N"]),)
    return grid, (B, M, N), (B, M, N) if keeps else (0,), (of_values, winner_dtype(K)), constants


def _packed(shape: torch.Size, strides: tuple[int, ...], is_aligned: bool, dtype: torch.dtype, block_k: int) -> int:
    """How many consecutive k of a [B, M, K] one aligned word holds wherever a k-block can start; 1 where it cannot."""
    count = _WORD // dtype.itemsize
    fits = is_aligned and strides[2] == 1 and not any(x % count for x in (*strides[:2], shape[2], block_k))
    return count if fits else 1
