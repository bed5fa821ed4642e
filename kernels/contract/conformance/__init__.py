"""What every registered op promises, as cases that a test suite or a new device's qualification runs.

A case is a name and a call that raises AssertionError where the promise is broken, or `NotHere` where this machine
cannot tell. An op joins by being registered: nothing here names one. One that works in place gives its spec a function
that returns what was written; the spec also says whether there are gradients, and which promises are none of its own.

| promise | cases |
|---|---|
| values and winners equal the oracle's on every backend: ties, NaN, ∓∞, saturation, empty sizes, all dtypes | forward |
| so they do with any config | config |
| any stride, offsets beyond 2³¹ elements included; more than 2³¹ outputs on a GPU | strides, huge |
| misuse is named | misuse |
| gradients and double gradients are right; ties route to one winner; of nothing they are 0 | gradcheck, subgradient, \
empty |
| a winner out of range is named or masked, never written; −1 is skipped | indices |
| the same gradient bit for bit when torch.use_deterministic_algorithms asks, on any number of threads | deterministic |
| torch.compile without a graph break or a recompile storm, export, opcheck, vmap | compile, export, opcheck, vmap |
| forward-mode AD is right or raises | jvp |
| autocast casts nothing down | autocast |
| many threads at once, other streams and devices | threads, streams |
| calls that ran once can be captured in a CUDA graph | capture |
| the same bits in every form that the C++ kernels can be built in | forms |
| a call behaves as the first did, however often the like was made: saved tensors, hooks, graph, errors, names of \
operators | checkpointing, saved_tensors, graph, profiler |
| torch.jit.trace, with its check, and torch.fx.symbolic_trace | jit_trace, fx_trace |
| nothing lands on a default device that the arguments are not on | default_device |
| right to the ends of the dtype's range; scaled by a power of two, the same but for that power | ends, scaling |
| operands that share memory are as copies | aliasing |
"""

from __future__ import annotations

import torch

from ..registry import REGISTRY
from .calls import forced
from .case import Case, NotHere
from .gradients import empty, gradcheck, indices, subgradient
from .machines import FORMS, REPETITIONS, capture, deterministic, forms, repetitions, streams, threads
from .repeated_calls import checkpointing, graph, profiler, saved_tensors
from .torch_features import autocast, compile, default_device, export, fx_trace, jit_trace, jvp, opcheck, vmap
from .values import LAYOUTS, aliasing, config, ends, forward, huge, misuse, scaling, strides

__all__ = ["FORMS", "LAYOUTS", "REPETITIONS", "TABLES", "Case", "NotHere", "cases", "forced", "repetitions"]

TABLES = (
    forward, config, strides, huge, misuse, gradcheck, subgradient, empty, indices, deterministic, compile, export,
    opcheck, vmap, jvp, autocast, threads, streams, capture, repetitions, forms, checkpointing, saved_tensors, graph,
    profiler, jit_trace, fx_trace, default_device, ends, scaling, aliasing,
)  # fmt: skip


def cases(device: torch.device, ops: tuple[str, ...] = ()) -> list[Case]:
    """Every case of the named ops, or of all."""
    specs = [spec for name, spec in REGISTRY.items() if not ops or name in ops]
    return [
        case
        for spec in specs
        for table in TABLES
        if table.__name__ not in spec.left_out
        for case in table(spec, device)
    ]
