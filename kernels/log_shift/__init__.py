"""Log and shift: counts to the weights of a softmax layer, in closed form.

    F = counts + ε,   S[c] = Σ_d F[d, c],   weight[d, c] = log F[d, c] − (1 − 1/K) log S[c]

Of rows x ≥ 0 with Σ x = K the logits x · weight are those of multinomial naive Bayes with class prior S, up to a number
that all classes share. K = ∞ gives log(F / S), whose bias is log S.

Backward, of the gradients U of weight and M of log S: dF = U / F + (M − (1 − 1/K) Σ_d U) / S; dε is its sum.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed, looks_at_values
from ..runtime.csr import csr_tensor
from ..runtime.dispatch import Gradient, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import one_by_one
from . import by_cpp, by_triton, definition
from .definition import dtype_of, factor_of, is_transposed, log_shift_ref

__all__ = ["LogShift", "SparseLogShift", "log_shift", "log_shift_ref"]

DTYPES = (torch.int64, *FLOATS)

# ------------------------------------------------------------------------------------------------ dense counts


def _forward(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> tuple[Tensor, Tensor]:
    """counts [D, C], eps [C], in place of number -> (weight [D, C] in the memory order of counts, log S [C])."""
    if eps is not None and looks_at_values(eps.device):
        _check_smoothing(eps, _NOT_NEGATIVE)
    return FORWARDS.of(counts)(counts, eps, number, factor)


def _by_torch(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> tuple[Tensor, Tensor]:
    weight, log_mass = definition.log_and_mass(counts, eps, number, factor)
    if is_transposed(counts):
        return weight.t().contiguous().t(), log_mass
    return weight.contiguous(), log_mass


FORWARDS = Implementations(
    "log_shift", source=by_cpp.SOURCE, cpp=by_cpp.forward, triton=by_triton.forward, torch=_by_torch
)


def _fake(counts, eps, number, factor) -> tuple[Tensor, Tensor]:
    D, C = counts.shape
    dtype = dtype_of(counts.dtype)
    weight = (
        counts.new_empty((C, D), dtype=dtype).t() if is_transposed(counts) else counts.new_empty((D, C), dtype=dtype)
    )
    return weight, counts.new_empty((C,), dtype=dtype)


def _gradient(grads, saved, sizes, needs, number, factor) -> list[Tensor]:
    (of_weight, of_mass), (counts, eps, log_mass) = grads, saved
    mass = counts.to(log_mass.dtype) + (number if eps is None else eps.to(log_mass.dtype))
    # made of F again, not of the log S that was saved: a second derivative sees all of it
    total = mass.sum(0)
    of_total = torch.zeros_like(total) if of_mass is None else of_mass
    if of_weight is not None:
        of_total = of_total - factor * of_weight.sum(0)
    gradient = (of_total / total).expand(mass.shape)
    if of_weight is not None:
        gradient = gradient + of_weight / mass
    gradients = (gradient.to(counts.dtype), None if eps is None else gradient.sum(0).to(eps.dtype))
    return [g for g, needed in zip(gradients, needs, strict=False) if needed and g is not None]


_LOG_SHIFT = operator(
    "log_shift(Tensor counts, Tensor? eps, float number, float factor) -> (Tensor weight, Tensor log_mass)",
    _forward,
    fake=_fake,
    vmap=one_by_one("log_shift"),
    gradient=Gradient(_gradient, inputs=(0, 1), outputs=(1,)),
)

# ------------------------------------------------------------------------------------------------ public


class LogShift(NamedTuple):
    """The result of `log_shift` of dense counts."""

    weight: Tensor
    log_mass: Tensor


class SparseLogShift(NamedTuple):
    """The result of `log_shift` of sparse counts: the dense weight is base + weight."""

    weight: Tensor
    base: Tensor
    log_mass: Tensor


@traceable
def log_shift(counts: Tensor, *, smoothing: float | Tensor = 1.0, scale: float = 1.0) -> LogShift | SparseLogShift:
    """weight[d, c] = log F[d, c] − (1 − 1/scale) log S[c], F = counts + smoothing, S[c] = Σ_d F[d, c].

    Source: Williams & Zhao, arXiv 2311.07498, 2023.

    Args:
        counts: [D, C] of int64, float64, float32, float16 or bfloat16, any strides; or a torch sparse_csr [D, C] of
            int64, float64 or float32 whose columns ascend in each row, for which smoothing must be positive.
        smoothing: ε, a number of at least 0, or a tensor [C] of a float dtype on counts' device, one for each class.
        scale: K, the sum of the rows that the weights are for, a positive number; math.inf gives log(F / S).

    Returns:
        Of dense counts (weight [D, C], log_mass [C] = log S): float64 for int64 and float64, else float32; weight lies
        in memory as counts does. log 0 is −∞, the logarithm of a negative number NaN, and a class of which all F are 0
        NaN where scale ≠ 1. Differentiable in reverse mode in counts and smoothing, where they are floats.
        Of sparse counts (weight, base [C], log_mass [C]): weight is sparse_csr with the values log(1 + counts/ε[c]),
        base[c] = log ε[c] − (1 − 1/scale) log S[c]: dense, the weight is base + weight. Made of torch's own operations,
        and differentiable as these are.

    Raises:
        TypeError: counts, smoothing or scale is of an unsupported type or dtype.
        ValueError: shapes or devices do not fit, or scale or a number for smoothing is out of range. The elements of a
            tensor are looked at on the CPU alone.
    """
    _check_arguments(counts, smoothing, scale)
    factor = factor_of(float(scale))
    eps, number = (smoothing, 0.0) if isinstance(smoothing, Tensor) else (None, float(smoothing))
    if counts.layout == torch.sparse_csr:
        return _sparse(counts, eps, number, factor)
    return LogShift(*_LOG_SHIFT(counts, eps, number, factor))


def _sparse(counts: Tensor, eps: Tensor | None, number: float, factor: float) -> SparseLogShift:
    crow, columns, values = counts.crow_indices(), counts.col_indices(), counts.values()
    dtype = dtype_of(counts.dtype)
    D, C = counts.shape
    values = values.to(dtype)
    eps = values.new_full((C,), number) if eps is None else eps.to(dtype)
    total = eps.double() * D
    total = total.index_add(0, columns, values.double())
    log_mass = total.log()
    base = (eps.double().log() - factor * log_mass).to(dtype)
    raised = torch.log1p(values / eps[columns])
    weight = csr_tensor(crow, columns, raised, (D, C))
    return SparseLogShift(weight, base, log_mass.to(dtype))


def _check_arguments(counts: Any, smoothing: Any, scale: Any) -> None:
    is_csr = isinstance(counts, Tensor) and counts.layout == torch.sparse_csr
    if not is_csr:
        memory.check_dense("log_shift", "counts", counts, "counts.to_sparse_csr(), or counts.to_dense()")
    dtypes = DTYPES[:3] if is_csr else DTYPES
    if counts.dtype not in dtypes:
        raise TypeError(f"log_shift: counts is {counts.dtype}; expected one of {listed(dtypes)}")
    if counts.dim() != 2:
        raise ValueError(f"log_shift: counts has shape {tuple(counts.shape)}; expected [D, C]")
    if not _is_number(scale):
        raise TypeError(f"log_shift: scale is a {type(scale).__name__}; expected a number")
    if not scale > 0:
        raise ValueError(f"log_shift: scale is {scale}; expected a positive number; math.inf gives log(F / S)")
    least = _POSITIVE if is_csr else _NOT_NEGATIVE
    if not isinstance(smoothing, Tensor):
        if not _is_number(smoothing):
            raise TypeError(
                f"log_shift: smoothing is a {type(smoothing).__name__}; expected a number or a torch.Tensor"
            )
        if not (smoothing >= 0 and math.isfinite(smoothing)) or (is_csr and smoothing == 0):
            raise ValueError(f"log_shift: smoothing is {smoothing}; expected {least}")
        return
    memory.check_dense("log_shift", "smoothing", smoothing)
    if smoothing.dtype not in FLOATS:
        raise TypeError(f"log_shift: smoothing is {smoothing.dtype}; expected one of {listed(FLOATS)}")
    if smoothing.shape != (counts.shape[1],):
        raise ValueError(
            f"log_shift: smoothing has shape {tuple(smoothing.shape)}; expected [{counts.shape[1]}], one for each class"
        )
    if smoothing.device != counts.device:
        raise ValueError(
            f"log_shift: smoothing is on {smoothing.device} and counts on {counts.device}; expected one device"
        )
    if is_csr and looks_at_values(smoothing.device):
        _check_smoothing(smoothing.detach(), least)


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


_NOT_NEGATIVE, _POSITIVE = "a number of at least 0", "a number above 0, as counts is sparse"


def _check_smoothing(smoothing: Tensor, least: str) -> None:
    bad = ~((smoothing > 0 if least is _POSITIVE else smoothing >= 0) & smoothing.isfinite())
    if bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"log_shift: smoothing[{at}] is {smoothing[at].item()}; expected {least}")
