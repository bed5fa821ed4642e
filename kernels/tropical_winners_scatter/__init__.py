"""The backward of a tropical matrix product: dA[m, k*] += dC[m, n], dB[k*, n] += dC[m, n], k* = winner[m, n].

Each output sends its gradient to its winner alone: O(MN) work and memory. For max_times each term is multiplied by the
other factor at the winner. As sparse tensors, without the zeros, `tropical_winners_grad` gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..mathematics.factors import check_winners
from ..runtime.dispatch import Gradient, Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.vmap import inner_batch, join_batch, leave_batch
from . import by_cpp, by_triton


def _scatter(
    dc: Tensor, winners: Tensor, a: Tensor | None, b: Tensor | None, K: int, semiring: str, needs_a: bool, needs_b: bool
) -> tuple[Tensor, Tensor]:
    """dc, winners [B, M, N] -> da [B, M, K] and db [B, K, N], or [0] where not needed; a and b for max_times alone.

    Winner −1 adds nothing. One outside [−1, K) raises IndexError before anything is written: on the CPU, and on a GPU
    inside torch.autograd.detect_anomaly(), as it costs a synchronisation; elsewhere it adds nothing either.
    """
    B, M, N = dc.shape
    if dc.numel() * K == 0:
        return dc.new_zeros((B, M, K) if needs_a else (0,)), dc.new_zeros((B, K, N) if needs_b else (0,))
    chosen = _SCATTERS.backend_of(dc)
    if chosen == "triton" and torch.are_deterministic_algorithms_enabled():
        chosen = "triton" if dc.dtype in by_triton.DETERMINISTIC_DTYPES else "torch"  # whose scatter_add then sorts
    if chosen != "cpp":
        check_winners("tropical_winners_scatter", winners, K)
    return _SCATTERS.functions[chosen](dc, winners, a, b, K, semiring, needs_a, needs_b)


def _scatter_plan(dc, winners, a, b, K, semiring, needs_a, needs_b) -> Plan:
    if (
        dc.numel() * K == 0
        or not (needs_a or needs_b)
        or not winners.is_contiguous()
        or _SCATTERS.backend_of(dc) != "cpp"
    ):
        return []
    return by_cpp.scatter_plan(dc, winners, a, b, K, semiring, needs_a, needs_b)


def _scatter_fake(dc, winners, a, b, K, semiring, needs_a, needs_b):
    B, M, N = dc.shape
    return dc.new_empty((B, M, K) if needs_a else (0,)), dc.new_empty((B, K, N) if needs_b else (0,))


def _scatter_mapped(info, dims, dc, winners, a, b, K, semiring, needs_a, needs_b):
    inner = inner_batch(dc, dims[0])
    tensors = join_batch((dc, winners, a, b), dims[:4], info.batch_size)
    results = tropical_winners_scatter.dispatched(*tensors, K, semiring, needs_a, needs_b)
    return leave_batch(results, (needs_a, needs_b), info.batch_size, inner)


def _scatter_gradient(grads, saved, sizes, needs, K, semiring, needs_a, needs_b) -> list[Tensor]:
    """(ddA, ddB) -> what flows to dC, and for max_times to A and B: gathers, in torch, differentiable again."""
    (dda, ddb), (dc, winners, a, b) = grads, saved
    nothing = torch.zeros_like(dc)
    via_a = via_b = nothing
    k = winners.clamp(min=0).long()
    if K and needs_a and dda is not None:
        via_a = dda.gather(-1, k).masked_fill(winners < 0, 0)
    if K and needs_b and ddb is not None:
        via_b = ddb.gather(-2, k).masked_fill(winners < 0, 0)
    if a is None:  # ⊗ is +: its derivatives are 1
        return [via_a + via_b] if needs[0] else []
    gradients = []
    if needs[0]:
        gradients.append(via_a * b.gather(-2, k) + via_b * a.gather(-1, k) if K else nothing)
    if needs[2]:
        gradients.append(torch.zeros_like(a).scatter_add(-1, k, dc * via_b) if K else torch.zeros_like(a))
    if needs[3]:
        gradients.append(torch.zeros_like(b).scatter_add(-2, k, dc * via_a) if K else torch.zeros_like(b))
    return gradients


def _scatter_by_torch(dc, winners, a, b, K, semiring, needs_a, needs_b):
    """By scatter_add over flat positions, the form that torch makes deterministic on request."""
    (B, M, N), dtype = dc.shape, dc.dtype
    lost = (winners < 0) | (winners >= K)
    k = winners.masked_fill(lost, 0).long()
    dc = dc.masked_fill(lost, 0)
    if dtype in (torch.float16, torch.bfloat16):
        dc = dc.float()
    da, db = dc.new_zeros((B, M, K) if needs_a else (0,)), dc.new_zeros((B, K, N) if needs_b else (0,))
    if needs_a:
        rows = torch.arange(B * M, device=dc.device).view(B, M, 1)
        da.view(-1).scatter_add_(0, (rows * K + k).flatten(), (dc if b is None else dc * b.gather(-2, k)).flatten())
    if needs_b:
        rows = torch.arange(B, device=dc.device).view(B, 1, 1) * K + k
        columns = torch.arange(N, device=dc.device)
        db.view(-1).scatter_add_(
            0, (rows * N + columns).flatten(), (dc if a is None else dc * a.gather(-1, k)).flatten()
        )
    return da.to(dtype), db.to(dtype)


_SCATTERS = Implementations(
    "tropical_winners_scatter",
    source=by_cpp.SOURCE,
    cpp=by_cpp.scatter,
    triton=by_triton.scatter,
    torch=_scatter_by_torch,
)
tropical_winners_scatter = operator(
    "tropical_winners_scatter(Tensor dc, Tensor winners, Tensor? a, Tensor? b, SymInt K, str semiring, bool needs_a, "
    "bool needs_b) -> (Tensor da, Tensor db)",
    _scatter,
    fake=_scatter_fake,
    vmap=_scatter_mapped,
    plan=_scatter_plan,
    gradient=Gradient(_scatter_gradient, inputs=(0, 1, 2, 3)),
)


@register_flop_formula(torch.ops.tropigrad.tropical_winners_scatter)
def _flops(dc: Sequence[int], winners, a, b, K, semiring, *needs, **named) -> int:
    """An addition for each output and each gradient that is asked for."""
    return sum(needs) * math.prod(dc)
