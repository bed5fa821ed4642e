"""The most that a GPU can do, by Triton loops that do one thing each:

    add_max        G steps/s   x ← max(x + s, c) in registers, fp32: FADD + FMNMX
    add_max_half   G steps/s   the same in fp16, two to an instruction: HADD2 + HMNMX2
    add_max_int    G steps/s   the same in int32: VIADDMNMX on compute capability 9.0, an add and a max elsewhere
    memory         GB/s        triad out = x + s y over arrays far larger than the second-level cache
    launch         µs          an empty kernel, launched again and again

What a loop compiles to is read from its machine code in the tests: a figure is worth what its loop is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...autotune.timing import interleaved
from ...triton_or_stub import tl, triton
from ..commands import Progress
from .ceilings import GIGA, Ceiling

CHAINS = 8  # of dependent steps per thread: with 4 blocks on a multiprocessor they hide the latency of both pipes
UNROLLED = 32
WARPS = 4
MIXES = {"add_max": torch.float32, "add_max_half": torch.float16, "add_max_int": torch.int32}
_BLOCKS_PER_UNIT, _ITERATIONS = 8, 4096
_TRIAD_FLOATS = 1 << 28  # 1 GiB an array
_TRIAD_BLOCK = 1024


@triton.jit
def _mix_kernel(
    x_ptr,  # [SIZE]
    s_ptr,  # [2]: s and c, which a constant would let the compiler fold
    iterations,
    SIZE: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    offs = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offs)
    s, c = tl.load(s_ptr), tl.load(s_ptr + 1)
    for _ in range(iterations):
        for _ in tl.static_range(UNROLLED):  # pyright: ignore[reportGeneralTypeIssues]
            x = tl.maximum(x + s, c)
    tl.store(x_ptr + offs, x)


@triton.jit
def _triad_kernel(
    out_ptr,  # [n]
    x_ptr,  # [n]
    y_ptr,  # [n]
    s,
    n,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    y = tl.load(y_ptr + offs, mask=offs < n)
    tl.store(out_ptr + offs, x + s * y, mask=offs < n)


@triton.jit
def _empty_kernel():
    pass


def measure(device: torch.device, *, quick: bool = False, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Records of a GPU's ceilings, as ceilings.measure makes of a CPU's: the best of the samples counts.

    Args:
        quick: fewer samples.
        progress: called with (done, total, what is being measured).
    """
    names = (*MIXES, "memory", "launch")
    rounds = 5 if quick else 20
    units = torch.cuda.get_device_properties(device).multi_processor_count
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names), f"ceiling: {name}")
        make = {"memory": _memory, "launch": _launch}.get(name)
        ceiling = make(device, rounds) if make else _mix(name, MIXES[name], device, units, rounds)
        yield {**ceiling.record(), "device": str(device)}
    if progress is not None:
        progress(len(names), len(names), "ceilings")


def _seconds(call: Callable[[], Any], rounds: int) -> tuple[float, ...]:
    return interleaved({"": call}, budget_s=0, min_rounds=rounds, max_rounds=rounds)[""].seconds


def _mix(name: str, dtype: torch.dtype, device: torch.device, units: int, rounds: int) -> Ceiling:
    size = CHAINS * 32 * WARPS
    x, s = torch.zeros(size, dtype=dtype, device=device), torch.tensor([1, -1], device=device).to(dtype)
    blocks = units * _BLOCKS_PER_UNIT

    def call():
        _mix_kernel[(blocks,)](x, s, _ITERATIONS, SIZE=size, UNROLLED=UNROLLED, num_warps=WARPS)

    steps = blocks * size * UNROLLED * _ITERATIONS
    rates = tuple(steps / seconds / GIGA for seconds in _seconds(call, rounds))
    how = f"registers only, {CHAINS} chains a thread, {blocks} blocks of {WARPS} warps"
    return Ceiling(name, 0, max(rates), "G steps/s", rates, how)


def _memory(device: torch.device, rounds: int) -> Ceiling:
    free, _ = torch.cuda.mem_get_info(device)
    n = min(_TRIAD_FLOATS, free // 4 // 4)
    out, x, y = (torch.ones(n, device=device) for _ in range(3))

    def call():
        _triad_kernel[(triton.cdiv(n, _TRIAD_BLOCK),)](out, x, y, 3.0, n, BLOCK=_TRIAD_BLOCK)

    rates = tuple(3 * 4 * n / seconds / GIGA for seconds in _seconds(call, rounds))
    return Ceiling("memory", 0, max(rates), "GB/s", rates, f"triad over {3 * 4 * n / 2**30:.3g} GiB")


def _launch(device: torch.device, rounds: int) -> Ceiling:
    def call():
        _empty_kernel[(1,)]()

    times = tuple(seconds * 1e6 for seconds in _seconds(call, rounds))
    return Ceiling("launch", 0, min(times), "µs", times, "an empty Triton kernel, one after another; the least counts")
