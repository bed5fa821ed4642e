"""The Triton readouts with a dense weight: a program takes all columns of a position, or, back, a block of many.

Each lane of the forward keeps a largest logit and a sum of exponentials of its own; the lanes meet once, at the end.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv
from . import by_torch

FORWARD = Tuned(
    "gather_softmax.triton",
    Space({"BLOCK_V": (256, 512, 1024, 2048), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK_V": 1024, "num_warps": 4},
    source=Path(__file__),
)
# ROWS: positions whose share in the gradient of bias is added up before it is added atomically
BACKWARD = Tuned(
    "gather_softmax_backward.triton",
    Space({"BLOCK_V": (256, 512, 1024), "ROWS": (1, 4, 16, 64), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK_V": 512, "ROWS": 16, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _logits(weight_ptr, context_ptr, bias_ptr, weights_ptr, b, v, mask, D, K, stride_d, stride_v):
    """z of position b in the columns v; −∞ where mask is not."""
    z = tl.load(bias_ptr + v, mask=mask, other=0)
    for k in range(K):
        c = tl.load(context_ptr + b * K + k)
        w = tl.load(weights_ptr + k)
        x = tl.load(weight_ptr + c * stride_d + v * stride_v, mask=mask & (c >= 0) & (c < D), other=0)
        z += tl.where((c >= 0) & (c < D), x.to(z.dtype) * w, 0.0)
    return tl.where(mask, z, float("-inf"))


@triton.jit
def _gather_softmax_fwd_kernel(
    weight_ptr,  # [D, V]
    context_ptr,  # [B, K] int64
    target_ptr,  # [B] int64
    bias_ptr, weights_ptr,  # [V], [K]
    loss_ptr, top_ptr, share_ptr,  # [B]
    D, V, K,
    stride_d, stride_v,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    accumulator: tl.constexpr = bias_ptr.dtype.element_ty
    top = tl.full([BLOCK_V], float("-inf"), accumulator)
    total = tl.zeros([BLOCK_V], accumulator)  # Σ exp(z − top), rescaled as the top rises
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V).to(tl.int64)
        z = _logits(weight_ptr, context_ptr, bias_ptr, weights_ptr, b, v, v < V, D, K, stride_d, stride_v)
        rise = z > top
        # z == top covers ∓∞ − ∓∞, which would be NaN; a NaN stays one and spoils the total, as it must
        step = tl.where(z == top, 1.0, tl.exp(tl.where(rise, top, z) - tl.where(rise, z, top)))
        total = tl.where(rise, total * step + 1.0, total + step)
        top = tl.where(rise, z, top)
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.where(top == highest, 1.0, tl.exp(top - highest)), 0)

    target = tl.load(target_ptr + b)
    inside = (target >= 0) & (target < V)
    at = tl.load(bias_ptr + target, mask=inside, other=float("nan"))
    for k in range(K):
        c = tl.load(context_ptr + b * K + k)
        x = tl.load(weight_ptr + c * stride_d + target * stride_v, mask=inside & (c >= 0) & (c < D), other=0)
        at += tl.where((c >= 0) & (c < D), x.to(accumulator) * tl.load(weights_ptr + k), 0.0)
    tl.store(loss_ptr + b, (highest - at) + tl.log(total))
    tl.store(top_ptr + b, highest)
    # an infinite top has no probabilities
    tl.store(share_ptr + b, tl.where(highest - highest == 0, 1.0 / total, float("nan")))


@triton.jit
def _gather_softmax_bwd_kernel(
    g_ptr,  # [B]
    weight_ptr, context_ptr, target_ptr, bias_ptr, weights_ptr,  # as of the forward
    top_ptr, share_ptr,  # [B]
    dweight_ptr, dbias_ptr, dweights_ptr,  # [D, V], [V], [K], in bias's dtype: added to, as far as needed
    B, D, V, K,
    stride_d, stride_v,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, WEIGHTS: tl.constexpr,
    BLOCK_V: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    groups = tl.cdiv(B, ROWS)
    v = (pid // groups).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    first = (pid % groups).to(tl.int64) * ROWS
    mask = v < V
    accumulator: tl.constexpr = bias_ptr.dtype.element_ty
    into_bias = tl.zeros([BLOCK_V], accumulator)
    for i in range(tl.minimum(ROWS, B - first).to(tl.int32)):
        b = first + i
        z = _logits(weight_ptr, context_ptr, bias_ptr, weights_ptr, b, v, mask, D, K, stride_d, stride_v)
        p = tl.exp(z - tl.load(top_ptr + b)) * tl.load(share_ptr + b)
        dz = (p - tl.where(v == tl.load(target_ptr + b), 1.0, 0.0)) * tl.load(g_ptr + b)
        dz = tl.where(mask, dz, 0.0)
        into_bias += dz
        if WEIGHT:
            for k in range(K):
                c = tl.load(context_ptr + b * K + k)
                named = mask & (c >= 0) & (c < D)
                tl.atomic_add(dweight_ptr + c * V + v, dz * tl.load(weights_ptr + k), mask=named, sem="relaxed")
        if WEIGHTS:
            for k in range(K):
                c = tl.load(context_ptr + b * K + k)
                named = mask & (c >= 0) & (c < D)
                x = tl.load(weight_ptr + c * stride_d + v * stride_v, mask=named, other=0).to(accumulator)
                # of −∞ too: as its probability falls, a logit's part p z falls to 0
                tl.atomic_add(dweights_ptr + k, tl.sum(tl.where(dz == 0, 0.0, dz * x), 0), sem="relaxed")
    if BIAS:
        tl.atomic_add(dbias_ptr + v, into_bias, mask=mask, sem="relaxed")


def _problem(weight: Tensor, contexts: Tensor) -> dict[str, int | str]:
    (B, K), (D, V) = contexts.shape, weight.shape
    return {"B": B, "K": K, "D": D, "V": V, "dtype": str(weight.dtype)}


def dense(weight: Tensor, contexts: Tensor, targets: Tensor, bias: Tensor, weights: Tensor):
    """Losses, top and share, as `by_torch.dense`; B is not 0."""
    contexts, targets, bias, weights = (
        contexts.contiguous(),
        targets.contiguous(),
        bias.contiguous(),
        weights.contiguous(),
    )
    (B, K), (D, V) = contexts.shape, weight.shape
    losses, top, share = bias.new_empty(B), bias.new_empty(B), bias.new_empty(B)
    config = FORWARD.config(_problem(weight, contexts), weight.device)
    _gather_softmax_fwd_kernel[(B,)](
        weight, contexts, targets, bias, weights, losses, top, share, D, V, K, *weight.stride(), **config
    )
    return losses, top, share


def dense_backward(g, weight, contexts, targets, bias, weights, top, share, needs_weight, needs_bias, needs_weights):
    """The gradients of weight, bias and weights, as `by_torch.dense_backward`, added up atomically, in any order.

    Under torch.use_deterministic_algorithms it is `by_torch.dense_backward`.
    """
    wanted = needs_weight, needs_bias, needs_weights
    if torch.are_deterministic_algorithms_enabled():
        return by_torch.dense_backward(g, weight, contexts, targets, bias, weights, top, share, *wanted)
    tensors = (x.contiguous() for x in (g, contexts, targets, bias, weights, top, share))
    g, contexts, targets, bias, weights, top, share = tensors
    (B, K), (D, V) = contexts.shape, weight.shape
    dweight, dbias, dweights = (
        torch.zeros(x.shape if needed else (0,), dtype=bias.dtype, device=bias.device)
        for x, needed in zip((weight, bias, weights), wanted, strict=True)
    )
    config = BACKWARD.config(_problem(weight, contexts), weight.device)
    _gather_softmax_bwd_kernel[(cdiv(B, config["ROWS"]) * cdiv(V, config["BLOCK_V"]),)](
        g, weight, contexts, targets, bias, weights, top, share, dweight, dbias, dweights, B, D, V, K,
        *weight.stride(), WEIGHT=needs_weight, BIAS=needs_bias, WEIGHTS=needs_weights, **config,
    )  # fmt: skip
    return dweight.to(weight.dtype), dbias, dweights
