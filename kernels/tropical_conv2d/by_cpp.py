"""The C++ kernel of the tropical convolution (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..mathematics.semiring import value_dtype, winner_dtype
from ..runtime import native
from .definition import Window

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# positions: how many outputs of each filter a task takes, about. Every choice gives the same bits.
FORWARD = Tuned(
    "tropical_conv2d.cpp",
    Space({"positions": (256, 512, 1024, 2048, 4096), "threads": native.THREADS}),
    default=lambda problem: {"positions": 1024, "threads": 0},
    source=SOURCE,
)
SCATTER = Tuned(
    "tropical_conv2d_scatter.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)

_SMALL_FORWARD, _SMALL_SCATTER = 1 << 21, 1 << 15  # taps of all outputs, winners: less is done before a thread starts
_PLAIN = 1 << 29  # the kernel adds int32 below this without a look at the bounds


@native.cached
def _functions(dtype: torch.dtype):
    found = native.required("tropical_conv2d", SOURCE, dtype)
    pointer, integer, long, integers = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)
    forward, scatter = found.tropical_conv_forward, found.tropical_conv_scatter
    forward.argtypes = [integer] * 4 + [integers, pointer, pointer, integers, pointer, pointer, long, integer]
    scatter.argtypes = [integers, pointer, integers, pointer, integer, pointer, pointer, integer]
    return forward, scatter


def _sizes(x_shape: Sequence[int], weight_shape: Sequence[int], window: Window, groups: int):
    """What the library takes: batch, groups, channels and filters of a group, then pairs for rows and columns."""
    (B, C, *inputs), (O, _, *taps) = x_shape, weight_shape
    outputs = [window.outputs(axis, inputs[axis], taps[axis]) for axis in (0, 1)]
    return native.integers(
        B, groups, C // groups, O // groups, *inputs, *outputs, *taps, *(n for pair in window for n in pair)
    )


def forward(
    x: Tensor, weight: Tensor, window: Window, groups: int, semiring: str, winners: bool, ignore_nan: bool
) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W], weight [O, C / groups, kh, kw], any strides -> values and winners [B, O, P, Q]; winners [0]
    unasked. No size is 0."""
    (B, _, H, W), (O, channels, kh, kw) = x.shape, weight.shape
    shape, K = (B, O, window.outputs(0, H, kh), window.outputs(1, W, kw)), channels * kh * kw
    values = x.new_empty(shape, dtype=value_dtype(x.dtype))
    won = x.new_empty(shape if winners else (0,), dtype=winner_dtype(K))
    problem = {"outputs": shape[2] * shape[3], "K": K, "filters": O // groups, "dtype": str(x.dtype)}
    config = FORWARD.config({**problem, "winners": winners}, x.device)
    status = _functions(x.dtype)[0](
        semiring == "min_plus",
        ignore_nan,
        x.dtype == torch.int32 and not (_is_plain(x) and _is_plain(weight)),
        won.dtype == torch.int16,
        _sizes(x.shape, weight.shape, window, groups),
        x.data_ptr(),
        weight.data_ptr(),
        native.integers(*x.stride(), *weight.stride()),
        values.data_ptr(),
        won.data_ptr() if winners else None,
        config["positions"],
        native.threads(config["threads"], values.numel() * K, _SMALL_FORWARD),
    )
    _check(status)
    return values, won


def _is_plain(x: Tensor) -> bool:
    low, high = torch.aminmax(x)
    return int(low) > -_PLAIN and int(high) < _PLAIN


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
    """dy, winners [B, O, P, Q] -> dx and dweight in dy's dtype, or [0] where not needed. No size is 0.

    Winner −1 adds nothing. Half precision accumulates in float32. The same bits on any number of threads.

    Raises:
        IndexError: a winner outside [−1, K), or one that names a tap in the padding.
    """
    dx = dy.new_empty(x_shape if needs_x else (0,))
    dweight = dy.new_empty(weight_shape if needs_weight else (0,))
    winners = winners.contiguous()
    problem = {"outputs": dy.shape[2] * dy.shape[3], "images": dy.shape[0] * dy.shape[1], "dtype": str(dy.dtype)}
    config = SCATTER.config(problem, dy.device)
    status = _functions(dy.dtype)[1](
        _sizes(x_shape, weight_shape, window, groups),
        dy.data_ptr(),
        native.integers(*dy.stride()),
        winners.data_ptr(),
        winners.dtype == torch.int16,
        dx.data_ptr() if needs_x else None,
        dweight.data_ptr() if needs_weight else None,
        native.threads(config["threads"], dy.numel(), _SMALL_SCATTER),
    )
    _check(status, weight_shape)
    return dx, dweight


def _check(status: int, weight_shape: Sequence[int] | None = None) -> None:
    if status == 1:
        raise MemoryError("tropical_conv2d: no memory for the padded rows of one task a thread")
    if status == 2:
        raise IndexError(
            f"tropical_conv2d_scatter: winners name a tap outside the image or the window {weight_shape}; "
            "expected the forward's winners"
        )
