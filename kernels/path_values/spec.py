"""Path values as data: shapes, costs, rivals, samples and misuses. Arguments are flat here: (*weights, paths)."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.misuses import misuse_of
from ..contract.networks import network_misuses
from ..contract.registry import register
from ..contract.samples import SPECIAL, Numbers, sampled
from ..contract.spec import Extra, Misuse, Scaling, Sizes, Spec
from ..contract.workloads import Function, Prepare, called, rivals, standard, trained
from ..mathematics.network import network
from ..runtime.arguments import FLOATS
from . import _FORWARDS, by_cpp, by_triton, path_values, path_values_ref
from .definition import sizes

LAYERS = 6


def op(*weights: Tensor, **kwargs) -> Tensor:
    return path_values(weights[:-1], weights[-1], **kwargs)


def oracle(*args, **kwargs) -> Tensor:
    *weights, paths = args
    return path_values_ref(weights, paths, **kwargs)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Six layers N → M → M → M → M → M → K of weights ±1 and ±2, and P random paths.

    Products of such weights, and sums of them, are exact in float32: no order of multiplying or adding shows.
    """
    return _inputs([shape["N"], *[shape["M"]] * (LAYERS - 1), shape["K"]], shape["P"], dtype, device, seed)


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...] | None:
    """One to three layers with about as many weights."""
    N, M, K, count, P = (int(problem[name]) for name in ("N", "M", "K", "weights", "P"))
    inner = max(1, (count - N * M) // (M + K))
    for widths in ([N, M], [N, M, K], [N, M, inner, K], [N, M, inner + 1, K]):
        size = sum(source * target for source, target in itertools.pairwise(widths))
        if widths[-1] == K and (size - 1).bit_length() == (count - 1).bit_length():
            return _inputs(widths, P, dtype, device, 0)
    return None


def _inputs(widths: list[int], count: int, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    numbers, values = Numbers(seed), torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=dtype)
    weights = [numbers.among(values, o, i).to(device) for i, o in itertools.pairwise(widths)]
    return *weights, random_paths(widths, count, numbers.generator).to(device)


def random_paths(widths: list[int], count: int, generator: torch.Generator | None = None) -> Tensor:
    """[count, len(widths)] int64, each node uniform in its layer."""
    return torch.stack([torch.randint(width, (count,), generator=generator) for width in widths], 1)


# ------------------------------------------------------------------------------------------------ contenders


def _loop(*args: Tensor) -> Tensor:
    """One gather a layer."""
    *weights, paths = args
    value = weights[0][paths[:, 1], paths[:, 0]]
    for l, weight in enumerate(weights[1:], 1):
        value = value * weight[paths[:, l + 1], paths[:, l]]
    return value


def _output(*args: Tensor) -> tuple[int, ...]:
    return tuple(args[-1].shape[:1])


def _trained(product: Function) -> Prepare:
    return trained(product, _output)


WORKLOADS = standard(
    "path values",
    op,
    inputs,
    _output,
    lambda shape: LAYERS * shape["P"],
    "gather",
    forward=rivals(_loop, called, "loop of gathers"),
    training=rivals(_loop, _trained, "loop of gathers"),
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Depths, special values, dtypes of paths, convolutions, strides of paths, and edges."""
    for depth in (1, 2, 9):
        widths = torch.randint(1, 20, (depth + 1,), generator=numbers.generator).tolist()
        weights = [numbers.normal(o, i) for i, o in itertools.pairwise(widths)]
        paths = random_paths(widths, 700, numbers.generator)
        add(f"depth-{depth}", *weights, paths)
        add(f"depth-{depth}-float64", *(w.double() for w in weights), paths)
        add(f"depth-{depth}-float16", *(w.half() for w in weights), paths)
        add(f"depth-{depth}-int32", *weights, paths.int())
        add(f"depth-{depth}-int16", *weights, paths.short())
        add(f"depth-{depth}-columns", *weights, paths.mT.contiguous().mT)
        add(f"depth-{depth}-batch", *weights, paths.view(7, 100, -1))
        add(f"depth-{depth}-one-path", *weights, paths[5])
        add(f"depth-{depth}-no-paths", *weights, paths[:0])
    special, one = torch.tensor([SPECIAL]), torch.zeros(1, 4, dtype=torch.int64)
    every = torch.cartesian_prod(torch.arange(7), torch.tensor([0]), torch.arange(7))
    add("special", special, special.mT.contiguous(), every)
    add("overflow", *(torch.full((1, 1), x) for x in (1e30, 1e30, 1e-30)), one)
    add("beyond-half", *(torch.full((1, 1), x).half() for x in (200.0, 500.0, 0.01)), one)  # 100000 on the way
    strided = {"input_size": (9, 8), "stride": [(2, 1), 2], "padding": [1, (2, 0)]}
    flattened = [(4, 2, 3, 3), (5, 4, 2, 2), (6, 80), (3, 6)]
    images = {
        "plain": ([(4, 2, 3, 3)], {"input_size": 5}),
        "strided": ([(4, 2, 3, 2), (3, 4, 3, 3)], strided),
        "flattened": (flattened, {"input_size": (5, 5), "padding": [1, 0]}),
        "pointwise": ([(4, 3, 1, 1), (2, 4, 1, 1)], {"input_size": (2, 3)}),
    }
    for name, (shapes, kwargs) in images.items():
        weights = [numbers.normal(*shape) for shape in shapes]
        layers = network("path_values", weights, **{"stride": 1, "padding": 0, **kwargs})
        paths = random_paths(sizes(layers), 3000, numbers.generator)
        add(f"convolution-{name}", *weights, paths, **kwargs)
        add(f"convolution-{name}-float64-int32", *(w.double() for w in weights), paths.int(), **kwargs)


def misuses(device: torch.device) -> list[Misuse]:
    w = torch.zeros(3, 2, device=device), torch.zeros(4, 3, device=device)
    paths = torch.zeros(5, 3, dtype=torch.int64, device=device)
    bad = misuse_of(partial(path_values, w))
    misuses = [
        *network_misuses(
            lambda weights, **kwargs: path_values(weights, paths[:, : len(weights) + 1], **kwargs), device
        ),
        bad("paths", TypeError, "paths is a list; expected a torch.Tensor", [[0, 0, 0]]),
        bad("float-paths", TypeError, "paths is torch.float32; expected int64, int32 or int16", paths.float()),
        bad("columns", ValueError, r"paths has shape \(5, 2\); expected \[P, 3\]", paths[:, :2]),
        bad("paths-device", ValueError, "paths is on meta and weights on", paths.to("meta")),
    ]
    if device.type == "cpu":
        large, negative = paths.clone(), paths.clone()
        large[2, 1], negative[4, 0] = 3, -1
        misuses += [
            bad("too-large", IndexError, r"paths\[2, 1\] is 3; expected a node of layer 1, in \[0, 3\)", large),
            bad("negative", IndexError, r"paths\[4, 0\] is -1; expected a node of layer 0, in \[0, 2\)", negative),
        ]
    return misuses


SPEC = register(
    Spec(
        name="path_values",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "64": {"M": 64, "N": 784, "K": 10, "P": 1_000_000},  # the networks of the paper's MNIST experiment
            "256": {"M": 256, "N": 784, "K": 10, "P": 1_000_000},
            "1024": {"M": 1024, "N": 784, "K": 10, "P": 1_000_000},
        },
        workloads=WORKLOADS,
        variants={"linear": {}},
        dtypes=FLOATS,
        small_shapes=(
            {"M": 1, "N": 1, "K": 1, "P": 1},
            {"M": 11, "N": 7, "K": 3, "P": 700},
            {"M": 5, "N": 3, "K": 4, "P": 300},
        ),
        samples=samples,
        particular_misuses=misuses,
        implementations=_FORWARDS,
        middle={"M": 64, "N": 300, "K": 10, "P": 40_000},
        tuned={"cpp": (by_cpp.FORWARD, by_cpp.BACKWARD), "triton": (by_triton.FORWARD, by_triton.BACKWARD)},
        scalings=lambda kwargs: (
            Scaling((1, *[0] * LAYERS), 1),
            Scaling((*[1, -1] * (LAYERS // 2), 0), 0),
        ),
        aliased={
            "one-weight": lambda w: (w, w, w, random_paths([6] * 4, 90, Numbers().generator).to(w.device)),
            "transposed": lambda w: (w, w.mT, random_paths([6] * 3, 90, Numbers().generator).to(w.device)),
            "rows": lambda w: (w, w[1:4], random_paths([6, 6, 3], 90, Numbers().generator).to(w.device)),
        },
        extra=Extra(inputs_at=inputs_at),
    )
)
