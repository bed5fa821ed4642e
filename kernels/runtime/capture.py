"""Inside a CUDA-graph capture no kernel compiles: the graph would hold whatever ran beside the compilation, or nothing.

While a graph is being captured, a hook that Triton calls before a compilation refuses our kernels, and names the call
that compiles them in time. The hook is removed afterwards: while it is set, Triton demands that every kernel in the
process can be serialised.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from ...autotune import capturing
from ...triton_or_stub import HAS_TRITON, triton

_before: list[Any] = []  # the hook that ours has replaced, while ours is set


def watch(device: torch.device) -> None:
    """Sets the hook while a graph is captured on this device, and removes it while none is. Cheap."""
    if capturing(device) == bool(_before) or not HAS_TRITON:
        return
    if _before:
        triton.knobs.runtime.jit_cache_hook = _before.pop()
    else:
        _before.append(triton.knobs.runtime.jit_cache_hook)
        triton.knobs.runtime.jit_cache_hook = _refuse


_Owner = TypeVar("_Owner")
_read_by_graphs: dict[int, Any] = {}


def kept(owner: _Owner, device: torch.device) -> _Owner:
    """The owner of tensors on this device, held for good if a graph that reads them is being captured now.

    A cache that drops the owner then frees nothing that a replay still reads.
    """
    if capturing(device):
        _read_by_graphs[id(owner)] = owner
    return owner


def _refuse(**compilation: Any) -> Any:
    function = compilation["fn"]
    if str(function.module).startswith("tropigrad.") and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{function.name} is not compiled yet, and a CUDA graph is being captured; expected a call with these "
            "shapes, dtypes and options before the capture: call the op once, or "
            "autotune.warm_up(op, shapes, dtype=..., device=...)"
        )
    before = _before[0] if _before else None
    return before(**compilation) if before else None
