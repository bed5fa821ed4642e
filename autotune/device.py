"""What a config depends on besides the kernel: the device and the software that compiles for it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Fingerprint:
    """A device and its software. Configs found under one fingerprint are never used under another."""

    device: str  # "NVIDIA H200", or the CPU's model name
    capability: str  # "9.0"; for a CPU its widest vector instructions, "AVX512"
    units: int  # streaming multiprocessors, or logical cores
    torch: str
    triton: str  # "" where there is none

    @property
    def hash(self) -> str:
        """Names the folder of this environment in the store."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(device: torch.device) -> Fingerprint:
    """The fingerprint of a device; remembered, so that asking again costs a dictionary look-up."""
    return _fingerprint(device.type, device.index)


@functools.cache
def _fingerprint(kind: str, index: int | None) -> Fingerprint:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
        name, units = properties.name, properties.multi_processor_count
        capability = f"{properties.major}.{properties.minor}"
    elif kind == "cpu":
        name, capability, units = _cpu_name(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    else:
        name, capability, units = kind, "", 0
    return Fingerprint(name, capability, units, torch.__version__, triton)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
