"""Candidates of a multiobjective proximal gradient step on L + ‖·‖₁, d = ∇L(x), for several α at once.

    y[a] = soft(x − h α[a] d, h (1 − α[a])),    g[a] = ⟨d, y[a] − x⟩ − (‖y[a]‖₁ − ‖x‖₁)

g falls in α; where it is 0 the step to y promises both objectives the same decrease, and λ = (1 − α)/α is the weight of
‖·‖₁ that it balances. g[a] = 0 at every α where x is critical: |d_j| ≤ λ at zeros, d_j = −λ sign x_j elsewhere, has
y = x.

Source: Amakor, Sonntag & Peitz, "A multiobjective continuation method to compute the regularization path of deep neural
networks", Machine Learning with Applications 19, 2025.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed, looks_at_values, under_autocast
from ..runtime.dispatch import Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import one_by_one
from . import by_cpp, by_triton
from .definition import proximal_candidates_ref

__all__ = ["ProximalCandidates", "proximal_candidates", "proximal_candidates_ref"]

CANDIDATES = Implementations(
    "proximal_candidates",
    source=by_cpp.SOURCE,
    cpp=by_cpp.proximal_candidates,
    triton=by_triton.proximal_candidates,
    torch=proximal_candidates_ref,
)


def _candidates(x: Tensor, d: Tensor, alphas: Tensor, h: float) -> tuple[Tensor, Tensor]:
    return CANDIDATES.of(x)(x.contiguous(), d.contiguous(), h, alphas.contiguous())


def _plan(x, d, alphas, h) -> Plan:
    is_planned = (
        CANDIDATES.backend_of(x) == "cpp" and x.is_contiguous() and d.is_contiguous() and alphas.is_contiguous()
    )
    return by_cpp.plan(x, alphas) if is_planned else []


def _fake(x, d, alphas, h) -> tuple[Tensor, Tensor]:
    return x.new_empty((alphas.shape[0], *x.shape)), x.new_empty((alphas.shape[0],), dtype=torch.float64)


_CANDIDATES = operator(
    "proximal_candidates(Tensor x, Tensor d, Tensor alphas, float h) -> (Tensor y, Tensor g)",
    _candidates,
    fake=_fake,
    vmap=one_by_one("proximal_candidates"),
    plan=_plan,
)


class ProximalCandidates(NamedTuple):
    """The result of `proximal_candidates`."""

    y: Tensor
    g: Tensor


@traceable
def proximal_candidates(x: Tensor, d: Tensor, h: float, alphas: Sequence[float] | Tensor) -> ProximalCandidates:
    """y[a] = soft(x − h α[a] d, h (1 − α[a])) and g[a] = ⟨d, y[a] − x⟩ − (‖y[a]‖₁ − ‖x‖₁).

    Args:
        x, d: of one shape, dtype (float64, float32, float16 or bfloat16) and device, any strides.
        h: the step, a positive number.
        alphas: A numbers in [0, 1], as a sequence or a tensor [A]; those of a tensor on a GPU are not looked at.

    Returns:
        (y [A, *x.shape], contiguous, of x's dtype; g [A], float64 and added up in it). 16-bit floats are computed in
        float32 and rounded once, and g is that of the rounded y. No gradient flows through it. Under autocast nothing
        is narrower than float32.

    Raises:
        TypeError: an argument is of an unsupported type or dtype, or the dtypes of x and d differ.
        ValueError: shapes or devices do not fit, h is not positive, or an α is outside [0, 1].
    """
    x, d = under_autocast((x, d), sums=True)
    for name, tensor in (("x", x), ("d", d)):
        memory.check_dense("proximal_candidates", name, tensor)
        if tensor.dtype not in FLOATS:
            raise TypeError(f"proximal_candidates: {name} is {tensor.dtype}; expected one of {listed(FLOATS)}")
    if d.dtype != x.dtype:
        raise TypeError(f"proximal_candidates: x is {x.dtype} and d is {d.dtype}; expected one dtype")
    if d.device != x.device:
        raise ValueError(f"proximal_candidates: d is on {d.device}; expected {x.device}, where x is")
    if d.shape != x.shape:
        raise ValueError(f"proximal_candidates: d has shape {tuple(d.shape)}; expected {tuple(x.shape)}, that of x")
    if not _is_number(h):
        raise TypeError(f"proximal_candidates: h is a {type(h).__name__}; expected a number")
    if not (h > 0 and math.isfinite(h)):
        raise ValueError(f"proximal_candidates: h is {h}; expected a positive number")
    y, g = _CANDIDATES(x.detach(), d.detach(), _as_tensor(alphas, x.device), float(h))
    return ProximalCandidates(y, g)


def _as_tensor(alphas: Any, device: torch.device) -> Tensor:
    if isinstance(alphas, Tensor):
        memory.check_dense("proximal_candidates", "alphas", alphas)
        if alphas.dtype not in FLOATS:
            raise TypeError(f"proximal_candidates: alphas is {alphas.dtype}; expected one of {listed(FLOATS)}")
        if alphas.dim() != 1:
            raise ValueError(f"proximal_candidates: alphas has shape {tuple(alphas.shape)}; expected [A]")
        if looks_at_values(alphas.device):
            _check_range(alphas.detach().tolist())
        return alphas.detach().to(device, torch.float64)
    if not isinstance(alphas, Sequence) or isinstance(alphas, str):
        raise TypeError(f"proximal_candidates: alphas is a {type(alphas).__name__}; expected numbers or a torch.Tensor")
    for alpha in alphas:
        if not _is_number(alpha):
            raise TypeError(f"proximal_candidates: alphas has a {type(alpha).__name__} in it; expected numbers")
    _check_range(alphas)
    if alphas and torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  it warns of torch.tensor
        return torch.stack([torch.full((), float(alpha), dtype=torch.float64, device=device) for alpha in alphas])
    return torch.tensor([*map(float, alphas)], dtype=torch.float64, device=device)


def _check_range(alphas: Sequence[float]) -> None:
    for place, alpha in enumerate(alphas):
        if not 0 <= alpha <= 1:
            raise ValueError(f"proximal_candidates: alphas[{place}] is {alpha}; expected a number from 0 to 1")


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)
