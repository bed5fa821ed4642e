"""Counts that ranks share out by key: each holds the rows of F whose features hash to it, of all ranks' texts.

A chunk's counts are made where its text lies and go to the ranks that own their rows: a reduce-scatter by key. So a
model may be larger than the memory of any rank. To read it, a rank asks the owners for the rows that its contexts need,
and has a small model of those: its answers are those of the whole, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.pair_counts import Counts, merge_counts
from .contexts import Features, SuffixFeatures
from .ranks import exchanged


class Part(NamedTuple):
    """Some features of a model, and the rows of F that are theirs."""

    features: Features
    counts: Counts

    def at(self, larger: Features) -> Counts:
        """The counts as rows of a larger set of features."""
        ours, counts = self.features, self.counts
        if isinstance(larger, SuffixFeatures) and isinstance(ours, SuffixFeatures):
            lengths = counts.crow.new_zeros(larger.size)
            lengths[ours.places_in(larger)] = counts.crow.diff()
            counts = counts._replace(crow=_ends(lengths))
        return counts

    def joined(self, other: Part, vocabulary: int) -> Part:
        """The sum of both."""
        features = self.features
        if isinstance(features, SuffixFeatures) and isinstance(other.features, SuffixFeatures):
            features = features.joined_with(other.features)
        return Part(features, Counts(*merge_counts(self.at(features), other.at(features), vocabulary)))


class Runs:
    """A sum of many parts, each of which is merged O(log n) times: every run is twice as large as the next."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._runs = vocabulary, list[Part]()

    def add(self, part: Part) -> None:
        self._runs.append(part)
        while len(self._runs) > 1 and len(self._runs[-2].counts.columns) < 2 * len(self._runs[-1].counts.columns):
            self._merge_last()

    def sum(self) -> Part | None:
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else None

    def _merge_last(self) -> None:
        last, before = self._runs.pop(), self._runs.pop()
        self._runs.append(before.joined(last, self._vocabulary))


# ------------------------------------------------------------------------------------------------ between ranks


def to_owners(part: Part, group: dist.ProcessGroup) -> list[Part]:
    """The counts of all ranks for the rows that this one owns. A collective call."""
    rows = part.counts.crow.diff().nonzero()[:, 0]
    owner = _owners(part.features.keys_of(rows), group.size())
    messages = [_message(part, rows[owner == rank]) for rank in range(group.size())]
    return [_read(part, message) for message in exchanged(messages, group)]


def from_owners(share: Part, contexts: Tensor, vocabulary: int, group: dist.ProcessGroup) -> Part:
    """The rows that these contexts [n, K] need, of all ranks' shares. A collective call."""
    keys = share.features.needed(contexts)
    owner, sizes = _owners(keys, group.size()), [len(of_order) for of_order in keys]
    asked = [
        _listed([of_order[mine == rank] for of_order, mine in zip(keys, owner.split(sizes), strict=True)])
        for rank in range(group.size())
    ]
    places = share.features.places
    replies = [_message(share, places(_keys(question, len(keys))[0])) for question in exchanged(asked, group)]
    runs = Runs(vocabulary)
    for reply in exchanged(replies, group):
        runs.add(_read(share, reply))
    part = runs.sum()
    assert part is not None
    return part


def _owners(keys: list[Tensor], ranks: int) -> Tensor:
    """The rank that owns each key, one order after the other: a hash, for frequent tokens have low numbers."""
    mixed = torch.cat([key + 0x51ED2701 * order for order, key in enumerate(keys)])
    for _ in range(2):
        mixed = (mixed ^ (mixed >> 29)) * -7046029254386353131  # an odd number; products wrap
    return ((mixed >> 33) & 0x7FFFFFFF) % ranks


def _message(part: Part, rows: Tensor) -> Tensor:
    """Rows of F as integers: how many of each order, their keys, their lengths, their columns and counts."""
    crow, columns, counts = part.counts
    begins, lengths = crow[rows], crow[rows + 1] - crow[rows]
    shifts = begins - (lengths.cumsum(0) - lengths)
    entries = torch.arange(int(lengths.sum()), device=crow.device) + shifts.repeat_interleave(lengths)
    listed = _listed(part.features.keys_of(rows))
    return torch.cat([listed, lengths, columns[entries].long(), counts[entries]])


def _read(like: Part, message: Tensor) -> Part:
    keys, rest = _keys(message, like.features.orders)
    rows = sum(len(of_order) for of_order in keys)
    lengths, entries = rest[:rows], rest[rows:]
    columns, counts = entries.chunk(2) if len(entries) else (entries, entries)
    features = like.features.of(keys)
    of_rows = lengths.new_zeros(features.size)
    of_rows[features.places(keys)] = lengths
    return Part(features, Counts(_ends(of_rows), columns.to(like.counts.columns.dtype), counts.clone()))


def _listed(keys: list[Tensor]) -> Tensor:
    return torch.cat([torch.tensor([len(of_order) for of_order in keys]), *keys])


def _keys(message: Tensor, orders: int) -> tuple[list[Tensor], Tensor]:
    """The keys of each order at the begin of a message, and what follows them."""
    sizes = message[:orders].tolist()
    end = orders + sum(sizes)
    return list(message[orders:end].split(sizes)), message[end:]


def _ends(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
