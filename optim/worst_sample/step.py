"""One iteration's decisions, by one program: it observes what the moved weights have led to and takes the next step.

F and n* come from the blocks' largest losses; then the coefficients c_k of n*, its routes (k, J_k, I_Jk), ‖g‖² and γ,
in float64 and in the definition's order. Whatever depends on the run lies on the device, as definition.Progress, and
`counters` tell what the host asked for: nothing here waits for it. If the run has ended, a launch writes nothing.

Like the definition, a step that would leave a weight that is not finite writes nothing and ends the run.

The kept weights follow by a journal of the moved entries, each of which is copied once.
"""

from __future__ import annotations

from ...triton_or_stub import tl, triton
from .definition import DIVERGED, GOING, IDLE, MET, PATIENCE, ROUNDED, STATIONARY
from .samples import INFINITY, NOBODY, first_largest

RETURN = STATIONARY + 1  # status: the iterates must go back to the best ones
_GOING, _MET, _ROUNDED = tl.constexpr(GOING), tl.constexpr(MET), tl.constexpr(ROUNDED)
_DIVERGED, _RETURN = tl.constexpr(DIVERGED), tl.constexpr(RETURN)
_PATIENCE, _IDLE = tl.constexpr(PATIENCE), tl.constexpr(IDLE)
_SCAN = tl.constexpr(512)  # blocks, or entries of the journal, that are read together


@triton.jit
def _keep(run, kept_w1, kept_w2, begin, end):
    """Copies the weights that lines `begin` to `end` of the journal name."""
    width = run.line
    leaves = tl.cast(run.q, tl.int64) * run.p
    for first in range(begin * width, end * width, _SCAN):
        entry = first + tl.arange(0, _SCAN)
        inside = entry < end * width
        at = tl.load(run.journal + entry, inside, other=0)
        is_leaf, is_readout = inside & (at < leaves), inside & (at >= leaves)
        tl.store(kept_w1 + at, tl.load(run.w1 + at, is_leaf), is_leaf)
        at -= leaves
        tl.store(kept_w2 + at, tl.load(run.w2 + at, is_readout), is_readout)


@triton.jit
def _observe(run, WATCHED: tl.constexpr, CLASSES: tl.constexpr):
    """Does what definition.Dense._observe does."""
    done, noted = tl.load(run.counters), tl.load(run.counters + 3)
    copied, copied_right = tl.load(run.counters + 4), tl.load(run.counters + 5)
    iteration, status, idle = tl.load(run.integers), tl.load(run.integers + 1), tl.load(run.integers + 3)
    previous, most_right = tl.load(run.floats + 1), tl.load(run.integers + 7)
    target = tl.load(run.levels + 1)
    top, worst, right = tl.load(run.largest), tl.load(run.worst), idle * 0
    for begin in range(0, run.blocks, _SCAN):
        block = begin + tl.arange(0, _SCAN)
        inside = block < run.blocks
        losses = tl.load(run.largest + block, inside, other=-INFINITY)
        largest, number = first_largest(losses, tl.load(run.worst + block, inside, other=NOBODY))
        leads = (largest > top) | ((largest != largest) & (top == top))
        worst = tl.where(leads, number, worst)
        top = tl.where(leads, largest, top)
        if WATCHED:
            right += tl.sum(tl.load(run.right + block, inside, other=0), axis=0)
    n = worst.to(tl.int64)
    loss = top.to(tl.float64)
    times = tl.load(run.times + n)
    classes = tl.arange(0, CLASSES)
    scores = tl.load(run.f + classes.to(tl.int64) * run.N + n, classes < run.K, other=0.0)
    rounding = tl.max(tl.abs(scores), axis=0).to(tl.float64) * tl.load(run.levels + 2)
    idle = tl.where((previous <= loss) & (loss <= target + rounding), idle + 1, 0)
    if (loss != loss) | (loss == INFINITY):
        status = status * 0 + _DIVERGED
    elif loss <= target:
        status = status * 0 + _MET
    elif idle >= _IDLE:
        status = status * 0 + _ROUNDED
    tl.debug_barrier()  # all threads have read what one of them now writes
    tl.store(run.times + n, times + 1)
    tl.store(run.trace + done, loss)
    tl.store(run.counters, done + 1)
    tl.store(run.integers + 1, status)
    tl.store(run.integers + 2, n)
    tl.store(run.integers + 3, idle)
    tl.store(run.floats, loss)
    if loss < previous:
        tl.store(run.floats + 1, loss)
        tl.store(run.integers + 5, iteration)
        _keep(run, run.best_w1, run.best_w2, copied, noted)
        tl.store(run.counters + 4, noted)
    if WATCHED:
        tl.store(run.integers + 6, right)
        if right > most_right:
            tl.store(run.integers + 7, right)
            tl.store(run.integers + 8, iteration)
            tl.store(run.floats + 2, loss)
            _keep(run, run.right_w1, run.right_w2, copied_right, noted)
            tl.store(run.counters + 5, noted)


@triton.jit
def _of(values, place, places):
    """values[place], as a sum with one term that is not 0."""
    return tl.sum(tl.where(places == place, values, 0.0), axis=0)


@triton.jit
def _coefficients(run, n, HINGE: tl.constexpr, CLASSES: tl.constexpr):
    """k and c_k of sample n; 0 where there is no class."""
    dtype: tl.constexpr = run.f.dtype.element_ty
    places, classes = tl.arange(0, 2 if HINGE else CLASSES), tl.arange(0, CLASSES)
    y = tl.load(run.y + n)
    scores = tl.load(run.f + classes.to(tl.int64) * run.N + n, classes < run.K, other=-INFINITY)
    if HINGE:
        rivals = tl.where((classes == y) | (classes >= run.K), -INFINITY, scores + tl.load(run.levels).to(dtype))
        rival = tl.min(tl.where(rivals == tl.max(rivals, axis=0), classes, CLASSES), axis=0)
        return tl.where(places == 0, rival, y), tl.where(places == 0, 1.0, -1.0).to(tl.float64)
    else:
        wide = scores.to(tl.float64)
        terms = tl.exp(wide - tl.max(wide, axis=0))
        total = tl.sum(tl.zeros([CLASSES], tl.float64), axis=0)
        for k in range(run.K):
            total += _of(terms, k, classes)
        return classes, tl.where(classes < run.K, terms / total - tl.where(classes == y, 1.0, 0.0), 0.0)


@triton.jit
def _length(run, squares, POLYAK: tl.constexpr):
    """γ as in definition.step_length, and the status: RETURN where the iterates must go back to the best ones."""
    target, loss, best_loss = tl.load(run.levels + 1), tl.load(run.floats), tl.load(run.floats + 1)
    record, length = tl.load(run.floats + 3), tl.load(run.floats + 7)
    gap, path, longest = tl.load(run.floats + 4), tl.load(run.floats + 5), tl.load(run.floats + 6)
    status, raises = tl.load(run.integers + 1), tl.load(run.integers + 4)
    norm = tl.sqrt(squares)
    if record == INFINITY:
        record = loss
        gap = loss - target
        longest = _PATIENCE * (loss - target) / norm
        length = tl.where(length == 0, (loss - target) / norm, length)
    if POLYAK:
        if loss <= record - gap / 2:
            record = loss
            path = path * 0
        elif path > longest:
            status = status * 0 + _RETURN
            gap = tl.minimum(gap, best_loss - target) / 2
            longest = longest * 0.7071067811865476
            record = best_loss
            path = path * 0
            raises += 1
        level = tl.maximum(target, best_loss - gap)
        gamma = (loss - level) / squares
        path += tl.where(status == _RETURN, 0.0, (loss - level) / norm)
    else:
        gamma = length / (norm * tl.load(run.roots + tl.load(run.counters)))
    tl.debug_barrier()  # as above
    tl.store(run.integers + 4, raises)
    tl.store(run.floats + 3, record)
    tl.store(run.floats + 4, gap)
    tl.store(run.floats + 5, path)
    tl.store(run.floats + 6, longest)
    tl.store(run.floats + 7, length)
    return gamma, status


@triton.jit
def _step(run, HINGE: tl.constexpr, POLYAK: tl.constexpr, CLASSES: tl.constexpr):
    """Does what definition.Dense._advance does, up to the weights."""
    dtype: tl.constexpr = run.w1.dtype.element_ty
    routes = 2 if HINGE else run.K
    places = tl.arange(0, 2 if HINGE else CLASSES)
    inside = places < routes
    n, iteration, noted = tl.load(run.integers + 2), tl.load(run.integers), tl.load(run.counters + 3)
    k, c = _coefficients(run, n, HINGE, CLASSES)
    j = tl.load(run.j + k.to(tl.int64) * run.N + n, inside, other=0)
    i = tl.load(run.i + j.to(tl.int64) * run.N + n, inside, other=0)
    # of routes by one unit, which share its leaf, the first has the sum
    of_leaf = tl.zeros(c.shape, tl.float64)
    is_first = inside
    squares = tl.sum(of_leaf, axis=0)
    for place in range(routes):
        c_k, j_k = _of(c, place, places), tl.sum(tl.where(places == place, j, 0), axis=0)
        of_leaf += tl.where(j == j_k, c_k, 0.0)
        is_first &= (j != j_k) | (places <= place)
        squares += c_k * c_k
    for place in range(routes):
        c_leaf = _of(tl.where(is_first, of_leaf, 0.0), place, places)
        squares += c_leaf * c_leaf
    gamma, status = _length(run, squares, POLYAK)
    leaf = j.to(tl.int64) * run.p + i
    readout = k.to(tl.int64) * run.q + j
    change, of_leaf = (-(gamma * c)).to(dtype), (-(gamma * of_leaf)).to(dtype)
    is_held = inside & ~(tl.abs(tl.load(run.w2 + readout, inside, other=0.0) + change) < INFINITY)
    is_held |= is_first & ~(tl.abs(tl.load(run.w1 + leaf, is_first, other=0.0) + of_leaf) < INFINITY)
    if (status != _RETURN) & (tl.max(is_held.to(tl.int32), axis=0) != 0):
        status = status * 0 + _DIVERGED
    tl.debug_barrier()  # as above
    tl.store(run.integers + 1, status)
    tl.store(run.counters + 2, (status == _GOING).to(tl.int64))
    if status == _GOING:
        tl.store(run.w2 + readout, tl.load(run.w2 + readout, inside) + change, inside)
        tl.store(run.w1 + leaf, tl.load(run.w1 + leaf, is_first) + of_leaf, is_first)
        tl.store(run.route_k + places, k, inside)
        tl.store(run.route_j + places, j, inside)
        tl.store(run.route_i + places, i, inside)
        at = run.journal + noted * run.line + places
        tl.store(at, leaf, inside)
        tl.store(at + routes, readout + tl.cast(run.q, tl.int64) * run.p, inside)
        tl.store(run.counters + 3, noted + 1)
        tl.store(run.integers, iteration + 1)


@triton.jit
def advance(run, HINGE: tl.constexpr, POLYAK: tl.constexpr, WATCHED: tl.constexpr, CLASSES: tl.constexpr):
    """Observes the iterate if weights have moved; then moves them, as long as the run goes and iterations are left."""
    if tl.load(run.counters + 2) != 0:
        _observe(run, WATCHED, CLASSES)
    tl.debug_barrier()
    if (tl.load(run.integers + 1) == _GOING) & (tl.load(run.counters) < tl.load(run.counters + 1)):
        _step(run, HINGE, POLYAK, CLASSES)
    else:
        tl.store(run.counters + 2, 0)
