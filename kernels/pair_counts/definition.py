"""Which pairs there are and how often each comes, and the sum of two such counts: the oracle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint32, torch.uint16, torch.uint8)
MOST_BITS = 63  # that a row and a column have together


class Counts(NamedTuple):
    """A matrix of counts by rows: the entries of row r are those from crow[r] up to crow[r + 1].

    Columns rise within a row, and no count is 0.
    """

    crow: Tensor  # int64 [R + 1]
    columns: Tensor  # int32 [nnz], int64 where C ≥ 2³¹
    counts: Tensor  # int64 [nnz]


def column_dtype(C: int) -> torch.dtype:
    return torch.int32 if C < 2**31 else torch.int64


def no_counts(R: int, C: int, device: torch.device) -> Counts:
    """The zero matrix."""
    crow = torch.zeros(R + 1, dtype=torch.int64, device=device)
    return Counts(crow, crow.new_empty(0, dtype=column_dtype(C)), crow.new_empty(0))


def pair_counts_ref(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Counts:
    """The definition of `pair_counts`: the distinct keys row · C + column, sorted, and how often each comes."""
    C = shape[1]
    keys, counts = torch.unique(rows.long() * C + columns.long(), sorted=True, return_counts=True)
    return _by_rows(keys, counts, shape)


def merge_counts_ref(a: Counts, b: Counts, shape: tuple[int, int]) -> Counts:
    """The definition of `merge_counts`: counts of the same key are added."""
    keys = torch.cat([_keys(x, shape[1]) for x in (a, b)])
    keys, which = torch.unique(keys, sorted=True, return_inverse=True)
    counts = torch.zeros_like(keys).index_add_(0, which, torch.cat([a[2], b[2]]))
    return _by_rows(keys, counts, shape)


def _keys(x: Counts, C: int) -> Tensor:
    crow, columns, _ = x
    rows = torch.arange(len(crow) - 1, device=crow.device)
    return rows.repeat_interleave(crow.diff(), output_size=len(columns)) * C + columns


def _by_rows(keys: Tensor, counts: Tensor, shape: tuple[int, int]) -> Counts:
    R, C = shape
    if R * C == 0:
        return no_counts(R, C, keys.device)
    crow = torch.zeros(R + 1, dtype=torch.int64, device=keys.device)
    rows = keys.div(C, rounding_mode="floor")
    crow[1:].index_add_(0, rows, torch.ones_like(rows))
    return Counts(crow.cumsum(0), keys.remainder(C).to(column_dtype(C)), counts)
