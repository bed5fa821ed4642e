"""Promises about values and winners: the oracle's on any backend, config, layout, range and size; misuse is named."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ....autotune import override
from ...runtime import backend as backends
from ..comparison import assert_same
from ..spec import Scaling, Spec
from .calls import (
    TURNS,
    cast,
    forced,
    offers,
    poisoned,
    shape_for,
    short,
    unequal_weights,
    value_and_gradients,
)
from .case import Case, NotHere
from .gradients import check_subgradient


def forward(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for sample in spec.samples(device):
            if offers(spec, name, sample.kwargs):
                yield Case(
                    spec.name,
                    "forward",
                    f"{name}-{sample.id}",
                    lambda name=name, s=sample: check_forward(spec, name, device, s.args, s.kwargs),
                )
        for variant, kwargs in spec.variants.items():
            for dtype in spec.dtypes:
                if not spec.supports(dtype, kwargs) or not offers(spec, name, kwargs):
                    continue
                for seed, shape in enumerate(spec.small_shapes):
                    label = "x".join(str(size) for size in shape.values())
                    yield Case(
                        spec.name,
                        "forward",
                        f"{name}-{variant}-{short(dtype)}-{label}",
                        lambda name=name, kwargs=kwargs, dtype=dtype, shape=shape, seed=seed: check_forward(
                            spec, name, device, spec.inputs(shape, dtype, device, seed), kwargs
                        ),
                        slow=name == "triton" and device.type == "cpu" and seed > 1,
                    )


def check_forward(spec: Spec, name: str, device: torch.device, args, kwargs) -> None:
    if name == "triton" and _interpreter_truncates(spec, args, kwargs):
        raise NotHere("Triton's interpreter truncates bfloat16 where a GPU rounds")
    with forced(name, device), poisoned():
        if spec.has_winners(kwargs):
            assert_same(
                spec.op(*args, **kwargs, return_indices=True),
                spec.oracle(*args, **kwargs, return_indices=True),
                spec.is_exact(kwargs),
            )
        assert_same(spec.op(*args, **kwargs), spec.oracle(*args, **kwargs), spec.is_exact(kwargs))


def _interpreter_truncates(spec: Spec, args, kwargs) -> bool:
    """Whether some value needs more bits than bfloat16 has, so that it matters how the interpreter shortens it."""
    if not backends.interpreted() or args[0].dtype != torch.bfloat16:
        return False
    wide = spec.oracle(*cast(args, torch.float64), **kwargs)
    return not torch.equal(wide.bfloat16().double().nan_to_num(), wide.nan_to_num()) or not _on_a_grid(args)


def _on_a_grid(args) -> bool:
    """Whether all finite inputs are small integers, whose sums and products bfloat16 holds exactly."""
    floats = [x for x in args if x.is_floating_point()]
    return all(bool(((x == x.round()) & (x.abs() < 12)).logical_or(~x.isfinite()).all()) for x in floats)


def config(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The smallest and the largest config of every tuned kernel; the rest of the space is slow."""
    shape = {letter: 18 + 3 * index for index, letter in enumerate(spec.small_shapes[0])}  # ragged for any power of 2
    for name, kernels in spec.tuned.items():
        for tuned in kernels:
            configs = list(tuned.space)
            # a million elements in four dimensions, for which the interpreter takes minutes
            at = shape_for(name, spec) if len(shape) > 3 and name == "triton" and backends.interpreted() else shape
            for index, chosen in enumerate(configs):

                def run(name=name, tuned=tuned, chosen=chosen, shape=at):
                    for kwargs in (kwargs for kwargs in spec.variants.values() if offers(spec, name, kwargs)):
                        with override(tuned.name, chosen):
                            check_forward(spec, name, device, spec.inputs(shape, torch.float32, device, 0), kwargs)
                            if spec.is_differentiable:
                                check_subgradient(spec, name, device, kwargs, shape)

                label = "-".join(f"{key}={value}" for key, value in chosen.items())
                slow = index not in (0, len(configs) - 1)
                yield Case(spec.name, "config", f"{tuned.name}-{label}", run, slow=slow)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[..., :1, :1].expand(x.shape),
    "sliced": lambda x: x.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., ::3, ::2],
    "offset": lambda x: torch.cat([x.new_zeros(7), x.flatten()])[7:].view(x.shape),
    "far": lambda x: _spread(x),
}


def _spread(x: Tensor) -> Tensor:
    """The rows of x so far apart that the last lies beyond 2³¹ elements; the memory between is never touched."""
    *outer, columns = x.shape
    step = 2**31 // max(1, math.prod(outer) - 1) + columns
    rows = torch.empty(step * (math.prod(outer) - 1) + columns, dtype=x.dtype, device=x.device)
    strides = [step * math.prod(outer[axis + 1 :]) for axis in range(len(outer))]
    return rows.as_strided(x.shape, (*strides, 1)).copy_(x)


def strides(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for label, layout in LAYOUTS.items():

            def run(name=name, layout=layout):
                dtype = torch.float16 if layout is LAYOUTS["far"] else torch.float32  # an operand takes 4 GiB on a GPU
                args = tuple(layout(x) for x in spec.inputs(spec.small_shapes[-1], dtype, device, 0))
                for kwargs in spec.variants.values():
                    if offers(spec, name, kwargs):
                        check_forward(spec, name, device, args, kwargs)

            yield Case(spec.name, "strides", f"{name}-{label}", run)


def huge(spec: Spec, device: torch.device) -> Iterator[Case]:
    """More than 2³¹ outputs, the last of which are compared."""
    make = spec.extra.huge
    if make is None:
        return

    def run():
        if device.type != "cuda":
            raise NotHere("more than 2³¹ outputs take minutes on a CPU")
        args, last = make(device)
        got, expected = spec.op(*args).flatten(), spec.oracle(*last).flatten()
        assert got.numel() > 2**31, f"{got.numel()} outputs; expected more than 2³¹"
        assert_same(got[-expected.numel() :], expected, True, "the last outputs")

    yield Case(spec.name, "huge", "outputs", run)


def misuse(spec: Spec, device: torch.device) -> Iterator[Case]:
    for bad in spec.misuses(device):

        def run(bad=bad):
            try:
                bad.call()
            except bad.error as error:
                text = str(error)
                assert re.search(bad.match, text), f"the message {text!r} lacks {bad.match!r}"
                assert text.startswith(f"{spec.name}: "), f"the message {text!r} does not name {spec.name}"
            else:
                raise AssertionError(f"no {bad.error.__name__}: the call passed")

        yield Case(spec.name, "misuse", bad.id, run)


def ends(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The largest numbers of a dtype, the smallest normal and subnormal ones, and their like, mixed in one call."""
    for name, dtype in itertools.product(spec.backends, spec.dtypes):
        for variant, kwargs in spec.variants.items():
            if not (dtype.is_floating_point and spec.supports(dtype, kwargs) and offers(spec, name, kwargs)):
                continue

            def run(name=name, dtype=dtype, kwargs=kwargs):
                generator, bounds = torch.Generator().manual_seed(0), torch.finfo(dtype)
                positive = torch.tensor([bounds.max, bounds.max / 2, 1, bounds.tiny, 3 * bounds.smallest_normal / 4,
                                         bounds.smallest_normal * bounds.eps, 0], dtype=torch.float64)  # fmt: skip
                table = torch.cat([positive, -positive]).to(device, dtype)
                args = tuple(
                    table[torch.randint(len(table), x.shape, generator=generator).to(device)]
                    if x.is_floating_point()
                    else x
                    for x in spec.inputs(shape_for(name, spec), dtype, device, 0)
                )
                check_forward(spec, name, device, args, kwargs)

            slow = name == "triton" and device.type == "cpu" and dtype != torch.float32
            yield Case(spec.name, "ends", f"{name}-{variant}-{short(dtype)}", run, slow=slow)


EXPONENTS = {torch.float64: 60, torch.float32: 40, torch.bfloat16: 40, torch.float16: 4}


def scaling(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Arguments times a power of two, up and down: value, winners and gradients are the same but for that power."""
    for name, dtype in itertools.product(spec.backends, spec.dtypes):
        for variant, kwargs in spec.variants.items():
            if not (dtype.is_floating_point and spec.supports(dtype, kwargs) and offers(spec, name, kwargs)):
                continue
            for index, symmetry in enumerate(spec.scalings(kwargs)):

                def run(name=name, dtype=dtype, kwargs=kwargs, symmetry=symmetry):
                    if name == "triton" and backends.interpreted() and dtype == torch.bfloat16:
                        raise NotHere("Triton's interpreter truncates bfloat16 where a GPU rounds")
                    args = spec.inputs(shape_for(name, spec), dtype, device, 0)
                    with forced(name, device):
                        for exponent in (EXPONENTS[dtype], -EXPONENTS[dtype]):
                            _check_scaling(spec, args, dtype, kwargs, symmetry, exponent)

                slow = name == "triton" and device.type == "cpu" and dtype != torch.float32
                yield Case(spec.name, "scaling", f"{name}-{variant}-{index}-{short(dtype)}", run, slow=slow)


def _check_scaling(spec: Spec, args, dtype: torch.dtype, kwargs, symmetry: Scaling, exponent: int) -> None:
    if dtype == torch.float16:  # multiples of 1/64 keep all their bits when they are scaled down
        args = tuple(x.mul(64).round().div(64) if x.is_floating_point() else x for x in args)
    degrees = symmetry.degrees
    assert len(degrees) == len(args), f"{len(degrees)} degrees for {len(args)} arguments"

    def scaled(x: Tensor, degree: int) -> Tensor:
        return x * 2.0 ** (exponent * degree) if degree else x

    def results(args, **options) -> tuple[Tensor, ...]:
        values = value_and_gradients(spec, args, {**kwargs, **options})
        if spec.has_winners(kwargs):
            values += (spec.op(*args, **kwargs, **options, return_indices=True)[1],)
        return values

    expected = results(args, **symmetry.options(1.0))
    got = results(
        tuple(scaled(x, degree) for x, degree in zip(args, degrees, strict=True)), **symmetry.options(2.0**exponent)
    )
    of_gradients = [symmetry.degree - d for x, d in zip(args, degrees, strict=True) if x.is_floating_point()]
    of_results = [symmetry.degree, *(of_gradients if spec.is_differentiable else ()), 0]
    back = tuple(scaled(x, -degree) for x, degree in zip(got, of_results, strict=False))
    assert_same(back, expected, spec.is_exact(kwargs), f"results of arguments times 2^{exponent}, scaled back")


def aliasing(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Operands that share memory act as if they did not. An op that works in place may refuse them by a ValueError."""
    for variant, kwargs in spec.variants.items():
        for label, views in spec.aliased.items():

            def run(kwargs=kwargs, views=views):
                base = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(device)
                for _ in range(TURNS):
                    got = _through(spec, base, kwargs, views)
                    expected = _through(spec, base, kwargs, lambda x: tuple(view.clone() for view in views(x)))
                    assert_same(got, expected, False, "result and gradient")

            yield Case(spec.name, "aliasing", f"{variant}-{label}", run)
    for label, call in spec.extra.overlapping.items():

        def run_in_place(call=call):
            for _ in range(TURNS):
                expected = call(torch.clone)
                try:
                    got = call(lambda x: x)
                except ValueError as error:
                    if not str(error).startswith(f"{spec.name}: "):
                        raise
                    continue
                assert_same(got, expected, spec.is_exact({}), "result as of copies")

        yield Case(spec.name, "aliasing", label, run_in_place)


def _through(spec: Spec, base: Tensor, kwargs, views: Callable[[Tensor], tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """The value, and the gradient of the tensor that the arguments are views of."""
    base = base.clone().requires_grad_()
    out = spec.op(*views(base), **kwargs)
    return out.detach(), *torch.autograd.grad(out, base, unequal_weights(out))
