"""The most that this machine can do: the roofs of the roofline, measured.

compute   G steps/s   register-only add + max, fma + max, mul + max in fp32 (ceilings.cpp); a step is one (m, n, k)
memory    GB/s        triad out = x + s y over arrays larger than the last-level cache; 3 arrays counted, as STREAM does
cache     GB/s        the same over half of each core's second-level cache
matmul    G steps/s   torch.matmul in fp32, for scale only: no tropical product can run on the units that it uses

A roof is the best of its samples, not the median: it says what the machine can do, not what it does on a busy day.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Barrier
from time import perf_counter
from typing import Any

import torch

from ...kernels.runtime.native import library, why_no_compiler
from ..commands import Progress

MIXES = ("add_max", "fma_max", "mul_max")  # in the order of ceilings.cpp
# a mix is bounded by the best way of issuing it: fma(a, 1, b) rounds as a + b does
WAYS = {"add_max": ("add_max", "fma_max"), "mul_max": ("mul_max",)}
GIGA = 1e9

_CACHE_BYTES = {2: 1 << 20, 3: 32 << 20}  # by level, where the system does not tell
_TRIAD_BYTES_AT_MOST = 2 << 30
# short and many: on a busy machine one of them meets all cores free
_SAMPLE_S = 0.008


@dataclass(frozen=True)
class Ceiling:
    """One roof: `value` in `unit`, the best of `samples`."""

    name: str  # add_max | fma_max | mul_max | cache | memory | matmul
    threads: int
    value: float
    unit: str  # "G steps/s" | "GB/s"
    samples: tuple[float, ...]
    how: str

    def record(self) -> dict[str, Any]:
        """The line of results.jsonl."""
        return {"kind": "ceiling", **asdict(self)}


def measure(*, quick: bool = False, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Records of this machine's ceilings, as they come; one of kind "left_out" for each that cannot be measured here.

    Args:
        quick: fewer samples.
        progress: called with (done, total, what is being measured).
    """
    native = library(Path(__file__).with_name("ceilings.cpp"))
    rounds = 15 if quick else 40
    everybody = torch.get_num_threads()
    counts = sorted({1, everybody})
    missing: dict[str, str] = {}
    steps: list[tuple[str, Callable[[], Ceiling]]] = []
    if native is None:
        reason = why_no_compiler() or "ceilings.cpp did not compile on this machine"
        missing = dict.fromkeys((*MIXES, "cache"), reason)
        steps.append(("memory", partial(_memory_by_torch, everybody, rounds // 3)))
    else:
        _declare(native)
        for mix, name in enumerate(MIXES):
            if native.tropigrad_mix(mix, 1) > 0:
                steps += [(name, partial(_mix, native, mix, n, rounds)) for n in counts]
            else:
                missing[name] = "this processor has no such instruction"
        steps += [("cache", partial(_cache, native, n, rounds)) for n in counts]
        steps.append(("memory", partial(_memory, native, everybody, rounds // 3)))
    steps += [("matmul", partial(_matmul, n, rounds)) for n in counts]

    for done, (name, step) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), f"ceiling: {name}")
        yield step().record()
    for name, reason in missing.items():
        yield {"kind": "left_out", "what": f"ceiling {name}", "reason": reason}
    if progress is not None:
        progress(len(steps), len(steps), "ceilings")


def compute_roof(records: Iterable[Mapping[str, Any]], mix: str) -> float | None:
    """G steps/s that all threads together reach in a mix, by its best way; None where it was not measured."""
    rates = [r["value"] for r in records if r["kind"] == "ceiling" and r["name"] in WAYS.get(mix, (mix,))]
    return max(rates, default=None)


def bandwidth_roof(records: Iterable[Mapping[str, Any]], name: str = "memory") -> float | None:
    """GB/s of all threads together, from "memory" or "cache"; None where it was not measured."""
    return max((r["value"] for r in records if r["kind"] == "ceiling" and r["name"] == name), default=None)


def of_one_thread(rounds: int = 8) -> float | None:
    """G steps/s of sums and maxima that one thread makes in registers, by the best way; None where nothing compiles."""
    native = library(Path(__file__).with_name("ceilings.cpp"))
    if native is None:
        return None
    _declare(native)
    ways = [mix for mix in map(MIXES.index, WAYS["add_max"]) if native.tropigrad_mix(mix, 1) > 0]
    return max(_mix(native, mix, 1, rounds).value for mix in ways)


# ------------------------------------------------------------------------------------------------ native loops


def _declare(native: ctypes.CDLL) -> None:
    native.tropigrad_mix.restype = ctypes.c_double
    native.tropigrad_mix.argtypes = [ctypes.c_int, ctypes.c_long]
    native.tropigrad_triad.restype = ctypes.c_double
    native.tropigrad_triad.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2
    native.tropigrad_vector_floats.restype = ctypes.c_int


def _at_once(work: Callable[[int], float], threads: int, rounds: int) -> tuple[float, ...]:
    """Rates of `work(thread) -> amount` made by all threads together, in billions a second; ctypes frees the GIL."""
    barrier = Barrier(threads)

    def timed(thread: int) -> tuple[float, float, float]:
        barrier.wait()
        start = perf_counter()
        return work(thread), start, perf_counter()

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            amounts, starts, ends = zip(*pool.map(timed, range(threads)), strict=True)
            rates.append(sum(amounts) / (max(ends) - min(starts)) / GIGA)
    return tuple(rates)


def _repeats(work: Callable[[int], float]) -> int:
    """Choose how often to repeat short work, so that a sample outlasts the clock and the start of the threads."""
    repeats = 1
    while True:
        start = perf_counter()
        work(repeats)
        elapsed = perf_counter() - start
        if elapsed > _SAMPLE_S / 10:
            return max(1, round(repeats * _SAMPLE_S / elapsed))
        repeats *= 8


def _mix(native: ctypes.CDLL, mix: int, threads: int, rounds: int) -> Ceiling:
    iterations = _repeats(lambda n: native.tropigrad_mix(mix, n))
    rates = _at_once(lambda thread: native.tropigrad_mix(mix, iterations), threads, rounds)
    how = f"registers only, vectors of {native.tropigrad_vector_floats()} floats"
    return Ceiling(MIXES[mix], threads, max(rates), "G steps/s", rates, how)


def _cache(native: ctypes.CDLL, threads: int, rounds: int) -> Ceiling:
    l2 = _cache_size(2)
    n = l2 // 2 // 3 // 4
    arrays = [[torch.ones(n, device="cpu") for _ in range(3)] for _ in range(threads)]

    def triad(thread: int, passes: int) -> float:
        return native.tropigrad_triad(*(a.data_ptr() for a in arrays[thread]), n, passes)

    passes = _repeats(lambda passes: triad(0, passes))
    rates = _at_once(lambda thread: triad(thread, passes), threads, rounds)
    how = f"triad over {_mebibytes(3 * 4 * n)} a core; the second-level cache has {_mebibytes(l2)}"
    return Ceiling("cache", threads, max(rates), "GB/s", rates, how)


def _memory(native: ctypes.CDLL, threads: int, rounds: int) -> Ceiling:
    n, how = _triad_size()
    arrays = [torch.ones(n, device="cpu") for _ in range(3)]
    cuts = [n * i // threads for i in range(threads + 1)]

    def triad(thread: int) -> float:
        first, last = cuts[thread], cuts[thread + 1]
        return native.tropigrad_triad(*(a.data_ptr() + 4 * first for a in arrays), last - first, 1)

    rates = _at_once(triad, threads, rounds)
    return Ceiling("memory", threads, max(rates), "GB/s", rates, how)


# ------------------------------------------------------------------------------------------------ torch


def _memory_by_torch(threads: int, rounds: int) -> Ceiling:
    n, how = _triad_size()
    out, x, y = (torch.ones(n, device="cpu") for _ in range(3))
    rates = []
    for _ in range(rounds):
        start = perf_counter()
        torch.add(x, y, alpha=3.0, out=out)
        rates.append(3 * 4 * n / (perf_counter() - start) / GIGA)
    return Ceiling("memory", threads, max(rates), "GB/s", tuple(rates), how + ", by torch.add")


def _matmul(threads: int, rounds: int, n: int = 1024) -> Ceiling:
    a, b, c = (torch.ones(n, n, device="cpu") for _ in range(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.matmul(a, b, out=c)
        rates = []
        for _ in range(rounds):
            start = perf_counter()
            torch.matmul(a, b, out=c)
            rates.append(n**3 / (perf_counter() - start) / GIGA)
    finally:
        torch.set_num_threads(before)
    return Ceiling(
        "matmul", threads, max(rates), "G steps/s", tuple(rates), f"torch.matmul, fp32, {n}³, for scale only"
    )


# ------------------------------------------------------------------------------------------------ sizes


def _cache_size(level: int) -> int:
    for cache in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((cache / "level").read_text()) == level:
                return int((cache / "size").read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return _CACHE_BYTES[level]


def _triad_size() -> tuple[int, str]:
    """Floats of each of the three arrays: four last-level caches together, where the memory allows; and in words."""
    l3 = _cache_size(3)
    total = min(4 * l3, _TRIAD_BYTES_AT_MOST, _available_memory() // 4)
    how = f"triad over {_mebibytes(total)}; the last-level cache has {_mebibytes(l3)}"
    if total < 2 * l3:
        how += ", so part of this may be cache"
    return total // 3 // 4, how


def _available_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.4g} MiB"
