"""The gate of this library's own kernels: `tropigrad perf gate`. The baseline beside it is perf_baseline.json.

Tier 0 compiles a launch for each flag of each Triton kernel, in float32. Tiers 1 and 2 call every op at the small
shape that its spec names for the interpreter: by Triton, interpreted, and by what serves it on a CPU. Tier 3 calls it
there as a GPU's call goes, up to Triton's launcher. What somebody tuned on the machine is left out: all is called with
the default configs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable
from functools import partial
from unittest import mock

import torch

import tropigrad.kernels
import tropigrad.optim  # noqa: F401  registers its iterations
from tropigrad import autotune
from tropigrad.kernels.contract.launches import CPU, Launch, launches
from tropigrad.kernels.contract.operators import covering
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime.dispatch import unserved_by_plans
from tropigrad.perf_reports.gate import Call, Kernel
from tropigrad.triton_or_stub import triton

FLOAT = torch.float32


def kernels() -> list[Kernel]:
    made: list[Launch] = []
    for name, tunable in autotune.TUNABLE.items():
        spec = REGISTRY.get(name)
        if spec is None or ("triton" in spec.tuned and FLOAT in spec.dtypes):
            made += launches(name, [next(iter(tunable.shapes.values()))], FLOAT)
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
        if spec is not None and ("triton" not in spec.backends if tier == 1 else FLOAT not in spec.dtypes):
            continue
        shape = tunable.interpreted or next(iter(tunable.shapes.values()))
        with backend.forcing("triton" if tier == 1 else "auto"):
            for call in tunable.calls(shape, FLOAT, CPU):
                declared.append(Call(f"{name}, {call.name}", partial(_run, call.run, tier), tiers=(tier,)))
    return declared


def launching() -> list[Call]:
    """The calls by Triton, forward and in place; whoever trains pays for autograd besides, which is torch's."""
    unserved_by_plans()
    backend.why_off = lambda name, device: ""
    for module in list(sys.modules.values()):  # values are looked at on a CPU alone
        if hasattr(module, "looks_at_values"):
            module.looks_at_values = lambda device: False
    shapes = {name: of.interpreted or next(iter(of.shapes.values())) for name, of in autotune.TUNABLE.items()}
    specs = {name: spec for name, spec in REGISTRY.items() if "triton" in spec.backends}
    made = []
    with backend.forcing("triton"), mock.patch.object(triton.JITFunction, "run", return_value=None):
        made += [(name, call) for name in specs for call in autotune.TUNABLE[name].calls(shapes[name], FLOAT, CPU)]
        # what a launch would have written is read back by some calls; an allocation then counts ten instructions more
        empty, torch.empty_like, torch.Tensor.new_empty = torch.empty, torch.zeros_like, torch.Tensor.new_zeros
        torch.empty = lambda *sizes, **options: empty(*sizes, **options).zero_()
        loops = [name for name in autotune.TUNABLE if name not in REGISTRY]
        made += [(name, call) for name in loops for call in autotune.TUNABLE[name].calls(shapes[name], FLOAT, CPU)]
    backend.forced_everywhere = "triton"
    return [Call(f"{name}, {call.name}", call.run, tiers=(3,)) for name, call in made if "trained" not in call.name]


def _run(call: Callable[[], object], tier: int) -> None:
    if tier == 2:
        call()
        return
    with backend.forcing("triton", everywhere=True):
        call()


def GATE(tier: int) -> list[Kernel] | list[Call]:
    os.environ["TROPIGRAD_AUTOTUNE"] = "off"  # in this tier's process, which ends with it
    return kernels() if tier == 0 else launching() if tier == 3 else calls(tier)
