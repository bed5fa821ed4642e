"""Builds the calls that the tuner times, and the checks of their results, from an op's spec.

Each variant is called forward, with winners where it has them, and forward and backward where it is differentiable. An
in-place op is timed on its own previous output, since the values do not change the time; its result is verified on
fresh inputs.
The reference is the definition in torch, in chunks: TROPIGRAD_BACKEND=torch. Values and winners are compared `==` where
the op is exact; gradients, which are sums, within the dtype's tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...autotune import (
    Call,
    Problem,
    Work,
)
from ..runtime import backend
from .comparison import assert_same
from .spec import Sizes, Spec

_Run = Callable[[], tuple[Tensor, ...]]
_NO_WORK = Work(0, 0, "add_max")


def calls(spec: Spec, shape: Sizes, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The calls of an op that launch kernels with a config."""
    with torch.device("cpu"):  # where specs draw numbers, whatever the default is
        inputs = spec.inputs(shape, dtype, device, 0)
    return calls_on(spec, inputs, dtype, device, _work(spec, shape, dtype), spec.extra.options_at(shape))


def calls_at(spec: Spec, problem: Problem, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The calls that launch a kernel at a problem, where the spec has inputs for it."""
    with torch.device("cpu"):
        inputs = spec.extra.inputs_at(problem, dtype, device)
    if inputs is not None:
        yield from calls_on(spec, inputs, dtype, device)


def calls_on(
    spec: Spec,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    device: torch.device,
    work: Work = _NO_WORK,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Call]:
    """The same on these inputs, with `options` in each variant. Without a work there is no forecast of their time."""
    if spec.extra.in_place:
        if _chosen(spec, {}, device) != "torch":
            for name, prepare in spec.extra.in_place.items():
                fresh = partial(prepare, *inputs)
                yield _call(name, fresh(), spec.is_exact({}), work, fresh)
        return
    for variant, selected in spec.variants.items():
        kwargs = {**selected, **options}
        chosen = _chosen(spec, kwargs, device)
        if not spec.supports(dtype, kwargs) or chosen == "torch":
            continue
        exact = spec.is_exact(kwargs)
        yield _call(variant, lambda kwargs=kwargs: (spec.op(*inputs, **kwargs),), exact, work)
        if spec.has_winners(kwargs):
            yield _call(
                f"{variant}, with winners",
                lambda kwargs=kwargs: tuple(spec.op(*inputs, **kwargs, return_indices=True)),
                exact,
                work,
            )
        if dtype.is_floating_point and spec.is_differentiable:
            trained = partial(_trained, spec, inputs, kwargs)
            yield _call(f"{variant}, trained", trained, exact, work)
            if chosen != "cpp":  # C++ gives the same bits anyway, by the same kernels
                yield _call(f"{variant}, trained, deterministic", _deterministic(trained), exact, work)


def _chosen(spec: Spec, kwargs, device: torch.device) -> str:
    """The backend that a variant runs on. Where no other can run it is torch, which has no kernels with a config."""
    try:
        return backend.choose(spec.name, device, spec.offers(kwargs))
    except RuntimeError:  # TROPIGRAD_BACKEND forces what the variant lacks, or what cannot run here
        return "torch"


def _deterministic(run: _Run) -> _Run:
    """Makes `run` deterministic by torch's switch, without the filling of memory that the switch turns on."""

    options: Any = torch.utils.deterministic

    def call():
        before, fills = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        options.fill_uninitialized_memory = False
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(before)
            options.fill_uninitialized_memory = fills

    return call


def _call(name: str, run: _Run, exact: bool, work: Work, fresh: Callable[[], _Run] | None = None) -> Call:
    expected: list[tuple[Tensor, ...]] = []

    def check(got: Any) -> None:
        if not expected:
            with backend.forcing("torch"):
                expected.append(fresh()() if fresh else run())
        # what follows the value in a trained call are its gradients
        for index, (x, y) in enumerate(zip(got, expected[0], strict=True)):
            assert_same(x, y, exact and not (index and y.is_floating_point()), f"output {index}")

    return Call(name, run, check, work, fresh)


def _trained(spec: Spec, inputs: tuple[Tensor, ...], kwargs) -> tuple[Tensor, ...]:
    """The value, and the gradients under a gradient of ones."""
    with torch.enable_grad():
        args = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        out = spec.op(*args, **kwargs)
        leaves = [x for x in args if x.requires_grad]
        return (out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out)))


def _work(spec: Spec, shape: Sizes, dtype: torch.dtype) -> Work:
    if not spec.workloads:
        return _NO_WORK
    cheapest = spec.workloads[0]
    return Work(cheapest.operations(shape), cheapest.bytes(shape, dtype.itemsize), cheapest.mix)
