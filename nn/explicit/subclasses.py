"""Subclasses: k-means inside each class, by k-means++ and Lloyd's iterations, over blocks of rows.

Rows are never held all at once: an iteration reads them in blocks, and k-means++ sees a sample of each class. The draws
are seeded, sums are float64, and of equally near centres the first is taken.

Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur & Vassilvitskii, "k-means++: the advantages of careful
seeding", 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor

from ...kernels import cooccurrence

_SAMPLE = 10  # rows for each centre that k-means++ sees

Blocks = Callable[[], Iterable[tuple[slice, Tensor]]]


def subclasses(blocks: Blocks, index: Tensor, kept: Tensor, units: list[int], iterations: int, seed: int) -> Tensor:
    """The subclass of each row: [N] int64; those of class c are numbered from units[0] + … + units[c − 1].

    Args:
        blocks: gives the rows anew at each call: slices of [0, N), and float [n, D].
        index: [N] int64, the rows' classes.
        kept: [N] bool: rows that centres are made of; the others are only assigned. A class has one at least.
        units: how many subclasses each class has.
        iterations: of Lloyd, at most: they end when no row moves.
        seed: of the draws.
    """
    centres = _seeded(blocks, index, kept, units, torch.Generator().manual_seed(seed))
    code, H = _assigned(blocks, index, centres, units), sum(units)
    for _ in range(iterations):
        sums = torch.zeros(H, centres.shape[1], dtype=torch.float64, device=centres.device)
        places = torch.where(kept, code, H)  # rows that are not kept go to one centre more, which is left out
        for part, rows in blocks():
            sums += cooccurrence(rows, places[part], H + 1).t()[:H]
        sizes = torch.bincount(places, minlength=H + 1)[:H, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres.double()).to(centres.dtype)
        before, code = code, _assigned(blocks, index, centres, units)
        if torch.equal(before[kept], code[kept]):
            break
    return code


def _assigned(blocks: Blocks, index: Tensor, centres: Tensor, units: list[int]) -> Tensor:
    """The nearest centre of the row's own class, by ½ ‖m‖² − x · m."""
    code = torch.empty_like(index)
    halves = centres.square().sum(1) / 2
    ends = list(accumulate(units))
    for part, rows in blocks():
        order = index[part].argsort(stable=True)
        ordered, nearest = rows[order], torch.empty_like(order)
        first = 0
        for c, size in enumerate(torch.bincount(index[part], minlength=len(units)).tolist()):
            own, last = slice(ends[c] - units[c], ends[c]), first + size
            if size:
                distances = torch.addmm(halves[own], ordered[first:last], centres[own].t(), alpha=-1)
                nearest[first:last] = distances.argmin(1) + own.start
            first = last
        code[part] = torch.empty_like(nearest).scatter_(0, order, nearest)
    return code


def _seeded(blocks: Blocks, index: Tensor, kept: Tensor, units: list[int], generator: torch.Generator) -> Tensor:
    """k-means++ on a sample of each class: a centre is drawn with the chance of its squared distance to the others."""
    places = torch.arange(len(index), device=index.device)
    drawn = []
    for c, k in enumerate(units):
        own = places[kept & (index == c)]
        order = torch.randperm(len(own), generator=generator, device="cpu")[: _SAMPLE * k]
        drawn.append(own[order.to(own.device)])
    rows = _rows_at(blocks, torch.cat(drawn))
    centres = []
    for k, sample in zip(units, rows.split([len(own) for own in drawn]), strict=True):
        squares = sample.square().sum(1)
        nearest = torch.full_like(squares, float("inf"))
        chosen = 0  # the sample is in random order
        for i in range(k):
            centres.append(sample[chosen])
            if i == k - 1:
                break
            distance = squares - 2 * (sample @ sample[chosen]) + squares[chosen]
            nearest = torch.minimum(nearest, distance.clamp(min=0))
            nearest[chosen] = 0
            chances = nearest.double().cumsum(0)
            at = torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item() * float(chances[-1])
            chosen = min(int(torch.searchsorted(chances, at, right=True)), len(sample) - 1)
    return torch.stack(centres)


def _rows_at(blocks: Blocks, places: Tensor) -> Tensor:
    """The rows at `places`, in that order."""
    order = places.argsort()
    wanted = places[order]
    parts = []
    for part, rows in blocks():
        inside = wanted[(wanted >= part.start) & (wanted < part.stop)]
        parts.append(rows[inside - part.start])
    gathered = torch.cat(parts)
    return torch.empty_like(gathered).index_copy_(0, order, gathered)
