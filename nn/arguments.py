"""Checks of the numbers that layers and losses are made from: errors name the layer, what came and what is expected."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_size(layer: str, name: str, size: Any) -> None:
    """
    Raises:
        TypeError: size is no integer.  ValueError: it is less than 1.
    """
    if not is_integer(size):
        raise TypeError(f"{layer}: {name} is {size!r}; expected an integer, at least 1")
    if size < 1:
        raise ValueError(f"{layer}: {name} is {size}; expected at least 1")


def check_positive(layer: str, name: str, value: Any) -> None:
    """
    Raises:
        TypeError: value is no number.  ValueError: it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{layer}: {name} is {value!r}; expected a number")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{layer}: {name} is {value}; expected a positive, finite number")


def pair(layer: str, name: str, size: Any) -> tuple[int, int]:
    """The sizes for rows and columns, from one integer for both or from a pair.

    Raises:
        TypeError: it is neither an integer nor a pair of integers.
    """
    if is_integer(size):
        return size, size
    if isinstance(size, tuple | list) and len(size) == 2 and all(map(is_integer, size)):
        return size[0], size[1]
    raise TypeError(f"{layer}: {name} is {size!r}; expected an integer, or a pair of them for rows and columns")


def is_integer(size: Any) -> bool:
    """Whether size is an integer of Python's or NumPy's. A bool does not count as one."""
    return isinstance(size, numbers.Integral) and not isinstance(size, bool)
