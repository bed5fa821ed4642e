"""Exchanges between the ranks of torch.distributed: every rank gets the same answer, in the order of the ranks.

A group of None is one process, which is its own and only rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


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
