"""Dtypes and integers: the questions that every op asks about its arguments."""

from __future__ import annotations

import numbers
from typing import Any

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int16, torch.int8)


def is_integer(n: Any) -> bool:
    """Whether n is an integer of Python's or NumPy's. A bool does not count as one."""
    return isinstance(n, numbers.Integral) and not isinstance(n, bool)
