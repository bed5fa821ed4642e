"""Tier 0: what the machine code of a kernel costs on each target, compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...autotune.machine import ahead_of_time
from ...autotune.machine.cost import MachineCode
from .declaration import Kernel

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
    """A record for each kernel and target: its figures and its loop's mix, or why it does not compile."""
    jobs = [(kernel, target) for kernel in kernels for target in kernel.targets]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(jobs), _AT_A_TIME):
            some = jobs[first : first + _AT_A_TIME]
            tell(f"{some[0][0].key} for {target_name(some[0][1])}, and what follows")
            codes = _read(some, list(pool.map(_assembled, some)))
            for (kernel, target), code in zip(some, codes, strict=True):
                record: dict[str, Any] = {"tier": 0, "of": kernel.key, "target": target_name(target)}
                if isinstance(code, MachineCode):
                    yield record | {"figures": figures(code), "mix": dict(sorted(code.loop.items()))}
                else:
                    yield record | {"error": _words(code)}


def _assembled(job: tuple[Kernel, int | str]) -> Any:
    """The result of triton.compile, or the exception."""
    kernel, target = job
    try:
        _check(kernel)
        return ahead_of_time.assemble(
            kernel.function, kernel.signature, kernel.constants, target, kernel.warps, enable_fp_fusion=kernel.fuses
        )
    except Exception as error:  # whatever a compiler says is for the reader of the table
        return error


def _read(jobs: Sequence[tuple[Kernel, int | str]], assembled: Sequence[Any]) -> list[MachineCode | Exception]:
    """The machine code of each, or the exception; those of one target are read together."""
    codes: list[Any] = list(assembled)
    for target in dict.fromkeys(target for _, target in jobs):
        places = [i for i, job in enumerate(jobs) if job[1] == target and not isinstance(assembled[i], Exception)]
        if not places:
            continue
        together = ahead_of_time.read([assembled[i] for i in places], target)
        for place, code in zip(places, together, strict=True):
            codes[place] = code
    return codes


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
