"""Promises about gradients: right values, ties, empty calls, and winners that are out of range."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from ..comparison import assert_same
from ..spec import Sizes, Spec
from .calls import as_leaves, forced, offers, poisoned, tiny_leaves, unequal_weights, value_and_gradients
from .case import Case


def gradcheck(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if not offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                with forced(name, device):
                    args = tiny_leaves(spec, device)
                    # atomic additions come in any order on a GPU
                    slack = 0.0 if device.type == "cpu" else 1e-12
                    assert torch.autograd.gradcheck(lambda *x: spec.op(*x, **kwargs), args, nondet_tol=slack)
                    assert torch.autograd.gradgradcheck(lambda *x: spec.op(*x, **kwargs), args, nondet_tol=slack)

            yield Case(spec.name, "gradcheck", f"{name}-{variant}", run)


def subgradient(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if offers(spec, name, kwargs):
                yield Case(
                    spec.name,
                    "subgradient",
                    f"{name}-{variant}",
                    lambda name=name, kwargs=kwargs: check_subgradient(
                        spec, name, device, kwargs, spec.small_shapes[-1]
                    ),
                )


def check_subgradient(spec: Spec, name: str, device: torch.device, kwargs, shape: Sizes) -> None:
    """The gradient equals autograd's through the oracle, on small integers: many ties, and sums that are exact."""
    generator = torch.Generator().manual_seed(1)
    shaped = spec.inputs(shape, torch.float32, device, 0)
    args, leaves = as_leaves(
        torch.randint(-2, 3, x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in shaped
    )
    with forced(name, device):
        out = spec.op(*args, **kwargs)
        weight = torch.randint(-4, 5, out.shape, generator=generator).to(out)
        got = torch.autograd.grad(out, leaves, weight)
        expected = torch.autograd.grad(spec.oracle(*args, **kwargs), leaves, weight)
    assert_same(got, expected, spec.gradient_is_exact(kwargs), "gradient")


def empty(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Gradients of calls in which some size is 0: they have their arguments' shapes and are 0, as nothing has won."""
    if not spec.is_differentiable:
        return
    for name in spec.backends:
        for sample in spec.samples(device):
            floats = [x for x in sample.args if x.is_floating_point()]
            if all(x.numel() for x in sample.args) or not floats or not offers(spec, name, sample.kwargs):
                continue

            def run(name=name, sample=sample, floats=floats):
                with forced(name, device):
                    _, *gradients = value_and_gradients(spec, sample.args, sample.kwargs, unequal_weights)
                assert_same(gradients, [torch.zeros_like(x) for x in floats], True, "gradient")

            yield Case(spec.name, "empty", f"{name}-{sample.id}", run)


def indices(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Gives the raw scatter winners of −1 and outside [−1, K)."""
    if spec.extra.scatter is None:
        return
    scatter, K = spec.extra.scatter
    for name in spec.backends:

        def run(name=name):
            generator = torch.Generator().manual_seed(0)
            for mode, bad in itertools.product((nullcontext, poisoned), (K, -2, 2**15 - 1, -(2**15))):
                with forced(name, device), mode():
                    winners = torch.randint(-1, K, (2, 5, 7), generator=generator).to(device, torch.int16)
                    skipped = winners.clone()
                    skipped[1, 2, 3:5] = -1
                    winners[1, 2, 3:5] = bad
                    expected = scatter(skipped)
                    if device.type == "cpu":
                        try:
                            scatter(winners)
                        except IndexError:
                            continue
                        raise AssertionError(f"winner {bad} of K = {K} raised no IndexError")
                    assert_same(scatter(winners), expected, True, f"gradient with winner {bad} of K = {K}")

        yield Case(spec.name, "indices", name, run)
