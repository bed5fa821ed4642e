"""How the cases call an op: with one backend, on poisoned memory, for its value and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...runtime import backend as backends
from ..spec import Sizes, Spec
from .case import NotHere


@contextmanager
def forced(name: str, device: torch.device) -> Iterator[None]:
    """Takes one backend inside the block, or raises NotHere."""
    reason = backends.why_off(name, device)
    if reason:
        raise NotHere(reason)
    with backends.forcing(name, everywhere=True):
        yield


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN (integers: the largest) inside the block, and so shows what a kernel fails to write."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


TURNS = 4  # calls of one layout: the first, the next, which may use what the first worked out, and two more


# An op may take integer tensors beside its floats, such as paths: they are neither cast nor differentiated.


def cast(args, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in args)


def as_leaves(args) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The arguments, float ones as leaves that require a gradient; and these alone."""
    args = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in args)
    return args, tuple(x for x in args if x.requires_grad)


def value_and_gradients(
    spec: Spec, args, kwargs, weight: Callable[[Tensor], Tensor] = torch.ones_like
) -> tuple[Tensor, ...]:
    """The value and, if the op has any, the gradients of the arguments under `weight(value)`."""
    if not spec.is_differentiable:
        return (spec.op(*args, **kwargs),)
    args, leaves = as_leaves(args)
    out = spec.op(*args, **kwargs)
    return out.detach(), *torch.autograd.grad(out, leaves, weight(out))


def unequal_weights(out: Tensor) -> Tensor:
    """Upstream gradients, no two of them equal."""
    return torch.linspace(-1, 1, out.numel(), device=out.device).to(out).view_as(out)


def tiny_leaves(spec: Spec, device: torch.device) -> tuple[Tensor, ...]:
    shape = {letter: size for size, letter in enumerate(spec.small_shapes[0], start=2)}
    return as_leaves(spec.inputs(shape, torch.float64, device, 0))[0]


def shape_for(name: str, spec: Spec) -> Sizes:
    """A small shape with ragged edges; a tiny one for the interpreter, which takes a second for a thousand outputs."""
    if name == "triton" and backends.interpreted():
        return {letter: 3 + index for index, letter in enumerate(spec.small_shapes[0])}
    return spec.small_shapes[-1]


def offers(spec: Spec, name: str, kwargs) -> bool:
    return name in spec.offers(kwargs)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
