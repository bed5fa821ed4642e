"""The C++ sums (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native
from . import definition
from .definition import dtype_of

SOURCE = Path(__file__).with_name("by_cpp.cpp")

SUMS = Tuned(
    "cooccurrence.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 16  # elements that are added up before a thread would start
_MOST_ROWS = 1 << 32  # their order is kept in 32 bits
_MOST_FEATURES = 1 << 24  # the bytes of a row are added up in 32 bits


@native.cached
def _function(dtype: torch.dtype):
    function = native.required("cooccurrence", SOURCE, dtype).cooccurrence_sums
    pointer, number = ctypes.c_void_p, ctypes.c_double
    function.argtypes = [ctypes.POINTER(ctypes.c_int64), pointer, pointer, number, number, pointer]
    return function


def sums(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> Tensor:
    """x [N, D], no bools, labels [N] -> [C, D]. Values are looked at on the way.

    Raises:
        ValueError: as `definition.check`.
    """
    N, D = x.shape
    x = x if x.stride(1) == 1 or D == 1 else x.contiguous()
    labels = labels.contiguous()
    total = torch.empty((classes, D), dtype=dtype_of(x.dtype, scale), device=x.device)
    config = SUMS.config({"N": N, "D": D, "C": classes, "dtype": str(x.dtype)}, x.device)
    threads = native.threads(config["threads"], N * D, _SMALL)
    label_bytes = -1 if labels.dtype == torch.uint8 else labels.element_size()
    problem = native.integers(N, D, classes, x.stride(0), label_bytes, scale is not None, threads)
    status = 2
    if D and N < _MOST_ROWS and not (D > _MOST_FEATURES and x.element_size() == 1):
        function = _function(x.dtype)
        status = function(problem, x.data_ptr(), labels.data_ptr(), scale or 1.0, offset, total.data_ptr())
    if status == 1:
        raise MemoryError("cooccurrence: no memory for the order of the rows, or for parts of the sums")
    if status == 2:  # something is wrong, or sums leave float64
        definition.check(x, labels, classes, scale, offset)
        return definition.sums(x, labels, classes, scale, offset)
    return total
