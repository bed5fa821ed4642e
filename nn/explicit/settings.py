"""Checks of the estimators' arguments, made when they learn: a constructor takes them as they are."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from ..arguments import check_positive, is_integer

SEARCH = "search"


def check_number(where: str, name: str, value: Any, *, least: float, open_at_least: bool = False) -> float:
    """A finite number of at least, or more than, `least`.

    Raises:
        TypeError: value is no number.  ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: {name} is {value!r}; expected a number")
    number = float(value)
    if not (number > least if open_at_least else number >= least) or math.isinf(number):
        bound = "more than" if open_at_least else "at least"
        raise ValueError(f"{where}: {name} is {value}; expected a finite number of {bound} {least:g}")
    return number


def check_searchable(where: str, name: str, value: Any, *, least: float, open_at_least: bool = False) -> float | None:
    """The same, or None where value is "search"."""
    if isinstance(value, str):
        if value != SEARCH:
            raise ValueError(f"{where}: {name} is {value!r}; expected a number, or {SEARCH!r}")
        return None
    return check_number(where, name, value, least=least, open_at_least=open_at_least)


def check_choice(where: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """
    Raises:
        ValueError: value is none of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{where}: {name} is {value!r}; expected {' or '.join(map(repr, choices))}")
    return value


def check_bool(where: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{where}: {name} is {value!r}; expected True or False")
    return bool(value)


def check_fraction(where: str, name: str, value: Any) -> float:
    """
    Raises:
        TypeError: value is no number.  ValueError: it is not between 0 and 1.
    """
    check_positive(where, name, value)
    if value >= 1:
        raise ValueError(f"{where}: {name} is {value}; expected a number between 0 and 1")
    return float(value)


def check_seed(where: str, value: Any) -> int:
    """
    Raises:
        TypeError: value is no integer.  ValueError: torch's generators do not take it.
    """
    if not is_integer(value):
        raise TypeError(f"{where}: seed is {value!r}; expected an integer")
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{where}: seed is {value}; expected an integer of 64 bits")
    return int(value)
