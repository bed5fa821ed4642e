"""The C++ step (cpu.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import native
from .definition import RULES

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


@functools.cache
def _function(dtype: torch.dtype):
    found = native.required("scatter_step", SOURCE, dtype)
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_double
    found.scatter_step.argtypes = (
        [ctypes.POINTER(ctypes.c_int64), pointer, pointer, integer, pointer, pointer, integer]
        + [real] * 3
        + [pointer, pointer, integer, integer]
    )
    found.scatter_set_team.argtypes = [pointer]
    found.scatter_set_team(native.openmp_team())
    return found.scatter_step


def step(
    param: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    values: Tensor,
    lr: float | Tensor,
    rule: str,
    momentum: float,
    eps: float,
    moment: Tensor | None,
    touched: Tensor | None,
    number: Tensor | None,
) -> None:
    """As `_step` of the package, of a list that is not empty, in contiguous tensors.

    Raises:
        IndexError: an index out of range; nothing is written then.
    """
    sizes, strides = param.shape, param.stride()
    R, (C, of_row, of_column) = sizes[0], (1, strides[0], strides[0])
    if columns is not None:
        C, of_column = sizes[1], strides[1]
    wide = len(sizes) > (1 if columns is None else 2)
    D, of_inner = (sizes[-1], strides[-1]) if wide else (1, 1)
    nnz = rows.shape[0]
    now = 0 if number is None else int(number) + 1
    problem = {"R": R, "C": C, "nnz": nnz, "D": D, "dtype": str(param.dtype)}
    config = STEP.config(problem, param.device)
    bucket = (STEP.default(problem) if rule == "polyak" else config)["BUCKET"]
    status = _function(param.dtype)(
        native.integers(nnz, R, C, D, of_row, of_column, of_inner, bucket),
        rows.data_ptr(),
        None if columns is None else columns.data_ptr(),
        rows.dtype == torch.int64,
        values.data_ptr(),
        param.data_ptr(),
        RULES.index(rule),
        float(lr),
        momentum,
        eps,
        None if moment is None else moment.data_ptr(),
        None if touched is None else touched.data_ptr(),
        now,
        native.threads(config["threads"], nnz * D, _SMALL),
    )
    if status == 1:
        raise MemoryError(f"scatter_step: no memory for a copy of {nnz} entries")
    if status == 2:
        columns_too = "" if columns is None else f" and columns in [-1, {C})"
        raise IndexError(
            f"scatter_step: an index is out of range; expected {'rows' if columns_too else 'indices'} in [-1, {R})"
            f"{columns_too}, -1 to skip; nothing was written"
        )
    if number is not None:
        number.fill_(now)
