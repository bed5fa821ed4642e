"""Path norms: Σ_p |v(p)|^q over all paths of a bias-free network; definition.py has the mathematics.

Of Linear layers on a CPU, C++ takes the pass forth and the one back, unless some node's part of the sum is beyond what
one power of two a layer keeps in range. That, and a compiler, a transform, forward mode or a second derivative, gets
the definition, which is torch's own operations.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..mathematics.network import Layer, Size, as_list, network
from ..runtime import backend
from ..runtime.arguments import under_autocast
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from . import by_cpp, definition
from .definition import path_norm_ref

__all__ = ["path_norm", "path_norm_ref"]

# ------------------------------------------------------------------------------------------------ operators


def _in_torch(weights: Sequence[Tensor], p: int, log: bool, layers: Sequence[Layer] | None = None) -> Tensor:
    """layers: None where all are Linear."""
    layers = network("path_norm", weights, None, 1, 0) if layers is None else layers
    device = weights[0].device.type
    # meta tensors know no autocast
    with torch.autocast(device, enabled=False) if device in backend.DEVICES else nullcontext():
        return definition.norm(weights, layers, p, log)


def _by_cpp(weights: Sequence[Tensor]) -> bool:
    return by_cpp.takes(weights) and _NORMS.backend_of(weights[0]) == "cpp"


_NORMS = Implementations("path_norm", source=by_cpp.SOURCE, cpp=by_cpp.forward, torch=_in_torch)


def _forward(weights: Sequence[Tensor], p: int, log: bool) -> tuple[Tensor, Tensor]:
    """The norm of Linear layers that `_by_cpp` took, and what the pass leaves to C++'s backward.

    That is NaN where C++ cannot serve.
    """
    result = by_cpp.forward(weights, p, log)
    if result is None:
        return _in_torch(weights, p, log), weights[0].new_full((by_cpp.passes(weights),), float("nan"))
    return result


def _backward(slope: Tensor, weights: Sequence[Tensor], passes: Tensor, p: int, log: bool) -> list[Tensor]:
    """The gradient of each weight, from that of the norm."""
    gradients = None if passes[0].isnan() else by_cpp.backward(slope, weights, passes, p, log)
    return _backward_in_torch(slope, weights, passes, p, log) if gradients is None else gradients


def _backward_in_torch(slope: Tensor, weights: Sequence[Tensor], passes: Tensor, p: int, log: bool) -> list[Tensor]:
    """Made of operations that torch differentiates."""
    slopes = torch.func.grad(lambda each: _in_torch(each, p, log))(tuple(weights))
    slope = slope.unsqueeze(0)  # functorch fails on scalars of no sample
    return [slope * each for each in slopes]


# neither is seen by autograd: `_PathNorm` is
_NORM = operator(
    "path_norm(Tensor[] weights, int p, bool log) -> (Tensor value, Tensor passes)",
    _forward,
    fake=lambda weights, p, log: (weights[0].new_empty(()), weights[0].new_empty(by_cpp.passes(weights))),
    plan=by_cpp.forward_plan,
)
_GRADIENT = operator(
    "path_norm_backward(Tensor slope, Tensor[] weights, Tensor passes, int p, bool log) -> Tensor[]",
    _backward,
    fake=lambda slope, weights, passes, p, log: [torch.empty_like(w) for w in weights],
    decomposition=_backward_in_torch,
    plan=lambda slope, weights, passes, p, log: by_cpp.backward_plan(weights, p, log),
)


class _PathNorm(torch.autograd.Function):
    """The norm of Linear layers, and the passes; who differentiates its gradient gets that of the definition."""

    @staticmethod
    def forward(p, log, *weights):
        return _NORM(weights, p, log)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.p, ctx.log, *weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *weights)

    @staticmethod
    def backward(ctx, slope, _):
        passes, *weights = ctx.saved_tensors
        gradient = _backward_in_torch if torch.is_grad_enabled() else _GRADIENT
        gradients = gradient(slope, weights, passes, ctx.p, ctx.log)
        needed = ctx.needs_input_grad[2:]
        return None, None, *(gradient if needs else None for gradient, needs in zip(gradients, needed, strict=True))


# ------------------------------------------------------------------------------------------------ public


@traceable
def path_norm(
    weights: Iterable[Tensor],
    p: int = 2,
    *,
    log: bool = False,
    input_size: Size | None = None,
    stride: Size = 1,
    padding: Size = 0,
) -> Tensor:
    """Σ over all paths of |v|^p, p = 1 or 2: the ℓ¹ norm of the path values, or the square of their ℓ² norm.

    Source: Neyshabur, Salakhutdinov, Srebro, "Path-SGD: Path-Normalized Optimization in Deep Neural Networks", NeurIPS
    2015, equation 7 (there with a root of order p).

    Args:
        weights, input_size, stride, padding: as of `path_values`.
        p: 1 or 2.
        log: return the logarithm, which stays finite where the sum overflows or underflows.

    Returns:
        A scalar in the weights' dtype, 16-bit ones summed in float32. It overflows, or underflows, only where the sum
        itself does, however the nodes are scaled. Differentiable any number of times, in forward mode too; the
        derivative of |w| at 0 is 0, and one below 2^−70 of another (float32) may come as 0. Under autocast it computes,
        and returns, float32 or wider.

    Raises:
        TypeError: weights are of an unsupported type or dtype.
        ValueError: devices, ranks or sizes do not fit, or p is neither 1 nor 2.
    """
    weights = under_autocast(as_list("path_norm", weights), sums=True)
    layers = network("path_norm", weights, input_size, stride, padding)
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or p not in (1, 2):
        raise ValueError(f"path_norm: p is {p!r}; expected 1 or 2")
    p = int(p)
    dtype = weights[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        return _norm([w.float() for w in weights], layers, p, log).to(dtype)
    return _norm(weights, layers, p, log)


def _norm(weights: Sequence[Tensor], layers: Sequence[Layer], p: int, log: bool) -> Tensor:
    # torch.jit's check traces again, without gradients
    is_traced = is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    served = weights[0].device.type == "cpu" and not is_traced and _by_cpp(weights)
    if not served or any(map(_is_transformed, weights)):
        return _in_torch(weights, p, log, layers)
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        return _PathNorm.apply(p, log, *weights)[0]
    return _NORM(weights, p, log)[0]


def _is_transformed(w: Tensor) -> bool:
    """Whether one of torch.func's transforms, or forward mode, looks at it."""
    return torch.func.debug_unwrap(w) is not w or forward_ad.unpack_dual(w).tangent is not None
