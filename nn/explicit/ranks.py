"""Ranks of a process group agree: all of them learn the same, and all refuse where one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.runtime.ranks import RankFailed, check_group, of_ranks, on_all_ranks

T = TypeVar("T")


def added(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of all ranks' x, of one shape and dtype."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def exchanged(messages: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """The messages of all ranks to this one, of one to each: one-dimensional tensors of one dtype and any lengths."""
    sent = torch.tensor([len(message) for message in messages])
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    sizes = received.tolist()
    data = messages[0].new_empty(sum(sizes))
    dist.all_to_all_single(data, torch.cat(messages), sizes, sent.tolist(), group=group)
    return list(data.split(sizes))


def together(where: str, group: Any, work: Callable[[], T]) -> T:
    """The result of work, which every rank does for itself.

    Raises:
        TypeError: group is neither a process group nor None.
        What work raises; and on the other ranks ValueError, which names the rank that refused.
    """
    check_group(where, group)
    try:
        return on_all_ranks(where, group, work)
    except RankFailed as failure:
        raise ValueError(f"{where}: rank {failure.rank} refused its rows: {failure.words}") from failure


def check_equal(where: str, facts: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """
    Raises:
        ValueError: a rank's facts differ from those of rank 0; the message names the fact.
    """
    first, *others = of_ranks(dict(facts), group)
    for rank, theirs in enumerate(others, 1):
        for name, fact in theirs.items():
            if fact != first[name]:
                raise ValueError(
                    f"{where}: {name}: {first[name]} on rank 0 and {fact} on rank {rank}; expected the same on all"
                )
