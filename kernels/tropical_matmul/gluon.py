"""The Gluon fast path of the selective semirings: NVIDIA GPUs from compute capability 8.0, fp32 and fp16.

One program makes one [BLOCK_M, BLOCK_N] tile of C[m, n] = max_k A[m, k] ⊗ B[k, n] in registers. Both operands lie
K-major ([K, M] and [K, N]) and pass through shared memory by asynchronous copies, STAGES deep; per k a thread reads a
few vectors and does one ⊗ and one ⊕ per element: in fp32 two instructions per (m, n, k) and little else.

⊕ is idempotent, and that makes the ragged K edge free: the second k-block starts early and repeats rows of the first,
so that every block is whole and no padding value exists that could win, tie or turn ∞ − ∞ into a NaN.

Winners in two phases. The main loop keeps only the k-block in which the running ⊕ last improved (strictly, so the first
block wins a tie): one compare and one select per BLOCK_K steps. A second kernel, plain Triton, then finds in that block
the first k whose candidate equals the value.

Verified by compilation alone so far: the tests read registers, stack and instruction counts from the machine code, but
no interpreter runs Gluon. Therefore nothing may choose this path by itself until a qualification record exists for the
compute capability and the triton version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ..triton_or_stub import async_copy, gl, gluon, tl, triton
from .definition import semiring_zero, winner_dtype
from .portable import combine

DTYPES = (torch.float32, torch.float16)
ROW_MULTIPLE = 16  # what Triton asks of sizes and strides, in elements, to copy 16 bytes at a time


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    """64 elements a thread, or 32 with fp32 winners: those take three registers each, for the value, its k-block and
    the block's own ⊕. The longer k-block spreads the copies' instructions; values in fp16 are at the floor without.
    """
    half, winners = problem["dtype"] == "torch.float16", problem["winners"]
    return {
        "BLOCK_M": 64,
        "BLOCK_N": 64 if winners and not half else 128,
        "BLOCK_K": 16 if half and not winners else 32,
        "STAGES": 3,
        "num_warps": 4,
    }


FORWARD = Tuned(
    "tropical_matmul.gluon",
    # not every one is sensible: 128 x 128 with 4 warps spills, and fp16 computes a tile of 64 columns twice
    Space({"BLOCK_M": (64, 128), "BLOCK_N": (64, 128), "BLOCK_K": (16, 32), "STAGES": (2, 3, 4), "num_warps": (4, 8)}),
    default=_default,
    source=Path(__file__),
)
REFINE = Tuned(
    "tropical_matmul_refine.triton",
    Space({"BLOCK": (128, 256, 512), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK": 128, "num_warps": 4},
    source=Path(__file__),
)


@gluon.jit
def _tropical_matmul_gluon_kernel(
    a_ptr,  # [B, K, M], rows padded to a multiple of 16
    b_ptr,  # [B, K, N], likewise
    c_ptr,  # [B, M, N], contiguous
    block_ptr,  # [B, M, N] int32, contiguous: the k-block in which the value was first reached
    M, N,
    K,  # at least BLOCK_K
    stride_ab, stride_ak,
    stride_bb, stride_bk,
    WORST: gl.constexpr,  # what every candidate beats or equals
    MINIMUM: gl.constexpr, PRODUCT: gl.constexpr, WINNERS: gl.constexpr, IGNORE_NAN: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = a_ptr.dtype.element_ty
    VEC: gl.constexpr = 128 // dtype.primitive_bitwidth  # elements of one 16-byte access
    # squares of VEC x VEC per thread, repeated over the tile: neighbours in a warp read neighbouring 16 bytes
    tile: gl.constexpr = gl.BlockedLayout([VEC, VEC], [4, 8], [gl.num_warps() // 2, 2], [1, 0])
    copy_a: gl.constexpr = gl.BlockedLayout(
        [1, VEC], [32 * VEC // BLOCK_M, BLOCK_M // VEC], [gl.num_warps(), 1], [1, 0]
    )
    copy_b: gl.constexpr = gl.BlockedLayout(
        [1, VEC], [32 * VEC // BLOCK_N, BLOCK_N // VEC], [gl.num_warps(), 1], [1, 0]
    )
    rows: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    propagate: gl.constexpr = tl.PropagateNan.NONE if IGNORE_NAN else tl.PropagateNan.ALL

    pid = gl.program_id(0)
    tiles_m, tiles_n = gl.cdiv(M, BLOCK_M), gl.cdiv(N, BLOCK_N)
    batch = (pid // (tiles_m * tiles_n)).to(gl.int64)
    first_m, first_n = pid // tiles_n % tiles_m * BLOCK_M, pid % tiles_n * BLOCK_N

    ka, ma = gl.arange(0, BLOCK_K, gl.SliceLayout(1, copy_a)), gl.arange(0, BLOCK_M, gl.SliceLayout(0, copy_a))
    kb, nb = gl.arange(0, BLOCK_K, gl.SliceLayout(1, copy_b)), gl.arange(0, BLOCK_N, gl.SliceLayout(0, copy_b))
    offs_ak, offs_bk = ka.to(gl.int64) * stride_ak, kb.to(gl.int64) * stride_bk
    a_ptrs = a_ptr + batch * stride_ab + first_m + offs_ak[:, None] + ma[None, :]
    b_ptrs = b_ptr + batch * stride_bb + first_n + offs_bk[:, None] + nb[None, :]
    # multiples of 16, visibly so to the compiler: a mask that splits no 16-byte copy
    mask_a = (first_m + ma < gl.cdiv(M, 16) * 16)[None, :]
    mask_b = (first_n + nb < gl.cdiv(N, 16) * 16)[None, :]
    blocks = gl.cdiv(K, BLOCK_K)
    second = (K - (blocks - 1) * BLOCK_K).to(gl.int64)
    step_a, step_b = stride_ak.to(gl.int64) * BLOCK_K, stride_bk.to(gl.int64) * BLOCK_K
    a_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, BLOCK_M], rows)
    b_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, BLOCK_N], rows)
    for s in gl.static_range(STAGES - 1):
        async_copy.async_copy_global_to_shared(a_smem.index(s), a_ptrs, mask=mask_a & (s < blocks))
        async_copy.async_copy_global_to_shared(b_smem.index(s), b_ptrs, mask=mask_b & (s < blocks))
        async_copy.commit_group()
        a_ptrs += second * stride_ak if s == 0 else step_a
        b_ptrs += second * stride_bk if s == 0 else step_b

    best = gl.full((BLOCK_M, BLOCK_N), WORST, dtype, layout=tile)
    block = gl.full((BLOCK_M, BLOCK_N), 0, gl.int32, layout=tile)
    stage, free = 0, STAGES - 1
    for i in range(blocks):
        async_copy.wait_group(STAGES - 2)
        more = i + STAGES - 1 < blocks
        async_copy.async_copy_global_to_shared(a_smem.index(free), a_ptrs, mask=mask_a & more)
        async_copy.async_copy_global_to_shared(b_smem.index(free), b_ptrs, mask=mask_b & more)
        async_copy.commit_group()
        a_ptrs += step_a
        b_ptrs += step_b
        top = best
        for u in gl.static_range(BLOCK_K):
            a = a_smem.index(stage).slice(u, 1).permute([1, 0]).load(tile)  # [BLOCK_M, 1]
            b = b_smem.index(stage).slice(u, 1).load(tile)  # [1, BLOCK_N]
            x = a * b if PRODUCT else a + b
            if WINNERS and u == 0:
                top = x  # the block's own ⊕, so that no copy of the value before the block is kept
            else:
                top = gl.minimum(top, x, propagate) if MINIMUM else gl.maximum(top, x, propagate)
        if WINNERS:
            block = gl.where(top < best if MINIMUM else top > best, i, block)
            best = gl.minimum(best, top, propagate) if MINIMUM else gl.maximum(best, top, propagate)
        else:
            best = top
        free = stage
        stage = stage + 1 if stage < STAGES - 1 else 0
    async_copy.wait_group(0)

    offs_m = first_m + gl.arange(0, BLOCK_M, gl.SliceLayout(1, tile))
    offs_n = first_n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, tile))
    offs = (batch * M + offs_m[:, None]) * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    gl.store(c_ptr + offs, best, mask=mask)
    if WINNERS:
        gl.store(block_ptr + offs, block, mask=mask)


@triton.jit
def _refine_winners_kernel(
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    c_ptr,  # [B, M, N], contiguous
    winner_ptr,  # [B, M, N] int32, contiguous: on entry the k-block of the winner, on return the winner
    M, N, K,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    WORST: tl.constexpr,
    EMPTY: tl.constexpr,  # the value where every candidate was skipped
    PRODUCT: tl.constexpr, IGNORE_NAN: tl.constexpr,
    BLOCK_K: tl.constexpr,  # of the kernel that made the blocks
    BLOCK: tl.constexpr,
):  # fmt: skip
    # one program refines a piece of one row: dividing by sizes is for scalars
    pid = tl.program_id(0)
    pieces = tl.cdiv(N, BLOCK)
    row = (pid // pieces).to(tl.int64)
    batch, m = row // M, row % M
    n = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    value = tl.load(c_ptr + row * N + n, mask=mask, other=0)
    block = tl.load(winner_ptr + row * N + n, mask=mask, other=0)
    first = tl.maximum(K - (tl.cdiv(K, BLOCK_K) - block) * BLOCK_K, 0).to(tl.int64)  # only the first is cut short
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    best = value.to(tl.float32)
    is_nan = best != best
    # rare: no strict improvement marks the block of the first NaN, nor of a WORST that comes after skipped NaNs
    unmarked = (best == WORST) if IGNORE_NAN else is_nan
    first = tl.where(unmarked, 0, first)
    steps = tl.where(tl.max((unmarked & mask).to(tl.int32)) > 0, K, BLOCK_K)
    winner = tl.full([BLOCK], -1, tl.int32)
    a_ptrs = a_ptr + batch * stride_ab + m * stride_am + first * stride_ak
    b_ptrs = b_ptr + batch * stride_bb + first * stride_bk + n * stride_bn
    for u in range(steps):
        inside = mask & (winner < 0) & (first + u < K)
        a = tl.load(a_ptrs, mask=inside, other=0)
        b = tl.load(b_ptrs, mask=inside, other=0)
        x = combine(a, b, dtype, PRODUCT)
        found = inside & ((x == best) | (is_nan & (x != x)))
        winner = tl.where(found, (first + u).to(tl.int32), winner)
        a_ptrs += stride_ak
        b_ptrs += stride_bk
    tl.store(winner_ptr + row * N + n, winner, mask=mask)
    if IGNORE_NAN:
        tl.store(c_ptr + row * N + n, tl.where(winner < 0, EMPTY, best).to(dtype), mask=mask)


def forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] of one of DTYPES -> values [B, M, N], int32 winners [B, M, N] or [0]. All sizes ≥ 1."""
    (B, M, K), N = a.shape, b.shape[-1]
    values = a.new_empty(B, M, N)
    # where all candidates of a product were skipped, the value is 0 and not the −∞ that the running maximum starts from
    tracks_blocks = with_winners or (ignore_nan and semiring == "max_times")
    winners = torch.empty((B, M, N) if tracks_blocks else (0,), dtype=torch.int32, device=a.device)
    problem = {"M": M, "N": N, "K": K, "dtype": str(a.dtype), "winners": tracks_blocks}
    config = FORWARD.config(problem, a.device)
    worst = semiring_zero("min_plus" if semiring == "min_plus" else "max_plus", a.dtype)
    flags = {"PRODUCT": semiring == "max_times", "IGNORE_NAN": ignore_nan}
    rows_a, rows_b = (k_major(x, config["BLOCK_K"]) for x in (a.mT, b))
    grid = (B * triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    _tropical_matmul_gluon_kernel[grid](
        rows_a, rows_b, values, winners, M, N, rows_a.shape[1], *rows_a.stride()[:2], *rows_b.stride()[:2],
        WORST=worst, MINIMUM=semiring == "min_plus", WINNERS=tracks_blocks, **flags, **config,
    )  # fmt: skip
    if tracks_blocks:
        refine(a, b, values, winners, semiring, ignore_nan, config["BLOCK_K"])
    return values, (winners if with_winners else winners.new_empty(0)).to(winner_dtype(K))


def refine(a: Tensor, b: Tensor, values: Tensor, blocks: Tensor, semiring: str, ignore_nan: bool, block_k: int) -> None:
    """Turns k-blocks [B, M, N] int32, in place, into winners: the first k of the block whose candidate is the value.

    The block of a NaN is not looked at: its first NaN is searched for in all of K. With ignore_nan, neither is that of
    the worst value; where every candidate was skipped, the winner becomes −1 and the value the semiring's zero.
    """
    (B, M, K), N = a.shape, b.shape[-1]
    config = REFINE.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    _refine_winners_kernel[(B * M * triton.cdiv(N, config["BLOCK"]),)](
        a, b, values, blocks, M, N, K, *a.stride(), *b.stride(),
        WORST=semiring_zero("min_plus" if semiring == "min_plus" else "max_plus", a.dtype),
        EMPTY=semiring_zero(semiring, a.dtype), PRODUCT=semiring == "max_times", IGNORE_NAN=ignore_nan,
        BLOCK_K=block_k, **config,
    )  # fmt: skip


def k_major(x: Tensor, least_rows: int) -> Tensor:
    """x [B, K, S] itself where its rows can be copied 16 bytes at a time, else a copy with rows padded to 16 elements.

    Below least_rows the last row is repeated, which changes no ⊕. The padding of a row holds anything: it reaches only
    outputs that are never stored. A batch of stride 0 is copied once.
    """
    B, K, S = x.shape
    multiples = (*x.stride()[:2], S)
    if least_rows <= K and x.stride(2) == 1 and x.data_ptr() % 16 == 0 and not any(i % ROW_MULTIPLE for i in multiples):
        return x
    if B > 1 and x.stride(0) == 0:
        return k_major(x[:1], least_rows).expand(B, -1, -1)
    rows = x.new_empty(B, max(K, least_rows), -(-S // ROW_MULTIPLE) * ROW_MULTIPLE)
    rows[:, :K, :S] = x
    rows[:, K:, :S] = x[:, -1:]
    return rows
