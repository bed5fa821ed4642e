"""The C++ kernel of the log semiring (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ..runtime import dispatch, native
from .definition import accumulator

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# ROWS: of A a task takes with a panel of B, which it packs. Every choice gives the same bits.
FORWARD = Tuned(
    "log_matmul.cpp",
    Space({"ROWS": (16, 64, 256, 1024), "threads": native.THREADS}),
    default=lambda problem: {"ROWS": 64, "threads": 0},
    source=SOURCE,
)
BACKWARD = Tuned(
    "log_matmul_backward.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 16  # (m, n, k) steps: less is done before a thread would start


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "M", "K", "N")),
        *((name, ctypes.c_int64 * 3) for name in ("a_strides", "b_strides", "c_strides")),
        *((name, ctypes.c_int64) for name in ("keeps", "ignore_nan", "rows", "threads")),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("log_matmul", SOURCE, dtype)
    return library.log_forward, library.log_backward


def forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] -> C, and for the backward top and share, [B, M, N] each; these [0] where not kept."""
    status, (c, top, share) = dispatch.run(forward_plan(a, b, ignore_nan, keeps), a, b, float(temperature))
    _check(status)
    return c, top, share


def forward_plan(a: Tensor, b: Tensor, ignore_nan: bool, keeps: bool) -> dispatch.Plan:
    """The plan of `forward`, in strides of any kind. No size is 0."""
    config = _config(FORWARD, a, b)
    call = _call(a, b, config["threads"], keeps=keeps, ignore_nan=ignore_nan, rows=config["ROWS"])
    shape = (*a.shape[:2], b.shape[-1])
    parts = (a.dtype, shape if keeps else (0,)), (accumulator(a.dtype), shape if keeps else (0,))
    return dispatch.plan(_functions(a.dtype)[0], ((a.dtype, shape), *parts), call)


def backward(
    dc: Tensor, top: Tensor, share: Tensor, a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, *needs: bool
) -> tuple[Tensor, Tensor]:
    """dC, top, share [B, M, N] -> dA [B, M, K] and dB [B, K, N], or [0] where it is not needed."""
    top, share = top.contiguous(), share.contiguous()
    plan = backward_plan(dc, a, b, ignore_nan, needs)
    status, (da, db) = dispatch.run(plan, dc, top, share, a, b, float(temperature))
    _check(status)
    return da, db


def backward_plan(dc: Tensor, a: Tensor, b: Tensor, ignore_nan: bool, needs: Sequence[bool]) -> dispatch.Plan:
    """The plan of `backward`, of contiguous top and share."""
    config = _config(BACKWARD, a, b)
    call = _call(a, b, config["threads"], c_strides=dc.stride(), ignore_nan=ignore_nan)
    outputs = [(x.dtype, tuple(x.shape) if needed else (0,)) for x, needed in zip((a, b), needs, strict=True)]
    return dispatch.plan(_functions(a.dtype)[1], outputs, call)


def _config(tuned: Tuned, a: Tensor, b: Tensor) -> Config:
    (_, M, K), N = a.shape, b.shape[-1]
    return tuned.config({"M": M, "N": N, "K": K, "dtype": str(a.dtype)}, a.device)


def _call(a: Tensor, b: Tensor, threads: int, **rest: object) -> _Call:
    (B, M, K), N = a.shape, b.shape[-1]
    threads = native.threads(threads, B * M * N * K, _SMALL)
    return _Call(batch=B, M=M, K=K, N=N, a_strides=a.stride(), b_strides=b.stride(), threads=threads, **rest)


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("tropical_matmul(semiring='log'): no memory for the packed panels of one task a thread")
