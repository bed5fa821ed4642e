"""path_norm as data: oracle, inputs, contenders of its benchmarks, and what its tests need."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.registry import register
from ..contract.spec import Extra, Misuse, Sample, Scaling, Sizes, Spec
from ..contract.workloads import Function, Prepare, called, rivals, standard, trained
from ..runtime.arguments import FLOATS
from . import _NORMS, by_cpp, path_norm, path_norm_ref


def op(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm(weights, **kwargs)


def oracle(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm_ref(weights, **kwargs)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Four layers N → M → N → M → N, normal, of variance 1 / in: a sum of about N."""
    generator = torch.Generator().manual_seed(seed)
    return _weights_of([shape["N"], shape["M"], shape["N"], shape["M"], shape["N"]], dtype, device, generator)


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of as many layers, all but the first as wide as the widest."""
    widths = [int(problem["N"]), *[int(problem["M"])] * int(problem["layers"])]
    return _weights_of(widths, dtype, device, torch.Generator().manual_seed(0))


def _weights_of(widths: list[int], dtype, device, generator) -> tuple[Tensor, ...]:
    weights = []
    for source, target in itertools.pairwise(widths):
        weight = torch.randn(target, source, generator=generator, dtype=torch.float64)
        weights.append((weight * max(1, source) ** -0.5).to(device, dtype))
    return tuple(weights)


def _plain(*weights: Tensor) -> Tensor:
    x = weights[0].new_ones(weights[0].shape[1])
    for w in weights:
        x = w.square() @ x
    return x.sum()


def _output(*weights: Tensor) -> tuple[int, ...]:
    return ()


def _trained(norm: Function) -> Prepare:
    return trained(norm, _output)


WORKLOADS = standard(
    "path norm",
    op,
    inputs,
    _output,
    lambda shape: 4 * shape["M"] * shape["N"],  # one multiplication and addition a weight
    "mul_add",
    forward=rivals(_plain, called, "unscaled pass"),
    training=rivals(_plain, _trained, "unscaled pass"),
)


def samples(device: torch.device) -> list[Sample]:
    """Overflow, underflow, zeros, special values, convolutions and empty layers."""
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = []

    def add(id: str, *shapes: tuple[int, ...], scale: float = 1.0, **kwargs) -> None:
        weights = tuple((scale * torch.randn(shape, generator=generator)).to(device) for shape in shapes)
        for p in (1, 2):
            samples.append(Sample(f"{id}-p={p}", weights, {"p": p, **kwargs}))

    add("one-layer", (3, 5))
    add("pointwise", (4, 3, 1, 1), (2, 4, 1, 1), input_size=(2, 3))
    add("flattened", (4, 2, 3, 2), (5, 4, 2, 2), (6, 100), input_size=5, padding=[1, 0], stride=[1, 1])
    add("strided", (4, 2, 3, 3), input_size=(9, 8), stride=[(2, 1)], padding=[(1, 2)])
    add("large", (3, 5), (4, 3), (2, 4), scale=1e18, log=True)
    add("small", (3, 5), (4, 3), (2, 4), scale=1e-18, log=True)
    add("overflow", (3, 5), (4, 3), (2, 4), scale=1e18)
    add("underflow", (3, 5), (4, 3), (2, 4), scale=1e-18)
    add("zero", (3, 5), (4, 3), scale=0.0)
    add("log-of-zero", (3, 5), (4, 3), scale=0.0, log=True)
    add("no-nodes", (0, 3), (2, 0))
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        weight = torch.full((2, 3), value, device=device)
        samples.append(Sample(name, (weight, torch.ones(2, 2, device=device)), {"p": 2}))
    return samples


def misuses(device: torch.device) -> list[Misuse]:
    w = torch.zeros(3, 2, device=device)
    alone: Any = w
    return [
        Misuse("p", lambda: path_norm([w], 3), ValueError, "p is 3; expected 1 or 2"),
        Misuse("one-tensor", lambda: path_norm(alone), TypeError, "weights is a Tensor; expected a list of weights"),
        Misuse("chain", lambda: path_norm([w, w]), ValueError, r"weights\[1\] has shape \(3, 2\); expected \(out, 3\)"),
    ]


SPEC = register(
    Spec(
        name="path_norm",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={"64": {"M": 64, "N": 64}, "256": {"M": 256, "N": 256}, "1024": {"M": 1024, "N": 1024}},
        workloads=WORKLOADS,
        variants={f"p={p}": {"p": p} for p in (1, 2)},
        dtypes=FLOATS,
        small_shapes=({"M": 1, "N": 1}, {"M": 11, "N": 7}, {"M": 5, "N": 9}),
        samples=samples,
        particular_misuses=misuses,
        is_exact=lambda kwargs: False,
        implementations=_NORMS,
        middle={"M": 260, "N": 1100},
        left_out={"ends": "sums of such numbers round as their order has it"},
        scalings=lambda kwargs: (
            Scaling((1, 0, 0, 0), kwargs["p"]),
            Scaling((1, -1, 1, -1), 0),
            Scaling((-1, 1, 1, -1), 0),
            Scaling((2, -2, 2, -2), 0),  # squares beyond the range of the sum
        ),
        aliased={
            "one-weight": lambda w: (w, w, w),
            "transposed": lambda w: (w, w.mT, w),
            "rows": lambda w: (w, w[1:4]),
        },
        tuned={"cpp": (by_cpp.FORWARD, by_cpp.BACKWARD)},
        extra=Extra(inputs_at=inputs_at),
    )
)
