"""A step of gradient descent on the values of paths: see definition.py for its mathematics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend
from . import cpu, portable
from .definition import Layer, Options, Shape, Skeleton, path_step_ref, prefixes, skeleton, suffixes

__all__ = ["Layer", "Options", "Shape", "Skeleton", "path_step", "path_step_ref", "prefixes", "skeleton", "suffixes"]


def path_step(
    layers: Sequence[Layer], bones: Skeleton, run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    """One step of SGD on the path values of a chain, in place.

    Args:
        layers: two or more; float32 or float64, on one device; weights are contiguous, and lie as [G, O, I, T].
        bones: skeleton(shapes of the layers, their device).
        run_momentum: [bones.runs], where options.momentum is not 0; then each layer has momenta too.
        events: int64 [2], on that device; to it is added how many R the bounds held, and how many of those were not
            positive.
        options: learning rate, momentum, weight decay and the bounds.
    """
    chosen = _backend(layers[0].weight)
    if chosen == "cpp" and cpu.takes(layers):
        cpu.path_step(layers, bones, run_momentum, events, options)
    elif chosen == "triton" and portable.takes(layers, options):
        path_step_ref(layers, bones, run_momentum, events, options, portable.node_flows, portable.move)
    else:
        path_step_ref(layers, bones, run_momentum, events, options)


def _backend(weight: Tensor) -> str:
    if torch.compiler.is_compiling():
        return "torch"  # what the compiler makes of the definition is as good
    return backend.choose("path_step", weight.device, ("torch", "cpp", "triton"), weight.dtype, cpu.SOURCE)
