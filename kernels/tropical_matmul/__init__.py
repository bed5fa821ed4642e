"""Tropical matrix product: C[m, n] = max_k A[m, k] + B[k, n], and its kin with min, with ·, and smoothed.

Backward routes dC[m, n] to the winner k*(m, n): dA[m, k*] += dC[m, n], dB[k*, n] += dC[m, n]: O(MN) work and memory.
Ties: smallest k. NaN: the first one wins, as in torch.max.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import backend, eager
from ..vmap import inner_batch, join_batch, leave_batch
from . import cpu, gluon, portable, scatter
from .arguments import as_temperature, check_batches, check_factors, check_options, check_winners, under_autocast
from .definition import SEMIRINGS, semiring_zero, tropical_matmul_ref, value_dtype, winner_dtype
from .log import log_matmul

__all__ = ["SEMIRINGS", "TropicalMatmul", "tropical_matmul", "tropical_matmul_ref"]

# ------------------------------------------------------------------------------------------------ operators

_SCATTERS = ("cpp", "triton", "torch")
_FORWARDS = ("cpp", "gluon", "triton", "torch")

# Plain Library operators: a fraction of a custom_op's dispatch time, and as opaque to Inductor.
torch.library.define(
    "tropigrad::tropical_matmul",
    "(Tensor a, Tensor b, str semiring, bool with_winners, bool ignore_nan) -> (Tensor values, Tensor winners)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "tropigrad::tropical_winners_scatter",
    "(Tensor dc, Tensor winners, Tensor? a, Tensor? b, SymInt K, str semiring, bool needs_a, bool needs_b)"
    " -> (Tensor da, Tensor db)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] -> values and winners [B, M, N] (see definition.py for dtypes); winners [0] unasked."""
    (B, M, K), N = a.shape, b.shape[-1]
    if B * M * N * K == 0:  # nothing to launch: no output, or K = 0, where every output is the semiring's zero
        dtype = value_dtype(a.dtype)
        values = a.new_full((B, M, N), semiring_zero(semiring, dtype), dtype=dtype)
        return values, torch.full((B, M, N) if with_winners else (0,), -1, dtype=winner_dtype(K), device=a.device)
    forward = {
        "cpp": cpu.forward,
        "gluon": gluon.forward,
        "triton": portable.forward,
        "torch": _forward_in_chunks,
    }
    return forward[_forward_of(a)](a, b, semiring, with_winners, ignore_nan)


def _forward_of(a: Tensor) -> str:
    offered = tuple(name for name in _FORWARDS if name != "gluon" or a.dtype in gluon.DTYPES)
    return backend.choose("tropical_matmul", a.device, offered, a.dtype, cpu.SOURCE)


torch.library.impl("tropigrad::tropical_matmul", backend.DEVICES, _forward)


@torch.library.register_fake("tropigrad::tropical_matmul")
def _(a, b, semiring, with_winners, ignore_nan):
    shape = (a.shape[0], a.shape[1], b.shape[2])
    winners = a.new_empty(shape if with_winners else (0,), dtype=winner_dtype(a.shape[2]))
    return a.new_empty(shape, dtype=value_dtype(a.dtype)), winners


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
    chosen = backend.choose("tropical_winners_scatter", dc.device, _SCATTERS, dc.dtype, cpu.SOURCE)
    if chosen == "triton" and torch.are_deterministic_algorithms_enabled():
        chosen = "triton" if dc.dtype in scatter.DETERMINISTIC_DTYPES else "torch"  # whose scatter_add then sorts
    if chosen != "cpp":
        check_winners("tropical_winners_scatter", winners, K)
    add = {"cpp": cpu.scatter, "triton": scatter.scatter, "torch": _scatter_by_torch}
    return add[chosen](dc, winners, a, b, K, semiring, needs_a, needs_b)


torch.library.impl("tropigrad::tropical_winners_scatter", backend.DEVICES, _scatter)


@torch.library.register_fake("tropigrad::tropical_winners_scatter")
def _(dc, winners, a, b, K, semiring, needs_a, needs_b):
    B, M, N = dc.shape
    return dc.new_empty((B, M, K) if needs_a else (0,)), dc.new_empty((B, K, N) if needs_b else (0,))


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


@torch.library.register_vmap("tropigrad::tropical_matmul")  # pyright: ignore[reportOptionalCall]
def _(info, dims, a, b, semiring, with_winners, ignore_nan):
    inner = inner_batch(a, dims[0])
    a, b = join_batch((a, b), dims[:2], info.batch_size)
    results = torch.ops.tropigrad.tropical_matmul(a, b, semiring, with_winners, ignore_nan)
    return leave_batch(results, (True, with_winners), info.batch_size, inner)


@torch.library.register_vmap("tropigrad::tropical_winners_scatter")  # pyright: ignore[reportOptionalCall]
def _(info, dims, dc, winners, a, b, K, semiring, needs_a, needs_b):
    inner = inner_batch(dc, dims[0])
    tensors = join_batch((dc, winners, a, b), dims[:4], info.batch_size)
    results = torch.ops.tropigrad.tropical_winners_scatter(*tensors, K, semiring, needs_a, needs_b)
    return leave_batch(results, (needs_a, needs_b), info.batch_size, inner)


# ------------------------------------------------------------------------------------------------ autograd


class _WinnersScatter(torch.autograd.Function):
    """dC -> (dA, dB), linear in dC; its own backward gathers, in torch, and so can be differentiated again.

    No jvp on purpose, here and below: forward-mode AD raises NotImplementedError instead of a silent zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(dc, winners, a, b, K, semiring, needs_a, needs_b):
        return torch.ops.tropigrad.tropical_winners_scatter(dc, winners, a, b, K, semiring, needs_a, needs_b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dc, winners, a, b, ctx.K, _, ctx.needs_a, ctx.needs_b = inputs
        ctx.save_for_backward(dc, winners, a, b)

    @staticmethod
    def backward(ctx, dda, ddb):
        dc, winners, a, b = ctx.saved_tensors
        if ctx.K == 0:
            return (torch.zeros_like(dc), *[None] * 7)
        k = winners.clamp(min=0).long()
        nothing = torch.zeros_like(dc)
        via_a = dda.gather(-1, k).masked_fill(winners < 0, 0) if ctx.needs_a else nothing
        via_b = ddb.gather(-2, k).masked_fill(winners < 0, 0) if ctx.needs_b else nothing
        if a is None:  # ⊗ is +: its derivatives are 1
            return (via_a + via_b, *[None] * 7)
        ddc = via_a * b.gather(-2, k) + via_b * a.gather(-1, k)
        to_a = torch.zeros_like(a).scatter_add(-1, k, dc * via_b)
        to_b = torch.zeros_like(b).scatter_add(-2, k, dc * via_a)
        return (ddc, None, to_a, to_b, *[None] * 4)


class _TropicalMatmul(torch.autograd.Function):
    """(a, b) -> (C, winners), linear in neither; its backward is `_WinnersScatter`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b, semiring, with_winners, ignore_nan):
        return torch.ops.tropigrad.tropical_matmul(a, b, semiring, with_winners, ignore_nan)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, ctx.semiring, ctx.with_winners, ctx.ignore_nan = inputs
        winners = output[1]
        ctx.mark_non_differentiable(winners)
        ctx.K = a.shape[-1]
        # the sum's gradient needs the winners alone; a · b needs the factors too
        keeps_factors = ctx.semiring == "max_times" or not ctx.with_winners
        ctx.save_for_backward(*((a, b) if keeps_factors else (None, None)), winners)

    @staticmethod
    def backward(ctx, dc, _):
        a, b, winners = ctx.saved_tensors
        if not ctx.with_winners:  # inside a transform such as vmap an input does not show that it requires a gradient
            winners = torch.ops.tropigrad.tropical_matmul(a, b, ctx.semiring, True, ctx.ignore_nan)[1]
        if ctx.semiring != "max_times":
            a = b = None
        needs_a, needs_b = ctx.needs_input_grad[:2]
        add = eager.route(_WinnersScatter, _scatter, *(x for x in (dc, winners, a, b) if x is not None))
        da, db = add(dc, winners, a, b, ctx.K, ctx.semiring, needs_a, needs_b)
        return da if needs_a else None, db if needs_b else None, None, None, None


# ------------------------------------------------------------------------------------------------ calls seen before


class _Again(torch.autograd.Function):
    """`_TropicalMatmul` where nobody looks, of a call made before: (a, b) in shapes of their own -> C."""

    @staticmethod
    def forward(ctx, a, b, run, layout):
        values, winners = run(a, b)
        ctx.layout = layout
        if layout[0] == "max_times":
            ctx.save_for_backward(winners, a, b)
        else:
            ctx.save_for_backward(winners)
        return values

    @staticmethod
    def backward(ctx, dc):
        semiring, (B, M, K, N), a_shape, b_shape = ctx.layout
        winners, *factors = ctx.saved_tensors
        a, b = (factors[0].reshape(B, M, K), factors[1].reshape(B, K, N)) if factors else (None, None)
        needs_a, needs_b = ctx.needs_input_grad[:2]
        dc, winners = dc.reshape(B, M, N), winners.view(B, M, N)
        add = eager.route(_WinnersScatter, _scatter, dc, winners)
        da, db = add(dc, winners, a, b, K, semiring, needs_a, needs_b)
        return da.reshape(a_shape) if needs_a else None, db.reshape(b_shape) if needs_b else None, None, None


def _remember(
    options: tuple[Hashable, ...],
    given: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor],
    shape: tuple[int, ...],
    semiring: str,
    with_winners: bool,
    ignore_nan: bool,
    return_indices: bool,
) -> None:
    """Has the next call like this go straight to the C++ kernel, if that serves it and the factors are mere views.

    given: a and b as the caller has them. factors: the same as [B, M, K] and [B, K, N]. shape: of the result.
    """
    a, b = factors
    views = all(x.data_ptr() == y.data_ptr() and x.numel() == y.numel() for x, y in zip(given, factors, strict=True))
    trains = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if (
        not (views and given[0].dtype == a.dtype)
        or a.numel() * b.numel() == 0
        or (trains and return_indices)
        or _forward_of(a) != "cpp"
    ):
        return
    run, finds_winners = cpu.prepare(a, b, semiring, with_winners, ignore_nan, shape)
    layout = semiring, (*a.shape, b.shape[2]), *(x.shape for x in given)

    def training(a, b):
        return _Again.apply(a, b, run, layout)

    def values_and_indices(a, b):
        values, winners = run(a, b)
        return TropicalMatmul(values, winners.long())

    def values_alone(a, b):
        return run(a, b)[0]

    call = training if trains else values_and_indices if return_indices else values_alone if finds_winners else run
    eager.remember(call, options, given)


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
    options = "tropical_matmul", semiring, temperature, return_indices, nan, out_dtype
    known = eager.recall(options, (a, b))
    if known:
        try:
            return known(a, b)
        except eager.NotPlain:
            known = False
    a, b = under_autocast(a, b, semiring)
    check_factors("tropical_matmul", a, b, "b", 2, "[..., K, N]")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"tropical_matmul: b has shape {tuple(b.shape)}; "
            f"expected [..., {a.shape[-1]}, N], to follow a's {tuple(a.shape)}"
        )
    check_batches("tropical_matmul", a.shape[:-2], b.shape[:-2], "b")
    check_options("tropical_matmul", a.dtype, semiring, temperature, return_indices, nan, out_dtype)
    given = a, b
    if out_dtype is not None and out_dtype != value_dtype(a.dtype):
        a, b = a.to(out_dtype), b.to(out_dtype)
    M, N = a.shape[-2], b.shape[-1]
    if b.dim() == 2:  # one right factor for all: a's batch is more rows of one product
        batch = a.shape[:-2]
        a, b = a.flatten(0, -2).unsqueeze(0), b.unsqueeze(0)
    else:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (x.expand(*batch, *x.shape[-2:]).flatten(0, -3) for x in (a, b))
    ignore_nan = nan == "ignore"
    if semiring == "log":
        return log_matmul(a, b, temperature, ignore_nan).reshape(*batch, M, N)
    with_winners = return_indices or (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    if known is None:
        _remember(options, given, (a, b), (*batch, M, N), semiring, with_winners, ignore_nan, return_indices)
    product = eager.route(_TropicalMatmul, _forward, a, b)
    values, winners = product(a, b, semiring, with_winners, ignore_nan)
    values = values.reshape(*batch, M, N)
    return TropicalMatmul(values, winners.reshape(*batch, M, N).long()) if return_indices else values
