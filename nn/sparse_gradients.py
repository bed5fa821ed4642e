"""Layers whose weights have sparse gradients: an output's gradient is an entry at its winner, and no zero is written.

    y[n, o] = max_i x[n, i] + w[o, i]                 an entry (o, i*) of w for each dy[n, o] that is not 0
    f[n, k] = max_j (min_i (A x_n)_i + W1_ji) + W2_kj   (k, j*) of W2, (j*, i*) of W1, and df[n, k] x_n in row i* of A

The same subgradient as the dense one, ties to the lowest index. The cost is that of the winners: a dense gradient of a
W1 [300, 1568] is 470,000 numbers, of which a batch of 128 samples moves 1280 at most.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..kernels import tropical_matmul
from ..kernels.mathematics.semiring import winner_dtype
from ..kernels.tropical_winners_scatter import tropical_winners_scatter


@fx.wrap  # one node of a traced graph
def tropical_linear(x: Tensor, weight: Tensor, semiring: str, layer: str) -> Tensor:
    """y = x ⊗ weightᵀ, x [..., I] and weight [O, I]; the gradient of the weight is a sparse tensor of two indices."""
    rows = x.reshape(-1, x.shape[-1])
    if is_recorded(x, weight):
        y = _TropicalLinear.apply(rows, weight, semiring, layer)
    else:
        y = tropical_matmul(rows, weight.T, semiring=semiring)
    return y.view(*x.shape[:-1], weight.shape[0])


def is_recorded(*tensors: Tensor) -> bool:
    """Whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class _TropicalLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, semiring: str, layer: str) -> Tensor:
        y, winners = tropical_matmul(x, weight.T, semiring=semiring, return_indices=True)
        ctx.save_for_backward(winners.to(winner_dtype(x.shape[1])))
        ctx.layer, ctx.semiring, ctx.x_dtype, ctx.weight_dtype = layer, semiring, x.dtype, weight.dtype
        ctx.sizes = weight.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (winners,) = ctx.saved_tensors
        return *_once(ctx.layer, _linear_gradients, ctx, grads[0], winners), None, None


def _linear_gradients(ctx: Any, dy: Tensor, winners: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (O, I), dx, dw = ctx.sizes, None, None
    if ctx.needs_input_grad[0]:
        dx, _ = tropical_winners_scatter(dy[None], winners[None], None, None, I, ctx.semiring, True, False)
        dx = dx[0].to(ctx.x_dtype)
    if ctx.needs_input_grad[1]:
        at, values = _nonzero(dy)
        dw = _sparse((at % O, winners.view(-1)[at].long()), values.to(ctx.weight_dtype), (O, I))
    return dx, dw


def linear_min_max(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    """f of LinearMinMax: x [N, d] → [N, K]. Gradients are sparse: of W1 and W2 with two indices, of A with one."""
    if is_recorded(x, A, W1, W2):
        return _LinearMinMax.apply(x, A, W1, W2)
    return tropical_matmul(tropical_matmul(x @ A.T, W1.T, semiring="min_plus"), W2.T)


class _LinearMinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
        u, lowest = tropical_matmul(x @ A.T, W1.T, semiring="min_plus", return_indices=True)
        f, units = tropical_matmul(u, W2.T, return_indices=True)
        leaves = lowest.gather(1, units)  # of those minima that an output took
        needs_x, needs_A = ctx.needs_input_grad[:2]
        ctx.save_for_backward(units, leaves, x if needs_A else None, A if needs_x else None)
        ctx.sizes, ctx.dtypes = (A.shape, W1.shape, W2.shape), [w.dtype for w in (x, A, W1, W2)]
        return f

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _once("LinearMinMax", _min_max_gradients, ctx, grads[0], *ctx.saved_tensors)


def _min_max_gradients(
    ctx: Any, df: Tensor, units: Tensor, leaves: Tensor, x: Tensor | None, A: Tensor | None
) -> tuple[Tensor | None, ...]:
    needs_x, needs_A, needs_W1, needs_W2 = ctx.needs_input_grad
    of_x, of_A, of_W1, of_W2 = ctx.dtypes
    dx = dA = dW1 = dW2 = None
    if needs_x:
        assert A is not None
        winners = leaves[None].to(winner_dtype(len(A)))
        dz, _ = tropical_winners_scatter(df[None], winners, None, None, len(A), "min_plus", True, False)
        dx = (dz[0].to(of_A) @ A).to(of_x)
    if needs_A or needs_W1 or needs_W2:
        K = df.shape[1]
        at, values = _nonzero(df)
        unit, leaf = units.view(-1)[at], leaves.view(-1)[at]
        if needs_W2:
            dW2 = _sparse((at % K, unit), values.to(of_W2), ctx.sizes[2])
        if needs_W1:
            dW1 = _sparse((unit, leaf), values.to(of_W1), ctx.sizes[1])
        if needs_A:
            assert x is not None
            dA = _rows_gradient(leaf, at // K, values, x, ctx.sizes[0], of_A)
    return dx, dA, dW1, dW2


def _rows_gradient(
    rows: Tensor, samples: Tensor, values: Tensor, x: Tensor, sizes: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Row i is Σ values · x[sample] over the entries of i. Summed up here: it is never more than the dense gradient."""
    rows, order = rows.sort(stable=True)
    distinct, counts = torch.unique_consecutive(rows, return_counts=True)
    offsets = counts.cumsum(0) - counts
    summed = F.embedding_bag(samples[order], x, offsets, mode="sum", per_sample_weights=values[order].to(x.dtype))
    return torch.sparse_coo_tensor(
        distinct[None], summed.to(dtype), sizes, is_coalesced=True, device=x.device, check_invariants=False
    )


def _nonzero(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the entries that are not 0, in order, and the entries."""
    flat = grad.reshape(-1)
    at = flat.nonzero().squeeze(1)
    return at, flat[at]


def _sparse(at: tuple[Tensor, Tensor], values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack(at), values, sizes, device=values.device, check_invariants=False)


# ------------------------------------------------------------------------------------------------ once


def _once(layer: str, gradients: Any, ctx: Any, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """gradients(ctx, *tensors), in a node that refuses to be differentiated where a graph of it is wanted."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _Once.apply(layer, gradients, ctx, *tensors)
    return gradients(ctx, *tensors)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: str, gradients: Any, of: Any, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.layer = layer
        return gradients(of, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{ctx.layer}: a sparse gradient cannot be differentiated again; expected sparse=False, whose gradients can"
        )
