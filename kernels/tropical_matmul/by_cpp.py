"""The C++ kernel of the tropical product (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..mathematics.semiring import value_dtype, winner_dtype
from ..runtime import dispatch, native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# KC, MC, NC: the block of k, rows and columns a task takes (see product.hpp). Every choice gives the same bits.
FORWARD = Tuned(
    "tropical_matmul.cpp",
    Space({"KC": (256, 512, 1024, 2048), "MC": (128, 256, 512, 1024), "NC": (64, 128, 256), "threads": native.THREADS}),
    default=lambda problem: {
        "KC": 1024,
        "MC": 512,
        "NC": 64 if problem.get("dtype") == "torch.float64" else 128,
        "threads": 0,
    },
    source=SOURCE,
)
# For a product with few rows or columns, whose other factor is read along k where it lies. TASKS: so many a thread.
NARROW = Tuned(
    "tropical_matmul_narrow.cpp",
    Space({"TASKS": (1, 2, 4, 8, 16), "threads": native.THREADS}),
    default=lambda problem: {"TASKS": 4, "threads": 0},
    source=SOURCE,
)

_FEW = 4  # as FEW in few_columns.hpp
_SMALL = 1 << 21  # (m, n, k) steps: less is done before a thread would start


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "M", "K", "N")),
        *((name, ctypes.c_int64 * 3) for name in ("a_strides", "b_strides")),
        *((name, ctypes.c_int64) for name in ("times", "negate", "ignore_nan", "narrow")),
        *((name, ctypes.c_int64) for name in ("KC", "MC", "NC", "tasks", "threads")),
    )


@native.cached
def _function(dtype: torch.dtype):
    return native.required("tropical_matmul", SOURCE, dtype).tropical_forward


def forward(a: Tensor, b: Tensor, semiring: str, winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N], any strides -> values [B, M, N] and winners [B, M, N], or [0] where not wanted.

    semiring: "max_plus", "min_plus" or "max_times". Winners: the lowest k, −1 where there is no candidate, in
    winner_dtype(K). No size is 0.
    """
    shape = *a.shape[:2], b.shape[-1]
    # the zero of max_times is not its lowest value, so winners must mark the outputs with nothing to choose from
    kept = winners or (semiring == "max_times" and ignore_nan)
    status, (values, won) = dispatch.run(forward_plan(a, b, semiring, kept, ignore_nan, shape), a, b)
    _check(status)
    return values, won if winners else won.new_empty(0)


def forward_plan(
    a: Tensor, b: Tensor, semiring: str, winners: bool, ignore_nan: bool, shape: tuple[int, ...]
) -> dispatch.Plan:
    """The plan of `forward`, of outputs in this shape; none where values need winners that are not wanted."""
    (B, M, K), N = a.shape, b.shape[-1]
    times = semiring == "max_times"
    if times and ignore_nan and not winners:
        return []
    problem = {"M": M, "N": N, "K": K, "dtype": str(a.dtype), "winners": winners}
    if (N <= _FEW and a.stride(2) == 1) or (M <= _FEW and b.stride(1) == 1):
        vectors = {"M": max(M, N), "K": K, "B": min(M, N), "dtype": str(a.dtype), "winners": winners}
        config = NARROW.config(vectors, a.device)
        blocks = FORWARD.default(problem)  # where K is too short to be gone along
    else:
        config = blocks = FORWARD.config(problem, a.device)
    call = _Call(
        batch=B,
        M=M,
        K=K,
        N=N,
        a_strides=a.stride(),
        b_strides=b.stride(),
        times=times,
        negate=semiring == "min_plus",
        ignore_nan=ignore_nan,
        narrow=winner_dtype(K) == torch.int16,
        KC=blocks["KC"],
        MC=blocks["MC"],
        NC=blocks["NC"],
        tasks=config.get("TASKS", 0),
        threads=native.threads(config["threads"], B * M * N * K, _SMALL),
    )
    outputs = (value_dtype(a.dtype), shape), (winner_dtype(K), shape if winners else None)
    return dispatch.plan(_function(a.dtype), outputs, call)


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("tropical_matmul: no memory for the packed blocks of one task a thread")
