"""The tropical matrix product of DTensors: a [..., M, K] and b [..., K, N] that the ranks of a mesh share out.

Shards of the batch, of M and of N are products of their own. Shards of K give each rank the best of its candidates: a
(value, k) that the ranks reduce to the first best, as the product itself does, so values and winners are the bits of
one process. A rank reduces a part of the outputs, and all take the parts: 2 M N values and winners a rank are sent,
whatever the number of ranks. The gradient of an output stays on the rank whose candidate won; nothing is sent for it.

    a is sharded      b is sharded      C is sharded      the gradient is summed
    along M           not               along M           of b
    not               along N           along N           of a
    along K           along K           not               nowhere
    along a batch     along it          along it          of b, where it has no such batch

Other pairs are brought to one of these: b to what a is, or a to what b is where a is not sharded. The log semiring's
sums over K would depend on the number of ranks: shards of K are gathered first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..mathematics.factors import check_batches, check_factors
from ..mathematics.semiring import semiring_zero, winner_dtype, worst
from ..runtime.sharded import from_local, mesh_of, sharded_dims, span, to_local

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_Role = int | Literal["K"] | None  # of a mesh dimension: the dimension of C that it shares out, K, or nothing


def product(
    matmul: Callable[..., Any],
    gradient: Callable[..., list[Tensor]],
    a: Any,
    b: Any,
    *,
    semiring: str,
    return_indices: bool,
    out_dtype: torch.dtype | None,
    **options: Any,
) -> Any:
    """The product by `matmul` and the operator's `gradient`, of ordinary tensors; values, or (values, indices)."""
    mesh = mesh_of("tropical_matmul", a=a, b=b)
    check_factors("tropical_matmul", a, b, "b", 2, "[..., K, N]")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"tropical_matmul: b has shape {tuple(b.shape)}; "
            f"expected [..., {a.shape[-1]}, N], to follow a's {tuple(a.shape)}"
        )
    check_batches("tropical_matmul", a.shape[:-2], b.shape[:-2], "b")
    shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    roles = _roles(a, b, shape, semiring)
    a_here, a_dims = _here(a, roles, shape, True)
    b_here, _ = _here(b, roles, shape, False)
    dims = [None if role == "K" else role for role in roles]
    over_k = [at for at, role in enumerate(roles) if role == "K"]
    call = partial(matmul, semiring=semiring, **options)
    if not over_k:
        here = call(a_here, b_here, return_indices=return_indices, out_dtype=out_dtype)
        if not return_indices:
            return from_local(here, mesh, dims, shape)
        return type(here)(*(from_local(x, mesh, dims, shape) for x in here))
    if out_dtype is not None:
        a_here, b_here = a_here.to(out_dtype), b_here.to(out_dtype)
    if b_here.dim() > 2:
        batch = torch.broadcast_shapes(a_here.shape[:-2], b_here.shape[:-2])
        a_here, b_here = (x.expand(*batch, *x.shape[-2:]) for x in (a_here, b_here))
    shards = _Shards(
        call=partial(call, return_indices=True),
        gradient=gradient,
        semiring=semiring,
        ignore_nan=options["nan"] == "ignore",
        groups=[mesh.get_group(at) for at in reversed(over_k)],  # shards of the last dimension are the nearest
        K=a.shape[-1],
        first=span(a.shape[-1], mesh, a_dims, a.dim() - 1)[0],
    )
    values, winners = (from_local(x, mesh, dims, shape) for x in _OverShards.apply(a_here, b_here, shards))
    return shards.result(values, winners) if return_indices else values


def _roles(a: DTensor, b: DTensor, shape: Sequence[int], semiring: str) -> list[_Role]:
    """The part that each dimension of the mesh is to play."""
    roles: list[_Role] = []
    for of_a, of_b in zip(sharded_dims(a), sharded_dims(b), strict=True):
        role = _role(a, of_a, shape, True)
        role = _role(b, of_b, shape, False) if role is None else role
        roles.append(None if role == "K" and semiring == "log" else role)
    return roles


def _role(x: DTensor, dim: int | None, shape: Sequence[int], is_left: bool) -> _Role:
    if dim is None:
        return None
    if dim == x.dim() - (1 if is_left else 2):
        return "K"
    out = dim + len(shape) - x.dim()
    return out if x.shape[dim] == shape[out] else None  # a batch of one goes to all


def _here(x: DTensor, roles: Sequence[_Role], shape: Sequence[int], is_left: bool) -> tuple[Tensor, list[int | None]]:
    """The part of a factor that lies here, and along which of its dimensions it is shared out then."""
    dims: list[int | None] = []
    for role in roles:
        dim = None
        if role == "K":
            dim = x.dim() - (1 if is_left else 2)
        elif role is not None and role != len(shape) - (1 if is_left else 2):  # C's N is not a's, nor its M b's
            dim = role - (len(shape) - x.dim())
            dim = dim if dim >= 0 and x.shape[dim] == shape[role] else None
        dims.append(dim)
    # where C is shared out and the factor is not, each rank has a part of its gradient
    is_summed = [role is not None and dim is None for role, dim in zip(roles, dims, strict=True)]
    return to_local(x, dims, is_summed), dims


# ------------------------------------------------------------------------------------------------ shards of K


@dataclass
class _Shards:
    """A product whose K the ranks of some groups share out: `first` is the number of the first candidate here."""

    call: Callable[..., Any]
    gradient: Callable[..., list[Tensor]]
    semiring: str
    ignore_nan: bool
    groups: list[Any]
    K: int
    first: int
    result: type = tuple


class _OverShards(torch.autograd.Function):
    """The parts of a and b that lie here -> values and winners of all ranks' candidates."""

    @staticmethod
    def forward(ctx, a, b, shards):
        here = shards.call(a, b)
        shards.result = type(here)
        values, ours = here.values, torch.where(here.indices >= 0, here.indices + shards.first, -1)
        winners = ours
        for group in shards.groups:
            values, winners = _reduced(values, winners, group, shards.semiring, shards.K)
        kept = torch.where((winners == ours) & (ours >= 0), here.indices, -1).to(winner_dtype(a.shape[-1]))
        ctx.shards, ctx.sizes = shards, [*a.shape, *b.shape]
        ctx.save_for_backward(*((a, b) if shards.semiring == "max_times" else ()), kept)
        ctx.mark_non_differentiable(winners)
        return values, winners

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[:2]
        options = ctx.shards.semiring, True, ctx.shards.ignore_nan
        gradients = iter(ctx.shards.gradient(grads[:1], ctx.saved_tensors, ctx.sizes, needs, *options))
        return *(next(gradients) if needed else None for needed in needs), None


def _reduced(values: Tensor, winners: Tensor, group: Any, semiring: str, K: int) -> tuple[Tensor, Tensor]:
    """The first best of the ranks of a group: each rank reduces a part of the outputs, and all take the parts."""
    ranks, count = dist.get_world_size(group), values.numel()
    if count == 0:
        return values, winners
    part = -(-count // ranks)
    places = winners.to(winner_dtype(K))
    parts = [functional.pad(x.flatten(), (0, ranks * part - count)).view(ranks, part) for x in (values, places)]
    sent = torch.cat([_bytes(x) for x in parts], 1)  # one message to each rank
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    ours = torch.cat([_bytes(x) for x in _first_best(*_apart(received, values.dtype, places.dtype), semiring)])
    everything = [torch.empty_like(ours) for _ in range(ranks)]
    dist.all_gather(everything, ours, group=group)
    best, first = _apart(torch.stack(everything), values.dtype, places.dtype)
    return best.flatten()[:count].view(values.shape), first.flatten()[:count].view(values.shape).long()


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _apart(messages: Tensor, of_values: torch.dtype, of_winners: torch.dtype) -> tuple[Tensor, Tensor]:
    """The values and winners [ranks, part] of messages [ranks, bytes]."""
    ranks, size = messages.shape
    part = size // (of_values.itemsize + of_winners.itemsize)
    columns = messages.split([part * of_values.itemsize, part * of_winners.itemsize], 1)
    # a copy begins where any dtype may
    values, winners = (x.clone(memory_format=torch.contiguous_format).flatten() for x in columns)
    return values.view(of_values).view(ranks, part), winners.view(of_winners).view(ranks, part)


def _first_best(values: Tensor, winners: Tensor, semiring: str) -> tuple[Tensor, Tensor]:
    """values, winners [ranks, n] -> [n]: the first NaN, or else the first of the best; zero and −1 of no candidate."""
    is_here = winners >= 0
    nan = values.isnan() & is_here
    seen = values.masked_fill(~is_here | nan, worst(semiring, values.dtype))
    best = seen.amin(0) if semiring == "min_plus" else seen.amax(0)
    wins = torch.where(nan.any(0), nan, is_here & (seen == best))
    rank = wins.int().argmax(0, keepdim=True)  # of equals the first
    empty = ~is_here.any(0)
    values = values.gather(0, rank)[0].masked_fill(empty, semiring_zero(semiring, values.dtype))
    return values, winners.gather(0, rank)[0].masked_fill(empty, -1)
