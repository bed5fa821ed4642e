"""Reading of rows: NumPy arrays, lists, tensors, sparse matrices of SciPy or torch, in blocks of bounded memory.

Rows are numbers ≥ 0. A model sees them as they are, or normalised: scale (x + offset) / Σ (x + offset). Answers go back
in the kind and the floating dtype that rows came in; those of integers are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ...kernels.runtime.csr import as_sparse_csr, csr_tensor

_BLOCK = 1 << 22  # entries of a block: 16 MiB in float32
_TORCH_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_UNSIGNED = (torch.uint8, torch.bool)
# sums whose quotients a dtype holds
_USUAL = {torch.float32: (1e-30, 1e30), torch.float64: (1e-290, 1e290)}
# what torch has, but computes little with, and the dtype that holds it; uint64 is looked at first
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


@dataclass(frozen=True, eq=False)
class Rows:
    """[N, D] of numbers: `values` is a strided or a sparse_csr tensor."""

    values: Tensor
    is_torch: bool  # what they came as, and answers go back as
    source: Any  # the SciPy matrix that they were read from, else None

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def features(self) -> int:
        return self.values.shape[1]

    @property
    def is_sparse(self) -> bool:
        return self.values.layout == torch.sparse_csr

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of answers."""
        return self.values.dtype if self.values.is_floating_point() else torch.float32

    @property
    def working_dtype(self) -> torch.dtype:
        """The dtype that answers are computed in."""
        return torch.promote_types(self.dtype, torch.float32)

    def blocks(self, width: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """The rows in their order, as many at a time as fit a block, with `width` numbers made of each."""
        size = max(1, _BLOCK // max(1, self.features, width))
        for first in range(0, len(self), size):
            part = slice(first, min(first + size, len(self)))
            yield part, sparse_part(self.values, part) if self.is_sparse else self.values[part]

    def take(self, index: Tensor) -> Rows:
        """Some of the rows, copied."""
        index = index.to(self.device)
        values = sparse_rows(self.values, index) if self.is_sparse else self.values[index]
        return Rows(values, self.is_torch, None)

    def answer(self, values: Tensor) -> Any:
        """A result in the kind that the rows came in."""
        return values if self.is_torch else values.cpu().numpy()

    def answer_rows(self, blocks: Iterable[Tensor]) -> Any:
        """All rows anew, in the kind and the floating dtype that they came in."""
        parts = [(values_of(block)).to(self.dtype) for block in blocks]
        if not self.is_sparse:
            return self.answer(torch.cat(parts) if parts else self.values.to(self.dtype))
        values = torch.cat(parts) if parts else self.values.values().to(self.dtype)
        if self.source is None:
            return csr_tensor(self.values.crow_indices(), self.values.col_indices(), values, (len(self), self.features))
        matrix = self.source.tocsr()
        return type(matrix)((values.cpu().numpy(), matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)


def read_rows(where: str, x: Any, *, least: int = 1) -> Rows:
    """Rows of anything that holds numbers in two dimensions. Values are looked at later, by what reads them.

    Args:
        where: the estimator, for errors.
        least: how many rows there must be.

    Raises:
        TypeError, ValueError: x holds no numbers, or has not two dimensions, or no feature, or less than `least` rows.
    """
    if isinstance(x, Tensor):
        values, source = _dense_or_csr(where, x.detach()), None
    elif hasattr(x, "tocsr"):
        values, source = _from_scipy(where, x), x
    else:
        values, source = _from_numpy(where, x), None
    if values.dim() != 2:
        raise ValueError(
            f"{where}: Expected 2D array, got {values.dim()}D array instead: x has shape {tuple(values.shape)}; "
            "expected [N, D]. Reshape your data: x.reshape(-1, 1) of one feature, x.reshape(1, -1) of one row"
        )
    shape = tuple(values.shape)
    if shape[1] == 0:
        raise ValueError(f"{where}: x has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
    if shape[0] < least:
        raise ValueError(f"{where}: x has 0 sample(s) (shape={shape}) while a minimum of {least} is required.")
    return Rows(values, isinstance(x, Tensor), source)


def _dense_or_csr(where: str, x: Tensor) -> Tensor:
    if x.is_nested:
        raise TypeError(f"{where}: x is a nested tensor; expected rows of one length: torch.nested.to_padded_tensor")
    if x.is_complex():
        raise ValueError(f"{where}: Complex data not supported: x is {x.dtype}; expected real numbers")
    if x.is_meta:
        raise ValueError(f"{where}: x is on meta, which holds no values; expected rows on a device")
    if x.layout not in (torch.strided, torch.sparse_csr):
        x = as_sparse_csr(x.to_sparse_coo() if x.layout in (torch.sparse_bsr, torch.sparse_bsc) else x)
    if x.dtype in _WIDER:
        x = _widened(where, x)
    if x.dtype not in _TORCH_DTYPES:
        raise TypeError(f"{where}: x is {x.dtype}; expected floats, integers or bools")
    return x


def _widened(where: str, x: Tensor) -> Tensor:
    wide = x.to(_WIDER[x.dtype])
    if x.dtype == torch.uint64 and (values_of(wide) < 0).any():
        raise ValueError(f"{where}: x is uint64 with entries of 2⁶³ and more; expected less, or floats")
    return wide


def _from_scipy(where: str, x: Any) -> Tensor:
    x = x.tocsr()
    if x.ndim != 2:
        raise ValueError(f"{where}: x has shape {x.shape}; expected 2D, [N, D]")
    crow, columns = (torch.from_numpy(_plain(part)) for part in (x.indptr, x.indices))
    wider = torch.promote_types(crow.dtype, columns.dtype)
    return csr_tensor(crow.to(wider), columns.to(wider), _tensor_of(where, x.data), (x.shape[0], x.shape[1]))


def _from_numpy(where: str, x: Any) -> Tensor:
    array = np.asarray(x)
    if array.dtype.kind == "O":
        array = np.asarray(array, dtype=np.float64)  # in whose error is the element that is no number
    return _tensor_of(where, array)


def _tensor_of(where: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind == "c":
        raise ValueError(f"{where}: Complex data not supported: x is {array.dtype}; expected real numbers")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: x holds {array.dtype}; expected numbers")
    tensor = torch.from_numpy(_plain(array))
    return _widened(where, tensor) if tensor.dtype in _WIDER else tensor


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in the machine's byte order, with strides and a dtype that torch takes; a view where it can be one."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        # torch warns of such arrays, as it could write to them: nothing here does
        array = np.asarray(_Unlocked(array))
    return np.asarray(array)


class _Unlocked:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # kept alive by the view
        data = array.__array_interface__
        self.__array_interface__ = {**data, "data": (data["data"][0], False)}


# ------------------------------------------------------------------------------------------------ sparse rows


def values_of(x: Tensor) -> Tensor:
    """The entries that are stored: of a strided tensor all."""
    return x.values() if x.layout == torch.sparse_csr else x


def sparse_part(x: Tensor, part: slice) -> Tensor:
    crow = x.crow_indices()[part.start : part.stop + 1]
    entries = slice(int(crow[0]), int(crow[-1]))
    shape = (part.stop - part.start, x.shape[1])
    return csr_tensor(crow - crow[0], x.col_indices()[entries], x.values()[entries], shape)


def sparse_rows(x: Tensor, index: Tensor) -> Tensor:
    crow = x.crow_indices()
    lengths = crow.diff()[index]
    ends = lengths.cumsum(0)
    starts = torch.repeat_interleave(crow[:-1][index] - (ends - lengths), lengths)
    entries = starts + torch.arange(len(starts), device=starts.device)
    new = torch.cat([ends.new_zeros(1), ends]).to(crow.dtype)
    return csr_tensor(new, x.col_indices()[entries], x.values()[entries], (len(index), x.shape[1]))


def per_row(reduce: Callable[..., Tensor], x: Tensor) -> Tensor:
    """torch.sum or torch.amax of each row of floats ≥ 0."""
    if x.layout != torch.sparse_csr:
        return reduce(x, 1)
    out = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    how = "sum" if reduce is torch.sum else "amax"
    return out.scatter_reduce_(0, torch.repeat_interleave(x.crow_indices().diff()), x.values(), how)


def times(x: Tensor, factors: Tensor) -> Tensor:
    """Each row times its factor."""
    if x.layout != torch.sparse_csr:
        return x * factors[:, None]
    of_entries = factors[torch.repeat_interleave(x.crow_indices().diff())]
    return csr_tensor(x.crow_indices(), x.col_indices(), x.values() * of_entries, (x.shape[0], x.shape[1]))


# ------------------------------------------------------------------------------------------------ what a model sees


@dataclass(frozen=True)
class Scaling:
    """How a model takes rows: x as it is where scale is None, else scale (x + offset) / Σ (x + offset)."""

    scale: float | None
    offset: float

    def __str__(self) -> str:
        return "rows as they are" if self.scale is None else f"scale {self.scale:g} and offset {self.offset:g}"

    def check(self, where: str, rows: Rows) -> None:
        """
        Raises:
            ValueError: an offset, of sparse rows.
        """
        if rows.is_sparse and self.offset > 0:
            raise ValueError(
                f"{where}: offset is {self.offset:g} and x is sparse, of which it would leave nothing sparse; expected "
                "offset=0, or dense rows"
            )

    def of(
        self, where: str, rows: Rows, *, width: int = 1, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows as the model sees them, in `dtype`, else the rows' working dtype; `width` is that of `blocks`.

        Raises:
            ValueError: an entry is negative or not finite, or a row to be scaled sums to 0; the message names the row.
        """
        self.check(where, rows)
        dtype = dtype or rows.working_dtype
        least, most = _USUAL[dtype]
        for part, block in rows.blocks(width):
            seen = block.to(dtype)
            entries = values_of(seen)
            low = entries.amin() if entries.numel() and block.dtype not in _UNSIGNED else 0
            sums = per_row(torch.sum, seen) + self.offset * rows.features
            usual = (sums <= most).all() & (low >= 0)  # NaN and infinities are in the sums
            if self.scale is None:
                if not usual:
                    self.examine(where, block, part.start)
                yield part, seen
            elif usual & (sums >= least).all():
                shifted = seen + self.offset if self.offset else seen
                yield part, times(shifted, (self.scale / sums).to(dtype))
            else:
                self.examine(where, block, part.start)
                yield part, self._unusual(block).to(dtype)

    def _unusual(self, block: Tensor) -> Tensor:
        """The same of rows whose sums or quotients the dtype may not hold: a power of two brings them near 1 first."""
        wide = block.double()
        peaks = per_row(torch.amax, wide).clamp(min=self.offset)
        powers = torch.exp2(-peaks.log2().floor().clamp(-1000, 1000))
        wide = times(wide, powers)
        if self.offset:
            wide = wide + (self.offset * powers)[:, None]
        return times(wide, self.scale / per_row(torch.sum, wide))  # pyright: ignore[reportOptionalOperand]

    def refuse(self, where: str, rows: Rows) -> NoReturn:
        """The error of the first row that does not fit, of rows that were refused."""
        for part, block in rows.blocks():
            self.examine(where, block, part.start)
        raise AssertionError("rows that were refused fit")

    def examine(self, where: str, block: Tensor, first: int) -> None:
        """
        Raises:
            ValueError: as in `of`, of a block whose first row is number `first`.
        """
        entries = values_of(block)
        bad = (entries < 0) | ~entries.isfinite() if entries.dtype != torch.bool else torch.zeros_like(entries)
        if bad.any():
            _refuse_entry(where, block, bad, first)
        if self.scale is None or self.offset > 0:
            return
        empty = per_row(torch.amax, block.double()) <= 0
        if empty.any():
            is_sparse = block.layout == torch.sparse_csr
            what = f"{'sparse ' if is_sparse else ''}x, of {block.shape[1]} feature(s),"
            shifted = "" if is_sparse else "offset > 0, "
            raise ValueError(
                f"{where}: row {first + int(empty.nonzero()[0])} of {what} sums to 0, and cannot be scaled to the sum "
                f"{self.scale:g}; expected rows with a positive entry, {shifted}or ExplicitSoftmax(normalize=False)"
            )


def _refuse_entry(where: str, block: Tensor, bad: Tensor, first: int) -> NoReturn:
    at = bad.nonzero()[0]
    if block.layout == torch.sparse_csr:
        crow, entry = block.crow_indices(), int(at[0])
        row = int((crow <= entry).sum()) - 1
        feature, value = int(block.col_indices()[entry]), block.values()[entry].item()
    else:
        row, feature = int(at[0]), int(at[1])
        value = block[row, feature].item()
    place = f"row {first + row} has {value} at feature {feature}; expected finite numbers of at least 0"
    if value < 0 and value != float("-inf"):
        raise ValueError(f"Negative values in data passed to {where}: {place}")
    raise ValueError(f"{where}: Input X contains {'NaN' if value != value else 'infinity'}: {place}")
