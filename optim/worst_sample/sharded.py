"""The definition's iterations over samples that several processes share out, each with the same weights.

    F = max over ranks of max_n ℓ_n,    n* = the first sample, in the order of the ranks, that attains it

An iteration is two collective calls. The ranks take the maximum of (ℓ, −rank), one number; the rank that attains it
broadcasts its worst sample: ℓ, its number, its routes (at most four entries of g with the hinge) and, where A is
trained, its features. While the maximum is under way, so is the sum of the validation samples classified rightly. Each
rank keeps the activations of its own samples, and all take the same step from the same numbers: their weights stay
equal, and equal to those of one process, bit for bit.

With α, F is the mean of the worst share of all ranks' samples, and each rank gathers as many of every rank's as F may
have part in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.runtime.ranks import begun, exchange, finish
from .by_cpp import Sparse
from .checks import WHERE
from .definition import Dense, Moves, Observation, Seen, State, worst_of

_HEAD = 5  # numbers of a sample before its routes: ℓ, n, the largest score, right, how many routes
_RANKS = 1 << 31  # more than there are


class Meeting:
    """Where the worst sample of all ranks takes the place of this rank's, in `seen` and `x`.

    seen: [5 + 4 routes] float64: ℓ, n, the largest score, validation samples classified rightly, the number of routes
    (negative: nobody has met yet), then (k, j, i, c) of each.  x: [d], the sample's features; None where A is fixed.
    """

    def __init__(self, state: State, group: dist.ProcessGroup) -> None:
        weights = state.weights
        routes = 2 if state.settings.loss == "hinge" else len(weights.w2)
        self.seen = torch.zeros(_HEAD + 4 * routes, dtype=torch.float64, device="cpu")
        self.seen[_HEAD - 1] = -1
        self.x = torch.zeros_like(state.samples.x[0]) if state.settings.train_a else None
        self._group = group
        self._is_watched = state.best_right is not None
        self._is_wide = weights.w1.dtype == torch.float64
        # what is sent lies where the group's backend takes it
        self._key = torch.zeros(1, dtype=torch.int64, device=weights.w1.device)
        self._right = torch.zeros_like(self._key)
        self._sent = self.seen.to(weights.w1.device)

    def __call__(self) -> None:
        group, right = self._group, None
        if self._is_watched:
            self._right[0] = int(self.seen[3])
            right = begun(WHERE, group, lambda: dist.all_reduce(self._right, group=group, async_op=True))
        source = dist.get_global_rank(group, self._leader(float(self.seen[0])))
        if self._sent is not self.seen:
            self._sent.copy_(self.seen)
        sent = [self._sent] if self.x is None else [self._sent, self.x]
        works = [begun(WHERE, group, lambda x=x: dist.broadcast(x, source, group=group, async_op=True)) for x in sent]
        for work in (*works, right):
            finish(WHERE, group, work)
        if self._sent is not self.seen:
            self.seen.copy_(self._sent)
        self.seen[3] = int(self._right) if self._is_watched else 0

    def _leader(self, loss: float) -> int:
        """The first rank of the largest loss; NaN is larger than all."""
        rank = self._group.rank()
        if not self._is_wide:  # a loss of 32 bits leaves room for the rank beside it
            top = self._largest(_ordered(loss, "<f", "<i") * _RANKS + (_RANKS - 1 - rank))
            return _RANKS - 1 - top % _RANKS
        own = _ordered(loss, "<d", "<q")
        leads = self._largest(own) == own
        return _RANKS - 1 - self._largest(_RANKS - 1 - rank if leads else 0)

    def _largest(self, key: int) -> int:
        self._key[0] = key
        group = self._group
        exchange(WHERE, group, lambda: dist.all_reduce(self._key, dist.ReduceOp.MAX, group=group, async_op=True))
        return int(self._key)


def _ordered(loss: float, number: str, integer: str) -> int:
    """An integer of the same width that grows with the loss; the largest of NaN."""
    bits: int = struct.unpack(integer, struct.pack(number, loss))[0]
    most = (1 << (8 * struct.calcsize(integer) - 1)) - 1
    if math.isnan(loss):
        return most
    return bits if bits >= 0 else -(bits & most)


class Sharded(Dense):
    """Iterations of all ranks of `group` together, each of which calls every method.

    own: this rank's samples; where it is C++'s and F is one sample's, its loop meets the others, else `run` is here.
    counts: training samples of each rank.
    """

    def __init__(self, state: State, own: Dense | Sparse, group: dist.ProcessGroup, counts: Sequence[int]) -> None:
        self.state, self._own, self._group = state, own, group
        self._first = sum(counts[: group.rank()])
        self._tail = min(math.ceil(state.mass), max(counts))  # samples that a rank may bring
        self._meeting = Meeting(state, group)
        self._is_compiled = isinstance(own, Sparse) and state.mass == 1
        if isinstance(own, Sparse) and self._is_compiled:
            own.share(self._meeting, self._meeting.seen, self._meeting.x, self._first)
        else:
            self._exchange()

    @property
    def z(self) -> Tensor:
        return self._own.z

    def run(self, iterations: int, trace: Tensor) -> int:
        return self._own.run(iterations, trace) if self._is_compiled else super().run(iterations, trace)

    def follow(self, moves: Moves) -> None:
        self._own.follow(moves)
        self._exchange()

    def _exchange(self) -> None:
        ours = self._own.seen
        if self.state.mass > 1:
            self.seen = self._gathered(ours)
            return
        meeting = self._meeting
        meeting.seen.copy_(self._line(ours.tail[0], ours.right))
        if meeting.x is not None:
            meeting.x.copy_(ours.tail[0].x)  # pyright: ignore[reportArgumentType]
        meeting()
        line = meeting.seen.tolist()
        seen = _sample(line, None if meeting.x is None else meeting.x.clone())
        self.seen = Observation([seen], int(line[3]) if ours.right >= 0 else -1)

    def _line(self, sample: Seen, right: int) -> Tensor:
        """A sample as the ranks tell each other."""
        routes = [number for route in sample.routes for number in route]
        line = torch.zeros_like(self._meeting.seen)
        head = [sample.loss, sample.n + self._first, sample.largest, right, len(sample.routes)]
        line[: _HEAD + len(routes)] = torch.tensor(head + routes, dtype=torch.float64, device="cpu")
        return line

    def _gathered(self, ours: Observation) -> Observation:
        """The worst of all ranks' tails."""
        width = len(self._meeting.seen)
        lines = torch.full((self._tail, width), -1.0, dtype=torch.float64, device="cpu")  # n = −1: none
        for line, sample in zip(lines, ours.tail, strict=False):
            line.copy_(self._line(sample, ours.right))
        everybody = self._all(lines.to(self.state.weights.w1.device)).cpu().tolist()
        features = None
        if self.state.settings.train_a:
            own = self.state.samples.x.new_zeros(self._tail, self.state.samples.x.shape[1])
            for row, sample in zip(own, ours.tail, strict=False):
                row.copy_(sample.x)  # pyright: ignore[reportArgumentType]
            features = self._all(own)
        samples = (
            _sample(line, None if features is None else features[at])
            for at, line in enumerate(everybody)
            if line[1] >= 0
        )
        right = sum(int(line[3]) for line in everybody[:: self._tail]) if ours.right >= 0 else -1
        return Observation(worst_of(samples, self.state.mass), right)

    def _all(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, under each other."""
        group, everybody = self._group, [torch.empty_like(rows) for _ in range(self._group.size())]
        exchange(WHERE, group, lambda: dist.all_gather(everybody, rows, group=group, async_op=True))
        return torch.cat(everybody)


def _sample(line: list[float], x: Tensor | None) -> Seen:
    loss, n, largest, _, count = line[:_HEAD]
    places = range(_HEAD, _HEAD + 4 * int(count), 4)
    routes = [(int(line[at]), int(line[at + 1]), int(line[at + 2]), line[at + 3]) for at in places]
    return Seen(loss, int(n), largest, routes, x)
