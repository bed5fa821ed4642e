"""results.jsonl: what was measured, one JSON object a line, only ever appended to.

Every line carries `schema_version`, `run` (an id shared by the lines of one report), `time` (UTC) and `kind`:

run               the machine, the versions, the git revision, the settings
ceiling           a roof of the machine                                      (ceilings.py)
startup           an import, a first call in a fresh process, a small call   (startup.py)
conformance       how many cases passed and failed                           (qualify.py)
tuning            a kernel's config at one problem, and its gain             (autotune)
training          one logged iteration of a study                            (studies/)
training_summary  one method of a study
gate              whether a contender's results agree with ours
timing            one contender on one workload and shape: raw samples, median, interval
memory            peak memory of our call
left_out          what was not measured, and why
run_end           how the run ended
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..autotune.scope import MODES
from ..kernels.runtime import backend, native

SCHEMA_VERSION = 1

_VERSIONED = ("torch", "triton", "numpy", "scikit-learn", "tropical-gemm", "sesum")
_FLAGS_OF_INTEREST = re.compile(r"^(avx.*|fma|f16c|amx_.*|sve.*|asimd.*|neon)$")


class Results:
    """Appends the records of one run to a file; each line is on the disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.records: list[dict[str, Any]] = []
        cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:
            self._file.write("\n")  # a killed run's last line must not swallow our first

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record; returns it with the fields that every line has."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"schema_version": SCHEMA_VERSION, "run": self.run, "time": stamp, **_finite(record)}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.records.append(line)
        return line

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file. A line that a killed run left half-written is dropped, with a warning.

    Raises:
        ValueError: the file has another schema; the message says which line.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            warnings.warn(f"{path}: line {number} is cut off and was dropped", RuntimeWarning, stacklevel=2)
            continue
        if record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: line {number} has schema_version {record.get('schema_version')!r}; this version reads "
                f"{SCHEMA_VERSION}: move the file away, or read it with the version that wrote it"
            )
        records.append(record)
    return records


def last_run(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of the run that was begun last."""
    records = list(records)
    runs = [record["run"] for record in records if record["kind"] == "run"]
    return [record for record in records if runs and record["run"] == runs[-1]]


# ------------------------------------------------------------------------------------------------ fingerprint


def machine() -> dict[str, Any]:
    """What the figures depend on and no version tells: processor, its flags, threads, memory, system, accelerator."""
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
    found: dict[str, str | None] = {"python": platform.python_version(), "tropigrad": __version__}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    compiler = native.compiler()
    found["compiler"] = compiler and next((line.strip() for line in compiler.version.splitlines()), None)
    return found


def environment() -> dict[str, str]:
    """The variables in force that change what runs."""
    return {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(("TROPIGRAD_", "TRITON_INTERPRET"))
    }


def wrong_variables() -> list[str]:
    """What is wrong with those whose values are names."""
    found = []
    try:
        backend.forced()
    except ValueError as error:
        found.append(str(error))
    mode = os.environ.get("TROPIGRAD_AUTOTUNE") or "replay"
    if mode not in MODES:
        found.append(f"TROPIGRAD_AUTOTUNE is {mode!r}; expected one of {', '.join(MODES)}")
    return found


def head(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record that a run begins with."""
    return {
        "kind": "run",
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "environment": environment(),
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
