"""The readout in torch, some rows of the batch at a time: no tensor of all logits.

A chunk of rows sums its logits, dense or from a CSR weight; what follows is the same for both. Here as in the kernels
top is any finite number near the largest logit (that itself, here), share = 1 / Σ exp(z − top), and a probability is
exp(z − top) · share: the rounded log-sum-exp would put an error of |log-sum-exp| roundings into each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .definition import accumulator

_LOGITS = 1 << 20  # of a chunk

Sums = Callable[[slice], tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], None]]]


def _chunks(B: int, V: int) -> Iterator[slice]:
    rows = max(1, _LOGITS // max(V, 1))
    return (slice(b, b + rows) for b in range(0, B, rows))


def _valid(contexts: Tensor, D: int) -> Tensor:
    """Where a context names a row. One out of range, which a GPU does not report, adds nothing."""
    return (contexts >= 0) & (contexts < D)


# ------------------------------------------------------------------------------------------------ logits of some rows


def _dense_logits(weight: Tensor, contexts: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
    z = bias.expand(len(contexts), -1).clone()
    for k in range(contexts.shape[1] if len(weight) else 0):
        z += _term(weight, contexts[:, k], z.dtype).mul_(weights[k]).masked_fill_(_absent(weight, contexts[:, k]), 0)
    return z


def _term(weight: Tensor, context: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that one column of the contexts names, [rows, V]."""
    rows = weight.index_select(0, context.clamp(0, len(weight) - 1))
    return rows.to(dtype) if rows.dtype != dtype else rows


def _absent(weight: Tensor, context: Tensor) -> Tensor:
    return ~_valid(context, len(weight)).unsqueeze(1)


def _entries(crow: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """The nonzeros of the rows that contexts [rows, K] name: their places, and which context, b · K + k, names each."""
    D = len(crow) - 1
    rows = contexts.flatten().clamp(0, max(D - 1, 0))
    starts = crow[rows]
    counts = (crow[(rows + 1).clamp(max=D)] - starts) * _valid(contexts.flatten(), D)
    owners = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    first = counts.cumsum(0) - counts
    return torch.arange(len(owners), device=rows.device) + (starts - first)[owners], owners


# ------------------------------------------------------------------------------------------------ softmax of logits


def _parts(z: Tensor) -> tuple[Tensor, Tensor]:
    """top and Σ exp(z − top); where the largest logit is infinite, so is top, and that many logits equal it."""
    top = z.amax(1)
    e = (z - top.unsqueeze(1)).exp_().masked_fill_(z == top.unsqueeze(1), 1)
    return top, e.sum(1)


def _losses(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, total = _parts(z)
    at = z.gather(1, targets.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    at = at.masked_fill((targets < 0) | (targets >= z.shape[1]), float("nan"))  # on a GPU, which does not report it
    # an infinite top has no probabilities
    return (top - at) + total.log(), top, (1 / total).masked_fill(top.isinf(), float("nan"))


def _slopes(z: Tensor, targets: Tensor, g: Tensor, top: Tensor, share: Tensor) -> Tensor:
    """∂(Σ g loss)/∂z = g (p − [v = target])."""
    dz = (z - top.unsqueeze(1)).exp_().mul_(share.unsqueeze(1))
    inside = ((targets >= 0) & (targets < z.shape[1])).to(dz.dtype)
    dz.scatter_add_(1, targets.clamp(0, z.shape[1] - 1).unsqueeze(1), -inside.unsqueeze(1))
    return dz.mul_(g.unsqueeze(1))


def _product(dz: Tensor, x: Tensor) -> Tensor:
    """dz · x, and 0 where dz is, of −∞ too: as its probability falls, a logit's part p z falls to 0."""
    return torch.where(dz == 0, 0, dz * x)


# ------------------------------------------------------------------------------------------------ the two forms


def dense(weight: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """weight [D, V], contexts [B, K], targets [B], bias [V], weights [K] -> losses, top, share, each [B]."""
    losses, top, share = (bias.new_empty(len(contexts)) for _ in range(3))
    for rows in _chunks(len(contexts), len(bias)):
        z = _dense_logits(weight, contexts[rows], bias, weights)
        losses[rows], top[rows], share[rows] = _losses(z, targets[rows])
    return losses, top, share


def dense_backward(g, weight, contexts, targets, bias, weights, top, share, needs_weight, needs_bias, needs_weights):
    """g, top, share [B] -> the gradients of weight, bias and weights; [0] where not needed."""
    dtype = accumulator(weight.dtype)
    dweight = torch.zeros(weight.shape if needs_weight else (0,), dtype=dtype, device=weight.device)
    dbias, dweights = (x.new_zeros(x.shape if needed else (0,)) for x, needed in
                       ((bias, needs_bias), (weights, needs_weights)))  # fmt: skip
    for rows in _chunks(len(contexts), len(bias)):
        c = contexts[rows]
        z = _dense_logits(weight, c, bias, weights)
        dz = _slopes(z, targets[rows], g[rows], top[rows], share[rows])
        if needs_bias:
            dbias += dz.sum(0)
        for k in range(c.shape[1] if len(weight) else 0):
            here = dz.masked_fill(_absent(weight, c[:, k]), 0)
            if needs_weight:
                dweight.index_add_(0, c[:, k].clamp(0, len(weight) - 1), here * weights[k])
            if needs_weights:
                dweights[k] += _product(here, _term(weight, c[:, k], dtype)).sum()
    return dweight.to(weight.dtype), dbias, dweights


def sparse(crow: Tensor, col: Tensor, values: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """The same of a CSR weight: crow [D + 1], col and values [nonzeros]."""
    losses, top, share = (bias.new_empty(len(contexts)) for _ in range(3))
    for rows in _chunks(len(contexts), len(bias)):
        z, *_ = _sparse_logits(crow, col, values, contexts[rows], bias, weights)
        losses[rows], top[rows], share[rows] = _losses(z, targets[rows])
    return losses, top, share


def _sparse_logits(crow, col, values, contexts, bias, weights):
    """z, and of each nonzero that was added: its place in z, its value, and the k of its context."""
    z, K = bias.expand(len(contexts), -1).clone(), contexts.shape[1]
    entries, owners = _entries(crow, contexts)
    of = owners % max(K, 1)
    places, added = owners // max(K, 1) * z.shape[1] + col[entries], values[entries]
    z.view(-1).index_add_(0, places, added * weights[of])
    return z, places, added, of


def sparse_backward(
    g, crow, col, values, contexts, targets, bias, weights, top, share, needs_bias: bool, needs_weights: bool
):
    """g, top, share [B] -> the gradients of bias and weights; [0] where not needed."""
    dbias, dweights = (x.new_zeros(x.shape if needed else (0,)) for x, needed in
                       ((bias, needs_bias), (weights, needs_weights)))  # fmt: skip
    for rows in _chunks(len(contexts), len(bias)):
        z, places, added, of = _sparse_logits(crow, col, values, contexts[rows], bias, weights)
        dz = _slopes(z, targets[rows], g[rows], top[rows], share[rows])
        if needs_bias:
            dbias += dz.sum(0)
        if needs_weights:
            dweights.index_add_(0, of, _product(dz.view(-1)[places], added))
    return dbias, dweights
