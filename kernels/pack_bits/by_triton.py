"""The Triton kernels of signs as bits: a program takes BLOCK bytes, each of eight elements of a row."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv
from .definition import HAS_NAN, HAS_OTHERS, KINDS, byte_count

# a thread's 16 bytes hold 2 to 8 elements: 4 to 16 loads in flight, as many as hide the way to memory
_SPACE = {"BLOCK": (32, 64, 128, 256, 512, 1024), "num_warps": (1, 2, 4, 8)}
PACK = Tuned(
    "pack_bits.triton",
    Space(_SPACE),
    default=lambda problem: {"BLOCK": 512, "num_warps": 4},
    source=Path(__file__),
)
UNPACK = Tuned(
    "unpack_bits.triton",
    Space(_SPACE),
    default=lambda problem: {"BLOCK": 512, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _places(total, K, bytes_of_row, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """The program's bytes [BLOCK] and elements [BLOCK, 8], and which of either there are."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    if RAGGED:
        row = byte // bytes_of_row
        column = ((byte - row * bytes_of_row) * 8)[:, None] + bit
        return byte, byte < total, row[:, None] * K + column, (byte < total)[:, None] & (column < K)
    element = byte[:, None] * 8 + bit
    return byte, byte < total, element, (byte < total)[:, None] & (bit < 8)


@triton.jit
def _pack_bits_kernel(
    x_ptr,  # [M, K]
    bits_ptr,  # [M, bytes_of_row]
    flags_ptr,  # []
    total, K, bytes_of_row,
    CHECKED: tl.constexpr, HAS_NAN: tl.constexpr, HAS_OTHERS: tl.constexpr, RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    byte, inside, element, present = _places(total, K, bytes_of_row, BLOCK, RAGGED)
    x = tl.load(x_ptr + element, mask=present, other=0)
    if x.dtype == tl.bfloat16 or x.dtype == tl.float16:
        x = x.to(tl.float32)
    bit = tl.arange(0, 8)[None, :]
    bits = tl.sum((x > 0).to(tl.int32) << bit, 1)
    tl.store(bits_ptr + byte, bits.to(tl.uint8), mask=inside)
    if CHECKED:
        is_nan = x != x
        is_other = (x != 1) & (x != -1) & (x == x)
        flags = tl.where(present & is_nan, HAS_NAN, 0) | tl.where(present & is_other, HAS_OTHERS, 0)
        nan = tl.max(tl.max(flags & HAS_NAN, 1), 0)
        others = tl.max(tl.max(flags & HAS_OTHERS, 1), 0)
        tl.atomic_or(flags_ptr, nan | others, mask=(nan | others) != 0, sem="relaxed")


@triton.jit
def _unpack_bits_kernel(
    bits_ptr,  # [M, bytes_of_row]
    x_ptr,  # [M, K]
    total, K, bytes_of_row,
    SIGNED: tl.constexpr, RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    byte, inside, element, present = _places(total, K, bytes_of_row, BLOCK, RAGGED)
    bits = tl.load(bits_ptr + byte, mask=inside, other=0).to(tl.int32)
    x = (bits[:, None] >> tl.arange(0, 8)[None, :]) & 1
    if SIGNED:
        x = x * 2 - 1
    if x_ptr.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)  # the interpreter gets it wrong from integers
    tl.store(x_ptr + element, x.to(x_ptr.dtype.element_ty), mask=present)


def pack(x: Tensor, checked: bool) -> tuple[Tensor, Tensor]:
    """x [..., K] -> bits uint8 [..., bytes], flags int32 [], 0 where they are not asked for. No size is 0."""
    (*batch, K), x = x.shape, x.contiguous()
    bits = torch.empty((*batch, byte_count(K)), dtype=torch.uint8, device=x.device)
    flags = torch.zeros((), dtype=torch.int32, device=x.device)
    config = PACK.config({"M": math.prod(batch), "K": K, "dtype": str(x.dtype)}, x.device)
    _pack_bits_kernel[(cdiv(bits.numel(), config["BLOCK"]),)](
        x, bits, flags, bits.numel(), K, byte_count(K),
        CHECKED=checked, HAS_NAN=HAS_NAN, HAS_OTHERS=HAS_OTHERS, RAGGED=K % 8 != 0, **config,
    )  # fmt: skip
    return bits, flags


def unpack(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> Tensor:
    """bits uint8 [..., bytes] -> [..., size]. No size is 0."""
    (*batch, _), bits = bits.shape, bits.contiguous()
    x = torch.empty((*batch, size), dtype=dtype, device=bits.device)
    config = UNPACK.config({"M": math.prod(batch), "K": size, "dtype": str(dtype)}, bits.device)
    _unpack_bits_kernel[(cdiv(bits.numel(), config["BLOCK"]),)](
        bits, x, bits.numel(), size, byte_count(size), SIGNED=KINDS[kind] < 0, RAGGED=size % 8 != 0, **config
    )
    return x
