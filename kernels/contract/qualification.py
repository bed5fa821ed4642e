"""Knows which Gluon kernels have been proven on which GPU. No interpreter runs Gluon, so that takes the device.

`tropigrad qualify` runs the conformance suite and twenty repetitions against the portable kernels there, and writes a
record. Committed as qualified/<name>.json, the record turns the kernels on for that compute capability and minor
version of triton, as long as their source is the one that was proven:

    {"schema": 1, "capability": "9.0", "triton": "3.7", "device": "NVIDIA H200",
     "kernels": {"tropical_matmul.gluon": "<source hash>"}, "cases": 512}
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...autotune import Tuned, capturing, source_hash
from ..runtime import backend
from .registry import REGISTRY

SCHEMA = 1
RECORDS = Path(__file__).with_name("qualified")


def why_not(kernel: str, source: Path, device: torch.device) -> str:
    """Why a kernel may not be chosen on this device; "" if it is qualified. Remembered."""
    return _why_not(kernel, source, str(device))


def why_not_op(op: str, device: torch.device) -> str:
    """Why the Gluon kernels of an op may not be chosen on this device; "" if all are qualified."""
    kernels = REGISTRY[op].tuned.get("gluon", ()) if op in REGISTRY else ()
    if not kernels:
        return f"{op} has no Gluon kernel"
    return next(filter(None, (why_not(kernel.name, kernel.source, device) for kernel in kernels)), "")


def record(kernels: Iterable[Tuned], device: torch.device, cases: int) -> dict[str, Any]:
    """The record that `qualify` writes after so many cases passed."""
    capability, version = _versions(device)
    return {
        "schema": SCHEMA,
        "capability": capability,
        "triton": version,
        "device": torch.cuda.get_device_name(device),
        "kernels": {kernel.name: source_hash(kernel.source) for kernel in kernels},
        "cases": cases,
    }


@functools.cache
def _why_not(kernel: str, source: Path, device: str) -> str:
    if torch.device(device).type != "cuda":
        return f"{kernel} takes GPUs, not {device}"
    capability, version = _versions(torch.device(device))
    here = f"compute capability {capability} with triton {version}"
    proven = [record for record in _records() if (record["capability"], record["triton"]) == (capability, version)]
    if not proven:
        return f"no qualification record for {here} yet: tropigrad qualify makes one; TROPIGRAD_BACKEND=gluon forces it"
    if not any(record["kernels"].get(kernel) == source_hash(source) for record in proven):
        return f"the record for {here} is of another version of {kernel}: tropigrad qualify makes a new one"
    return ""


def _versions(device: torch.device) -> tuple[str, str]:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}", ".".join(importlib.metadata.version("triton").split(".")[:2])


@functools.cache
def _records() -> list[dict[str, Any]]:
    """The committed records.

    Raises:
        ValueError: a file is no record of this schema.
    """
    records = []
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("schema") != SCHEMA or not isinstance(record.get("kernels"), dict):
            raise ValueError(f"{path} is no qualification record of schema {SCHEMA}; write it anew: tropigrad qualify")
        records.append(record)
    return records


def gluon_serves(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the op's Gluon kernels are qualified here and agree with Triton's, tried once per dtype and device."""
    if why_not_op(op, device) or backend.why_off("gluon", device):
        return False
    if (op, device, dtype) not in _agreeing:
        if capturing(device):
            return False  # the comparison would become part of the graph
        _agreeing[op, device, dtype] = _agrees_with_triton(op, device, dtype)
    return _agreeing[op, device, dtype]


_agreeing: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def _agrees_with_triton(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether values and winners are the same at the op's small shapes. Warns if they are not."""
    spec = REGISTRY[op]
    try:
        for kwargs in spec.variants.values():
            if "gluon" not in spec.offers(kwargs) or not spec.supports(dtype, kwargs):
                continue
            for seed, shape in enumerate(spec.small_shapes):
                inputs = spec.inputs(shape, dtype, device, seed)
                options = {**kwargs, "return_indices": True} if spec.has_winners(kwargs) else kwargs
                results = []
                for name in ("gluon", "triton"):
                    with backend.forcing(name):
                        result = spec.op(*inputs, **options)
                    results.append(result if isinstance(result, tuple) else (result,))
                if not all(bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(*results, strict=True)):
                    raise ArithmeticError(f"the results differ at {dict(shape)}, {dict(options)}")
    except Exception as error:  # whatever went wrong, Triton's kernel can serve
        warnings.warn(
            f"{op}: the Gluon kernel of {dtype} is off on {device}: {type(error).__name__}: {error}; "
            "Triton's serves: report this, with the text of tropigrad explain",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
