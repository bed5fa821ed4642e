"""Soft threshold: y = sign(x) max(|x| − t, 0), the proximal operator of t‖·‖₁: argmin over y of ½ (y − x)² + t |y|.

Backward: dx = dy where |x| > t, and dt = −sign(x) dy there; 0 elsewhere, at the kinks |x| = t too. That is where y is
not 0, and the sign is y's: y is all that is kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..triton_or_stub import tl, triton
from .contract.misuses import misuse_of
from .contract.operators import OperatorCall
from .contract.registry import register
from .contract.samples import INF, NAN, SPECIAL, Numbers, normal_inputs, sampled, short
from .contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec, Workload
from .contract.workloads import called, compiled, trained
from .runtime.arguments import FLOATS
from .runtime.dispatch import Gradient
from .runtime.elementwise import Elementwise, as_number
from .runtime.tracing import traceable


def soft_threshold_ref(x, t):
    """The oracle: the definition; 16-bit floats in float32, rounded once. relu's gradient at 0 is 0."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide.sign() * (wide.abs() - t).relu() + 0.0  # of the two zeros the positive one
    return (y.masked_fill(t < 0, float("nan")) if isinstance(t, Tensor) else y).to(x.dtype)


@triton.jit
def _shrink(x, t):
    y = tl.where(tl.abs(x) - t <= 0, 0.0, tl.where(x < 0, x + t, x - t))  # NaN is not ≤ 0
    return tl.where(t < 0, float("nan"), y)


@triton.jit
def _pass(dy, y):
    return tl.where(tl.abs(y) > 0, dy, 0.0)


def _second_gradient(grads, saved, sizes, needs) -> list[Tensor]:
    (g,), (y,) = grads, saved
    return ([BACKWARD(g, y)] if needs[0] else []) + ([torch.zeros_like(y)] if needs[1] else [])


BACKWARD = Elementwise(
    "soft_threshold_backward", "dy", "y",
    torch=lambda dy, y: torch.where(y.abs() > 0, dy, 0),
    triton=_pass,
    cpp="std::abs(y) > 0 ? dy : 0",
    source=Path(__file__),
    gradient=Gradient(_second_gradient, inputs=(1,)),
)  # fmt: skip


def _gradient(grads, saved, sizes, needs, t_number) -> list[Tensor]:
    (dy,), (y,) = grads, saved
    dx = BACKWARD.operator(dy, y)
    return [g for g, needed in zip((dx, torch.where(y > 0, -dx, dx)), needs, strict=False) if needed]


FORWARD = Elementwise(
    "soft_threshold", "x", "t?",
    torch=soft_threshold_ref,
    triton=_shrink,
    cpp="t < 0 ? NAN : std::abs(x) - t <= 0 ? 0 : x < 0 ? x + t : x - t",
    source=Path(__file__),
    gradient=Gradient(_gradient, outputs=(0,)),
    in_place=True,
)  # fmt: skip


@traceable
def soft_threshold(x: Tensor, t: float | Tensor, *, inplace: bool = False) -> Tensor:
    """Soft threshold, elementwise: sign(x) max(|x| − t, 0).

    Args:
        x: float64, float32, float16 or bfloat16, any shape and strides.
        t: a number of at least 0, or a tensor of x's dtype and device that broadcasts with x. Where an element of a
            tensor is negative the result is NaN: looking for one beforehand would wait for a GPU.
        inplace: write the result into x, and return x.

    Returns:
        y, contiguous, or x. It is +0 where |x| ≤ t, NaN where x or t is, or both are infinite. 16-bit floats are
        computed in float32 and rounded once. Differentiable any number of times in reverse mode, in x and in t; the
        gradient is 0 where |x| = t. Forward mode raises NotImplementedError. Under autocast nothing is cast down.

    Raises:
        TypeError: x or t is of an unsupported type or dtype, or their dtypes differ.
        ValueError: t is a negative number or NaN, devices or shapes do not fit, or x cannot be written in place.
    """
    if not isinstance(t, Tensor):
        t = t if type(t) is float else as_number("soft_threshold", "t", t)
        if not t >= 0:
            raise ValueError(f"soft_threshold: t is {t}; expected a number of at least 0")
    return FORWARD(x, t, inplace=inplace)


# ------------------------------------------------------------------------------------------------ the op as data


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal x [M, N], and thresholds [1, N] of half that size."""
    x, t = normal_inputs(seed, dtype, device, (shape["M"], shape["N"]), (1, shape["N"]), scales=(1.0, 0.5))
    return x, t.abs()


def _plain(x: Tensor, t: Tensor) -> Tensor:
    return x.sign() * (x.abs() - t).relu()


def _trained(function):
    return trained(function, lambda x, t: x.shape)


def _workload(name: str, prepare, steps: int) -> Workload:
    return Workload(
        name,
        (
            Contender("tropigrad", "ours", prepare(soft_threshold)),
            Contender("eager", "dense", prepare(_plain)),
            Contender("torch.compile", "compiled", compiled(_plain, prepare)),
        ),
        operations=lambda shape: shape["M"] * shape["N"],
        bytes=lambda shape, itemsize: (steps * shape["M"] * shape["N"] + shape["N"]) * itemsize,
        mix="add_max",
    )


@sampled
def samples(add, numbers) -> None:
    """Kinks, signed zeros, NaN, infinities, negative thresholds, numbers, broadcasting and empty sizes."""
    special = torch.tensor([*SPECIAL, 2.0])
    for dtype in FLOATS:
        label = short(dtype)
        add(f"special-{label}", special.to(dtype).view(8, 1), special.to(dtype))
        add(f"rounded-number-{label}", torch.linspace(-2, 2, 41).to(dtype), t=0.3)
        for t in (0.0, 1.0, 2, INF):
            add(f"number-{t}-{label}", special.to(dtype), t=t)
    x = torch.arange(-6.0, 6).view(3, 4)
    add("scalars", x[0, 0], x[2, 0])
    add("scalar-threshold", x, x[2, 0])
    add("wider-threshold", x[0], x.abs())
    add("three-dimensions", x.view(3, 1, 4), x.abs()[:2].view(1, 2, 4))
    for M, N in ((0, 3), (3, 0), (0, 0)):
        add(f"empty-{M}x{N}", torch.ones(M, N), torch.ones(1, N))
    add("empty-number", torch.ones(0), t=0.5)


def misuses(device: torch.device) -> list[Misuse]:
    x, bad = torch.zeros(2, 3, device=device), misuse_of(soft_threshold)
    return [
        bad("no-tensor", TypeError, "x is a list; expected a torch.Tensor", [1.0], 0.5),
        bad("not-a-number", TypeError, "t is a str; expected a number or a torch.Tensor", x, "0.5"),
        bad("bool", TypeError, "t is a bool; expected a number", x, True),
        bad("integers", TypeError, "x is torch.int32; expected one of float64, float32", x.int(), 1),
        bad("negative", ValueError, "t is -1.0; expected a number of at least 0", x, -1),
        bad("nan", ValueError, "t is nan; expected a number of at least 0", x, NAN),
        bad("shapes", ValueError, r"t has shape \(2,\); expected one that broadcasts with x's \(2, 3\)", x, x[:, 0]),
        bad("small", ValueError, r"x has shape \(3,\) and the result \(2, 3\)", x[0].clone(), x, inplace=True),
        bad("expanded", ValueError, "x's elements share memory", x[:1].expand(2, 3), 0.5, inplace=True),
    ]


def in_place(device: torch.device) -> list[OperatorCall]:
    x, t = torch.randn(3, 4, device=device), torch.rand(3, 4, device=device)
    return [(torch.ops.tropigrad.soft_threshold_.default, (x, t, 0.0))]


def _overwritten(view: str, copied) -> Tensor:
    x = Numbers().normal(6, 6).abs()
    t = {"itself": x, "transposed": x.mT, "row": x[2], "column": x[:, 1:2]}[view]
    return soft_threshold(x.mul_(2), copied(t), inplace=True)


SPEC = register(
    Spec(
        name="soft_threshold",
        op=soft_threshold,
        oracle=soft_threshold_ref,
        inputs=inputs,
        shapes={"layer": {"M": 512, "N": 512}, "large": {"M": 4096, "N": 4096}},
        workloads=(
            _workload("soft threshold", called, 2),
            _workload("soft threshold, forward + backward", _trained, 5),
        ),
        variants={"tensor": {}},
        dtypes=FLOATS,
        small_shapes=({"M": 1, "N": 1}, {"M": 17, "N": 33}, {"M": 30, "N": 1100}),
        samples=samples,
        particular_misuses=misuses,
        implementations=FORWARD.implementations,
        tuned={name: FORWARD.tuned[name] + BACKWARD.tuned[name] for name in FORWARD.tuned},
        scalings=lambda kwargs: (Scaling((1, 1), 1),),
        aliased={"row": lambda x: (x, x[2]), "transposed": lambda x: (x, x.mT), "itself": lambda x: (x, x)},
        extra=Extra(
            inputs_at=lambda problem, dtype, device: inputs({"M": 1, "N": int(problem["size"])}, dtype, device, 0),
            operators=in_place,
            overlapping={x: partial(_overwritten, x) for x in ("itself", "transposed", "row", "column")},
        ),
    )
)
