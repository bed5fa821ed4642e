"""Dtypes and integers: the questions that every op asks about its arguments."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import backend

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PLAIN_FLOATS = (torch.float64, torch.float32)  # which need no wider accumulator
INTEGERS = (torch.int32, torch.int16, torch.int8)


def is_integer(n: Any) -> bool:
    """Whether n is an integer of Python's or NumPy's. A bool does not count as one."""
    return type(n) is int or (isinstance(n, numbers.Integral) and not isinstance(n, bool))


def as_pair(value: Any, least: int) -> tuple[int, int] | None:
    """The numbers for rows and columns, from one integer for both or from a pair; None where one is below `least`."""
    if type(value) is int and value >= least:
        return value, value
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(is_integer(n) and n >= least for n in pair):
        return None
    return int(pair[0]), int(pair[1])


def looks_at_values(device: torch.device) -> bool:
    """Whether checks read indices: on the CPU, and on a GPU, where it synchronises, in autograd's detect_anomaly()."""
    return device.type == "cpu" or torch.is_anomaly_enabled()


def listed(dtypes: Iterable[torch.dtype]) -> str:
    """The names of dtypes, for an error: "float64, float32"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def broadcast(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes broadcast."""
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b), strict=False))


def under_autocast(tensors: Sequence[Any], *, sums: bool = False) -> Sequence[Any]:
    """Float tensors as autocast wants them, in the widest of their dtypes: nothing is cast down.

    Outside autocast, and where one of them is no float tensor, they stay as they are.

    sums: whether more than two terms are added; the tensors then meet in float32 at least.
    """
    if not tensors or not all(isinstance(x, Tensor) and x.dtype in FLOATS for x in tensors):
        return tensors
    device = tensors[0].device.type
    if device not in backend.DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    widest = torch.float32 if sums else tensors[0].dtype
    for x in tensors:
        widest = torch.promote_types(widest, x.dtype)
    return [x.to(widest) for x in tensors]
