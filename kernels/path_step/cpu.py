"""The C++ kernel of the step on path values (cpu.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import native
from .definition import Layer, Options, Skeleton, problem_of

SOURCE = Path(__file__).with_name("cpu.cpp")

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


@functools.cache
def _function(dtype: torch.dtype):
    found = native.required("path_step", SOURCE, dtype)
    pointer, integer, sizes = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)
    found.path_step.argtypes = [integer, sizes, ctypes.POINTER(pointer), sizes, pointer, integer, integer, pointer]
    found.path_step.argtypes += [ctypes.POINTER(ctypes.c_double), pointer, integer, ctypes.c_int]
    found.path_step_set_team.argtypes = [pointer]
    found.path_step_set_team(native.openmp_team())
    return found.path_step


@functools.cache
def _constants(bones: Skeleton):
    """What is the same in every step: shapes, reductions, the skeleton by node, and how many weights there are."""
    ends = [
        torch.zeros_like(target).index_fill_(0, last, 1)
        for target, last in zip(bones.target, bones.ends_run, strict=True)
    ]
    by_layer = (bones.edge_in, bones.edge_out, bones.source, bones.target, ends)
    nodes = torch.stack([*map(torch.cat, by_layer), bones.run])
    size = sum(shape.targets * shape.inputs * shape.taps for shape in bones.shapes)
    return native.integers(*(n for shape in bones.shapes for n in shape)), native.integers(*bones.reduced), nodes, size


def path_step(
    layers: Sequence[Layer], bones: Skeleton, run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    """As path_step_ref, on tensors that `takes` allows; the same bits on any number of threads."""
    shapes, reduced, nodes, size = _constants(bones)
    config = STEP.config(problem_of(bones.shapes, layers[0].weight.dtype), layers[0].weight.device)
    addresses = [None if x is None else x.data_ptr() for layer in layers for x in layer]
    function = _function(layers[0].weight.dtype)
    assert function is not None
    status = function(
        len(layers),
        shapes,
        (ctypes.c_void_p * len(addresses))(*addresses),
        reduced,
        nodes.data_ptr(),
        bones.runs,
        bones.special,
        None if run_momentum is None else run_momentum.data_ptr(),
        (ctypes.c_double * 5)(*map(float, options)),
        events.data_ptr(),
        config["TASK"],
        native.threads(config["threads"], size, _SMALL),
    )
    if status == 1:
        raise MemoryError("path_step: no memory for the factors of one row a layer")
