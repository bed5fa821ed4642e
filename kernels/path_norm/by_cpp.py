"""The C++ kernel of path norms (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# A thread more for every so many weights of a layer; COLUMNS: of a task of the backward, which adds up what flows into
# each in the order of the rows. Every choice gives the same bits.
FORWARD = Tuned(
    "path_norm.cpp",
    Space({"WEIGHTS": (1 << 13, 1 << 15, 1 << 17), "threads": native.THREADS}),
    default=lambda problem: {"WEIGHTS": 1 << 15, "threads": 0},
    source=SOURCE,
)
BACKWARD = Tuned(
    "path_norm_backward.cpp",
    Space({"COLUMNS": (128, 256, 512, 1024), "WEIGHTS": (1 << 13, 1 << 15, 1 << 17), "threads": native.THREADS}),
    default=lambda problem: {"COLUMNS": 512, "WEIGHTS": 1 << 15, "threads": 0},
    source=SOURCE,
)


def takes(weights: Sequence[Tensor]) -> bool:
    """Linear layers, each in one piece."""
    return all(w.dim() == 2 and w.is_contiguous() for w in weights)


def passes(weights: Sequence[Tensor]) -> int:
    """How many numbers a forward pass leaves to the backward: the sums of each layer, and a power of two for each."""
    return weights[0].shape[1] + sum(w.shape[0] for w in weights) + len(weights)


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("path_norm", SOURCE, dtype)
    return library.path_norm_forward, library.path_norm_backward


def forward(weights: Sequence[Tensor], p: int, log: bool) -> tuple[Tensor, Tensor] | None:
    """The norm of weights that `takes` allows, float32 or float64, and what the pass leaves to `backward`.

    None where one power of two a layer does not keep every node's part of the sum in range, or something is not finite.
    """
    status, (value, left) = dispatch.run(forward_plan(weights, p, log), *weights)
    return (value, left) if _is_in_range(status) else None


def forward_plan(weights: Sequence[Tensor], p: int, log: bool) -> dispatch.Plan:
    dtype = weights[0].dtype
    outputs = (dtype, ()), (dtype, (passes(weights),))
    return dispatch.plan(_functions(dtype)[0], outputs, _call(FORWARD, weights, p, log))


def backward(slope: Tensor, weights: Sequence[Tensor], left: Tensor, p: int, log: bool) -> list[Tensor] | None:
    """The gradient of each weight, from that of the norm; the same bits on any number of threads. None as above."""
    status, gradients = dispatch.run(backward_plan(weights, p, log), slope, *weights, left)
    return list(gradients) if _is_in_range(status) else None


def backward_plan(weights: Sequence[Tensor], p: int, log: bool) -> dispatch.Plan:
    dtype = weights[0].dtype
    outputs = [(dtype, tuple(w.shape)) for w in weights]
    return dispatch.plan(_functions(dtype)[1], outputs, _call(BACKWARD, weights, p, log))


def _call(tuned: Tuned, weights: Sequence[Tensor], p: int, log: bool):
    """Mirrors `struct Call` in by_cpp.cpp; a layer is shared out by weights of a thread, and columns of a task."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    problem = {"N": widths[0], "M": max(widths), "layers": len(weights), "dtype": str(weights[0].dtype)}
    config = tuned.config(problem, weights[0].device)
    team = native.threads(config["threads"], 1, 0), config["WEIGHTS"], config.get("COLUMNS", 0)
    return native.integers(len(weights), p, log, *team, *widths)


def _is_in_range(status: int) -> bool:
    if status == 1:
        raise MemoryError("path_norm: no memory for what flows back into one layer")
    return status == 0
