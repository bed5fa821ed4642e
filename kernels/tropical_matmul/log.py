"""The log semiring: C[m, n] = T log Σ_k exp((A[m, k] + B[k, n]) / T), the smooth maximum.

Backward spreads dC[m, n] over all k by its softmax weight w[m, k, n] = exp((A[m, k] + B[k, n] − C[m, n]) / T):
dA[m, k] = Σ_n dC[m, n] w[m, k, n], dB[k, n] = Σ_m dC[m, n] w[m, k, n]: O(MNK) work, O(MN + MK + KN) memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import backend
from ..triton_or_stub import tl, triton
from ..vmap import join_batch, leave_batch
from .candidates import combine
from .definition import tropical_matmul_ref

_OFFERED = ("triton", "torch")

# ------------------------------------------------------------------------------------------------ GPU

FORWARD = Tuned(
    "log_matmul.triton",
    Space({"BLOCK_M": (16, 32, 64), "BLOCK_N": (16, 32, 64), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4},
    source=Path(__file__),
)
BACKWARD = Tuned(
    "log_matmul_backward.triton",
    Space({"BLOCK_M": (16, 32, 64), "BLOCK_K": (16, 32, 64), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK_M": 16, "BLOCK_K": 32, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _log_matmul_fwd_kernel(
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    c_ptr,  # [B, M, N], contiguous
    t_ptr,  # [1] the temperature, in the accumulator's dtype: a scalar argument would be fp32
    M, N, K,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    IGNORE_NAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    batch = (pid // (tiles_m * tiles_n)).to(tl.int64)
    offs_m = (pid // tiles_n % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    a_ptrs = a_ptr + batch * stride_ab + offs_m * stride_am
    b_ptrs = b_ptr + batch * stride_bb + offs_n * stride_bn

    dtype: tl.constexpr = a_ptr.dtype.element_ty
    accumulator: tl.constexpr = t_ptr.dtype.element_ty
    temperature = tl.load(t_ptr)
    top = tl.full([BLOCK_M, BLOCK_N], float("-inf"), accumulator)
    total = tl.zeros([BLOCK_M, BLOCK_N], accumulator)  # Σ exp((x − top) / T), rescaled as the top rises
    for _ in range(K):
        a = tl.load(a_ptrs, mask=mask_m, other=0)
        b = tl.load(b_ptrs, mask=mask_n, other=0)
        x = combine(a[:, None], b[None, :], dtype, False)
        if IGNORE_NAN:
            x = tl.where(x != x, float("-inf"), x)
        rise = x > top
        # x == top covers ∓∞ − ∓∞, which would be NaN; a NaN x stays one and spoils the total, as it must
        step = tl.where(x == top, 1.0, tl.exp((tl.where(rise, top, x) - tl.where(rise, x, top)) / temperature))
        step = tl.where(x == float("-inf"), 0.0, step)
        total = tl.where(rise, total * step + 1.0, total + step)
        top = tl.where(rise, x, top)
        a_ptrs += stride_ak
        b_ptrs += stride_bk
    c = tl.where(total == 0.0, float("-inf"), top + temperature * tl.log(tl.where(total == 0.0, 1.0, total)))
    offs = (batch * M + offs_m[:, None]) * N + offs_n[None, :]
    tl.store(c_ptr + offs, c.to(dtype), mask=mask_m[:, None] & mask_n[None, :])


@triton.jit
def _log_matmul_bwd_kernel(
    dc_ptr,  # [B, M, N]
    c_ptr,  # [B, M, N], contiguous or transposed
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    da_ptr,  # [B, M, K], contiguous
    t_ptr,  # [1] the temperature
    M, N, K,
    stride_gb, stride_gm, stride_gn,
    stride_cb, stride_cm, stride_cn,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    IGNORE_NAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K)
    batch = (pid // (tiles_m * tiles_k)).to(tl.int64)
    offs_m = (pid // tiles_k % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = (pid % tiles_k).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_m, mask_k = offs_m < M, offs_k < K
    mask = mask_m[:, None] & mask_k[None, :]
    a_ptrs = a_ptr + batch * stride_ab + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
    dc_ptrs = dc_ptr + batch * stride_gb + offs_m * stride_gm
    c_ptrs = c_ptr + batch * stride_cb + offs_m * stride_cm
    b_ptrs = b_ptr + batch * stride_bb + offs_k * stride_bk

    dtype: tl.constexpr = a_ptr.dtype.element_ty
    accumulator: tl.constexpr = t_ptr.dtype.element_ty
    temperature = tl.load(t_ptr)
    a = tl.load(a_ptrs, mask=mask, other=0)
    da = tl.zeros([BLOCK_M, BLOCK_K], accumulator)
    for _ in range(N):
        b = tl.load(b_ptrs, mask=mask_k, other=0)
        c = tl.load(c_ptrs, mask=mask_m, other=0).to(accumulator)[:, None]
        dc = tl.load(dc_ptrs, mask=mask_m, other=0).to(accumulator)[:, None]
        x = combine(a, b[None, :], dtype, False)
        if IGNORE_NAN:
            x = tl.where(x != x, float("-inf"), x)
        # where every candidate is −∞ there is nothing to route
        weight = tl.where(c == float("-inf"), 0.0, tl.exp((x - c) / temperature))
        da += dc * weight
        b_ptrs += stride_bn
        c_ptrs += stride_cn
        dc_ptrs += stride_gn
    tl.store(da_ptr + (batch * M + offs_m[:, None]) * K + offs_k[None, :], da.to(dtype), mask=mask)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _forward_by_triton(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    (B, M, K), N = a.shape, b.shape[-1]
    c = a.new_empty(B, M, N)
    t = torch.full((1,), temperature, dtype=_accumulator(a.dtype), device=a.device)
    config = FORWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    _log_matmul_fwd_kernel[grid](a, b, c, t, M, N, K, *a.stride(), *b.stride(), IGNORE_NAN=ignore_nan, **config)
    return c


def _backward_by_triton(dc: Tensor, c: Tensor, a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """dA alone; dB is the dA of the transposed problem Cᵀ = Bᵀ Aᵀ."""
    (B, M, K), N = a.shape, b.shape[-1]
    da = a.new_empty(B, M, K)
    t = torch.full((1,), temperature, dtype=_accumulator(a.dtype), device=a.device)
    config = BACKWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(K, config["BLOCK_K"]),)
    _log_matmul_bwd_kernel[grid](
        dc,
        c,
        a,
        b,
        da,
        t,
        M,
        N,
        K,
        *dc.stride(),
        *c.stride(),
        *a.stride(),
        *b.stride(),
        IGNORE_NAN=ignore_nan,
        **config,
    )
    return da


# ------------------------------------------------------------------------------------------------ torch


def _chunks(a: Tensor, b: Tensor) -> Iterator[slice]:
    """Rows of A, as many at a time as keep the candidates [B, rows, K, N] near 2 M elements."""
    (B, M, K), N = a.shape, b.shape[-1]
    rows = max(1, (1 << 21) // (B * K * N))
    return (slice(m, m + rows) for m in range(0, M, rows))


def _weights(c: Tensor, a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """w[m, k, n] of some rows, in the accumulator's dtype; 0 where C is −∞."""
    x = (a.unsqueeze(-1) + b.unsqueeze(-3)).to(_accumulator(a.dtype))
    if ignore_nan:
        x = x.masked_fill(x.isnan(), float("-inf"))
    c = c.to(x.dtype).unsqueeze(-2)
    return ((x - c) / temperature).masked_fill(c == float("-inf"), float("-inf")).exp()


def _backward_by_torch(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b):
    da = a.new_empty(a.shape if needs_a else (0,))
    db = torch.zeros(b.shape if needs_b else (0,), dtype=_accumulator(b.dtype), device=b.device)
    for rows in _chunks(a, b):
        dx = _weights(c[:, rows], a[:, rows], b, temperature, ignore_nan).mul_(dc[:, rows].unsqueeze(-2))
        if needs_a:
            da[:, rows] = dx.sum(-1).to(a.dtype)
        if needs_b:
            db += dx.sum(-3)
    return da, db.to(b.dtype)


# ------------------------------------------------------------------------------------------------ operators

torch.library.define(
    "tropigrad::log_matmul",
    "(Tensor a, Tensor b, float temperature, bool ignore_nan) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "tropigrad::log_matmul_backward",
    "(Tensor dc, Tensor c, Tensor a, Tensor b, float temperature, bool ignore_nan, bool needs_a, bool needs_b)"
    " -> (Tensor da, Tensor db)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("tropigrad::log_matmul", backend.DEVICES)
def _forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """a [B, M, K], b [B, K, N] -> C [B, M, N]."""
    (B, M, K), N = a.shape, b.shape[-1]
    if B * M * N * K == 0:
        return a.new_full((B, M, N), float("-inf"))
    if backend.choose("tropical_matmul(semiring='log')", a.device, _OFFERED) == "triton":
        return _forward_by_triton(a, b, temperature, ignore_nan)
    c = a.new_empty(B, M, N)
    nan = "ignore" if ignore_nan else "propagate"
    for rows in _chunks(a, b):
        c[:, rows], _ = tropical_matmul_ref(a[:, rows], b, semiring="log", temperature=temperature, nan=nan)
    return c


@torch.library.register_fake("tropigrad::log_matmul")
def _(a, b, temperature, ignore_nan):
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


@torch.library.impl("tropigrad::log_matmul_backward", backend.DEVICES)
def _backward(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b):
    """dc, c [B, M, N] -> da [B, M, K], db [B, K, N], or [0] where not needed."""
    if c.numel() * a.shape[-1] == 0:
        return a.new_zeros(a.shape if needs_a else (0,)), b.new_zeros(b.shape if needs_b else (0,))
    if backend.choose("tropical_matmul(semiring='log')", a.device, _OFFERED) == "torch":
        return _backward_by_torch(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b)
    da, db = a.new_empty(0), b.new_empty(0)
    if needs_a:
        da = _backward_by_triton(dc, c, a, b, temperature, ignore_nan)
    if needs_b:
        db = _backward_by_triton(dc.mT, c.mT, b.mT, a.mT, temperature, ignore_nan).mT.contiguous()
    return da, db


@torch.library.register_fake("tropigrad::log_matmul_backward")
def _(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b):
    return a.new_empty(a.shape if needs_a else (0,)), b.new_empty(b.shape if needs_b else (0,))


@torch.library.register_vmap("tropigrad::log_matmul")  # pyright: ignore[reportOptionalCall]
def _(info, dims, a, b, temperature, ignore_nan):
    a, b = join_batch((a, b), dims[:2], info.batch_size)
    c = torch.ops.tropigrad.log_matmul(a, b, temperature, ignore_nan)
    (c,), (dim,) = leave_batch((c,), (True,), info.batch_size)
    return c, dim


@torch.library.register_vmap("tropigrad::log_matmul_backward")  # pyright: ignore[reportOptionalCall]
def _(info, dims, dc, c, a, b, temperature, ignore_nan, needs_a, needs_b):
    tensors = join_batch((dc, c, a, b), dims[:4], info.batch_size)
    results = torch.ops.tropigrad.log_matmul_backward(*tensors, temperature, ignore_nan, needs_a, needs_b)
    return leave_batch(results, (needs_a, needs_b), info.batch_size)


# ------------------------------------------------------------------------------------------------ autograd


class _LogBackward(torch.autograd.Function):
    """(dC, C, A, B) -> (dA, dB); its own backward is plain torch, in chunks, and so can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b):
        return torch.ops.tropigrad.log_matmul_backward(dc, c, a, b, temperature, ignore_nan, needs_a, needs_b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.temperature, ctx.ignore_nan, ctx.needs_a, ctx.needs_b = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, dda, ddb):
        dc, c, a, b = ctx.saved_tensors
        if c.numel() * a.shape[-1] == 0:
            return (torch.zeros_like(dc), torch.zeros_like(c), torch.zeros_like(a), torch.zeros_like(b), *[None] * 4)
        to_dc, to_a, to_b = [], [], torch.zeros_like(b)
        for rows in _chunks(a, b):
            w = _weights(c[:, rows], a[:, rows], b, ctx.temperature, ctx.ignore_nan)  # [B, rows, K, N]
            slope = torch.zeros_like(w)
            if ctx.needs_a:
                slope = slope + dda[:, rows].unsqueeze(-1)
            if ctx.needs_b:
                slope = slope + ddb.unsqueeze(-3)
            to_dc.append((w * slope).sum(-2).to(dc.dtype))
            dx = w * slope * (dc[:, rows] / ctx.temperature).unsqueeze(-2)
            to_a.append(dx.sum(-1).to(a.dtype))
            to_b = to_b + dx.sum(-3).to(b.dtype)
        to_dc = torch.cat(to_dc, 1)
        to_c = -to_dc * dc / ctx.temperature
        return (to_dc, to_c, torch.cat(to_a, 1), to_b, *[None] * 4)


class _LogMatmul(torch.autograd.Function):
    """No jvp on purpose: forward-mode AD raises NotImplementedError instead of a silent zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b, temperature, ignore_nan):
        return torch.ops.tropigrad.log_matmul(a, b, temperature, ignore_nan)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, ctx.temperature, ctx.ignore_nan = inputs
        ctx.save_for_backward(a, b, output)

    @staticmethod
    def backward(ctx, dc):
        a, b, c = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[:2]
        da, db = _LogBackward.apply(dc, c, a, b, ctx.temperature, ctx.ignore_nan, needs_a, needs_b)
        return da if needs_a else None, db if needs_b else None, None, None


def log_matmul(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """a [B, M, K], b [B, K, N] -> C [B, M, N], differentiable in a and b any number of times."""
    return _LogMatmul.apply(a, b, temperature, ignore_nan)
