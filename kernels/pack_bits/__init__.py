"""Signs as bits: bit k % 8 of byte k // 8 is x[..., k] > 0, and back to ±1 or to 0 and 1.

The bits are those of numpy.packbits(x > 0, axis=-1, bitorder="little"). NaN gives 0, and spare bits are 0.
The operator besides says whether x held anything but ±1, which a packed copy cannot hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import is_integer, listed
from ..runtime.dispatch import Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from . import by_cpp, by_triton
from .definition import (
    DTYPES,
    HAS_NAN,
    HAS_OTHERS,
    KINDS,
    UNPACKED,
    WIDE_UNSIGNED,
    byte_count,
    flags_ref,
    pack_bits_ref,
    unpack_bits_ref,
)

__all__ = ["HAS_NAN", "HAS_OTHERS", "PACK", "UNPACK", "pack_bits", "pack_bits_ref", "unpack_bits", "unpack_bits_ref"]

# ------------------------------------------------------------------------------------------------ to bits


def _pack(x: Tensor, checked: bool) -> tuple[Tensor, Tensor]:
    """x [..., K] -> bits uint8 [..., bytes], and flags int32 []: HAS_NAN + HAS_OTHERS if it is checked, else 0."""
    if x.numel() == 0:
        bits, flags = _pack_fake(x, checked)
        return bits.zero_(), flags.zero_()
    if x.dtype in WIDE_UNSIGNED:
        return _pack_by_torch(x, checked)
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return PACKS.of(x)(x, checked)


def _pack_by_torch(x: Tensor, checked: bool) -> tuple[Tensor, Tensor]:
    flags = flags_ref(x) if checked else torch.zeros((), dtype=torch.int32, device=x.device)
    return pack_bits_ref(x), flags


def _pack_plan(x: Tensor, checked: bool) -> Plan:
    if x.numel() == 0 or x.dtype in (torch.bool, *WIDE_UNSIGNED) or not x.is_contiguous():
        return []
    return by_cpp.pack_plan(x, checked) if PACKS.backend_of(x) == "cpp" else []


def _pack_fake(x, checked) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], byte_count(x.shape[-1])), dtype=torch.uint8), x.new_empty((), dtype=torch.int32)


def _pack_mapped(info, dims, x, checked):
    x = x.movedim(dims[0], 0)
    if not checked:
        return PACK.dispatched(x, checked), (0, None)
    bits, flags = zip(*(PACK.dispatched(each, checked) for each in x.unbind()), strict=True)  # flags of each map
    return (torch.stack(bits), torch.stack(flags)), (0, 0)


PACKS = Implementations("pack_bits", source=by_cpp.SOURCE, cpp=by_cpp.pack, triton=by_triton.pack, torch=_pack_by_torch)
PACK = operator(
    "pack_bits(Tensor x, bool checked) -> (Tensor bits, Tensor flags)",
    _pack,
    fake=_pack_fake,
    vmap=_pack_mapped,
    plan=_pack_plan,
)

# ------------------------------------------------------------------------------------------------ and back


def _unpack(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> Tensor:
    """bits uint8 [..., bytes] -> [..., size]."""
    if bits.numel() == 0:
        return _unpack_fake(bits, size, kind, dtype)
    wanted, dtype = dtype, torch.uint8 if dtype == torch.bool else dtype
    x = UNPACKS.functions[UNPACKS.backend_on(bits.device, dtype)](bits, size, kind, dtype)
    return x.view(wanted)


def _unpack_by_torch(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> Tensor:
    return unpack_bits_ref(bits, size, kind=kind, dtype=dtype)


def _unpack_plan(bits: Tensor, size: int, kind: str, dtype: torch.dtype) -> Plan:
    if bits.numel() == 0 or dtype == torch.bool or not bits.is_contiguous():
        return []
    return by_cpp.unpack_plan(bits, size, kind, dtype) if UNPACKS.backend_on(bits.device, dtype) == "cpp" else []


def _unpack_fake(bits, size, kind, dtype) -> Tensor:
    return bits.new_empty((*bits.shape[:-1], size), dtype=dtype)


def _unpack_mapped(info, dims, bits, size, kind, dtype):
    return UNPACK.dispatched(bits.movedim(dims[0], 0), size, kind, dtype), 0


UNPACKS = Implementations(
    "unpack_bits", source=by_cpp.SOURCE, cpp=by_cpp.unpack, triton=by_triton.unpack, torch=_unpack_by_torch
)
UNPACK = operator(
    "unpack_bits(Tensor bits, SymInt size, str kind, ScalarType dtype) -> Tensor",
    _unpack,
    fake=_unpack_fake,
    vmap=_unpack_mapped,
    plan=_unpack_plan,
)

# ------------------------------------------------------------------------------------------------ public


@traceable
def pack_bits(x: Tensor) -> Tensor:
    """One bit an element: bit k % 8 of byte k // 8 is x[..., k] > 0, as in numpy.packbits with bitorder="little".

    Args:
        x: [..., K], any strides, of float64, float32, float16, bfloat16, int64, int32, int16, int8, uint64, uint32,
            uint16, uint8 or bool.

    Returns:
        uint8 [..., ⌈K/8⌉], contiguous. NaN gives 0; the bits behind the last element are 0. It has no gradient.

    Raises:
        TypeError: x is no strided tensor of such a dtype.
        ValueError: x has no last dimension.
    """
    memory.check_dense("pack_bits", "x", x)
    if x.dtype not in DTYPES:
        raise TypeError(f"pack_bits: x is {x.dtype}; expected one of {listed(DTYPES)}")
    if x.dim() == 0:
        raise ValueError("pack_bits: x has shape (); expected [..., K]: x.unsqueeze(0)")
    return PACK(x.resolve_neg() if memory.is_negation(x) else x, False)[0]


@traceable
def unpack_bits(bits: Tensor, size: int, *, kind: str = "sign", dtype: torch.dtype = torch.float32) -> Tensor:
    """The elements of packed bits: ±1, or 0 and 1.

    Args:
        bits: uint8 [..., ⌈size/8⌉], any strides, as `pack_bits` makes them; bits behind the last element are not read.
        size: K, the elements of a row.
        kind: "sign" for −1 and 1, "step" for 0 and 1.
        dtype: float64, float32, float16, bfloat16, int64, int32, int16 or int8, and uint8 or bool for "step".

    Returns:
        [..., size], contiguous. It has no gradient.

    Raises:
        TypeError: bits is no strided uint8 tensor, or dtype is none of these.
        ValueError: the last dimension of bits is not ⌈size/8⌉, or kind is unknown, or dtype holds no −1.
    """
    memory.check_dense("unpack_bits", "bits", bits)
    if bits.dtype != torch.uint8:
        raise TypeError(f"unpack_bits: bits is {bits.dtype}; expected uint8, as pack_bits makes them")
    _check_options(size, kind, dtype)
    if bits.dim() == 0 or bits.shape[-1] != byte_count(size):
        raise ValueError(
            f"unpack_bits: bits has shape {tuple(bits.shape)} and size is {size}; expected [..., {byte_count(size)}], "
            "⌈size/8⌉ bytes a row"
        )
    return UNPACK(bits, size, kind, dtype)


def _check_options(size: Any, kind: Any, dtype: Any) -> None:
    if not torch.compiler.is_compiling() and (not is_integer(size) or size < 0):
        raise ValueError(f"unpack_bits: size is {size!r}; expected an integer of at least 0")
    if kind not in KINDS:
        raise ValueError(f"unpack_bits: kind is {kind!r}; expected 'sign' for −1 and 1, or 'step' for 0 and 1")
    if dtype not in UNPACKED:
        raise TypeError(f"unpack_bits: dtype is {dtype}; expected one of {listed(UNPACKED)}")
    if kind == "sign" and not dtype.is_signed:
        raise ValueError(f"unpack_bits: dtype is {dtype}, which holds no −1; expected kind='step', or a signed dtype")
