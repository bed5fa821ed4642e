"""The ranks of a process group of torch.distributed. A group of None is one process, its own and only rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def check_group(where: str, group: Any) -> None:
    """
    Raises:
        TypeError: `group` is neither a process group nor None.
    """
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{where}: group is a {type(group).__name__}; expected a torch.distributed.ProcessGroup, or None"
        )


def of_ranks(value: T, group: dist.ProcessGroup | None) -> list[T]:
    """The values of all ranks, in their order. A collective call: every rank makes it."""
    if group is None:
        return [value]
    values = [value] * group.size()
    dist.all_gather_object(values, value, group=group)
    return values
