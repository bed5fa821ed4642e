"""vmap for operators whose tensors begin with a batch dimension: the mapped dimension joins the batch and leaves it.

Where it cannot join, as weights of their own share no product, the operator is called for each map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def join_batch(tensors: Sequence[Tensor | None], dims: Sequence[int | None], size: int) -> list[Tensor | None]:
    """Tensors [B, ...] mapped over `dims` -> [size · B, ...]. A tensor that is not mapped repeats by a zero stride."""
    return [
        None if x is None else mapped_first(x, dim, size).flatten(0, 1) for x, dim in zip(tensors, dims, strict=True)
    ]


def mapped_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the mapped dimension in front. One that is not mapped repeats by a zero stride."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def inner_batch(x: Tensor, dim: int | None) -> int:
    """B of a tensor [B, ...] mapped over `dim`, before it joins. A joined batch of size 0 no longer tells it."""
    return x.shape[1 if dim == 0 else 0]


def leave_batch(
    results: Sequence[Tensor], produced: Sequence[bool], size: int, inner: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Results [size · inner, ...] -> [size, inner, ...] and their mapped dimensions. Results not produced stay."""
    outs = tuple(x.unflatten(0, (size, inner)) if made else x for x, made in zip(results, produced, strict=True))
    return outs, tuple(0 if made else None for made in produced)


def one_by_one(name: str) -> Callable[..., tuple[tuple[Tensor, ...], tuple[int, ...]]]:
    """The batching rule that calls `torch.ops.tropigrad.<name>`, which returns several tensors, for each map."""

    def mapped(info: Any, dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        once = getattr(torch.ops.tropigrad, name).default
        each = [
            once(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(args, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(x) for x in zip(*each, strict=True))
        return stacked, (0,) * len(stacked)

    return mapped
