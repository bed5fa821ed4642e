"""The device and the software that compiles for it: a config depends on them besides the kernel."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..version import __version__

POLICY = "interleaved medians, default among them, 1"  # how rivals are timed: another way, other configs


@dataclass(frozen=True)
class Fingerprint:
    """A device and its software. Configs found under one fingerprint are never used under another."""

    device: str  # "NVIDIA H200", or the CPU's model name
    capability: str  # "9.0"; for a CPU its widest vector instructions, "AVX512"
    units: int  # streaming multiprocessors, or the threads that torch computes with
    torch: str
    triton: str  # "" where there is none
    driver: str = ""  # of a GPU
    ptxas: str = ""  # likewise
    library: str = __version__
    policy: str = POLICY

    @property
    def hash(self) -> str:
        """Names the folder of this environment in the store."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(device: torch.device) -> Fingerprint:
    """The fingerprint of a device; remembered, so that asking again costs a dictionary look-up."""
    return _fingerprint(device.type, device.index, torch.get_num_threads() if device.type == "cpu" else 0)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: nothing may tune, compile or synchronise then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def why_lost(device: torch.device) -> str:
    """Why every later call of this process on the device would fail; "" where it answers.

    An illegal access, or a launch that failed, spoils a GPU's context for the rest of the process.
    """
    if device.type != "cuda":
        return ""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


@functools.cache
def _fingerprint(kind: str, index: int | None, threads: int) -> Fingerprint:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
        return Fingerprint(
            properties.name,
            f"{properties.major}.{properties.minor}",
            properties.multi_processor_count,
            torch.__version__,
            triton,
            driver=_driver(),
            ptxas=_ptxas(),
        )
    if kind == "cpu":
        return Fingerprint(_cpu_name(), torch.backends.cpu.get_cpu_capability(), threads, torch.__version__, triton)
    return Fingerprint(kind, "", 0, torch.__version__, triton)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _driver() -> str:
    try:
        version = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        version = None
    return version[0] if version else str(torch.version.hip or "")


def _ptxas() -> str:
    """The version that Triton compiles with: its wheel's, or the one that TRITON_PTXAS_PATH names."""
    try:
        return str(importlib.import_module("triton").knobs.nvidia.ptxas.version)
    except (ImportError, AttributeError, RuntimeError, OSError):
        return ""
