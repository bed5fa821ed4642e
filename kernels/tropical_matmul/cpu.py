"""The C++ kernel of the tropical product (cpu.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import eager, native
from .definition import semiring_zero, value_dtype, winner_dtype

SOURCE = Path(__file__).with_name("cpu.cpp")

# KC, MC, NC: the block of k, rows and columns a task takes (see cpu.cpp). Every choice gives the same bits.
FORWARD = Tuned(
    "tropical_matmul.cpp",
    Space({"KC": (256, 512, 1024, 2048), "MC": (128, 256, 512, 1024), "NC": (64, 128, 256), "threads": native.THREADS}),
    default=lambda problem: {"KC": 1024, "MC": 512, "NC": 128, "threads": 0},
    source=SOURCE,
)
# Of a product with few rows or columns, whose other factor is read along k where it lies. TASKS: so many a thread.
NARROW = Tuned(
    "tropical_matmul_narrow.cpp",
    Space({"TASKS": (1, 2, 4, 8, 16), "threads": native.THREADS}),
    default=lambda problem: {"TASKS": 4, "threads": 0},
    source=SOURCE,
)
SCATTER = Tuned(
    "tropical_winners_scatter.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)

_FEW = 4  # as in cpu.cpp
_SMALL_FORWARD, _SMALL_SCATTER = 1 << 21, 1 << 15  # (m, n, k) steps, winners: less is done before a thread would start


@native.cached
def _functions(dtype: torch.dtype):
    found = native.required("tropical_matmul", SOURCE, dtype)
    pointer, integer, sizes = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)
    forward, scatter = found.tropical_forward, found.tropical_scatter
    forward.argtypes = [pointer] * 5
    scatter.argtypes = [sizes, pointer, pointer, integer, pointer, pointer, sizes, pointer, pointer, integer]
    found.tropical_set_team.argtypes = [pointer]
    found.tropical_set_team(native.openmp_team())
    return forward, scatter


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None or x.numel() == 0 else x.data_ptr()


def forward(a: Tensor, b: Tensor, semiring: str, winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N], any strides -> values [B, M, N] and winners [B, M, N], or [0] where not wanted.

    semiring: "max_plus", "min_plus" or "max_times". Winners: the lowest k, −1 where there is no candidate, in
    winner_dtype(K).
    """
    (B, M, K), N = a.shape, b.shape[-1]
    if B * M * N * K == 0:
        values = torch.full((B, M, N), semiring_zero(semiring, value_dtype(a.dtype)), dtype=value_dtype(a.dtype))
        return values, torch.full((B, M, N) if winners else (0,), -1, dtype=winner_dtype(K))
    run, finds_winners = prepare(a, b, semiring, winners, ignore_nan, (B, M, N))
    values, won = run(a, b) if finds_winners else (run(a, b), None)
    return values, won if winners and won is not None else torch.empty(0, dtype=winner_dtype(K))


def prepare(
    a: Tensor, b: Tensor, semiring: str, winners: bool, ignore_nan: bool, shape: tuple[int, ...]
) -> tuple[Callable[[Tensor, Tensor], Any], bool]:
    """The forward for tensors that lie in memory as these do, in this shape; no size is 0. See eager.prepared.

    Returns:
        A function that gives values alone, or (values, winners), and whether it gives these: some values need them.
    """
    (B, M, K), N = a.shape, b.shape[-1]
    times = semiring == "max_times"
    # the zero of max_times is not its lowest value, so outputs with nothing to choose from must be known
    kept = winners or (times and ignore_nan)
    problem = {"M": M, "N": N, "K": K, "dtype": str(a.dtype), "winners": winners}
    if (N <= _FEW and a.stride(2) == 1) or (M <= _FEW and b.stride(1) == 1):
        vectors = {"M": max(M, N), "K": K, "B": min(M, N), "dtype": str(a.dtype), "winners": winners}
        config = NARROW.config(vectors, a.device)
        blocks = FORWARD.default(problem)  # where K is too short to be gone along
    else:
        config = blocks = FORWARD.config(problem, a.device)
    call = native.integers(
        *(B, M, K, N),
        *a.stride(),
        *b.stride(),
        *(times, semiring == "min_plus", ignore_nan, winner_dtype(K) == torch.int16),
        *(blocks["KC"], blocks["MC"], blocks["NC"]),
        *(config.get("TASKS", 0), native.threads(config["threads"], B * M * N * K, _SMALL_FORWARD)),
    )
    values = native.shape_only(shape, value_dtype(a.dtype))
    won = native.shape_only(shape, winner_dtype(K)) if kept else None
    return eager.prepared(_functions(a.dtype)[0], call, (values, won), _check), kept


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
    B, M, N = dc.shape
    da = torch.empty((B, M, K) if needs_a else (0,), dtype=dc.dtype)
    db = torch.empty((B, K, N) if needs_b else (0,), dtype=dc.dtype)
    if dc.numel() == 0 or K == 0 or not (needs_a or needs_b):
        return da.zero_(), db.zero_()
    if winners.dtype not in (torch.int16, torch.int32):
        raise TypeError(f"tropical_winners_scatter: winners are {winners.dtype}; expected the forward's int16 or int32")
    winners = winners.contiguous()
    if semiring != "max_times":
        a = b = None
    unused = (0, 0, 0)
    config = SCATTER.config({"M": M, "N": N, "K": K, "dtype": str(dc.dtype)}, dc.device)
    status = _functions(dc.dtype)[1](
        native.integers(B, M, K, N),
        dc.data_ptr(),
        winners.data_ptr(),
        winners.dtype == torch.int16,
        _pointer(a),
        _pointer(b),
        native.integers(*dc.stride(), *(unused if a is None else a.stride()), *(unused if b is None else b.stride())),
        _pointer(da),
        _pointer(db),
        native.threads(config["threads"], B * M * N, _SMALL_SCATTER),
    )
    _check(status, K)
    return da, db


def _check(status: int, K: int = 0) -> None:
    if status == 1:
        raise MemoryError("tropical_matmul: no memory for the packed blocks of one task a thread")
    if status == 2:
        raise IndexError(
            f"tropical_winners_scatter: winners hold an index outside [-1, {K}); expected the forward's winners"
        )
