"""The definition of hard thresholds: activations, rules, and the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

KINDS = ("sign", "step", "staircase", "saturated_relu")
Kept: TypeAlias = Literal["z", "m", "bits", "byte"]


class Form(NamedTuple):
    """A call of the op without its tensors.

    Attributes:
        kind, steps, rule, weighted: as in `hard_threshold`; rule is "" for a saturated ReLU.
        kept: what the forward keeps for the backward. "z": nothing, as autograd keeps z; "m": m where it is pooled;
            "bits": as many bits of an element as the rule asks for; "byte": 8 bits of its factor.
        pool: whether m is the 2 × 2 maximum.
        channels_last: whether z, y and their gradients lie in memory by rows of channels.
    """

    kind: str
    steps: int
    rule: str
    weighted: bool
    kept: Kept
    pool: bool
    channels_last: bool


# ------------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class Rule:
    """dm = dy times a factor of m (and of the sign of dy).

    Attributes:
        family: which factor.
            "all": 1.
            "mask": 1 where low ≤ m ≤ high, or low < m where is_open; else 0.
            "sided": for dy > 0, 1 where m ≥ low; for dy < 0, 1 where m ≤ high; else 0.
            "sech": height · sech²(slope · m + offset).
            "ramp": clamp(2 − |m|, 0, 1).
            "adaline": none: dm = dy + |dy| m.
    """

    family: Literal["all", "mask", "sided", "sech", "ramp", "adaline"]
    low: float = 0.0
    high: float = 0.0
    is_open: bool = False
    height: float = 1.0
    slope: float = 1.0
    offset: float = 0.0

    @property
    def bits(self) -> int | None:
        """The bits of an element that tell its factor, or None where it is a real number."""
        return {"all": 0, "mask": 1, "sided": 2}.get(self.family)

    @property
    def is_a_factor(self) -> bool:
        """Whether 8 bits can hold the factor, approximately."""
        return self.family in ("sech", "ramp")


LECUN = 1.7159  # of LeCun's tanh, c tanh(2z/3)
_WIDE = math.sqrt(3)
_SIGN = {
    "soft_hinge": Rule("sech"),
    "sste": Rule("mask", -1.0, 1.0),
    "ste": Rule("all"),
    "hinge": Rule("sided", -1.0, 1.0),
    "lecun_tanh": Rule("sech", height=2 * LECUN / 3, slope=2 / 3),
    "sste_wide": Rule("mask", -_WIDE, _WIDE),
    "ramp": Rule("ramp"),
    "sigmoid_2_1": Rule("sech", height=0.5),
    "sigmoid_2_2": Rule("sech"),
    "sigmoid_3_2": Rule("sech", height=1.5, slope=1.5),
    "perceptron": Rule("sided"),
    "adaline": Rule("adaline"),
}
_UNIT = Rule("mask", 0.0, 1.0)
RULES: dict[str, dict[str, Rule]] = {
    "sign": _SIGN,
    "step": {**_SIGN, "sste": _UNIT},
    "staircase": {"soft_hinge": Rule("sech", slope=2.0, offset=-1.0), "sste": _UNIT, "ste": Rule("all")},
    "saturated_relu": {"": Rule("mask", 0.0, 1.0, is_open=True)},
}


def rule_of(form: Form) -> Rule:
    return RULES[form.kind][form.rule]


# ------------------------------------------------------------------------------------------------ the oracle


def activation(m: Tensor, kind: str, steps: int) -> Tensor:
    """y of m; NaN stays."""
    if kind == "sign":
        return torch.where(m > 0, 1.0, torch.where(m <= 0, -1.0, m)).to(m.dtype)
    if kind == "step":
        return torch.where(m > 0, 1.0, torch.where(m <= 0, 0.0, m)).to(m.dtype)
    if kind == "staircase":
        return ((m * (steps - 1)).ceil().clamp(0, steps) / steps).to(m.dtype)
    return m.clamp(0, 1)


def _integral(low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, t: -t * z.clamp(low, high)


# loss(z, t) of the system's page; its derivative times |dy| at t = −sign(dy) is the rule
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_hinge": lambda z, t: 1 + (-t * z).tanh(),
    "sste": lambda z, t: (1 - t * z).clamp(0, 2),
    "ste": lambda z, t: -t * z,
    "hinge": lambda z, t: (1 - t * z).clamp(min=0),
    "lecun_tanh": lambda z, t: 1 + LECUN * (-2 * t * z / 3).tanh(),
    "sste_wide": _integral(-_WIDE, _WIDE),
    "ramp": lambda z, t: -t * torch.where(z.abs() <= 1, z, z.sign() * (1.5 - (2 - z.abs()).relu() ** 2 / 2)),
    "sigmoid_2_1": lambda z, t: (-2 * t * z).sigmoid(),
    "sigmoid_2_2": lambda z, t: 2 * (-2 * t * z).sigmoid(),
    "sigmoid_3_2": lambda z, t: 2 * (-3 * t * z).sigmoid(),
    "perceptron": lambda z, t: (-t * z).clamp(min=0),
    "adaline": lambda z, t: (z - t) ** 2 / 2,
}


def loss(z: Tensor, t: Tensor, kind: str, rule: str) -> Tensor:
    """The loss of pre-activations z whose targets are t, −1 or +1, of a rule."""
    if rule == "sste" and kind != "sign":
        return _integral(0.0, 1.0)(z, t)
    if kind == "staircase" and rule == "soft_hinge":
        return 1 + (-t * (2 * z - 1)).tanh() / 2
    return _LOSSES[rule](z, t)


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, m, kind, steps, rule, weighted):
        ctx.save_for_backward(m)
        ctx.options = kind, rule, weighted
        return activation(m, kind, steps)

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        (m,) = ctx.saved_tensors
        kind, rule, weighted = ctx.options
        weight = dy.abs() if weighted else dy.sign().abs()
        with torch.enable_grad():
            z = m.detach().requires_grad_()
            total = (weight * loss(z, -dy.sign(), kind, rule)).sum()
        return torch.autograd.grad(total, z)[0], None, None, None, None


def hard_threshold_ref(
    z, *, kind="sign", steps=None, rule=None, weighted=True, save="auto", pool=None, scale=None, shift=None
):
    """The oracle: the definition. The backward is autograd's, of Σ |dy| · loss(m, −sign(dy))."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    if scale is not None and shift is not None:
        of_channel = (-1, *(1,) * (z.dim() - 2))
        wide = (wide * scale.view(of_channel) + shift.view(of_channel)).to(z.dtype).to(wide.dtype)
    if pool:
        pooled = (*z.shape[:-2], z.shape[-2] // 2, z.shape[-1] // 2)
        wide = max_pool2d(wide.reshape(-1, 1, *z.shape[-2:]), 2).reshape(pooled) if z.numel() else wide.reshape(pooled)
    if kind == "saturated_relu":
        return wide.relu().clamp(max=1).to(z.dtype)
    return _Threshold.apply(wide, kind, steps, rule or "soft_hinge", weighted).to(z.dtype)
