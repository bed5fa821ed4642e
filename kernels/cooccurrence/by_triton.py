"""The portable Triton sums: any GPU that Triton knows, and its interpreter on the CPU.

torch sorts the rows by class. A program adds up some columns of a segment, up to so many rows of one class, in their
order; a second launch adds up each class's segments in theirs. No atomics: the same bits each time. How many segments
there are is not known to the host, which would have to wait for it: there are programs for as many as there may be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned, capturing
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from . import definition
from .definition import FLOATS, dtype_of

_SPACE = Space({"BLOCK_D": (32, 64, 128, 256, 512), "num_warps": (1, 2, 4, 8)})


def _default(problem):
    return {"BLOCK_D": min(128, max(32, next_power_of_2(int(problem["D"])))), "num_warps": 2}


SUMS = Tuned("cooccurrence.triton", _SPACE, default=_default, source=Path(__file__))
JOIN = Tuned("cooccurrence_join.triton", _SPACE, default=_default, source=Path(__file__))
# another number of warps would add a row's elements in another order
MASSES = Tuned(
    "cooccurrence_masses.triton",
    Space({"num_warps": (4,)}),
    default=lambda problem: {"num_warps": 4},
    source=Path(__file__),
)
_TILE = 2048  # elements of rows that a program of `masses` takes at a time
_LEAST_SEGMENT, _MOST_SEGMENTS = 128, 2048
_LEAST = 2.0**-900  # as in by_cpp.cpp


@triton.jit
def _is_bad(x):
    """Whether an element is negative, or not finite."""
    bad = x < 0
    if x.dtype == tl.float32 or x.dtype == tl.float64:
        bad = bad | (x != x) | (x == float("inf"))
    return bad


@triton.jit
def _widened(x):
    return x.to(tl.float32) if x.dtype == tl.bfloat16 or x.dtype == tl.float16 else x


@triton.jit
def _cooccurrence_masses_kernel(
    x_ptr,  # [N, D]
    mass_ptr,  # [N] float64
    flag_ptr,  # a program's: whether an element is bad
    N, D, stride_n, stride_d,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float64)
    flags = tl.zeros([ROWS, BLOCK], tl.int32)
    for first in range(0, D, BLOCK):
        columns = first + tl.arange(0, BLOCK).to(tl.int64)
        mask = (rows < N)[:, None] & (columns < D)[None, :]
        x = _widened(tl.load(x_ptr + rows[:, None] * stride_n + columns[None, :] * stride_d, mask=mask, other=0))
        flags |= _is_bad(x).to(tl.int32)
        total += x.to(tl.float64)
    tl.store(mass_ptr + rows, tl.sum(total, 1), mask=rows < N)
    tl.store(flag_ptr + tl.program_id(0), tl.max(tl.max(flags, 1), 0))


@triton.jit
def _cooccurrence_fwd_kernel(
    x_ptr,  # [N, D]
    order_ptr,  # [N] int64: the rows by class
    begin_ptr,  # [C + 1] int64: where each class's rows begin in the order
    segment_ptr,  # [C + 1] int64: where each class's segments begin
    class_ptr,  # of each segment; C where there is none
    weight_ptr,  # [N] float64, if WEIGHTED
    offset_ptr,  # [] float64, if WEIGHTED
    part_ptr,  # [segments, D]
    flag_ptr,  # a program's: whether an element is bad
    C, D, stride_n, stride_d,
    SEGMENT: tl.constexpr, WEIGHTED: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(D, BLOCK_D)
    segment = (pid // pieces).to(tl.int64)
    columns = (pid % pieces).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    of_class = tl.load(class_ptr + segment)
    exists = of_class < C
    of_class = tl.minimum(of_class, C - 1)
    first = tl.load(begin_ptr + of_class) + (segment - tl.load(segment_ptr + of_class)) * SEGMENT
    end = tl.minimum(tl.load(begin_ptr + of_class + 1), first + SEGMENT)
    end = tl.where(exists, end, first)
    total = tl.zeros([BLOCK_D], ACC)
    flags = tl.zeros([BLOCK_D], tl.int32)
    shift = tl.zeros([1], tl.float64)
    for start in range(first, end, ROWS):
        for r in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
            here = start + r < end
            row = tl.load(order_ptr + start + r, mask=here, other=0)
            x = _widened(tl.load(x_ptr + row * stride_n + columns * stride_d, mask=inside & here, other=0))
            if WEIGHTED:
                weight = tl.load(weight_ptr + row, mask=here, other=0)
                total += weight * x.to(tl.float64)
                shift += weight
            else:
                flags |= _is_bad(x).to(tl.int32)
                total += x.to(ACC)
    if WEIGHTED:
        total += tl.load(offset_ptr) * shift
    else:
        tl.store(flag_ptr + pid, tl.max(flags, 0))
    tl.store(part_ptr + segment * D + columns, total.to(part_ptr.dtype.element_ty), mask=inside & exists)


@triton.jit
def _cooccurrence_join_kernel(
    part_ptr,  # [segments, D]
    segment_ptr,  # [C + 1] int64
    total_ptr,  # [C, D]
    D,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(D, BLOCK_D)
    of_class = (pid // pieces).to(tl.int64)
    columns = (pid % pieces).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    first, end = tl.load(segment_ptr + of_class), tl.load(segment_ptr + of_class + 1)
    total = tl.zeros([BLOCK_D], total_ptr.dtype.element_ty)
    for start in range(first, end, ROWS):
        for r in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
            total += tl.load(part_ptr + (start + r) * D + columns, mask=inside & (start + r < end), other=0)
    tl.store(total_ptr + of_class * D + columns, total, mask=inside)


def sums(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> Tensor:
    """x [N, D], no bools, labels [N] -> [C, D]. The host waits once, to know whether values are bad.

    Raises:
        ValueError: as `definition.check`; nothing is looked at while a CUDA graph is captured.
    """
    (N, D), device = x.shape, x.device
    if N == 0 or D == 0:
        if not capturing(device):
            definition.check(x, labels, classes, scale, offset)
        return torch.zeros((classes, D), dtype=dtype_of(x.dtype, scale), device=device)
    problem = {"N": N, "D": D, "C": classes, "dtype": str(x.dtype)}
    flags, weights = [], None
    if scale is not None:
        weights, flag = _weights(x, scale, offset, problem)
        flags.append(flag)
    segment = max(_LEAST_SEGMENT, next_power_of_2(cdiv(N, _MOST_SEGMENTS)))
    config = SUMS.config(problem, device)
    most, pieces = min(classes, N) + N // segment, cdiv(D, config["BLOCK_D"])
    by_class, order = torch.sort(labels.long(), stable=True)
    begin = torch.searchsorted(by_class, torch.arange(classes + 1, device=device))
    segments = torch.nn.functional.pad(
        begin.diff().add(segment - 1).div(segment, rounding_mode="floor").cumsum(0), (1, 0)
    )
    of_segment = torch.searchsorted(segments, torch.arange(most, device=device), right=True) - 1
    total = torch.empty((classes, D), dtype=dtype_of(x.dtype, scale), device=device)
    parts = torch.empty((most, D), dtype=total.dtype, device=device)
    flag = torch.empty((most * pieces,), dtype=torch.int32, device=device) if weights is None else order
    narrow = not (x.dtype in FLOATS or x.element_size() > 2)
    accumulator = (
        tl.float64 if total.dtype == torch.float64 else tl.int32 if narrow and segment <= 1 << 16 else tl.int64
    )
    _cooccurrence_fwd_kernel[(most * pieces,)](
        x, order, begin, segments, of_segment, order if weights is None else weights,
        torch.full((), offset, dtype=torch.float64, device=device), parts, flag, classes, D, *x.stride(),
        SEGMENT=segment, WEIGHTED=weights is not None, ACC=accumulator, ROWS=_ROWS, **config,
    )  # fmt: skip
    config = JOIN.config(problem, device)
    _cooccurrence_join_kernel[(classes * cdiv(D, config["BLOCK_D"]),)](parts, segments, total, D, ROWS=_ROWS, **config)
    if capturing(device):
        return total
    if weights is None:
        flags.append(flag.any())
    flags += [by_class[0] < 0, by_class[-1] >= classes]
    if bool(torch.stack(flags).any()):  # something is wrong, or sums leave float64
        definition.check(x, labels, classes, scale, offset)
        return definition.sums(x, labels, classes, scale, offset)
    return total


_ROWS = 8  # that are asked for at once


def _weights(x: Tensor, scale: float, offset: float, problem) -> tuple[Tensor, Tensor]:
    """[N] float64: what each row is multiplied by; and whether an element is bad, or a weight out of range."""
    N, D = x.shape
    block = min(next_power_of_2(D), _TILE)
    rows = _TILE // block
    programs = cdiv(N, rows)
    masses = torch.empty((N,), dtype=torch.float64, device=x.device)
    flag = torch.empty((programs,), dtype=torch.int32, device=x.device)
    _cooccurrence_masses_kernel[(programs,)](
        x, masses, flag, N, D, *x.stride(), ROWS=rows, BLOCK=block, **MASSES.config(problem, x.device)
    )
    weights = scale / (masses + D * offset)
    return weights, flag.any() | ~((weights >= _LEAST) & (weights <= 1 / _LEAST)).all()
