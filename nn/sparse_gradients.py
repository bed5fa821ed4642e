"""Layers whose weights have sparse gradients: an output's gradient is an entry at its winner, and no zero is written.

    y[n, o] = max_i x[n, i] + w[o, i]                 an entry (o, i*) of w for each dy[n, o] that is not 0
    f[n, k] = max_j (min_i (A x_n)_i + W1_ji) + W2_kj   (k, j*) of W2, (j*, i*) of W1, and df[n, k] x_n in row i* of A

The same subgradient as the dense one, ties to the lowest index. The cost is that of the winners: a dense gradient of a
W1 [300, 1568] is 470,000 numbers, of which a batch of 128 samples moves 1280 at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import tropical_matmul
from ..kernels.mathematics.semiring import winner_dtype
from ..kernels.tropical_winners_scatter import tropical_winners_scatter


def tropical_linear(x: Tensor, weight: Tensor, semiring: str, layer: str) -> Tensor:
    """y = x ⊗ weightᵀ, x [..., I] and weight [O, I]; the gradient of the weight is a sparse tensor of two indices."""
    rows = x.reshape(-1, x.shape[-1])
    if is_recorded(x, weight):
        y = _apart(_TropicalLinear)(rows, weight, semiring, layer)
    else:
        y = tropical_matmul(rows, weight.T, semiring=semiring)
    return y.view(*x.shape[:-1], weight.shape[0])


def is_recorded(*tensors: Tensor) -> bool:
    """Whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _apart(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Applies it; a graph of torch.compile ends before, as none can hold a tensor of an unknown number of entries."""
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg=_NO_GRAPH)
        apart: Any = torch.compiler.disable(function.apply, reason=_NO_GRAPH)
        return apart
    return function.apply


_NO_GRAPH = "sparse=True: sparse gradients are made outside graphs; with fullgraph=True expected sparse=False"


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
        at, values = dy.nonzero(), dy.reshape(-1)
        places = torch.empty((2, len(at)), dtype=torch.int64, device=at.device)
        places[0] = at[:, 1]
        if len(at) < len(values):
            flat = at[:, 0] * O + at[:, 1]
            winners, values = winners.view(-1).index_select(0, flat), values.index_select(0, flat)
        places[1] = winners.view(-1)
        dw = _sparse(places, values, ctx.weight_dtype, (O, I))
    return dx, dw


def linear_min_max(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    """f of LinearMinMax: x [N, d] → [N, K]. Gradients are sparse: of W1 and W2 with two indices, of A with one."""
    if is_recorded(x, A, W1, W2):
        return _apart(_LinearMinMax)(x, A, W1, W2)
    return tropical_matmul(tropical_matmul(x @ A.T, W1.T, semiring="min_plus"), W2.T)


class _LinearMinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
        u, leaves = tropical_matmul(x @ A.T, W1.T, semiring="min_plus", return_indices=True)
        f, units = tropical_matmul(u, W2.T, return_indices=True)
        (N, K), needs = f.shape, ctx.needs_input_grad
        places = torch.empty((3, N, K), dtype=torch.int64, device=f.device)  # of each output: class, unit, leaf
        places[0] = torch.arange(K, device=f.device)
        places[1] = units
        torch.gather(leaves, 1, units, out=places[2])  # of those minima that an output took
        ctx.save_for_backward(places.view(3, -1), x if needs[1] else None, A if needs[0] else None)
        ctx.sizes, ctx.dtypes = (A.shape, W1.shape, W2.shape), [w.dtype for w in (x, A, W1, W2)]
        return f

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _once("LinearMinMax", _min_max_gradients, ctx, grads[0], *ctx.saved_tensors)


def _min_max_gradients(
    ctx: Any, df: Tensor, places: Tensor, x: Tensor | None, A: Tensor | None
) -> tuple[Tensor | None, ...]:
    needs_x, needs_A, needs_W1, needs_W2 = ctx.needs_input_grad
    of_x, of_A, of_W1, of_W2 = ctx.dtypes
    of_A_size, of_W1_size, of_W2_size = ctx.sizes
    dx = dA = dW1 = dW2 = None
    if needs_x:
        assert A is not None
        winners = places[2].to(winner_dtype(len(A))).view(1, *df.shape)
        dz, _ = tropical_winners_scatter(df[None], winners, None, None, len(A), "min_plus", True, False)
        dx = (dz[0].to(of_A) @ A).to(of_x)
    if needs_A or needs_W1 or needs_W2:
        values = df.reshape(-1)
        at = values.nonzero()
        if at.shape[0] < values.shape[0]:  # of cross-entropy there are seldom zeros
            at = at.squeeze(1)
            places, values = places.index_select(1, at), values.index_select(0, at)
        if needs_W2:
            dW2 = _sparse(places[:2], values, of_W2, of_W2_size)
        if needs_W1:
            dW1 = _sparse(places[1:], values, of_W1, of_W1_size)
        if needs_A:
            assert x is not None
            dA = _rows_gradient(places[2], at.view(-1) // df.shape[1], values, x, of_A, of_A_size)
    return dx, dA, dW1, dW2


def _rows_gradient(
    rows: Tensor, samples: Tensor, values: Tensor, x: Tensor, dtype: torch.dtype, size: torch.Size
) -> Tensor:
    """Row i is Σ values · x[sample] over the entries of i. Summed up here: it is never more than the dense gradient."""
    rows, order = rows.sort(stable=True)
    distinct, counts = torch.unique_consecutive(rows, return_counts=True)
    offsets = counts.cumsum(0) - counts
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # 16-bit sums would be rounded at every term
    summed = F.embedding_bag(samples[order], wide, offsets, mode="sum", per_sample_weights=values[order].to(wide.dtype))
    return torch.sparse_coo_tensor(
        distinct[None], summed.to(dtype), size, is_coalesced=True, device=x.device, check_invariants=False
    )


def _sparse(places: Tensor, values: Tensor, dtype: torch.dtype, size: tuple[int, ...]) -> Tensor:
    """The gradient with values of its own, which programs may scale in place."""
    values = values.to(dtype, copy=True)
    return torch.sparse_coo_tensor(places, values, size, check_invariants=False)


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
