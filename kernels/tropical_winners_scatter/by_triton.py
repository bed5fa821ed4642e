"""The portable Triton backward of the selective semirings: dA[m, k*(m, n)] += dC[m, n], dB[k*(m, n), n] += dC[m, n].

For a product the added terms are dC[m, n] · B[k*, n] and dC[m, n] · A[m, k*]. Two ways to add them:

* fast: atomic additions in floating point (fp32 for 16-bit gradients), in any order;
* deterministic: atomic additions of whole multiples of 2^−s in int64, which no order changes. With |term| < 2^e and at
  most `count` terms in a sum (N in dA, M in dB), s = 62 − e − ⌈log2 count⌉ leaves no sum to overflow. 2^e is the power
  of two above the largest finite |dC| and at least 2^−126, times that of the factor, found on the device. A term loses
  less than 2^−s, so a sum's absolute error is below count · 2^−s before its rounding to the dtype: for sums, below
  count · 2^⌈log2 count⌉ · 2^−61 · max|dC|. Terms of 24 bits within 2^(38 − ⌈log2 count⌉) of 2^e lose nothing at all.
  NaN, +∞ and −∞ are no multiples of 2^−s: three bits an element say which were met, and give what a plain sum gives.

Terms of one program that share a winner are not added up first: Triton has no atomics in shared memory, sorting costs
more than the additions it saves unless winners repeat much, and a relaxed addition without a result waits for nothing.

float64 has no deterministic form here: 53 bits and the head room of a sum leave terms of unlike sizes too few.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring_in_triton import piece_of_a_row
from ..runtime.grid import cdiv

DETERMINISTIC_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SCATTER = Tuned(
    "tropical_winners_scatter.triton",
    Space({"BLOCK": (128, 256, 512, 1024), "num_warps": (4, 8)}),
    default=lambda problem: {"BLOCK": 256, "num_warps": 4},
    source=Path(__file__),
)
STREAM = Tuned(  # of the kernels that only stream
    "tropical_winners_stream.triton",
    Space({"BLOCK": (256, 512, 1024, 2048), "num_warps": (4, 8)}),
    default=lambda problem: {"BLOCK": 1024, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _shift(largest_ptr, HEAD_ROOM: tl.constexpr, PRODUCT: tl.constexpr, FACTOR: tl.constexpr):
    """s, from the bits of the largest |dC| and |factor| in fp32: a value with exponent field E is below 2^(E − 126)."""
    e = (tl.load(largest_ptr) >> 23) - 126
    if PRODUCT:
        e += (tl.load(largest_ptr + FACTOR) >> 23) - 126
    return 62 - HEAD_ROOM - e


@triton.jit
def _largest_kernel(
    x_ptr,  # [B, M, N]
    largest_ptr,  # [1] int32, zero on entry: the bits of max |x| over finite x, in fp32
    M, N,
    stride_b, stride_m, stride_n,
    BLOCK: tl.constexpr,
):  # fmt: skip
    _, batch, m, n = piece_of_a_row(M, N, BLOCK)
    x = tl.load(x_ptr + batch * stride_b + m * stride_m + n * stride_n, mask=n < N, other=0)
    bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF  # ordered as the magnitudes are
    tl.atomic_max(largest_ptr, tl.max(tl.where(bits < 0x7F800000, bits, 0), 0), sem="relaxed")


@triton.jit
def _add(sum_ptr, special_ptr, offs, x, won, shift, FIXED: tl.constexpr):
    if FIXED:
        finite = x - x == 0
        units = (tl.where(finite, x, 0.0) * _power_of_two(shift)).to(tl.int64)
        tl.atomic_add(sum_ptr + offs, units, mask=won, sem="relaxed")
        kind = tl.where(x != x, 1, tl.where(x > 0, 2, 4))
        tl.atomic_or(
            special_ptr + (offs >> 3), kind << ((offs & 7) * 4).to(tl.int32), mask=won & ~finite, sem="relaxed"
        )
    else:
        tl.atomic_add(sum_ptr + offs, x, mask=won, sem="relaxed")


@triton.jit
def _tropical_winners_scatter_kernel(
    dc_ptr,  # [B, M, N]
    winner_ptr,  # [B, M, N] int16 or int32, contiguous
    a_ptr,  # [B, M, K], read for a product alone
    b_ptr,  # [B, K, N], likewise
    da_ptr,  # [B, M, K], contiguous, zero on entry: the gradient's dtype, fp32 for 16 bits, int64 if FIXED
    db_ptr,  # [B, K, N], likewise
    special_a_ptr,  # [⌈BMK / 8⌉] int32, zero on entry: four bits an element; this and the next two if FIXED
    special_b_ptr,  # [⌈BKN / 8⌉] likewise
    largest_ptr,  # [3] int32: the bits of max |dC|, |A|, |B| in fp32
    M, N, K,
    stride_cb, stride_cm, stride_cn,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    PRODUCT: tl.constexpr, NEEDS_A: tl.constexpr, NEEDS_B: tl.constexpr,
    FIXED: tl.constexpr, HEAD_ROOM_A: tl.constexpr, HEAD_ROOM_B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, batch, m, n = piece_of_a_row(M, N, BLOCK)
    k = tl.load(winner_ptr + row * N + n, mask=n < N, other=-1).to(tl.int64)
    won = (k >= 0) & (k < K)  # nothing is ever read or written out of bounds
    # fp64 holds a product of two fp32 exactly
    term: tl.constexpr = tl.float64 if FIXED else da_ptr.dtype.element_ty  # pyright: ignore[reportAssignmentType]
    dc = tl.load(dc_ptr + batch * stride_cb + m * stride_cm + n * stride_cn, mask=won, other=0).to(term)
    if NEEDS_A:
        x = dc
        if PRODUCT:
            x *= tl.load(b_ptr + batch * stride_bb + k * stride_bk + n * stride_bn, mask=won, other=0).to(term)
        shift = _shift(largest_ptr, HEAD_ROOM_A, PRODUCT, 2) if FIXED else 0
        _add(da_ptr, special_a_ptr, row * K + k, x, won, shift, FIXED)
    if NEEDS_B:
        x = dc
        if PRODUCT:
            x *= tl.load(a_ptr + batch * stride_ab + m * stride_am + k * stride_ak, mask=won, other=0).to(term)
        shift = _shift(largest_ptr, HEAD_ROOM_B, PRODUCT, 1) if FIXED else 0
        _add(db_ptr, special_b_ptr, (batch * K + k) * N + n, x, won, shift, FIXED)


@triton.jit
def _from_fixed_point_kernel(
    sum_ptr,  # [size] int64
    special_ptr,  # [⌈size / 8⌉] int32
    largest_ptr,  # [3] int32
    out_ptr,  # [size]
    size,
    PRODUCT: tl.constexpr, HEAD_ROOM: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    x = tl.load(sum_ptr + offs, mask=mask, other=0).to(tl.float64)
    x = (x * _power_of_two(-_shift(largest_ptr, HEAD_ROOM, PRODUCT, FACTOR))).to(tl.float32)
    special = tl.load(special_ptr + (offs >> 3), mask=mask, other=0) >> ((offs & 7) * 4).to(tl.int32) & 7
    x = tl.where(special == 0, x, tl.where(special == 2, float("inf"), float("-inf")))
    x = tl.where((special & 1) + (special == 6) > 0, float("nan"), x)
    tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty), mask=mask)


def scatter(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> tuple[Tensor, Tensor]:
    """dc, winners [B, M, N] -> da [B, M, K], db [B, K, N] in dc's dtype, or [0] where not needed.

    In any order, or by fixed point where torch.are_deterministic_algorithms_enabled(), for one of DETERMINISTIC_DTYPES.
    A winner outside [0, K) adds nothing.
    """
    B, M, N = dc.shape
    product, fixed = semiring == "max_times", torch.are_deterministic_algorithms_enabled()
    sums = torch.int64 if fixed else torch.float64 if dc.dtype == torch.float64 else torch.float32
    da = torch.zeros((B, M, K) if needs_a else (0,), dtype=sums, device=dc.device)
    db = torch.zeros((B, K, N) if needs_b else (0,), dtype=sums, device=dc.device)
    special_a, special_b = (
        torch.zeros(-(-x.numel() // 8) if fixed else 0, dtype=torch.int32, device=dc.device) for x in (da, db)
    )
    largest = torch.zeros(3, dtype=torch.int32, device=dc.device)
    head_room = {"HEAD_ROOM_A": (N - 1).bit_length(), "HEAD_ROOM_B": (M - 1).bit_length()}
    if fixed:
        for index, x in enumerate((dc, a, b) if product else (dc,)):
            if x is not None:
                _largest(x, largest[index:])
    winners = winners.contiguous()
    problem = {"M": M, "N": N, "K": K, "dtype": str(dc.dtype), "deterministic": fixed}
    config = SCATTER.config(problem, dc.device)
    unused = (0, 0, 0)
    _tropical_winners_scatter_kernel[(B * M * cdiv(N, config["BLOCK"]),)](
        dc, winners, dc if a is None else a, dc if b is None else b, da, db, special_a, special_b, largest, M, N, K,
        *dc.stride(), *(unused if a is None else a.stride()), *(unused if b is None else b.stride()),
        PRODUCT=product, NEEDS_A=needs_a, NEEDS_B=needs_b, FIXED=fixed,
        **(head_room if fixed else dict.fromkeys(head_room, 0)), **config,
    )  # fmt: skip
    if not fixed:
        return da.to(dc.dtype), db.to(dc.dtype)
    return (
        _from_fixed_point(da, special_a, largest, product, head_room["HEAD_ROOM_A"], 2, dc.dtype),
        _from_fixed_point(db, special_b, largest, product, head_room["HEAD_ROOM_B"], 1, dc.dtype),
    )


def _largest(x: Tensor, largest: Tensor) -> None:
    B, M, N = x.shape
    config = _stream(x)
    grid = (B * M * cdiv(N, config["BLOCK"]),)
    _largest_kernel[grid](x, largest, M, N, *x.stride(), **config)


def _stream(x: Tensor) -> Config:
    return STREAM.config({"size": x.numel(), "dtype": str(x.dtype)}, x.device)


def _from_fixed_point(
    sums: Tensor, special: Tensor, largest: Tensor, product: bool, head_room: int, factor: int, dtype: torch.dtype
) -> Tensor:
    out = torch.empty_like(sums, dtype=dtype)
    if sums.numel():
        config = _stream(sums)
        _from_fixed_point_kernel[(cdiv(sums.numel(), config["BLOCK"]),)](
            sums, special, largest, out, sums.numel(),
            PRODUCT=product, HEAD_ROOM=head_room, FACTOR=factor, **config,
        )  # fmt: skip
    return out
