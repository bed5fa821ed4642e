"""Samples and inputs of specs: numbers that are drawn the same each time, special values, calls listed by their ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .spec import Sample

NAN, INF = float("nan"), float("inf")
SPECIAL = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0)


class Numbers:
    """Random numbers on the CPU, the same for the same seed and order of calls."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(size, generator=self.generator, dtype=dtype, device="cpu")

    def small(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Integers from −2 to 2: many ties, exact sums."""
        return torch.randint(-2, 3, size, generator=self.generator, device="cpu").to(dtype)

    def bounded(self, dtype: torch.dtype, *size: int) -> Tensor:
        """All integers of a dtype, its bounds too."""
        bounds = torch.iinfo(dtype)
        return torch.randint(bounds.min, bounds.max + 1, size, generator=self.generator, device="cpu").to(dtype)

    def among(self, values: Tensor, *size: int) -> Tensor:
        """Each one of `values`."""
        return values[torch.randint(len(values), size, generator=self.generator, device="cpu")]

    def orders(self, rows: int, count: int, length: int) -> Tensor:
        """[rows, length]: in each row so many of the first `count` integers, all different."""
        drawn = (torch.randperm(count, generator=self.generator, device="cpu")[:length] for _ in range(rows))
        return torch.stack([*drawn])

    def sprinkle(self, x: Tensor, values: Tensor) -> None:
        """Writes `values` to elements of x, no two of them to the same."""
        x.view(-1)[torch.randperm(x.numel(), generator=self.generator, device="cpu")[: len(values)]] = values


def normal_inputs(
    seed: int, dtype: torch.dtype, device: torch.device, *sizes: Sequence[int], scales: Sequence[float] = ()
) -> tuple[Tensor, ...]:
    """Tensors of these sizes: standard normal times `scales`, rounded once; integers from ±1000, or all of int8."""
    numbers = Numbers(seed)
    if dtype.is_floating_point:
        drawn = [numbers.normal(*size, dtype=torch.float64) for size in sizes]
        drawn = [x * scale for x, scale in zip(drawn, scales, strict=True)] if scales else drawn
    else:
        bound = min(1000, torch.iinfo(dtype).max)
        drawn = [torch.randint(-bound, bound, (*size,), generator=numbers.generator, device="cpu") for size in sizes]
    return tuple(x.to(device, dtype) for x in drawn)


def sampled(describe: Callable[[Callable[..., None], Numbers], None]) -> Callable[[torch.device], list[Sample]]:
    """Makes a Spec's `samples` of describe(add, numbers). add(id, *args, **kwargs) lists one call, on the device."""

    @functools.wraps(describe)
    def samples(device: torch.device) -> list[Sample]:
        listed: list[Sample] = []

        def on_device(x: Any) -> Any:
            return x.to(device) if isinstance(x, Tensor) else x

        def add(id: str, *args: Any, **kwargs: Any) -> None:
            options = {name: on_device(value) for name, value in kwargs.items()}
            listed.append(Sample(id, tuple(map(on_device, args)), options))

        with torch.device("cpu"):
            describe(add, Numbers())
        return listed

    return samples


def short(dtype: torch.dtype) -> str:
    """The name of a dtype in an id: float32."""
    return str(dtype).removeprefix("torch.")
