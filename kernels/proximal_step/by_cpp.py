"""The C++ kernels of the proximal steps (by_cpp.cpp), called on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ..runtime import dispatch, native
from .layout import problem_of

SOURCE = Path(__file__).with_name("by_cpp.cpp")

# TASK: parameters that a thread takes at a time. Sums are made in blocks of 4096: every choice gives the same bits.
_SPACE = Space({"TASK": (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16), "threads": native.THREADS})


def _default(problem) -> Config:
    return {"TASK": 1 << 14, "threads": 0}


MULTIOBJECTIVE = Tuned("multiobjective_step.cpp", _SPACE, default=_default, source=SOURCE)
HELD = Tuned("held_step.cpp", _SPACE, default=_default, source=SOURCE)
_SMALL = 1 << 16  # parameters: fewer are done before a thread would start


@native.cached
def _library(op: str, dtype: torch.dtype):
    return native.required(op, SOURCE, dtype)


def _call(kernel: Tuned, tensors: Sequence[Tensor], penalized: Sequence[bool]):
    problem = problem_of(tensors)
    config = kernel.config(problem, tensors[0].device)
    threads = native.threads(config["threads"], int(problem["size"]), _SMALL)
    sizes = [n for x, its in zip(tensors, penalized, strict=True) for n in (x.numel(), int(its))]
    return native.integers(len(tensors), config["TASK"], threads, *sizes)


def multiobjective_plan(p: Sequence[Tensor], penalized: Sequence[bool]) -> dispatch.Plan:
    """The plan of `multiobjective_step` for parameters that lie in memory as these do."""
    library = _library("multiobjective_step", p[0].dtype)
    return dispatch.plan(library.multiobjective_step, (), _call(MULTIOBJECTIVE, p, penalized))


def held_plan(x: Sequence[Tensor], penalized: Sequence[bool]) -> dispatch.Plan:
    """The plan of `held_step` for parameters that lie in memory as these do."""
    return dispatch.plan(_library("held_step", x[0].dtype).held_step, (), _call(HELD, x, penalized))


def multiobjective_step(p, d, x, state, penalized, h, acceleration) -> None:
    """Makes the step on tensors of one layout each; none that is written may lie in another.

    Raises:
        MemoryError: there is no room for the sums; nothing was written.
    """
    status, _ = dispatch.run(multiobjective_plan(p, penalized), *p, *d, *x, state, float(h), float(acceleration))
    if status:
        raise MemoryError("multiobjective_step: no memory for the sums of blocks")


def held_step(x, d, v, penalized, h, lam, momentum) -> None:
    """Makes the step on tensors of one layout each; none that is written may lie in another.

    Raises:
        MemoryError: there is no room for the list of parameters; nothing was written.
    """
    weight, lam = (lam, 0.0) if isinstance(lam, Tensor) else (None, float(lam))
    status, _ = dispatch.run(held_plan(x, penalized), *x, *d, *v, float(h), lam, weight, float(momentum))
    if status:
        raise MemoryError("held_step: no memory for the list of parameters")
