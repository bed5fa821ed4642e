"""Proximal gradient steps on the parameters of a network, in place: see definition.py for their mathematics."""

from __future__ import annotations

import bisect
import math
import numbers
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...autotune.tuned import MOST_REMEMBERED
from ..runtime import memory
from ..runtime.arguments import FLOATS, listed
from ..runtime.dispatch import Plan, operator
from ..runtime.implementations import Implementations
from . import by_cpp, by_torch, by_triton
from .definition import held_step_ref, multiobjective_step_ref
from .layout import is_dense, lie_alike, like

__all__ = ["held_step", "held_step_ref", "multiobjective_step", "multiobjective_step_ref"]

MULTIOBJECTIVE = Implementations(
    "multiobjective_step",
    source=by_cpp.SOURCE,
    cpp=by_cpp.multiobjective_step,
    triton=by_triton.multiobjective_step,
    torch=by_torch.multiobjective_step,
)
HELD = Implementations(
    "held_step", source=by_cpp.SOURCE, cpp=by_cpp.held_step, triton=by_triton.held_step, torch=held_step_ref
)


# ------------------------------------------------------------------------------------------------ operators


def _multiobjective(p, d, x, state, penalized, h, acceleration) -> None:
    _check_multiobjective(p, d, x, state, penalized)
    d = _apart("multiobjective_step", {"p": p, "x": x, "state": [state]}, d)
    copies = [like(old, new) for old, new in zip(x, p, strict=True)]
    d = [like(slope, new) for slope, new in zip(d, p, strict=True)]
    MULTIOBJECTIVE.of(p[0])(p, d, copies, state, penalized, h, acceleration)
    _written(p, x, copies)


def _held(x, d, v, penalized, h, lam, weight, momentum) -> None:
    _check_held(x, d, v, weight, penalized)
    d = _apart("held_step", {"x": x, "v": v}, d)
    copies = [like(velocity, new) for velocity, new in zip(v, x, strict=True)]
    d = [like(slope, new) for slope, new in zip(d, x, strict=True)]
    HELD.of(x[0])(x, d, copies, penalized, h, lam if weight is None else weight, momentum)
    _written(x, v, copies)


def _written(first: Sequence[Tensor], second: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Writes back what lies otherwise in the second list than in the first; tells autograd of all that was written."""
    for x, copy in zip(second, copies, strict=True):
        if x is not copy:
            x.copy_(copy)
    if not first[0].is_inference():  # such tensors have no version
        torch.autograd.graph.increment_version([*first, *second])


def _plan_multiobjective(p, d, x, state, penalized, h, acceleration) -> Plan:
    _check_multiobjective(p, d, x, state, penalized)
    is_planned = MULTIOBJECTIVE.backend_of(p[0]) == "cpp" and lie_alike([p, d, x])
    return by_cpp.multiobjective_plan(p, penalized) if is_planned else []


def _plan_held(x, d, v, penalized, h, lam, weight, momentum) -> Plan:
    _check_held(x, d, v, weight, penalized)
    return by_cpp.held_plan(x, penalized) if HELD.backend_of(x[0]) == "cpp" and lie_alike([x, d, v]) else []


def _no_vmap(info, in_dims, *args) -> NoReturn:
    raise NotImplementedError("a proximal step works in place: vmap does not apply; expected a call for each network")


_MULTIOBJECTIVE = operator(
    "multiobjective_step(Tensor(a!)[] p, Tensor[] d, Tensor(b!)[] x, Tensor(c!) state, bool[] penalized, float h, "
    "float acceleration) -> ()",
    _multiobjective,
    fake=lambda *args: None,
    vmap=_no_vmap,
    plan=_plan_multiobjective,
)
_HELD = operator(
    "held_step(Tensor(a!)[] x, Tensor[] d, Tensor(b!)[] v, bool[] penalized, float h, float lam, Tensor? weight, "
    "float momentum) -> ()",
    _held,
    fake=lambda *args: None,
    vmap=_no_vmap,
    plan=_plan_held,
)


def _apart(op: str, written: dict[str, Sequence[Tensor]], d: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients, copied where they lie in something that is written.

    Raises:
        ValueError: two tensors that are written have memory in common.
    """
    named = [
        (memory.span(one), f"{name}[{at}]" if name != "state" else name)
        for name, tensors in written.items()
        for at, one in enumerate(tensors)
        if one.numel()
    ]
    named.sort()
    for ((_, end), name), ((begin, _), other) in pairwise(named):
        if begin < end:
            raise ValueError(
                f"{op}: {name} and {other} share memory; expected tensors with places of their own, as each is "
                "written; nothing was written"
            )
    ends = [end for (_, end), _ in named]

    def free(slope: Tensor) -> Tensor:
        begin, end = memory.span(slope)
        at = bisect.bisect_right(ends, begin)
        return slope.clone() if at < len(named) and named[at][0][0] < end else slope

    return [free(slope) for slope in d]


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

    The momentum's c = max(k − 1, 0) / (k + acceleration), and k ← k + 1. Where ‖p‖₁ would exceed ‖y‖₁, p ← y and k ← 0.

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

    Where p or d is not finite, or so large that ⟨d, y − p⟩ is not, the step writes nothing but NaN as α and λ into
    state; nothing waits for the device, and a caller that wants an error looks at state. The search for α begins at the
    last λ and finds λ to some 1e-8 of it, so that only its last digits depend on where it began.

    Raises:
        TypeError: something is no strided tensor, or of another dtype, or a number is none.
        ValueError: sizes, devices or strides do not fit, tensors that are written share memory, or a number is out of
            range. Nothing has been written.
    """
    op = "multiobjective_step"
    h, acceleration = _positive(op, "h", h), _positive(op, "acceleration", acceleration)
    try:
        _check_devices(p, d, x)
        with torch.no_grad():
            _MULTIOBJECTIVE.call([*p], _resolved(d), [*x], state, [*penalized], h, acceleration)
    except Exception:
        _check_multiobjective(p, d, x, state, penalized)
        raise


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
    h = _positive(op, "h", h)
    if not _is_number(momentum):
        raise TypeError(f"{op}: momentum is a {type(momentum).__name__}; expected a number")
    if not 0 <= momentum < 1:
        raise ValueError(f"{op}: momentum is {momentum}; expected a number from 0 to below 1")
    if isinstance(lam, Tensor):
        lam, weight = 0.0, lam.detach()
    else:
        if not _is_number(lam):
            raise TypeError(f"{op}: lam is a {type(lam).__name__}; expected a number or a torch.Tensor")
        if not (lam >= 0 and math.isfinite(lam)):
            raise ValueError(f"{op}: lam is {lam}; expected a number of at least 0")
        lam, weight = float(lam), None
    try:
        _check_devices(x, d, v)
        with torch.no_grad():
            _HELD.call([*x], _resolved(d), [*v], [*penalized], h, lam, weight, float(momentum))
    except Exception:
        _check_held(x, d, v, weight, penalized)
        raise


def _resolved(d: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, copied where they are lazy negations, whose memory a kernel would misread."""
    if torch.compiler.is_compiling() or True not in [x.is_neg() for x in d]:
        return [*d]
    return [x.resolve_neg() for x in d]


# ------------------------------------------------------------------------------------------------ checks
# An operator makes them once for each layout of its tensors, which decides them all; so they take no time from a step.
# The public functions make them again where a call failed: torch has its own words for what is no tensor.


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _positive(op: str, name: str, x: Any) -> float:
    if not _is_number(x):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a number")
    if not (x > 0 and math.isfinite(x)):
        raise ValueError(f"{op}: {name} is {x}; expected a positive number")
    return float(x)


def _check_devices(*lists: Sequence[Tensor]) -> None:
    """The one check of every call: of tensors on several devices torch would ask the operator for one of them."""
    if len({x.device for tensors in lists for x in tensors}) > 1:
        raise ValueError("tensors on several devices")


def _check_multiobjective(p, d, x, state, penalized) -> None:
    op = "multiobjective_step"
    _check(op, {"p": p, "d": d, "x": x}, penalized)
    memory.check_dense(op, "state", state)
    if state.dtype != torch.float64:
        raise TypeError(f"{op}: state is {state.dtype}; expected torch.float64")
    if state.shape != (4,) or not state.is_contiguous():
        raise ValueError(f"{op}: state has shape {tuple(state.shape)}, strides {state.stride()}; expected [4] and [1]")
    if state.device != p[0].device:
        raise ValueError(f"{op}: state is on {state.device}; expected {p[0].device}, where p[0] is")


def _check_held(x, d, v, lam, penalized) -> None:
    op = "held_step"
    _check(op, {"x": x, "d": d, "v": v}, penalized)
    if lam is None:
        return
    memory.check_dense(op, "lam", lam)
    if lam.dtype != torch.float64:
        raise TypeError(f"{op}: lam is {lam.dtype}; expected a number or torch.float64 [1]")
    if lam.shape != (1,) or lam.device != x[0].device:
        raise ValueError(f"{op}: lam has shape {tuple(lam.shape)}, on {lam.device}; expected [1] on {x[0].device}")


def _check(op: str, lists: dict[str, Sequence[Tensor]], penalized: Sequence[bool]) -> None:
    label = _label(op, lists, penalized)
    if label is not None and label in _passed:
        return
    _check_each(op, lists, penalized)
    if label is not None:
        if len(_passed) >= MOST_REMEMBERED:
            _passed.clear()
        _passed.add(label)


_passed: set[Hashable] = set()  # the lists that were well, by all that the checks look at


def _label(op: str, lists: dict[str, Sequence[Tensor]], penalized: Sequence[bool]) -> Hashable | None:
    """Describes lists of ordinary tensors; None for others, of which the checks say what is wrong."""
    label: list[Hashable] = [op, len(penalized)]
    try:
        for tensors in lists.values():
            label.append(len(tensors))
            for x in tensors:
                if type(x) not in _ORDINARY or x.is_nested or x.layout is not torch.strided:
                    return None
                label += x.dtype, x.device, x.shape, x.stride()
    except TypeError:  # no list
        return None
    return tuple(label)


_ORDINARY = (Tensor, torch.nn.Parameter)


def _check_each(op: str, lists: dict[str, Sequence[Tensor]], penalized: Sequence[bool]) -> None:
    sizes = {name: len(tensors) for name, tensors in {**lists, "penalized": penalized}.items()}
    name, models = next(iter(lists.items()))
    if not models or len(set(sizes.values())) > 1:
        counts = ", ".join(f"{count} of {of}" for of, count in sizes.items())
        raise ValueError(f"{op}: {counts} came; expected one or more, as many of each")
    memory.check_dense(op, f"{name}[0]", models[0])
    dtype, device = models[0].dtype, models[0].device
    if dtype not in FLOATS:
        raise TypeError(f"{op}: {name}[0] is {dtype}; expected one of {listed(FLOATS)}")
    for of, tensors in lists.items():
        for at, (x, model) in enumerate(zip(tensors, models, strict=True)):
            this = f"{of}[{at}]"
            memory.check_dense(op, this, x)
            if x.dtype != dtype:
                raise TypeError(f"{op}: {this} is {x.dtype}; expected {dtype}, as {name}[0] is")
            if x.device != device:
                raise ValueError(f"{op}: {this} is on {x.device}; expected {device}, where {name}[0] is")
            if x.shape != model.shape:
                shape = tuple(model.shape)
                raise ValueError(f"{op}: {this} has shape {tuple(x.shape)}; expected {shape}, that of {name}[{at}]")
            if of != "d" and not is_dense(x):
                raise ValueError(
                    f"{op}: {this} has strides {x.stride()}; expected a tensor with a place for each element and none "
                    f"between: {this}.contiguous()"
                )
