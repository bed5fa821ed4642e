"""The log semiring: C[m, n] = T log Σ_k exp((A[m, k] + B[k, n]) / T), the smooth maximum.

Backward spreads dC[m, n] over all k by its softmax weight w[m, k, n] = exp((A[m, k] + B[k, n] − C[m, n]) / T):
dA[m, k] = Σ_n dC[m, n] w[m, k, n], dB[k, n] = Σ_m dC[m, n] w[m, k, n]: O(MNK) work, O(MN + MK + KN) memory.

C is rounded, and exp((x − C) / T) is then off by a factor that grows with C's last bit over T. So backward reads two
parts of C instead: the largest candidate, top, which is exact, and share = 1 / Σ exp((x − top) / T), the weight of a
candidate that equals top. Then w = share · exp((x − top) / T), and Σ_k w = 1 but for its own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..runtime.dispatch import Gradient, Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.vmap import inner_batch, join_batch, leave_batch
from . import by_cpp, by_torch, by_triton
from .definition import accumulator, chunks, parts_of, weights

# ------------------------------------------------------------------------------------------------ the product

_NAME = "tropical_matmul(semiring='log')"
_FORWARDS = Implementations(
    _NAME, source=by_cpp.SOURCE, cpp=by_cpp.forward, triton=by_triton.forward, torch=by_torch.forward
)
_BACKWARDS = Implementations(
    _NAME, source=by_cpp.SOURCE, cpp=by_cpp.backward, triton=by_triton.backward, torch=by_torch.backward
)


def _forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    """a [B, M, K], b [B, K, N] -> C, and for the backward top and share, [B, M, N] each; these [0] where not kept."""
    (B, M, K), N = a.shape, b.shape[-1]
    if B * M * N * K == 0:
        top, share = parts_of(a, b, keeps)
        return a.new_full((B, M, N), float("-inf")), top.fill_(float("-inf")), share.zero_()
    return _FORWARDS.of(a)(a, b, temperature, ignore_nan, keeps)


def _plan(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool) -> Plan:
    if a.numel() * b.numel() == 0 or _FORWARDS.backend_of(a) != "cpp":
        return []
    return by_cpp.forward_plan(a, b, ignore_nan, keeps)


def _fake(a, b, temperature, ignore_nan, keeps):
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2]), *parts_of(a, b, keeps)


def _mapped(info, dims, a, b, temperature, ignore_nan, keeps):
    inner = inner_batch(a, dims[0])
    a, b = join_batch((a, b), dims[:2], info.batch_size)
    results = _LOG_MATMUL.dispatched(a, b, temperature, ignore_nan, keeps)
    return leave_batch(results, (True, keeps, keeps), info.batch_size, inner)


def _gradient(grads, saved, sizes, needs, temperature, ignore_nan, keeps) -> list[Tensor]:
    """dC -> dA and dB, as far as they are needed, by C's parts."""
    (dc,), (a, b, top, share) = grads, saved
    gradients = _LOG_BACKWARD(dc, top, share, a, b, temperature, ignore_nan, *needs)
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


# ------------------------------------------------------------------------------------------------ its gradient


def _backward(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    """dc, top, share [B, M, N] -> da [B, M, K], db [B, K, N], or [0] where not needed."""
    if dc.numel() * a.shape[-1] == 0:
        return a.new_zeros(a.shape if needs_a else (0,)), b.new_zeros(b.shape if needs_b else (0,))
    return _BACKWARDS.of(a)(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b)


def _backward_plan(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b) -> Plan:
    if dc.numel() * a.shape[-1] == 0 or _BACKWARDS.backend_of(a) != "cpp":
        return []
    if not (top.is_contiguous() and share.is_contiguous()):
        return []
    return by_cpp.backward_plan(dc, a, b, ignore_nan, (needs_a, needs_b))


def _backward_fake(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    return a.new_empty(a.shape if needs_a else (0,)), b.new_empty(b.shape if needs_b else (0,))


def _backward_mapped(info, dims, dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    inner = inner_batch(dc, dims[0])
    tensors = join_batch((dc, top, share, a, b), dims[:5], info.batch_size)
    results = _LOG_BACKWARD.dispatched(*tensors, temperature, ignore_nan, needs_a, needs_b)
    return leave_batch(results, (needs_a, needs_b), info.batch_size, inner)


def _second_gradient(grads, saved, sizes, needs, temperature, ignore_nan, needs_a, needs_b) -> list[Tensor]:
    """(ddA, ddB) -> what flows to dC, A and B: plain torch, in chunks, of A and B alone: differentiable again."""
    (dda, ddb), (dc, a, b) = grads, saved
    if dc.numel() * a.shape[-1] == 0:
        return [torch.zeros_like(x) for x, needed in zip((dc, dc, dc, a, b), needs, strict=True) if needed]
    wide = accumulator(a.dtype)
    to_dc, to_a, to_b = [], [], torch.zeros_like(b, dtype=wide)
    for rows in chunks(a, b):
        w = weights(_rows(a, rows), b, temperature, ignore_nan)  # [B, rows, K, N]
        slope = torch.zeros_like(w)
        if needs_a and dda is not None:
            slope = slope + _rows(dda, rows).unsqueeze(-1)
        if needs_b and ddb is not None:
            slope = slope + ddb.unsqueeze(-3)
        mean = (w * slope).sum(-2)
        # ∂w_k/∂x_j = w_k (δ_kj − w_j) / T
        dx = w * (slope - mean.unsqueeze(-2)) * (_rows(dc, rows).to(wide) / temperature).unsqueeze(-2)
        to_dc.append(mean)
        to_a.append(dx.sum(-1))
        to_b = to_b + dx.sum(-3)
    to_dc, to_a = (torch.cat(x, 1) if len(x) > 1 else x[0] for x in (to_dc, to_a))
    nothing = torch.zeros_like(dc)  # flows to C's parts, which A and B give anew
    gradients = to_dc.to(dc.dtype), nothing, nothing, to_a.to(a.dtype), to_b.to(b.dtype)
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _rows(x: Tensor, rows: slice) -> Tensor:
    """Not a slice where it would be all of x: torch.autograd's vectorized Hessians know no such view."""
    return x if rows.start == 0 and rows.stop >= x.shape[1] else x[:, rows]


# ------------------------------------------------------------------------------------------------ operators

_LOG_BACKWARD = operator(
    "log_matmul_backward(Tensor dc, Tensor top, Tensor share, Tensor a, Tensor b, float temperature, bool ignore_nan, "
    "bool needs_a, bool needs_b) -> (Tensor da, Tensor db)",
    _backward,
    fake=_backward_fake,
    vmap=_backward_mapped,
    plan=_backward_plan,
    gradient=Gradient(_second_gradient, inputs=(0, 3, 4)),
)
_LOG_MATMUL = operator(
    "log_matmul(Tensor a, Tensor b, float temperature, bool ignore_nan, bool keeps) "
    "-> (Tensor c, Tensor top, Tensor share)",
    _forward,
    fake=_fake,
    vmap=_mapped,
    plan=_plan,
    gradient=Gradient(_gradient, inputs=(0, 1), outputs=(1, 2), detached=(1, 2), flag=4),
)


@register_flop_formula(torch.ops.tropigrad.log_matmul)
def _flops(a: Sequence[int], b: Sequence[int], *options, **named) -> int:
    """Two for each step, as of the other semirings; exponentials are not counted, as torch counts none."""
    return 2 * math.prod(a) * b[-1]


@register_flop_formula(torch.ops.tropigrad.log_matmul_backward)
def _backward_flops(dc, top, share, a: Sequence[int], b: Sequence[int], *options, **named) -> int:
    """The forward's count, for each gradient that is asked for."""
    return sum(options[-2:]) * 2 * math.prod(a) * b[-1]


def log_matmul(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """a [B, M, K], b [B, K, N] -> C [B, M, N], differentiable in a and b any number of times."""
    return _LOG_MATMUL(a, b, temperature, ignore_nan, False)[0]
