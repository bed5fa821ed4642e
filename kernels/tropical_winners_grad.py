"""The backward of a tropical matrix product as lists of coordinates: dA[m, k*] += dC[m, n], dB[k*, n] += dC[m, n].

Each output has one winner k*(m, n), so at most M·N entries of dA [M, K] and dB [K, N] differ from zero. Optimizers that
visit the touched entries alone (torch.optim.SparseAdam, scatter_step) take them from here, and no zero is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .runtime.tracing import traceable


class TropicalWinnersGrad(NamedTuple):
    """Sparse COO gradients, uncoalesced: entries that share a coordinate are to be added."""

    a: Tensor
    b: Tensor


@traceable
def tropical_winners_grad(
    grad: Tensor, indices: Tensor, inner_size: int, *, a: Tensor | None = None, b: Tensor | None = None
) -> TropicalWinnersGrad:
    """Sparse gradients of A and B from the gradient of C = tropical_matmul(A, B) and its winners.

    dA[..., m, k*] += dC[..., m, n] ⊗'b and dB[..., k*, n] += dC[..., m, n] ⊗'a, where k* = indices[..., m, n] and ⊗' is
    1 for the sums of max_plus and min_plus, and the other factor at the winner for max_times.
    Source: Enaieh & Fercoq, "Exploiting Subgradient Sparsity in Max-Plus Neural Networks", arXiv 2603.04133.

    Args:
        grad: dC [..., M, N], a float dtype.
        indices: winners [..., M, N], as `tropical_matmul(..., return_indices=True)` gives them; −1 routes nothing.
        inner_size: K.
        a, b: the factors [..., M, K] and [..., K, N] of max_times, with the batch of grad; None for sums.

    Returns:
        A named tuple (a, b) of sparse COO tensors [..., M, K] and [..., K, N] with the batch of grad, at most M·N
        entries a batch each, in the order of C's elements; `.coalesce()` adds up what shares a coordinate. Where a
        factor was broadcast over the batch, its gradient is the sum over the batch.

    Raises:
        TypeError: grad is no float tensor, or indices no integer tensor.
        ValueError: shapes or devices do not fit, or only one factor is given.
        IndexError: an index outside [−1, K).
    """
    _check(grad, indices, inner_size, a, b)
    won = indices >= 0
    *batch, m, n = won.nonzero().unbind(-1)
    k = indices[won].long()
    values = grad[won]
    to_a, to_b = values, values
    if a is not None and b is not None:
        to_a, to_b = values * b[(*batch, k, n)], values * a[(*batch, m, k)]
    sizes = *grad.shape[:-2], grad.shape[-2], inner_size, grad.shape[-1]
    return TropicalWinnersGrad(
        _sparse(torch.stack((*batch, m, k)), to_a, sizes[:-1]),
        _sparse(torch.stack((*batch, k, n)), to_b, (*sizes[:-3], *sizes[-2:])),
    )


def _sparse(at: Tensor, values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(at, values, sizes, device=values.device, check_invariants=False)


def _check(grad: Tensor, indices: Tensor, inner_size: int, a: Tensor | None, b: Tensor | None) -> None:
    op = "tropical_winners_grad"
    for name, x in (("grad", grad), ("indices", indices)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a torch.Tensor")
    if not grad.is_floating_point():
        raise TypeError(f"{op}: grad is {grad.dtype}; expected a float dtype")
    if indices.dtype not in (torch.int64, torch.int32, torch.int16):
        raise TypeError(f"{op}: indices is {indices.dtype}; expected int64, as tropical_matmul returns")
    if grad.dim() < 2 or grad.shape != indices.shape:
        raise ValueError(
            f"{op}: grad has shape {tuple(grad.shape)} and indices {tuple(indices.shape)}; expected both [..., M, N]"
        )
    if grad.device != indices.device:
        raise ValueError(f"{op}: grad is on {grad.device} and indices on {indices.device}; expected one device")
    if inner_size < 0:
        raise ValueError(f"{op}: inner_size is {inner_size}; expected K, at least 0")
    if (a is None) != (b is None):
        missing = "a" if a is None else "b"
        raise ValueError(f"{op}: {missing} is None; expected both factors (max_times) or neither (sums)")
    *batch, M, N = grad.shape
    for name, x, shape in (("a", a, (*batch, M, inner_size)), ("b", b, (*batch, inner_size, N))):
        if x is not None and (x.shape != shape or x.device != grad.device):
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)} on {x.device}; expected {shape} on {grad.device}"
            )
    if indices.numel():
        low, high = (int(x) for x in indices.aminmax())
        if low < -1 or high >= inner_size:
            raise IndexError(f"{op}: indices reach from {low} to {high}; expected [-1, {inner_size})")
