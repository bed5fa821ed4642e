"""Path norms: Σ_p |v(p)|^q over all paths of a bias-free network, by one forward pass of ones through |W|^q.

    Σ_p |v(p)|^q = 1ᵀ |W_L|^q ⋯ |W_2|^q |W_1|^q 1

Positive rescaling of a node, which no path value sees, leaves it unchanged. A sum over so many products leaves the
range of floats soon: after each layer the pass is divided by a power of two, which rounds nothing, and which is a
constant to the gradient, as the product with it at the end is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..path_values.definition import matrices
from ..path_values.network import Layer, Size, network, nodes_into


def norm(weights: Sequence[Tensor], layers: Sequence[Layer], p: int, log: bool) -> Tensor:
    """The sum, or its logarithm, of float32 or float64 weights; made of operations that torch differentiates."""
    total, exponent = _pass_of_ones(weights, layers, p)
    return total.log() + exponent * math.log(2) if log else _times_power_of_two(total, exponent)


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


def path_norm_ref(weights, p=2, *, log=False, input_size: Size | None = None, stride: Size = 1, padding: Size = 0):
    """The oracle: the product of the layers' matrices, their entries taken to the power first, in float64."""
    layers = network("path_norm", weights, input_size, stride, padding)
    total = torch.ones(nodes_into(layers[0]), dtype=torch.float64, device=weights[0].device)
    for matrix in matrices([w.double() for w in weights], layers):
        total = matrix.abs() ** p @ total
    total = total.sum()
    return (total.log() if log else total).to(weights[0].dtype)
