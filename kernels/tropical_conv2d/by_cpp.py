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


class _Geometry(ctypes.Structure):
    """Mirrors `struct Geometry` in by_cpp.cpp, field by field; pairs are for rows and columns."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "filters")),
        *((name, ctypes.c_int64 * 2) for name in ("inputs", "outputs", "taps", "stride", "padding", "dilation")),
    )


class _ForwardCall(ctypes.Structure):
    """Mirrors `struct ForwardCall` in by_cpp.cpp, field by field."""

    _fields_ = (
        ("geometry", _Geometry),
        *((name, ctypes.c_int64 * 4) for name in ("x_strides", "weight_strides")),
        *((name, ctypes.c_int64) for name in ("negate", "ignore_nan", "saturates")),
        *((name, ctypes.c_int64) for name in ("short_winners", "positions", "threads")),
    )


class _ScatterCall(ctypes.Structure):
    """Mirrors `struct ScatterCall` in by_cpp.cpp, field by field."""

    _fields_ = (
        ("geometry", _Geometry),
        ("dy_strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ("short_winners", "threads")),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library, pointer = native.required("tropical_conv2d", SOURCE, dtype), ctypes.c_void_p
    library.tropical_conv_forward.argtypes = [ctypes.POINTER(_ForwardCall), *[pointer] * 4]
    library.tropical_conv_scatter.argtypes = [ctypes.POINTER(_ScatterCall), *[pointer] * 4]
    return library.tropical_conv_forward, library.tropical_conv_scatter


def _geometry(x_shape: Sequence[int], weight_shape: Sequence[int], window: Window, groups: int) -> _Geometry:
    (B, C, *inputs), (O, _, *taps) = x_shape, weight_shape
    outputs = window.outputs(0, inputs[0], taps[0]), window.outputs(1, inputs[1], taps[1])
    return _Geometry(
        batch=B,
        groups=groups,
        channels=C // groups,
        filters=O // groups,
        inputs=tuple(inputs),
        outputs=outputs,
        taps=tuple(taps),
        stride=tuple(window.stride),
        padding=tuple(window.padding),
        dilation=tuple(window.dilation),
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
    call = _ForwardCall(
        geometry=_geometry(x.shape, weight.shape, window, groups),
        x_strides=x.stride(),
        weight_strides=weight.stride(),
        negate=semiring == "min_plus",
        ignore_nan=ignore_nan,
        saturates=x.dtype == torch.int32 and not (_is_plain(x) and _is_plain(weight)),
        short_winners=won.dtype == torch.int16,
        positions=config["positions"],
        threads=native.threads(config["threads"], values.numel() * K, _SMALL_FORWARD),
    )
    address_of_winners = won.data_ptr() if winners else None
    status = _functions(x.dtype)[0](call, x.data_ptr(), weight.data_ptr(), values.data_ptr(), address_of_winners)
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
    call = _ScatterCall(
        geometry=_geometry(x_shape, weight_shape, window, groups),
        dy_strides=dy.stride(),
        short_winners=winners.dtype == torch.int16,
        threads=native.threads(config["threads"], dy.numel(), _SMALL_SCATTER),
    )
    gradients = dx.data_ptr() if needs_x else None, dweight.data_ptr() if needs_weight else None
    status = _functions(dy.dtype)[1](call, dy.data_ptr(), winners.data_ptr(), *gradients)
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
