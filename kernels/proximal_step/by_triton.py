"""The proximal steps in Triton: nothing waits for the device, and a step of 64 parameters is eight launches at most.

A step that searches α: six launches add up g and its slope at four candidates each, one writes, one settles the
momentum. Launches are the only points where programs meet; so each program of a launch adds up what all programs of the
one before left, in one order, and finds the same bracket and the same next candidates: Newton's from both ends, the
secant's, and the middle on a logarithmic scale. Where λ is known to 1e-9 before the sixth, the rest read no parameter.

A parameter lies as a row, cut into chunks, one a program. Addresses are arguments of the launch, as in path_step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from .layout import problem_of

PASSES = 6


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    return {"BLOCK": 1024, "num_warps": 8}


TERMS = Tuned(
    "proximal_terms.triton",
    # nothing to choose from: another block, or another number of warps, adds in another order
    Space({"BLOCK": (1024,), "num_warps": (8,)}),
    default=_default,
    source=Path(__file__),
)
HELD = Tuned(
    "held_step.triton",
    Space({"BLOCK": (256, 512, 1024, 2048), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK": 1024, "num_warps": 4},
    source=Path(__file__),
)
_MOST = 64  # parameters of a launch: a program compares with each, and a launch has room for some 500 addresses
_PROGRAMS = 512  # of a step, about: each reads what all of them left
_ROOM = 16  # float64 of a record, see _bracket
_COUNT = tl.constexpr(4)  # candidates of a pass

# ------------------------------------------------------------------------------------------------ parts of kernels


@triton.jit
def _of(place, values):
    """The element `place` of the tuple `values`, where `place` is a number that the running kernel computes."""
    value = values[0]
    for number in tl.static_range(1, len(values)):  # pyright: ignore[reportGeneralTypeIssues]
        if place == number:
            value = values[number]
    return value


@triton.jit
def _chunk(STARTS: tl.constexpr, SIZES: tl.constexpr, CHUNK: tl.constexpr):
    """This program's parameter, and where its elements begin and end."""
    place = 0
    for number in tl.static_range(1, len(STARTS)):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        if tl.program_id(0) >= STARTS[number]:
            place = number
    begin = (tl.program_id(0) - _of(place, STARTS)).to(tl.int64) * CHUNK
    return place, begin, tl.minimum(begin + CHUNK, _of(place, SIZES))


@triton.jit
def _wide(high, low):
    """The float64 that two arguments of a launch are."""
    return tl.full([], high, tl.float64) + tl.full([], low, tl.float64)


@triton.jit
def _shrunk(u, t):
    return tl.where(tl.abs(u) > t, tl.where(u < 0, u + t, u - t), 0.0)


@triton.jit
def _alpha(lam):
    return 1.0 / (1.0 + lam)


@triton.jit
def _tau(lam):
    return tl.where(lam == float("inf"), 1.0, lam / (1.0 + lam))


@triton.jit
def _newton(lam, g, slope):
    """λ where the line through g falls to 0; the end where it leaves α in [0, 1]."""
    tau, alpha = _tau(lam) + g / slope, _alpha(lam) - g / slope
    return tl.where(tau <= 0, 0.0, tl.where(alpha <= 0, float("inf"), tau / alpha))


@triton.jit
def _total(ptr, PROGRAMS: tl.constexpr, PADDED: tl.constexpr):
    i = tl.arange(0, PADDED)
    return tl.sum(tl.load(ptr + i, i < PROGRAMS, other=0.0), 0)


@triton.jit
def _bracket(parts_ptr, record_ptr, h, PROGRAMS: tl.constexpr, PADDED: tl.constexpr):
    """The bracket of the root, after the launch that left these parts and this record.

    A record: λ, g and slope at the low end, the same at the high end, λ where it is known, else −1, Σ d² of what is not
    penalised, and from 8 on the candidates that were looked at. NaN as g says that an end was not. Parts: by quantity,
    candidate and program; then Σ d², and whether p and d are anything but zeros.
    """
    which, program = tl.arange(0, _COUNT), tl.arange(0, PADDED)
    offs, mask = which[:, None] * PROGRAMS + program[None, :], (program < PROGRAMS)[None, :]
    stride = _COUNT * PROGRAMS
    count = tl.sum(tl.load(parts_ptr + offs, mask, other=0.0), 1)
    first = tl.sum(tl.load(parts_ptr + stride + offs, mask, other=0.0), 1)
    second = tl.sum(tl.load(parts_ptr + 2 * stride + offs, mask, other=0.0), 1)
    rest = tl.sum(tl.load(parts_ptr + 3 * stride + offs, mask, other=0.0), 1)
    squares = _total(parts_ptr + 4 * stride, PROGRAMS, PADDED)
    weights = _total(parts_ptr + 4 * stride + PROGRAMS, PROGRAMS, PADDED)
    slopes = _total(parts_ptr + 4 * stride + 2 * PROGRAMS, PROGRAMS, PADDED)

    low, g_low, s_low = tl.load(record_ptr), tl.load(record_ptr + 1), tl.load(record_ptr + 2)
    high, g_high, s_high = tl.load(record_ptr + 3), tl.load(record_ptr + 4), tl.load(record_ptr + 5)
    lam = tl.load(record_ptr + 6)
    if lam == -1.0:
        infinity = float("inf")
        cands = tl.load(record_ptr + 8 + which)
        alpha, tau = _alpha(cands), _tau(cands)
        g = h * (tau * count + (alpha - tau) * first - alpha * (second + squares)) + rest
        slope = -h * (count - 2 * first + second + squares)
        is_bad = tl.sum(((tl.abs(g) < infinity) & (tl.abs(slope) < infinity)).to(tl.int32), 0) < _COUNT
        below = (g < 0) & (cands >= low)
        if tl.sum(below.to(tl.int32), 0) > 0:
            low = tl.max(tl.where(below, cands, 0.0), 0)
            g_low = tl.max(tl.where(below & (cands == low), g, -infinity), 0)
            s_low = tl.max(tl.where(below & (cands == low), slope, -infinity), 0)
        above = (g >= 0) & (cands <= high)
        if tl.sum(above.to(tl.int32), 0) > 0:
            high = tl.min(tl.where(above, cands, infinity), 0)
            g_high = tl.min(tl.where(above & (cands == high), g, infinity), 0)
            s_high = tl.min(tl.where(above & (cands == high), slope, infinity), 0)
        from_low, from_high = _newton(low, g_low, s_low), _newton(high, g_high, s_high)
        if tl.abs(from_low - low) <= 1e-9 * low:  # not where NaN
            lam = tl.minimum(tl.maximum(from_low, low), high)
        if tl.abs(from_high - high) <= 1e-9 * high:
            lam = tl.minimum(tl.maximum(from_high, low), high)
        if tl.sum(((cands == 0) & (g >= 0)).to(tl.int32), 0) > 0:
            lam = lam * 0.0
        if tl.sum(((cands == infinity) & (g <= 0)).to(tl.int32), 0) > 0:
            lam = tl.abs(lam) * infinity
        if weights == 0:  # p is 0, and so g(0)
            lam = tl.where(slopes > 0, infinity, 0.0).to(tl.float64)
        if is_bad:
            lam = lam * float("nan")
    return low, g_low, s_low, high, g_high, s_high, lam, squares, weights, slopes


@triton.jit
def _middle(low, high):
    """On a logarithmic scale, inside of what float64 tells apart."""
    return tl.sqrt(tl.maximum(low, 1e-12)) * tl.sqrt(tl.minimum(high, 1e12))


@triton.jit
def _candidate(wanted, low, high, g_low, g_high):
    """The candidate as wanted, where it is inside the bracket, or an end that was not looked at; else the middle."""
    is_inside = (wanted > low * (1 + 1e-12)) & (wanted < high * (1 - 1e-12))
    is_fresh = ((wanted == 0) & (low == 0) & (g_low != g_low)) | (
        (wanted == float("inf")) & (high == wanted) & (g_high != g_high)
    )
    return tl.where(is_inside | is_fresh, wanted, _middle(low, high))


@triton.jit
def _next_candidates(low, g_low, s_low, high, g_high, s_high):
    which = tl.arange(0, _COUNT)
    tau, alpha = _tau(low), _alpha(low)
    share = g_low / (g_low - g_high)
    secant = (tau + share * (_tau(high) - tau)) / (alpha + share * (_alpha(high) - alpha))
    first = _candidate(_newton(low, g_low, s_low), low, high, g_low, g_high)
    second = _candidate(_newton(high, g_high, s_high), low, high, g_low, g_high)
    third = _candidate(secant, low, high, g_low, g_high)
    fourth = _middle(low, high)
    return tl.where(which == 0, first, tl.where(which == 1, second, tl.where(which == 2, third, fourth)))


@triton.jit
def _first_candidates(state_ptr):
    which = tl.arange(0, _COUNT)
    alpha, lam = tl.load(state_ptr + 1), tl.load(state_ptr + 2)
    near = tl.where(which == 0, 0.8, tl.where(which == 1, 0.95, tl.where(which == 2, 1.05, 1.25)))
    small = tl.where(which == 0, 0.0, tl.where(which == 1, 1e-6, tl.where(which == 2, 1e-4, 1e-2)))
    large = tl.where(which == 0, float("inf"), tl.where(which == 1, 1e3, tl.where(which == 2, 10.0, 0.1)))
    cold = tl.where(which == 0, 1e-6, tl.where(which == 1, 3e-5, tl.where(which == 2, 1e-3, 3e-2)))
    is_inside, is_small = (lam > 0) & (lam < float("inf")), (lam == 0) & (alpha == 1)
    other = tl.where(is_small, small, tl.where(lam == float("inf"), large, cold))
    return tl.where(is_inside, lam * near, other.to(tl.float64))


# ------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _proximal_terms_kernel(
    weights, grads,  # of each parameter [SIZES]
    state_ptr,  # [4]
    record_ptr, new_record_ptr,  # [16] of the launch before, and of this one
    parts_ptr, new_parts_ptr,  # [4, 4, PROGRAMS] and [3, PROGRAMS], likewise
    h_high, h_low,
    STARTS: tl.constexpr, SIZES: tl.constexpr, PENALIZED: tl.constexpr,
    IS_FIRST: tl.constexpr, FIRST_PROGRAM: tl.constexpr, PROGRAMS: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h = _wide(h_high, h_low)
    which = tl.arange(0, _COUNT)
    if IS_FIRST:
        cands = _first_candidates(state_ptr)
        low, high = tl.load(state_ptr) * 0.0, tl.load(state_ptr) * 0.0 + float("inf")
        g_low, g_high = low + float("nan"), low + float("nan")
        s_low, s_high, lam = g_low, g_high, low - 1.0
        old_squares, any_weights, any_slopes = low, low, low
    else:
        low, g_low, s_low, high, g_high, s_high, lam, old_squares, any_weights, any_slopes = _bracket(
            parts_ptr, record_ptr, h, PROGRAMS, PADDED
        )
        cands = _next_candidates(low, g_low, s_low, high, g_high, s_high)
    program = tl.program_id(0) + FIRST_PROGRAM
    if program == 0:
        tl.store(new_record_ptr, low)
        tl.store(new_record_ptr + 1, g_low)
        tl.store(new_record_ptr + 2, s_low)
        tl.store(new_record_ptr + 3, high)
        tl.store(new_record_ptr + 4, g_high)
        tl.store(new_record_ptr + 5, s_high)
        tl.store(new_record_ptr + 6, lam)
        tl.store(new_record_ptr + 8 + which, cands)
    if lam == -1.0:
        place, begin, end = _chunk(STARTS, SIZES, CHUNK)
        weight, grad = _of(place, weights), _of(place, grads)
        is_penalized = _of(place, PENALIZED)
        lanes = tl.arange(0, BLOCK)
        COMPUTE: tl.constexpr = tl.float64 if tl.float64 == weights[0].dtype.element_ty else tl.float32  # pyright: ignore[reportAssignmentType]
        c0 = tl.sum(tl.where(which == 0, cands, 0.0), 0)
        c1 = tl.sum(tl.where(which == 1, cands, 0.0), 0)
        c2 = tl.sum(tl.where(which == 2, cands, 0.0), 0)
        c3 = tl.sum(tl.where(which == 3, cands, 0.0), 0)
        step0, t0 = (h * _alpha(c0)).to(COMPUTE), (h * _tau(c0)).to(COMPUTE)
        step1, t1 = (h * _alpha(c1)).to(COMPUTE), (h * _tau(c1)).to(COMPUTE)
        step2, t2 = (h * _alpha(c2)).to(COMPUTE), (h * _tau(c2)).to(COMPUTE)
        step3, t3 = (h * _alpha(c3)).to(COMPUTE), (h * _tau(c3)).to(COMPUTE)
        zero = tl.zeros([BLOCK], tl.float64)
        n0, n1, n2, n3 = zero, zero, zero, zero
        e0, e1, e2, e3 = zero, zero, zero, zero
        s0, s1, s2, s3 = zero, zero, zero, zero
        r0, r1, r2, r3 = zero, zero, zero, zero
        squares, some_weight, some_slope = zero, zero, zero
        for start in range(begin, end, BLOCK):
            mask = start + lanes < end
            p = tl.load(weight + start + lanes, mask, other=0.0).to(COMPUTE)
            d = tl.load(grad + start + lanes, mask, other=0.0).to(COMPUTE)
            if is_penalized:
                n0, e0, s0, r0 = _add(p, d, step0, t0, n0, e0, s0, r0)
                n1, e1, s1, r1 = _add(p, d, step1, t1, n1, e1, s1, r1)
                n2, e2, s2, r2 = _add(p, d, step2, t2, n2, e2, s2, r2)
                n3, e3, s3, r3 = _add(p, d, step3, t3, n3, e3, s3, r3)
                if IS_FIRST:
                    some_weight = tl.where(p == 0, some_weight, 1.0)
                    some_slope = tl.where(d == 0, some_slope, 1.0)
            elif IS_FIRST:
                squares += d.to(tl.float64) * d.to(tl.float64) + 0.0 * p.to(tl.float64)
                some_slope = tl.where(d == 0, some_slope, 1.0)
        row: tl.constexpr = _COUNT * PROGRAMS
        _leave(new_parts_ptr + program, n0, n1, n2, n3, PROGRAMS)
        _leave(new_parts_ptr + row + program, e0, e1, e2, e3, PROGRAMS)
        _leave(new_parts_ptr + 2 * row + program, s0, s1, s2, s3, PROGRAMS)
        _leave(new_parts_ptr + 3 * row + program, r0, r1, r2, r3, PROGRAMS)
        others = new_parts_ptr + 4 * row + program
        if IS_FIRST:
            tl.store(others, tl.sum(squares, 0))
            tl.store(others + PROGRAMS, tl.sum(some_weight, 0))
            tl.store(others + 2 * PROGRAMS, tl.sum(some_slope, 0))
        else:  # what the first pass found goes on, as one number
            tl.store(others, tl.where(program == 0, old_squares, 0.0))
            tl.store(others + PROGRAMS, tl.where(program == 0, any_weights, 0.0))
            tl.store(others + 2 * PROGRAMS, tl.where(program == 0, any_slopes, 0.0))


@triton.jit
def _add(p, d, step, t, count, first, second, rest):
    u = p - step * d
    is_out = tl.abs(u) > t
    e = tl.where(is_out, tl.where(u < 0, -d, d), 0.0).to(tl.float64)
    kept = tl.abs(p) - tl.where(is_out, tl.where(u < 0, -p, p), p * d)
    return count + tl.where(is_out, 1.0, 0.0), first + e, second + e * e, rest + kept.to(tl.float64)


@triton.jit
def _leave(ptr, first, second, third, fourth, PROGRAMS: tl.constexpr):
    tl.store(ptr, tl.sum(first, 0))
    tl.store(ptr + PROGRAMS, tl.sum(second, 0))
    tl.store(ptr + 2 * PROGRAMS, tl.sum(third, 0))
    tl.store(ptr + 3 * PROGRAMS, tl.sum(fourth, 0))


@triton.jit
def _proximal_move_kernel(
    weights, grads, iterates,  # of each parameter [SIZES]
    state_ptr,  # [4]
    record_ptr, lam_ptr,  # [16] of the last pass; [1], where λ is left
    parts_ptr,  # [4, 4, PROGRAMS] and [3, PROGRAMS] of the last pass
    norms_ptr,  # [3, PROGRAMS]: ‖x‖₁ and ‖p‖₁ of what is penalised, ‖p‖₁ of the rest
    h_high, h_low, acceleration_high, acceleration_low,
    STARTS: tl.constexpr, SIZES: tl.constexpr, PENALIZED: tl.constexpr,
    FIRST_PROGRAM: tl.constexpr, PROGRAMS: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h = _wide(h_high, h_low)
    low, g_low, s_low, high, g_high, s_high, lam, _, _, _ = _bracket(parts_ptr, record_ptr, h, PROGRAMS, PADDED)
    if lam == -1.0:  # the best that is known: from the end whose own step is the shorter
        from_low, from_high = _newton(low, g_low, s_low), _newton(high, g_high, s_high)
        lam = _middle(low, high)
        if (from_low >= low) & (from_low <= high):
            lam = from_low
        if (from_high >= low) & (from_high <= high):
            is_nearer = tl.abs(from_high - high) * lam < tl.abs(lam - low) * from_high
            if is_nearer | (lam != from_low):
                lam = from_high
    program = tl.program_id(0) + FIRST_PROGRAM
    if program == 0:
        tl.store(lam_ptr, lam)
    k, acceleration = tl.load(state_ptr), _wide(acceleration_high, acceleration_low)
    place, begin, end = _chunk(STARTS, SIZES, CHUNK)
    weight, grad, iterate = _of(place, weights), _of(place, grads), _of(place, iterates)
    is_penalized = _of(place, PENALIZED)
    lanes = tl.arange(0, BLOCK)
    ELEMENT: tl.constexpr = weights[0].dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if tl.float64 == ELEMENT else tl.float32  # pyright: ignore[reportAssignmentType]
    step, t = (h * _alpha(lam)).to(COMPUTE), (h * _tau(lam)).to(COMPUTE)
    c = (tl.maximum(k - 1.0, 0.0) / (k + acceleration)).to(COMPUTE)
    moves = tl.zeros([BLOCK], COMPUTE) + c > 0  # else nothing of x is looked at
    of_iterate, of_ahead = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    if lam == lam:
        for start in range(begin, end, BLOCK):
            offs, mask = start + lanes, start + lanes < end
            p = tl.load(weight + offs, mask, other=0.0).to(COMPUTE)
            d = tl.load(grad + offs, mask, other=0.0).to(COMPUTE)
            x = tl.load(iterate + offs, mask & moves, other=0.0).to(COMPUTE)
            u = p - step * d
            if is_penalized:
                u = _shrunk(u, t)
            new = u.to(ELEMENT)
            y = new.to(COMPUTE)
            ahead = tl.where(moves, y + c * (y - x), y).to(ELEMENT)
            tl.store(iterate + offs, new, mask)
            tl.store(weight + offs, ahead, mask)
            of_iterate += tl.where(mask, tl.abs(y), 0.0).to(tl.float64)
            of_ahead += tl.where(mask, tl.abs(ahead.to(COMPUTE)), 0.0).to(tl.float64)
    size, size_ahead = tl.sum(of_iterate, 0), tl.sum(of_ahead, 0)
    tl.store(norms_ptr + program, tl.where(is_penalized, size, 0.0))
    tl.store(norms_ptr + PROGRAMS + program, tl.where(is_penalized, size_ahead, 0.0))
    tl.store(norms_ptr + 2 * PROGRAMS + program, tl.where(is_penalized, 0.0, size_ahead))


@triton.jit
def _proximal_settle_kernel(
    weights, iterates,  # of each parameter [SIZES]
    state_ptr, lam_ptr,  # [4], [1]
    norms_ptr,  # [3, PROGRAMS]
    STARTS: tl.constexpr, SIZES: tl.constexpr,
    FIRST_PROGRAM: tl.constexpr, PROGRAMS: tl.constexpr, PADDED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lam = tl.load(lam_ptr)
    size = _total(norms_ptr, PROGRAMS, PADDED)
    ahead = _total(norms_ptr + PROGRAMS, PROGRAMS, PADDED)
    others = _total(norms_ptr + 2 * PROGRAMS, PROGRAMS, PADDED)
    goes_on = (ahead <= size) & (ahead + others < float("inf"))
    if (lam == lam) & (goes_on == 0):
        place, begin, end = _chunk(STARTS, SIZES, CHUNK)
        weight, iterate = _of(place, weights), _of(place, iterates)
        lanes = tl.arange(0, BLOCK)
        for start in range(begin, end, BLOCK):
            mask = start + lanes < end
            tl.store(weight + start + lanes, tl.load(iterate + start + lanes, mask), mask)
    if tl.program_id(0) + FIRST_PROGRAM == 0:
        tl.store(state_ptr + 1, tl.where(lam == lam, _alpha(lam), lam))
        tl.store(state_ptr + 2, lam)
        if lam == lam:
            tl.store(state_ptr, tl.where(goes_on, tl.load(state_ptr) + 1.0, 0.0))
            tl.store(state_ptr + 3, size)


@triton.jit
def _held_step_kernel(
    weights, grads, momenta,  # of each parameter [SIZES]
    lam_ptr,  # [1]
    h_high, h_low, momentum_high, momentum_low, lam_high, lam_low,
    STARTS: tl.constexpr, SIZES: tl.constexpr, PENALIZED: tl.constexpr, IS_NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    h, momentum = _wide(h_high, h_low), _wide(momentum_high, momentum_low)
    lam = _wide(lam_high, lam_low) if IS_NUMBER else tl.load(lam_ptr)
    place, begin, end = _chunk(STARTS, SIZES, BLOCK)
    offs = begin + tl.arange(0, BLOCK)
    mask = offs < end
    ELEMENT: tl.constexpr = weights[0].dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if tl.float64 == ELEMENT else tl.float32  # pyright: ignore[reportAssignmentType]
    weight, momenta_here = _of(place, weights), _of(place, momenta)
    d = tl.load(_of(place, grads) + offs, mask, other=0.0).to(COMPUTE)
    v = (momentum.to(COMPUTE) * tl.load(momenta_here + offs, mask, other=0.0).to(COMPUTE) + d).to(ELEMENT)
    u = tl.load(weight + offs, mask, other=0.0).to(COMPUTE) - h.to(COMPUTE) * v.to(COMPUTE)
    if _of(place, PENALIZED):
        u = _shrunk(u, (h * lam / (1.0 - momentum)).to(COMPUTE))
    tl.store(momenta_here + offs, v, mask)
    tl.store(weight + offs, u.to(ELEMENT), mask)


# ------------------------------------------------------------------------------------------------ launches


@functools.cache
def _tiling(sizes: tuple[int, ...], chunk: int) -> tuple[int, list[tuple[slice, int, dict[str, Any], int]]]:
    """How many programs a step has; of each launch its parameters, programs, compile-time constants, first program."""
    launches, begin = [], 0
    for at in range(0, len(sizes), _MOST):
        here, starts, programs = sizes[at : at + _MOST], [], 0
        for size in here:
            starts.append(programs)
            programs += cdiv(size, chunk)
        launches.append((slice(at, at + _MOST), programs, {"STARTS": tuple(starts), "SIZES": here}, begin))
        begin += programs
    return begin, launches


def _split(x: float) -> tuple[float, float]:
    """x as two floats of 32 bits, as arguments of a launch are."""
    high = float(numpy.float32(x))
    return high, x - high


def multiobjective_step(
    p: Sequence[Tensor], d: Sequence[Tensor], x: Sequence[Tensor], state: Tensor, penalized: Sequence[bool],
    h: float, acceleration: float,
) -> None:  # fmt: skip
    """Makes the step of `multiobjective_step_ref` on tensors of one layout each."""
    config = TERMS.config(problem_of(p), p[0].device)
    there = [at for at, one in enumerate(p) if one.numel()]
    sizes = tuple(p[at].numel() for at in there)
    chunk = max(config["BLOCK"], next_power_of_2(cdiv(sum(sizes), _PROGRAMS)))
    programs, tiling = _tiling(sizes, chunk)
    if programs == 0:
        state.copy_(torch.stack([state[0] + 1, torch.ones_like(state[0]), *torch.zeros_like(state[:2])]))
        return
    # the first pass looks at no record and no parts, later ones at those of the pass before
    room = (4 * _COUNT.value + 3) * programs
    records, parts = state.new_empty((PASSES, _ROOM)), state.new_empty((2, room))
    norms, lam = state.new_empty((3 * programs,)), state.new_empty((1,))
    whole = {"PROGRAMS": programs, "PADDED": next_power_of_2(programs), "CHUNK": chunk, **config}

    launches = []
    for part, count, shapes, first in tiling:
        lists = [tuple([tensors[at] for at in there[part]]) for tensors in (p, d, x)]
        launches.append((count, lists, {**shapes, **whole, "FIRST_PROGRAM": first}))
    penalties = [tuple([bool(penalized[at]) for at in there[part]]) for part, *_ in tiling]
    step, pace = _split(h), _split(acceleration)
    for at in range(PASSES):
        before = max(at - 1, 0)
        for (count, (weights, grads, _), options), flags in zip(launches, penalties, strict=True):
            _proximal_terms_kernel[(count,)](
                weights, grads, state, records[before], records[at], parts[before % 2], parts[at % 2], *step,
                PENALIZED=flags, IS_FIRST=at == 0, **options,
            )  # fmt: skip
    last = PASSES - 1
    for (count, lists, options), flags in zip(launches, penalties, strict=True):
        _proximal_move_kernel[(count,)](
            *lists, state, records[last], lam, parts[last % 2], norms, *step, *pace,
            PENALIZED=flags, **options,
        )  # fmt: skip
    for count, (weights, _, iterates), options in launches:
        _proximal_settle_kernel[(count,)](weights, iterates, state, lam, norms, **options)


def held_step(
    x: Sequence[Tensor], d: Sequence[Tensor], v: Sequence[Tensor], penalized: Sequence[bool],
    h: float, lam: float | Tensor, momentum: float,
) -> None:  # fmt: skip
    """Makes the step of `held_step_ref` on tensors of one layout each."""
    config = HELD.config(problem_of(x), x[0].device)
    there = [at for at, one in enumerate(x) if one.numel()]
    _, tiling = _tiling(tuple(x[at].numel() for at in there), config["BLOCK"])
    for part, count, shapes, _ in tiling:
        lists = [tuple(tensors[at] for at in there[part]) for tensors in (x, d, v)]
        number = 0.0 if isinstance(lam, Tensor) else lam
        _held_step_kernel[(count,)](
            *lists, lam if isinstance(lam, Tensor) else None, *_split(h), *_split(momentum), *_split(number),
            PENALIZED=tuple(bool(penalized[at]) for at in there[part]), IS_NUMBER=not isinstance(lam, Tensor),
            **shapes, **config,
        )  # fmt: skip
