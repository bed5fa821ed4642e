"""The Triton kernels of the log semiring, forward and backward; __init__.py has the mathematics."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring_in_triton import combine
from ..runtime.grid import cdiv
from .definition import parts_of, scaled

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


def forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    (B, M, K), N = a.shape, b.shape[-1]
    c, (top, share) = a.new_empty(B, M, N), parts_of(a, b, keeps)
    config = FORWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * cdiv(M, config["BLOCK_M"]) * cdiv(N, config["BLOCK_N"]),)
    _log_matmul_fwd_kernel[grid](
        a, b, c, top, share, scaled(temperature, a), M, N, K, *a.stride(), *b.stride(),
        KEEPS=keeps, IGNORE_NAN=ignore_nan, **config,
    )  # fmt: skip
    return c, top, share


def backward(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    da, db, top, share = a.new_empty(0), b.new_empty(0), top.contiguous(), share.contiguous()
    if needs_a:
        da = _to_a(dc, top, share, a, b, temperature, ignore_nan)
    if needs_b:
        db = _to_a(dc.mT, top.mT, share.mT, b.mT, a.mT, temperature, ignore_nan).mT.contiguous()
    return da, db


def _to_a(dc: Tensor, top: Tensor, share: Tensor, a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """dA alone; dB is the dA of the transposed problem Cᵀ = Bᵀ Aᵀ. top and share have the same strides."""
    (B, M, K), N = a.shape, b.shape[-1]
    da = a.new_empty(B, M, K)
    config = BACKWARD.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)
    grid = (B * cdiv(M, config["BLOCK_M"]) * cdiv(K, config["BLOCK_K"]),)
    _log_matmul_bwd_kernel[grid](
        dc, top, share, a, b, da, scaled(temperature, a), M, N, K,
        *dc.stride(), *top.stride(), *a.stride(), *b.stride(), IGNORE_NAN=ignore_nan, **config,
    )  # fmt: skip
    return da
