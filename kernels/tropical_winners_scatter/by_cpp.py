"""The C++ scatter of winners (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

SCATTER = Tuned(
    "tropical_winners_scatter.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # winners: fewer are done before a thread would start


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "M", "K", "N")),
        *((name, ctypes.c_int64 * 3) for name in ("dc_strides", "a_strides", "b_strides")),
        *((name, ctypes.c_int64) for name in ("times", "narrow", "threads")),
    )


@native.cached
def _function(dtype: torch.dtype):
    return native.required("tropical_matmul", SOURCE, dtype).tropical_scatter


def scatter(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> tuple[Tensor, Tensor]:
    """dc, int16 or int32 winners [B, M, N] -> da [B, M, K], db [B, K, N] in dc's dtype, or [0] where not needed.

    da[m, w] += dc[m, n] and db[w, n] += dc[m, n]; max_times multiplies by b[w, n] and a[m, w]. Winner −1 adds nothing.
    Half precision accumulates in float32. The same bits on any number of threads.

    Raises:
        IndexError: a winner outside [−1, K).
        TypeError: winners of another dtype.
    """
    if winners.dtype not in (torch.int16, torch.int32):
        raise TypeError(f"tropical_winners_scatter: winners are {winners.dtype}; expected the forward's int16 or int32")
    winners = winners.contiguous()
    plan = scatter_plan(dc, winners, a, b, K, semiring, needs_a, needs_b)
    status, (da, db) = dispatch.run(plan, dc, winners, a, b)
    if status == 1:
        raise MemoryError("tropical_matmul: no memory for the packed blocks of one task a thread")
    if status == 2:
        raise IndexError(
            f"tropical_winners_scatter: winners hold an index outside [-1, {K}); expected the forward's winners"
        )
    return da, db


def scatter_plan(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> dispatch.Plan:
    """The plan of `scatter`, for winners in one piece; none for those of another dtype."""
    if winners.dtype not in (torch.int16, torch.int32):
        return []
    B, M, N = dc.shape
    config = SCATTER.config({"M": M, "N": N, "K": K, "dtype": str(dc.dtype)}, dc.device)
    call = _Call(
        batch=B,
        M=M,
        K=K,
        N=N,
        dc_strides=dc.stride(),
        a_strides=(0, 0, 0) if a is None else a.stride(),
        b_strides=(0, 0, 0) if b is None else b.stride(),
        times=semiring == "max_times",
        narrow=winners.dtype == torch.int16,
        threads=native.threads(config["threads"], B * M * N, _SMALL),
    )
    outputs = (dc.dtype, (B, M, K) if needs_a else (0,)), (dc.dtype, (B, K, N) if needs_b else (0,))
    return dispatch.plan(_function(dc.dtype), outputs, call)
