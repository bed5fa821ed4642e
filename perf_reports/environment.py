"""The machine, the versions, the variables and the revision that a measurement depends on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..autotune.scope import MODES
from ..kernels.runtime import backend, native

_VERSIONED = ("torch", "triton", "numpy", "scikit-learn", "tropical-gemm", "sesum")
_FLAGS_OF_INTEREST = re.compile(r"^(avx.*|fma|f16c|amx_.*|sve.*|asimd.*|neon)$")


def machine() -> dict[str, Any]:
    """The facts behind figures that no version tells: processor, its flags, threads, memory, system, accelerator."""
    facts = _cpuinfo()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": sorted(
            f for f in (facts.get("flags") or facts.get("Features") or "").split() if _FLAGS_OF_INTEREST.match(f)
        ),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": gpus,
        # others at work on it: roofs come out low and intervals wide
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str | None]:
    """Versions of what takes part: python, tropigrad, the libraries (None where absent), the C++ compiler."""
    by_name: dict[str, str | None] = {"python": platform.python_version(), "tropigrad": __version__}
    for name in _VERSIONED:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            by_name[name] = None
    compiler = native.compiler()
    by_name["compiler"] = compiler and next((line.strip() for line in compiler.version.splitlines()), None)
    return by_name


def variables() -> dict[str, str]:
    """The variables in force that change what runs."""
    return {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(("TROPIGRAD_", "TRITON_INTERPRET"))
    }


def wrong_variables() -> list[str]:
    """Complaints about variables whose values are names, and name nothing."""
    complaints = []
    try:
        backend.forced()
    except ValueError as error:
        complaints.append(str(error))
    mode = os.environ.get("TROPIGRAD_AUTOTUNE") or "replay"
    if mode not in MODES:
        complaints.append(f"TROPIGRAD_AUTOTUNE is {mode!r}; expected one of {', '.join(MODES)}")
    return complaints


def head(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record that a run begins with."""
    return {
        "kind": "run",
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "environment": variables(),
        "settings": settings,
    }


def git_revision() -> str | None:
    """The revision of the checkout that this package runs from, "+" where it has changes; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    revision = _first_line(["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"])
    if revision is None:
        return None
    return revision + ("+" if _first_line(["git", "-C", str(here), "status", "--porcelain"]) else "")


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
