"""What a config will cost, before anything is launched: planned, compiled ahead of time, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ..triton_or_stub import HAS_TRITON
from .device import fingerprint
from .machine import ahead_of_time
from .machine.cost import NOMINAL, Ceilings, Launch, MachineCode, Prediction, Work, predict
from .scope import override
from .space import Config
from .tunable import Call
from .tuned import Tuned


def inspector(device: torch.device):
    """The forecast of configs from their machine code, on a GPU that Triton compiles for; None elsewhere."""
    runs = device.type == "cuda" and not torch.version.hip and HAS_TRITON
    return partial(forecast, device) if runs else None


def forecast(
    device: torch.device, call: Call, kernel: Tuned, configs: Sequence[Config], ceilings: Ceilings = NOMINAL
) -> list[Prediction | str]:
    """Each config's predicted cost, from machine code compiled ahead of time in parallel; or why it is out."""
    plans: list[list[ahead_of_time.Plan] | str] = []
    for config in configs:
        try:
            with override(kernel.name, config):
                plans.append(ahead_of_time.plan(call.run))
        except Exception as error:  # what cannot even be planned is no rival
            plans.append(f"{type(error).__name__}: {error}")
    codes = ahead_of_time.compile_all([plan for found in plans if not isinstance(found, str) for plan in found])
    environment = fingerprint(device)
    return [_forecast(found, codes, call.work, environment, ceilings) for found in plans]


def _forecast(plans: list[ahead_of_time.Plan] | str, codes, work: Work, environment, ceilings) -> Prediction | str:
    if isinstance(plans, str):
        return plans
    launches = []
    for plan in plans:
        code: MachineCode | str = codes[plan.name]
        if isinstance(code, str):
            return code
        if code.stack:
            return f"{plan.function} spills {code.stack} bytes of registers a thread"
        launches.append(Launch(code, plan.blocks, plan.threads))
    return predict(launches, work, environment, ceilings)
