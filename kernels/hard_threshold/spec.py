"""Hard thresholds as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, max_pool2d

from ..contract.misuses import Misuse, misuse_of
from ..contract.registry import register
from ..contract.samples import SPECIAL, normal_inputs, sampled, short
from ..contract.spec import Contender, Sizes, Spec, Workload
from ..contract.workloads import compiled, trained
from ..runtime.arguments import FLOATS
from . import FORWARDS, batch_norm_threshold, by_cpp, by_triton, hard_threshold, hard_threshold_ref
from .definition import RULES

# ------------------------------------------------------------------------------------------------ the oracles


class _InEightBits(torch.autograd.Function):
    """A value, of which the factor of each gradient is known in 255ths of its largest."""

    @staticmethod
    def forward(ctx, z, value, factor, height, pool):
        ctx.save_for_backward(factor)
        ctx.height, ctx.pool = height, pool
        return value.clone()

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        (factor,) = ctx.saved_tensors
        spread = dy.repeat_interleave(2, -1).repeat_interleave(2, -2) if ctx.pool else dy
        wide = torch.promote_types(dy.dtype, torch.float32)
        rounded = (factor.to(wide) / ctx.height * 255).round() / 255 * ctx.height
        return (spread.to(wide) * rounded).to(dy.dtype), None, None, None, None


def oracle(z: Tensor, *, save: str = "auto", **options: Any) -> Tensor:
    """The definition; save="byte" rounds the factors too."""
    value = hard_threshold_ref(z, **options)
    if save != "byte" or not z.requires_grad:
        return value
    (factor,) = torch.autograd.grad(value, z, torch.ones_like(value))
    rule = RULES[options.get("kind", "sign")][options.get("rule") or "soft_hinge"]
    return _InEightBits.apply(z, value.detach(), factor, rule.height, options.get("pool"))  # pyright: ignore


_EPS = 1e-5


def normalized(z: Tensor, weight: Tensor, bias: Tensor, *, training: bool = True, **options: Any) -> Tensor:
    """The threshold behind a batch norm, in training mode or in eval mode. weight, bias: [1, C]; the suite strides
    matrices."""
    if training:
        return batch_norm_threshold(z, weight.flatten(), bias.flatten(), _EPS, **options)[0]
    return hard_threshold(z, scale=weight.flatten(), shift=bias.flatten(), **options)


def normalized_oracle(z: Tensor, weight: Tensor, bias: Tensor, *, training: bool = True, **options: Any) -> Tensor:
    wide = torch.promote_types(z.dtype, torch.float32)
    scale, shift = weight.flatten().to(wide), bias.flatten().to(wide)
    if training:
        var, mean = torch.var_mean(z.to(wide), [d for d in range(z.dim()) if d != 1], correction=0)
        scale = scale * (var + _EPS).rsqrt()
        shift = shift - mean * scale
    return hard_threshold_ref(z, scale=scale, shift=shift, **options)


# ------------------------------------------------------------------------------------------------ inputs


def _size(shape: Sizes) -> tuple[int, int, int, int]:
    return shape["N"], shape["C"], 2 * shape["H"], 2 * shape["W"]


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor]:
    """Standard normal z [N, C, 2H, 2W], of which two by two can be pooled."""
    (z,) = normal_inputs(seed, dtype, device, _size(shape))
    return (z,)


def normalized_inputs(
    shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z of mean 1, weight [1, C] near 1 and bias [1, C] near 0."""
    z, weight, bias = normal_inputs(seed, dtype, device, _size(shape), *2 * [(1, shape["C"])], scales=(2, 0.25, 0.5))
    return z + 1, weight + 1, bias


# ------------------------------------------------------------------------------------------------ workloads


class SoftHinge(torch.autograd.Function):
    """The sign and its soft hinge as eager code has them: masks, clones and a tensor for each step of the formula."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        y = z.clone()
        y[z > 0] = 1
        y[z <= 0] = -1
        return y

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        target, size = -dy.sign(), dy.abs()
        tanh = (-target * z).tanh()
        return size * -target * (1 - tanh * tanh)


class SaturatedSte(torch.autograd.Function):
    """The sign and its saturated straight-through estimator as eager code has them."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        y = z.clone()
        y[z > 0] = 1
        y[z <= 0] = -1
        return y

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        target, size = -dy.sign(), dy.abs()
        dz = -target * size
        dz[(target * z).abs() > 1] = 0  # not where 1 − t z is beyond 0 or 2: it is rounded
        return dz


def _workload(
    name: str, ours: Callable[..., Tensor], eager: Callable[..., Tensor], output: Callable[..., Any], floats: float,
    **options: Any,
) -> Workload:  # fmt: skip
    def prepare(function):
        return trained(function, output)

    return Workload(
        name,
        (
            Contender("tropigrad", "ours", prepare(ours)),
            Contender("eager", "dense", prepare(eager)),
            Contender("torch.compile", "compiled", compiled(eager, prepare)),
        ),
        operations=lambda shape: 4 * shape["N"] * shape["C"] * shape["H"] * shape["W"],
        bytes=lambda shape, itemsize: int(floats * 4 * shape["N"] * shape["C"] * shape["H"] * shape["W"] * itemsize),
        mix="add_max",
        options=options,
    )


def _same(z: Tensor, *others: Tensor) -> torch.Size:
    return z.shape


def _half(z: Tensor, *others: Tensor) -> tuple[int, ...]:
    return (*z.shape[:-2], z.shape[-2] // 2, z.shape[-1] // 2)


def _soft_hinge(z: Tensor) -> Tensor:
    return SoftHinge.apply(z)  # pyright: ignore[reportReturnType]


def _sste(z: Tensor) -> Tensor:
    return SaturatedSte.apply(z)  # pyright: ignore[reportReturnType]


def _behind_a_batch_norm(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = batch_norm(z, None, None, weight.flatten(), bias.flatten(), training=True, eps=_EPS)
    return _soft_hinge(max_pool2d(x, 2))


# numbers that go to or come from memory, an element of z: z, y, dy and dz, and what is kept, written and read
WORKLOADS = (
    _workload("soft hinge, forward + backward", hard_threshold, _soft_hinge, _same, 5),
    _workload(
        "saturated STE, forward + backward",
        lambda z: hard_threshold(z, rule="sste"),
        _sste,
        _same,
        4 + 2 / 32,
        rule="sste",
    ),
    _workload(
        "pool and soft hinge, forward + backward",
        lambda z: hard_threshold(z, pool=2),
        lambda z: _soft_hinge(max_pool2d(z, 2)),
        _half,
        2 + 4 / 4 + 4 / 128,
        pool=2,
    ),
)
NORMALIZED_WORKLOADS = (
    _workload(
        "batch norm, pool and soft hinge, forward + backward",
        lambda z, weight, bias: normalized(z, weight, bias, pool=2),
        _behind_a_batch_norm,
        _half,
        5 + 3 / 4,  # z for the statistics, for y, for the sums and for dz
        pool=2,
    ),
)

# ------------------------------------------------------------------------------------------------ samples

_ROOT3 = 3**0.5
_LEVELS = (*SPECIAL, 0.5, -0.5, 0.25, 0.75, 2.0, -2.0, _ROOT3, -_ROOT3, 1 / 3, 2 / 3, 1.5, 1e-30, -1e-30, 100.0, -100.0)
_VARIANTS: dict[str, dict[str, Any]] = {
    "soft_hinge": {},
    "sste": {"rule": "sste"},
    "ste": {"rule": "ste"},
    "hinge": {"rule": "hinge"},
    "adaline-unweighted": {"rule": "adaline", "weighted": False},
    "perceptron-unweighted": {"rule": "perceptron", "weighted": False},
    "step-lecun_tanh": {"kind": "step", "rule": "lecun_tanh"},
    "step-sste-input": {"kind": "step", "rule": "sste", "save": "input"},
    "staircase": {"kind": "staircase", "steps": 3},
    "saturated_relu": {"kind": "saturated_relu"},
    "ramp-byte": {"rule": "ramp", "save": "byte"},
    "pool": {"pool": 2},
    "pool-hinge": {"pool": 2, "rule": "hinge"},
    "pool-staircase-sste": {"pool": 2, "kind": "staircase", "steps": 5, "rule": "sste"},
    "pool-byte": {"pool": 2, "kind": "step", "rule": "sigmoid_3_2", "save": "byte"},
    "pool-relu-input": {"pool": 2, "kind": "saturated_relu", "save": "input"},
}
_NORMALIZED_VARIANTS: dict[str, dict[str, Any]] = {
    "training": {},
    "training-pool-sste": {"pool": 2, "rule": "sste"},
    "training-staircase-unweighted": {"kind": "staircase", "steps": 3, "weighted": False},
    "eval": {"training": False},
    "eval-pool-relu": {"training": False, "pool": 2, "kind": "saturated_relu"},
}


def _rounds(kwargs: Mapping[str, Any]) -> bool:
    """Whether the gradient goes through an exponential."""
    kind = kwargs.get("kind", "sign")
    rule = kwargs.get("rule") or ("" if kind == "saturated_relu" else "soft_hinge")
    return RULES[kind][rule].family == "sech"


def _every_form() -> dict[str, dict[str, Any]]:
    forms: dict[str, dict[str, Any]] = {}
    for kind, rules in RULES.items():
        for rule in rules:
            for steps in (2, 3, 5) if kind == "staircase" else (None,):
                options = {"kind": kind, **({"rule": rule} if rule else {}), **({"steps": steps} if steps else {})}
                forms["-".join([kind, *([str(steps)] if steps else []), *([rule] if rule else [])])] = options
    return forms


@sampled
def samples(add, numbers) -> None:
    """Every kind and rule at its steps, bounds, NaN and infinities; equal elements of a pool; layouts; empty sizes."""
    special = torch.tensor(_LEVELS)
    for name, options in _every_form().items():
        add(f"{name}-special", special, **options)
    row = torch.cat((special, numbers.normal(len(special))))
    pooled = numbers.among(special, 2, 3, 8, 10)
    for dtype in FLOATS:
        label = short(dtype)
        for name in ("soft_hinge", "sste", "hinge", "staircase", "saturated_relu", "ramp-byte"):
            add(f"{name}-{label}", row.to(dtype), **_VARIANTS[name])
        for name in ("pool", "pool-hinge", "pool-byte"):
            add(f"ties-{name}-{label}", pooled.to(dtype), **_VARIANTS[name])
        add(f"affine-{label}", pooled.to(dtype), scale=torch.tensor([0.5, -2, 0]), shift=torch.tensor([0.0, 1, -1]))
    z = numbers.normal(3, 5, 4, 6)
    by_channels = z.contiguous(memory_format=torch.channels_last)
    for name in ("soft_hinge", "hinge", "saturated_relu", "pool", "pool-hinge"):
        add(f"channels_last-{name}", by_channels, **_VARIANTS[name])
        add(f"transposed-{name}", z.transpose(2, 3), **_VARIANTS[name])
    scale, shift = numbers.normal(5), numbers.normal(5)
    for label, x in (("", z), ("-channels_last", by_channels), ("-matrix", z[:, :, 0, 0]), ("-cube", z[:, :, 0])):
        add(f"affine-of-5{label}", x, scale=scale, shift=shift)
        add(f"affine-of-5-hinge{label}", x, scale=scale.double(), shift=shift.double(), rule="hinge")
    add("affine-pool", z, scale=scale, shift=shift, pool=2)
    add("no-dimension", z[0, 0, 0, 0])
    add("matrix-pool", z[0, 0], pool=2)
    add("five-dimensions-pool", z.view(1, 3, 5, 4, 6), pool=2, rule="sste")
    for count in (1, 7, 8, 9, 63, 64, 65, 1000, 5003):
        add(f"long-{count}", numbers.normal(count), rule="sste")
    for size in ((0,), (3, 0), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        label = "x".join(map(str, size))
        add(f"empty-{label}", torch.ones(size))
        add(f"empty-hinge-{label}", torch.ones(size), rule="hinge")
        if len(size) == 4:
            add(f"empty-pool-{label}", torch.ones(size), pool=2)


@sampled
def normalized_samples(add, numbers) -> None:
    """Dtypes, ranks, layouts and pools; a constant channel; a weight of 0 and a negative one."""
    for dtype in FLOATS:
        z, weight, bias = normalized_inputs({"N": 3, "C": 4, "H": 2, "W": 3}, dtype, torch.device("cpu"), 0)
        weight[0, :2] = torch.tensor([0, -1.0])
        for name, options in _NORMALIZED_VARIANTS.items():
            add(f"{name}-{short(dtype)}", z, weight, bias, **options)
    z, weight, bias = normalized_inputs({"N": 3, "C": 4, "H": 2, "W": 3}, torch.float32, torch.device("cpu"), 0)
    z[:, 2] = 0.5
    for training in (True, False):
        label = "training" if training else "eval"
        add(f"{label}-constant", z, weight, bias, training=training)
        for options in ({}, {"rule": "ste"}, {"pool": 2}):
            name = "-".join([label, *map(str, options.values())])
            by_channels = z.contiguous(memory_format=torch.channels_last)
            add(f"{name}-channels_last", by_channels, weight, bias, training=training, **options)
        add(f"{label}-matrix", z[:, :, 0, 0], weight, bias, training=training)
        add(f"{label}-cube", z[:, :, 0], weight, bias, training=training, rule="hinge")


# ------------------------------------------------------------------------------------------------ misuses


def misuses(device: torch.device) -> list[Misuse]:
    z, bad = torch.zeros(2, 3, 4, 6, device=device), misuse_of(hard_threshold)
    of_channel = torch.ones(3, device=device)
    affine, shorter = {"scale": of_channel, "shift": of_channel}, torch.ones(2, device=device)
    return [
        bad("kind", ValueError, "kind is 'signum'; expected one of 'sign', 'step', 'staircase'", z, kind="signum"),
        bad("rule", ValueError, "rule is 'soft'; expected one of 'soft_hinge', 'sste'", z, rule="soft"),
        bad("rule-of-staircase", ValueError, "rule is 'hinge'; expected one of 'soft_hinge', 'sste', 'ste' for kind "
            "'staircase'", z, kind="staircase", steps=3, rule="hinge"),
        bad("rule-of-relu", ValueError, "expected None and True", z, kind="saturated_relu", rule="ste"),
        bad("unweighted-relu", ValueError, "expected None and True", z, kind="saturated_relu", weighted=False),
        bad("weighted", TypeError, "weighted is 1; expected True or False", z, weighted=1),
        bad("save", ValueError, "save is 'all'; expected 'auto', 'input', 'bits' or 'byte'", z, save="all"),
        bad("bits", ValueError, "save is 'bits' and rule 'soft_hinge'", z, save="bits"),
        bad("byte", ValueError, "save is 'byte' and rule 'hinge'", z, rule="hinge", save="byte"),
        bad("steps", ValueError, "steps is 3 and kind 'sign'; expected None", z, steps=3),
        bad("no-steps", ValueError, "steps is None; expected an integer of at least 2", z, kind="staircase"),
        bad("one-step", ValueError, "steps is 1; expected an integer of at least 2", z, kind="staircase", steps=1),
        bad("float-steps", ValueError, "steps is 3.0; expected an integer", z, kind="staircase", steps=3.0),
        bad("pool", ValueError, "pool is 3; expected None or 2", z, pool=3),
        bad("odd", ValueError, r"z has shape \(2, 3, 4, 5\); expected even last two", z[..., :5], pool=2),
        bad("vector-pool", ValueError, r"z has shape \(6,\); expected even last two", z[0, 0, 0], pool=2),
        bad("complex", TypeError, "z is torch.complex64; expected one of float64", z.to(torch.complex64)),
        bad("bool", TypeError, "z is torch.bool; expected one of float64", z > 0),
        bad("no-shift", ValueError, "one of scale and shift is None; expected both or none", z, scale=of_channel),
        bad("vector-affine", ValueError, r"z has shape \(6,\); expected \[N, C, ...\]", z[0, 0, 0], **affine),
        bad("scale-shape", ValueError, r"scale has shape \(2,\)", z, **{**affine, "scale": shorter}),
        bad("shift-dtype", TypeError, "shift is torch.int64; expected", z, **{**affine, "shift": of_channel.long()}),
        bad("scale-list", TypeError, "scale is a list; expected a torch.Tensor", z, **{**affine, "scale": [1.0]}),
        bad("shift-device", ValueError, "shift is on meta and z on", z, **{**affine, "shift": of_channel.to("meta")}),
    ]  # fmt: skip


_NO_DERIVATIVE = "its gradient is a rule's, not the derivative of its value"
_SHAPES: dict[str, Sizes] = {
    "million": {"N": 64, "C": 64, "H": 8, "W": 8},
    "4-million": {"N": 64, "C": 64, "H": 16, "W": 16},
    "16-million": {"N": 64, "C": 64, "H": 32, "W": 32},
}
_SMALL: tuple[Sizes, ...] = (
    {"N": 1, "C": 1, "H": 1, "W": 1},
    {"N": 2, "C": 3, "H": 4, "W": 9},
    {"N": 3, "C": 5, "H": 3, "W": 11},
)

SPEC = register(
    Spec(
        name="hard_threshold",
        op=hard_threshold,
        oracle=oracle,
        inputs=inputs,
        shapes=_SHAPES,
        workloads=WORKLOADS,
        variants=_VARIANTS,
        dtypes=FLOATS,
        small_shapes=_SMALL,
        samples=samples,
        particular_misuses=misuses,
        has_exact_gradient=lambda kwargs: not _rounds(kwargs),
        implementations=FORWARDS,
        tuned={"cpp": (by_cpp.FORWARD, by_cpp.BACKWARD), "triton": (by_triton.FORWARD, by_triton.BACKWARD)},
        middle={"N": 5, "C": 7, "H": 30, "W": 31},
        left_out={"gradcheck": _NO_DERIVATIVE},
    )
)
register(
    Spec(
        name="batch_norm_threshold",
        op=normalized,
        oracle=normalized_oracle,
        inputs=normalized_inputs,
        shapes=_SHAPES,
        workloads=NORMALIZED_WORKLOADS,
        variants=_NORMALIZED_VARIANTS,
        dtypes=FLOATS,
        small_shapes=_SMALL,
        samples=normalized_samples,
        is_wrapped=True,
        has_exact_gradient=lambda kwargs: False,
        implementations=FORWARDS,
        middle={"N": 5, "C": 7, "H": 30, "W": 31},
        left_out={
            "gradcheck": _NO_DERIVATIVE,
            "autocast": "weight and bias may be wider than z, which keeps its dtype, as in torch's batch norm",
            "config": "float32 sums of that many terms differ by their order; test_every_kernel_asks compares the bits",
            "ends": "the variance of such numbers overflows",
        },
        tuned={
            "cpp": (by_cpp.FORWARD, by_cpp.BACKWARD, by_cpp.SUMS),
            "triton": (by_triton.FORWARD, by_triton.BACKWARD, by_triton.SUMS),
        },
    )
)
