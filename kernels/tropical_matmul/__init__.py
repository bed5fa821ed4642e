"""Tropical matrix product: C[m, n] = max_k A[m, k] + B[k, n], and its kin with min, with ·, and smoothed.

Backward routes dC[m, n] to the winner k*(m, n): dA[m, k*] += dC[m, n], dB[k*, n] += dC[m, n]: O(MN) work and memory.
Ties: smallest k. NaN: the first one wins, as in torch.max.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .. import backend, memory
from ..dispatch import Gradient, Plan, operator
from ..tracing import stand_ins
from ..vmap import inner_batch, join_batch, leave_batch
from . import cpu, gluon, portable, scatter
from .arguments import (
    as_temperature,
    check_batches,
    check_factors,
    check_options,
    check_tensors,
    check_winners,
    fit,
    under_autocast,
)
from .definition import SELECTIVE, SEMIRINGS, semiring_zero, tropical_matmul_ref, value_dtype, winner_dtype
from .log import log_matmul

__all__ = ["SEMIRINGS", "TropicalMatmul", "tropical_matmul", "tropical_matmul_ref"]

# ------------------------------------------------------------------------------------------------ the product

_SCATTERS = ("cpp", "triton", "torch")
_FORWARDS = ("cpp", "gluon", "triton", "torch")


def _as_products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a [..., M, K] and b [..., K, N] of the same batch, or b [K, N] for all of it -> [B, M, K], [B, K, N]."""
    if b.dim() > 2:
        return a.flatten(0, -3), b.flatten(0, -3)
    return (a.flatten(0, -2) if a.dim() > 2 else a).unsqueeze(0), b.unsqueeze(0)  # a's batch is more rows


def _forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [..., M, K], b [..., K, N] or [K, N] -> values and winners [..., M, N] (definition.py has their dtypes).

    Winners that were not asked for are [0].
    """
    if a.device.type == "cpu":
        check_tensors("tropical_matmul", a=a, b=b)
    shape, K = (*a.shape[:-1], b.shape[-1]), a.shape[-1]
    if a.numel() * b.numel() == 0:  # nothing to launch: no output, or K = 0, where every output is the semiring's zero
        dtype = value_dtype(a.dtype)
        values = a.new_full(shape, semiring_zero(semiring, dtype), dtype=dtype)
        return values, torch.full(shape if with_winners else (0,), -1, dtype=winner_dtype(K), device=a.device)
    forward = {
        "cpp": cpu.forward,
        "gluon": gluon.forward,
        "triton": portable.forward,
        "torch": _forward_in_chunks,
    }
    values, winners = forward[_forward_of(a)](*_as_products(a, b), semiring, with_winners, ignore_nan)
    return values.view(shape), winners.view(shape) if with_winners else winners


def _plan(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> Plan:
    check_tensors("tropical_matmul", a=a, b=b)
    if a.numel() * b.numel() == 0 or _forward_of(a) != "cpp":
        return []
    products = _as_products(a, b)
    if any(x.data_ptr() != y.data_ptr() for x, y in zip((a, b), products, strict=True)):
        return []  # a copy had to be made
    return cpu.forward_plan(*products, semiring, with_winners, ignore_nan, (*a.shape[:-1], b.shape[-1]))


def _forward_of(a: Tensor) -> str:
    offered = tuple(name for name in _FORWARDS if name != "gluon" or a.dtype in gluon.DTYPES)
    return backend.choose("tropical_matmul", a.device, offered, a.dtype, cpu.SOURCE)


def _fake(a, b, semiring, with_winners, ignore_nan):
    shape = (*a.shape[:-1], b.shape[-1])
    winners = a.new_empty(shape if with_winners else (0,), dtype=winner_dtype(a.shape[-1]))
    return a.new_empty(shape, dtype=value_dtype(a.dtype)), winners


def _mapped(info, dims, a, b, semiring, with_winners, ignore_nan):
    size = info.batch_size
    a = a.expand(size, *a.shape) if dims[0] is None else a.movedim(dims[0], 0)
    if dims[1] is not None:
        b = b.movedim(dims[1], 0)
        if b.dim() < a.dim():  # one right factor for the whole batch of each
            b = b.reshape(size, *[1] * (a.dim() - b.dim()), *b.shape[1:])
    if b.dim() > 2:
        b = b.expand(*a.shape[:-2], *b.shape[-2:])
    return _MATMUL.dispatched(a, b, semiring, with_winners, ignore_nan), (0, 0 if with_winners else None)


def _gradient(
    grads: Sequence[Tensor],
    saved: Sequence[Tensor],
    sizes: Sequence[int],
    needs: Sequence[bool],
    semiring: str,
    with_winners: bool,
    ignore_nan: bool,
) -> list[Tensor]:
    """dC -> dA and dB, as far as they are needed: each output's gradient goes to its winner."""
    (dc,), (*factors, winners) = grads, saved
    if memory.is_negation(dc):  # with which torch's own way fails where a and b are None
        dc = dc.resolve_neg()
    rank = winners.dim()
    a_shape, b_shape = sizes[:rank], sizes[rank:]
    K = a_shape[-1]
    a, b = _as_products(*factors) if factors else (None, None)
    *batch, M, N = winners.shape
    shape = (1, math.prod(batch) * M, N) if len(b_shape) == 2 else (math.prod(batch), M, N)
    found = _SCATTER(dc.reshape(shape), winners.reshape(shape), a, b, K, semiring, *needs)
    wanted = zip(found, (a_shape, b_shape), needs, strict=True)
    return [gradient.reshape(shape) for gradient, shape, needed in wanted if needed]


# ------------------------------------------------------------------------------------------------ its gradient


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
    chosen = _scatter_of(dc)
    if chosen == "triton" and torch.are_deterministic_algorithms_enabled():
        chosen = "triton" if dc.dtype in scatter.DETERMINISTIC_DTYPES else "torch"  # whose scatter_add then sorts
    if chosen != "cpp":
        check_winners("tropical_winners_scatter", winners, K)
    add = {"cpp": cpu.scatter, "triton": scatter.scatter, "torch": _scatter_by_torch}
    return add[chosen](dc, winners, a, b, K, semiring, needs_a, needs_b)


def _scatter_plan(dc, winners, a, b, K, semiring, needs_a, needs_b) -> Plan:
    if dc.numel() * K == 0 or not (needs_a or needs_b) or not winners.is_contiguous() or _scatter_of(dc) != "cpp":
        return []
    return cpu.scatter_plan(dc, winners, a, b, K, semiring, needs_a, needs_b)


def _scatter_of(dc: Tensor) -> str:
    return backend.choose("tropical_winners_scatter", dc.device, _SCATTERS, dc.dtype, cpu.SOURCE)


def _scatter_fake(dc, winners, a, b, K, semiring, needs_a, needs_b):
    B, M, N = dc.shape
    return dc.new_empty((B, M, K) if needs_a else (0,)), dc.new_empty((B, K, N) if needs_b else (0,))


def _scatter_mapped(info, dims, dc, winners, a, b, K, semiring, needs_a, needs_b):
    inner = inner_batch(dc, dims[0])
    tensors = join_batch((dc, winners, a, b), dims[:4], info.batch_size)
    results = _SCATTER.dispatched(*tensors, K, semiring, needs_a, needs_b)
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
    found = []
    if needs[0]:
        found.append(via_a * b.gather(-2, k) + via_b * a.gather(-1, k) if K else nothing)
    if needs[2]:
        found.append(torch.zeros_like(a).scatter_add(-1, k, dc * via_b) if K else torch.zeros_like(a))
    if needs[3]:
        found.append(torch.zeros_like(b).scatter_add(-2, k, dc * via_a) if K else torch.zeros_like(b))
    return found


def _forward_in_chunks(a, b, semiring, with_winners, ignore_nan):
    """The definition, on as many rows at a time as keep the candidates [rows, K, N] near 2 M elements."""
    (B, M, K), N = a.shape, b.shape[-1]
    nan = "ignore" if ignore_nan else "propagate"
    values = a.new_empty((B, M, N), dtype=value_dtype(a.dtype))
    winners = torch.empty((B, M, N) if with_winners else (0,), dtype=winner_dtype(K), device=a.device)
    rows = max(1, (1 << 21) // (K * N))
    for i in range(B):
        for m in range(0, M, rows):
            chunk = slice(m, m + rows)
            values[i, chunk], indices = tropical_matmul_ref(a[i, chunk], b[i], semiring=semiring, nan=nan)
            if with_winners:
                winners[i, chunk] = indices
    return values, winners


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


# ------------------------------------------------------------------------------------------------ operators

_SCATTER = operator(
    "tropical_winners_scatter(Tensor dc, Tensor winners, Tensor? a, Tensor? b, SymInt K, str semiring, bool needs_a, "
    "bool needs_b) -> (Tensor da, Tensor db)",
    _scatter,
    fake=_scatter_fake,
    vmap=_scatter_mapped,
    plan=_scatter_plan,
    gradient=Gradient(_scatter_gradient, inputs=(0, 1, 2, 3)),
)
# the gradient of a sum needs the winners alone; that of a product its factors too
_MATMUL = operator(
    "tropical_matmul(Tensor a, Tensor b, str semiring, bool with_winners, bool ignore_nan) "
    "-> (Tensor values, Tensor winners)",
    _forward,
    fake=_fake,
    vmap=_mapped,
    plan=_plan,
    gradient=Gradient(_gradient, conditional=(0, 1), asked=2, answer="max_times", outputs=(1,), flag=3),
)

# ------------------------------------------------------------------------------------------------ public


class TropicalMatmul(NamedTuple):
    """What `tropical_matmul(..., return_indices=True)` returns, as torch.max does."""

    values: Tensor
    indices: Tensor


@overload
def tropical_matmul(
    a: Tensor,
    b: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: Literal[False] = False,
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> Tensor: ...
@overload
def tropical_matmul(
    a: Tensor,
    b: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: Literal[True],
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> TropicalMatmul: ...
def tropical_matmul(
    a: Tensor,
    b: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: bool = False,
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> Tensor | TropicalMatmul:
    """Tropical matrix product, batched and broadcast like torch.matmul: C[m, n] = max_k A[m, k] + B[k, n].

    | semiring    | C[m, n]                                 | of no candidate (K = 0) |
    |-------------|-----------------------------------------|-------------------------|
    | "max_plus"  | max_k A[m, k] + B[k, n]                 | −∞                      |
    | "min_plus"  | min_k A[m, k] + B[k, n]                 | +∞                      |
    | "max_times" | max_k A[m, k] · B[k, n]                 | 0                       |
    | "log"       | T log Σ_k exp((A[m, k] + B[k, n]) / T)  | −∞                      |

    The first three are exact: each candidate is rounded to the dtype, then compared, so every backend gives the same
    values and winners (the sign of a zero and a NaN's payload aside). Ties go to the smallest k, in the gradient too:
    a subgradient that routes all of dC[m, n] to one winner. Integer candidates saturate at the dtype's bounds, which
    stand for ∓∞. No [M, K, N] tensor is ever held. Source: Maragos, Charisopoulos, Theodosis, "Tropical Geometry and
    Machine Learning", Proceedings of the IEEE, 2021.

    Args:
        a: [..., M, K] float64, float32, float16, bfloat16, int32, int16 or int8, any strides.
        b: [..., K, N], the dtype and device of a; batch dimensions broadcast.
        semiring: one of the four above.
        temperature: T > 0 of the log semiring, in the units of a and b; the others ignore it. A number, or a tensor of
            no dimensions, whose value is read: it has no gradient here.
        return_indices: also return the winners k*(m, n).
        nan: "propagate": the first NaN candidate wins, as in torch.max; ∞ − ∞ and 0 · ∞ are NaN. "ignore": NaN
            candidates are skipped; where all are, the value is that of no candidate.
        out_dtype: a wider dtype to compute and return in, of the same kind; by default that of a, and int32 for int8.

    Returns:
        C [..., M, N]; with return_indices a named tuple (values, indices), indices int64, −1 where there was no
        candidate. Differentiable any number of times in reverse mode; forward mode raises NotImplementedError. Under
        autocast nothing is cast down; factors of two float dtypes meet in the wider, and log computes in float32.

    Raises:
        TypeError: a or b is no strided tensor of a supported dtype, their dtypes differ, out_dtype is not wider, or the
            temperature is no number, or requires a gradient.
        ValueError: devices, ranks, sizes or batch shapes do not fit, K is beyond 2³¹, an option is not one of those
            above, the temperature is not positive and finite, or winners are asked of the log semiring, which has none.
    """
    if type(temperature) is not float:
        temperature = as_temperature("tropical_matmul", temperature)
    if semiring == "log" or not fit(a, b, 2):
        if proxies := stand_ins(a, b):  # as `traceable` does, whose frame would cost a small call a twentieth
            options = {"semiring": semiring, "temperature": temperature, "return_indices": return_indices}
            return handle_torch_function(tropical_matmul, proxies, a, b, **options, nan=nan, out_dtype=out_dtype)
        a, b = under_autocast(a, b, semiring)
        check_factors("tropical_matmul", a, b, "b", 2, "[..., K, N]")
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"tropical_matmul: b has shape {tuple(b.shape)}; "
                f"expected [..., {a.shape[-1]}, N], to follow a's {tuple(a.shape)}"
            )
        if b.dim() > 2 and a.shape[:-2] != b.shape[:-2]:
            check_batches("tropical_matmul", a.shape[:-2], b.shape[:-2], "b")
            batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            a, b = (x.expand(*batch, *x.shape[-2:]) for x in (a, b))
    if semiring not in SELECTIVE or temperature != 1.0 or nan != "propagate" or out_dtype is not None:
        check_options("tropical_matmul", a.dtype, semiring, temperature, return_indices, nan, out_dtype)
    if out_dtype is not None and out_dtype != value_dtype(a.dtype):
        a, b = a.to(out_dtype), b.to(out_dtype)
    ignore_nan = nan == "ignore"
    if semiring == "log":
        values = log_matmul(*_as_products(a, b), temperature, ignore_nan)
        return values.reshape(*a.shape[:-1], b.shape[-1])
    values, winners = _MATMUL.call(a, b, semiring, return_indices, ignore_nan)
    return TropicalMatmul(values, winners.long()) if return_indices else values
