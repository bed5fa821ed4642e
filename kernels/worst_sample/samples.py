"""What a step changes in a block of samples: the winners of the minima and maxima in which a leaf moved, then ℓ.

A route (k, j, i) of the step moved the leaf i of unit j and, by it, the leaf j of every class. A leaf that beats the
winner wins, at equal values the lower index; where the winner itself has fallen behind its old value, all leaves are
read again. These few pairs of a minimum or maximum and a sample are listed first, so that a group of them is read
together, each along its own row of z or u: a lane that read its leaves one after the other would wait p times.

A value is always computed from its leaf, and samples know nothing of each other: any block, in any order, leaves the
bits of a dense evaluation. Routes of one unit move the same leaf, and write the same values.
"""

from __future__ import annotations

import math

from ..triton_or_stub import tl, triton

INFINITY = tl.constexpr(math.inf)
NOBODY = tl.constexpr((1 << 31) - 1)  # above the number of any sample


@triton.jit
def first_largest(values, numbers):
    """The largest of the values and its least number; NaN is larger than all."""
    is_nan = values != values
    top = tl.max(tl.where(is_nan, INFINITY, values), axis=0)
    any_nan = tl.max(is_nan.to(tl.int32), axis=0) > 0
    leads = tl.where(any_nan, is_nan, values == top)
    return tl.where(any_nan, float("nan"), top), tl.min(tl.where(leads, numbers, NOBODY), axis=0)


@triton.jit
def _enter(v, index, best, winner, MAXIMUM: tl.constexpr):
    """The leaf `index` has moved to v: the best, its winner, and where all leaves must be read."""
    own = winner == index
    ahead = (v > best) if MAXIMUM else (v < best)
    behind = (v < best) if MAXIMUM else (v > best)
    wins = (winner != index) & (ahead | ((v == best) & (index < winner)))
    return tl.where(wins | own, v, best), tl.where(wins, index, winner), own & behind


@triton.jit
def _listed(unsure, pairs_ptr, SIZE: tl.constexpr):
    """Writes the places of what is set in `unsure` [rows, BLOCK], of SIZE elements; how many these are."""
    flat = tl.reshape(unsure.to(tl.int32), [SIZE])
    count = tl.sum(flat, axis=0)
    if count > 0:
        tl.store(pairs_ptr + tl.cumsum(flat, axis=0) - 1, tl.arange(0, SIZE), mask=flat > 0)
    return count


@triton.jit
def _seek(
    run, pairs_ptr, pairs, first_row, first_n,
    UNITS: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    """The winners of the listed pairs, among all leaves: of units from route `first_row` on, or of classes."""
    count = run.p if UNITS else run.q
    leaves_ptr, weights_ptr = (run.z, run.w1) if UNITS else (run.u, run.w2)
    worst: tl.constexpr = INFINITY if UNITS else -INFINITY
    for begin in range(0, pairs, PAIRS):
        slots = begin + tl.arange(0, PAIRS)
        of_pair = slots < pairs
        at = tl.load(pairs_ptr + slots, of_pair, other=0)
        row, n = first_row + at // BLOCK, (first_n + at % BLOCK).to(tl.int64)
        if UNITS:
            row = tl.load(run.route_j + row, of_pair, other=0)
        row = row.to(tl.int64)
        top = tl.full([PAIRS, LEAVES], worst, run.u.dtype.element_ty)
        first = tl.zeros([PAIRS, LEAVES], tl.int32)
        for leaf in range(0, count, LEAVES):
            index = leaf + tl.arange(0, LEAVES)
            inside = of_pair[:, None] & (index < count)[None, :]
            x = tl.load(leaves_ptr + n[:, None] * count + index[None, :], inside, other=worst)
            x += tl.load(weights_ptr + row[:, None] * count + index[None, :], inside, other=0.0)
            better = (x < top) if UNITS else (x > top)
            first = tl.where(better, index[None, :], first)
            top = tl.where(better, x, top)
        best = tl.min(top, axis=1) if UNITS else tl.max(top, axis=1)
        winner = tl.min(tl.where(top == best[:, None], first, count), axis=1)
        if UNITS:
            tl.store(run.ut + row * run.N + n, best, of_pair)
            tl.store(run.i + row * run.N + n, winner, of_pair)
            tl.store(run.u + n * run.q + row, best, of_pair)
        else:
            tl.store(run.f + row * run.N + n, best, of_pair)
            tl.store(run.j + row * run.N + n, winner, of_pair)


@triton.jit
def _losses(run, offs, mask, HINGE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """ℓ of samples, and the first class of the highest score."""
    dtype: tl.constexpr = run.f.dtype.element_ty
    margin = tl.load(run.levels).to(dtype)
    labels = tl.load(run.y + offs, mask, other=0)
    own = tl.zeros([BLOCK], dtype)
    rival = tl.full([BLOCK], -INFINITY, dtype)
    top = tl.full([BLOCK], -INFINITY, dtype)
    predicted = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, run.K, ROWS):
        k = (begin + tl.arange(0, ROWS))[:, None]
        f = tl.load(run.f + k.to(tl.int64) * run.N + offs[None, :], (k < run.K) & mask[None, :], other=-INFINITY)
        is_own = k == labels[None, :]
        own += tl.sum(tl.where(is_own, f, 0.0), axis=0)
        rival = tl.maximum(rival, tl.max(tl.where(is_own, -INFINITY, f + margin), axis=0))
        highest = tl.max(f, axis=0)
        first = tl.min(tl.where(f == highest[None, :], k, run.K), axis=0)
        predicted = tl.where(highest > top, first, predicted)
        top = tl.maximum(top, highest)
    losses = tl.where(rival - own < 0, 0.0, rival - own)
    if not HINGE:  # one class after the other: the order of the sum is the definition's
        total = tl.zeros([BLOCK], tl.float64)
        for k in range(run.K):
            f = tl.load(run.f + tl.cast(k, tl.int64) * run.N + offs, mask, other=0.0)
            total += tl.exp(f.to(tl.float64) - top.to(tl.float64))
        losses = (top.to(tl.float64) + tl.log(total) - own.to(tl.float64)).to(dtype)
    return losses, predicted == labels


@triton.jit
def visit(
    run, block, pairs_ptr,
    HINGE: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    """Samples block · BLOCK and on: their winners, and of the block the largest loss and how many are right.

    pairs_ptr: [ROWS · BLOCK] int32, this program's own.
    """
    first_n = block * BLOCK
    offs = first_n + tl.arange(0, BLOCK)
    mask = offs < run.N
    routes = 2 if HINGE else run.K
    units: tl.constexpr = 2 if HINGE else CLASSES if CLASSES < ROWS else ROWS  # pyright: ignore[reportAssignmentType]

    for begin in range(0, routes, units):
        route = begin + tl.arange(0, units)
        j = tl.load(run.route_j + route, route < routes, other=0).to(tl.int64)[:, None]
        i = tl.load(run.route_i + route, route < routes, other=0)[:, None]
        inside = (route < routes)[:, None] & mask[None, :]
        v = tl.load(run.zt + i.to(tl.int64) * run.N + offs[None, :], inside, other=0.0) + tl.load(
            run.w1 + j * run.p + i
        )
        at = j * run.N + offs[None, :]
        best, winner = tl.load(run.ut + at, inside, other=0.0), tl.load(run.i + at, inside, other=-1)
        now, now_winner, unsure = _enter(v, i, best, winner, False)
        changed = inside & (now != best)
        tl.store(run.ut + at, now, changed)
        tl.store(run.u + offs[None, :].to(tl.int64) * run.q + j, now, changed)
        tl.store(run.i + at, now_winner, inside & (now_winner != winner))
        pairs = _listed(unsure & inside, pairs_ptr, units * BLOCK)
        tl.debug_barrier()
        if pairs > 0:
            _seek(run, pairs_ptr, pairs, begin, first_n, True, BLOCK, PAIRS, LEAVES)
            tl.debug_barrier()

    for begin in range(0, run.K, ROWS):
        k = begin + tl.arange(0, ROWS)
        inside = (k < run.K)[:, None] & mask[None, :]
        at = k.to(tl.int64)[:, None] * run.N + offs[None, :]
        best, winner = tl.load(run.f + at, inside, other=0.0), tl.load(run.j + at, inside, other=-1)
        now, now_winner = best, winner
        unsure = inside & False
        for route in range(routes):
            j = tl.load(run.route_j + route)
            u = tl.load(run.ut + j.to(tl.int64) * run.N + offs, mask, other=0.0)
            w = tl.load(run.w2 + k.to(tl.int64) * run.q + j, k < run.K, other=0.0)
            now, now_winner, fallen = _enter(u[None, :] + w[:, None], j, now, now_winner, True)
            unsure |= fallen & inside
        tl.store(run.f + at, now, inside & (now != best))
        tl.store(run.j + at, now_winner, inside & (now_winner != winner))
        pairs = _listed(unsure, pairs_ptr, ROWS * BLOCK)
        tl.debug_barrier()
        if pairs > 0:
            _seek(run, pairs_ptr, pairs, begin, first_n, False, BLOCK, PAIRS, LEAVES)
            tl.debug_barrier()

    losses, is_right = _losses(run, offs, mask, HINGE, BLOCK, ROWS)
    largest, worst = first_largest(tl.where(offs < run.training, losses, -INFINITY), offs)
    tl.store(run.largest + block, largest)
    tl.store(run.worst + block, worst)
    if WATCHED:
        is_right &= mask & (offs >= run.training)
        tl.store(run.right + block, tl.sum(is_right.to(tl.int32), axis=0))
