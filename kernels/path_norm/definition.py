"""Path norms: Σ_p |v(p)|^q over all paths of a bias-free network, by one forward pass of ones through |W|^q.

    Σ_p |v(p)|^q = 1ᵀ |W_L|^q ⋯ |W_2|^q |W_1|^q 1

Positive rescaling of a node, which no path value sees, leaves it unchanged. A sum over so many products leaves the
range of floats soon, and so may one node's part of it, or the square of one weight. So each node (of a convolution,
each channel) has an exponent of its own, and each weight is multiplied by a power of two, which rounds nothing, before
it is taken to its power: the largest term of every node's sum is then near 1. These powers are constants to the
gradient, as the product with the last of them is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..mathematics.network import Layer, Size, network, nodes_into
from ..path_values.definition import matrices


def norm(weights: Sequence[Tensor], layers: Sequence[Layer], p: int, log: bool) -> Tensor:
    """The sum, or its logarithm, of float32 or float64 weights; made of operations that torch differentiates."""
    total, exponent = _pass_of_ones(weights, layers, p)
    norm = total.log() + exponent * math.log(2) if log else _times_power_of_two(total, exponent)
    return norm.squeeze(0)


def _pass_of_ones(weights: Sequence[Tensor], layers: Sequence[Layer], p: int) -> tuple[Tensor, Tensor]:
    """The sum as (total [1], exponent [1]), total · 2^exponent: functorch fails on scalars of no sample."""
    first = layers[0]
    x = torch.ones((first.C, first.H * first.W), dtype=weights[0].dtype, device=weights[0].device)
    exponent = torch.zeros(first.C, dtype=x.dtype, device=x.device)
    for w, layer in zip(weights, layers, strict=True):
        if w.dim() == 2 and x.shape[1] != 1:  # an image is flattened
            exponent = exponent.unsqueeze(1).expand(x.shape).reshape(x.numel())
        x, exponent = _normalised(x.reshape(layer.C, layer.H * layer.W), exponent, p)
        z, exponent = _balanced(w, exponent, p)
        powers = z.abs() if p == 1 else z.square()
        if w.dim() == 4:
            image = x.view(1, layer.C, layer.H, layer.W)
            x = conv2d(image, powers, stride=(layer.SH, layer.SW), padding=(layer.PH, layer.PW)).flatten(2)[0]
        else:
            x = powers @ x
    x, exponent = _normalised(x, exponent, p)
    largest = exponent.amax(0, keepdim=True) if x.numel() else exponent.new_zeros(1)
    return _scaled(x, (exponent - largest).unsqueeze(1)).sum().unsqueeze(0), largest


_MOST = {torch.float32: 126, torch.float64: 1022}  # 2^±most are normal numbers
_NONE = 1 << 30  # above every exponent


def _normalised(x: Tensor, exponent: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Channels x [C, positions] times powers 2^(−n p) that bring the largest element of each to [1/4, 1]; those of
    zeros alone have the lowest exponent that others have, so that no weight looks large beside them.
    """
    if x.numel() == 0:
        return x, exponent
    largest = x.detach().amax(1)
    shift = _exponent(largest)
    shift = shift + shift % p
    is_zero = largest == 0
    lowest = (exponent + shift).masked_fill(is_zero, _NONE).amin(0, keepdim=True)
    shift = torch.where(is_zero & (lowest < _NONE), lowest - exponent, shift)
    return _scaled(x, -shift.unsqueeze(1)), exponent + shift


def _balanced(w: Tensor, exponent: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Weights times powers of two for which no |w|^p x leaves the dtype if it counts, and the outputs' exponents.

    What a channel brings is taken in two halves, and each row brought back to 1 after the first: the product with the
    whole may be beyond the dtype where the end is not. In the end a row keeps its own size, where that is moderate:
    gradients of weights that hardly count then underflow no sooner than they must.
    """
    if w.numel() == 0:
        return w, exponent.new_zeros(w.shape[0])
    terms, moderate = tuple(range(1, w.dim())), _MOST[w.dtype] // 4
    rows, columns = (w.shape[0], *[1] * len(terms)), w.shape[1:2] + (1,) * (len(terms) - 1)
    shift = torch.div(exponent, p, rounding_mode="floor")  # exactly
    middle = torch.div(shift.amax(0, keepdim=True) + shift.amin(0, keepdim=True), 2, rounding_mode="floor")
    shift = shift - middle
    half = torch.div(shift, 2, rounding_mode="floor")
    w = _scaled(w, half.view(columns))
    first = _exponent(w.detach().abs().amax(terms))
    w = _scaled(_scaled(w, -first.view(rows)), (shift - half).view(columns))
    second = _exponent(w.detach().abs().amax(terms))
    kept = (first + second).clamp(-moderate, moderate)
    return _scaled(w, (kept - second).view(rows)), p * (middle + first + second - kept)


def _exponent(x: Tensor) -> Tensor:
    """n of x ≥ 0 in about [2^(n − 1), 2^n), as far as 2^−n is a normal number; 0 of 0, any of what is not finite.

    Not torch.frexp, of which torch.compile makes C++ that does not compile for float64.
    """
    most = _MOST[x.dtype]
    return (x.log2().floor() + 1).masked_fill(x == 0, 0).nan_to_num(0).clamp(-most, most)


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^exponent. Not torch.ldexp, whose derivative in forward mode is 0 where the exponent is a wrapped tensor."""
    return x * torch.exp2(exponent.clamp(max=_MOST[x.dtype]))


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
