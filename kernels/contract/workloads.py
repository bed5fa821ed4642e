"""Makes a function a contender of a workload: called, trained, or compiled before either.

Nothing is evaluated while a contender is prepared. Memory is measured in its first call, which must therefore include
the buffers that it keeps for later calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]  # gives a tensor, or a tuple of tensors
Call = Callable[[], tuple[Tensor, ...]]
Prepare = Callable[..., Call]


def called(function: Function) -> Prepare:
    """Calls give the function's results."""

    def prepare(*args: Tensor) -> Call:
        def call() -> tuple[Tensor, ...]:
            results = function(*args)
            return tuple(results) if isinstance(results, tuple) else (results,)

        return call

    return prepare


def trained(function: Function, output: Callable[..., Sequence[int]]) -> Prepare:
    """Calls run forward, and backward under a gradient of ones: (value, the gradient of each floating-point argument).

    output: gives the shape of the function's value for the same arguments.
    """

    def prepare(*args: Tensor) -> Call:
        args = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in args)
        leaves = [x for x in args if x.requires_grad]
        gradient = leaves[0].new_ones(tuple(output(*args)))

        def call() -> tuple[Tensor, ...]:
            value = function(*args)
            return (value.detach(), *torch.autograd.grad(value, leaves, gradient))

        return call

    return prepare


def compiled(function: Function, prepare: Callable[[Function], Prepare]) -> Prepare:
    """Prepares what torch.compile makes of the function, compiled for these very sizes."""
    return lambda *args: prepare(torch.compile(function, dynamic=False))(*args)
