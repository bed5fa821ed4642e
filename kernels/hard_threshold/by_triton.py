"""The portable Triton kernels of hard thresholds: any GPU that Triton knows, and its interpreter on the CPU.

Each element of z, y, dy and dz is read or written once, in the order in which it lies in memory. There are no atomics,
and no product is fused with a sum: x = scale z + shift is rounded twice, as in the definition, so that its decisions
are the definition's.

A program takes a tile of ROWS × COLUMNS elements of y. How it knows their channels is what `BY` says:

    "none"     no affine map; one row
    "one"      one row, of one channel, whose coefficients are numbers
    "pair"     one row, of at most two channels: one of two numbers is selected
    "rows"     a row is all of a channel in a sample
    "columns"  channels lie next to each other: a column is a channel
    "flat"     one row, of many channels
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from ..runtime.remembered import remembered
from .definition import Form, Rule, rule_of
from .layout import channels, code_bytes, in_one_piece, ordered, planes, y_like, z_like

_SPACE = Space({"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (4, 8)})


def _default(problem):
    return {"BLOCK": 512 if problem["pool"] else 1024, "num_warps": 4}


FORWARD = Tuned("hard_threshold.triton", _SPACE, default=_default, source=Path(__file__))
BACKWARD = Tuned("hard_threshold_bwd.triton", _SPACE, default=_default, source=Path(__file__))
# another number of warps would add in another order
SUMS = Tuned(
    "hard_threshold_sums.triton",
    Space({"num_warps": (4,)}),
    default=lambda problem: {"num_warps": 4},
    source=Path(__file__),
)
_TILE, _TILES = 2048, 8  # elements that a program of `sums` takes at a time, and how often
_MOST_COLUMNS = 128  # of a tile, where a column is a channel
_LONGEST = 1024  # row of a tile of `sums`

# ------------------------------------------------------------------------------------------------ where elements lie


@triton.jit
def _tile(
    size, C, BY: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Every STEP-th of the program's elements of y: (where they lie, which there are, their columns)."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    lanes = tl.arange(0, COLUMNS // STEP)[None, :] * STEP
    if BY == "columns":
        pieces = tl.cdiv(C, COLUMNS)
        columns = (pid % pieces) * COLUMNS + lanes
        places = ((pid // pieces) * ROWS + tl.arange(0, ROWS)[:, None]) * C + columns
        inside = (columns < C) & (places < size)
    else:
        columns, places = lanes, (pid * ROWS + tl.arange(0, ROWS)[:, None]) * COLUMNS + lanes
        inside = places < size
    return places, inside, columns


@triton.jit
def _channels(
    columns, C, inner, of_C, of_inner, BY: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """(the elements' channels), or of a pair (first channel, the next one, whether an element is of the next one)."""
    if BY == "columns":
        at = (columns,)
    else:
        start = tl.program_id(0)
        if WIDE:
            start = start.to(tl.int64)
        start *= ROWS * COLUMNS
        row = start // (COLUMNS if BY == "rows" else inner)
        first = (row % C).to(tl.int32)
        if BY == "one":
            at = (first,)
        elif BY == "rows":
            at = (_wrapped(first + tl.arange(0, ROWS)[:, None], C, of_C),)
        else:
            place = (start - row * inner).to(tl.int32) + columns
            if BY == "pair":
                at = first, tl.where(first + 1 == C, 0, first + 1), place >= inner
            else:
                at = (_wrapped(first + _quotient(place, of_inner), C, of_C),)
    return at


@triton.jit
def _wrapped(channel, C, of_C):
    """channel mod C."""
    channel -= C * _quotient(channel, of_C)
    return tl.where(channel >= C, channel - C, channel)


@triton.jit
def _quotient(x, reciprocal):
    """⌊x / d⌋ from ⌈2^31 / d⌉, where x · d < 2^31: one multiplication, as a division costs a program's other work."""
    return tl.umulhi(2 * x.to(tl.uint32), tl.zeros_like(x).to(tl.uint32) + reciprocal.to(tl.uint32)).to(tl.int32)


@triton.jit
def _coefficient(ptr, at, C, BY: tl.constexpr):
    """The coefficient of each element's channel."""
    if BY == "columns":
        x = tl.load(ptr + at[0], mask=at[0] < C, other=0)
    else:
        x = tl.load(ptr + at[0])
        if BY == "pair":
            x = tl.where(at[2], tl.load(ptr + at[1]), x)
    return x


@triton.jit
def _pairs(places, column):
    """Where the upper two of each 2 × 2 of z lie, [..., 2], of places of y in those columns of the image."""
    return (4 * places - 2 * column)[:, :, None] + tl.arange(0, 2)[None, None, :]


# ------------------------------------------------------------------------------------------------ formulas


@triton.jit
def _as(x, NUMBER: tl.constexpr):
    """A number in x's dtype: Triton takes one that stands beside x in float32."""
    return tl.full([1, 1], NUMBER, x.dtype)


@triton.jit
def _affine(z, scale, shift, AFFINE: tl.constexpr, z_ptr, COMPUTE: tl.constexpr):
    """x, rounded to z's dtype."""
    x = z.to(COMPUTE)
    if AFFINE:
        x = (x * scale + shift).to(z_ptr.dtype.element_ty).to(COMPUTE)
    return x


@triton.jit
def _wins(x, m):
    """Whether an element is larger than the largest before it, or NaN."""
    return (x > m) | (x != x)


@triton.jit
def _pooled(z_ptr, places, column, inside, width, scale, shift, AFFINE: tl.constexpr, COMPUTE: tl.constexpr):
    """(m, whether it is a right one, and a lower one, z of the four). Of equal ones the first, of NaN the last."""
    above, mask = _pairs(places, column), inside[:, :, None]
    z0, z1 = tl.split(tl.load(z_ptr + above, mask=mask, other=0))
    z2, z3 = tl.split(tl.load(z_ptr + above + 2 * width, mask=mask, other=0))
    m = _affine(z0, scale, shift, AFFINE, z_ptr, COMPUTE)
    x1 = _affine(z1, scale, shift, AFFINE, z_ptr, COMPUTE)
    x2 = _affine(z2, scale, shift, AFFINE, z_ptr, COMPUTE)
    x3 = _affine(z3, scale, shift, AFFINE, z_ptr, COMPUTE)
    right = _wins(x1, m)
    m = tl.where(right, x1, m)
    below = _wins(x2, m)
    m, right = tl.where(below, x2, m), tl.where(below, False, right)
    last = _wins(x3, m)
    return tl.where(last, x3, m), right | last, below | last, z0, z1, z2, z3


@triton.jit
def _clamped(x, high):
    """x between 0 and high; NaN stays."""
    x = tl.where(x < 0, 0.0, x)
    return tl.where(x > high, high, x)


@triton.jit
def _activation(m, KIND: tl.constexpr, STEPS: tl.constexpr):
    if KIND == "sign":
        y = tl.where(m > 0, 1.0, tl.where(m <= 0, -1.0, m))
    elif KIND == "step":
        y = tl.where(m > 0, 1.0, tl.where(m <= 0, 0.0, m))
    elif KIND == "staircase":
        stairs = m * (STEPS - 1.0)
        # a GPU's ceiling takes a subnormal number for 0
        y = _clamped(tl.where((stairs > 0) & (stairs < 1), 1.0, tl.ceil(stairs)), STEPS + 0.0)
        # a GPU's other division in float32 is an approximation
        y = tl.div_rn(y, STEPS + 0.0) if m.dtype == tl.float32 else y / STEPS
    else:
        y = _clamped(m, 1.0)
    return y


@triton.jit
def _share(m, FAMILY: tl.constexpr, SLOPE: tl.constexpr, OFFSET: tl.constexpr):
    """The factor's share of its largest value: sech², or a ramp."""
    if FAMILY == "ramp":
        share = _clamped(2.0 - tl.abs(m), 1.0)
    else:
        if SLOPE != 1:
            m = m * _as(m, SLOPE)
        if OFFSET != 0:
            m = m + _as(m, OFFSET)
        e = tl.exp2(tl.abs(m) * _as(m, -2.8853900817779268))  # exp(−2 |m|), by −2 / ln 2
        share = 4.0 * e / ((1.0 + e) * (1.0 + e))
    return share


@triton.jit
def _rounded(x):
    """A small number's nearest integer, an even one of two: what is added leaves no place for a fraction."""
    most = 6755399441055744.0 if x.dtype == tl.float64 else 12582912.0
    return (x + most) - most


@triton.jit
def _passes(m, LOW: tl.constexpr, HIGH: tl.constexpr, IS_OPEN: tl.constexpr):
    return (m > _as(m, LOW) if IS_OPEN else m >= _as(m, LOW)) & (m <= _as(m, HIGH))


@triton.jit
def _of_sides(weight, low, high):
    """dy where its own side passes; NaN stays."""
    return tl.where(tl.where(weight > 0, low, high & (weight < 0)) | (weight != weight), weight, 0.0)


@triton.jit
def _by_rule(
    weight, m,
    FAMILY: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, IS_OPEN: tl.constexpr,
    HEIGHT: tl.constexpr, SLOPE: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """dm of dy, or of its sign."""
    if FAMILY == "all":
        dm = weight
    elif FAMILY == "mask":
        dm = tl.where(_passes(m, LOW, HIGH, IS_OPEN), weight, 0.0)
    elif FAMILY == "sided":
        dm = _of_sides(weight, m >= _as(m, LOW), m <= _as(m, HIGH))
    elif FAMILY == "adaline":
        dm = weight + tl.abs(weight) * m
    else:
        share = _share(m, FAMILY, SLOPE, OFFSET)
        dm = weight * (share if HEIGHT == 1 else _as(m, HEIGHT) * share)
    return dm


@triton.jit
def _weight(dy, WEIGHTED: tl.constexpr, COMPUTE: tl.constexpr):
    """dy, or its sign, which is 0 for NaN."""
    weight = dy.to(COMPUTE)
    if not WEIGHTED:
        weight = tl.where(weight > 0, 1.0, tl.where(weight < 0, -1.0, 0.0)).to(COMPUTE)
    return weight


@triton.jit
def _dz(dx, z, p, q, center, r, AFFINE: tl.constexpr, OF_Z: tl.constexpr):
    dz = dx
    if AFFINE:
        dz = p * dx
    if OF_Z:
        # where q is 0 z does not count, infinite as it may be
        dz = dz + tl.where(q == 0, 0.0, q * (z.to(dx.dtype) - center)) + r
    return dz


# ------------------------------------------------------------------------------------------------ bit planes


@triton.jit
def _store_bits(plane_ptr, bits, inside, at, exist, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """at, exist: where the tile's bytes lie in the plane, and which there are."""
    eight = tl.reshape((bits & inside).to(tl.int32), [ROWS, COLUMNS // 8, 8])
    packed = tl.sum(eight << tl.arange(0, 8)[None, None, :], 2)
    tl.store(plane_ptr + at, packed.to(tl.uint8), mask=exist)


@triton.jit
def _load_bits(plane_ptr, at, exist, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    packed = tl.load(plane_ptr + at, mask=exist, other=0).to(tl.int32)
    eight = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(eight, [ROWS, COLUMNS]) > 0


# ------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _hard_threshold_fwd_kernel(
    z_ptr, scale_ptr, shift_ptr,  # scale, shift: [C] each, or None
    y_ptr,
    m_ptr,  # as y, if KEPT is "m"
    code_ptr,  # as layout.py has it
    size, C, inner, width,  # elements of y; channels; of a channel in a row; of a row of y's images
    of_C, of_inner,  # reciprocals, for `_quotient`
    KIND: tl.constexpr, STEPS: tl.constexpr, FAMILY: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    IS_OPEN: tl.constexpr, HEIGHT: tl.constexpr, SLOPE: tl.constexpr, OFFSET: tl.constexpr, KEPT: tl.constexpr,
    PLANES: tl.constexpr, POOL: tl.constexpr, BY: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = BLOCK // ROWS  # pyright: ignore[reportAssignmentType]
    AFFINE: tl.constexpr = BY != "none"  # pyright: ignore[reportAssignmentType]
    places, inside, columns = _tile(size, C, BY, WIDE, ROWS, COLUMNS, 1)
    scale, shift = 1.0, 0.0
    if AFFINE:
        at = _channels(columns, C, inner, of_C, of_inner, BY, WIDE, ROWS, COLUMNS)
        scale, shift = _coefficient(scale_ptr, at, C, BY), _coefficient(shift_ptr, at, C, BY)
    if POOL:
        m, right, below, _, _, _, _ = _pooled(
            z_ptr, places, places % width, inside, width, scale, shift, AFFINE, COMPUTE
        )
    else:
        m = _affine(tl.load(z_ptr + places, mask=inside, other=0), scale, shift, AFFINE, z_ptr, COMPUTE)
    tl.store(y_ptr + places, _activation(m, KIND, STEPS).to(y_ptr.dtype.element_ty), mask=inside)
    if KEPT == "m":
        tl.store(m_ptr + places, m.to(m_ptr.dtype.element_ty), mask=inside)
    if KEPT == "byte":
        share = tl.where(m == m, _share(m, FAMILY, SLOPE, OFFSET), 0.0)
        tl.store(code_ptr + places, _rounded(share * 255.0).to(tl.int32).to(tl.uint8), mask=inside)
    if PLANES:
        at, exist, _ = _tile(size, C, BY, WIDE, ROWS, COLUMNS, 8)
        at, of_plane = at // 8, tl.cdiv(size, 8)
        plane_ptr = code_ptr + (size if KEPT == "byte" else 0)
        if KEPT == "bits":
            if FAMILY == "mask":
                _store_bits(plane_ptr, _passes(m, LOW, HIGH, IS_OPEN), inside, at, exist, ROWS, COLUMNS)
                plane_ptr += of_plane
            if FAMILY == "sided":
                _store_bits(plane_ptr, m >= _as(m, LOW), inside, at, exist, ROWS, COLUMNS)
                _store_bits(plane_ptr + of_plane, m <= _as(m, HIGH), inside, at, exist, ROWS, COLUMNS)
                plane_ptr += 2 * of_plane
        if POOL:
            _store_bits(plane_ptr, right, inside, at, exist, ROWS, COLUMNS)
            _store_bits(plane_ptr + of_plane, below, inside, at, exist, ROWS, COLUMNS)


@triton.jit
def _hard_threshold_bwd_kernel(
    dy_ptr,
    z_ptr, scale_ptr, shift_ptr,  # z if KEPT is "z", else None
    kept_ptr, code_ptr,  # what the forward kept
    coefficient_ptr,  # [4, C]: p, q, center, r; or None
    dz_ptr,
    size, C, inner, width, of_C, of_inner,  # as forward
    FAMILY: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, IS_OPEN: tl.constexpr, HEIGHT: tl.constexpr,
    SLOPE: tl.constexpr, OFFSET: tl.constexpr, WEIGHTED: tl.constexpr, KEPT: tl.constexpr, PLANES: tl.constexpr,
    POOL: tl.constexpr, BY: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = BLOCK // ROWS  # pyright: ignore[reportAssignmentType]
    AFFINE: tl.constexpr = BY != "none"  # pyright: ignore[reportAssignmentType]
    OF_Z: tl.constexpr = (BY != "none") & (KEPT == "z")  # pyright: ignore[reportAssignmentType]
    places, inside, columns = _tile(size, C, BY, WIDE, ROWS, COLUMNS, 1)
    weight = _weight(tl.load(dy_ptr + places, mask=inside, other=0), WEIGHTED, COMPUTE)
    scale, shift, p, q, center, r = 1.0, 0.0, 1.0, 0.0, 0.0, 0.0
    if AFFINE:
        at = _channels(columns, C, inner, of_C, of_inner, BY, WIDE, ROWS, COLUMNS)
        p = _coefficient(coefficient_ptr, at, C, BY)
    if OF_Z:
        scale, shift = _coefficient(scale_ptr, at, C, BY), _coefficient(shift_ptr, at, C, BY)
        q, center = _coefficient(coefficient_ptr + C, at, C, BY), _coefficient(coefficient_ptr + 2 * C, at, C, BY)
        r = _coefficient(coefficient_ptr + 3 * C, at, C, BY)
    m, z0, z1, z2, z3 = weight, weight, weight, weight, weight
    right, below = inside, inside
    if KEPT == "z":
        if POOL:
            m, right, below, z0, z1, z2, z3 = _pooled(
                z_ptr, places, places % width, inside, width, scale, shift, AFFINE, COMPUTE
            )
        else:
            z0 = tl.load(z_ptr + places, mask=inside, other=0)
            m = _affine(z0, scale, shift, AFFINE, z_ptr, COMPUTE)
    if KEPT == "m":
        m = tl.load(kept_ptr + places, mask=inside, other=0).to(COMPUTE)
    if KEPT == "bits":
        dm = weight
    elif KEPT == "byte":
        dm = weight * (tl.load(code_ptr + places, mask=inside, other=0).to(COMPUTE) * _as(weight, HEIGHT / 255))
    else:
        dm = _by_rule(weight, m, FAMILY, LOW, HIGH, IS_OPEN, HEIGHT, SLOPE, OFFSET)
    if PLANES:
        bytes_at, exist, _ = _tile(size, C, BY, WIDE, ROWS, COLUMNS, 8)
        bytes_at, of_plane = bytes_at // 8, tl.cdiv(size, 8)
        plane_ptr = code_ptr + (size if KEPT == "byte" else 0)
        if KEPT == "bits":
            if FAMILY == "mask":
                dm = tl.where(_load_bits(plane_ptr, bytes_at, exist, ROWS, COLUMNS), weight, 0.0)
                plane_ptr += of_plane
            if FAMILY == "sided":
                low = _load_bits(plane_ptr, bytes_at, exist, ROWS, COLUMNS)
                high = _load_bits(plane_ptr + of_plane, bytes_at, exist, ROWS, COLUMNS)
                dm = _of_sides(weight, low, high)
                plane_ptr += 2 * of_plane
        if POOL:
            right = _load_bits(plane_ptr, bytes_at, exist, ROWS, COLUMNS)
            below = _load_bits(plane_ptr + of_plane, bytes_at, exist, ROWS, COLUMNS)
    if POOL:
        dz0 = _dz(tl.where(below | right, 0.0, dm), z0, p, q, center, r, AFFINE, OF_Z)
        dz1 = _dz(tl.where(below, 0.0, tl.where(right, dm, 0.0)), z1, p, q, center, r, AFFINE, OF_Z)
        dz2 = _dz(tl.where(right, 0.0, tl.where(below, dm, 0.0)), z2, p, q, center, r, AFFINE, OF_Z)
        dz3 = _dz(tl.where(below & right, dm, 0.0), z3, p, q, center, r, AFFINE, OF_Z)
        above, mask = _pairs(places, places % width), inside[:, :, None]
        tl.store(dz_ptr + above, tl.join(dz0, dz1).to(dz_ptr.dtype.element_ty), mask=mask)
        tl.store(dz_ptr + above + 2 * width, tl.join(dz2, dz3).to(dz_ptr.dtype.element_ty), mask=mask)
    else:
        dz = _dz(dm, z0, p, q, center, r, AFFINE, OF_Z)
        tl.store(dz_ptr + places, dz.to(dz_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _hard_threshold_sums_kernel(
    dy_ptr, z_ptr, scale_ptr, shift_ptr, center_ptr,  # scale, shift: None, or [C] as center is
    part_ptr,  # [parts, 2, C]
    outer, C, inner, width,  # y is [outer, C, inner] in memory
    FAMILY: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, IS_OPEN: tl.constexpr, HEIGHT: tl.constexpr,
    SLOPE: tl.constexpr, OFFSET: tl.constexpr, WEIGHTED: tl.constexpr, POOL: tl.constexpr, AFFINE: tl.constexpr,
    COMPUTE: tl.constexpr, BY_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if BY_COLUMNS:
        pieces = tl.cdiv(C, COLUMNS)
        part = pid // pieces
        chunk = part
        columns = (pid % pieces) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        present, channel, start = columns < C, columns, columns
        center = tl.load(center_ptr + columns, mask=present, other=0)
    else:
        pieces = tl.cdiv(inner, COLUMNS)
        part, channel = pid // C, pid % C
        chunk = part // pieces
        columns = (part % pieces) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        present, start = columns < inner, channel.to(tl.int64) * inner + columns
        center = tl.load(center_ptr + channel)
    scale, shift = 1.0, 0.0
    if AFFINE:
        if BY_COLUMNS:
            scale = tl.load(scale_ptr + columns, mask=present, other=0)
            shift = tl.load(shift_ptr + columns, mask=present, other=0)
        else:
            scale, shift = tl.load(scale_ptr + channel), tl.load(shift_ptr + channel)
    total, product = tl.zeros([ROWS, COLUMNS], COMPUTE), tl.zeros([ROWS, COLUMNS], COMPUTE)
    first = chunk * (ROWS * TILES)
    for tile in range(tl.minimum(TILES, tl.cdiv(outer - first, ROWS))):
        rows = first + tile * ROWS + tl.arange(0, ROWS)[:, None]
        places, inside = rows.to(tl.int64) * C * inner + start, present & (rows < outer)
        weight = _weight(tl.load(dy_ptr + places, mask=inside, other=0), WEIGHTED, COMPUTE)
        if POOL:
            m, right, below, z0, z1, z2, z3 = _pooled(
                z_ptr, places, columns % width, inside, width, scale, shift, AFFINE, COMPUTE
            )
            z = tl.where(below, tl.where(right, z3, z2), tl.where(right, z1, z0))
        else:
            z = tl.load(z_ptr + places, mask=inside, other=0)
            m = _affine(z, scale, shift, AFFINE, z_ptr, COMPUTE)
        dx = _by_rule(weight, m, FAMILY, LOW, HIGH, IS_OPEN, HEIGHT, SLOPE, OFFSET)
        total += tl.where(inside, dx, 0.0)
        product += tl.where(inside, dx * (z.to(COMPUTE) - center), 0.0)
    part_ptr += 2 * C * part.to(tl.int64)
    if BY_COLUMNS:
        at = tl.reshape(columns, [COLUMNS])
        tl.store(part_ptr + at, tl.sum(total, 0), mask=at < C)
        tl.store(part_ptr + C + at, tl.sum(product, 0), mask=at < C)
    else:
        tl.store(part_ptr + channel, tl.sum(tl.sum(total, 1), 0))
        tl.store(part_ptr + C + channel, tl.sum(tl.sum(product, 1), 0))


# ------------------------------------------------------------------------------------------------ launches


def forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, form: Form, keep: bool) -> tuple[Tensor, ...]:
    """z, scale [C], shift [C] -> (y, m if it is kept, what is kept of the rule and of the maxima, in bytes)."""
    if not keep:
        form = form._replace(kept="z")
    z, y = ordered(z, form), y_like(z, form)
    scale, shift = in_one_piece(scale, shift)
    m = y.new_empty(y.shape if form.kept == "m" else (0,))
    code = z.new_empty((code_bytes(y.numel(), form),), dtype=torch.uint8)
    if y.numel() == 0:
        return y, m, code
    grid, sizes, constants = _forward_launch(y.shape, y.dtype, y.device, form, scale is not None)
    _hard_threshold_fwd_kernel[grid](z, scale, shift, y, m, code, *sizes, **constants)
    return y, m, code


def backward(
    dy: Tensor, z: Tensor | None, scale: Tensor | None, shift: Tensor | None, kept: Tensor, code: Tensor,
    coefficients: Tensor | None, form: Form,
) -> Tensor:  # fmt: skip
    """dy and what was kept -> dz.

    coefficients: rows p, q, center, r [4, C] of dz = p dx + q (z − center) + r, which only a call with z has. Without
    them dz = scale dx, or dx where there is no scale.
    """
    dy, z = ordered(dy, form), None if z is None else ordered(z, form)
    scale, shift, coefficients = in_one_piece(scale, shift, coefficients)
    dz = z_like(dy, form)
    if dy.numel() == 0:
        return dz
    if scale is not None and coefficients is None:  # the kernel takes four rows; the others count only where z was kept
        zeros = torch.zeros_like(scale)
        coefficients = torch.stack([scale, zeros, zeros, zeros])
    grid, sizes, constants = _backward_launch(dy.shape, dy.dtype, dy.device, form, coefficients is not None)
    _hard_threshold_bwd_kernel[grid](dy, z, scale, shift, kept, code, coefficients, dz, *sizes, **constants)
    return dz


def sums(dy: Tensor, z: Tensor, scale: Tensor | None, shift: Tensor | None, center: Tensor, form: Form) -> Tensor:
    """dy, z -> rows Σ dx, Σ dx (z − center) [2, C], the sums over all but the channels."""
    dy, z, center = ordered(dy, form), ordered(z, form), center.contiguous()
    scale, shift = in_one_piece(scale, shift)
    outer, C, inner = channels(dy.shape, form)
    if dy.numel() == 0:
        return center.new_zeros((2, C))
    by_columns = inner == 1
    columns, rows, programs, parts = _split(outer, C, inner, form.pool)
    partial = center.new_empty((parts, 2, C))
    config = SUMS.config(_problem(dy.numel(), dy.dtype, form), dy.device)
    _hard_threshold_sums_kernel[(programs,)](
        dy, z, scale, shift, center, partial, outer, C, inner, dy.shape[-1] if form.pool else 1,
        **_rule(rule_of(form)), WEIGHTED=form.weighted, POOL=form.pool, AFFINE=scale is not None,
        COMPUTE=_compute(dy.dtype), BY_COLUMNS=by_columns, ROWS=rows, COLUMNS=columns, TILES=_TILES,
        enable_fp_fusion=False, **config,
    )  # fmt: skip
    return partial.sum(0, dtype=torch.float64).to(center.dtype)


def _split(outer: int, C: int, inner: int, pool: bool) -> tuple[int, int, int, int]:
    """(columns and rows of a tile, programs, parts that each channel's sum is of); the same on each device."""
    by_columns = inner == 1
    extent = C if by_columns else inner
    columns = min(next_power_of_2(extent), _MOST_COLUMNS if by_columns else _LONGEST)
    rows = min(next_power_of_2(outer), (_TILE // 2 if pool else _TILE) // columns)
    pieces, chunks = cdiv(extent, columns), cdiv(outer, rows * _TILES)
    return (columns, rows, pieces * chunks, chunks) if by_columns else (
        columns, rows, C * pieces * chunks, pieces * chunks
    )  # fmt: skip


def _problem(size: int, dtype: torch.dtype, form: Form) -> dict[str, Any]:
    return {"size": size, "dtype": str(dtype), "kept": form.kept, "pool": form.pool}


def _compute(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "FAMILY": rule.family, "LOW": rule.low, "HIGH": rule.high, "IS_OPEN": rule.is_open, "HEIGHT": rule.height,
        "SLOPE": rule.slope, "OFFSET": rule.offset,
    }  # fmt: skip


Launch = tuple[tuple[int], tuple[int, ...], dict[str, Any]]  # grid, sizes, constants


@remembered
def _forward_launch(shape: torch.Size, dtype: torch.dtype, device: torch.device, form: Form, affine: bool) -> Launch:
    # where nothing is kept of the rule, all rules are one kernel
    rule = rule_of(form) if form.kept in ("bits", "byte") else Rule("all")
    config = FORWARD.config(_problem(shape.numel(), dtype, form), device)
    grid, sizes, constants = _launch(shape, dtype, form, affine, config)
    return grid, sizes, {"KIND": form.kind, "STEPS": form.steps, **_rule(rule), **constants, **config}


@remembered
def _backward_launch(shape: torch.Size, dtype: torch.dtype, device: torch.device, form: Form, affine: bool) -> Launch:
    config = BACKWARD.config(_problem(shape.numel(), dtype, form), device)
    grid, sizes, constants = _launch(shape, dtype, form, affine, config)
    return grid, sizes, {"WEIGHTED": form.weighted, **_rule(rule_of(form)), **constants, **config}


def _launch(shape: torch.Size, dtype: torch.dtype, form: Form, affine: bool, config: Mapping[str, int]) -> Launch:
    """(grid, sizes, constants) of forward and backward, for the shape of the output, or of its gradient."""
    size, block = shape.numel(), config["BLOCK"]
    outer, C, inner = channels(shape, form) if affine else (1, 1, size)
    by, rows, programs = "none", 1, cdiv(size, block)
    if affine and inner == 1 and C % 8 == 0:  # so that 8 elements of a row are a byte
        columns = min(block, next_power_of_2(C), _MOST_COLUMNS)
        by, rows = "columns", block // columns
        programs = cdiv(outer, rows) * cdiv(C, columns)
    elif affine and inner % block == 0:
        by = "one"
    elif affine and 8 <= inner < block and inner & (inner - 1) == 0:
        by, rows = "rows", block // inner
    elif affine:
        by = "pair" if inner >= min(block, size) else "flat"
    # beyond 2^15 channels a program has no channel twice, and needs no quotient
    reciprocals = _reciprocal(C) if C < 1 << 15 else 0, _reciprocal(inner) if by == "flat" else 0
    constants = {
        "KEPT": form.kept, "PLANES": planes(form) > 0, "POOL": form.pool, "BY": by, "COMPUTE": _compute(dtype),
        "WIDE": size * (4 if form.pool else 1) > 1 << 30, "ROWS": rows, "enable_fp_fusion": False,
    }  # fmt: skip
    return (programs,), (size, C, inner, shape[-1] if form.pool else 1, *reciprocals), constants


def _reciprocal(d: int) -> int:
    return -(-(1 << 31) // d)
