"""The promises of every registered op, as cases that a test suite or a new device's qualification runs.

A case is a name and a call that raises AssertionError if the promise is broken, or `NotHere` if this machine cannot
tell. An op joins by being registered: nothing here names one. The spec of an in-place op wraps it in a function that
returns what was written. A spec also says whether there are gradients, and lists the promises that it does not make.

| promise | cases | file |
|---|---|---|
| values and winners equal the oracle's on every backend: ties, NaN, ∓∞, saturation, empty sizes, all dtypes \
| forward | values |
| they do so with any config | config | values |
| any stride, offsets beyond 2³¹ elements included; more than 2³¹ outputs on a GPU | strides, huge | values |
| misuse is named | misuse | values |
| right to the ends of the dtype's range; scaled by a power of two, the same but for it | ends, scaling | values |
| operands that share memory are as copies | aliasing | values |
| gradients and double gradients are right; ties route to one winner; of empty calls they are 0 \
| gradcheck, subgradient, empty | gradients |
| a winner out of range is named or masked, never written; −1 is skipped | indices | gradients |
| torch.compile without a graph break or a recompile storm, export, opcheck, vmap \
| compile, export, opcheck, vmap | torch_features |
| forward-mode AD is right or raises | jvp | torch_features |
| autocast casts nothing down | autocast | torch_features |
| torch.jit.trace, with its check, and torch.fx.symbolic_trace | jit_trace, fx_trace | torch_features |
| nothing lands on a default device that the arguments are not on | default_device | torch_features |
| a call behaves like the first of its layout, however often it is made: saved tensors, hooks, graph, errors, names of \
operators | checkpointing, saved_tensors, graph, profiler | repeated_calls |
| the same gradient bit for bit if torch.use_deterministic_algorithms asks, on any number of threads \
| deterministic | machines |
| many threads at once, other streams and devices | threads, streams | machines |
| calls that ran once can be captured in a CUDA graph | capture | machines |
| the same bits in every form that the C++ kernels can be built in | forms | machines |
| the Gluon kernels equal Triton's, twenty times in a row | repetitions | machines |
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


def cases(device: torch.device, ops: tuple[str, ...] = (), promises: tuple[str, ...] = ()) -> list[Case]:
    """Every case of the named ops, or of all; and of the named promises, or of all."""
    specs = [spec for name, spec in REGISTRY.items() if not ops or name in ops]
    return [
        case
        for spec in specs
        for table in TABLES
        if table.__name__ not in spec.left_out and (not promises or table.__name__ in promises)
        for case in table(spec, device)
    ]
