"""Dtypes and integers: the questions that every op asks about its arguments."""

from __future__ import annotations

import numbers
from typing import Any

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PLAIN_FLOATS = (torch.float64, torch.float32)  # which need no wider accumulator
INTEGERS = (torch.int32, torch.int16, torch.int8)


def is_integer(n: Any) -> bool:
    """Whether n is an integer of Python's or NumPy's. A bool does not count as one."""
    return isinstance(n, numbers.Integral) and not isinstance(n, bool)


def as_pair(value: Any, least: int) -> tuple[int, int] | None:
    """The numbers for rows and columns, from one integer for both or from a pair; None where one is below `least`."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(is_integer(n) and n >= least for n in pair):
        return None
    return int(pair[0]), int(pair[1])


def looks_at_values(device: torch.device) -> bool:
    """Whether checks read indices: on the CPU, and on a GPU, where it synchronises, in autograd's detect_anomaly()."""
    return device.type == "cpu" or torch.is_anomaly_enabled()
