"""The gate of this library's own kernels: `tropigrad perf gate`. The baseline beside it is perf_baseline.json.

Tier 0 compiles a launch for each flag of each Triton kernel, in float32. Tiers 1 and 2 call every op at the small
shape that its spec names for the interpreter: by Triton, interpreted, and by what serves it on a CPU. What somebody
tuned on the machine is left out: all is called with the default configs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from functools import partial

import torch

import tropigrad.kernels
import tropigrad.optim  # noqa: F401  registers its iterations
from tropigrad import autotune
from tropigrad.kernels.contract.launches import CPU, Launch, launches
from tropigrad.kernels.contract.operators import covering
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.perf_reports.gate import Call, Kernel


def kernels() -> list[Kernel]:
    made: list[Launch] = []
    for name, tunable in autotune.TUNABLE.items():
        spec = REGISTRY.get(name)
        if spec is None or ("triton" in spec.tuned and torch.float32 in spec.dtypes):
            made += launches(name, [next(iter(tunable.shapes.values()))], torch.float32)
    return [
        Kernel(
            launch.kernel,
            launch.signature,
            launch.constants,
            warps=launch.warps,
            name=launch.name,
            variant=" ".join(f"{flag}={value}" for flag, value in launch.flags.items()),
            fuses=launch.fuses,
        )
        for launch in covering(made, _flags)
    ]


def _flags(launch: Launch) -> set[Hashable]:
    return {launch.name, *((launch.name, *flag) for flag in launch.flags.items())}


def calls(tier: int) -> list[Call]:
    declared = []
    for name, tunable in autotune.TUNABLE.items():
        spec = REGISTRY.get(name)
        if spec is not None and ("triton" not in spec.backends if tier == 1 else torch.float32 not in spec.dtypes):
            continue
        shape = tunable.interpreted or next(iter(tunable.shapes.values()))
        with backend.forcing("triton" if tier == 1 else "auto"):
            for call in tunable.calls(shape, torch.float32, CPU):
                declared.append(Call(f"{name}, {call.name}", partial(_run, call.run, tier), tiers=(tier,)))
    return declared


def _run(call: Callable[[], object], tier: int) -> None:
    if tier == 2:
        call()
        return
    with backend.forcing("triton", everywhere=True):
        call()


def GATE(tier: int) -> list[Kernel] | list[Call]:
    os.environ["TROPIGRAD_AUTOTUNE"] = "off"  # in this tier's process, which ends with it
    return kernels() if tier == 0 else calls(tier)
