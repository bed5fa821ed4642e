"""The C++ readouts (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# ROWS: positions that a task takes through one block of columns; many, so that the rows of weight that several of them
# name are read from memory once. Every choice gives the same bits.
FORWARD = Tuned(
    "gather_softmax.cpp",
    Space({"ROWS": (64, 256, 1024, 4096), "threads": native.THREADS}),
    default=lambda problem: {"ROWS": 1024, "threads": 0},
    source=SOURCE,
)
BACKWARD = Tuned(
    "gather_softmax_backward.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
SPARSE = Tuned(
    "gather_softmax_sparse.cpp",
    Space({"ROWS": (64, 256, 1024, 4096), "threads": native.THREADS}),
    default=lambda problem: {"ROWS": 1024, "threads": 0},
    source=SOURCE,
)
SPARSE_BACKWARD = Tuned(
    "gather_softmax_sparse_backward.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 15  # logits that are made before another thread would start


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "K", "D", "V", "row_stride", "column_stride", "rows", "threads")),
        *((name, ctypes.c_void_p) for name in ("weight", "contexts", "targets", "bias", "weights")),
    )


class _SparseCall(ctypes.Structure):
    """Mirrors `struct SparseCall` in sparse.hpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "K", "D", "V", "wide", "rows", "threads")),
        *((name, ctypes.c_void_p) for name in ("crow", "col", "values", "contexts", "targets", "bias", "weights")),
    )


class _Slopes(ctypes.Structure):
    """Mirrors `struct Slopes` in by_cpp.cpp, field by field."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("g", "tops", "shares", "dbias", "dweights", "dweight"))


@native.cached
def _functions(dtype: torch.dtype):
    library, pointer = native.required("gather_softmax", SOURCE, dtype), ctypes.c_void_p
    library.gather_softmax_forward.argtypes = [ctypes.POINTER(_Call), *[pointer] * 3]
    library.gather_softmax_backward.argtypes = [ctypes.POINTER(_Call), ctypes.POINTER(_Slopes)]
    return library.gather_softmax_forward, library.gather_softmax_backward


@native.cached
def _sparse_functions(dtype: torch.dtype):
    library, pointer = native.required("gather_softmax", SOURCE, dtype), ctypes.c_void_p
    library.gather_softmax_sparse_forward.argtypes = [ctypes.POINTER(_SparseCall), *[pointer] * 3]
    library.gather_softmax_sparse_backward.argtypes = [ctypes.POINTER(_SparseCall), ctypes.POINTER(_Slopes)]
    return library.gather_softmax_sparse_forward, library.gather_softmax_sparse_backward


def _done(status: int) -> None:
    if status == 1:
        raise MemoryError("gather_softmax: no memory for what is kept of each block of columns and position")
    if status == 2:
        raise ValueError(
            "gather_softmax: some row of the sparse weight has columns that do not ascend, or lie outside [0, V); "
            "expected a CSR tensor that torch's check_invariants=True passes"
        )


def _call(weight: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor, config) -> _Call:
    (B, K), (D, V) = contexts.shape, weight.shape
    return _Call(
        *(B, K, D, V, *weight.stride(), config.get("ROWS", 0), native.threads(config["threads"], B * V, _SMALL)),
        *(x.data_ptr() for x in (weight, contexts, targets, bias, weights)),
    )


def _problem(weight: Tensor, contexts: Tensor) -> dict[str, int | str]:
    (B, K), (D, V) = contexts.shape, weight.shape
    return {"B": B, "K": K, "D": D, "V": V, "dtype": str(weight.dtype)}


def _in_one_piece(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def dense(weight: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """Losses, top and share, as `by_torch.dense`; no size but D and K is 0, and all indices are in range."""
    contexts, targets, bias, weights = _in_one_piece(contexts, targets, bias, weights)
    losses, top, share = (bias.new_empty(len(contexts)) for _ in range(3))
    config = FORWARD.config(_problem(weight, contexts), weight.device)
    call = _call(weight, contexts, targets, bias, weights, config)
    _done(_functions(weight.dtype)[0](call, losses.data_ptr(), top.data_ptr(), share.data_ptr()))
    return losses, top, share


def dense_backward(g, weight, contexts, targets, bias, weights, top, share, needs_weight, needs_bias, needs_weights):
    """The gradients of weight, bias and weights, as `by_torch.dense_backward`."""
    g, contexts, targets, bias, weights, top, share = _in_one_piece(g, contexts, targets, bias, weights, top, share)
    dweight = torch.zeros(weight.shape if needs_weight else (0,), dtype=weight.dtype, device=weight.device)
    dbias, dweights = (x.new_empty(x.shape if needed else (0,)) for x, needed in
                       ((bias, needs_bias), (weights, needs_weights)))  # fmt: skip
    config = BACKWARD.config(_problem(weight, contexts), weight.device)
    written = (x.data_ptr() if needed else None for x, needed in
               ((dbias, needs_bias), (dweights, needs_weights), (dweight, needs_weight)))  # fmt: skip
    slopes = _Slopes(*(x.data_ptr() for x in (g, top, share)), *written)
    _done(_functions(weight.dtype)[1](_call(weight, contexts, targets, bias, weights, config), slopes))
    return dweight, dbias, dweights


def _sparse_call(crow, col, values, contexts, targets, bias, weights, *, tuned: Tuned) -> _SparseCall:
    (B, K), D, V = contexts.shape, len(crow) - 1, len(bias)
    config = tuned.config({"B": B, "K": K, "D": D, "V": V, "dtype": str(values.dtype)}, values.device)
    threads = native.threads(config["threads"], B * V, _SMALL)
    return _SparseCall(
        *(B, K, D, V, col.dtype == torch.int64, config.get("ROWS", 0), threads),
        *(x.data_ptr() for x in (crow, col, values, contexts, targets, bias, weights)),
    )


def sparse(crow: Tensor, col: Tensor, values: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """Losses, top and share, as `by_torch.sparse`; col is int64 or int32.

    Raises:
        ValueError: the columns of a row that is named do not ascend in [0, V).
    """
    args = _in_one_piece(crow, col, values, contexts, targets, bias, weights)
    losses, top, share = (bias.new_empty(len(contexts)) for _ in range(3))
    call = _sparse_call(*args, tuned=SPARSE)
    _done(_sparse_functions(values.dtype)[0](call, losses.data_ptr(), top.data_ptr(), share.data_ptr()))
    return losses, top, share


def sparse_backward(
    g, crow, col, values, contexts, targets, bias, weights, top, share, needs_bias: bool, needs_weights: bool
):
    """The gradients of bias and weights, as `by_torch.sparse_backward`."""
    args = _in_one_piece(crow, col, values, contexts, targets, bias, weights)
    g, top, share = _in_one_piece(g, top, share)
    dbias, dweights = (x.new_empty(x.shape if needed else (0,)) for x, needed in
                       ((bias, needs_bias), (weights, needs_weights)))  # fmt: skip
    written = (x.data_ptr() if needed else None for x, needed in ((dbias, needs_bias), (dweights, needs_weights)))
    slopes = _Slopes(*(x.data_ptr() for x in (g, top, share)), *written, None)
    _done(_sparse_functions(values.dtype)[1](_sparse_call(*args, tuned=SPARSE_BACKWARD), slopes))
    return dbias, dweights
