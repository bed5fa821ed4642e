"""The C++ step (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Problem, Space, Tuned
from ..runtime import dispatch, native
from .definition import RULES, STATE_OVERLAPS, Options, not_finite

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# BUCKET: entries, about; a bucket and its table are to stay in a core's cache. Each key's values are added in the order
# of the list, whatever its bucket: the same bits. Polyak's norm goes bucket by bucket, and so keeps the default.
# MARKS: whether single values go to no bucket, but are marked by their key, to find those that share one.
STEP = Tuned(
    "scatter_step.cpp",
    Space({"BUCKET": (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16), "MARKS": (0, 1), "threads": native.THREADS}),
    default=lambda problem: {"BUCKET": 1 << 14, "MARKS": _marks_pay(problem), "threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # elements that are done before a thread would start


def _marks_pay(problem: Problem) -> int:
    """Buckets win in short lists, and in long ones that are scattered over much memory, as measured."""
    nnz, keys = int(problem["nnz"]), int(problem["R"]) * int(problem["C"])
    return int(nnz >= 1 << 15 and (nnz <= 1 << 18 or keys <= 1 << 21))


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field: the step of one of the weights of a call."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "rows", "columns", "width")),
        *((name, ctypes.c_int64) for name in ("of_row", "of_column", "of_inner")),
        *(
            (name, ctypes.c_int64)
            for name in ("entries_a_bucket", "has_marks", "has_columns", "has_wide_indices", "rule")
        ),
        *((name, ctypes.c_int64) for name in ("must_be_finite", "threads")),
    )


@native.cached
def _function(dtype: torch.dtype):
    return native.required("scatter_step", SOURCE, dtype).scatter_step


def step(
    param: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    values: Tensor,
    lr: float,
    options: Options,
    kept: list[Tensor],
    check_finite: bool,
) -> None:
    """`_step` of the package; rows, columns and values are contiguous, and no size is 0.

    Raises:
        IndexError: an index is out of range.
        ValueError: the state lies in param or in itself.
        FloatingPointError: with check_finite, the step would not leave all that it writes finite.
        MemoryError: there is no room for a copy of the entries. Nothing was written, in any of the four cases.
    """
    at = (rows,) if columns is None else (rows, columns)
    numbers = float(lr), None, *map(float, options[1:])
    row = plan(param.dtype, [call(param, rows, columns, values, options.rule, check_finite)])
    status, _ = dispatch.run(row, param, *at, values, *numbers, *kept)
    if status < 0:
        raise FloatingPointError(not_finite([int(x[-1 - status]) for x in at]))
    if status == 1:
        raise MemoryError(f"scatter_step: no memory for a copy of {len(rows)} entries")
    if status == 3:
        raise ValueError(STATE_OVERLAPS)
    if status:
        R = param.shape[0]
        what, columns_too = ("indices", "") if columns is None else ("rows", f" and columns in [-1, {param.shape[1]})")
        raise IndexError(
            f"scatter_step: an index is out of range; expected {what} in [-1, {R}){columns_too}, -1 to skip; "
            "nothing was written"
        )


def plan(dtype: torch.dtype, calls: list[_Call]) -> dispatch.Plan:
    """The plan of the steps of several weights of one dtype, of all or of none."""
    constants = native.integers(len(calls), *(getattr(call, field[0]) for call in calls for field in _Call._fields_))
    return dispatch.plan(_function(dtype), (), constants)


def call(param: Tensor, rows: Tensor, columns: Tensor | None, values: Tensor, rule: str, check_finite: bool) -> _Call:
    """The step of a weight in a plan, for tensors that lie in memory as these do."""
    sizes, strides = param.shape, param.stride()
    R, (C, of_row, of_column) = sizes[0], (1, strides[0], strides[0])
    if columns is not None:
        C, of_column = sizes[1], strides[1]
    is_wide = len(sizes) > (1 if columns is None else 2)
    D, of_inner = (sizes[-1], strides[-1]) if is_wide else (1, 1)
    nnz = rows.shape[0]
    problem = {"R": R, "C": C, "nnz": nnz, "D": D, "dtype": str(param.dtype)}
    config = STEP.config(problem, param.device)
    bucket = (STEP.default(problem) if rule == "polyak" else config)["BUCKET"]
    return _Call(
        count=nnz,
        rows=R,
        columns=C,
        width=D,
        of_row=of_row,
        of_column=of_column,
        of_inner=of_inner,
        entries_a_bucket=bucket,
        has_marks=D == 1 and rule != "polyak" and config["MARKS"],
        has_columns=columns is not None,
        has_wide_indices=rows.dtype == torch.int64,
        rule=RULES.index(rule),
        must_be_finite=check_finite,
        threads=native.threads(config["threads"], nnz * D, _SMALL),
    )
