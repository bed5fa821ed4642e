"""The ranks that torchrun starts: they meet, and rank 0 alone writes and prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch.distributed as dist


class Place(NamedTuple):
    """Which of how many processes this one is."""

    rank: int
    ranks: int


def place() -> Place:
    """This process's place among those that torchrun has started; (0, 1) without it."""
    rank, ranks = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return Place(int(rank), int(ranks)) if rank.isdigit() and ranks.isdigit() and int(ranks) > 1 else Place(0, 1)


@contextmanager
def met(timeout: float) -> Iterator[dist.ProcessGroup | None]:
    """The group of all ranks, on gloo, as these commands train on the CPU; None where there is one process.

    timeout: seconds that a rank waits for the others.

    Raises:
        ConnectionError: they have not met within this time.
    """
    if place().ranks == 1:
        yield None
        return
    from datetime import timedelta

    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise ConnectionError(
            f"{place().ranks} ranks have not met within {timeout:g} s ({error}); start all of them, with torchrun"
        ) from error
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
