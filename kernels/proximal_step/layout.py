"""How the lists of a proximal step lie in memory: kernels take them as flat rows, of one order of elements each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, each a place of its own, in any order of the dimensions."""
    if x.is_contiguous():
        return True
    reach = 1
    for step, size in sorted((step, size) for size, step in zip(x.shape, x.stride(), strict=True) if size != 1):
        if step != reach:
            return False
        reach *= size
    return True


def lie_alike(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the tensors at one place of the lists have their elements in one order."""
    return all(
        x.stride() == like.stride() or (x.is_contiguous() and like.is_contiguous())
        for tensors in lists[1:]
        for x, like in zip(tensors, lists[0], strict=True)
    )


def like(x: Tensor, other: Tensor) -> Tensor:
    """x, or a copy of it that lies in memory as the other does."""
    return x if lie_alike([[other], [x]]) else torch.empty_like(other).copy_(x)


def problem_of(tensors: Sequence[Tensor]) -> dict[str, int | str | bool]:
    """How many parameters there are, for the choice of a config."""
    return {"size": sum(x.numel() for x in tensors), "dtype": str(tensors[0].dtype)}
