"""The Triton trees: a build plays one level a launch; an update plays all levels of one tree in one program.

A node's FAN children are played at once, by a maximum and then the lowest index that reaches it: a maximum that gives
the index too is wrong around NaN, infinities and ties in some versions of Triton.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from .definition import FAN, levels

BUILD = Tuned(
    "tournament_build.triton",
    Space({"NODES": (1, 4, 16, 64), "num_warps": (1, 2, 4)}),
    default=lambda problem: {"NODES": 16, "num_warps": 4},
    source=Path(__file__),
)
UPDATE = Tuned(
    "tournament_update.triton",
    # BLOCK: touched leaves that are climbed from at once
    Space({"BLOCK": (1, 2, 4, 8, 16, 32, 64), "num_warps": (1, 2, 4, 8)}),
    default=lambda problem: {"BLOCK": min(32, next_power_of_2(int(problem["t"]))), "num_warps": 4},
    source=Path(__file__),
)
_FEW = 32  # touched leaves from which a program climbs however small the tree is
_NO_INDEX = 1 << 62


@triton.jit
def _play(
    child_ptr, child_index_ptr, begin, size, mask,
    LEAVES: tl.constexpr, LARGEST: tl.constexpr, WORST: tl.constexpr, FAN: tl.constexpr, NO_INDEX: tl.constexpr,
):  # fmt: skip
    """The winners among the FAN children from each of `begin` on: values (float32 for 16 bits) and leaves' indices."""
    child = begin[:, None] + tl.arange(0, FAN)[None, :]
    inside = mask[:, None] & (child < size)
    x = tl.load(child_ptr + child, mask=inside, other=WORST)
    x = x.to(tl.float32) if x.dtype == tl.bfloat16 or x.dtype == tl.float16 else x
    index = child if LEAVES else tl.load(child_index_ptr + child, mask=inside, other=NO_INDEX)
    special = (x != x) & inside
    has_nan = tl.max(special.to(tl.int32), 1) > 0
    x = tl.where(special, WORST, x)
    best = tl.max(x, 1) if LARGEST else tl.min(x, 1)
    wins = inside & tl.where(has_nan[:, None], special, x == best[:, None])
    first = tl.min(tl.where(wins, index, NO_INDEX), 1)
    if x.dtype == tl.float32 or x.dtype == tl.float64:
        best = tl.where(has_nan, float("nan"), best)
    return best, first


@triton.jit
def _tournament_build_kernel(
    leaf_ptr,  # [B, n]
    value_ptr,  # [B, nodes]
    index_ptr,  # [B, nodes] int64
    n, nodes,
    children,  # where the children's level begins among the nodes; of leaves, anything
    size,  # of the children's level
    level,  # where this level begins among the nodes
    count,  # of this level
    LEAVES: tl.constexpr, LARGEST: tl.constexpr, WORST: tl.constexpr, FAN: tl.constexpr, NO_INDEX: tl.constexpr,
    NODES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(count, NODES)
    tree = (pid // pieces).to(tl.int64)
    node = (pid % pieces).to(tl.int64) * NODES + tl.arange(0, NODES)
    child_ptr = leaf_ptr + tree * n if LEAVES else value_ptr + tree * nodes + children
    best, first = _play(
        child_ptr, index_ptr + tree * nodes + children, node * FAN, size, node < count,
        LEAVES, LARGEST, WORST, FAN, NO_INDEX,
    )  # fmt: skip
    at = tree * nodes + level + node
    tl.store(value_ptr + at, best.to(value_ptr.dtype.element_ty), mask=node < count)
    tl.store(index_ptr + at, first, mask=node < count)


@triton.jit
def _tournament_update_kernel(
    leaf_ptr, value_ptr, index_ptr, position_ptr, new_ptr,
    n, nodes, touched,
    of_position, of_new,  # steps from tree to tree, 0 where all share
    LEVELS: tl.constexpr,  # to climb; 0 writes the leaves alone
    LARGEST: tl.constexpr, WORST: tl.constexpr, FAN: tl.constexpr, NO_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tree = tl.program_id(0).to(tl.int64)
    leaf_ptr += tree * n
    value_ptr += tree * nodes
    index_ptr += tree * nodes
    position_ptr += tree * of_position
    new_ptr += tree * of_new
    for start in range(0, touched, BLOCK):
        i = start + tl.arange(0, BLOCK)
        position = tl.load(position_ptr + i, mask=i < touched, other=-1).to(tl.int64)
        x = tl.load(new_ptr + i, mask=i < touched, other=0)
        tl.store(leaf_ptr + position, x, mask=(position >= 0) & (position < n))
    if LEVELS:
        # children's and this level's places; every node above a touched leaf is played, by each such leaf: the same
        children, size, level, divisor = 0, n, 0, FAN
        for height in tl.static_range(LEVELS):  # pyright: ignore[reportGeneralTypeIssues]
            tl.debug_barrier()  # what this program stored below is read above
            count = tl.cdiv(size, FAN)
            for start in range(0, touched, BLOCK):
                i = start + tl.arange(0, BLOCK)
                position = tl.load(position_ptr + i, mask=i < touched, other=-1).to(tl.int64)
                mask = (position >= 0) & (position < n)
                node = tl.where(mask, position // divisor, 0)
                child_ptr = leaf_ptr if height == 0 else value_ptr + children
                best, first = _play(
                    child_ptr, index_ptr + children, node * FAN, size, mask, height == 0, LARGEST, WORST, FAN, NO_INDEX
                )
                tl.store(value_ptr + level + node, best.to(value_ptr.dtype.element_ty), mask=mask)
                tl.store(index_ptr + level + node, first, mask=mask)
            children = level
            level += count
            size = count
            divisor *= FAN


def _constants(leaves: Tensor, largest: bool) -> dict[str, object]:
    if leaves.is_floating_point():
        worst = float("-inf") if largest else float("inf")
    else:
        bounds = torch.iinfo(leaves.dtype)
        worst = bounds.min if largest else bounds.max
    return {"LARGEST": largest, "WORST": worst, "FAN": FAN, "NO_INDEX": _NO_INDEX}


def build(leaves: Tensor, values: Tensor, indices: Tensor, largest: bool) -> None:
    """Builds all trees, a launch for each level; arguments as in `_build` of the package."""
    (B, n), nodes = leaves.shape, values.shape[1]
    config = BUILD.config({"B": B, "n": n, "dtype": str(leaves.dtype)}, leaves.device)
    children, size, level = 0, n, 0
    for count in levels(n):
        _tournament_build_kernel[(B * cdiv(count, config["NODES"]),)](
            leaves, values, indices, n, nodes, children, size, level, count,
            LEAVES=level == 0, **_constants(leaves, largest), **config,
        )  # fmt: skip
        children, size, level = level, count, level + count


def update(leaves: Tensor, values: Tensor, indices: Tensor, positions: Tensor, new: Tensor, largest: bool) -> None:
    """Updates all trees; arguments as in `_update` of the package.

    One program climbs a tree; where many leaves are touched, a build follows.
    """
    positions, new = positions.contiguous(), new.contiguous()
    (B, n), nodes, touched = leaves.shape, values.shape[1], positions.shape[-1]
    climbs = touched <= max(_FEW, n // (FAN * FAN))
    config = UPDATE.config({"B": B, "n": n, "t": touched, "dtype": str(leaves.dtype)}, leaves.device)
    steps = (touched if x.dim() > 1 else 0 for x in (positions, new))
    _tournament_update_kernel[(B,)](
        leaves, values, indices, positions, new, n, nodes, touched, *steps, LEVELS=len(levels(n)) if climbs else 0,
        **_constants(leaves, largest), **config,
    )  # fmt: skip
    if not climbs:
        build(leaves, values, indices, largest)
