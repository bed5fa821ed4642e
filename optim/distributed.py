"""Exchanges between the ranks of torch.distributed: every rank gets the same answer, in the order of the ranks.

A group of None is one process, which is its own and only rank.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..kernels.runtime.sharded import is_sharded

T = TypeVar("T")


def rank_in(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else group.rank()


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of shapes, dtypes and bits: equal on two ranks where the tensors are."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.view(torch.uint8).cpu().numpy().data)
    return sha.hexdigest()


def check_equal(where: str, facts: Sequence[Mapping[str, Any]], expected: str) -> None:
    """Holds the facts of each rank against those of rank 0.

    Raises:
        ValueError: some differ; the message names them, the rank, and what was expected.
    """
    for rank, of_rank in enumerate(facts):
        differing = [name for name, fact in of_rank.items() if fact != facts[0][name]]
        if differing:
            raise ValueError(f"{where}: ranks 0 and {rank} differ in {', '.join(differing)}; expected {expected}")


def data_parallel(model: nn.Module) -> tuple[nn.Module, dist.ProcessGroup | None]:
    """The module inside of DistributedDataParallel, and the ranks that average its gradients; else model and None."""
    wrapper = model
    while not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        if not isinstance(inner := getattr(wrapper, "_orig_mod", None), nn.Module):  # of one that torch.compile wraps
            return model, None
        wrapper = inner
    return getattr(wrapper.module, "_orig_mod", wrapper.module), wrapper.process_group


def from_first(where: str, work: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """The result of work, which the first rank does for all. A collective call.

    Raises:
        What work raises there; and on the other ranks RuntimeError, in its words.
    """
    if group is None:
        return work()
    told: list[Any] = [None, None]
    failure = None
    if group.rank() == 0:
        try:
            told[0] = work()
        except Exception as error:  # told to all, for they wait
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(told, group=group, group_src=0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise RuntimeError(f"{where}: rank 0 has failed: {told[1]}")
    return told[0]


def check_whole(where: str, model: nn.Module) -> None:
    """
    Raises:
        TypeError: a parameter is not whole on each rank, as under FSDP or as a DTensor; the message names it.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for name, module in model.named_modules():
        if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
            raise TypeError(f"{where}: {name or 'the model'} is a FullyShardedDataParallel; {_WHOLE}")
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise TypeError(f"{where}: {name} is a DTensor, whose shards lie on several ranks; {_WHOLE}")


_WHOLE = "expected parameters that each rank has whole: DistributedDataParallel keeps them so"
