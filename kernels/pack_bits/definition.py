"""Signs as bits in torch: the oracle, and the form that runs where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..runtime.arguments import FLOATS, INTEGERS

SIGNED = (torch.int64, *INTEGERS)
WIDE_UNSIGNED = (torch.uint64, torch.uint32, torch.uint16)  # of which torch has few operations, and C++ no library
DTYPES = (*FLOATS, *SIGNED, torch.uint8, *WIDE_UNSIGNED, torch.bool)
UNPACKED = (*FLOATS, *SIGNED, torch.uint8, torch.bool)  # the last two hold no −1
KINDS = {"sign": -1, "step": 0}  # the value of a 0 bit
HAS_NAN, HAS_OTHERS = 1, 2  # flags of values that are not ±1


def pack_bits_ref(x: Tensor) -> Tensor:
    """The oracle: the definition."""
    count = byte_count(x.shape[-1])
    positive = pad(_is_positive(x).to(torch.uint8), (0, 8 * count - x.shape[-1])).unflatten(-1, (count, 8))
    return (positive << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(-1, dtype=torch.uint8)


def unpack_bits_ref(bits: Tensor, size: int, *, kind: str = "sign", dtype: torch.dtype = torch.float32) -> Tensor:
    """The oracle: the definition."""
    each = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1).flatten(-2)[..., :size]
    return torch.where(each > 0, 1, KINDS[kind]).to(dtype)


def flags_ref(x: Tensor) -> Tensor:
    """int32 []: 1 if an element is NaN, plus 2 if one is neither ±1 nor NaN."""
    if x.dtype in WIDE_UNSIGNED:
        x = x.view(getattr(torch, str(x.dtype).removeprefix("torch.u")))
        is_one, is_nan = x == 1, torch.zeros_like(x, dtype=torch.bool)
    else:
        is_one, is_nan = (x == 1) | (x == -1 if x.dtype.is_signed else False), x != x
    return HAS_NAN * is_nan.any().int() + HAS_OTHERS * (~is_one & ~is_nan).any().int()


def byte_count(size: int) -> int:
    """The bytes of a row of so many bits."""
    return (size + 7) // 8


def _is_positive(x: Tensor) -> Tensor:
    if x.dtype in WIDE_UNSIGNED:
        return x.view(getattr(torch, str(x.dtype).removeprefix("torch.u"))) != 0
    return x > 0
