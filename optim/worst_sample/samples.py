"""The changes that a step makes in a block of samples: to the winners of minima and maxima whose leaf moved, then to ℓ.

A route (k, j, i) of the step moved the leaf i of unit j and the leaf j of class k: one leaf of every sample is looked
at. Where unit j has changed, so has the leaf j of every class: those samples are few, and listed. A leaf that beats the
winner wins, at equal values the lower index. A winner that has fallen stays as long as it beats a bound, which none of
the others does; else all leaves are read again. These pairs of a row and a sample are listed too, so that a group of
them is read together, each along its own row of z or u: a lane that read its leaves one by one would wait p times.

A value is always computed from its leaf, and samples know nothing of each other: any block, in any order, leaves the
bits of a dense evaluation. Routes of one unit move the same leaf, and write the same values.
"""

from __future__ import annotations

import math

from ...triton_or_stub import tl, triton

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
def _enter(v, index, best_ptr, winner_ptr, bound_ptr, at, inside, MAXIMUM: tl.constexpr):
    """Enters the new value v of leaf `index`; returns where the best has changed, and where all leaves must be read.

    There the best is replaced by the worst value, so that no later leaf of the step finds it fallen once more.
    """
    best, winner = tl.load(best_ptr + at, inside, other=0.0), tl.load(winner_ptr + at, inside, other=-1)
    bound = tl.load(bound_ptr + at, inside, other=0.0)
    own = winner == index
    beats_best, beats_bound = (v > best, v > bound) if MAXIMUM else (v < best, v < bound)
    wins = inside & (winner != index) & (beats_best | ((v == best) & (index < winner)))
    follows = inside & (winner != index) & (wins == 0) & beats_bound
    fallen = inside & own & (v != best) & (beats_best == 0) & (beats_bound == 0)
    changed = fallen | ((wins | (inside & own)) & (v != best))
    tl.debug_barrier()  # threads may hold copies of an element: all have read what one of them now writes
    tl.store(best_ptr + at, tl.where(fallen, -INFINITY if MAXIMUM else INFINITY, v), changed)
    tl.store(winner_ptr + at, index, wins)
    tl.store(bound_ptr + at, tl.where(wins, best, v), wins | follows)
    return changed, fallen


@triton.jit
def _listed(chosen, places, list_ptr, count, SIZE: tl.constexpr):
    """Appends the places of the chosen ones, out of SIZE elements, to a list of `count`; returns its new length."""
    flat = tl.reshape(chosen.to(tl.int32), [SIZE])
    more = tl.sum(flat, axis=0)
    if more > 0:
        at = count - 1 + tl.cumsum(flat, axis=0)
        tl.store(list_ptr + at, tl.reshape(places, [SIZE]), mask=flat > 0)
    return count + more


@triton.jit
def _seek(
    run, pairs_ptr, pairs, first_n,
    UNITS: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    """Finds the winners of the listed pairs among all leaves of a unit or a class."""
    count = run.p if UNITS else run.q
    leaves_ptr, weights_ptr = (run.z, run.w1) if UNITS else (run.u, run.w2)
    worst: tl.constexpr = INFINITY if UNITS else -INFINITY
    for begin in range(0, pairs, PAIRS):
        slots = begin + tl.arange(0, PAIRS)
        inside = slots < pairs
        at = tl.load(pairs_ptr + slots, inside, other=0)
        row, n = (at // BLOCK).to(tl.int64), (first_n + at % BLOCK).to(tl.int64)
        top = tl.full([PAIRS, LEAVES], worst, run.u.dtype.element_ty)
        second = top
        first = tl.zeros([PAIRS, LEAVES], tl.int32)
        for leaf in range(0, count, LEAVES):
            index = leaf + tl.arange(0, LEAVES)
            exists = inside[:, None] & (index < count)[None, :]
            x = tl.load(leaves_ptr + n[:, None] * count + index[None, :], exists, other=worst)
            x += tl.load(weights_ptr + row[:, None] * count + index[None, :], exists, other=0.0)
            better = (x < top) if UNITS else (x > top)
            beaten = tl.where(better, top, x)
            second = tl.minimum(second, beaten) if UNITS else tl.maximum(second, beaten)
            first = tl.where(better, index[None, :], first)
            top = tl.where(better, x, top)
        best = tl.min(top, axis=1) if UNITS else tl.max(top, axis=1)
        winner = tl.min(tl.where(top == best[:, None], first, count), axis=1)
        others = tl.where((top == best[:, None]) & (first == winner[:, None]), second, top)
        bound = tl.min(others, axis=1) if UNITS else tl.max(others, axis=1)
        at = row * run.N + n
        if UNITS:
            tl.store(run.ut + at, best, inside)
            tl.store(run.i + at, winner, inside)
            tl.store(run.unit_bound + at, bound, inside)
            tl.store(run.u + n * run.q + row, best, inside)
        else:
            tl.store(run.f + at, best, inside)
            tl.store(run.j + at, winner, inside)
            tl.store(run.score_bound + at, bound, inside)


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
    run, block, lists_ptr,
    HINGE: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    """Updates the winners of samples block · BLOCK and on; stores the block's largest loss and how many are right.

    lists_ptr: [1 + K, BLOCK] int32, this program's own: samples, then pairs.
    """
    first_n = block * BLOCK
    lanes = tl.arange(0, BLOCK)
    offs = first_n + lanes
    mask = offs < run.N
    pairs_ptr = lists_ptr + BLOCK
    routes = 2 if HINGE else run.K
    rows: tl.constexpr = 2 if HINGE else CLASSES if CLASSES < ROWS else ROWS  # pyright: ignore[reportAssignmentType]

    # the leaves of units
    moved = lanes < 0
    pairs = 0
    for begin in range(0, routes, rows):
        route = begin + tl.arange(0, rows)
        j = tl.load(run.route_j + route, route < routes, other=0)[:, None]
        i = tl.load(run.route_i + route, route < routes, other=0)[:, None]
        inside = (route < routes)[:, None] & mask[None, :]
        row = j.to(tl.int64)
        v = tl.load(run.zt + i.to(tl.int64) * run.N + offs[None, :], inside, other=0.0)
        v += tl.load(run.w1 + row * run.p + i)
        at = row * run.N + offs[None, :]
        changed, unsure = _enter(v, i, run.ut, run.i, run.unit_bound, at, inside, False)
        tl.store(run.u + offs[None, :].to(tl.int64) * run.q + j, v, changed)
        pairs = _listed(unsure, j * BLOCK + lanes[None, :], pairs_ptr, pairs, rows * BLOCK)
        moved |= tl.max(changed.to(tl.int32), axis=0) > 0
    samples = _listed(moved, lanes, lists_ptr, 0, BLOCK)
    tl.debug_barrier()
    if pairs > 0:
        _seek(run, pairs_ptr, pairs, first_n, True, BLOCK, PAIRS, LEAVES)
        tl.debug_barrier()

    # the leaves of classes: of those whose weight moved, then of the samples whose units changed
    pairs = 0
    for begin in range(0, routes, rows):
        route = begin + tl.arange(0, rows)
        k = tl.load(run.route_k + route, route < routes, other=0)[:, None]
        j = tl.load(run.route_j + route, route < routes, other=0)[:, None]
        inside = (route < routes)[:, None] & mask[None, :]
        v = tl.load(run.ut + j.to(tl.int64) * run.N + offs[None, :], inside, other=0.0)
        v += tl.load(run.w2 + k.to(tl.int64) * run.q + j)
        at = k.to(tl.int64) * run.N + offs[None, :]
        _, unsure = _enter(v, j, run.f, run.j, run.score_bound, at, inside, True)
        pairs = _listed(unsure, k * BLOCK + lanes[None, :], pairs_ptr, pairs, rows * BLOCK)
    tl.debug_barrier()
    for begin in range(0, samples, PAIRS):
        slots = begin + tl.arange(0, PAIRS)
        lane = tl.load(lists_ptr + slots, slots < samples, other=0)
        n = first_n + lane
        for first in range(0, run.K, ROWS):
            k = (first + tl.arange(0, ROWS))[:, None]
            inside = (k < run.K) & (slots < samples)[None, :]
            at = k.to(tl.int64) * run.N + n[None, :]
            unsure = k + lane[None, :] < 0
            for route in range(routes):
                j = tl.load(run.route_j + route).to(tl.int64)
                v = tl.load(run.ut + j * run.N + n, slots < samples, other=0.0)[None, :]
                v += tl.load(run.w2 + k.to(tl.int64) * run.q + j, k < run.K, other=0.0)
                _, fallen = _enter(v, j, run.f, run.j, run.score_bound, at, inside, True)
                unsure |= fallen
            pairs = _listed(unsure, k * BLOCK + lane[None, :], pairs_ptr, pairs, ROWS * PAIRS)
    tl.debug_barrier()
    if pairs > 0:
        _seek(run, pairs_ptr, pairs, first_n, False, BLOCK, PAIRS * 2, LEAVES // 2)  # there are fewer leaves
        tl.debug_barrier()

    losses, is_right = _losses(run, offs, mask, HINGE, BLOCK, ROWS)
    largest, worst = first_largest(tl.where(offs < run.training, losses, -INFINITY), offs)
    tl.store(run.largest + block, largest)
    tl.store(run.worst + block, worst)
    if WATCHED:
        is_right &= mask & (offs >= run.training)
        tl.store(run.right + block, tl.sum(is_right.to(tl.int32), axis=0))
