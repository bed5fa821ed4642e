"""One tile of the Gluon tropical product: C[m, n] = max_k A[m, k] ⊗ B[k, n] over a range of k, in registers.

Both operands lie K-major ([K, M] and [K, N]) and pass through shared memory by asynchronous copies, STAGES deep; per k
a thread reads a few vectors and does one ⊗ and one ⊕ per element: in fp32 two instructions per (m, n, k) and little
else, in fp16 and bf16 one, as two elements share an instruction.

⊕ is idempotent, and that makes the ragged K edge free: the second k-block starts early and repeats rows of the first,
so that every block is whole and no padding value exists that could win, tie or turn ∞ − ∞ into a NaN.

Integers saturate, for which there is no cheap instruction. Where the extremes of A and B show that nothing can
overflow, the plain sum is exact: a program reads them and takes one of two loops. In one, two int16 share an
instruction that adds and selects (compute capability 9.0 and later); int8 is int16 that always fits. In the other,
int16 is summed in int32 and saturated once per k-block, which is the same because saturation is monotone, and int32 is
saturated before each ⊕: A + B passes a bound exactly where B passes what A leaves to it.
"""

from __future__ import annotations

from typing import Any

import torch

from ...autotune import Config
from ...triton_or_stub import async_copy, gl, gluon, tl
from ..mathematics.semiring import semiring_zero

HALVES = ("torch.float16", "torch.bfloat16")


@gluon.jit
def _select_sum_of_pairs(x, a, b, MINIMUM: gl.constexpr):
    """x ⊕ (A + B) of int16, two to an instruction."""
    ADD: gl.constexpr = "{ .reg .b32 s; add.s16x2 s, $2, $3; "
    SELECT: gl.constexpr = "min.s16x2 $0, $1, s; }" if MINIMUM else "max.s16x2 $0, $1, s; }"
    return gl.inline_asm_elementwise(ADD + SELECT, "=r,r,r,r", [x, a, b], gl.int16, is_pure=True, pack=2)


@gluon.jit
def _raise_pairs(best, top, block, i, MINIMUM: gl.constexpr):
    """best ⊕ top of int16 and, where top is strictly better, i instead of block, two to an instruction."""
    SELECT: gl.constexpr = "min.s16x2 z, $2, $3; " if MINIMUM else "max.s16x2 z, $2, $3; "
    # a half that changed becomes 1, then a mask
    MASK: gl.constexpr = "xor.b32 s, z, $2; min.u16x2 s, s, one; mul.lo.u32 s, s, 0xffff; "
    return gl.inline_asm_elementwise(
        "{ .reg .b32 s, z, one; mov.b32 one, 0x00010001; " + SELECT + MASK
        + "lop3.b32 $1, s, $5, $4, 0xca; mov.b32 $0, z; }",
        "=r,=r,r,r,r,r", [best, top, block, i.to(gl.int16)], [gl.int16, gl.int16], is_pure=True, pack=2,
    )  # fmt: skip


@gluon.jit
def _candidates(a, b, PRODUCT: gl.constexpr, FITS: gl.constexpr):
    """A ⊗ B of a column of A and a row of B. Wide int16 is returned in int32, neither rounded nor saturated."""
    dtype: gl.constexpr = a.dtype
    if dtype == gl.int16:
        a, b = a.to(gl.int32), b.to(gl.int32)
        x = a * b if PRODUCT else a + b
    elif dtype == gl.int32:
        if FITS:
            x = a * b if PRODUCT else a + b
        elif PRODUCT:
            x = gl.minimum(gl.maximum(a.to(gl.int64) * b.to(gl.int64), -2147483648), 2147483647).to(gl.int32)
        else:
            x = a + gl.minimum(gl.maximum(b, -2147483648 - gl.minimum(a, 0)), 2147483647 - gl.maximum(a, 0))
    else:
        x = a * b if PRODUCT else a + b
    return x


@gluon.jit
def _select(x, y, MINIMUM: gl.constexpr, IGNORE_NAN: gl.constexpr):
    """x ⊕ y."""
    dtype: gl.constexpr = x.dtype
    if dtype.is_int():
        z = gl.minimum(x, y) if MINIMUM else gl.maximum(x, y)
    else:
        propagate: gl.constexpr = tl.PropagateNan.NONE if IGNORE_NAN else tl.PropagateNan.ALL
        z = (gl.minimum(x, y, propagate) if MINIMUM else gl.maximum(x, y, propagate)).to(dtype)
    return z


@gluon.jit
def _copy(smem, ptrs, mask, stride):
    """Starts the copy of a k-block. ptrs [1, ROWS, S] are of its first rows: one address a thread, whatever BLOCK_K.

    The block goes in one operation: between two that fill one buffer triton 3.6 puts a barrier.
    """
    PARTS: gl.constexpr = smem.shape[0] // ptrs.shape[1]
    part = gl.arange(0, PARTS, gl.SliceLayout(1, gl.SliceLayout(2, ptrs.type.layout)))[:, None, None]
    steps = part.to(gl.int64) * (ptrs.shape[1] * stride)
    async_copy.async_copy_global_to_shared(smem.reshape([PARTS, ptrs.shape[1], ptrs.shape[2]]), ptrs + steps, mask=mask)


@gluon.jit
def _k_blocks(
    a_smem, b_smem, a_ptrs, b_ptrs, mask_a, mask_b, stride_ak, stride_bk, first, end,
    WORST: gl.constexpr, MINIMUM: gl.constexpr, PRODUCT: gl.constexpr, WINNERS: gl.constexpr,
    IGNORE_NAN: gl.constexpr, FITS: gl.constexpr, out: gl.constexpr, ids: gl.constexpr, tile: gl.constexpr,
):  # fmt: skip
    """⊕ over the k-blocks [first, end) of one tile, and the k-block of each value. STAGES - 1 copies are under way."""
    dtype: gl.constexpr = a_smem.dtype
    STAGES: gl.constexpr = a_smem.shape[0]
    BLOCK_K: gl.constexpr = a_smem.shape[1]
    lane: gl.constexpr = gl.int32 if dtype == gl.int16 and not FITS else dtype
    counter: gl.constexpr = gl.int16 if lane == gl.int16 and ids == gl.int16 else gl.int32
    worst = gl.full((a_smem.shape[2], b_smem.shape[2]), WORST, lane, layout=tile)
    best = worst
    block = gl.full((a_smem.shape[2], b_smem.shape[2]), 0, counter, layout=tile)
    stage, free = 0, STAGES - 1
    for i in range(first, end):
        async_copy.wait_group(STAGES - 2)
        more = i + STAGES - 1 < end
        _copy(a_smem.index(free), a_ptrs, mask_a & more, stride_ak)
        _copy(b_smem.index(free), b_ptrs, mask_b & more, stride_bk)
        async_copy.commit_group()
        a_ptrs += stride_ak * BLOCK_K
        b_ptrs += stride_bk * BLOCK_K
        top = best
        for u in gl.static_range(BLOCK_K):
            a = a_smem.index(stage).slice(u, 1).permute([1, 0]).load(tile)  # [BLOCK_M, 1]
            b = b_smem.index(stage).slice(u, 1).load(tile)  # [1, BLOCK_N]
            # winners: top is the block's own ⊕, so that no copy of the value before the block is kept
            if lane == gl.int16:
                top = _select_sum_of_pairs(worst if WINNERS and u == 0 else top, a, b, MINIMUM)
            elif WINNERS and u == 0:
                top = _candidates(a, b, PRODUCT, FITS)
            else:
                top = _select(top, _candidates(a, b, PRODUCT, FITS), MINIMUM, IGNORE_NAN)
        if lane != dtype:
            top = gl.minimum(gl.maximum(top, -32768), 32767)
        if WINNERS and counter == gl.int16:
            best, block = _raise_pairs(best, top, block, i, MINIMUM)
        elif WINNERS:
            block = gl.where(top < best if MINIMUM else top > best, i, block)
            best = _select(best, top, MINIMUM, IGNORE_NAN)
        else:
            best = top
        free = stage
        stage = stage + 1 if stage < STAGES - 1 else 0
    async_copy.wait_group(0)
    return best.to(out), block.to(ids)


@gluon.jit
def _tile_at(pid, tiles_m, tiles_n, GROUP_M):
    """Row and column of a program's tile. Neighbours share rows of A and columns of B: GROUP_M down, then right."""
    group = pid // (GROUP_M * tiles_n) * GROUP_M
    height = min(tiles_m - group, GROUP_M)
    pid = pid % (GROUP_M * tiles_n)
    return group + pid % height, pid // height


@gluon.jit
def _share_of(split, SPLITS, K, BLOCK_K):
    """The k-blocks [first, end) of a split, the row where the first starts, and from there to the next.

    All blocks are whole. They are counted from the end of K, so that the second alone starts early.
    """
    blocks = (K + BLOCK_K - 1) // BLOCK_K
    share = (blocks + SPLITS - 1) // SPLITS
    first = split * share
    start = max(K - (blocks - first) * BLOCK_K, 0)
    return first, min(first + share, blocks), start, max(K - (blocks - first - 1) * BLOCK_K, 0) - start


@gluon.jit
def _tropical_matmul_gluon_kernel(
    a_ptr,  # [B, K, M], rows padded to a multiple of 16
    b_ptr,  # [B, K, N], likewise
    c_ptr,  # [B, SPLITS, M, N], contiguous
    block_ptr,  # [B, SPLITS, M, N] int16 or int32, contiguous: the k-block in which the value was first reached
    range_ptr,  # [4]: least and greatest of A, of B; read where FORM is "checked"
    M, N,
    K,  # at least BLOCK_K
    stride_ab, stride_ak,
    stride_bb, stride_bk,
    SPLITS,
    WORST: gl.constexpr,  # what every candidate beats or equals
    MINIMUM: gl.constexpr, PRODUCT: gl.constexpr, WINNERS: gl.constexpr, IGNORE_NAN: gl.constexpr,
    FORM: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    GROUP_M: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = a_ptr.dtype.element_ty
    VEC: gl.constexpr = 128 // dtype.primitive_bitwidth  # elements of one 16-byte access
    # up to VEC x VEC per thread, repeated over the tile: neighbours in a warp read neighbouring 16 bytes
    WARPS_N: gl.constexpr = min(BLOCK_N // (8 * VEC), 2)
    WARPS_M: gl.constexpr = gl.num_warps() // WARPS_N
    tile: gl.constexpr = gl.BlockedLayout([min(VEC, BLOCK_M // (4 * WARPS_M)), VEC], [4, 8], [WARPS_M, WARPS_N], [1, 0])
    ACROSS_M: gl.constexpr = min(32, BLOCK_M // VEC)
    ACROSS_N: gl.constexpr = min(32, BLOCK_N // VEC)
    warps: gl.constexpr = [1, gl.num_warps(), 1]
    copy_a: gl.constexpr = gl.BlockedLayout([1, 1, VEC], [1, 32 // ACROSS_M, ACROSS_M], warps, [2, 1, 0])
    copy_b: gl.constexpr = gl.BlockedLayout([1, 1, VEC], [1, 32 // ACROSS_N, ACROSS_N], warps, [2, 1, 0])
    rows: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])

    tiles_m, tiles_n = gl.cdiv(M, BLOCK_M), gl.cdiv(N, BLOCK_N)
    part = gl.program_id(0) // (tiles_m * tiles_n)
    pid_m, pid_n = _tile_at(gl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
    first_m, first_n = pid_m * BLOCK_M, pid_n * BLOCK_N
    batch = (part // SPLITS).to(gl.int64)
    first, end, start, second = _share_of(part % SPLITS, SPLITS, K, BLOCK_K)
    start, second = start.to(gl.int64), second.to(gl.int64)

    ROWS_A: gl.constexpr = min(32 // ACROSS_M * gl.num_warps(), BLOCK_K)
    ROWS_B: gl.constexpr = min(32 // ACROSS_N * gl.num_warps(), BLOCK_K)
    ka = gl.arange(0, ROWS_A, gl.SliceLayout(0, gl.SliceLayout(2, copy_a)))[None, :, None]
    kb = gl.arange(0, ROWS_B, gl.SliceLayout(0, gl.SliceLayout(2, copy_b)))[None, :, None]
    ma = gl.arange(0, BLOCK_M, gl.SliceLayout(0, gl.SliceLayout(1, copy_a)))[None, None, :]
    nb = gl.arange(0, BLOCK_N, gl.SliceLayout(0, gl.SliceLayout(1, copy_b)))[None, None, :]
    stride_ak, stride_bk = stride_ak.to(gl.int64), stride_bk.to(gl.int64)
    a_ptrs = a_ptr + batch * stride_ab + first_m + (start + ka) * stride_ak + ma
    b_ptrs = b_ptr + batch * stride_bb + first_n + (start + kb) * stride_bk + nb
    # multiples of 16, visibly so to the compiler: a mask that splits no 16-byte copy
    mask_a = first_m + ma < gl.cdiv(M, 16) * 16
    mask_b = first_n + nb < gl.cdiv(N, 16) * 16
    a_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, BLOCK_M], rows)
    b_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, BLOCK_N], rows)
    for s in gl.static_range(STAGES - 1):
        _copy(a_smem.index(s), a_ptrs, mask_a & (first + s < end), stride_ak)
        _copy(b_smem.index(s), b_ptrs, mask_b & (first + s < end), stride_bk)
        async_copy.commit_group()
        a_ptrs += stride_ak * (second if s == 0 else BLOCK_K)
        b_ptrs += stride_bk * (second if s == 0 else BLOCK_K)

    out: gl.constexpr = c_ptr.dtype.element_ty
    ids: gl.constexpr = block_ptr.dtype.element_ty
    if FORM == "checked":
        a_low, a_high = gl.load(range_ptr).to(gl.int64), gl.load(range_ptr + 1).to(gl.int64)
        b_low, b_high = gl.load(range_ptr + 2).to(gl.int64), gl.load(range_ptr + 3).to(gl.int64)
        if PRODUCT:
            low = min(min(a_low * b_low, a_low * b_high), min(a_high * b_low, a_high * b_high))
            high = max(max(a_low * b_low, a_low * b_high), max(a_high * b_low, a_high * b_high))
        else:
            low, high = a_low + b_low, a_high + b_high
        LIMIT: gl.constexpr = 1 << (dtype.primitive_bitwidth - 1)
        if (low >= -LIMIT) & (high < LIMIT):
            best, block = _k_blocks(
                a_smem, b_smem, a_ptrs, b_ptrs, mask_a, mask_b, stride_ak, stride_bk, first, end,
                WORST, MINIMUM, PRODUCT, WINNERS, IGNORE_NAN, True, out, ids, tile,
            )  # fmt: skip
        else:
            best, block = _k_blocks(
                a_smem, b_smem, a_ptrs, b_ptrs, mask_a, mask_b, stride_ak, stride_bk, first, end,
                WORST, MINIMUM, PRODUCT, WINNERS, IGNORE_NAN, False, out, ids, tile,
            )  # fmt: skip
    else:
        best, block = _k_blocks(
            a_smem, b_smem, a_ptrs, b_ptrs, mask_a, mask_b, stride_ak, stride_bk, first, end,
            WORST, MINIMUM, PRODUCT, WINNERS, IGNORE_NAN, FORM == "fits", out, ids, tile,
        )  # fmt: skip

    offs_m = first_m + gl.arange(0, BLOCK_M, gl.SliceLayout(1, tile))
    offs_n = first_n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, tile))
    offs = (part.to(gl.int64) * M + offs_m[:, None]) * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    gl.store(c_ptr + offs, best, mask=mask)
    if WINNERS:
        gl.store(block_ptr + offs, block, mask=mask)


def constants(
    config: Config, dtype: torch.dtype, semiring: str, winners: bool, ignore_nan: bool, capability: tuple[int, int]
) -> dict[str, Any]:
    """The kernel's compile-time constants for a config and operands of this dtype."""
    form = form_of(dtype, semiring, capability)
    # a winner takes three registers, its value, its k-block and the block's own ⊕: half the outputs, or they spill
    outputs = config["OUTPUTS"] // (2 if winners and str(dtype) not in HALVES else 1)
    # Three blocks of 128 threads on a multiprocessor where that spills nothing; without a bound ptxas may spill a word
    # to fit more. These need more registers: products of int32, which saturate in 64 bits; winners of bf16 before 9.0,
    # which compares them in fp32; those of fp32 from 10.0 on, which selects among three; large tiles other than the
    # default.
    wide = (
        (dtype == torch.int32 and semiring == "max_times")
        or (winners and dtype == torch.bfloat16 and capability < (9, 0))
        or (winners and dtype == torch.float32 and capability >= (10, 0))
        or (outputs == 64 and (config["BLOCK_N"], config["BLOCK_K"]) != (128, 32))
    )
    return {
        "WORST": semiring_zero("min_plus" if semiring == "min_plus" else "max_plus", lanes(dtype)),
        "MINIMUM": semiring == "min_plus",
        "PRODUCT": semiring == "max_times",
        "WINNERS": winners,
        "IGNORE_NAN": ignore_nan,
        "FORM": form,
        "BLOCK_M": outputs * 32 * config["num_warps"] // config["BLOCK_N"],
        **{name: config[name] for name in ("BLOCK_N", "BLOCK_K", "STAGES", "GROUP_M", "num_warps")},
        "maxnreg": 168 if config["num_warps"] == 4 and not wide else 255,
    }


def lanes(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the operands are copied in."""
    return torch.int16 if dtype == torch.int8 else dtype


def form_of(dtype: torch.dtype, semiring: str, capability: tuple[int, int]) -> str:
    """How the main loop combines: "fits": plainly; "wide": integers with room; "checked": as the extremes allow."""
    if dtype.is_floating_point:
        return "fits"
    if dtype == torch.int32:
        return "checked"
    if semiring == "max_times" or capability < (9, 0):  # int16 goes in pairs only through the sums of 9.0 and later
        return "wide"
    return "fits" if dtype == torch.int8 else "checked"
