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
from torch.utils.flop_counter import register_flop_formula

from ..contract import qualification
from ..log_matmul import log_matmul
from ..mathematics.factors import (
    as_temperature,
    check_batches,
    check_factors,
    check_options,
    check_tensors,
    fit,
    under_autocast,
)
from ..mathematics.semiring import SELECTIVE, SEMIRINGS, semiring_zero, value_dtype, winner_dtype
from ..runtime import memory
from ..runtime.dispatch import Gradient, Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.sharded import is_sharded
from ..runtime.tracing import stand_ins
from ..runtime.vmap import mapped_first
from ..tropical_winners_scatter import tropical_winners_scatter
from . import by_cpp, by_gluon, by_triton, sharded
from .definition import tropical_matmul_ref

__all__ = ["SEMIRINGS", "TropicalMatmul", "tropical_matmul", "tropical_matmul_ref"]

# ------------------------------------------------------------------------------------------------ the product


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
    values, winners = _FORWARDS.of(a)(*_as_products(a, b), semiring, with_winners, ignore_nan)
    return values.view(shape), winners.view(shape) if with_winners else winners


def _plan(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> Plan:
    check_tensors("tropical_matmul", a=a, b=b)
    if a.numel() * b.numel() == 0 or _FORWARDS.backend_of(a) != "cpp":
        return []
    products = _as_products(a, b)
    if any(x.data_ptr() != y.data_ptr() for x, y in zip((a, b), products, strict=True)):
        return []  # a copy had to be made
    return by_cpp.forward_plan(*products, semiring, with_winners, ignore_nan, (*a.shape[:-1], b.shape[-1]))


def _fake(a, b, semiring, with_winners, ignore_nan):
    shape = (*a.shape[:-1], b.shape[-1])
    winners = a.new_empty(shape if with_winners else (0,), dtype=winner_dtype(a.shape[-1]))
    return a.new_empty(shape, dtype=value_dtype(a.dtype)), winners


def _mapped(info, dims, a, b, semiring, with_winners, ignore_nan):
    size = info.batch_size
    a = mapped_first(a, dims[0], size)
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
    gradients = tropical_winners_scatter(dc.reshape(shape), winners.reshape(shape), a, b, K, semiring, *needs)
    wanted = zip(gradients, (a_shape, b_shape), needs, strict=True)
    return [gradient.reshape(shape) for gradient, shape, needed in wanted if needed]


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


_FORWARDS = Implementations(
    "tropical_matmul",
    source=by_cpp.SOURCE,
    dtypes={"gluon": by_gluon.DTYPES},
    gluon_serves=qualification.gluon_serves,
    cpp=by_cpp.forward,
    gluon=by_gluon.forward,
    triton=by_triton.forward,
    torch=_forward_in_chunks,
)

# ------------------------------------------------------------------------------------------------ operators

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


@register_flop_formula(torch.ops.tropigrad.tropical_matmul)
def _flops(a: Sequence[int], b: Sequence[int], *options, **named) -> int:
    """A sum, or a product, and a comparison for each step of the definition, as FlopCounterMode asks: 2 M N K."""
    return 2 * math.prod(torch.broadcast_shapes(a[:-2], b[:-2])) * a[-2] * a[-1] * b[-1]


# ------------------------------------------------------------------------------------------------ public


class TropicalMatmul(NamedTuple):
    """The result of `tropical_matmul(..., return_indices=True)`, named as that of torch.max."""

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
        Of DTensors it is a DTensor, of the bits of one process: shards of the batch, of M and of N stay where they are,
        and those of K are reduced to the first best (value, k), a gradient that cannot be differentiated again. Shards
        of K are gathered for log.

    Raises:
        TypeError: a or b is no strided tensor of a supported dtype, their dtypes differ, out_dtype is not wider, or the
            temperature is no number, or requires a gradient; or one is a DTensor and the other is not.
        ValueError: devices, meshes, ranks, sizes or batch shapes do not fit, K is beyond 2³¹, an option is not one of
            those above, the temperature is not positive and finite, or winners are asked of the log semiring, which has
            none.
    """
    if type(temperature) is not float:
        temperature = as_temperature("tropical_matmul", temperature)
    if semiring == "log" or not fit(a, b, 2):
        if proxies := stand_ins(a, b):  # as `traceable` does, whose frame would cost a small call a twentieth
            options = {"semiring": semiring, "temperature": temperature, "return_indices": return_indices}
            return handle_torch_function(tropical_matmul, proxies, a, b, **options, nan=nan, out_dtype=out_dtype)
        if is_sharded(a, b):
            options = {"semiring": semiring, "temperature": temperature, "nan": nan, "out_dtype": out_dtype}
            return sharded.product(tropical_matmul, _gradient, a, b, return_indices=return_indices, **options)
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
