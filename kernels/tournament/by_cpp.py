"""The C++ trees (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# TREES: that a thread draws at a time. LEAVES: of a build that costs as much as one touched leaf's way up, which takes
# about 11 ns, a build 0.23 ns a leaf: measured in docs/ops/tournament.md. Every choice leaves the same nodes.
BUILD = Tuned(
    "tournament_build.cpp",
    Space({"TREES": (1, 4, 16, 64), "threads": native.THREADS}),
    default=lambda problem: {"TREES": 16, "threads": 0},
    source=SOURCE,
)
UPDATE = Tuned(
    "tournament_update.cpp",
    Space({"TREES": (1, 4, 16, 64), "LEAVES": (12, 25, 50, 100, 200), "threads": native.THREADS}),
    default=lambda problem: {"TREES": 16, "LEAVES": 50, "threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # leaves that are played before a thread would start


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("Tournament", SOURCE, dtype)
    pointer, integer, sizes = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int64)
    build, update = library.tournament_build, library.tournament_update
    build.argtypes, build.restype = [sizes, pointer, pointer, pointer, integer, integer], None
    update.argtypes = [sizes, *[pointer] * 4, integer, pointer, integer, ctypes.c_int64, integer]
    return build, update


def build(leaves: Tensor, values: Tensor, indices: Tensor, largest: bool) -> None:
    """Builds all trees in C++; arguments as in `_build` of the package."""
    (B, n), nodes = leaves.shape, values.shape[1]
    config = BUILD.config({"B": B, "n": n, "dtype": str(leaves.dtype)}, leaves.device)
    sizes, threads = native.integers(B, n, nodes, config["TREES"]), native.threads(config["threads"], B * n, _SMALL)
    where = leaves.data_ptr(), values.data_ptr(), indices.data_ptr()
    _functions(leaves.dtype)[0](sizes, *where, largest, threads)


def update(leaves: Tensor, values: Tensor, indices: Tensor, positions: Tensor, new: Tensor, largest: bool) -> None:
    """Updates all trees in C++; arguments as in `_update` of the package.

    Raises:
        IndexError: a position out of range; nothing is written then.
    """
    positions, new = positions.contiguous(), new.contiguous()
    (B, n), touched = leaves.shape, positions.shape[-1]
    of_position, of_new = touched if positions.dim() > 1 else 0, touched if new.dim() > 1 else 0
    config = UPDATE.config({"B": B, "n": n, "t": touched, "dtype": str(leaves.dtype)}, leaves.device)
    status = _functions(leaves.dtype)[1](
        native.integers(B, n, values.shape[1], config["TREES"], touched, of_position, of_new),
        leaves.data_ptr(),
        values.data_ptr(),
        indices.data_ptr(),
        positions.data_ptr(),
        positions.dtype == torch.int64,
        new.data_ptr(),
        largest,
        max(2, n // config["LEAVES"]),
        native.threads(config["threads"], B * touched * 32, _SMALL),
    )
    if status == 1:
        raise MemoryError("Tournament: no memory for a copy of the positions or values, which lie in the tree")
    if status == 2:
        raise IndexError(f"Tournament: a position is out of range; expected [-1, {n}), -1 to skip; nothing was written")
