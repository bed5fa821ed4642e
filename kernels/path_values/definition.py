"""Path values v(p) = Π_l W_l[p_{l+1}, p_l] and their derivatives, in torch: the oracle, and the path without kernels.

With prefix a_l = Π_{k<l} w_k and suffix b_l = Π_{k>l} w_k, ∂v/∂w_l = a_l b_l: no division, so zeros need no care.
In a direction g the derivative is t = Σ_l g_l a_l b_l, by the recursion of dual numbers (v, t) ← (v w, t w + v g).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..mathematics.network import Layer, Size, network, nodes_into, nodes_out_of, weights_of


def matrices(weights: Sequence[Tensor], layers: Sequence[Layer]) -> list[Tensor]:
    """Each layer as the matrix [nodes out, nodes in] that it is; a convolution's holds zeros where it has no edge."""
    dense = []
    for w, layer in zip(weights, layers, strict=True):
        if w.dim() == 4:
            units = torch.eye(nodes_into(layer), dtype=w.dtype, device=w.device).view(-1, layer.C, layer.H, layer.W)
            w = conv2d(units, w, stride=(layer.SH, layer.SW), padding=(layer.PH, layer.PW)).flatten(1).mT
        dense.append(w)
    return dense


def path_values_ref(weights, paths, *, input_size: Size | None = None, stride: Size = 1, padding: Size = 0) -> Tensor:
    """The oracle. Factors are multiplied from the input on, 16-bit ones in float32."""
    layers = network("path_values", weights, input_size, stride, padding)
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    paths, value = paths.long(), torch.ones(paths.shape[:-1], dtype=dtype, device=paths.device)
    for l, matrix in enumerate(matrices([w.to(dtype) for w in weights], layers)):
        value = value * matrix[paths[..., l + 1], paths[..., l]]
    return value.to(weights[0].dtype)


# ------------------------------------------------------------------------------------------------ by edges


def edges(paths: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Paths [B, P, L + 1] -> for each layer the place [B, P] of the path's weight among all weights in a row.

    −1 where a convolution does not join the two nodes, or one of them is outside its layer.
    """
    places, first = [], 0
    for l, layer in enumerate(layers):
        source, target = paths[..., l].long(), paths[..., l + 1].long()
        inside = (source >= 0) & (source < nodes_into(layer)) & (target >= 0) & (target < nodes_out_of(layer))
        c, y, x = _position(source, layer.H, layer.W)
        o, p, q = _position(target, layer.P, layer.Q)
        i, j = y + layer.PH - p * layer.SH, x + layer.PW - q * layer.SW
        joined = inside & (i >= 0) & (i < layer.KH) & (j >= 0) & (j < layer.KW)
        edge = first + ((o * layer.C + c) * layer.KH + i) * layer.KW + j
        places.append(edge.masked_fill(~joined, -1))
        first += weights_of(layer)
    return places


def _position(node: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    inner = node % (height * width)
    return node // (height * width), inner // width, inner % width


def outside(paths: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Which paths [B, P] have a node outside its layer."""
    leaves = torch.zeros(paths.shape[:-1], dtype=torch.bool, device=paths.device)
    for l, size in enumerate(sizes(layers)):
        leaves |= (paths[..., l] < 0) | (paths[..., l] >= size)
    return leaves


def check_nodes(paths: Tensor, layers: Sequence[Layer]) -> None:
    """
    Raises:
        IndexError: a node outside its layer; the message names the first.
    """
    wrong = outside(paths, layers)
    if not wrong.any():
        return
    batch, row = (int(i) for i in wrong.nonzero()[0])
    for l, size in enumerate(sizes(layers)):
        node = int(paths[batch, row, l])
        if not 0 <= node < size:
            raise IndexError(f"path_values: paths[{row}, {l}] is {node}; expected a node of layer {l}, in [0, {size})")


def sizes(layers: Sequence[Layer]) -> list[int]:
    """The nodes of each layer, from the input to the output."""
    return [nodes_into(layers[0]), *map(nodes_out_of, layers)]


def values(flat: Tensor, paths: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Weights in a row flat [B, n], paths [B, P, L + 1] -> [B, P]; NaN for a path with a node outside its layer."""
    value = torch.ones_like(paths[..., 0], dtype=flat.dtype)
    for edge in edges(paths, layers):
        value = value * _at(flat, edge)
    return value.masked_fill(outside(paths, layers), float("nan"))


def gradient(dv: Tensor, flat: Tensor, paths: Tensor, layers: Sequence[Layer]) -> Tensor:
    """dv [B, P] -> Σ_p dv_p ∂v_p/∂flat [B, n]."""
    places = edges(paths, layers)
    prefixes, suffixes = _products([_at(flat, edge) for edge in places])
    return _added(flat, places, [dv * a * b for a, b in zip(prefixes, suffixes, strict=False)])


def second_gradient(
    g: Tensor, dv: Tensor, flat: Tensor, paths: Tensor, layers: Sequence[Layer]
) -> tuple[Tensor, Tensor]:
    """The derivatives of ⟨g, gradient(dv, flat)⟩ with respect to dv [B, P] and flat [B, n]; differentiable itself."""
    places = edges(paths, layers)
    w, t = [_at(flat, edge) for edge in places], [_at(g, edge) for edge in places]
    (prefixes, suffixes), (d_prefixes, d_suffixes) = _products(w), _derivatives(w, t)
    terms = [
        dv * (da * b + a * db)
        for a, b, da, db in zip(prefixes, suffixes, d_prefixes, d_suffixes, strict=False)
    ]  # fmt: skip
    return d_prefixes[-1], _added(flat, places, terms)


def _at(flat: Tensor, edge: Tensor) -> Tensor:
    return flat.gather(1, edge.clamp(min=0)).masked_fill(edge < 0, 0)


def _products(w: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """a_0 … a_L, the last being the whole product, and b_0 … b_{L−1}."""
    prefixes, suffixes = [torch.ones_like(w[0])], [torch.ones_like(w[0])]
    for factor in w:
        prefixes.append(prefixes[-1] * factor)
    for factor in reversed(w[1:]):
        suffixes.insert(0, suffixes[0] * factor)
    return prefixes, suffixes


def _derivatives(w: Sequence[Tensor], t: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of `_products` in the direction t."""
    prefixes, suffixes = _products(w)
    of_prefixes, of_suffixes = [torch.zeros_like(w[0])], [torch.zeros_like(w[0])]
    for l in range(len(w)):
        of_prefixes.append(of_prefixes[-1] * w[l] + prefixes[l] * t[l])
    for l in range(len(w) - 1, 0, -1):
        of_suffixes.insert(0, of_suffixes[0] * w[l] + suffixes[l] * t[l])
    return of_prefixes, of_suffixes


def _added(flat: Tensor, places: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    """Terms added up at their places, −1 nowhere; in one dimension, which torch has a deterministic form of."""
    B, n = flat.shape
    rows = torch.arange(B, device=flat.device).view(-1, 1) * n
    sums = torch.zeros_like(flat).reshape(B * n)
    for edge, term in zip(places, terms, strict=True):
        term = term.masked_fill(edge < 0, 0).reshape(edge.numel())
        sums = sums.scatter_add(0, (rows + edge.clamp(min=0)).flatten(), term)
    return sums.view(B, n)
