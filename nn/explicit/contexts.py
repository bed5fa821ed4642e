"""Which rows of F a context of K tokens adds up: one row for each of its K features.

    sum       feature k is the token at distance k, wherever it stands           D = V
    cat       feature k is the pair (distance k, token)                          D = K V
    suffix    feature k is the last k tokens as one key, where it was seen       D = the number of keys seen

An unseen key is row −1: it adds nothing but the smoothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor

Mode = Literal["sum", "cat", "suffix"]
MODES: tuple[Mode, ...] = ("sum", "cat", "suffix")


class Features(Protocol):
    """The features of contexts [n, K], oldest token first. Feature k − 1 has distance, or order, k."""

    @property
    def size(self) -> int:
        """D, the number of rows of F."""
        ...

    @property
    def orders(self) -> int:
        """How many lists of keys tell the features apart."""
        ...

    def rows(self, contexts: Tensor) -> Tensor:
        """[n, K] → [n, K] int64: a row of F for each feature, or −1 for an unseen key."""
        ...

    def needed(self, contexts: Tensor) -> list[Tensor]:
        """The keys of contexts, seen or not: ascending lists, one for each order."""
        ...

    def keys_of(self, rows: Tensor) -> list[Tensor]:
        """The keys of ascending rows."""
        ...

    def places(self, keys: list[Tensor]) -> Tensor:
        """The rows of those keys that were seen, ascending as they are."""
        ...

    def of(self, keys: list[Tensor]) -> Features:
        """The features that these keys alone would make."""
        ...


class _FixedFeatures:
    """Features that are numbered before any text is read: a key is its row."""

    size: int
    orders = 1

    def rows(self, contexts: Tensor) -> Tensor:
        raise NotImplementedError

    def needed(self, contexts: Tensor) -> list[Tensor]:
        return [self.rows(contexts).unique()]

    def keys_of(self, rows: Tensor) -> list[Tensor]:
        return [rows]

    def places(self, keys: list[Tensor]) -> Tensor:
        return keys[0]

    def of(self, keys: list[Tensor]) -> Features:
        return self


class SumFeatures(_FixedFeatures):
    def __init__(self, vocabulary: int) -> None:
        self.size = vocabulary

    def rows(self, contexts: Tensor) -> Tensor:
        return contexts.flip(1)


class CatFeatures(_FixedFeatures):
    def __init__(self, vocabulary: int, radius: int) -> None:
        self.vocabulary, self.size = vocabulary, radius * vocabulary

    def rows(self, contexts: Tensor) -> Tensor:
        first = self.vocabulary * torch.arange(contexts.shape[1], device=contexts.device)
        return contexts.flip(1) + first


class SuffixFeatures:
    """The keys of each order, ascending. A key is the number Σ_j t₋ⱼ Vʲ⁻¹, so V^K must fit in 63 bits."""

    def __init__(self, vocabulary: int, keys: list[Tensor]) -> None:
        self.vocabulary, self.keys = vocabulary, keys
        sizes = torch.tensor([0, *(len(of_order) for of_order in keys)], device="cpu")
        *self.first, self.size = sizes.cumsum(0).tolist()

    @classmethod
    def empty(cls, vocabulary: int, radius: int) -> SuffixFeatures:
        return cls(vocabulary, [torch.empty(0, dtype=torch.int64, device="cpu") for _ in range(radius)])

    def codes(self, contexts: Tensor) -> list[Tensor]:
        code, codes = torch.zeros_like(contexts[:, 0]), []
        for order, token in enumerate(contexts.flip(1).unbind(1)):
            code = code + token * self.vocabulary**order
            codes.append(code)
        return codes

    def rows(self, contexts: Tensor) -> Tensor:
        columns = []
        for first, keys, code in zip(self.first, self.keys, self.codes(contexts), strict=True):
            if len(keys) == 0:
                columns.append(torch.full_like(code, -1))
                continue
            place = torch.searchsorted(keys, code).clamp_(max=len(keys) - 1)
            columns.append(torch.where(keys[place] == code, first + place, -1))
        return torch.stack(columns, 1)

    @property
    def orders(self) -> int:
        return len(self.keys)

    def needed(self, contexts: Tensor) -> list[Tensor]:
        return [code.unique() for code in self.codes(contexts)]

    def keys_of(self, rows: Tensor) -> list[Tensor]:
        ends = torch.searchsorted(rows, torch.tensor([*self.first, self.size], device="cpu"))
        pieces = rows.split(ends.diff().tolist())
        return [keys[piece - first] for keys, piece, first in zip(self.keys, pieces, self.first, strict=True)]

    def places(self, keys: list[Tensor]) -> Tensor:
        places = []
        for first, ours, asked in zip(self.first, self.keys, keys, strict=True):
            place = torch.searchsorted(ours, asked)
            is_seen = place < len(ours)
            is_seen[is_seen.clone()] = ours[place[is_seen]] == asked[is_seen]
            places.append(first + place[is_seen])
        return torch.cat(places)

    def of(self, keys: list[Tensor]) -> SuffixFeatures:
        return SuffixFeatures(self.vocabulary, keys)

    def joined(self, contexts: Iterable[Tensor]) -> SuffixFeatures:
        """These keys and those of more contexts. Keys of many chunks are joined in pairs of like length."""
        runs: list[list[list[Tensor]]] = []  # runs[i] has up to one set of keys, made of 2^i chunks
        for chunk in contexts:
            keys = [code.unique() for code in self.codes(chunk)]
            level = 0
            while level < len(runs) and runs[level]:
                keys = _union(runs[level].pop(), keys)
                level += 1
            if level == len(runs):
                runs.append([])
            runs[level].append(keys)
        keys = self.keys
        for level in runs:
            for more in level:
                keys = _union(keys, more)
        return SuffixFeatures(self.vocabulary, keys)

    def joined_with(self, other: SuffixFeatures) -> SuffixFeatures:
        """These keys and those of another set."""
        return SuffixFeatures(self.vocabulary, _union(self.keys, other.keys))

    def places_in(self, other: SuffixFeatures) -> Tensor:
        """[D]: the row that each of these keys has in a larger set of keys."""
        pairs = zip(self.keys, other.keys, other.first, strict=True)
        return torch.cat([first + torch.searchsorted(theirs, ours) for ours, theirs, first in pairs])


def _union(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [torch.cat([ours, theirs.to(ours.device)]).unique() for ours, theirs in zip(a, b, strict=True)]
