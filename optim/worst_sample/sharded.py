"""The definition's iterations over samples that several processes share out, each with the same weights.

    F = max over ranks of max_n ℓ_n,    n* = the first sample, in the order of the ranks, that attains it

or, with α, the mean of the worst share of all ranks' samples. Each rank keeps the activations of its own samples. An
iteration is one exchange, of every rank's worst samples, as many as F may have part in: of each its loss, its number,
its routes (at most four entries of g with the hinge) and, where A is trained, its features. All ranks then take the
same step from the same numbers: their weights stay equal, and equal to those of one process, bit for bit.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ...kernels.runtime.ranks import of_ranks
from .by_cpp import Sparse
from .definition import Dense, Moves, Observation, State, worst_of


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
        numbered = [sample._replace(n=sample.n + self._first) for sample in ours.tail]
        everybody = of_ranks(ours._replace(tail=numbered), self._group)
        right = sum(seen.right for seen in everybody) if ours.right >= 0 else -1
        candidates = (sample for seen in everybody for sample in seen.tail)
        self.seen = Observation(worst_of(candidates, self.state.mass), right)
