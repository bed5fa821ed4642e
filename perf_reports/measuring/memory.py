"""The peak memory of a call. Its time: autotune/timing.py."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...autotune.timing import synchronize


@dataclass(frozen=True)
class Memory:
    """The memory that one call took at its peak, beyond what was held before it."""

    peak_bytes: int
    result_bytes: int  # of the tensors that it returned; the rest is scratch
    how: str


def peak_memory(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[tuple[torch.Tensor, ...], Memory | None]:
    """Make a call, and return its results and its peak memory, inputs not counted; None where this system cannot tell.

    On the CPU: the high-water mark of the resident set (VmHWM), reset before the call, less what was resident then.
    Freed memory is handed back to the system first, else the call could reuse it unseen. To be made before anything
    else has run at this size: buffers that the call keeps for its next time count as well. On CUDA: the peak of the
    caching allocator.
    """
    if torch.cuda.is_available():
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = call()
        synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return results, Memory(peak, _bytes(results), "peak of torch's CUDA allocator")
    gc.collect()
    if not _reset_high_water_mark():
        return call(), None
    before = _status_bytes("VmRSS")
    results = call()
    peak = _status_bytes("VmHWM") - before
    return results, Memory(max(peak, 0), _bytes(results), "high-water mark of the resident set (VmHWM)")


def _bytes(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _reset_high_water_mark() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False  # not glibc: reuse of freed memory would go unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status_bytes("VmHWM")
    except (OSError, LookupError):
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
