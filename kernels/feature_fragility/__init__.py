"""Feature fragility: the least change of one feature that gives a sample another class, for all samples and features.

    z = A x,   u_j = min_r (z_r + W1_jr),   f_k = max_j (u_j + W2_kj),   class c(x) = the lowest k of the largest f_k
    change[n, i] = the δ of least |δ| beyond which c(x_n + δ e_i) is another than c(x_n), as real numbers have it

Along one feature every z_r is a line in δ, u_j the least of lines, f_k the largest of those: the places where the class
changes are crossings of lines, and none is searched for. Beyond means at all δ' with |δ'| a little above |δ|. At δ
itself the two classes are equal, and a class that is equal at a single point alone has not won. Changes up and down
of one size count as up. Not differentiable.

The idea that max-plus networks tell how fragile a pixel is: Enaieh, Fercoq & García, "On the explainability of max-plus
neural networks", arXiv 2605.00889. Its text was not available to us: this definition is our own.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed, looks_at_values, under_autocast
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import one_by_one
from . import by_cpp, by_torch
from .definition import feature_fragility_ref

__all__ = ["Fragility", "feature_fragility", "feature_fragility_ref"]

FRAGILITIES = Implementations("feature_fragility", source=by_cpp.SOURCE, cpp=by_cpp.compute, torch=by_torch.compute)


class Fragility(NamedTuple):
    """The result of `feature_fragility`."""

    change: Tensor
    classes: Tensor


def _fragility(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    if looks_at_values(x.device):
        _check_values(x, A, W1, W2, low, high)
    if x.numel() == 0:
        return _fake(x, A, W1, W2, low, high)
    return FRAGILITIES.of(x)(*(tensor.contiguous() for tensor in (x, A, W1, W2)), low, high)


def _fake(x, A, W1, W2, low, high) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.int64)


_FRAGILITY = operator(
    "feature_fragility(Tensor x, Tensor A, Tensor W1, Tensor W2, float low, float high) "
    "-> (Tensor change, Tensor classes)",
    _fragility,
    fake=_fake,
    vmap=one_by_one("feature_fragility"),
)


@traceable
def feature_fragility(
    x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, *, box: tuple[float, float] | None = None
) -> Fragility:
    """change[n, i]: the δ of least |δ| beyond which x_n + δ e_i is of another class; classes[n, i]: that class.

    Exact: δ is where two lines of the network cross. It is computed in float64, in which sums of narrower floats are
    exact unless they differ by more than 2^28 in size, and rounded once.

    Args:
        x: [N, d] of float64, float32, float16 or bfloat16, finite, any strides.
        A: [p, d], finite. Of A = λ[I; −I], and wherever few rows move with a feature, only these are looked at.
        W1: [q, p]; +∞ takes a leaf away.  W2: [K, q]; −∞ takes a unit away. All of one dtype and device.
        box: (low, high), in which all features lie and stay; None for no bounds.

    Returns:
        change [N, d], of x's dtype, inf where no change of that feature within the box gives another class; at a sample
        of two equal scores it can be 0, or −0 where only a fall of the feature decides.
        classes [N, d], int64: the class just beyond, −1 where there is none; of several that are equal there the
        lowest, as argmax has it.

    Raises:
        TypeError: an argument is of an unsupported type or dtype, or the dtypes differ.
        ValueError: shapes or devices do not fit, a size is 0 that a class depends on, box is not a pair of rising
            numbers, x lies outside of it, or a number is not finite where it must be. On a GPU the elements of tensors
            are looked at in torch.autograd.detect_anomaly() alone.
    """
    x, A, W1, W2 = under_autocast((x, A, W1, W2), sums=True)
    _check_arguments(x, A, W1, W2)
    low, high = _bounds(box)
    return Fragility(*_FRAGILITY(x.detach(), A.detach(), W1.detach(), W2.detach(), low, high))


_SHAPES = {"x": "[N, d]", "A": "[p, d]", "W1": "[q, p]", "W2": "[K, q]"}


def _check_arguments(x: Any, A: Any, W1: Any, W2: Any) -> None:
    named = (("x", x), ("A", A), ("W1", W1), ("W2", W2))
    for name, tensor in named:
        memory.check_dense("feature_fragility", name, tensor)
        if tensor.dtype not in FLOATS:
            raise TypeError(f"feature_fragility: {name} is {tensor.dtype}; expected one of {listed(FLOATS)}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"feature_fragility: x is {x.dtype} and {name} is {tensor.dtype}; expected one dtype")
        if tensor.device != x.device:
            raise ValueError(
                f"feature_fragility: {name} is on {tensor.device} and x on {x.device}; expected one device"
            )
        if tensor.dim() != 2:
            raise ValueError(f"feature_fragility: {name} has shape {tuple(tensor.shape)}; expected {_SHAPES[name]}")
    fits = x.shape[1] == A.shape[1] and A.shape[0] == W1.shape[1] and W1.shape[0] == W2.shape[1]
    if not fits or not all((*W1.shape, *W2.shape)):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named)
        raise ValueError(
            f"feature_fragility: the shapes are {shapes}; expected x [N, d], A [p, d], W1 [q, p], W2 [K, q] with p, q "
            "and K of at least 1"
        )


def _bounds(box: Any) -> tuple[float, float]:
    if box is None:
        return -math.inf, math.inf
    is_pair = isinstance(box, tuple | list) and len(box) == 2
    if not is_pair or not all(isinstance(end, numbers.Real) and not isinstance(end, bool) for end in box):
        raise TypeError(f"feature_fragility: box is {box!r}; expected None or two numbers (low, high)")
    if not box[0] < box[1]:
        raise ValueError(f"feature_fragility: box is {box!r}; expected low < high")
    return float(box[0]), float(box[1])


def _check_values(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, low: float, high: float) -> None:
    wrong = (
        ("x", x, x.isfinite(), "a finite number"),
        ("A", A, A.isfinite(), "a finite number"),
        ("W1", W1, torch.gt(W1, -math.inf), "a number, or inf"),
        ("W2", W2, torch.lt(W2, math.inf), "a number, or -inf"),
        ("x", x, (x >= low) & (x <= high), f"features in the box from {low:g} to {high:g}"),
    )
    for name, tensor, is_right, expected in wrong:
        if not is_right.all():
            row, column = (int(place) for place in (~is_right).nonzero()[0])
            raise ValueError(
                f"feature_fragility: {name}[{row}, {column}] is {tensor[row, column].item():g}; expected {expected}"
            )
