"""Counts of pairs as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..contract.registry import register
from ..contract.spec import Contender, Misuse, Sample, Sizes, Spec, Workload
from . import _COUNTS, by_cpp, merge_counts, pair_counts
from .definition import DTYPES, Counts, merge_counts_ref, pair_counts_ref


def _counted(
    count: Callable[..., Counts],
    merge: Callable[..., Counts],
    pairs: Tensor,
    rows_like: Tensor,
    columns_like: Tensor,
    merged: bool = False,
) -> Tensor:
    """The three results in a row, as int64, of pairs [2, n] and a matrix of as many rows and columns as the others.

    merged: counts two parts of the pairs, and adds the counts.
    """
    R, C = rows_like.shape[0], columns_like.shape[0]
    if merged:
        parts = [count(*part.unbind(0), (R, C)) for part in (pairs[:, 1::3], pairs[:, ::2])]
        return torch.cat(merge(*parts, C))
    return torch.cat(count(*pairs.unbind(0), (R, C)))


def counted(pairs: Tensor, rows_like: Tensor, columns_like: Tensor, *, merged: bool = False) -> Tensor:
    """pair_counts and merge_counts as a function."""
    return _counted(pair_counts, merge_counts, pairs, rows_like, columns_like, merged)


def oracle(pairs: Tensor, rows_like: Tensor, columns_like: Tensor, *, merged: bool = False) -> Tensor:
    """The definition as a function."""
    shape = rows_like.shape[0], columns_like.shape[0]
    return _counted(
        pair_counts_ref, lambda a, b, C: merge_counts_ref(a, b, shape), pairs, rows_like, columns_like, merged
    )


_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """pairs [2, nnz], the small ones more often, as words are; and columns [R, 1] and [C, 1], for their lengths alone.

    For a floating dtype they are integers of its size.
    """
    if dtype.is_floating_point:
        dtype = _OF_SIZE[dtype.itemsize]
    generator = torch.Generator().manual_seed(seed)
    sizes, most = (shape["R"], shape["C"]), torch.iinfo(dtype).max
    uniform = torch.rand((2, shape["nnz"]), generator=generator, dtype=torch.float64)
    pairs = torch.stack([(x**3 * min(size, most)).long() for x, size in zip(uniform, sizes, strict=True)])
    likes = (torch.zeros((size, 1), dtype=torch.int8, device=device) for size in sizes)
    return pairs.to(device, dtype), *likes


# ------------------------------------------------------------------------------------------------ contenders


def _ours(pairs: Tensor, rows_like: Tensor, columns_like: Tensor):
    rows, columns = pairs.unbind(0)
    shape = len(rows_like), len(columns_like)
    return lambda: tuple(pair_counts(rows, columns, shape))


def _unique(pairs: Tensor, rows_like: Tensor, columns_like: Tensor):
    rows, columns = pairs.unbind(0)
    shape = len(rows_like), len(columns_like)
    return lambda: tuple(pair_counts_ref(rows, columns, shape))


def _scipy(pairs: Tensor, rows_like: Tensor, columns_like: Tensor):
    import numpy as np
    from scipy.sparse import coo_array

    rows, columns = (x.cpu().numpy() for x in pairs.unbind(0))
    ones, shape = np.ones(len(rows), dtype=np.int64), (len(rows_like), len(columns_like))

    def call() -> tuple[Tensor, ...]:
        matrix = coo_array((ones, (rows, columns)), shape=shape).tocsr()
        matrix.sum_duplicates()
        return (
            torch.from_numpy(matrix.indptr).long(),
            torch.from_numpy(matrix.indices).int(),
            torch.from_numpy(matrix.data),
        )

    return call


COUNT = Workload(
    "pair counts",
    (
        Contender("tropigrad", "ours", _ours),
        Contender("torch.unique of packed keys", "dense", _unique),
        Contender("scipy COO to CSR", "peer", _scipy, requires="scipy"),
    ),
    operations=lambda shape: shape["nnz"],
    bytes=lambda shape, itemsize: 2 * itemsize * shape["nnz"] + 8 * shape["R"],  # what comes; the rest depends on it
    mix="gather",
    dtypes=(torch.int32, torch.int64),
)

# ------------------------------------------------------------------------------------------------ samples


def samples(device: torch.device) -> list[Sample]:
    """Edges: nothing, one cell, one row or column, ends of dtypes, matrices far larger than their entries."""
    samples: list[Sample] = []

    def add(id: str, rows: list[int], columns: list[int], shape: tuple[int, int], dtype=torch.int64) -> None:
        pairs = torch.tensor([rows, columns], dtype=torch.int64).to(device, dtype)
        one = torch.zeros((1, 1), dtype=torch.int8, device=device)
        likes = [one.expand(size, 1) for size in shape]
        for merged in (False, True):
            samples.append(Sample(id + "-merged" * merged, (pairs, *likes), {"merged": merged}))

    for dtype in DTYPES:
        most = min(torch.iinfo(dtype).max, 2**20 - 1)
        add(
            f"ends-{str(dtype).removeprefix('torch.')}",
            [most, 0, most, 0],
            [0, most, 0, 0],
            (most + 1, most + 1),
            dtype,
        )
    add("nothing", [], [], (3, 4))
    add("no-rows", [], [], (0, 4))
    add("no-columns", [], [], (3, 0))
    add("one-cell", [0] * 70, [0] * 70, (1, 1))
    add("one-row", [2] * 3000, [(7 * i) % 701 for i in range(3000)], (5, 800))
    add("one-column", [(7 * i) % 701 for i in range(3000)], [3] * 3000, (800, 5))
    add("wide", [1, 0, 1, 1], [2**31 + 5, 2**40, 7, 2**31 + 5], (2, 2**40 + 1))
    add("wide-keys", [70_000, 0, 70_000], [2**31 - 2, 7, 2**31 - 2], (70_001, 2**31 - 1))
    add("last-int32", [1, 0, 1], [2**31 - 2, 7, 2**31 - 2], (2, 2**31 - 1))
    add("sparse", [999_999, 0, 500_000, 999_999], [3, 2, 1, 3], (1_000_000, 4))
    return samples


def misuses(device: torch.device) -> list[Misuse]:
    i = torch.zeros(2, dtype=torch.int64, device=device)

    def bad(id: str, error: type[Exception], match: str, *args) -> Misuse:
        return Misuse(id, lambda: pair_counts(*args), error, match)

    outside = torch.tensor([1, 5, -2], device=device)
    return [
        bad("list", TypeError, r"rows is a list; expected a torch.Tensor", [0], i, (2, 2)),
        bad("float", TypeError, r"columns is torch.float32; expected one of int64, int32", i, i.float(), (2, 2)),
        bad("sparse", TypeError, r"rows has layout torch.sparse_coo", i.to_sparse(), i, (2, 2)),
        bad("matrix", ValueError, r"rows has shape \(1, 2\); expected \[n\]", i.view(1, 2), i, (2, 2)),
        bad("unlike", ValueError, r"columns has shape \(1,\); expected \[2\], as rows", i, i[:1], (2, 2)),
        bad("device", ValueError, r"columns is on meta; expected .*, as rows", i, i.to("meta"), (2, 2)),
        bad("shape", ValueError, r"shape is \(2, -1\); expected \(R, C\)", i, i, (2, -1)),
        bad("one-size", ValueError, r"shape is 2; expected \(R, C\)", i, i, 2),
        bad("bits", ValueError, r"more than 63 bits together", i, i, (2**32, 2**32)),
        bad("row", ValueError, r"rows\[1\] is 5, out of range; .* below 5", outside, outside * 0, (5, 5)),
        bad("negative", ValueError, r"columns\[2\] is -2, out of range", outside * 0, outside, (6, 6)),
        bad("no-rows", ValueError, r"rows\[0\] is 0, out of range; .* below 0", i, i, (0, 2)),
    ]


_DEPENDS = "the size of the result depends on the values: "

SPEC = register(
    Spec(
        name="pair_counts",
        op=counted,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "1e5": {"R": 4096, "C": 1024, "nnz": 100_000},
            "1e6": {"R": 33_278, "C": 33_278, "nnz": 1_000_000},
            "8e6": {"R": 4 * 33_278, "C": 33_278, "nnz": 8_354_496},  # as WikiText-2 at four distances
        },
        workloads=(COUNT,),
        variants={"counts": {}, "merged": {"merged": True}},
        dtypes=DTYPES,
        small_shapes=(
            {"R": 1, "C": 1, "nnz": 1},
            {"R": 5, "C": 4, "nnz": 17},
            {"R": 300, "C": 7, "nnz": 900},
            {"R": 70, "C": 90, "nnz": 3000},
        ),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        implementations=_COUNTS,
        middle={"R": 3000, "C": 500, "nnz": 100_000},
        no_gradient="counts are integers: they have no gradient",
        left_out={
            "vmap": _DEPENDS + "the results of a batch do not stack",
            "capture": _DEPENDS + "a CUDA graph has fixed sizes",
            **dict.fromkeys(("jit_trace", "fx_trace"), "no trace of a network counts pairs"),
            "autocast": "indices are integers, which nothing casts",
        },
        tuned={"cpp": (by_cpp.COUNT, by_cpp.MERGE)},
    )
)
