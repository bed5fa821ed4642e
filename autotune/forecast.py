"""Forecasts what a config costs before anything is launched: launches are planned, compiled, and their code counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Inspect = Callable[..., Sequence[Prediction | str]]  # (configs, ceilings=NOMINAL)


def inspector(call: Call, kernel: Tuned, device: torch.device) -> Inspect | None:
    """The forecast of a kernel's configs in a call, on a GPU that Triton compiles for; None where there is none."""
    compiles = device.type == "cuda" and not torch.version.hip and HAS_TRITON
    return partial(forecast, device, call, kernel) if compiles and call.is_foreseeable else None


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
    codes = ahead_of_time.compile_all(
        [plan for launches in plans if not isinstance(launches, str) for plan in launches]
    )
    environment = fingerprint(device)
    return [_forecast(launches, codes, call.work, environment, ceilings) for launches in plans]


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
