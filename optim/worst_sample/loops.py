"""The loop that runs the iterations, by backend: the one place that makes one, for a run and for the tuner."""

from __future__ import annotations

from ...kernels.runtime.implementations import Implementations
from .by_cpp import Sparse, activate
from .by_triton import Cached
from .checks import WHERE
from .definition import Dense, State


def _in_triton(state: State, memory: str) -> Cached:
    return Cached(state, activate, is_shared=memory == "launch")


def _in_torch(state: State, memory: str) -> Dense:
    return Dense(state, activate)


# (state, memory) -> the loop; a memory is C++'s to choose
LOOPS = Implementations(WHERE, torch=_in_torch, cpp=Sparse, triton=_in_triton)
