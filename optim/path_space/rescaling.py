"""Rescaling of hidden nodes, which leaves a network's function as it is: in place, and to check what tracing found."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .chain import Chain

_ROUNDING = 1e-6  # of float64, through any network, far from what another function would differ by


def in_double(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy for evaluation in float64, and random inputs shaped as the examples; integers stay as they are."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, Sequence) or isinstance(inputs, str):
        raise TypeError(
            f"BasisPaths: example_inputs is a {type(inputs).__name__}; expected a tensor or a tuple, what forward takes"
        )
    try:
        inspect.signature(model.forward).bind(*inputs)
    except TypeError as error:
        raise ValueError(
            f"BasisPaths: example_inputs has {len(inputs)} arguments; expected those that "
            f"{type(model).__name__}.forward takes, {inspect.signature(model.forward)}: {error}"
        ) from error
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x.device)

    return copy.deepcopy(model).double().eval(), tuple(drawn(x) for x in inputs)


def run_on(model: nn.Module, call: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    try:
        with torch.no_grad():
            return call(*inputs)
    except Exception as error:  # the model's own code, as in tracing
        raise ValueError(
            f"BasisPaths: {type(model).__name__} does not run on example_inputs in float64 "
            f"({type(error).__name__}: {error}); expected what its forward takes"
        ) from error


def _tensors(output: Any) -> list[Tensor]:
    """Floating tensors of an output, in their order, through tuples, lists and dicts."""
    if isinstance(output, Tensor):
        return [output.double()] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [x for value in values for x in _tensors(value)]


@torch.no_grad()
def check_by_rescaling(model: nn.Module, inputs: tuple[Any, ...], chains: Sequence[Chain]) -> None:
    """Raises ValueError, naming two layers, where scaling the nodes between them changes what the model computes.

    The model, a copy in float64, is another one then.
    """
    copies = [_of(model, chain) for chain in chains]
    groups = [(chain, layer) for chain in copies for layer in chain.skeleton.made]
    kept, wanted = copy.deepcopy(model.state_dict()), _tensors(run_on(model, model, inputs))
    size = max((float(x.abs().max()) for x in wanted if x.numel()), default=0.0)

    def change(some: Sequence[tuple[Chain, int]]) -> float:
        model.load_state_dict(kept)
        generator = torch.Generator().manual_seed(1)
        for chain, layer in some:
            rescale(chain, layer, generator, 1.0)
        outputs = zip(_tensors(run_on(model, model, inputs)), wanted, strict=True)
        return max((float((x - y).abs().max()) for x, y in outputs if x.numel()), default=0.0)

    if change(groups) <= _ROUNDING * size:
        return
    (chain, layer), most = max(((group, change([group])) for group in groups), key=lambda changed: changed[1])
    before, takers = chain.layers[layer].name, ", ".join(chain.layers[at].name for at, _ in chain.takers(layer))
    raise ValueError(
        f"BasisPaths: scaling the nodes between {before} and {takers} changes the output by {most:.2g}, of "
        f"at most {size:.2g}; expected {takers} to take the channels that {before} makes, with nothing but "
        "positively homogeneous operations between them"
    )


def _of(model: nn.Module, chain: Chain) -> Chain:
    """The same chain of a copy of the model."""
    modules = [model.get_submodule(layer.name) for layer in chain.layers]
    pairs = zip(chain.layers, modules, strict=True)
    return replace(chain, layers=tuple(replace(layer, weight=its.weight, bias=its.bias) for layer, its in pairs))


@torch.no_grad()
def rescale(chain: Chain, layer: int, generator: torch.Generator | None, spread: float) -> None:
    """Scales the hidden nodes behind a layer of a chain by c = exp(spread · ξ), ξ standard normal, in place."""
    before = chain.layers[layer]
    G, O, _, _ = before.shape
    device = torch.device("cpu") if generator is None else generator.device
    c = torch.randn(G * O, generator=generator, dtype=torch.float64, device=device)
    c = c.mul(spread).exp().to(before.weight)
    before.by_targets(before.weight).mul_(c.view(G, O, 1, 1))
    for number, begin in chain.takers(layer):
        taker = chain.layers[number]
        every = c.new_ones(taker.shape.sources)
        every[begin : begin + len(c)] = c
        taker.by_targets(taker.weight).div_(every.view(taker.shape.groups, 1, taker.shape.inputs, 1))
    if before.bias is not None:
        before.bias.mul_(c)
