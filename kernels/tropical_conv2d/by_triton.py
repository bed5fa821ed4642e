"""The portable Triton kernels of the tropical convolution: any GPU that Triton knows, and its interpreter on the CPU.

One program makes BLOCK_O filters × BLOCK_P outputs of one image, tap after tap, and keeps the winner by a compare and a
select. The scatter adds atomically, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring import semiring_zero, value_dtype, winner_dtype
from ..mathematics.semiring_in_triton import combine
from ..runtime.grid import cdiv
from ..runtime.remembered import remembered
from .definition import Window

FORWARD = Tuned(
    "tropical_conv2d.triton",
    Space({"BLOCK_O": (1, 4, 8, 16, 32), "BLOCK_P": (64, 128, 256), "num_warps": (2, 4, 8)}),
    default=lambda problem: {
        "BLOCK_O": next(block for block in (1, 4, 8, 16) if block >= min(int(problem["filters"]), 16)),
        "BLOCK_P": 128,
        "num_warps": 4,
    },
    source=Path(__file__),
)
SCATTER = Tuned(
    "tropical_conv2d_scatter.triton",
    Space({"BLOCK": (128, 256, 512, 1024), "num_warps": (4, 8)}),
    default=lambda problem: {"BLOCK": 256, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _tropical_conv2d_fwd_kernel(
    x_ptr,  # [B, groups · C, H, W]
    w_ptr,  # [groups · F, C, KH, KW]
    y_ptr,  # [B, groups · F, P, Q], contiguous
    winner_ptr,  # likewise
    groups, C, F, H, W, P, Q,
    stride_xb, stride_xc, stride_xh, stride_xw,
    stride_wo, stride_wc, stride_wh, stride_ww,
    SH: tl.constexpr, SW: tl.constexpr,  # stride
    PH: tl.constexpr, PW: tl.constexpr,  # padding
    DH: tl.constexpr, DW: tl.constexpr,  # dilation
    KH, KW: tl.constexpr,  # columns alone are unrolled: with the rows, masks were spilled
    ZERO: tl.constexpr,  # the semiring's: what every candidate beats or equals
    MINIMUM: tl.constexpr, WINNERS: tl.constexpr, IGNORE_NAN: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_p, tiles_o = tl.cdiv(P * Q, BLOCK_P), tl.cdiv(F, BLOCK_O)
    tile_p, tile_o = pid % tiles_p, pid // tiles_p % tiles_o
    image = pid // (tiles_p * tiles_o)  # of a group
    batch, group = (image // groups).to(tl.int64), (image % groups).to(tl.int64)
    offs_p = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_o = tile_o.to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_p, mask_o = offs_p < P * Q, offs_o < F
    # in 32 bits, as both are of the padded image; only what a stride multiplies is wider
    row0, column0 = offs_p // Q * SH - PH, offs_p % Q * SW - PW
    x_ptr += batch * stride_xb + group * C * stride_xc
    # a filter past the end repeats the last: one mask a filter would not fit the predicates
    w_ptrs = w_ptr + (group * F + tl.minimum(offs_o, F - 1)) * stride_wo

    dtype: tl.constexpr = x_ptr.dtype.element_ty
    narrow: tl.constexpr = dtype == tl.float16 or dtype == tl.bfloat16
    short: tl.constexpr = dtype == tl.int16 or dtype == tl.int8
    best = tl.full([BLOCK_O, BLOCK_P], ZERO, tl.float32 if narrow else (tl.int32 if short else dtype))
    winner = tl.full([BLOCK_O, BLOCK_P], -1, tl.int32)
    k = 0
    for _ in range(C):
        for i in range(KH):
            row = row0 + i * DH
            inside_rows = mask_p & (row >= 0) & (row < H)
            x_ptrs = x_ptr + row.to(tl.int64) * stride_xh
            tap_ptrs = w_ptrs
            for j in range(KW):
                column = column0 + j * DW
                inside = inside_rows & (column >= 0) & (column < W)
                x = tl.load(x_ptrs + column.to(tl.int64) * stride_xw, mask=inside, other=0)
                w = tl.load(tap_ptrs)
                tap_ptrs += stride_ww
                if short:
                    z = w[:, None].to(tl.int32) + x[None, :].to(tl.int32)
                    if WINNERS and dtype == tl.int16:  # values alone may be clamped at the end
                        z = tl.minimum(tl.maximum(z, -32768), 32767)
                else:
                    z = combine(w[:, None], x[None, :], dtype, False)
                if WINNERS or IGNORE_NAN:
                    if IGNORE_NAN:  # strictly better, so an earlier k keeps a tie; or the first candidate
                        wins = (z < best if MINIMUM else z > best) | ((winner < 0) & (z == z))
                    else:  # likewise, and the first NaN enters and nothing leaves it
                        wins = ~(z >= best if MINIMUM else z <= best) & (best == best) | (winner < 0)
                    wins = wins & inside[None, :]
                    best = tl.where(wins, z, best)
                    winner = tl.where(wins, k, winner)
                else:
                    z = tl.where(inside[None, :], z, ZERO)
                    if MINIMUM:
                        best = tl.minimum(best, z, propagate_nan=tl.PropagateNan.ALL)
                    else:
                        best = tl.maximum(best, z, propagate_nan=tl.PropagateNan.ALL)
                k += 1
            w_ptrs += stride_wh
        x_ptr += stride_xc
        w_ptrs += stride_wc - KH * stride_wh

    if dtype == tl.int16:
        best = tl.minimum(tl.maximum(best, -32768), 32767)
    offs = ((batch * groups + group) * F + offs_o[:, None]) * (P * Q) + offs_p[None, :]
    mask = mask_o[:, None] & mask_p[None, :]
    tl.store(y_ptr + offs, best.to(y_ptr.dtype.element_ty), mask=mask)
    if WINNERS:
        tl.store(winner_ptr + offs, winner.to(winner_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tropical_conv2d_scatter_kernel(
    dy_ptr,  # [B, groups · F, P, Q]
    winner_ptr,  # likewise, contiguous
    dx_ptr,  # [B, groups · C, H, W], contiguous, zero on entry, fp32 for 16-bit gradients
    dw_ptr,  # [groups · F, C, KH, KW], likewise
    groups, C, F, H, W, P, Q,
    stride_yb, stride_yo, stride_yp, stride_yq,
    SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program routes a piece of one filter's outputs: dividing by sizes is for scalars, but for p and q
    pid = tl.program_id(0)
    pieces = tl.cdiv(P * Q, BLOCK)
    filters = groups * F
    line = (pid // pieces).to(tl.int64)
    batch, o = line // filters, line % filters
    n = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(winner_ptr + line * (P * Q) + n, mask=n < P * Q, other=-1).to(tl.int32)
    c, i, j = (k // (KH * KW)).to(tl.int64), k // KW % KH, k % KW
    row = n // Q * SH - PH + i * DH
    column = n % Q * SW - PW + j * DW
    # nothing is ever written out of bounds
    won = (k >= 0) & (c < C) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    accumulator: tl.constexpr = dx_ptr.dtype.element_ty
    dy_ptrs = dy_ptr + batch * stride_yb + o * stride_yo + n // Q * stride_yp + n % Q * stride_yq
    dy = tl.load(dy_ptrs, mask=won, other=0).to(accumulator)
    if NEEDS_X:
        channel = (batch * groups + o // F) * C + c
        tl.atomic_add(dx_ptr + (channel * H + row) * W + column, dy, mask=won)
    if NEEDS_W:
        tl.atomic_add(dw_ptr + o * C * (KH * KW) + k, dy, mask=won)


def _window(window: Window, taps: tuple[int, int]) -> dict[str, int]:
    """The constants of both kernels."""
    pairs = zip(("S", "P", "D", "K"), (*window, taps), strict=True)
    return {letter + axis: size for letter, pair in pairs for axis, size in zip("HW", pair, strict=True)}


def forward(
    x: Tensor, weight: Tensor, window: Window, groups: int, semiring: str, winners: bool, ignore_nan: bool
) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W], weight [O, C / groups, kh, kw] -> values and winners [B, O, P, Q]; winners [0] unasked.

    No size is 0.
    """
    grid, shape, dtypes, sizes, constants = _launch(
        x.shape, weight.shape, x.dtype, x.device, *map(tuple, window), groups, semiring, winners, ignore_nan
    )
    values = x.new_empty(shape, dtype=dtypes[0])
    won = torch.empty(shape if winners else (0,), dtype=dtypes[1], device=x.device)
    _tropical_conv2d_fwd_kernel[grid](x, weight, values, won, *sizes, *x.stride(), *weight.stride(), **constants)
    return values, won


@remembered
def _launch(
    x_shape: torch.Size, weight_shape: torch.Size, dtype: torch.dtype, device: torch.device, stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], groups: int, semiring: str, winners: bool, ignore_nan: bool,
) -> tuple[tuple[int], tuple[int, ...], tuple[torch.dtype, torch.dtype], tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """(grid, the shape of the outputs, dtypes of values and winners, sizes, constants) of a launch."""
    (B, _, H, W), (O, C, kh, kw), window = x_shape, weight_shape, Window(stride, padding, dilation)
    P, Q, F, K = window.outputs(0, H, kh), window.outputs(1, W, kw), O // groups, C * kh * kw
    dtypes = value_dtype(dtype), winner_dtype(K)
    config = FORWARD.config({"outputs": P * Q, "K": K, "filters": F, "dtype": str(dtype)}, device)
    constants = {
        **_window(window, (kh, kw)), "ZERO": semiring_zero(semiring, dtypes[0]), "MINIMUM": semiring == "min_plus",
        "WINNERS": winners, "IGNORE_NAN": ignore_nan and dtype.is_floating_point, **config,
    }  # fmt: skip
    grid = (B * groups * cdiv(F, config["BLOCK_O"]) * cdiv(P * Q, config["BLOCK_P"]),)
    return grid, (B, O, P, Q), dtypes, (groups, C, F, H, W, P, Q), constants


def scatter(
    dy: Tensor,
    winners: Tensor,
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    window: Window,
    groups: int,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """dy, winners [B, O, P, Q] -> dx, dweight, or [0] where not needed; added atomically, in any order."""
    (B, O, P, Q), (_, C, kh, kw) = dy.shape, weight_shape
    wide = torch.float32 if dy.dtype in (torch.float16, torch.bfloat16) else dy.dtype
    dx = torch.zeros(x_shape if needs_x else (0,), dtype=wide, device=dy.device)
    dweight = torch.zeros(weight_shape if needs_weight else (0,), dtype=wide, device=dy.device)
    config = SCATTER.config({"outputs": P * Q, "dtype": str(dy.dtype)}, dy.device)
    _tropical_conv2d_scatter_kernel[(B * O * cdiv(P * Q, config["BLOCK"]),)](
        dy, winners.contiguous(), dx, dweight, groups, C, O // groups, *x_shape[2:], P, Q, *dy.stride(),
        **_window(window, (kh, kw)), NEEDS_X=needs_x, NEEDS_W=needs_weight, **config,
    )  # fmt: skip
    return dx.to(dy.dtype), dweight.to(dy.dtype)
