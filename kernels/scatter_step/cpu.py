"""The C++ step (cpu.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import eager, native
from .definition import RULES, STATE_OVERLAPS

SOURCE = Path(__file__).with_name("cpu.cpp")

# BUCKET: entries, about; a bucket and its table are to stay in a core's cache. Each key's values are added in the order
# of the list, whatever its bucket: the same bits. Polyak's norm goes bucket by bucket, and so keeps the default.
STEP = Tuned(
    "scatter_step.cpp",
    Space({"BUCKET": (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16), "threads": native.THREADS}),
    default=lambda problem: {"BUCKET": 1 << 14, "threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # elements that are done before a thread would start


class _Call(ctypes.Structure):
    """What cpu.cpp calls so."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "rows", "columns", "width", "of_row", "of_column", "of_inner")),
        *((name, ctypes.c_int64) for name in ("entries_a_bucket", "has_wide_indices", "rule", "threads")),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
    ]


@native.cached
def _function(dtype: torch.dtype):
    found = native.required("scatter_step", SOURCE, dtype)
    found.scatter_step.argtypes = [ctypes.c_void_p] * 9
    found.scatter_set_team.argtypes = [ctypes.c_void_p]
    found.scatter_set_team(native.openmp_team())
    return found.scatter_step


def prepare(
    param: Tensor, rows: Tensor, columns: Tensor | None, values: Tensor, rule: str, momentum: float, eps: float
) -> Callable[..., Any]:
    """`_step` of the package for tensors that lie in memory as these do; rows, columns and values are contiguous.

    Returns:
        A function of param, rows, columns, values, lr (a number), moment, touched, number; None for what is not there.
        It raises IndexError where an index is out of range, ValueError where the state lies in param or in itself,
        both with nothing written, and eager.NotPlain: see eager.prepared.
    """
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
    threads = native.threads(config["threads"], nnz * D, _SMALL)
    has_columns = columns is not None

    def check(status: int) -> None:
        if status == 1:
            raise MemoryError(f"scatter_step: no memory for a copy of {nnz} entries")
        if status == 3:
            raise ValueError(STATE_OVERLAPS)
        what, columns_too = ("rows", f" and columns in [-1, {C})") if has_columns else ("indices", "")
        raise IndexError(
            f"scatter_step: an index is out of range; expected {what} in [-1, {R}){columns_too}, -1 to skip; "
            "nothing was written"
        )

    sizes = nnz, R, C, D, of_row, of_column, of_inner, bucket, rows.dtype == torch.int64, RULES.index(rule), threads
    return eager.prepared(_function(param.dtype), _Call(*sizes, momentum, eps), (), check, writes=(0,))
