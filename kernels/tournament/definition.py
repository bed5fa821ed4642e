"""Who wins, and how a tree of n leaves is laid out: level after level, from the parents of leaves to the root."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.arguments import FLOATS, INTEGERS

DTYPES = (*FLOATS, *INTEGERS)
FAN = 32  # children of a node: a warp's width, and one or two cache lines of a CPU


def levels(n: int) -> list[int]:
    """How many nodes each level has above n leaves: [⌈n / FAN⌉, …, 1]."""
    sizes = [-(-n // FAN)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // FAN))
    return sizes


def node_count(n: int) -> int:
    return sum(levels(n))


def first_of(values: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """The definition: the largest (smallest) along the last dimension and its lowest index; the first NaN if any."""
    best = values.amax(-1, keepdim=True) if largest else values.amin(-1, keepdim=True)
    wins = (values == best) | (values != values)  # a NaN makes `best` NaN, which equals nothing
    index = wins.to(torch.uint8).argmax(-1)  # the first of equals
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1), index
