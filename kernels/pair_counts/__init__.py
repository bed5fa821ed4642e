"""Counts of pairs: N[r, c] = how many m have (rows[m], columns[m]) = (r, c), as CSR; a part of `cooccurrence`.

N is of integers and its entries have one order, so neither threads, chunks nor their order change a bit of it. It is
the matrix product Xᵀ Y of one-hot rows X and Y, of which nothing but the pairs is ever held: O(pairs) work for pairs
that are sorted by a fixed number of digits, and 4 or 8 bytes a pair beside the result.

`PairCounter` counts a stream: it keeps sorted runs, each at least twice as large as the next, so that n pairs in chunks
are merged O(log n) times, as in a log-structured merge tree (O'Neil et al., 1996).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import backend, memory
from ..runtime.arguments import is_integer, listed
from ..runtime.csr import csr_tensor
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from . import by_cpp
from .definition import (
    DTYPES,
    MOST_BITS,
    Counts,
    column_dtype,
    merge_counts_ref,
    no_counts,
    pair_counts_ref,
)

__all__ = ["Counts", "PairCounter", "as_csr", "merge_counts", "pair_counts"]

# ------------------------------------------------------------------------------------------------ the operators


def _count_by_cpp(rows: Tensor, columns: Tensor, R: int, C: int, names: list[str]) -> Counts:
    counts = by_cpp.count(rows, columns, R, C)
    if counts is None:
        _check_range(rows, columns, R, C, names)
        raise AssertionError("an index is out of range in C++ and in range in torch")
    return counts


def _count_by_torch(rows: Tensor, columns: Tensor, R: int, C: int, names: list[str]) -> Counts:
    _check_range(rows, columns, R, C, names)
    return pair_counts_ref(rows, columns, (R, C))


def _merge_by_torch(a: Counts, b: Counts, C: int) -> Counts:
    return merge_counts_ref(a, b, (len(a.crow) - 1, C))


# GPUs sort by torch: its radix sort moves each key as often as a kernel of ours would
_COUNTS = Implementations("pair_counts", source=by_cpp.SOURCE, cpp=_count_by_cpp, torch=_count_by_torch)
_MERGES = Implementations(
    "merge_counts", source=by_cpp.SOURCE, cpp=lambda a, b, C: by_cpp.merge(a, b), torch=_merge_by_torch
)


def _of(functions: Implementations, device: torch.device):
    """The function for tensors on this device: one library serves all dtypes."""
    return functions.functions[
        backend.choose(functions.op, device, functions.backends, by_cpp.ELEMENT, functions.source)
    ]


def _count(rows: Tensor, columns: Tensor, R: int, C: int, names: list[str]) -> Counts:
    if len(rows) == 0:
        return no_counts(R, C, rows.device)
    return _of(_COUNTS, rows.device)(rows, columns, R, C, names)


def _merge(
    crow: Tensor, columns: Tensor, counts: Tensor, crow_2: Tensor, columns_2: Tensor, counts_2: Tensor, C: int
) -> Counts:
    a, b = Counts(crow, columns, counts), Counts(crow_2, columns_2, counts_2)
    a, b = (Counts(*(x.contiguous() for x in each)) for each in (a, b))
    return _of(_MERGES, crow.device)(a, b, C)


def _fake(crow: Tensor, columns: torch.dtype) -> Counts:
    nnz = torch.library.get_ctx().new_dynamic_size()
    return Counts(crow, crow.new_empty(nnz, dtype=columns), crow.new_empty(nnz))


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "pair_counts: vmap does not apply, as the numbers of distinct pairs differ; expected one call for each, or "
        "rows + R · number of the batch"
    )


_PAIR_COUNTS = operator(
    "pair_counts(Tensor rows, Tensor columns, SymInt R, SymInt C, str[] names) -> (Tensor, Tensor, Tensor)",
    _count,
    fake=lambda rows, columns, R, C, names: _fake(rows.new_empty(R + 1, dtype=torch.int64), column_dtype(C)),
    vmap=_no_vmap,
)
_MERGE_COUNTS = operator(
    "merge_counts(Tensor crow, Tensor columns, Tensor counts, Tensor crow_2, Tensor columns_2, Tensor counts_2, "
    "SymInt C) -> (Tensor, Tensor, Tensor)",
    _merge,
    fake=lambda crow, columns, counts, *others: _fake(torch.empty_like(crow), columns.dtype),
    vmap=_no_vmap,
)

# ------------------------------------------------------------------------------------------------ counting

_NAMES = ("pair_counts", "rows", "columns")


def pair_counts(
    rows: Tensor, columns: Tensor, shape: tuple[int, int], *, names: tuple[str, str, str] = _NAMES
) -> Counts:
    """How often each pair comes: the [R, C] matrix N[r, c] = #{m: rows[m] = r, columns[m] = c}, by rows.

    Args:
        rows, columns: [n] of int64, int32, int16, int8, uint32, uint16 or uint8, each of its own, on one device, with
            any stride.
        shape: (R, C), which have at most 63 bits together. crow takes 8 R bytes; nothing else of that size is made
            where R is much larger than n.
        names: of the op, the rows and the columns in errors, for an op that is made of this one.

    Returns:
        Counts: crow int64 [R + 1]; columns, which rise within a row, int32 [nnz], or int64 where C ≥ 2³¹; counts int64
        [nnz], none of them 0. The size of the result depends on the values, so a GPU is waited for.

    Raises:
        TypeError: rows or columns is no strided tensor of such a dtype.
        ValueError: shapes or devices do not fit, or a row or column is outside [0, R) or [0, C).
    """
    op, *arguments = names
    R, C = _checked_shape(op, shape)
    _check_pairs(rows, columns, op, arguments)
    return Counts(*_PAIR_COUNTS(rows, columns, R, C, list(names)))


def merge_counts(a: Counts, b: Counts, classes: int) -> Counts:
    """The sum of two results of `pair_counts` of one shape [R, classes].

    Raises:
        TypeError, ValueError: they are not of one shape, on one device; columns and counts are not checked.
    """
    a, b = Counts(*a), Counts(*b)
    for name, x, y in zip(Counts._fields, a, b, strict=True):
        memory.check_dense("merge_counts", f"a's {name}", x)
        memory.check_dense("merge_counts", f"b's {name}", y)
        if x.dtype != y.dtype or x.device != y.device:
            raise ValueError(
                f"merge_counts: {name} is {x.dtype} on {x.device} and {y.dtype} on {y.device}; expected one dtype and "
                "one device, as pair_counts gives for one shape"
            )
    if len(a.crow) != len(b.crow):
        raise ValueError(
            f"merge_counts: the matrices have {len(a.crow) - 1} and {len(b.crow) - 1} rows; expected one shape"
        )
    return Counts(*_MERGE_COUNTS(*a, *b, classes))


def as_csr(counts: Counts, shape: tuple[int, int]) -> Tensor:
    """The counts as a torch sparse_csr tensor, whose indices have one dtype: int32 where they fit."""
    crow, columns, numbers = counts
    if len(columns) < 2**31:
        crow = crow.to(columns.dtype)
    return csr_tensor(crow, columns.to(crow.dtype), numbers, shape)


def _checked_shape(op: str, shape: Any) -> tuple[int, int]:
    if torch.compiler.is_compiling():
        return shape
    if not (isinstance(shape, tuple | list) and len(shape) == 2 and all(is_integer(n) and n >= 0 for n in shape)):
        raise ValueError(f"{op}: shape is {shape!r}; expected (R, C), two integers of at least 0")
    R, C = (int(n) for n in shape)
    if max(R - 1, 0).bit_length() + max(C - 1, 0).bit_length() > MOST_BITS:
        raise ValueError(
            f"{op}: {R} rows and {C} columns have more than {MOST_BITS} bits together; expected fewer of either"
        )
    return R, C


def _check_pairs(rows: Any, columns: Any, op: str, names: list[str]) -> None:
    for name, x in zip(names, (rows, columns), strict=True):
        memory.check_dense(op, name, x)
        if x.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} is {x.dtype}; expected one of {listed(DTYPES)}")
        if x.dim() != 1:
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected [n]")
    if rows.shape != columns.shape:
        raise ValueError(
            f"{op}: {names[1]} has shape {tuple(columns.shape)}; expected [{rows.shape[0]}], as {names[0]}"
        )
    if rows.device != columns.device:
        raise ValueError(f"{op}: {names[1]} is on {columns.device}; expected {rows.device}, as {names[0]}")


_PIECE = 1 << 18  # pairs that are compared at a time on a CPU: some dtypes are widened for it
_COMPARED = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _check_range(rows: Tensor, columns: Tensor, R: int, C: int, names: list[str]) -> None:
    """A GPU is waited for once.

    Raises:
        ValueError: a row or column is out of range; it names the first such.
    """
    op, *arguments = names
    length = _PIECE if rows.device.type == "cpu" else max(1, len(rows))
    for begin in range(0, len(rows), length):
        pieces = [x[begin : begin + length] for x in (rows, columns)]
        ends = [end.long() for x in pieces for end in (x if x.dtype in _COMPARED else x.long()).aminmax()]
        bounds = torch.stack(ends).view(2, 2).tolist()
        for name, x, size, (low, high) in zip(arguments, pieces, (R, C), bounds, strict=True):
            if low < 0 or high >= size:
                wide = x.long()
                place = int(((wide < 0) | (wide >= size)).byte().argmax())
                raise ValueError(
                    f"{op}: {name}[{begin + place}] is {int(wide[place])}, out of range; expected at least 0 and "
                    f"below {size}"
                )


# ------------------------------------------------------------------------------------------------ streams

_LEAST = 1 << 22  # pairs that are sorted at a time
_MOST = 1 << 25


class PairCounter:
    """`pair_counts` of a stream of chunks, of any sizes, in memory that grows with the distinct pairs alone.

        counter = PairCounter((R, C))
        for rows, columns in chunks:
            counter.add(rows, columns)
        crow, columns, counts = counter.csr()

    The result is that of one call on all pairs, to the bit. Pairs wait until 4 million of them, or R / 4 if that is
    more, are sorted at once into a run; a run merges with the one before while that is less than twice its size. So all
    runs together have less than twice the entries of the largest, and each pair is merged O(log n) times.

    Args:
        shape: (R, C), as of `pair_counts`.
        device: where chunks are, and the result.
        names: as of `pair_counts`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        device: torch.device | str = "cpu",
        names: tuple[str, str, str] = ("PairCounter", "rows", "columns"),
    ) -> None:
        self._names = list(names)
        self.shape = _checked_shape(names[0], shape)
        self.device = torch.device(device)
        self.pairs = 0  # that were added
        self._runs: list[Counts] = []  # the largest first
        self._at_once = max(_LEAST, self.shape[0] // 4)
        self._waiting: tuple[Tensor, Tensor] | None = None  # rows and columns, of which the first few are filled
        self._waiting_count = 0

    def add(self, rows: Tensor, columns: Tensor) -> None:
        """Counts a chunk; nothing of it is kept as it came, so its memory may be used again.

        Raises:
            TypeError, ValueError: as of `pair_counts`; nothing of the chunk is counted then.
        """
        op, *arguments = self._names
        _check_pairs(rows, columns, op, arguments)
        if rows.device.type != self.device.type:
            raise ValueError(f"{op}: {arguments[0]} is on {rows.device}; expected {self.device}, as of the counter")
        most = max(_MOST, self._at_once)
        if not self._at_once <= len(rows) <= most:  # else the operator looks at all before any is counted
            _check_range(rows, columns, *self.shape, self._names)
        for r, c in zip(rows.split(most), columns.split(most), strict=True):
            if len(r) >= self._at_once:
                self._push(Counts(*_PAIR_COUNTS(r, c, *self.shape, self._names)))
            else:
                self._wait(r, c)
        self.pairs += len(rows)

    def merge(self, other: PairCounter) -> None:
        """Adds what another counter of the same shape has counted, which stays as it is.

        Raises:
            ValueError: it has another shape.
        """
        if other.shape != self.shape:
            raise ValueError(
                f"{self._names[0]}: the other counter has shape {other.shape}; expected {self.shape}, as this one"
            )
        other._sort_waiting()
        for run in list(other._runs):
            self._push(Counts(*(x.to(self.device) for x in run)))
        self.pairs += other.pairs

    def csr(self) -> Counts:
        """The counts so far, as `pair_counts` gives them. They are the counter's own: to be read, not written."""
        self._sort_waiting()
        if not self._runs:
            self._runs.append(no_counts(*self.shape, self.device))
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0]

    def _wait(self, rows: Tensor, columns: Tensor) -> None:
        if self._waiting is None:
            rows_waiting, columns_waiting = (
                torch.empty(self._at_once, dtype=_narrowest(size), device=self.device) for size in self.shape
            )
            self._waiting = rows_waiting, columns_waiting
        while len(rows):
            begin = self._waiting_count
            end = min(self._at_once, begin + len(rows))
            for waiting, x in zip(self._waiting, (rows, columns), strict=True):
                waiting[begin:end] = x[: end - begin]
            rows, columns, self._waiting_count = rows[end - begin :], columns[end - begin :], end
            if end == self._at_once:
                self._sort_waiting()

    def _sort_waiting(self) -> None:
        if self._waiting is not None and self._waiting_count:
            rows, columns = (x[: self._waiting_count] for x in self._waiting)
            self._waiting_count = 0
            self._push(Counts(*_PAIR_COUNTS(rows, columns, *self.shape, self._names)))

    def _push(self, run: Counts) -> None:
        self._runs.append(run)
        while len(self._runs) > 1 and _size(self._runs[-2]) < 2 * _size(self._runs[-1]):
            self._merge_last()

    def _merge_last(self) -> None:
        b, a = self._runs.pop(), self._runs.pop()
        self._runs.append(Counts(*_MERGE_COUNTS(*a, *b, self.shape[1])))


def _narrowest(size: int) -> torch.dtype:
    """A dtype that holds the numbers below size."""
    return torch.uint16 if size <= 2**16 else torch.int32 if size <= 2**31 else torch.int64


def _size(run: Counts) -> int:
    return len(run.columns) + len(run.crow)
