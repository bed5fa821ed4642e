"""The C++ kernel of the step on path values (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native
from .definition import Layer, Options, Skeleton, problem_of

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# TASK: weights that a thread moves at a time. Sums over a layer are one task each: every choice gives the same bits.
STEP = Tuned(
    "path_step.cpp",
    Space({"TASK": (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16), "threads": native.THREADS}),
    default=lambda problem: {"TASK": 1 << 14, "threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 17  # weights: fewer are done before a thread would start


def takes(layers: Sequence[Layer], run_momentum: Tensor | None) -> bool:
    """Whether every tensor lies in one piece and is of one dtype: momenta are not, of a model that was cast since."""
    dtype = layers[0].weight.dtype
    for layer in layers:
        for x in layer:
            if x is not None and (x.dtype != dtype or not x.is_contiguous()):
                return False
    return run_momentum is None or (run_momentum.dtype == dtype and run_momentum.is_contiguous())


@native.cached
def _function(dtype: torch.dtype):
    return native.required("path_step", SOURCE, dtype).path_step


@functools.lru_cache(1 << 6)
def _constants(bones: Skeleton) -> tuple[list[int], int]:
    """The part of a plan that a skeleton gives: shapes, reductions, wires, edges by node; and the number of weights."""
    ends = [
        torch.zeros_like(target).index_fill_(0, last, 1)
        for target, last in zip(bones.target, bones.ends_run, strict=True)
    ]
    by_layer = (bones.edge_in, bones.edge_out, bones.source, bones.target, ends)
    nodes = torch.stack([*map(torch.cat, by_layer), bones.run])
    sources, turned = bones.wiring
    numbers, hidden = range(len(bones.shapes)), {l: h for h, l in enumerate(bones.made)}
    first = [bones.starts[hidden[l]] if l in hidden else -1 for l in numbers]
    taken = [bones.taken[hidden[l]] if l in hidden else -1 for l in numbers]
    parts = [(l, *part) for l in numbers for part in sources[l]]
    wires = [*map(int, turned), *first, *taken, len(parts), *(n for part in parts for n in part)]
    size = sum(shape.targets * shape.inputs * shape.taps for shape in bones.shapes)
    sizes = [n for shape in bones.shapes for n in shape]
    return [bones.hidden, *sizes, *map(int, bones.reduced), *wires, *nodes.flatten().tolist()], size


def path_step(
    layers: Sequence[Layer], bones: Skeleton, run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    """Makes the step of path_step_ref on tensors that `takes` allows; none that is written may lie in another.

    Raises:
        MemoryError: there is no room for the factors; nothing was written.
    """
    lr, *others = map(float, options[:-1])
    inputs = *(x for tensors in operands(layers) for x in tensors), run_momentum, events, lr, None, *others
    status, _ = dispatch.run(plan(layers, bones, options.norms), *inputs)
    if status:
        raise MemoryError("path_step: no memory for the factors of one row a layer")


def operands(layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The parameters, of each layer its weight and then its bias, their gradients, and their momenta, if any."""
    parameters, grads, momenta = [], [], []
    for weight, grad, bias, bias_grad, momentum, bias_momentum in layers:
        parameters.append(weight)
        grads.append(grad)
        momenta.append(momentum)
        if bias is not None:
            parameters.append(bias)
            grads.append(bias_grad)
            momenta.append(bias_momentum)
    return parameters, grads, [] if layers[0].momentum is None else momenta


def plan(layers: Sequence[Layer], bones: Skeleton, norms: bool) -> dispatch.Plan:
    """The plan of `path_step` for tensors that lie in memory as these do; any number of threads gives its bits."""
    constants, size = _constants(bones)
    first = layers[0]
    config = STEP.config(problem_of(bones.shapes, first.weight.dtype), first.weight.device)
    threads = native.threads(config["threads"], size, _SMALL)
    call = native.integers(
        *(len(layers), bones.runs, bones.special, config["TASK"], threads, first.momentum is not None, norms),
        constants[0],
        *(layer.bias is not None for layer in layers),
        *constants[1:],
    )
    return dispatch.plan(_function(first.weight.dtype), (), call)
