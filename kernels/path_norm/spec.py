"""path_norm as data: oracle, inputs, contenders of its benchmarks, and what its tests need."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.misuses import misuse_of
from ..contract.networks import ALIASED, network_misuses
from ..contract.registry import register
from ..contract.samples import INF, NAN, normal_inputs, sampled
from ..contract.spec import Extra, Misuse, Scaling, Sizes, Spec
from ..contract.workloads import Function, Prepare, called, rivals, standard, trained
from ..runtime.arguments import FLOATS
from . import _NORMS, by_cpp, path_norm, path_norm_ref


def op(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm(weights, **kwargs)


def oracle(*weights: Tensor, **kwargs) -> Tensor:
    return path_norm_ref(weights, **kwargs)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Four layers N → M → N → M → N, normal, of variance 1 / in: a sum of about N."""
    return _weights_of([shape["N"], shape["M"], shape["N"], shape["M"], shape["N"]], dtype, device, seed)


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Inputs of as many layers, all but the first as wide as the widest."""
    widths = [int(problem["N"]), *[int(problem["M"])] * int(problem["layers"])]
    return _weights_of(widths, dtype, device, 0)


def _weights_of(widths: list[int], dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    pairs = [*itertools.pairwise(widths)]
    scales = [max(1, source) ** -0.5 for source, _ in pairs]
    return normal_inputs(seed, dtype, device, *((o, i) for i, o in pairs), scales=scales)


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


@sampled
def samples(add, numbers) -> None:
    """Overflow, underflow, zeros, special values, convolutions and empty layers."""

    def both(id: str, *shapes: tuple[int, ...], scale: float = 1.0, **kwargs) -> None:
        weights = [scale * numbers.normal(*shape) for shape in shapes]
        for p in (1, 2):
            add(f"{id}-p={p}", *weights, p=p, **kwargs)

    chain = (3, 5), (4, 3), (2, 4)
    both("one-layer", (3, 5))
    both("pointwise", (4, 3, 1, 1), (2, 4, 1, 1), input_size=(2, 3))
    both("flattened", (4, 2, 3, 2), (5, 4, 2, 2), (6, 100), input_size=5, padding=[1, 0], stride=[1, 1])
    both("strided", (4, 2, 3, 3), input_size=(9, 8), stride=[(2, 1)], padding=[(1, 2)])
    both("large", *chain, scale=1e18, log=True)
    both("small", *chain, scale=1e-18, log=True)
    both("overflow", *chain, scale=1e18)
    both("underflow", *chain, scale=1e-18)
    both("zero", *chain[:2], scale=0.0)
    both("log-of-zero", *chain[:2], scale=0.0, log=True)
    both("no-nodes", (0, 3), (2, 0))
    for name, value in (("nan", NAN), ("inf", INF)):
        add(name, torch.full((2, 3), value), torch.ones(2, 2), p=2)


def misuses(device: torch.device) -> list[Misuse]:
    w = torch.zeros(3, 2, device=device)
    power = misuse_of(path_norm)("p", ValueError, "p is 3; expected 1 or 2", [w], 3)
    return [power, *network_misuses(path_norm, device)]


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
        aliased=ALIASED,
        tuned={"cpp": (by_cpp.FORWARD, by_cpp.BACKWARD)},
        extra=Extra(inputs_at=inputs_at),
    )
)
