"""The backward of a tropical matrix product as lists of coordinates: dA[m, k*] += dC[m, n], dB[k*, n] += dC[m, n].

Each output has one winner k*(m, n), so at most M·N entries of dA [M, K] and dB [K, N] differ from zero. Optimizers that
visit the touched entries alone (torch.optim.SparseAdam, scatter_step) take them from here, and no zero is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract.registry import register
from .contract.samples import sampled
from .contract.spec import Misuse, Sizes, Spec
from .runtime.arguments import FLOATS
from .runtime.implementations import Implementations
from .runtime.tracing import traceable

# ------------------------------------------------------------------------------------------------ public


class TropicalWinnersGrad(NamedTuple):
    """Sparse COO gradients, uncoalesced: entries that share a coordinate are to be added."""

    a: Tensor
    b: Tensor


@traceable
def tropical_winners_grad(
    grad: Tensor, indices: Tensor, inner_size: int, *, a: Tensor | None = None, b: Tensor | None = None
) -> TropicalWinnersGrad:
    """Sparse gradients of A and B from the gradient of C = tropical_matmul(A, B) and its winners.

    dA[..., m, k*] += dC[..., m, n] ⊗'b and dB[..., k*, n] += dC[..., m, n] ⊗'a, where k* = indices[..., m, n] and ⊗' is
    1 for the sums of max_plus and min_plus, and the other factor at the winner for max_times.
    Source: Enaieh & Fercoq, "Exploiting Subgradient Sparsity in Max-Plus Neural Networks", arXiv 2603.04133.

    Args:
        grad: dC [..., M, N], a float dtype.
        indices: winners [..., M, N], as `tropical_matmul(..., return_indices=True)` gives them; −1 routes nothing.
        inner_size: K.
        a, b: the factors [..., M, K] and [..., K, N] of max_times, with the batch of grad; None for sums.

    Returns:
        A named tuple (a, b) of sparse COO tensors [..., M, K] and [..., K, N] with the batch of grad, at most M·N
        entries a batch each, in the order of C's elements; `.coalesce()` adds up what shares a coordinate. Where a
        factor was broadcast over the batch, its gradient is the sum over the batch.

    Raises:
        TypeError: grad is no float tensor, or indices no integer tensor.
        ValueError: shapes or devices do not fit, or only one factor is given.
        IndexError: an index outside [−1, K).
    """
    _check(grad, indices, inner_size, a, b)
    won = indices >= 0
    *batch, m, n = won.nonzero().unbind(-1)
    k = indices[won].long()
    values = grad[won]
    to_a, to_b = values, values
    if a is not None and b is not None:
        to_a, to_b = values * b[(*batch, k, n)], values * a[(*batch, m, k)]
    sizes = *grad.shape[:-2], grad.shape[-2], inner_size, grad.shape[-1]
    return TropicalWinnersGrad(
        _sparse(torch.stack((*batch, m, k)), to_a, sizes[:-1]),
        _sparse(torch.stack((*batch, k, n)), to_b, (*sizes[:-3], *sizes[-2:])),
    )


def _sparse(at: Tensor, values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(at, values, sizes, device=values.device, check_invariants=False)


def _check(grad: Tensor, indices: Tensor, inner_size: int, a: Tensor | None, b: Tensor | None) -> None:
    op = "tropical_winners_grad"
    for name, x in (("grad", grad), ("indices", indices)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a torch.Tensor")
    if not grad.is_floating_point():
        raise TypeError(f"{op}: grad is {grad.dtype}; expected a float dtype")
    if indices.dtype not in (torch.int64, torch.int32, torch.int16):
        raise TypeError(f"{op}: indices is {indices.dtype}; expected int64, as tropical_matmul returns")
    if grad.dim() < 2 or grad.shape != indices.shape:
        raise ValueError(
            f"{op}: grad has shape {tuple(grad.shape)} and indices {tuple(indices.shape)}; expected both [..., M, N]"
        )
    if grad.device != indices.device:
        raise ValueError(f"{op}: grad is on {grad.device} and indices on {indices.device}; expected one device")
    if inner_size < 0:
        raise ValueError(f"{op}: inner_size is {inner_size}; expected K, at least 0")
    if (a is None) != (b is None):
        missing = "a" if a is None else "b"
        raise ValueError(f"{op}: {missing} is None; expected both factors (max_times) or neither (sums)")
    *batch, M, N = grad.shape
    for name, x, shape in (("a", a, (*batch, M, inner_size)), ("b", b, (*batch, inner_size, N))):
        if x is not None and (x.shape != shape or x.device != grad.device):
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)} on {x.device}; expected {shape} on {grad.device}"
            )
    if indices.numel():
        low, high = (int(x) for x in indices.aminmax())
        if low < -1 or high >= inner_size:
            raise IndexError(f"{op}: indices reach from {low} to {high}; expected [-1, {inner_size})")


# ------------------------------------------------------------------------------------------------ the op as data

_K = 4  # of all inputs below


def op(grad: Tensor, indices: Tensor, a: Tensor, b: Tensor, *, product: bool = False) -> Tensor:
    """Both gradients, dense, in a row."""
    factors = {"a": a, "b": b} if product else {}
    return torch.cat([x.to_dense().flatten() for x in tropical_winners_grad(grad, indices, _K, **factors)])


def oracle(grad: Tensor, indices: Tensor, a: Tensor, b: Tensor, *, product: bool = False) -> Tensor:
    """The definition: every candidate, of which winners alone are not 0."""
    won = indices.unsqueeze(-1) == torch.arange(_K, device=indices.device)
    routed = won * grad.unsqueeze(-1)  # [..., M, N, K]
    to_a, to_b = (routed * b.mT.unsqueeze(-3), routed * a.unsqueeze(-2)) if product else (routed, routed)
    return torch.cat([to_a.sum(-2).flatten(), to_b.sum(-3).mT.flatten()])


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """dC [M, N], winners, some −1, and the factors A [M, 4] and B [4, N], of small integers: sums are exact."""
    M, N, generator = shape["M"], shape["N"], torch.Generator().manual_seed(seed)
    grad, a, b = (torch.randint(-2, 3, size, generator=generator) for size in ((M, N), (M, _K), (_K, N)))
    indices = torch.randint(-1, _K, (M, N), generator=generator)
    return grad.to(device, dtype), indices.to(device), a.to(device, dtype), b.to(device, dtype)


@sampled
def samples(add, numbers) -> None:
    """Nothing won, one winner for all, batches, empty sizes and narrow indices."""
    cpu = torch.device("cpu")
    for id, (*batch, M, N) in {"batch": (2, 3, 5, 6), "no-rows": (0, 6), "no-columns": (5, 0), "one": (1, 1)}.items():
        drawn = inputs({"M": M, "N": N}, torch.float32, cpu, 0)
        x, i, a, b = (y.expand(*batch, *y.shape) for y in drawn)
        for variant, kwargs in VARIANTS.items():
            add(f"{id}-{variant}", x, i, a, b, **kwargs)
            add(f"{id}-int16-{variant}", x, i.short(), a, b, **kwargs)
    x, i, a, b = inputs({"M": 5, "N": 6}, torch.float32, cpu, 0)
    for variant, kwargs in VARIANTS.items():
        add(f"nothing-won-{variant}", x, torch.full_like(i, -1), a, b, **kwargs)
        add(f"one-winner-{variant}", x, torch.zeros_like(i), a, b, **kwargs)


def misuses(device: torch.device) -> list[Misuse]:
    x, i, a, b = inputs({"M": 2, "N": 3}, torch.float32, device, 0)

    def bad(id: str, error: type[Exception], match: str, grad: Any = x, indices: Any = i, K=_K, **factors) -> Misuse:
        return Misuse(id, lambda: tropical_winners_grad(grad, indices, K, **factors), error, match)

    return [
        bad("not-a-tensor", TypeError, "indices is a list; expected a torch.Tensor", indices=[0]),
        bad("integers", TypeError, "grad is torch.int64; expected a float dtype", grad=i),
        bad("float-indices", TypeError, "indices is torch.float32; expected int64", indices=x),
        bad("shapes", ValueError, r"grad has shape \(2, 3\) and indices \(3, 2\); expected both", indices=i.mT),
        bad("device", ValueError, "grad is on .* and indices on meta; expected one device", indices=i.to("meta")),
        bad("size", ValueError, "inner_size is -1; expected K, at least 0", K=-1),
        bad("one-factor", ValueError, r"b is None; expected both factors \(max_times\) or neither", a=a),
        bad("factor", ValueError, r"a has shape \(4, 2\) on .*; expected \(2, 4\) on", a=a.mT, b=b),
        bad("winner", IndexError, r"indices reach from .* to 4; expected \[-1, 4\)", indices=torch.full_like(i, 4)),
    ]


_COUNT = "the number of entries is that of the winners, which no trace knows"
VARIANTS = {"sums": {}, "product": {"product": True}}
SPEC = register(
    Spec(
        name="tropical_winners_grad",
        op=op,
        oracle=oracle,
        inputs=inputs,
        dtypes=FLOATS,
        variants=VARIANTS,
        shapes={"1024": {"M": 1024, "N": 1024}},
        small_shapes=({"M": 1, "N": 1}, {"M": 7, "N": 5}, {"M": 33, "N": 9}),
        samples=samples,
        implementations=Implementations("tropical_winners_grad", torch=tropical_winners_grad),
        particular_misuses=misuses,
        is_wrapped=True,
        no_gradient="it indexes and multiplies by torch's own operators, and has no backward of its own",
        left_out={
            **dict.fromkeys(("compile", "export", "vmap", "jit_trace", "fx_trace"), _COUNT),
            "autocast": "a gradient keeps its dtype, and factors have the same",
            "ends": "sums of such numbers round as their order has it",
        },
    )
)
