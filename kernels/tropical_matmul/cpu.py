"""The C++ kernel of the tropical product (cpu.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import dispatch, native
from .definition import value_dtype, winner_dtype

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
    forward, scatter = found.tropical_forward, found.tropical_scatter
    found.tropical_set_team.argtypes = [ctypes.c_void_p]
    found.tropical_set_team(native.openmp_team())
    return forward, scatter


def forward(a: Tensor, b: Tensor, semiring: str, winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N], any strides -> values [B, M, N] and winners [B, M, N], or [0] where not wanted.

    semiring: "max_plus", "min_plus" or "max_times". Winners: the lowest k, −1 where there is no candidate, in
    winner_dtype(K). No size is 0.
    """
    shape = *a.shape[:2], b.shape[-1]
    # the zero of max_times is not its lowest value, so outputs with nothing to choose from must be known
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
    call = native.integers(
        *(B, M, K, N),
        *a.stride(),
        *b.stride(),
        *(times, semiring == "min_plus", ignore_nan, winner_dtype(K) == torch.int16),
        *(blocks["KC"], blocks["MC"], blocks["NC"]),
        *(config.get("TASKS", 0), native.threads(config["threads"], B * M * N * K, _SMALL_FORWARD)),
    )
    outputs = (value_dtype(a.dtype), shape), (winner_dtype(K), shape if winners else None)
    return dispatch.plan(_functions(a.dtype)[0], outputs, call)


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
    _check(status, K)
    return da, db


def scatter_plan(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> dispatch.Plan:
    """The plan of `scatter`, for winners in one piece; none for those of another dtype."""
    if winners.dtype not in (torch.int16, torch.int32):
        return []
    B, M, N = dc.shape
    times = semiring == "max_times"
    unused = (0, 0, 0)
    config = SCATTER.config({"M": M, "N": N, "K": K, "dtype": str(dc.dtype)}, dc.device)
    call = native.integers(
        *(B, M, K, N),
        *dc.stride(),
        *(unused if a is None else a.stride()),
        *(unused if b is None else b.stride()),
        *(times, winners.dtype == torch.int16),
        native.threads(config["threads"], B * M * N, _SMALL_SCATTER),
    )
    outputs = (dc.dtype, (B, M, K) if needs_a else (0,)), (dc.dtype, (B, K, N) if needs_b else (0,))
    return dispatch.plan(_functions(dc.dtype)[1], outputs, call)


def _check(status: int, K: int = 0) -> None:
    if status == 1:
        raise MemoryError("tropical_matmul: no memory for the packed blocks of one task a thread")
    if status == 2:
        raise IndexError(
            f"tropical_winners_scatter: winners hold an index outside [-1, {K}); expected the forward's winners"
        )
