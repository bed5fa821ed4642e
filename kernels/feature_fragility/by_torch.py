"""Feature fragility in torch: the same walk along the lines as in C++, for all samples and features at once.

A network is classified by its best unit: with V_j = max_k W2_kj and κ_j the lowest k that reaches it, the class of
x is κ of the largest u_j + V_j. Along feature i a unit is the least of a few lines; the leaves that do not move make
one line together.

The walk goes from δ = 0 along the line by which the predicted class leads. It ends where a unit of another class
reaches that line. Else it goes on where the line's unit turns to a line that rises less, or where another unit of
the class rises above it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

INF = math.inf
_ELEMENTS = 1 << 22  # of the lines that are held at a time


class Network(NamedTuple):
    """A network, by its units alone, in float64."""

    A: Tensor  # [p, d]
    leaves: Tensor  # [q, p]: W1 + V
    classes: Tensor  # [q]: κ


class Columns(NamedTuple):
    """Rows of A that are not 0 in each feature's column."""

    rows: Tensor  # [d, w]: filled up with 0
    slopes: Tensor  # [d, w]: filled up with 0


class Walk(NamedTuple):
    """Walks [B] that are under way, and where each stands."""

    left: Tensor  # [B]: which of all walks
    heights: Tensor  # [B, q, m]
    slopes: Tensor  # [B, m]
    is_own: Tensor  # [B, q]
    own: Tensor  # [B]
    room: Tensor  # [B]
    height: Tensor  # [B]: of the leading line at δ = 0
    slope: Tensor  # [B]
    unit: Tensor  # [B]
    now: Tensor  # [B]: δ


def reduced(A: Tensor, W1: Tensor, W2: Tensor) -> Network:
    """Each unit with its best class."""
    best = W2.double().amax(0)
    places = torch.arange(W2.shape[0], device=W2.device).unsqueeze(1)
    classes = torch.where(W2.double() == best, places, W2.shape[0]).amin(0)
    leaves = torch.where(best.unsqueeze(1) == -INF, -INF, W1.double() + best.unsqueeze(1))
    return Network(A.double(), leaves, classes)


def columns_of(A: Tensor, most: int) -> Columns | None:
    """The rows in each column of A, if no column has more than `most`."""
    moves = A != 0
    width = max(1, int(moves.sum(0).amax())) if A.numel() else 1
    if width > most:
        return None
    rows = moves.T.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return Columns(rows, A.T.gather(1, rows))


def compute(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """x [N, d], A [p, d], W1 [q, p], W2 [K, q], none of them empty -> change [N, d], classes [N, d] int64."""
    network = reduced(A, W1, W2)
    X = x.double()
    z = X @ network.A.T
    (q, p), d = network.leaves.shape, X.shape[1]
    columns = columns_of(network.A, min(8, p // 4))
    lines = p if columns is None else columns.rows.shape[1] + 1
    features = max(1, min(d, _ELEMENTS // (q * lines)))
    samples = max(1, _ELEMENTS // (q * max(p, features * lines)))
    change, classes = torch.empty_like(X), torch.empty(X.shape, dtype=torch.int64, device=X.device)
    for n in range(0, len(X), samples):
        rows = slice(n, n + samples)
        leaves = z[rows, None] + network.leaves
        own = _own_class(leaves.amin(2), network.classes)
        for i in range(0, d, features):
            of = slice(i, i + features)
            heights, slopes = _lines(leaves, network.A, columns, of)
            room = (high - X[rows, of]).flatten(), (X[rows, of] - low).flatten()
            count = slopes.shape[0]
            owns = own.repeat_interleave(count)
            heights, slopes = heights.flatten(0, 1), slopes.repeat(len(leaves), 1)
            up, down = (
                _first_change(heights, sign * slopes, network.classes, owns, most)
                for sign, most in zip((1, -1), room, strict=True)
            )
            is_up = up[0] <= down[0]
            nearer = torch.where(is_up, up[0], -down[0])
            change[rows, of] = torch.where(nearer == -INF, INF, nearer).view(-1, count)
            classes[rows, of] = torch.where(is_up, up[1], down[1]).view(-1, count)
    return change.to(x.dtype), classes


def _own_class(values: Tensor, classes: Tensor) -> Tensor:
    """The class of each sample: of its units [N, q] with the largest value the lowest."""
    largest = values == values.amax(1, keepdim=True)
    return torch.where(largest, classes, torch.iinfo(torch.int64).max).amin(1)


def _lines(leaves: Tensor, A: Tensor, columns: Columns | None, of: slice) -> tuple[Tensor, Tensor]:
    """Heights [N, features, q, lines] at δ = 0, and slopes [features, lines], of leaves [N, q, p]."""
    slopes = A.T[of]
    if columns is None:
        return leaves.unsqueeze(1).expand(-1, len(slopes), -1, -1), slopes
    rows, slopes = columns.rows[of], columns.slopes[of]
    moving = leaves[:, :, rows].transpose(1, 2)  # [N, features, q, w]
    moving = torch.where((slopes != 0)[:, None], moving, INF)
    least = leaves.topk(min(rows.shape[1] + 1, leaves.shape[2]), dim=2, largest=False)
    moves = (least.indices[:, None, :, :, None] == rows[:, None, None, :]) & (slopes != 0)[:, None, None, :]
    others = torch.where(moves.any(4), INF, least.values.unsqueeze(1)).amin(3, keepdim=True)
    return torch.cat([moving, others], dim=3), torch.nn.functional.pad(slopes, (0, 1))


def _first_change(heights: Tensor, slopes: Tensor, classes: Tensor, own: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The first δ ≥ 0, below room, beyond which the class is another, and that class; inf and −1 where there is none.

    heights [B, q, m], slopes [B, m], classes [q], own [B], room [B].
    """
    first, becomes = torch.full_like(room, INF), torch.full_like(own, -1)
    is_own = classes == own.unsqueeze(1)
    value, slope = _least(heights, slopes.unsqueeze(1))
    height = torch.where(is_own, value, -INF).amax(1)
    slope = torch.where(is_own & (value == height.unsqueeze(1)), slope, -INF)
    unit = slope.argmax(1)
    slope = slope.amax(1)
    now = torch.zeros_like(room)
    walk = Walk((room > 0).nonzero().squeeze(1), heights, slopes, is_own, own, room, height, slope, unit, now)
    walk = Walk(walk.left, *(tensor[walk.left] for tensor in walk[1:]))
    while len(walk.left):
        walk = _advanced(walk, classes, first, becomes)
    return first, becomes


def _advanced(walk: Walk, classes: Tensor, first: Tensor, becomes: Tensor) -> Walk:
    """The walks that go on after one event of each; of those that end at a change, it is noted in first and becomes."""
    left, heights, slopes, is_own, own, room, height, slope, unit, now = walk
    # where the leading unit turns
    gap = heights[torch.arange(len(left), device=unit.device), unit] - height.unsqueeze(1)
    fall = slope.unsqueeze(1) - slopes
    at = torch.where(fall > 0, gap / fall, INF)
    turn = at.amin(1)
    turned = torch.where(at == turn.unsqueeze(1), slopes, INF)
    turn_line = turned.argmin(1)
    turn = torch.maximum(turn, now)

    # from where to where each unit lies above the leading line
    gap, rise = heights - height[:, None, None], (slopes - slope.unsqueeze(1)).unsqueeze(1)
    crossing = torch.where(rise == 0, -INF, -gap / rise)
    begin = torch.where(rise > 0, crossing, -INF).amax(2)
    end = torch.where(rise < 0, crossing, INF).amin(2)
    beside = torch.where(rise == 0, gap, INF).amin(2)
    wins = (beside > 0) | ((beside == 0) & ~is_own & (classes < own.unsqueeze(1)))
    start = torch.maximum(begin, now.unsqueeze(1))
    start = torch.where(wins & (start < end), start, INF)
    overtaken = torch.where(is_own, start, INF).amin(1)
    until = torch.minimum(turn, overtaken)

    rival = torch.where(is_own, INF, start)
    change = rival.amin(1)
    changes = change < torch.minimum(until, room)
    ends = changes | ~(until < room)
    goal = torch.where(changes, change, overtaken)
    # the slope of each unit beyond that place: of the line that crosses there, or of the least; a unit with a line
    # on the leading one stays on it
    there = gap + rise * torch.where(goal.isfinite(), goal, 0)[:, None, None]
    there = torch.where((begin >= now.unsqueeze(1)).unsqueeze(2), -crossing.where(rise > 0, -INF), there)
    beyond = torch.where(beside == 0, slope.unsqueeze(1), _least(there, slopes.unsqueeze(1))[1])

    steepest = torch.where(rival == change.unsqueeze(1), beyond, -INF)
    steepest = torch.where(steepest == steepest.amax(1, keepdim=True), classes, torch.iinfo(torch.int64).max)
    hit = left[changes]
    first[hit], becomes[hit] = change[changes] + 0.0, steepest.amin(1)[changes]

    now = until
    steepest = torch.where(is_own & (start == overtaken.unsqueeze(1)), beyond, -INF)
    other = steepest.argmax(1)
    is_other = overtaken <= turn
    slope_there = torch.where(is_other, steepest.amax(1), slopes.gather(1, turn_line.unsqueeze(1)).squeeze(1))
    unit = torch.where(is_other, other, unit)
    lines = heights[torch.arange(len(left), device=unit.device), unit]
    height = torch.where(slopes == slope_there.unsqueeze(1), lines, INF).amin(1)
    slope = slope_there

    goes_on = ~ends
    return Walk(*(tensor[goes_on] for tensor in (left, heights, slopes, is_own, own, room, height, slope, unit, now)))


def _least(lines: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The least of lines [..., m], and its slope: of equals the lowest."""
    value = lines.amin(-1)
    return value, torch.where(lines == value.unsqueeze(-1), slopes, INF).amin(-1)
