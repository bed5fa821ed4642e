"""Hard threshold: a step forward, and backward the target that it should have had.

    x = z, or scale[c] z + shift[c];   m = x, or its 2 × 2 maximum;   y = sign(m), a step of it, or a staircase

Backward, by a rule: where dy ≠ 0 the target of m is t = −sign(dy), and dm = |dy| · ∂ loss(m, t) / ∂m, of a loss that
the rule names. To train networks of such activations is feasible target propagation, in its mini-batch form.

Source: Friesen & Domingos, "Deep Learning as a Mixed Convex-Combinatorial Optimization Problem", ICLR 2018, arXiv
1710.11573; where formulas are the released code's alone, `definition.py` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, listed, under_autocast
from ..runtime.dispatch import Gradient, Plan, operator
from ..runtime.implementations import Implementations
from ..runtime.tracing import traceable
from ..runtime.vmap import one_by_one
from . import by_cpp, by_torch, by_triton
from .definition import KINDS, RULES, Form, Kept, Rule, hard_threshold_ref
from .layout import code_bytes, y_like, z_like

__all__ = ["batch_norm_threshold", "hard_threshold", "hard_threshold_ref"]

FORWARDS = Implementations(
    "hard_threshold", source=by_cpp.SOURCE, cpp=by_cpp.forward, triton=by_triton.forward, torch=by_torch.forward
)
BACKWARDS = Implementations(
    "hard_threshold", source=by_cpp.SOURCE, cpp=by_cpp.backward, triton=by_triton.backward, torch=by_torch.backward
)
SUMS = Implementations(
    "hard_threshold", source=by_cpp.SOURCE, cpp=by_cpp.sums, triton=by_triton.sums, torch=by_torch.sums
)
STATISTICS = Implementations(
    "batch_norm_threshold",
    source=by_cpp.SOURCE,
    cpp=by_cpp.statistics,
    triton=by_torch.statistics,
    torch=by_torch.statistics,
)

_OPTIONS = "str kind, int steps, str rule, bool weighted, str keeps, bool pool, bool channels_last"

# ------------------------------------------------------------------------------------------------ operators


def _forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *form, keep = options
    return FORWARDS.of(z)(z, scale, shift, Form(*form), keep)


def _forward_plan(z: Tensor, scale: Tensor | None, shift: Tensor | None, *options: Any) -> Plan:
    *form, keep = options
    form = Form(*form)
    if form.channels_last or FORWARDS.backend_of(z) != "cpp" or not _lie_plainly(z, scale, shift):
        return []
    return by_cpp.forward_plan(z, form, keep)


def _lie_plainly(x: Tensor, *others: Tensor | None) -> bool:
    return x.numel() > 0 and all(y is None or y.is_contiguous() for y in (x, *others))


def _fake(z, scale, shift, *options):
    *form, keep = options
    form = Form(*form)
    y = y_like(z, form)
    code = z.new_empty((code_bytes(y.numel(), form) if keep else 0,), dtype=torch.uint8)
    return y, y.new_empty(y.shape if keep and form.kept == "m" else (0,)), code


def _gradient(grads, saved, sizes, needs, *options) -> list[Tensor]:
    *options, _ = options
    form = Form(*options)
    (dy,) = grads
    scale, shift, *z, kept, code = saved
    z = z[0] if z else None
    dz, of_scale, of_shift = _BACKWARD(dy, z, scale, shift, kept, code, any(needs[1:]), *form)
    wanted = [dz] if scale is None else [dz, of_scale.to(scale.dtype), of_shift.to(shift.dtype)]
    return [g for g, needed in zip(wanted, needs, strict=True) if needed]


def _backward(
    dy: Tensor, z: Tensor | None, scale: Tensor | None, shift: Tensor | None, kept: Tensor, code: Tensor, affine: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    form = Form(*options)
    of_scale, of_shift = dy.new_empty((0,)), dy.new_empty((0,))
    if affine and scale is not None and z is not None:
        of_shift, of_scale = (x.clone() for x in SUMS.of(dy)(dy, z, scale, shift, torch.zeros_like(scale), form))
    dz = BACKWARDS.of(dy)(dy, z, scale, shift, kept, code, None, form)
    return dz, of_scale, of_shift


def _backward_plan(dy, z, scale, shift, kept, code, affine, *options) -> Plan:
    form = Form(*options)
    if affine or form.channels_last or BACKWARDS.backend_of(dy) != "cpp":
        return []
    return by_cpp.backward_plan(dy, form) if _lie_plainly(dy, z, scale, shift, kept, code) else []


def _fake_backward(dy, z, scale, shift, kept, code, affine, *options):
    form = Form(*options)
    of_channel = scale if affine and scale is not None else dy.new_empty((0,))
    return z_like(dy, form), torch.empty_like(of_channel), torch.empty_like(of_channel)


def _no_second_gradient(grads, saved, sizes, needs, *options) -> NoReturn:
    raise NotImplementedError(
        "hard_threshold: it is differentiated once, by its rule, which has no derivative of its own; expected no "
        "create_graph=True"
    )


_BACKWARD = operator(
    "hard_threshold_backward(Tensor dy, Tensor? z, Tensor? scale, Tensor? shift, Tensor m, Tensor code, "
    f"bool affine, {_OPTIONS}) -> (Tensor dz, Tensor of_scale, Tensor of_shift)",
    _backward,
    fake=_fake_backward,
    plan=_backward_plan,
    vmap=one_by_one("hard_threshold_backward"),
    gradient=Gradient(_no_second_gradient),
)
_HARD_THRESHOLD = operator(
    f"hard_threshold(Tensor z, Tensor? scale, Tensor? shift, {_OPTIONS}, bool keep) "
    "-> (Tensor y, Tensor kept, Tensor code)",
    _forward,
    fake=_fake,
    plan=_forward_plan,
    vmap=one_by_one("hard_threshold"),
    gradient=Gradient(
        _gradient, inputs=(1, 2), conditional=(0,), asked=7, answer="z", outputs=(1, 2), detached=(1,), flag=10
    ),
)

# ------------------------------------------------------------------------------------------------ behind a batch norm


def _normalized(z: Tensor, weight: Tensor, bias: Tensor, eps: float, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    form = Form(*options)
    mean, var = STATISTICS.of(z)(z, form)
    scale, shift = _scale_and_shift(weight, bias, mean, var, eps)
    return FORWARDS.of(z)(z, scale, shift, form, False)[0], mean, var


def _scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = weight * (var + eps).rsqrt()
    return scale, bias - mean * scale


def _fake_normalized(z, weight, bias, eps, *options):
    of_channel = weight.new_empty(weight.shape, dtype=torch.promote_types(z.dtype, torch.float32))
    return y_like(z, Form(*options)), of_channel, torch.empty_like(of_channel)


def _normalized_gradient(grads, saved, sizes, needs, eps, *options) -> list[Tensor]:
    z, weight, bias, mean, var = saved
    wanted = _NORMALIZED_BACKWARD(grads[0], z, weight, bias, mean, var, eps, *options)
    return [g for g, needed in zip(wanted, needs, strict=True) if needed]


def _normalized_backward(
    dy: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    form = Form(*options)
    scale, shift = _scale_and_shift(weight, bias, mean, var, eps)
    of_bias, centered = SUMS.of(dy)(dy, z, scale, shift, mean, form)
    rstd, count = (var + eps).rsqrt(), z.numel() // z.shape[1]
    of_weight = rstd * centered
    # dz = scale (dx − Σ dx / n − x̂ Σ dx x̂ / n), x̂ = (z − mean) rstd
    coefficients = torch.stack([scale, -scale * rstd * of_weight / count, mean, -scale * of_bias / count])
    nothing = z.new_empty((0,))
    dz = BACKWARDS.of(dy)(dy, z, scale, shift, nothing, nothing.to(torch.uint8), coefficients, form)
    return dz, of_weight.to(weight.dtype), of_bias.to(bias.dtype)


_NORMALIZED_BACKWARD = operator(
    "batch_norm_threshold_backward(Tensor dy, Tensor z, Tensor weight, Tensor bias, Tensor mean, Tensor var, "
    f"float eps, {_OPTIONS}) -> (Tensor dz, Tensor of_weight, Tensor of_bias)",
    _normalized_backward,
    fake=lambda dy, z, weight, bias, *rest: (torch.empty_like(z), torch.empty_like(weight), torch.empty_like(bias)),
    vmap=one_by_one("batch_norm_threshold_backward"),
    gradient=Gradient(_no_second_gradient),
)
_NORMALIZED = operator(
    f"batch_norm_threshold(Tensor z, Tensor weight, Tensor bias, float eps, {_OPTIONS}) "
    "-> (Tensor y, Tensor mean, Tensor var)",
    _normalized,
    fake=_fake_normalized,
    vmap=one_by_one("batch_norm_threshold"),
    gradient=Gradient(_normalized_gradient, inputs=(0, 1, 2), outputs=(1, 2), detached=(1, 2)),
)

# ------------------------------------------------------------------------------------------------ public


@traceable
def hard_threshold(
    z: Tensor,
    *,
    kind: str = "sign",
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    save: str = "auto",
    pool: int | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """A hard threshold of each element, whose gradient is that of a loss of the target −sign(dy).

    x = z, or scale[c] z + shift[c];  m = x, or with pool=2 the largest of each 2 × 2 of x;  y = activation(m):

    | kind | y |
    |---|---|
    | "sign" | 1 where m > 0, −1 where m ≤ 0 |
    | "step" | 1 where m > 0, 0 where m ≤ 0 |
    | "staircase" | clamp(⌈m (n − 1)⌉, 0, n) / n, n = steps |
    | "saturated_relu" | clamp(m, 0, 1) |

    | rule | dm | for |
    |---|---|---|
    | "soft_hinge" | dy sech²(m); of a staircase dy sech²(2m − 1) | all |
    | "sste" | dy where \\|m\\| ≤ 1; of a step and a staircase where 0 ≤ m ≤ 1 | all |
    | "ste" | dy | all |
    | "hinge" | dy where −sign(dy) m ≤ 1 | sign, step |
    | "sste_wide" | dy where \\|m\\| ≤ √3 | sign, step |
    | "ramp" | dy clamp(2 − \\|m\\|, 0, 1) | sign, step |
    | "lecun_tanh" | dy 2c/3 sech²(2m/3), c = 1.7159 | sign, step |
    | "sigmoid_2_1", "sigmoid_2_2", "sigmoid_3_2" | dy ab/4 sech²(am/2) of sigmoid_a_b; 2_2 is soft_hinge | sign, step |
    | "perceptron" | dy where −sign(dy) m ≤ 0 | sign, step |
    | "adaline" | dy + \\|dy\\| m | sign, step |

    Source: Friesen & Domingos, ICLR 2018, arXiv 1710.11573, and their released code (rules, staircase, saturated ReLU).

    Args:
        z: float64, float32, float16 or bfloat16, any shape and strides.
        steps: n of a staircase, at least 2; None for other kinds.
        rule: None is "soft_hinge"; a saturated ReLU has no rule but its derivative, 1 where 0 < m ≤ 1.
        weighted: False replaces dy by sign(dy): a unit moves as much for a small gradient as for a large one.
        save: what is kept for the backward.
            "auto": the least that gives the gradient exactly: nothing for "ste", 1 bit an element for masks ("sste",
                "sste_wide", a saturated ReLU), 2 for "hinge" and "perceptron", else z; with pool=2, m instead of z.
            "input": z, or m with pool=2.
            "bits": as "auto", but an error where the factor of dy is a real number.
            "byte": 8 bits of that factor: |error| ≤ |dy| · its largest value / 510.
            With pool=2, 2 bits of y's elements tell the winners. Where scale needs a gradient, z is what is kept.
        pool: None, or 2: the maximum over 2 × 2 of the last two dimensions, which must be even. Of equal elements the
            first takes the gradient, of NaN the last, as in torch's max_pool2d.
        scale, shift: [C] each, C = z.shape[1]: an affine map before all of this, such as that of a batch norm in eval
            mode. x is rounded to z's dtype.

    Returns:
        y, in z's dtype and, where nothing is pooled, its memory format. NaN stays NaN. 16-bit floats are computed in
        float32. Differentiable once, in reverse mode, in z, scale and shift.

    Raises:
        TypeError: an argument is of an unsupported type or dtype.
        ValueError: an unknown kind, rule or save, or one that does not fit the others; shapes or devices do not fit.
        NotImplementedError: a second derivative, or forward mode.
    """
    kind, steps, rule = checked_options(kind, steps, rule, weighted, save, pool)
    memory.check_dense("hard_threshold", "z", z)
    if z.dtype not in FLOATS:
        raise TypeError(f"hard_threshold: z is {z.dtype}; expected one of {listed(FLOATS)}")
    check_shape(z, pool, affine=scale is not None)
    (z,) = under_autocast([z])
    wide = torch.promote_types(z.dtype, torch.float32)
    if (scale is None) != (shift is None):
        raise ValueError("hard_threshold: one of scale and shift is None; expected both or none")
    for name, x in ("scale", scale), ("shift", shift):
        if x is not None:
            _check_of_channel(name, x, z)
    if scale is not None and shift is not None:
        scale, shift = scale.to(wide), shift.to(wide)
    kept = what_is_kept(RULES[kind][rule], save, pool, scale is not None and _may_need_a_gradient(scale))
    form = Form(kind, steps, rule, weighted, kept, pool is not None, is_channels_last(z, pool))
    return _HARD_THRESHOLD(z, scale, shift, *form, False)[0]


@traceable
def batch_norm_threshold(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    kind: str = "sign",
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    pool: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """hard_threshold(batch_norm(z)), in training mode, of which z alone is kept for the backward.

    Args:
        z: [N, C, ...].
        weight, bias: [C].
        eps: is added to the variance.
        kind, steps, rule, weighted, pool: as in `hard_threshold`.

    Returns:
        (y, mean [C], biased variance [C]) of this batch; mean and variance carry no gradient.
    """
    kind, steps, rule = checked_options(kind, steps, rule, weighted, "auto", pool)
    check_shape(z, pool, affine=True)
    form = Form(kind, steps, rule, weighted, "z", pool is not None, is_channels_last(z, pool))
    return _NORMALIZED(z, weight, bias, eps, *form)


def checked_options(
    kind: Any, steps: Any, rule: Any, weighted: Any, save: Any, pool: Any, op: str = "hard_threshold"
) -> tuple[str, int, str]:
    """(kind, steps or 0, rule or what stands for it), where they fit each other."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind is {kind!r}; expected one of {_listed(KINDS)}")
    if kind != "staircase":
        if steps is not None:
            raise ValueError(f"{op}: steps is {steps!r} and kind {kind!r}; expected None; a staircase has steps")
    elif type(steps) is not int or steps < 2:
        raise ValueError(f"{op}: steps is {steps!r}; expected an integer of at least 2: 1 step would be constantly 0")
    rules = RULES[kind]
    if kind == "saturated_relu":
        if rule is not None or not weighted:
            raise ValueError(
                f"{op}: kind is 'saturated_relu', with rule {rule!r} and weighted {weighted!r}; expected None and "
                "True: its gradient is its derivative"
            )
        rule = ""
    elif rule is None:
        rule = "soft_hinge"
    elif rule not in rules:
        raise ValueError(f"{op}: rule is {rule!r}; expected one of {_listed(rules)} for kind {kind!r}")
    if not isinstance(weighted, bool):
        raise TypeError(f"{op}: weighted is {weighted!r}; expected True or False")
    if save not in ("auto", "input", "bits", "byte"):
        raise ValueError(f"{op}: save is {save!r}; expected 'auto', 'input', 'bits' or 'byte'")
    if save == "bits" and rules[rule].bits is None:
        raise ValueError(
            f"{op}: save is 'bits' and rule {rule!r}, whose factor is a real number; expected 'input', or 'byte' for 8 "
            "bits of it"
        )
    if save == "byte" and not rules[rule].is_a_factor:
        raise ValueError(
            f"{op}: save is 'byte' and rule {rule or None!r}, whose factor does not fit in 8 bits; expected 'auto'"
        )
    if pool not in (None, 2) or isinstance(pool, bool):
        raise ValueError(f"{op}: pool is {pool!r}; expected None or 2")
    return kind, steps or 0, rule


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names if name)


def what_is_kept(rule: Rule, save: str, pool: int | None, needs_z: bool) -> Kept:
    """Chooses what the forward keeps, where `save` is the caller's wish."""
    if needs_z:
        return "z"
    if save == "byte":
        return "byte"
    if save != "input" and rule.bits is not None:
        return "bits"
    return "m" if pool else "z"


def _may_need_a_gradient(x: Tensor) -> bool:
    """Whether x requires a gradient; True of any tensor that vmap or another transform wraps, which may hide it."""
    return x.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]


def check_shape(z: Tensor, pool: int | None, affine: bool, op: str = "hard_threshold") -> None:
    shape = tuple(z.shape)
    if pool and (z.dim() < 2 or z.shape[-1] % 2 or z.shape[-2] % 2):
        raise ValueError(f"{op}: z has shape {shape}; expected even last two dimensions for pool=2")
    if affine and z.dim() < 2:
        raise ValueError(f"{op}: z has shape {shape}; expected [N, C, ...] for scale and shift")


def is_channels_last(z: Tensor, pool: int | None) -> bool:
    if z.dim() != 4 or pool or z.is_contiguous():
        return False
    return z.is_contiguous(memory_format=torch.channels_last)


def _check_of_channel(name: str, x: Any, z: Tensor) -> None:
    memory.check_dense("hard_threshold", name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"hard_threshold: {name} is {x.dtype}; expected one of {listed(FLOATS)}")
    if x.shape != (z.shape[1],):
        raise ValueError(
            f"hard_threshold: {name} has shape {tuple(x.shape)}; expected [{z.shape[1]}], one for each channel"
        )
    if x.device != z.device:
        raise ValueError(f"hard_threshold: {name} is on {x.device} and z on {z.device}; expected one device")
