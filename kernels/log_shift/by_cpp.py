"""The C++ kernel of log and shift (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native
from .definition import dtype_of, is_transposed

SOURCE = Path(__file__).with_name("by_cpp.cpp")

FORWARD = Tuned(
    "log_shift.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 13  # logarithms that are taken before a thread would start


@native.cached
def _function(dtype: torch.dtype):
    function = native.required("log_shift", SOURCE, dtype).log_shift_forward
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.POINTER(ctypes.c_int64), pointer, pointer, ctypes.c_double, pointer, pointer]
    return function


def forward(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> tuple[Tensor, Tensor]:
    """counts [D, C], eps [C], in place of number -> (weight [D, C] in the memory order of counts, log S [C])."""
    (D, C), dtype = counts.shape, dtype_of(counts.dtype)
    by_class = is_transposed(counts)
    lines = counts.t() if by_class else counts.contiguous()
    weight = torch.empty(lines.shape, dtype=dtype, device=counts.device)
    log_mass = torch.empty((C,), dtype=dtype, device=counts.device)
    eps = log_mass.new_full((C,), number) if eps is None else eps.to(dtype).contiguous()
    config = FORWARD.config({"D": D, "C": C, "dtype": str(counts.dtype)}, counts.device)
    problem = native.integers(*lines.shape, by_class, native.threads(config["threads"], D * C, _SMALL))
    status = 0
    if D and C:
        status = _function(counts.dtype)(
            problem, lines.data_ptr(), eps.data_ptr(), factor, weight.data_ptr(), log_mass.data_ptr()
        )
    else:
        log_mass.fill_(float("-inf"))
    if status == 1:
        raise MemoryError("log_shift: no memory for the sums of the blocks")
    return weight.t() if by_class else weight, log_mass
