"""Makes contenders of functions (called, trained, or compiled before either), and the workloads that most ops have.

Nothing is evaluated while a contender is prepared: its first call is the one whose memory is measured, and buffers that
it keeps for its next time are to count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..runtime.arguments import FLOATS
from .spec import Contender, Sizes, Workload

Function = Callable[..., Any]  # gives a tensor, or a tuple of tensors
Call = Callable[[], tuple[Tensor, ...]]
Prepare = Callable[..., Call]
Inputs = Callable[[Sizes, torch.dtype, torch.device, int], tuple[Tensor, ...]]
Output = Callable[..., Sequence[int]]  # gives the shape of a function's value for the same arguments


def called(function: Function) -> Prepare:
    """Calls the function; its results are those of the call."""

    def prepare(*args: Tensor) -> Call:
        def call() -> tuple[Tensor, ...]:
            results = function(*args)
            return tuple(results) if isinstance(results, tuple) else (results,)

        return call

    return prepare


def trained(function: Function, output: Output) -> Prepare:
    """Forward and backward under a gradient of ones: (value, the gradient of each floating-point argument)."""

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
    """Compiles the function for the sizes of these arguments, then does as `prepare` does."""
    return lambda *args: prepare(torch.compile(function, dynamic=False))(*args)


_CANDIDATES_AT_A_TIME = 1 << 26  # 256 MiB in fp32: smaller problems are materialised whole


def chunks(x: Tensor, candidates: int) -> tuple[Tensor, ...]:
    """Parts of x along its first dimension, of which each slice makes so many candidates: as many at a time as fit."""
    return x.split(max(1, _CANDIDATES_AT_A_TIME // max(1, candidates)))


def in_chunks(dense: Function, candidates: Callable[[Tensor, Tensor], int]) -> Function:
    """dense(x, other) made chunk after chunk of x. candidates(x, other): how many a slice of x makes."""

    def function(x: Tensor, other: Tensor) -> Tensor | tuple[Tensor, ...]:
        parts = [dense(part, other) for part in chunks(x, candidates(x, other))]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    return function


def rivals(
    dense: Function, prepare: Callable[[Function], Prepare], name: str = "dense eager", eager: Function | None = None
) -> tuple[Contender, ...]:
    """The materialised definition in eager torch and under torch.compile. eager: what the first runs in its place."""
    return (
        Contender(name, "dense", prepare(eager or dense)),
        Contender("torch.compile", "compiled", compiled(dense, prepare)),
    )


def standard(
    label: str,
    op: Function,
    inputs: Inputs,
    output: Output,
    operations: Callable[[Sizes], int],
    mix: str,
    *,
    forward: tuple[Contender, ...],
    winners: tuple[Contender, ...] = (),
    training: tuple[Contender, ...] = (),
    saves_winners: bool = False,
    dtypes: tuple[torch.dtype, ...] = (),
    ours: str = "tropigrad",
) -> tuple[Workload, ...]:
    """The workloads of an op that returns something new: forward, with winners, and trained, where it has rivals there.

    Args:
        label: the op's, before "forward".
        op: takes the inputs by place, and return_indices where there are winners.
        inputs: as of a Spec.
        output: gives the shape of the op's value.
        operations, mix: as of a Workload.
        forward, winners, training: whom the op is compared with.
        saves_winners: the backward reads winners, in two bytes each, that the forward wrote; else the inputs again.
        dtypes: as of a Workload, of the first two forms; training takes floating ones alone.
        ours: the name that the op has among its contenders.
    """
    trained_bytes = partial(training_bytes, saves_winners=saves_winners)
    forms = (
        ("forward", called(op), forward, forward_bytes, dtypes),
        ("forward + winners", called(partial(op, return_indices=True)), winners, winners_bytes, dtypes),
        ("forward + backward", trained(op, output), training, trained_bytes, FLOATS),
    )
    return tuple(
        Workload(
            f"{label} {form}".strip(),
            (Contender(ours, "ours", prepare), *others),
            operations,
            bytes(inputs, output),
            mix,
            dtypes=takes,
        )
        for form, prepare, others, bytes, takes in forms
        if others
    )


def forward_bytes(inputs: Inputs, output: Output) -> Callable[[Sizes, int], int]:
    """Reads each input once, and writes each output once."""

    def bytes(shape: Sizes, itemsize: int) -> int:
        args, count = _sizes(inputs, output, shape, itemsize)
        return _bytes(args) + itemsize * count

    return bytes


def winners_bytes(inputs: Inputs, output: Output) -> Callable[[Sizes, int], int]:
    """Writes the winners besides: int64, as torch.max's."""

    def bytes(shape: Sizes, itemsize: int) -> int:
        args, count = _sizes(inputs, output, shape, itemsize)
        return _bytes(args) + (itemsize + 8) * count

    return bytes


def training_bytes(inputs: Inputs, output: Output, saves_winners: bool) -> Callable[[Sizes, int], int]:
    """Reads the output's gradient and writes those of the inputs. What was saved is read; winners are written first."""

    def bytes(shape: Sizes, itemsize: int) -> int:
        args, count = _sizes(inputs, output, shape, itemsize)
        gradients = _bytes([x for x in args if x.is_floating_point()]) + itemsize * count
        return _bytes(args) + itemsize * count + gradients + (4 * count if saves_winners else _bytes(args))

    return bytes


_FLOATS = {2: torch.float16, 4: torch.float32, 8: torch.float64}


def _sizes(inputs: Inputs, output: Output, shape: Sizes, itemsize: int) -> tuple[tuple[Tensor, ...], int]:
    """The inputs, without memory, and the number of elements of the output."""
    with FakeTensorMode():
        args = inputs(shape, _FLOATS.get(itemsize, torch.int8), torch.device("cpu"), 0)
        return args, math.prod(output(*args))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
