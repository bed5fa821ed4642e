"""The definition's iterations over samples that several processes share out, each with the same weights.

    F = max over ranks of max_n ℓ_n,    n* = the first sample, in the order of the ranks, that attains it

Each rank keeps the activations of its own samples. An iteration is one exchange, of every rank's worst sample: its
loss, its number, its routes (at most four entries of g with the hinge) and, where A is trained, its features. All ranks
then take the same step from the same numbers: their weights stay equal, and equal to those of one process, bit for bit.
"""

from __future__ import annotations

import math

import torch.distributed as dist
from torch import Tensor

from ...kernels.runtime.ranks import of_ranks
from ..distributed import largest
from .by_cpp import Sparse
from .definition import Dense, Moves, State


class Sharded(Dense):
    """Iterations of all ranks of `group` together, each of which calls every method.

    own: this rank's samples; its `run` is not called.  first: the number of the first of them.
    """

    def __init__(self, state: State, own: Dense | Sparse, group: dist.ProcessGroup, first: int) -> None:
        self.state, self._own, self._group, self._first = state, own, group, first
        self._exchange()

    @property
    def z(self) -> Tensor:
        return self._own.z

    def follow(self, moves: Moves) -> None:
        self._own.follow(moves)
        self._exchange()

    def _exchange(self) -> None:
        ours = self._own.seen
        ours = ours._replace(worst=ours.worst + self._first)
        everybody = of_ranks(ours, self._group)
        worst = largest(everybody, key=lambda seen: (math.isnan(seen.loss), seen.loss))
        right = sum(seen.right for seen in everybody) if ours.right >= 0 else -1
        self.seen = worst._replace(right=right)
