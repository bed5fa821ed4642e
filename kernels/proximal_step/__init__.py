"""Proximal gradient steps on the parameters of a network, in place: see definition.py for their mathematics."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from .definition import held_step_ref, multiobjective_step_ref

__all__ = ["held_step", "held_step_ref", "multiobjective_step", "multiobjective_step_ref"]

MULTIOBJECTIVE = Implementations("multiobjective_step", torch=multiobjective_step_ref)
HELD = Implementations("held_step", torch=held_step_ref)


# ------------------------------------------------------------------------------------------------ operators


def _multiobjective(p, d, x, state, penalized, h, acceleration) -> None:
    d = _apart("multiobjective_step", {"p": p, "x": x, "state": [state]}, d)
    MULTIOBJECTIVE.of(p[0])(p, d, x, state, penalized, h, acceleration)


def _held(x, d, v, penalized, h, lam, weight, momentum) -> None:
    d = _apart("held_step", {"x": x, "v": v}, d)
    HELD.of(x[0])(x, d, v, penalized, h, lam if weight is None else weight, momentum)


def _no_vmap(info, in_dims, *args) -> NoReturn:
    raise NotImplementedError("a proximal step works in place: vmap does not apply; expected a call for each network")


_MULTIOBJECTIVE = operator(
    "multiobjective_step(Tensor(a!)[] p, Tensor[] d, Tensor(b!)[] x, Tensor(c!) state, bool[] penalized, float h, "
    "float acceleration) -> ()",
    _multiobjective,
    fake=lambda *args: None,
    vmap=_no_vmap,
)
_HELD = operator(
    "held_step(Tensor(a!)[] x, Tensor[] d, Tensor(b!)[] v, bool[] penalized, float h, float lam, Tensor? weight, "
    "float momentum) -> ()",
    _held,
    fake=lambda *args: None,
    vmap=_no_vmap,
)


def _apart(op: str, written: dict[str, Sequence[Tensor]], d: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients, copied where they lie in something that is written.

    Raises:
        ValueError: two tensors that are written have memory in common.
    """
    named = [(f"{name}[{at}]", one) for name, tensors in written.items() for at, one in enumerate(tensors)]
    for (name, one), (other_name, other) in combinations(named, 2):
        if memory.meet(one, other) and one.numel() and other.numel():
            raise ValueError(
                f"{op}: {name} and {other_name} share memory; expected tensors with places of their own, as each is "
                "written; nothing was written"
            )
    return [memory.apart(one, *(each for _, each in named)) for one in d]


# ------------------------------------------------------------------------------------------------ public


def multiobjective_step(
    p: Sequence[Tensor],
    d: Sequence[Tensor],
    x: Sequence[Tensor],
    state: Tensor,
    *,
    h: float,
    acceleration: float,
    penalized: Sequence[bool],
) -> None:
    """One multiobjective proximal gradient step on (L, ‖·‖₁) with momentum, of all parameters at once, in place.

    y = soft(p − h α d, h (1 − α)) with the α where ⟨d, y − p⟩ = ‖y‖₁ − ‖p‖₁;  p ← y + c (y − x),  x ← y.

    The momentum's c = max(k − 1, 0) / (k + acceleration). Where ‖p‖₁ would exceed ‖y‖₁, p ← y and k ← 0; else k ← k + 1.

    Source: Amakor, Sonntag & Peitz, Machine Learning with Applications 19, 2025; the rule of the momentum is ours.

    Args:
        p: the weights at which d was taken; written. All tensors are of one dtype (float64, float32, float16 or
            bfloat16) and device, with a place in memory for each element and none between.
        d: the gradient of L, shaped as p, any strides.
        x: the last iterate, as p is; written. The first step, where k is 0, does not look at it.
        state: float64 [4] on p's device: (k, α, λ = (1 − α)/α, ‖y‖₁ of what is penalised); written. Zeros begin anew.
        h: the step, a positive number.
        acceleration: a positive number.
        penalized: of each parameter whether ‖·‖₁ counts it; if not, its y is p − h α d.

    Where p or d is not finite, nor then ⟨d, y − p⟩, the step writes nothing but NaN as α and λ into state: nothing waits
    for the device, and a caller that wants an error looks at state. Steps depend on α of the last one alone within the
    accuracy of λ, some 1e-8 of it: the search begins there.

    Raises:
        TypeError: something is no strided tensor, or of another dtype, or a number is none.
        ValueError: sizes, devices or strides do not fit, tensors that are written share memory, or a number is out of
            range. Nothing has been written.
    """
    op = "multiobjective_step"
    lists = {"p": p, "d": d, "x": x}
    _check(op, lists, penalized, read="d")
    _check_number(op, "h", h)
    _check_number(op, "acceleration", acceleration)
    memory.check_dense(op, "state", state)
    if state.dtype != torch.float64:
        raise TypeError(f"{op}: state is {state.dtype}; expected torch.float64")
    if state.shape != (4,) or not state.is_contiguous():
        raise ValueError(
            f"{op}: state has shape {tuple(state.shape)} and strides {state.stride()}; expected [4] and [1]"
        )
    if state.device != p[0].device:
        raise ValueError(f"{op}: state is on {state.device}; expected {p[0].device}, where p[0] is")
    with torch.no_grad():
        _MULTIOBJECTIVE.call([*p], _resolved(d), [*x], state, [*penalized], float(h), float(acceleration))


def held_step(
    x: Sequence[Tensor],
    d: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    h: float,
    lam: float | Tensor,
    momentum: float = 0.9,
    penalized: Sequence[bool],
) -> None:
    """One proximal gradient step on L + λ‖·‖₁ with momentum, of all parameters at once, in place.

    v ← μ v + d,  x ← soft(x − h v, h λ / (1 − μ)): x stays where it is critical at λ.

    Args:
        x: the weights; written. All tensors are of one dtype (float64, float32, float16 or bfloat16) and device, with a
            place in memory for each element and none between.
        d: the gradient of L, shaped as x, any strides.
        v: the momenta, as x is, 0 before the first step; written.
        h: the step, a positive number.
        lam: λ, a number of at least 0, or float64 [1] on x's device, whose value is not looked at.
        momentum: μ, a number from 0 to below 1.
        penalized: of each parameter whether ‖·‖₁ counts it; if not, x ← x − h v.

    Raises:
        TypeError: something is no strided tensor, or of another dtype, or a number is none.
        ValueError: sizes, devices or strides do not fit, tensors that are written share memory, or a number is out of
            range. Nothing has been written.
    """
    op = "held_step"
    _check(op, {"x": x, "d": d, "v": v}, penalized, read="d")
    _check_number(op, "h", h)
    if not _is_number(momentum):
        raise TypeError(f"{op}: momentum is a {type(momentum).__name__}; expected a number")
    if not 0 <= momentum < 1:
        raise ValueError(f"{op}: momentum is {momentum}; expected a number from 0 to below 1")
    weight = None
    if isinstance(lam, Tensor):
        memory.check_dense(op, "lam", lam)
        if lam.dtype != torch.float64:
            raise TypeError(f"{op}: lam is {lam.dtype}; expected a number or torch.float64 [1]")
        if lam.shape != (1,) or lam.device != x[0].device:
            raise ValueError(f"{op}: lam has shape {tuple(lam.shape)}, on {lam.device}; expected [1] on {x[0].device}")
        lam, weight = 0.0, lam.detach()
    elif not _is_number(lam):
        raise TypeError(f"{op}: lam is a {type(lam).__name__}; expected a number or a torch.Tensor")
    elif not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"{op}: lam is {lam}; expected a number of at least 0")
    with torch.no_grad():
        _HELD.call([*x], _resolved(d), [*v], [*penalized], float(h), float(lam), weight, float(momentum))


def _resolved(d: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, copied where they are lazy negations, whose memory a kernel would misread."""
    return [one.resolve_neg() if memory.is_negation(one) else one for one in d]


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _check_number(op: str, name: str, x: Any) -> None:
    if not _is_number(x):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a number")
    if not (x > 0 and math.isfinite(x)):
        raise ValueError(f"{op}: {name} is {x}; expected a positive number")


def _check(op: str, lists: dict[str, Sequence[Tensor]], penalized: Sequence[bool], read: str) -> None:
    (name, first), *_ = lists.items()
    sizes = {other: len(tensors) for other, tensors in {**lists, "penalized": penalized}.items()}
    if not first or len(set(sizes.values())) > 1:
        raise ValueError(
            f"{op}: {', '.join(f'{count} of {other}' for other, count in sizes.items())} came; expected one or more, "
            "as many of each"
        )
    memory.check_dense(op, f"{name}[0]", first[0])
    dtype, device = first[0].dtype, first[0].device
    if dtype not in FLOATS:
        raise TypeError(f"{op}: {name}[0] is {dtype}; expected one of {listed(FLOATS)}")
    for other, tensors in lists.items():
        for at, (x, like) in enumerate(zip(tensors, first, strict=True)):
            memory.check_dense(op, f"{other}[{at}]", x)
            if x.dtype != dtype:
                raise TypeError(f"{op}: {other}[{at}] is {x.dtype}; expected {dtype}, the dtype of {name}[0]")
            if x.device != device:
                raise ValueError(f"{op}: {other}[{at}] is on {x.device}; expected {device}, where {name}[0] is")
            if x.shape != like.shape:
                raise ValueError(
                    f"{op}: {other}[{at}] has shape {tuple(x.shape)}; expected {tuple(like.shape)}, that of {name}[{at}]"
                )
            if other != read and not is_dense(x):
                raise ValueError(
                    f"{op}: {other}[{at}] has strides {x.stride()}; expected a tensor with a place for each element and "
                    f"none between: {other}[{at}].contiguous()"
                )


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, each a place of its own, in any order of the dimensions."""
    if x.is_contiguous():
        return True
    reach = 1
    for step, size in sorted((step, size) for size, step in zip(x.shape, x.stride(), strict=True) if size != 1):
        if step != reach:
            return False
        reach *= size
    return True
