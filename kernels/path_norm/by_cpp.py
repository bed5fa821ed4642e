"""The C++ kernel of path norms (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ..runtime import native

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
    pointer, integer, sizes = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)
    pointers = ctypes.POINTER(pointer)
    chain = [ctypes.c_int64, sizes, pointers, integer, integer]
    library.path_norm_forward.argtypes = [*chain, pointer, pointer, sizes]
    library.path_norm_backward.argtypes = [*chain, pointer, pointer, pointers, sizes]
    return library.path_norm_forward, library.path_norm_backward


def forward(weights: Sequence[Tensor], p: int, log: bool) -> tuple[Tensor, Tensor] | None:
    """The norm of weights that `takes` allows, float32 or float64, and what the pass leaves to `backward`.

    None where one power of two a layer does not keep every node's part of the sum in range, or something is not finite.
    """
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    left = weights[0].new_empty(passes(weights))
    value = weights[0].new_empty(())
    config = FORWARD.config(_problem(widths, value), value.device)
    status = _functions(value.dtype)[0](
        *_chain(widths, weights, p, log), left.data_ptr(), value.data_ptr(), _team(config)
    )
    return (value, left) if _is_in_range(status) else None


def backward(slope: Tensor, weights: Sequence[Tensor], left: Tensor, p: int, log: bool) -> list[Tensor] | None:
    """The gradient of each weight, from that of the norm; the same bits on any number of threads. None as above."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    gradients = [torch.empty_like(w) for w in weights]
    config = BACKWARD.config(_problem(widths, slope), slope.device)
    status = _functions(slope.dtype)[1](
        *_chain(widths, weights, p, log), left.data_ptr(), slope.data_ptr(), _addresses(gradients), _team(config)
    )
    return gradients if _is_in_range(status) else None


def _chain(widths: Sequence[int], weights: Sequence[Tensor], p: int, log: bool):
    return len(weights), native.integers(*widths), _addresses(weights), p, log


def _problem(widths: Sequence[int], like: Tensor) -> dict[str, int | str]:
    return {"N": widths[0], "M": max(widths), "layers": len(widths) - 1, "dtype": str(like.dtype)}


def _team(config: Config):
    """How a layer is shared out: threads, weights of each at the least, and columns of a task, of the backward."""
    wanted = native.threads(config["threads"], 1, 0)
    return native.integers(wanted, config["WEIGHTS"], config.get("COLUMNS", 0))


def _addresses(tensors: Sequence[Tensor]):
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])


def _is_in_range(status: int) -> bool:
    if status == 1:
        raise MemoryError("path_norm: no memory for what flows back into one layer")
    return status == 0
