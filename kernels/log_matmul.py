"""The log semiring: C[m, n] = T log Σ_k exp((A[m, k] + B[k, n]) / T), the smooth maximum.

Backward spreads dC[m, n] over all k by its softmax weight w[m, k, n] = exp((A[m, k] + B[k, n] − C[m, n]) / T):
dA[m, k] = Σ_n dC[m, n] w[m, k, n], dB[k, n] = Σ_m dC[m, n] w[m, k, n]: O(MNK) work, O(MN + MK + KN) memory.

C is rounded, and exp((x − C) / T) is then off by a factor that grows with C's last bit over T. So backward reads two
parts of C instead: the largest candidate, top, which is exact, and share = 1 / Σ exp((x − top) / T), the weight of a
candidate that equals top. Then w = share · exp((x − top) / T), and Σ_k w = 1 but for its own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..autotune import Space, Tuned
from ..triton_or_stub import tl, triton
from .mathematics.semiring import scale_of_differences
from .mathematics.semiring_in_triton import combine
from .runtime.dispatch import Gradient, operator
from .runtime.grid import cdiv
from .runtime.implementations import Implementations
from .runtime.vmap import inner_batch, join_batch, leave_batch

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
    top_ptr, share_ptr,  # the same, if KEEPS
    t_ptr,  # [2] T and 1, scaled, in the accumulator's dtype: a scalar argument would be fp32
    M, N, K,
    stride_ab, stride_am, stride_ak,
    stride_bb, stride_bk, stride_bn,
    KEEPS: tl.constexpr, IGNORE_NAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
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
    temperature, scale = tl.load(t_ptr), tl.load(t_ptr + 1)
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
        difference = tl.where(rise, top, x) * scale - tl.where(rise, x, top) * scale
        step = tl.where(x == top, 1.0, tl.exp(difference / temperature))
        total = tl.where(rise, total * step + 1.0, total + step)
        top = tl.where(rise, x, top)
        a_ptrs += stride_ak
        b_ptrs += stride_bk
    offs, mask = (batch * M + offs_m[:, None]) * N + offs_n[None, :], mask_m[:, None] & mask_n[None, :]
    tl.store(c_ptr + offs, ((top * scale + temperature * tl.log(total)) / scale).to(dtype), mask=mask)
    if KEEPS:
        # where every candidate is −∞ there is nothing to route
        share = tl.where((top == float("-inf")) & (total == total), 0.0, 1.0 / total)
        tl.store(top_ptr + offs, top.to(dtype), mask=mask)
        tl.store(share_ptr + offs, share, mask=mask)


@triton.jit
def _log_matmul_bwd_kernel(
    dc_ptr,  # [B, M, N]
    top_ptr, share_ptr,  # [B, M, N], both contiguous or transposed
    a_ptr,  # [B, M, K]
    b_ptr,  # [B, K, N]
    da_ptr,  # [B, M, K], contiguous
    t_ptr,  # [2] as of the forward
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
    offs_c = batch * stride_cb + offs_m * stride_cm
    b_ptrs = b_ptr + batch * stride_bb + offs_k * stride_bk

    dtype: tl.constexpr = a_ptr.dtype.element_ty
    accumulator: tl.constexpr = t_ptr.dtype.element_ty
    temperature, scale = tl.load(t_ptr), tl.load(t_ptr + 1)
    a = tl.load(a_ptrs, mask=mask, other=0)
    da = tl.zeros([BLOCK_M, BLOCK_K], accumulator)
    for _ in range(N):
        b = tl.load(b_ptrs, mask=mask_k, other=0)
        top = tl.load(top_ptr + offs_c, mask=mask_m, other=0).to(accumulator)[:, None]
        share = tl.load(share_ptr + offs_c, mask=mask_m, other=0)[:, None]
        dc = tl.load(dc_ptrs, mask=mask_m, other=0).to(accumulator)[:, None]
        x = combine(a, b[None, :], dtype, False)
        if IGNORE_NAN:
            x = tl.where(x != x, float("-inf"), x)
        weight = share * tl.where(x == top, 1.0, tl.exp((x * scale - top * scale) / temperature))
        da += dc * weight
        b_ptrs += stride_bn
        offs_c += stride_cn
        dc_ptrs += stride_gn
    tl.store(da_ptr + (batch * M + offs_m[:, None]) * K + offs_k[None, :], da.to(dtype), mask=mask)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _held(temperature: float, dtype: torch.dtype) -> float:
    """T, or the accumulator's smallest normal number, below which differences of its numbers do not tell it apart."""
    return max(temperature, torch.finfo(_accumulator(dtype)).tiny)


def _scaled(temperature: float, like: Tensor) -> Tensor:
    """The temperature as the kernels take it: T and 1, scaled."""
    scale = scale_of_differences(temperature)
    scaled = torch.full((2,), scale, dtype=_accumulator(like.dtype), device=like.device)
    scaled[:1].fill_(_held(temperature, like.dtype) * scale)  # no copy from the host: a CUDA graph can hold none
    return scaled


def _parts_of(a: Tensor, b: Tensor, keeps: bool) -> tuple[Tensor, Tensor]:
    """Room for top and share [B, M, N], or [0] where nobody keeps them."""
    shape = (a.shape[0], a.shape[1], b.shape[2]) if keeps else (0,)
    return a.new_empty(shape), a.new_empty(shape, dtype=_accumulator(a.dtype))


def _forward_by_triton(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    (B, M, K), N = a.shape, b.shape[-1]
    c, (top, share) = a.new_empty(B, M, N), _parts_of(a, b, keeps)
    config = FORWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * cdiv(M, config["BLOCK_M"]) * cdiv(N, config["BLOCK_N"]),)
    _log_matmul_fwd_kernel[grid](
        a, b, c, top, share, _scaled(temperature, a), M, N, K, *a.stride(), *b.stride(),
        KEEPS=keeps, IGNORE_NAN=ignore_nan, **config,
    )  # fmt: skip
    return c, top, share


def _backward_by_triton(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    da, db, top, share = a.new_empty(0), b.new_empty(0), top.contiguous(), share.contiguous()
    if needs_a:
        da = _to_a_by_triton(dc, top, share, a, b, temperature, ignore_nan)
    if needs_b:
        db = _to_a_by_triton(dc.mT, top.mT, share.mT, b.mT, a.mT, temperature, ignore_nan).mT.contiguous()
    return da, db


def _to_a_by_triton(
    dc: Tensor, top: Tensor, share: Tensor, a: Tensor, b: Tensor, temperature: float, ignore_nan: bool
) -> Tensor:
    """dA alone; dB is the dA of the transposed problem Cᵀ = Bᵀ Aᵀ. top and share have the same strides."""
    (B, M, K), N = a.shape, b.shape[-1]
    da = a.new_empty(B, M, K)
    config = BACKWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * cdiv(M, config["BLOCK_M"]) * cdiv(K, config["BLOCK_K"]),)
    _log_matmul_bwd_kernel[grid](
        dc, top, share, a, b, da, _scaled(temperature, a), M, N, K,
        *dc.stride(), *top.stride(), *a.stride(), *b.stride(), IGNORE_NAN=ignore_nan, **config,
    )  # fmt: skip
    return da


# ------------------------------------------------------------------------------------------------ torch


def _chunks(a: Tensor, b: Tensor) -> Iterator[slice]:
    """Rows of A, as many at a time as keep the candidates [B, rows, K, N] near 2 M elements."""
    (B, M, K), N = a.shape, b.shape[-1]
    rows = max(1, (1 << 21) // (B * K * N))
    return (slice(m, m + rows) for m in range(0, M, rows))


def _candidates(a: Tensor, b: Tensor, ignore_nan: bool) -> Tensor:
    """[B, rows, K, N] of some rows, rounded to the dtype, in the accumulator's."""
    x = (a.unsqueeze(-1) + b.unsqueeze(-3)).to(_accumulator(a.dtype))
    return x.masked_fill(x.isnan(), float("-inf")) if ignore_nan else x


def _over_temperature(x: Tensor, top: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """(x − top) / T; NaN where both are the same infinity."""
    scale = scale_of_differences(temperature)
    return (x * scale - top * scale if scale != 1 else x - top) / (_held(temperature, dtype) * scale)


def _exponentials(x: Tensor, top: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """exp((x − top) / T), 1 where x is top, infinite ones too."""
    return _over_temperature(x, top, temperature, dtype).exp_().masked_fill_(x == top, 1)


def _forward_by_torch(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    c, (top, share) = a.new_empty(a.shape[0], a.shape[1], b.shape[2]), _parts_of(a, b, keeps)
    scale = scale_of_differences(temperature)
    held = _held(temperature, a.dtype) * scale
    for rows in _chunks(a, b):
        x = _candidates(a[:, rows], b, ignore_nan)
        highest = x.amax(-2)
        total = _exponentials(x, highest.unsqueeze(-2), temperature, a.dtype).sum(-2)
        c[:, rows] = (highest * scale + held * total.log()) / scale
        if keeps:
            top[:, rows] = highest
            share[:, rows] = total.reciprocal().masked_fill_(highest == float("-inf"), 0)  # there is nothing to route
    return c, top, share


def _backward_by_torch(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    da = a.new_empty(a.shape if needs_a else (0,))
    db = torch.zeros(b.shape if needs_b else (0,), dtype=_accumulator(b.dtype), device=b.device)
    for rows in _chunks(a, b):
        x = _candidates(a[:, rows], b, ignore_nan)
        w = _exponentials(x, top[:, rows].to(x.dtype).unsqueeze(-2), temperature, a.dtype)
        dx = w.mul_((dc[:, rows] * share[:, rows]).unsqueeze(-2))
        if needs_a:
            da[:, rows] = dx.sum(-1).to(a.dtype)
        if needs_b:
            db += dx.sum(-3)
    return da, db.to(b.dtype)


def _weights(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """w[m, k, n] of some rows, in the accumulator's dtype, made of operations that torch differentiates."""
    x = _candidates(a, b, ignore_nan)
    top = x.detach().amax(-2, keepdim=True)
    infinite = top.isinf()
    e = _over_temperature(x, top, temperature, a.dtype).masked_fill(infinite, 0).exp()
    e = e.masked_fill(infinite & (x != top), 0)
    return e * e.sum(-2, keepdim=True).reciprocal().masked_fill(top == float("-inf"), 0)


# ------------------------------------------------------------------------------------------------ the product

_NAME = "tropical_matmul(semiring='log')"
_FORWARDS = Implementations(_NAME, triton=_forward_by_triton, torch=_forward_by_torch)
_BACKWARDS = Implementations(_NAME, triton=_backward_by_triton, torch=_backward_by_torch)


def _forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    """a [B, M, K], b [B, K, N] -> C, and for the backward top and share, [B, M, N] each; these [0] where not kept."""
    (B, M, K), N = a.shape, b.shape[-1]
    if B * M * N * K == 0:
        top, share = _parts_of(a, b, keeps)
        return a.new_full((B, M, N), float("-inf")), top.fill_(float("-inf")), share.zero_()
    return _FORWARDS.of(a)(a, b, temperature, ignore_nan, keeps)


def _fake(a, b, temperature, ignore_nan, keeps):
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2]), *_parts_of(a, b, keeps)


def _mapped(info, dims, a, b, temperature, ignore_nan, keeps):
    inner = inner_batch(a, dims[0])
    a, b = join_batch((a, b), dims[:2], info.batch_size)
    results = _LOG_MATMUL.dispatched(a, b, temperature, ignore_nan, keeps)
    return leave_batch(results, (True, keeps, keeps), info.batch_size, inner)


def _gradient(grads, saved, sizes, needs, temperature, ignore_nan, keeps) -> list[Tensor]:
    """dC -> dA and dB, as far as they are needed, by C's parts."""
    (dc,), (a, b, top, share) = grads, saved
    gradients = _LOG_BACKWARD(dc, top, share, a, b, temperature, ignore_nan, *needs)
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


# ------------------------------------------------------------------------------------------------ its gradient


def _backward(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    """dc, top, share [B, M, N] -> da [B, M, K], db [B, K, N], or [0] where not needed."""
    if dc.numel() * a.shape[-1] == 0:
        return a.new_zeros(a.shape if needs_a else (0,)), b.new_zeros(b.shape if needs_b else (0,))
    return _BACKWARDS.of(a)(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b)


def _backward_fake(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    return a.new_empty(a.shape if needs_a else (0,)), b.new_empty(b.shape if needs_b else (0,))


def _backward_mapped(info, dims, dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    inner = inner_batch(dc, dims[0])
    tensors = join_batch((dc, top, share, a, b), dims[:5], info.batch_size)
    results = _LOG_BACKWARD.dispatched(*tensors, temperature, ignore_nan, needs_a, needs_b)
    return leave_batch(results, (needs_a, needs_b), info.batch_size, inner)


def _second_gradient(grads, saved, sizes, needs, temperature, ignore_nan, needs_a, needs_b) -> list[Tensor]:
    """(ddA, ddB) -> what flows to dC, A and B: plain torch, in chunks, of A and B alone: differentiable again."""
    (dda, ddb), (dc, a, b) = grads, saved
    if dc.numel() * a.shape[-1] == 0:
        return [torch.zeros_like(x) for x, needed in zip((dc, dc, dc, a, b), needs, strict=True) if needed]
    wide = _accumulator(a.dtype)
    to_dc, to_a, to_b = [], [], torch.zeros_like(b, dtype=wide)
    for rows in _chunks(a, b):
        w = _weights(_rows(a, rows), b, temperature, ignore_nan)  # [B, rows, K, N]
        slope = torch.zeros_like(w)
        if needs_a and dda is not None:
            slope = slope + _rows(dda, rows).unsqueeze(-1)
        if needs_b and ddb is not None:
            slope = slope + ddb.unsqueeze(-3)
        mean = (w * slope).sum(-2)
        # ∂w_k/∂x_j = w_k (δ_kj − w_j) / T
        dx = w * (slope - mean.unsqueeze(-2)) * (_rows(dc, rows).to(wide) / temperature).unsqueeze(-2)
        to_dc.append(mean)
        to_a.append(dx.sum(-1))
        to_b = to_b + dx.sum(-3)
    to_dc, to_a = (torch.cat(x, 1) if len(x) > 1 else x[0] for x in (to_dc, to_a))
    nothing = torch.zeros_like(dc)  # flows to C's parts, which A and B give anew
    gradients = to_dc.to(dc.dtype), nothing, nothing, to_a.to(a.dtype), to_b.to(b.dtype)
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _rows(x: Tensor, rows: slice) -> Tensor:
    """Not a slice where it would be all of x: torch.autograd's vectorized Hessians know no such view."""
    return x if rows.start == 0 and rows.stop >= x.shape[1] else x[:, rows]


# ------------------------------------------------------------------------------------------------ operators

_LOG_BACKWARD = operator(
    "log_matmul_backward(Tensor dc, Tensor top, Tensor share, Tensor a, Tensor b, float temperature, bool ignore_nan, "
    "bool needs_a, bool needs_b) -> (Tensor da, Tensor db)",
    _backward,
    fake=_backward_fake,
    vmap=_backward_mapped,
    gradient=Gradient(_second_gradient, inputs=(0, 3, 4)),
)
_LOG_MATMUL = operator(
    "log_matmul(Tensor a, Tensor b, float temperature, bool ignore_nan, bool keeps) "
    "-> (Tensor c, Tensor top, Tensor share)",
    _forward,
    fake=_fake,
    vmap=_mapped,
    gradient=Gradient(_gradient, inputs=(0, 1), outputs=(1, 2), detached=(1, 2), flag=4),
)


@register_flop_formula(torch.ops.tropigrad.log_matmul)
def _flops(a: Sequence[int], b: Sequence[int], *options, **named) -> int:
    """Two for each step, as of the other semirings; exponentials are not counted, as torch counts none."""
    return 2 * math.prod(a) * b[-1]


@register_flop_formula(torch.ops.tropigrad.log_matmul_backward)
def _backward_flops(dc, top, share, a: Sequence[int], b: Sequence[int], *options, **named) -> int:
    """The forward's count, for each gradient that is asked for."""
    return sum(options[-2:]) * 2 * math.prod(a) * b[-1]


def log_matmul(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """a [B, M, K], b [B, K, N] -> C [B, M, N], differentiable in a and b any number of times."""
    return _LOG_MATMUL(a, b, temperature, ignore_nan, False)[0]
