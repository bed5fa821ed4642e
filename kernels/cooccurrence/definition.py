"""Class-wise sums of rows in torch: the oracle, the form that runs where no kernel does, and the words of the errors.

    F[d, c] = Σ over m with labels[m] = c of r[m, d],   r = x or r[m] = scale (x[m] + offset) / Σ_d (x[m, d] + offset)

The operators give the transpose [C, D], a row a class, as the rows of x are added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from ..runtime.csr import as_sparse_csr

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
LABELS = INTEGERS
_CHUNK = 1 << 22  # elements that are widened at a time


def cooccurrence_ref(
    x: Tensor, labels: Tensor, classes: int, *, scale: float | None = None, offset: float = 0.0, features: int = -1
) -> Tensor:
    """The oracle: the formula, of dense x; of tokens, and of sparse_csr x, that of the rows they stand for."""
    if x.layout == torch.sparse_csr:
        return cooccurrence_ref(x.to_dense(), labels, classes, scale=scale)
    if x.dim() == 1:
        onehot = torch.nn.functional.one_hot(x.long(), features)
        return as_sparse_csr(cooccurrence_ref(onehot, labels, classes))
    r = x.to(dtype_of(x.dtype, scale))
    if scale is not None:
        r = scale * ((r + offset) / (r + offset).sum(1, keepdim=True))
    return r.new_zeros(classes, x.shape[1]).index_add(0, labels.long(), r).t()


def dtype_of(dtype: torch.dtype, scale: float | None) -> torch.dtype:
    """The dtype of the sums: exact where integers are only added."""
    return torch.int64 if scale is None and dtype not in FLOATS else torch.float64


def sums(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> Tensor:
    """x [N, D] and labels [N] that `check` passes -> [C, D], the rows in their order, a chunk at a time."""
    total = torch.zeros((classes, x.shape[1]), dtype=dtype_of(x.dtype, scale), device=x.device)
    for rows in _chunks(x):
        r = x[rows].to(total.dtype)
        if scale is not None:
            r = _normalised(r, scale, offset)
        total.index_add_(0, labels[rows].long(), r)
    return total


def _normalised(r: Tensor, scale: float, offset: float) -> Tensor:
    """Rows that sum to scale."""
    power = _power_of(r.amax(1, keepdim=True).clamp(min=offset))
    r = r * power + offset * power
    return scale * (r / r.sum(1, keepdim=True))


def _power_of(largest: Tensor) -> Tensor:
    """A power of two that brings rows with these largest elements near 1, where sums and quotients are in range."""
    return torch.exp2(-largest.log2().floor().nan_to_num(0, 0, 0).clamp(-1000, 1000))


def csr_sums(
    crow: Tensor, columns: Tensor, values: Tensor, labels: Tensor, classes: int, features: int, scale: float | None
) -> Tensor:
    """The same of the rows of a CSR tensor, without offset."""
    lengths = crow.diff()
    total = torch.zeros(classes * features, dtype=dtype_of(values.dtype, scale), device=values.device)
    r = values.to(total.dtype)
    row = torch.repeat_interleave(lengths)
    if scale is not None:
        largest = r.new_zeros(len(lengths)).scatter_reduce_(0, row, r, "amax")
        r = r * _power_of(largest)[row]
        r = scale * (r / r.new_zeros(len(lengths)).index_add_(0, row, r)[row])
    total.index_add_(0, labels.long()[row] * features + columns, r)
    return total.view(classes, features)


def _chunks(x: Tensor) -> Iterator[slice]:
    rows = max(1, _CHUNK // max(1, x.shape[1]))
    for first in range(0, x.shape[0], rows):
        yield slice(first, first + rows)


# ------------------------------------------------------------------------------------------------ errors


def check(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> None:
    """
    Raises:
        ValueError: the first label that is no class, entry that is negative or not finite, or row of sum 0.
    """
    check_labels(labels, classes)
    for rows in _chunks(x):
        part = x[rows]
        if part.dtype in (torch.bool, torch.uint8):
            bad = None
        else:
            bad = part < 0
            if part.is_floating_point():
                bad = bad | ~part.isfinite()
        if bad is not None and bad.any():
            row, column = (int(i) for i in bad.nonzero()[0])
            _refuse_entry(rows.start + row, column, part[row, column].item())
        if scale is not None and offset == 0 and x.shape[1]:
            zero = (part == 0).all(1)
            if zero.any():
                refuse_empty(rows.start + int(zero.nonzero()[0]))
    if scale is not None and x.shape[0] and x.shape[1] == 0:
        refuse_empty(0)


def check_csr(crow: Tensor, values: Tensor, columns: Tensor, labels: Tensor, classes: int, scale: float | None) -> None:
    """The same of a CSR tensor."""
    check_labels(labels, classes)
    bad = values < 0 if values.dtype != torch.bool else torch.zeros_like(values)
    if values.is_floating_point():
        bad = bad | ~values.isfinite()
    if bad.any():
        at = int(bad.nonzero()[0])
        row = int(torch.searchsorted(crow, torch.tensor(at, dtype=crow.dtype, device=crow.device), right=True)) - 1
        _refuse_entry(row, int(columns[at]), values[at].item())
    if scale is not None:
        has_some = torch.zeros(len(crow) - 1, dtype=torch.int64, device=values.device)
        has_some.index_add_(0, torch.repeat_interleave(crow.diff()), (values != 0).long())
        if (has_some == 0).any():
            refuse_empty(int((has_some == 0).nonzero()[0]))


def check_labels(labels: Tensor, classes: int) -> None:
    """
    Raises:
        ValueError: a label outside [0, classes).
    """
    if labels.numel() == 0:
        return
    lowest, highest = (int(end) for end in labels.aminmax())
    if lowest < 0 or highest >= classes:
        bad = (labels < 0) | (labels.long() >= classes)
        at = int(bad.nonzero()[0])
        raise ValueError(
            f"cooccurrence: labels[{at}] is {int(labels[at])}; expected an integer in [0, {classes}), as classes is "
            f"{classes}"
        )


def _refuse_entry(row: int, column: int, value: float | int) -> NoReturn:
    what = "negative" if value < 0 else "not finite"
    raise ValueError(
        f"cooccurrence: x is {what} in row {row}: feature {column} is {value}; expected finite numbers of at least 0"
    )


def refuse_empty(row: int) -> NoReturn:
    raise ValueError(
        f"cooccurrence: row {row} of x sums to 0, and so cannot be normalised; expected rows with a positive entry, "
        "offset > 0, or scale=None"
    )
