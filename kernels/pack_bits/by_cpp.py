"""The C++ kernels of signs as bits (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native
from .definition import KINDS, byte_count

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# BLOCK: elements of a task. Every choice gives the same bits.
_SPACE = {"BLOCK": (1 << 12, 1 << 14, 1 << 16, 1 << 18), "threads": native.THREADS}
PACK = Tuned("pack_bits.cpp", Space(_SPACE), default=lambda problem: {"BLOCK": 1 << 16, "threads": 0}, source=SOURCE)
UNPACK = Tuned(
    "unpack_bits.cpp", Space(_SPACE), default=lambda problem: {"BLOCK": 1 << 16, "threads": 0}, source=SOURCE
)
_SMALL = 1 << 16  # elements that one thread takes before another would start


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "size", "block", "threads", "option"))


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("pack_bits", SOURCE, dtype)
    return library.pack_bits, library.unpack_bits


def pack(x: Tensor, checked: bool) -> tuple[Tensor, Tensor]:
    """x [..., K] -> bits uint8 [..., bytes], flags int32 [], 0 where they are not asked for. No size is 0."""
    x = x.contiguous()
    _, (bits, flags) = dispatch.run(pack_plan(x, checked), x)
    return bits, flags


def unpack(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> Tensor:
    """bits uint8 [..., bytes] -> [..., size]. No size is 0."""
    bits = bits.contiguous()
    _, (x,) = dispatch.run(unpack_plan(bits, size, kind, dtype), bits)
    return x


def pack_plan(x: Tensor, checked: bool) -> dispatch.Plan:
    """The plan of `pack` of a contiguous x."""
    (*batch, K) = x.shape
    outputs = (torch.uint8, (*batch, byte_count(K))), (torch.int32, ())
    call = _call(PACK, math.prod(batch), K, x.dtype, x.device, checked)
    return dispatch.plan(_functions(x.dtype)[0], outputs, call)


def unpack_plan(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> dispatch.Plan:
    """The plan of `unpack` of contiguous bits."""
    (*batch, _) = bits.shape
    call = _call(UNPACK, math.prod(batch), size, dtype, bits.device, KINDS[kind])
    return dispatch.plan(_functions(dtype)[1], ((dtype, (*batch, size)),), call)


def _call(kernel: Tuned, rows: int, size: int, dtype: torch.dtype, device: torch.device, option: int) -> _Call:
    config = kernel.config({"M": rows, "K": size, "dtype": str(dtype)}, device)
    threads = native.threads(config["threads"], rows * size, _SMALL)
    return _Call(rows, size, config["BLOCK"], threads, option)
