"""Path norms: Σ_p |v(p)|^q over all paths of a bias-free network; definition.py has the mathematics.

Of Linear layers on a CPU, C++ takes the pass forth and the one back, unless some node's part of the sum is beyond what
one power of two a layer keeps in range. That, and whatever else looks at a call, a compiler, a transform, forward mode
or a second derivative, gets the definition, which is torch's own operations.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .. import backend
from ..eager import is_unobserved
from ..path_values.network import Layer, Size, as_list, network, under_autocast
from ..tracing import traceable
from . import cpu, definition
from .definition import path_norm_ref

__all__ = ["path_norm", "path_norm_ref"]


class _PathNorm(torch.autograd.Function):
    """The C++ kernel and its gradient; who differentiates that, or maps over it, gets the definition's."""

    @staticmethod
    def forward(ctx, value, passes, layers, p, log, *weights):
        ctx.save_for_backward(passes, *weights)
        ctx.options = layers, p, log
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        passes, *weights = ctx.saved_tensors
        layers, p, log = ctx.options
        again = torch.is_grad_enabled()
        if not again and is_unobserved(slope):
            found = cpu.backward(slope, weights, passes, p, log)
            if found is not None:
                return *[None] * 5, *found
        with torch.enable_grad():
            places = [w.view_as(w) for w in weights]  # one weight may stand in several
            wanted = [w for w in places if w.requires_grad]
            value = _in_torch(places, layers, p, log)
            found = iter(torch.autograd.grad(value, wanted, slope, create_graph=again))
        return *[None] * 5, *(next(found) if w.requires_grad else None for w in places)


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
        derivative of |w| at 0 is 0. Under autocast it computes, and returns, float32 or wider.

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
    device = weights[0].device
    served = device.type == "cpu" and cpu.takes(weights) and is_unobserved(*weights)
    if served and backend.choose("path_norm", device, ("torch", "cpp"), weights[0].dtype, cpu.SOURCE) == "cpp":
        found = cpu.forward(weights, p, log)
        if found is not None and torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            return _PathNorm.apply(*found, layers, p, log, *weights)
        if found is not None:
            return found[0]
    return _in_torch(weights, layers, p, log)


def _in_torch(weights: Sequence[Tensor], layers: Sequence[Layer], p: int, log: bool) -> Tensor:
    device = weights[0].device.type
    # meta tensors know no autocast
    with torch.autocast(device, enabled=False) if device in backend.DEVICES else nullcontext():
        return definition.norm(weights, layers, p, log)
