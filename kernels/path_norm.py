"""Path norms: Σ_p |v(p)|^q over all paths of a bias-free network, by one forward pass of ones through |W|^q.

    Σ_p |v(p)|^q = 1ᵀ |W_L|^q ⋯ |W_2|^q |W_1|^q 1

Positive rescaling of a node, which no path value sees, leaves it unchanged. A sum over so many products leaves the
range of floats soon: after each layer the pass is divided by a power of two, which rounds nothing, and which is a
constant to the gradient, as the product with it at the end is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from . import backend
from .path_values.definition import matrices
from .path_values.network import Layer, Size, network, nodes_into, under_autocast
from .spec import Contender, Misuse, Sample, Shape, Spec, Workload, register
from .tropical_matmul.definition import FLOATS

# ------------------------------------------------------------------------------------------------ public


def path_norm(
    weights: Sequence[Tensor],
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
        A scalar in the weights' dtype, 16-bit ones summed in float32. It overflows only where the sum itself does, or
        the squares of one node's weights (beyond 1.8e19 in float32). Differentiable any number of times, in forward
        mode too; the derivative of |w| at 0 is 0. Under autocast it computes, and returns, float32 or wider.

    Raises:
        TypeError: weights are of an unsupported type or dtype.
        ValueError: devices, ranks or sizes do not fit, or p is neither 1 nor 2.
    """
    weights = under_autocast(weights, sums=True)
    layers = network("path_norm", weights, input_size, stride, padding)
    if p not in (1, 2):
        raise ValueError(f"path_norm: p is {p!r}; expected 1 or 2")
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    device = weights[0].device.type
    # meta tensors know no autocast
    with torch.autocast(device, enabled=False) if device in backend.DEVICES else nullcontext():
        total, exponent = _pass_of_ones([w.to(dtype) for w in weights], layers, p)
        if log:
            return (total.log() + exponent * math.log(2)).to(weights[0].dtype)
        return _times_power_of_two(total, exponent).to(weights[0].dtype)


def _pass_of_ones(weights: Sequence[Tensor], layers: Sequence[Layer], p: int) -> tuple[Tensor, Tensor]:
    """The sum as (total, exponent), total · 2^exponent."""
    x = torch.ones(nodes_into(layers[0]), dtype=weights[0].dtype, device=weights[0].device)
    exponent = torch.zeros((), dtype=torch.int32, device=x.device)
    for w, layer in zip(weights, layers, strict=True):
        powers = w.abs() if p == 1 else w.square()
        if w.dim() == 4:
            image = x.view(1, layer.C, layer.H, layer.W)
            x = conv2d(image, powers, stride=(layer.SH, layer.SW), padding=(layer.PH, layer.PW)).flatten()
        else:
            x = powers @ x
        if x.numel():
            # of 0 it is 0; of infinity and NaN it may be any, which leaves them what they are
            scale = torch.frexp(x.detach().amax()).exponent.clamp(-_MOST[x.dtype], _MOST[x.dtype])
            x, exponent = _scaled(x, -scale), exponent + scale
    return x.sum(), exponent


_MOST = {torch.float32: 126, torch.float64: 1022}  # 2^±most are normal numbers


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^exponent. Not torch.ldexp, whose derivative in forward mode is 0 where the exponent is a wrapped tensor."""
    return x * torch.exp2(exponent.to(x.dtype))


def _times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """In steps none of which overflows alone: 0 stays 0."""
    most = _MOST[x.dtype]
    for _ in range(3):  # from one end of the dtype's range to the other
        step = exponent.clamp(-most, most)
        x, exponent = _scaled(x, step), exponent - step
    return x


# ------------------------------------------------------------------------------------------------ the op as data


def path_norm_ref(weights, p=2, *, log=False, input_size: Size | None = None, stride: Size = 1, padding: Size = 0):
    """The oracle: the product of the layers' matrices, their entries taken to the power first, in float64."""
    layers = network("path_norm", weights, input_size, stride, padding)
    total = torch.ones(nodes_into(layers[0]), dtype=torch.float64, device=weights[0].device)
    for matrix in matrices([w.double() for w in weights], layers):
        total = matrix.abs() ** p @ total
    total = total.sum()
    return (total.log() if log else total).to(weights[0].dtype)


def op(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm(weights, **kwargs)


def oracle(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm_ref(weights, **kwargs)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Four layers N → M → N → M → N, normal, of variance 1 / in: a sum of about N."""
    generator = torch.Generator().manual_seed(seed)
    widths = [shape["N"], shape["M"], shape["N"], shape["M"], shape["N"]]
    found = []
    for source, target in itertools.pairwise(widths):
        weight = torch.randn(target, source, generator=generator, dtype=torch.float64)
        found.append((weight * max(1, source) ** -0.5).to(device, dtype))
    return tuple(found)


def _plain(*weights: Tensor) -> Tensor:
    x = weights[0].new_ones(weights[0].shape[1])
    for w in weights:
        x = w.square() @ x
    return x.sum()


def _called(norm: Callable[..., Tensor]):
    return lambda *weights: lambda: (norm(*weights),)


def _trained(norm: Callable[..., Tensor]):
    """Forward and backward: (the norm, the gradient of each weight)."""

    def prepare(*weights: Tensor):
        leaves = [w.clone().requires_grad_() for w in weights]

        def call():
            value = norm(*leaves)
            return (value.detach(), *torch.autograd.grad(value, leaves))

        return call

    return prepare


def _weights(shape: Shape) -> int:
    return 4 * shape["M"] * shape["N"]


def _steps(shape: Shape) -> int:
    return _weights(shape)  # one multiplication and addition a weight


def _forward_bytes(shape: Shape, itemsize: int) -> int:
    return _weights(shape) * itemsize


def _training_bytes(shape: Shape, itemsize: int) -> int:
    return 3 * _weights(shape) * itemsize  # read twice, and the gradient written


FORWARD = Workload(
    "path norm forward",
    (
        Contender("tropigrad", "ours", _called(op)),
        Contender("unscaled pass", "dense", _called(_plain)),
        Contender("torch.compile", "compiled", lambda *w: _called(torch.compile(_plain, dynamic=False))(*w)),
    ),
    operations=_steps,
    bytes=_forward_bytes,
    mix="mul_add",
)
TRAINING = Workload(
    "path norm forward + backward",
    (
        Contender("tropigrad", "ours", _trained(op)),
        Contender("unscaled pass", "dense", _trained(_plain)),
        Contender("torch.compile", "compiled", lambda *w: _trained(torch.compile(_plain, dynamic=False))(*w)),
    ),
    operations=_steps,
    bytes=_training_bytes,
    mix="mul_add",
)


def samples(device: torch.device) -> list[Sample]:
    """Overflow, underflow, zeros, special values, convolutions and empty layers."""
    generator = torch.Generator().manual_seed(0)
    found = []

    def add(id: str, *shapes: tuple[int, ...], scale: float = 1.0, **kwargs) -> None:
        weights = tuple((scale * torch.randn(shape, generator=generator)).to(device) for shape in shapes)
        for p in (1, 2):
            found.append(Sample(f"{id}-p={p}", weights, {"p": p, **kwargs}))

    add("one-layer", (3, 5))
    add("pointwise", (4, 3, 1, 1), (2, 4, 1, 1), input_size=(2, 3))
    add("flattened", (4, 2, 3, 2), (5, 4, 2, 2), (6, 100), input_size=5, padding=[1, 0], stride=[1, 1])
    add("strided", (4, 2, 3, 3), input_size=(9, 8), stride=[(2, 1)], padding=[(1, 2)])
    add("large", (3, 5), (4, 3), (2, 4), scale=1e18, log=True)
    add("small", (3, 5), (4, 3), (2, 4), scale=1e-18, log=True)
    add("overflow", (3, 5), (4, 3), (2, 4), scale=1e18)
    add("underflow", (3, 5), (4, 3), (2, 4), scale=1e-18)
    add("zero", (3, 5), (4, 3), scale=0.0)
    add("log-of-zero", (3, 5), (4, 3), scale=0.0, log=True)
    add("no-nodes", (0, 3), (2, 0))
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        weight = torch.full((2, 3), value, device=device)
        found.append(Sample(name, (weight, torch.ones(2, 2, device=device)), {"p": 2}))
    return found


def misuses(device: torch.device) -> list[Misuse]:
    w = torch.zeros(3, 2, device=device)
    alone: Any = w
    return [
        Misuse("p", lambda: path_norm([w], 3), ValueError, "p is 3; expected 1 or 2"),
        Misuse("one-tensor", lambda: path_norm(alone), TypeError, "weights is a Tensor; expected a list of weights"),
        Misuse("chain", lambda: path_norm([w, w]), ValueError, r"weights\[1\] has shape \(3, 2\); expected \(out, 3\)"),
    ]


SPEC = register(
    Spec(
        name="path_norm",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={"64": {"M": 64, "N": 64}, "1024": {"M": 1024, "N": 1024}},
        workloads=(FORWARD, TRAINING),
        variants={f"p={p}": {"p": p} for p in (1, 2)},
        dtypes=FLOATS,
        small_shapes=({"M": 1, "N": 1}, {"M": 11, "N": 7}, {"M": 5, "N": 9}),
        samples=samples,
        misuses=misuses,
        is_exact=lambda kwargs: False,
        backends=("torch",),
        offers=lambda kwargs: ("torch",),
    )
)
