"""The C++ kernel of the step on path values (cpu.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from .. import eager, native
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


class _Call(ctypes.Structure):
    """What cpu.cpp calls so."""

    _fields_ = [
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sizes", "reduced", "nodes")),
        *((name, ctypes.c_int64) for name in ("runs", "special", "weights", "threads")),
    ]


@native.cached
def _function(dtype: torch.dtype):
    found = native.required("path_step", SOURCE, dtype)
    found.path_step.argtypes = [ctypes.c_void_p] * 2
    found.path_step_set_team.argtypes = [ctypes.c_void_p]
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


def prepare(layers: Sequence[Layer], bones: Skeleton) -> Callable[..., None]:
    """The step for tensors that lie in memory as these do, which `takes` allows; any number of threads gives its bits.

    Returns:
        A function of what `operands` gives. It raises eager.NotPlain: see eager.prepared.
    """
    shapes, reduced, nodes, size = _constants(bones)
    config = STEP.config(problem_of(bones.shapes, layers[0].weight.dtype), layers[0].weight.device)
    threads = native.threads(config["threads"], size, _SMALL)
    addresses = ctypes.addressof(shapes), ctypes.addressof(reduced), nodes.data_ptr()
    call = _Call(len(layers), *addresses, bones.runs, bones.special, config["TASK"], threads)
    call.kept = shapes, reduced, nodes  # the structure holds addresses alone
    written = tuple(6 * number + at for number, layer in enumerate(layers) for at in (0, 2) if layer[at] is not None)
    return eager.prepared(_function(layers[0].weight.dtype), call, (), _check, writes=written, gathers=True)


def operands(layers: Sequence[Layer], run_momentum: Tensor | None, events: Tensor) -> tuple[Tensor | None, ...]:
    """All tensors of a step, in the order that the kernel takes them; the options follow, as numbers."""
    return *(x for layer in layers for x in layer), run_momentum, events


def path_step(
    layers: Sequence[Layer], bones: Skeleton, run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    """As path_step_ref, on tensors that `takes` allows."""
    prepare(layers, bones)(*operands(layers, run_momentum, events), *map(float, options))


def _check(status: int) -> None:
    raise MemoryError("path_step: no memory for the factors of one row a layer")
