"""The registered ops. The conformance suite, the reports and the tuner find them here."""

from __future__ import annotations

from functools import partial

from ... import autotune
from . import tuning
from .spec import Spec

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
            partial(tuning.calls, spec),
            partial(tuning.calls_at, spec),
            middle=spec.middle or small,
            interpreted=spec.interpreted or small,
        )
    )
    return spec
