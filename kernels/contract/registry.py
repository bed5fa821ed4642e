"""The registered ops. The conformance suite, the reports and the tuner find them here."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ... import autotune
from ...autotune import Call, Problem
from . import tuning
from .spec import Sizes, Spec

REGISTRY: dict[str, Spec] = {}


def register(spec: Spec) -> Spec:
    """Puts an op in the conformance suite, the reports and the tuner."""
    if spec.name in REGISTRY:
        raise ValueError(f"register: an op named {spec.name!r} is registered already")
    REGISTRY[spec.name] = spec
    kernels = tuple(kernel for of_backend in spec.tuned.values() for kernel in of_backend)
    small = spec.small_shapes[-1]
    autotune.register(
        autotune.Tunable(
            spec.name,
            spec.shapes,
            kernels,
            _calls_of(spec),
            _calls_at(spec),
            middle=spec.middle or small,
            interpreted=spec.interpreted or small,
        )
    )
    return spec


def _calls_at(spec: Spec):
    def calls(problem: Problem, dtype: torch.dtype, device: torch.device) -> Iterable[Call]:
        with torch.device("cpu"):
            inputs = spec.extra.inputs_at(problem, dtype, device)
        return () if inputs is None else tuning.calls_on(spec, inputs, dtype, device)

    return calls


def _calls_of(spec: Spec):
    def calls(shape: Sizes, dtype: torch.dtype, device: torch.device) -> Iterable[Call]:
        return tuning.calls(spec, shape, dtype, device)

    return calls
