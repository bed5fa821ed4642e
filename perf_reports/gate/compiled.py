"""Tier 0: what the machine code of a kernel costs on each target, compiled ahead of time.

Each compilation is made by a process of its own. LLVM's options belong to a process, Triton sets them by kernel and by
target and takes none back, and they change the code of whatever is compiled beside or afterwards: in threads about 5 of
432 kernels came out differently from run to run.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...autotune.machine import ahead_of_time
from ...autotune.machine.cost import MachineCode
from .declaration import Kernel

Job = tuple[Kernel, int | str]
_AT_A_TIME = 64  # compilations between two records: all of a target in them are read by one start of the tools
# opcode prefixes, of NVIDIA and AMD
_MEMORY = {
    "global loads": ("LDG", "LDGSTS", "UTMALDG", "global_load", "buffer_load", "flat_load"),
    "global stores": ("STG", "RED", "UTMASTG", "global_store", "buffer_store", "flat_store"),
    "shared memory": ("LDS", "STS", "LDSM", "STSM", "ds_"),
    "local memory": ("LDL", "STL", "scratch_"),
    "barriers": ("BAR", "WARPSYNC", "DEPBAR", "s_barrier", "s_waitcnt"),
}


def figures(code: MachineCode) -> dict[str, int]:
    """The figures that the gate holds a kernel to: more is worse of each."""
    loop = code.loop if sum(code.loop.values()) > 1 else {}  # a listing ends in a branch to itself
    told = {
        "registers": code.registers,
        "stack bytes": code.stack,
        "shared bytes": code.shared,
        # NOPs only fill up the last line of code
        "instructions": sum(n for opcode, n in code.instructions.items() if opcode != "NOP"),
        "loop instructions": sum(loop.values()),
    }
    for kind, prefixes in _MEMORY.items():
        told[f"loop {kind}"] = _count(loop, prefixes)
    return told


def _count(mix: Mapping[str, int], prefixes: Sequence[str]) -> int:
    return sum(count for opcode, count in mix.items() if opcode.startswith(tuple(prefixes)))


def target_name(target: int | str) -> str:
    return f"sm_{target}" if isinstance(target, int) else target


def measure(kernels: Sequence[Kernel], tell: Callable[[str], object] = lambda what: None) -> Iterator[dict[str, Any]]:
    """A record for each kernel and target: its figures and its loop's mix, or why it does not compile.

    The process that calls must have compiled nothing: those that compile are its forks.
    """
    jobs = [(kernel, target) for kernel in kernels for target in kernel.targets]
    for first in range(0, len(jobs), _AT_A_TIME):
        some = jobs[first : first + _AT_A_TIME]
        tell(f"{some[0][0].key} for {target_name(some[0][1])}, and what follows")
        for (kernel, target), code in zip(some, _read(_in_forks(some)), strict=True):
            record: dict[str, Any] = {"tier": 0, "of": kernel.key, "target": target_name(target)}
            if isinstance(code, MachineCode):
                yield record | {"figures": figures(code), "mix": dict(sorted(code.loop.items()))}
            else:
                yield record | {"error": code}


def _in_forks(jobs: Sequence[Job]) -> list[ahead_of_time.Assembled | str]:
    """The compiled kernel of each job, by a fork of this process a job, or why there is none; on all cores.

    A pool would not do: it waits for ever for a process that the compiler brought down.
    """
    # each process hashes Triton's own files once, which takes as long as a compilation: here, for all of them
    getattr(importlib.import_module("triton.runtime.cache"), "triton_key", lambda: None)()
    fork = multiprocessing.get_context("fork")  # kernels cannot be pickled, and a fork has them already
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    made: dict[int, ahead_of_time.Assembled | str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                place, job = waiting.pop()
                here, there = fork.Pipe(duplex=False)
                process = fork.Process(target=lambda job=job, there=there: there.send(_assembled(job)), daemon=True)
                process.start()
                there.close()
                running[here] = place, process
            ready: list[Any] = multiprocessing.connection.wait([*running])
            for here in ready:
                place, process = running[here]
                try:
                    made[place] = here.recv()
                except EOFError:
                    process.join()
                    made[place] = f"the compiler ended its process (exit code {process.exitcode})"
                del running[here]
                here.close()
                process.join()
    finally:
        for _, process in running.values():
            process.kill()
    return [made[place] for place in range(len(jobs))]


def _assembled(job: Job) -> ahead_of_time.Assembled | str:
    """The compiled kernel of a job, or why there is none."""
    kernel, target = job
    try:
        _check(kernel)
        return ahead_of_time.assemble(
            kernel.function, kernel.signature, kernel.constants, target, kernel.warps, enable_fp_fusion=kernel.fuses
        )
    except Exception as error:  # whatever a compiler says is for the reader of the table
        return _words(error)


def _read(assembled: Sequence[ahead_of_time.Assembled | str]) -> list[MachineCode | str]:
    """The machine code of each, or why there is none."""
    codes = iter(ahead_of_time.read([made for made in assembled if not isinstance(made, str)]))
    read = [made if isinstance(made, str) else next(codes) for made in assembled]
    return [_words(code) if isinstance(code, Exception) else code for code in read]


def _words(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines[-3:]) if lines else 'no message'}"


def _check(kernel: Kernel) -> None:
    names = getattr(kernel.function, "arg_names", None)
    if names is None:
        return  # compile says that it is not jitted
    told = {*kernel.signature, *kernel.constants}
    missing, unknown = [name for name in names if name not in told], sorted(told - set(names))
    if missing or unknown:
        raise ValueError(
            f"the signature does not fit: {', '.join(missing) or 'nothing'} missing, "
            f"{', '.join(unknown) or 'nothing'} unknown; expected {', '.join(names)}"
        )
