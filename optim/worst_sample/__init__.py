"""Iterations of subgradient descent on the worst sample of a linear-min-max network (see definition.py)."""

from .by_cpp import DTYPES, MEMORIES, Sparse, activate, bytes_needed, is_available
from .definition import Dense, Progress, Samples, Settings, State, Weights, beginning
from .sharded import Sharded

__all__ = [
    "DTYPES",
    "MEMORIES",
    "Dense",
    "Progress",
    "Samples",
    "Settings",
    "Sharded",
    "Sparse",
    "State",
    "Weights",
    "activate",
    "beginning",
    "bytes_needed",
    "is_available",
]
