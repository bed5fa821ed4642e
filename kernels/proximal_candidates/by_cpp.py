"""The C++ kernel of the candidates (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# TASK: elements that a thread takes at a time. Sums are made in blocks of 4096: every choice gives the same bits.
CANDIDATES = Tuned(
    "proximal_candidates.cpp",
    Space({"TASK": (1 << 12, 1 << 13, 1 << 14, 1 << 15), "threads": native.THREADS}),
    default=lambda problem: {"TASK": 1 << 13, "threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # elements of y: fewer are done before a thread would start


@native.cached
def _function(dtype: torch.dtype):
    return native.required("proximal_candidates", SOURCE, dtype).proximal_candidates


def plan(x: Tensor, alphas: Tensor) -> dispatch.Plan:
    """The plan of `proximal_candidates` for contiguous tensors of such shapes."""
    count, size = len(alphas), x.numel()
    config = CANDIDATES.config({"size": size, "A": count, "dtype": str(x.dtype)}, x.device)
    threads = native.threads(config["threads"], size * count, _SMALL)
    call = native.integers(size, count, config["TASK"], threads)
    return dispatch.plan(_function(x.dtype), ((x.dtype, (count, *x.shape)), (torch.float64, (count,))), call)


def proximal_candidates(x: Tensor, d: Tensor, h: float, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """(y [A, *x.shape], g [A]) of contiguous tensors.

    Raises:
        MemoryError: there is no room for the sums of blocks.
    """
    status, (y, g) = dispatch.run(plan(x, alphas), x, d, alphas, float(h))
    if status:
        raise MemoryError("proximal_candidates: no memory for the sums of blocks")
    return y, g
