"""Log and shift as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..contract.registry import register
from ..contract.spec import Misuse, Sample, Sizes, Spec
from ..contract.workloads import called, rivals, standard, trained
from . import DTYPES, FORWARDS, by_cpp, by_triton, log_shift, log_shift_ref


def op(counts: Tensor, smoothing: Tensor, **kwargs) -> Tensor:
    """Both results as one tensor [D + 1, C]: log S is the last row. smoothing is [1, C]: the suite strides matrices."""
    result = log_shift(counts, smoothing=smoothing.flatten(), **kwargs)
    return torch.cat((result[0], result[1].unsqueeze(0)))


def oracle(counts: Tensor, smoothing: Tensor, **kwargs) -> Tensor:
    weight, log_mass = log_shift_ref(counts, smoothing=smoothing.flatten(), **kwargs)
    return torch.cat((weight, log_mass.unsqueeze(0)))


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Counts [D, C] from 0 to 99, as integers, and smoothing [1, C] from 1/8 to 2."""
    D, C = shape["D"], shape["C"]
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 100, (D, C), generator=generator, device="cpu")
    smoothing = torch.randint(1, 17, (1, C), generator=generator, device="cpu") / 8
    return counts.to(device, dtype), smoothing.to(device, dtype if dtype.is_floating_point else torch.float64)


def _plain(counts: Tensor, smoothing: Tensor) -> Tensor:
    mass = counts + smoothing
    log_mass = mass.sum(0).log()
    return torch.cat((mass.log() - (1 - 1 / 32) * log_mass, log_mass.unsqueeze(0)))


def _output(counts: Tensor, smoothing: Tensor) -> tuple[int, ...]:
    return counts.shape[0] + 1, counts.shape[1]


def _op32(counts: Tensor, smoothing: Tensor) -> Tensor:
    return op(counts, smoothing, scale=32.0)


WORKLOADS = standard(
    "log and shift",
    _op32,
    inputs,
    _output,
    lambda shape: shape["D"] * shape["C"],
    "exp",
    forward=rivals(_plain, called, "eager"),
    training=rivals(_plain, lambda function: trained(function, _output), "eager"),
)

# ------------------------------------------------------------------------------------------------ samples


def samples(device: torch.device) -> list[Sample]:
    """Dtypes, both memory orders, zeros and other special counts, no smoothing, empty sizes."""
    listed: list[Sample] = []
    generator = torch.Generator().manual_seed(0)

    def add(id: str, counts: Tensor, smoothing: Tensor, **kwargs) -> None:
        listed.append(Sample(id, (counts.to(device), smoothing.to(device)), kwargs))

    for dtype in DTYPES:
        label = str(dtype).removeprefix("torch.")
        counts = torch.randint(0, 50, (33, 5), generator=generator).to(dtype)
        smoothing = torch.rand(1, 5, generator=generator, dtype=torch.float64) + 0.1
        smoothing = smoothing.to(dtype) if dtype.is_floating_point else smoothing
        for scale in (1, 0.5, 784.0, math.inf):
            add(f"{label}-scale-{scale}", counts, smoothing, scale=scale)
        add(f"{label}-transposed", counts.t().contiguous().t(), smoothing, scale=4.0)
        add(f"{label}-no-smoothing", counts + 1, torch.zeros_like(smoothing), scale=4.0)
    special = torch.tensor([[0.0, 1, 2], [math.inf, 1, 3], [5, math.nan, 4], [7, 1, -9]], dtype=torch.float64)
    add("special", special, torch.zeros(1, 3, dtype=torch.float64))
    add("special-float32", special.float(), torch.zeros(1, 3))
    tiny = torch.tensor([[1e-320, 1e-40], [1e300, 1e30]], dtype=torch.float64)
    add("ends", tiny, torch.zeros(1, 2, dtype=torch.float64), scale=2.0)
    add("large-integers", torch.tensor([[1 << 52, 3], [(1 << 62) + 1, 1 << 51]]), torch.ones(1, 2, dtype=torch.float64))
    add("zero-column", torch.tensor([[0.0, 1], [0, 2]]), torch.zeros(1, 2))
    for D, C in ((0, 3), (3, 0), (0, 0)):
        add(f"empty-{D}x{C}", torch.ones(D, C), torch.ones(1, C), scale=3.0)
    return listed


def misuses(device: torch.device) -> list[Misuse]:
    x, eps = torch.ones(3, 2, device=device), torch.ones(2, device=device)

    def bad(id: str, error: type[Exception], match: str, *args: Any, **kwargs) -> Misuse:
        return Misuse(id, lambda: log_shift(*args, **kwargs), error, match)

    misuses = [
        bad("not-a-tensor", TypeError, "counts is a list; expected a torch.Tensor", [[1.0]]),
        bad("int32", TypeError, "counts is torch.int32; expected one of int64, float64", x.int()),
        bad("coo", TypeError, r"counts has layout torch.sparse_coo; .*to_sparse_csr\(\)", x.to_sparse()),
        bad("half-csr", TypeError, "counts is torch.float16; expected one of int64, float64, float32$",
            x.to_sparse_csr().half()),
        bad("rank", ValueError, r"counts has shape \(3,\); expected \[D, C\]", x[:, 0]),
        bad("scale", ValueError, "scale is 0; expected a positive number", x, scale=0),
        bad("scale-type", TypeError, "scale is a str; expected a number", x, scale="1"),
        bad("smoothing", ValueError, "smoothing is -1; expected a number of at least 0", x, smoothing=-1),
        bad("smoothing-type", TypeError, "smoothing is a str; expected a number or a torch.Tensor", x, smoothing="1"),
        bad("smoothing-dtype", TypeError, "smoothing is torch.int64; expected one of float64", x, smoothing=eps.long()),
        bad("smoothing-shape", ValueError, r"smoothing has shape \(1,\); expected \[2\]", x, smoothing=eps[:1]),
        bad("smoothing-device", ValueError, "smoothing is on meta and counts on", x, smoothing=eps.to("meta")),
        bad("sparse-smoothing", ValueError, "smoothing is 0; expected a number above 0, as counts is sparse",
            x.to_sparse_csr(), smoothing=0),
    ]  # fmt: skip
    if device.type == "cpu":
        misuses += [
            bad("negative", ValueError, r"smoothing\[1\] is -1.0; expected a number of at least 0", x,
                smoothing=torch.tensor([1.0, -1.0])),
            bad("sparse-zero", ValueError, r"smoothing\[0\] is 0.0; expected a number above 0", x.to_sparse_csr(),
                smoothing=torch.tensor([0.0, 1.0])),
        ]  # fmt: skip
    return misuses


SPEC = register(
    Spec(
        name="log_shift",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "mnist": {"D": 784, "C": 10},
            "codes": {"D": 784, "C": 1000},
            "words": {"D": 33_278, "C": 100},
        },
        workloads=WORKLOADS,
        variants={"scale-1": {}, "scale-32": {"scale": 32.0}, "scale-inf": {"scale": math.inf}},
        dtypes=DTYPES,
        small_shapes=({"D": 1, "C": 1}, {"D": 17, "C": 33}, {"D": 30, "C": 7}),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        is_exact=lambda kwargs: False,
        implementations=FORWARDS,
        middle={"D": 3000, "C": 20},
        left_out={
            "ends": "counts are at least 0",
            "config": "it asks for the subgradient: tests/kernels/test_log_shift.py goes through the space",
            "subgradient": "its random integers are negative, of which there is no logarithm",
        },
        tuned={"cpp": (by_cpp.FORWARD,), "triton": (by_triton.FORWARD, by_triton.MASS)},
    )
)
