"""Forecasts what a config costs before anything is launched: launches are planned, compiled, and their code counted."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter

import torch

from ..triton_or_stub import HAS_TRITON
from .device import Fingerprint, fingerprint
from .machine import ahead_of_time
from .machine.cost import NOMINAL, Ceilings, Launch, MachineCode, Prediction, Work, predict
from .scope import override
from .space import Config
from .tunable import Call
from .tuned import Tuned

BATCH = 4  # configs a core that are planned and then compiled together

# (configs, ceilings=NOMINAL, deadline=math.inf) -> of each its predicted cost, why it is out, or None: no time was left
Inspect = Callable[..., Sequence[Prediction | str | None]]


def inspector(call: Call, kernel: Tuned, device: torch.device) -> Inspect | None:
    """The forecast of a kernel's configs in a call, on a GPU that Triton compiles for; None where there is none."""
    compiles = device.type == "cuda" and not torch.version.hip and HAS_TRITON
    return partial(forecast, device, call, kernel) if compiles and call.is_foreseeable else None


def forecast(
    device: torch.device,
    call: Call,
    kernel: Tuned,
    configs: Sequence[Config],
    ceilings: Ceilings = NOMINAL,
    deadline: float = math.inf,
) -> list[Prediction | str | None]:
    """Each config's predicted cost, from machine code compiled ahead of time in parallel; or why it is out.

    deadline: the time of perf_counter() from which on nothing more is planned or compiled. None stands for the configs
    that are left. They are a spread over those that came, the same each time.
    """
    environment = fingerprint(device)
    outlooks: list[Prediction | str | None] = [None] * len(configs)
    codes: dict[str, MachineCode | str] = {}
    spread = random.Random(0).sample(range(len(configs)), len(configs))
    size = BATCH * (os.cpu_count() or 1)
    for first in range(0, len(spread), size):
        batch = spread[first : first + size]
        plans = {number: _plan(call, kernel, configs[number]) for number in batch if perf_counter() < deadline}
        launches = [plan for of in plans.values() if not isinstance(of, str) for plan in of if plan.name not in codes]
        codes |= ahead_of_time.compile_all(launches, deadline)
        for number, of in plans.items():
            outlooks[number] = _forecast(of, codes, call.work, environment, ceilings)
    return outlooks


def _plan(call: Call, kernel: Tuned, config: Config) -> list[ahead_of_time.Plan] | str:
    try:
        with override(kernel.name, config):
            return ahead_of_time.plan(call.run)
    except Exception as error:  # what cannot even be planned is no rival
        return f"{type(error).__name__}: {error}"


def _forecast(
    plans: list[ahead_of_time.Plan] | str,
    codes: Mapping[str, MachineCode | str],
    work: Work,
    environment: Fingerprint,
    ceilings: Ceilings,
) -> Prediction | str | None:
    if isinstance(plans, str):
        return plans
    launches = []
    for plan in plans:
        code = codes.get(plan.name)
        if code is None:  # the deadline came first
            return None
        if isinstance(code, str):
            return code
        if code.stack:
            return f"{plan.function} spills {code.stack} bytes of registers a thread"
        launches.append(Launch(code, plan.blocks, plan.threads))
    return predict(launches, work, environment, ceilings)
