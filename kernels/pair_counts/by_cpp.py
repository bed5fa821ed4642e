"""The C++ counts and sums (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native
from .definition import Counts, column_dtype

SOURCE = Path(__file__).with_name("by_cpp.cpp")
ELEMENT = torch.int32  # one library serves all dtypes, under this one's name

# GROUP: pairs that are sorted at a time, which are to stay in a core's cache, in 4 or 8 bytes each and twice
COUNT = Tuned(
    "pair_counts.cpp",
    Space({"GROUP": (1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15), "threads": native.THREADS}),
    default=lambda problem: {"GROUP": 1 << 13, "threads": 0},
    source=SOURCE,
)
MERGE = Tuned(
    "pair_counts_merge.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # pairs or entries that are done before a thread would start
MOST = 2**31 - 1  # pairs that are counted at a time

_TYPES = {  # as `Indices` in by_cpp.cpp has them
    torch.uint8: 1,
    torch.uint16: 2,
    torch.uint32: 4,
    torch.int8: -1,
    torch.int16: -2,
    torch.int32: -4,
    torch.int64: -8,
}


@native.cached
def _library() -> ctypes.CDLL:
    library = native.required("pair_counts", SOURCE, ELEMENT)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.pair_counts_sort.argtypes = [*[pointer] * 4, ctypes.POINTER(integer)]
    library.pair_counts_write.argtypes = [pointer] * 4
    library.pair_counts_free.argtypes, library.pair_counts_free.restype = [pointer], None
    library.pair_counts_merge.argtypes = [pointer, pointer, integer, integer, integer, *[pointer] * 3]
    return library


def count(rows: Tensor, columns: Tensor, R: int, C: int) -> Counts | None:
    """The counts, of one pair or more; None where one is out of range.

    Raises:
        MemoryError: there is no room for the keys.
    """
    if len(rows) > MOST:
        pieces = [count(r, c, R, C) for r, c in zip(rows.split(MOST), columns.split(MOST), strict=True)]
        whole = [piece for piece in pieces if piece is not None]
        return reduce(merge, whole) if len(whole) == len(pieces) else None
    config = COUNT.config({"R": R, "C": C, "nnz": len(rows)}, rows.device)
    threads = native.threads(config["threads"], len(rows), _SMALL)
    strides_and_types = (n for x in (rows, columns) for n in (x.stride(0), _TYPES[x.dtype]))
    call = native.integers(len(rows), R, C, *strides_and_types, config["GROUP"], threads)
    library, handle, nnz = _library(), ctypes.c_void_p(), ctypes.c_int64()
    status = library.pair_counts_sort(
        call, rows.data_ptr(), columns.data_ptr(), ctypes.byref(handle), ctypes.byref(nnz)
    )
    try:
        if status == 0:
            made = _room(R, C, nnz.value)
            status = library.pair_counts_write(handle, *(x.data_ptr() for x in made))
    finally:
        library.pair_counts_free(handle)
    if status == 1:
        raise MemoryError(f"pair_counts: no memory for the keys of {len(rows)} pairs")
    return None if status else made


def merge(a: Counts, b: Counts) -> Counts:
    """The sum of two, whose tensors are contiguous and of the same rows and dtypes.

    Raises:
        MemoryError: there is no room.
    """
    R, is_wide = len(a.crow) - 1, a.columns.dtype == torch.int64
    config = MERGE.config({"R": R, "nnz": len(a.columns) + len(b.columns)}, a.crow.device)
    threads = native.threads(config["threads"], len(a.columns) + len(b.columns) + R, _SMALL)
    addresses = ((ctypes.c_void_p * 3)(*(x.data_ptr() for x in each)) for each in (a, b))
    call = *addresses, R, is_wide, threads
    crow, merge = torch.empty_like(a.crow), _library().pair_counts_merge
    status = merge(*call, crow.data_ptr(), None, None)
    if status == 0:
        nnz = int(crow[-1])
        made = Counts(crow, a.columns.new_empty(nnz), a.counts.new_empty(nnz))
        if nnz:
            status = merge(*call, *(x.data_ptr() for x in made))
    if status:
        raise MemoryError(f"merge_counts: no memory for the sum of {len(a.columns)} and {len(b.columns)} entries")
    return made


def _room(R: int, C: int, nnz: int) -> Counts:
    crow, counts = (torch.empty(n, dtype=torch.int64, device="cpu") for n in (R + 1, nnz))
    return Counts(crow, torch.empty(nnz, dtype=column_dtype(C), device="cpu"), counts)
