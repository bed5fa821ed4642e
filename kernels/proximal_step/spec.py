"""The proximal steps as data: shapes, costs, rivals, samples and misuses, for conformance and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.registry import register
from ..contract.samples import INF, NAN, Numbers, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Sizes, Spec, Workload
from ..runtime.arguments import FLOATS
from . import (
    HELD,
    MULTIOBJECTIVE,
    by_cpp,
    by_triton,
    held_step,
    held_step_ref,
    multiobjective_step,
    multiobjective_step_ref,
)

# ---------------------------------------------------------------------------------------------- steps as functions


def _lists(args: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Copies of what a step works on, a third of the arguments each."""
    count = len(args) // 3
    copies = [x.clone(memory_format=torch.contiguous_format) for x in args]
    return copies[:count], [*args[count : 2 * count]], copies[2 * count :]


def _flags(count: int, all_penalized: bool) -> list[bool]:
    return [all_penalized or at % 3 != 1 for at in range(count)]


def _multiobjective(step: Callable, args, *, h=0.1, all_penalized=True, steps=2, k=3.0, lam=0.0) -> Tensor:
    """Makes steps, the first as the fourth since a restart; returns what they wrote: weights, k and α last."""
    p, d, x = _lists(args)
    state = torch.tensor([k, 1 / (1 + lam), lam, 0], dtype=torch.float64, device=p[0].device)
    for _ in range(steps):
        step(p, d, x, state, h=h, acceleration=2.0, penalized=_flags(len(p), all_penalized))
    return torch.cat([y.flatten() for y in (*p, *x, state[:2].to(p[0]))])


def multiobjective(*args: Tensor, **options) -> Tensor:
    """multiobjective_step as a function of p, d and x."""
    return _multiobjective(multiobjective_step, args, **options)


def multiobjective_oracle(*args: Tensor, **options) -> Tensor:
    """The definition as a function."""
    return _multiobjective(multiobjective_step_ref, args, **options)


def _held(step: Callable, args, *, h=0.1, lam: float | Tensor = 0.5, all_penalized=True) -> Tensor:
    x, d, v = _lists(args)
    for _ in range(2):
        step(x, d, v, h=h, lam=lam, momentum=0.5, penalized=_flags(len(x), all_penalized))
    return torch.cat([y.flatten() for y in (*x, *v)])


def held(*args: Tensor, **options) -> Tensor:
    """held_step as a function of x, d and v."""
    return _held(held_step, args, **options)


def held_oracle(*args: Tensor, **options) -> Tensor:
    """The definition as a function."""
    return _held(held_step_ref, args, **options)


# ------------------------------------------------------------------------------------------------ inputs

NETS = {
    "mlp": ((20, 784), (20,), (20, 20), (20,), (10, 20), (10,)),
    "conv": ((32, 3, 3, 3), (32,), (32, 32, 4, 4), (32,), (512, 1152), (512,), (10, 512), (10,)),
    "large": ((3162, 3162),),
}
SHAPES = {
    "mlp": {"N": 784, "M": 20, "K": 10},
    "conv": {"N": 512, "M": 1152, "K": 10},
    "large": {"N": 3162, "M": 3162, "K": 0},
}


def _sizes(shape: Sizes) -> tuple[tuple[int, ...], ...]:
    """The parameters of a net of NETS, of one matrix where K is 0, else the weights of N → M → K."""
    N, M, K = shape["N"], shape["M"], shape["K"]
    for name, named in SHAPES.items():
        if shape == named:
            return NETS[name]
    return ((M, N),) if K == 0 else ((M, N), (K, M))


def _count(shape: Sizes) -> int:
    return sum(torch.Size(size).numel() for size in _sizes(shape))


def _inputs(sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Weights, a third of them 0; slopes that descend ‖·‖₁ too, on the whole, as a trained net's; a third list near."""
    normal = partial(Numbers(seed).normal, dtype=torch.float64)
    p = [0.1 * normal(*size) * (normal(*size) > -0.4) for size in sizes]
    d = [normal(*size) - 0.5 * w.sign() for size, w in zip(sizes, p, strict=True)]
    near = [0.01 * normal(*size) + w for size, w in zip(sizes, p, strict=True)]
    return tuple(x.to(device, dtype) for x in (*p, *d, *near))


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    return _inputs(_sizes(shape), dtype, device, seed)


def _inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return _inputs(((1, int(problem["size"])),), dtype, device, 0)


# ------------------------------------------------------------------------------------------------ contenders


def _ours(step: Callable):
    """At a step so small that thousands find the same work to do; α is searched from that of other gradients."""

    def prepare(*args: Tensor):
        p, d, x = _lists(args)
        state = torch.zeros(4, dtype=torch.float64, device=p[0].device)
        turns = _turns(d)

        def call():
            step(p, next(turns), x, state, h=1e-6, acceleration=2.0, penalized=[True] * len(p))
            return (*p,)

        return call

    return prepare


def _turns(d: Sequence[Tensor]):
    """Gradients of three mini-batches, one after the other: λ differs by some percent."""
    others = [[x + 0.05 * number * x.roll(1, 0) for x in d] for number in range(3)]
    while True:
        yield from others


def _released(*args: Tensor):
    """The released algorithm, in torch: ten bisections of α, each a pass over all parameters, then its momentum.

    As there, the momentum starts from the last extrapolated point, and its coefficient at k = 0 is −1/a.
    """
    p, d, _ = _lists(args)
    last, k, turns, h = [x.clone() for x in p], 0, _turns(d), 1e-6

    def stepped(weights, slopes, alpha: float) -> list[Tensor]:
        moved = [w - h * alpha * g for w, g in zip(weights, slopes, strict=True)]
        return [torch.sign(u) * torch.clamp(u.abs() - h * (1 - alpha), min=0) for u in moved]

    def size(tensors) -> Tensor:
        return sum((x.abs().sum() for x in tensors), torch.zeros((), device=p[0].device))

    def call():
        nonlocal last, k
        slopes, low, high = next(turns), 0.0, 1.0
        for _ in range(10):
            alpha = (low + high) / 2
            y = stepped(p, slopes, alpha)
            gained = sum((g * (a - b)).sum() for g, a, b in zip(slopes, y, p, strict=True))
            low, high = (alpha, high) if gained > size(y) - size(p) else (low, alpha)
        y = stepped(p, slopes, (low + high) / 2)
        c = (k - 1) / (k + 2)
        ahead = [a + c * (a - b) for a, b in zip(y, last, strict=True)]
        is_dropped = bool(size(ahead) > size(y))
        k = 0 if is_dropped else k + 1
        for w, new in zip(p, y if is_dropped else ahead, strict=True):
            w.copy_(new)
        last = ahead
        return (*p,)

    return call


def _held_ours(step: Callable):
    def prepare(*args: Tensor):
        x, d, v = _lists(args)

        def call():
            step(x, d, v, h=1e-7, lam=0.5, momentum=0.9, penalized=[True] * len(x))
            return (*x,)

        return call

    return prepare


def _held_plain(*args: Tensor):
    x, d, v = _lists(args)
    h, t = 1e-7, 1e-7 * 0.5 / (1 - 0.9)

    def call():
        for one, slope, velocity in zip(x, d, v, strict=True):
            velocity.mul_(0.9).add_(slope)
            one.add_(velocity, alpha=-h)
            one.copy_(torch.sign(one) * torch.clamp(one.abs() - t, min=0))
        return (*x,)

    return call


STEP = Workload(
    "multiobjective step",
    (
        Contender("tropigrad", "ours", _ours(multiobjective_step)),
        Contender("released algorithm, torch", "scale", torch.no_grad()(_released)),  # another α: never compared
    ),
    operations=_count,
    # p and d read by two passes and by the one that writes, x read, p and x written
    bytes=lambda shape, itemsize: 9 * itemsize * _count(shape),
    mix="mul_add",
)
HELD_STEP = Workload(
    "held step",
    (
        Contender("tropigrad", "ours", _held_ours(held_step)),
        Contender("eager", "dense", torch.no_grad()(_held_plain)),
    ),
    operations=_count,
    bytes=lambda shape, itemsize: 5 * itemsize * _count(shape),  # x, d and v read, x and v written
    mix="mul_add",
)

# ------------------------------------------------------------------------------------------------ samples

_FEW = ((2, 3), (3, 1), (1, 700))


@sampled
def samples(add, numbers) -> None:
    """Every dtype; parameters that are not penalised, empty ones; kinks and zeros."""
    cpu = torch.device("cpu")
    for dtype in FLOATS:
        add(f"few-{short(dtype)}", *_inputs(_FEW, dtype, cpu, 0), all_penalized=False)
    add("empty", *_inputs(((2, 3), (0, 3), (3, 0)), torch.float32, cpu, 0))
    add("scalars", *(x.view(()) for x in _inputs(((1, 1),), torch.float32, cpu, 1)))
    x = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 0.0, 2.0]])
    d = torch.tensor([[1.0, -1.0, 0.5, 0.0, 2.0, -2.0, -4.0, 1.0]])
    add("kinks", x, d, x / 2, h=0.5)


@sampled
def multiobjective_samples(add, numbers) -> None:
    """Those of both steps; both ends of α, first steps, λ far from the last one, and what is not finite."""
    for sample in samples(torch.device("cpu")):
        add(sample.id, *sample.args, **sample.kwargs)
    x, zero = torch.tensor([[1.0, -2.0, 0.0]]), torch.zeros(1, 3)
    up = x.sign() / 2  # as L falls so does ‖·‖₁, faster
    add("alpha-1", x, up, x)
    add("alpha-1-no-slope", x, zero, x)
    add("alpha-0", zero, x, zero)
    add("first", *_inputs(_FEW, torch.float32, torch.device("cpu"), 2), k=0.0)
    for lam in (1e-6, 1e3):
        add(f"from-{lam}", *_inputs(_FEW, torch.float64, torch.device("cpu"), 3), lam=lam, steps=1)
    for value in (NAN, INF):
        bad = torch.tensor([[1.0, value, 0.5]])
        add(f"slope-{value}", x, bad, x, steps=1)
        add(f"weight-{value}", bad, x, x, steps=1)
    add(
        "unsound-unpenalized",
        x,
        x,
        torch.tensor([[1.0, NAN, 0.5]]),
        x,
        x,
        torch.ones(1, 3),
        x,
        x,
        x,
        h=1e-3,
        steps=1,
        k=0.0,
    )


def _misuses(name: str, call: Callable, device: torch.device) -> list[Misuse]:
    args = inputs({"M": 3, "N": 2, "K": 2}, torch.float32, device, 0)
    lists = _lists(args)
    of = {"multiobjective_step": ("p", "d", "x"), "held_step": ("x", "d", "v")}[name]

    def bad(id: str, error: type[Exception], match: str, place=0, change=None, **options):
        changed = [[*tensors] for tensors in lists]
        if change is not None:
            changed[place][0] = change(changed[place][0])
        return Misuse(id, lambda: call(*changed, **options), error, match)

    first, second, third = of
    return [
        bad("no-tensor", TypeError, rf"{first}\[0\] is a list; expected a torch.Tensor", 0, lambda x: [1.0]),
        bad("int64", TypeError, rf"{first}\[0\] is torch.int64; expected", 0, Tensor.long),
        bad("mixed", TypeError, rf"{second}\[0\] is torch.float64; expected torch.float32", 1, Tensor.double),
        bad("sparse", TypeError, rf"{second}\[0\] has layout torch.sparse_coo", 1, Tensor.to_sparse),
        bad("device", ValueError, rf"{second}\[0\] is on meta", 1, lambda x: x.to("meta")),
        bad("shape", ValueError, rf"{third}\[0\] has shape \(2, 3\); expected \(3, 2\)", 2, lambda x: x.T.contiguous()),
        bad("strides", ValueError, rf"{third}\[0\] has strides .*; expected a tensor with a place for each", 2,
            lambda x: x.new_zeros(3, 4)[:, ::2]),
        bad("count", ValueError, f"2 of {first}, 2 of d, 2 of {third}, 1 of penalized came", penalized=[True]),
        bad("step", ValueError, "h is -1.0; expected a positive number", h=-1.0),
        bad("step-type", TypeError, "h is a str; expected a number", h="1"),
        bad("itself", ValueError, "share memory; expected tensors with places of their own", 2, lambda x: lists[0][0]),
    ]  # fmt: skip


def multiobjective_misuses(device: torch.device) -> list[Misuse]:
    def call(p, d, x, *, h=0.1, state=None, acceleration=2.0, penalized=(True,) * 2):
        state = torch.zeros(4, dtype=torch.float64, device=device) if state is None else state
        multiobjective_step(p, d, x, state, h=h, acceleration=acceleration, penalized=penalized)

    lists = _lists(inputs({"M": 3, "N": 2, "K": 2}, torch.float32, device, 0))
    single, short_state = torch.zeros(4, device=device), torch.zeros(3, dtype=torch.float64, device=device)
    return [
        *_misuses("multiobjective_step", call, device),
        Misuse(
            "acceleration", lambda: call(*lists, acceleration=0), ValueError, "acceleration is 0; expected a positive"
        ),
        Misuse("state-dtype", lambda: call(*lists, state=single), TypeError, "state is torch.float32; expected"),
        Misuse("state", lambda: call(*lists, state=short_state), ValueError, r"state has shape \(3,\)"),
    ]


def held_misuses(device: torch.device) -> list[Misuse]:
    def call(x, d, v, *, h=0.1, lam: Any = 0.1, momentum=0.9, penalized=(True,) * 2):
        held_step(x, d, v, h=h, lam=lam, momentum=momentum, penalized=penalized)

    lists = _lists(inputs({"M": 3, "N": 2, "K": 2}, torch.float32, device, 0))
    single = torch.zeros(1, device=device)
    return [
        *_misuses("held_step", call, device),
        Misuse("momentum", lambda: call(*lists, momentum=1), ValueError, "momentum is 1; expected a number from 0"),
        Misuse("negative", lambda: call(*lists, lam=-1), ValueError, "lam is -1; expected a number of at least 0"),
        Misuse("lam-type", lambda: call(*lists, lam="1"), TypeError, "lam is a str; expected a number or"),
        Misuse("lam-dtype", lambda: call(*lists, lam=single), TypeError, "lam is torch.float32; expected"),
        Misuse("lam", lambda: call(*lists, lam=single.double()[0]), ValueError, r"lam has shape \(\)"),
    ]


def _own_gradient(op: Callable, copied: Callable[[Tensor], Tensor]) -> Tensor:
    """A step on Σ w² / 2, whose gradient is the weight itself."""
    args = _inputs(((6, 7), (6, 1)), torch.float32, torch.device("cpu"), 0)
    first, _, third = _lists(args)
    options = {"h": 0.1, "penalized": [True] * 2}
    if op is held_step:
        held_step(first, [copied(x) for x in first], third, lam=0.1, **options)
    else:
        state = torch.zeros(4, dtype=torch.float64)
        multiobjective_step(first, [copied(x) for x in first], third, state, acceleration=2, **options)
    return torch.cat([x.flatten() for x in (*first, *third)])


_SMALL = ({"M": 1, "N": 1, "K": 1}, {"M": 17, "N": 70, "K": 3}, {"M": 5, "N": 9, "K": 4})
_LEFT_OUT = {
    "strides": "parameters fill their memory; orders of it, gradients of any: tests/kernels/test_proximal_step.py",
    "vmap": "one step of many networks is a step of each",
    "autocast": "parameters keep their dtype under it",
    **dict.fromkeys(("jit_trace", "fx_trace"), "no trace of a network holds a step of its optimizer"),
    "ends": "sums of the largest numbers are not finite, and nothing is written",
}
_NO_GRADIENT = "a step of an optimizer: it works in place and has no gradient"

MULTIOBJECTIVE_SPEC = register(
    Spec(
        name="multiobjective_step",
        op=multiobjective,
        oracle=multiobjective_oracle,
        inputs=inputs,
        shapes=SHAPES,
        workloads=(STEP,),
        variants={"all": {}, "some": {"all_penalized": False}},
        dtypes=FLOATS,
        small_shapes=_SMALL,
        samples=multiobjective_samples,
        particular_misuses=multiobjective_misuses,
        is_wrapped=True,
        implementations=MULTIOBJECTIVE,
        is_exact=lambda kwargs: False,
        no_gradient=_NO_GRADIENT,
        left_out=_LEFT_OUT,
        tuned={"cpp": (by_cpp.MULTIOBJECTIVE,), "triton": (by_triton.TERMS,)},
        extra=Extra(
            inputs_at=_inputs_at,
            in_place={"step": _ours(multiobjective_step)},
            overlapping={"own-gradient": partial(_own_gradient, multiobjective_step)},
        ),
    )
)
HELD_SPEC = register(
    Spec(
        name="held_step",
        op=held,
        oracle=held_oracle,
        inputs=inputs,
        shapes=SHAPES,
        workloads=(HELD_STEP,),
        variants={"all": {}, "some": {"all_penalized": False}},
        dtypes=FLOATS,
        small_shapes=_SMALL,
        samples=samples,
        particular_misuses=held_misuses,
        is_wrapped=True,
        implementations=HELD,
        is_exact=lambda kwargs: False,
        no_gradient=_NO_GRADIENT,
        left_out=_LEFT_OUT,
        tuned={"cpp": (by_cpp.HELD,), "triton": (by_triton.HELD,)},
        extra=Extra(
            inputs_at=_inputs_at,
            in_place={"step": _held_ours(held_step)},
            overlapping={"own-gradient": partial(_own_gradient, held_step)},
        ),
    )
)
