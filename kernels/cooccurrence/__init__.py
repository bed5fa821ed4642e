"""Co-occurrence: F[d, c] = Σ over m with labels[m] = c of r[m, d], the sum of each class's rows: F = Xᵀ Y, Y one-hot.

    r = x,   or, with a scale, r[m] = scale (x[m] + offset) / Σ_d (x[m, d] + offset): rows that sum to scale

What naive Bayes, and the explicit solutions of softmax networks on positive features, are made of. X is read once: an
addition an element, where the product with a one-hot matrix takes one a class. A row may also be one token, that is
one-hot itself; then F counts pairs, and is sparse.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from ...autotune import capturing
from ..pair_counts import as_csr, pair_counts
from ..runtime import memory
from ..runtime.arguments import is_integer, listed
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from . import by_cpp, by_triton, definition
from .definition import DTYPES, LABELS, cooccurrence_ref, dtype_of

__all__ = ["cooccurrence", "cooccurrence_ref"]

# ------------------------------------------------------------------------------------------------ dense rows


def _sums(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> Tensor:
    """x [N, D], labels [N] -> [C, D].

    Values are looked at but while a CUDA graph is captured, which cannot wait for them.
    """
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return _SUMS.of(x)(x, labels, classes, scale, offset)


def _sums_by_torch(x: Tensor, labels: Tensor, classes: int, scale: float | None, offset: float) -> Tensor:
    if not capturing(x.device):
        definition.check(x, labels, classes, scale, offset)
    return definition.sums(x, labels, classes, scale, offset)


_SUMS = Implementations(
    "cooccurrence", source=by_cpp.SOURCE, cpp=by_cpp.sums, triton=by_triton.sums, torch=_sums_by_torch
)

# ------------------------------------------------------------------------------------------------ sparse rows, tokens


def _csr_sums(
    crow: Tensor, columns: Tensor, values: Tensor, labels: Tensor, classes: int, features: int, scale: float | None
) -> Tensor:
    """The rows of a CSR tensor [N, D], labels [N] -> [C, D]."""
    if not capturing(values.device):
        definition.check_csr(crow, values, columns, labels, classes, scale)
    return definition.csr_sums(crow, columns, values, labels, classes, features, scale)


def _count_tokens(tokens: Tensor, labels: Tensor, classes: int, features: int) -> Tensor:
    shape = features, classes
    return as_csr(pair_counts(tokens, labels, shape, names=("cooccurrence", "x", "labels")), shape)


# ------------------------------------------------------------------------------------------------ operators


def _mapped(info, dims, x, labels, classes, scale, offset):
    rows = x.unbind(dims[0]) if dims[0] is not None else [x] * info.batch_size
    targets = labels.unbind(dims[1]) if dims[1] is not None else [labels] * info.batch_size
    each = [_DENSE.dispatched(*pair, classes, scale, offset) for pair in zip(rows, targets, strict=True)]
    return torch.stack(each) if each else _fake(x, labels, classes, scale, offset).unsqueeze(0)[:0], 0


def _fake(x, labels, classes, scale, offset) -> Tensor:
    return x.new_empty((classes, x.shape[-1]), dtype=dtype_of(x.dtype, scale))


_DENSE = operator(
    "cooccurrence(Tensor x, Tensor labels, SymInt classes, float? scale, float offset) -> Tensor",
    _sums,
    fake=_fake,
    vmap=_mapped,
)
_CSR = operator(
    "cooccurrence_csr(Tensor crow, Tensor columns, Tensor values, Tensor labels, SymInt classes, SymInt features, "
    "float? scale) -> Tensor",
    _csr_sums,
    fake=lambda crow, columns, values, labels, classes, features, scale: values.new_empty(
        (classes, features), dtype=dtype_of(values.dtype, scale)
    ),
)

# ------------------------------------------------------------------------------------------------ public


@traceable
def cooccurrence(
    x: Tensor,
    labels: Tensor,
    classes: int,
    *,
    scale: float | None = None,
    offset: float = 0.0,
    features: int | None = None,
) -> Tensor:
    """F[d, c] = Σ over m with labels[m] = c of r[m, d]: the sum of each class's rows, F = Xᵀ Y with one-hot Y.

    Source: the counts of multinomial naive Bayes; Williams & Zhao, arXiv 2311.07498, 2023.

    Args:
        x: one of
            rows [N, D] of uint8, int8, int16, int32, int64, bool, float64, float32, float16 or bfloat16, any strides;
            the same as a torch sparse_csr tensor;
            tokens [N], integers in [0, features): row m is the one-hot vector of x[m].
        labels: [N] integers in [0, classes).
        classes: C, at least 1.
        scale: None takes rows as they are; a positive number makes each sum to it, scale (x + offset) / Σ (x + offset).
        offset: at least 0, in the units of x; more than 0 with a scale and dense rows alone.
        features: D, of tokens alone.

    Returns:
        F [D, C], the transpose of a contiguous tensor [C, D]; int64 where integers are taken as they are, which is
        exact (beyond 2⁶³ it wraps), else float64. Of tokens a sparse_csr tensor of int64 counts, columns sorted in each
        row. The same bits on any number of threads. No gradient: it counts.

    Raises:
        TypeError: x or labels is of an unsupported type or dtype.
        ValueError: shapes, devices or options do not fit; a label or token is out of range; an entry of x is negative
            or not finite; or, with a scale and no offset, a row sums to 0. The message names the first such row. To
            know, a call on a GPU waits for it once; while a CUDA graph is captured values are not looked at.
    """
    _check_arguments(x, labels, classes, scale, offset, features)
    if x.dim() == 1:
        return _count_tokens(x, labels, classes, int(features or 0))
    scale = None if scale is None else float(scale)
    if x.layout == torch.sparse_csr:
        parts = x.crow_indices(), x.col_indices(), x.values().detach()
        return _CSR(*parts, labels, classes, x.shape[1], scale).t()
    return _DENSE(x, labels, classes, scale, float(offset)).t()


def _check_arguments(x: Any, labels: Any, classes: Any, scale: Any, offset: Any, features: Any) -> None:
    is_csr = isinstance(x, Tensor) and x.layout == torch.sparse_csr
    if not is_csr:
        memory.check_dense("cooccurrence", "x", x, "x.to_sparse_csr(), or x.to_dense()")
    memory.check_dense("cooccurrence", "labels", labels)
    if labels.dtype not in LABELS:
        raise TypeError(f"cooccurrence: labels is {labels.dtype}; expected integers, one of {listed(LABELS)}")
    if x.dim() not in (1, 2):
        raise ValueError(f"cooccurrence: x has shape {tuple(x.shape)}; expected rows [N, D], or tokens [N]")
    allowed = DTYPES if x.dim() == 2 else LABELS
    if x.dtype not in allowed:
        of_tokens = "" if x.dim() == 2 else "tokens of "
        raise TypeError(f"cooccurrence: x is {x.dtype}; expected {of_tokens}one of {listed(allowed)}")
    if labels.dim() != 1 or labels.shape[0] != x.shape[0]:
        raise ValueError(
            f"cooccurrence: labels has shape {tuple(labels.shape)}; expected [{x.shape[0]}], one for each row of x"
        )
    if labels.device != x.device:
        raise ValueError(f"cooccurrence: labels is on {labels.device} and x on {x.device}; expected one device")
    if not _is_size(classes) or classes < 1:
        raise ValueError(f"cooccurrence: classes is {classes!r}; expected an integer of at least 1")
    _check_options(x.dim() == 1, is_csr, scale, offset, features)


def _check_options(is_tokens: bool, is_csr: bool, scale: Any, offset: Any, features: Any) -> None:
    for name, number in (("scale", scale), ("offset", offset)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, numbers.Real)):
            raise TypeError(f"cooccurrence: {name} is a {type(number).__name__}; expected a number")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"cooccurrence: scale is {scale}; expected a positive number, or None")
    if not (offset >= 0 and math.isfinite(offset)):
        raise ValueError(f"cooccurrence: offset is {offset}; expected a number of at least 0")
    if offset and scale is None:
        raise ValueError(f"cooccurrence: offset is {offset} and scale is None; expected a scale, or offset=0")
    if offset and is_csr:
        raise ValueError(
            f"cooccurrence: offset is {offset} and x is sparse_csr, of which it would leave nothing sparse; expected "
            "offset=0, or x.to_dense()"
        )
    if not is_tokens:
        if features is not None:
            raise ValueError(f"cooccurrence: features is {features!r} and x has rows [N, D]; expected None")
        return
    if scale is not None:
        raise ValueError(f"cooccurrence: scale is {scale} and x has tokens [N], each of sum 1; expected None")
    if not _is_size(features) or features < 1:
        raise ValueError(
            f"cooccurrence: features is {features!r} and x has tokens [N]; expected an integer of at least 1, D"
        )


def _is_size(n: Any) -> bool:
    return is_integer(n) or isinstance(n, torch.SymInt)
