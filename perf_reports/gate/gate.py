"""The gate itself: measures a declaration, a process a tier, and compares with the baseline."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...triton_or_stub import HAS_TRITON, triton
from ..commands import StageProgress
from .baseline import Baseline, BaselineError, Difference, worse

TIERS = (0, 1, 2, 3)
PASSED, REGRESSED, NOT_MEASURED = 0, 1, 2  # exit codes
_INTERPRETS = {0: "0", 1: "1", 2: "0", 3: "0"}


@dataclass
class Outcome:
    """The end of a gate: what was measured, what differs, and what could not be measured."""

    records: list[dict[str, Any]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    revision: str = ""  # of the repository that holds the declaration; "" outside of one

    @property
    def exit_code(self) -> int:
        """0: no worse; 1: worse; 2: something could not be measured, and nothing that could is worse."""
        if worse(self.differences):
            return REGRESSED
        return NOT_MEASURED if self.failures else PASSED


def versions() -> dict[str, str]:
    """The versions that figures depend on."""
    return {
        "triton": triton.__version__ if HAS_TRITON else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tropigrad": importlib.metadata.version("tropigrad"),
    }


def check(
    declaration: Path,
    baseline: Path,
    *,
    tiers: Sequence[int] = TIERS,
    update: bool = False,
    progress: StageProgress = lambda stage, done, total, what: None,
) -> Outcome:
    """Measure what a file declares, and compare it with a baseline, or write that anew.

    Args:
        declaration: a Python file with a list GATE of Kernel and Call.
        baseline: a JSON file; it is read, and with `update` written where all was measured.
        tiers: of 0, 1, 2 and 3.
        update: take what was measured as the new baseline of these versions; what differs is told all the same.
        progress: called as (stage, done, total, what is being done).
    """
    outcome = Outcome(versions=versions(), revision=_revision(declaration.parent))
    try:
        for tier in tiers:
            records, failures = _measured(declaration, tier, progress)
            outcome.records += records
            outcome.failures += failures
    except KeyboardInterrupt:
        outcome.failures.append("interrupted: what was measured before is below, the rest is missing")
    if not outcome.records and not outcome.failures:
        outcome.failures.append(f"{declaration}: nothing in it is measured by tier {', '.join(map(str, tiers))}")
    known = Baseline()
    try:
        known = Baseline.read(baseline)
        outcome.differences = known.compare(outcome.records, outcome.versions)
    except BaselineError as error:
        if not update:
            outcome.failures.append(str(error))
    if update and not outcome.failures:
        known.updated(outcome.records, outcome.versions).write(baseline)
    return outcome


def _revision(folder: Path) -> str:
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _measured(declaration: Path, tier: int, progress: StageProgress) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a tier, and what went wrong."""
    # lines of the source would put the path of the checkout into what is compiled
    environment = {**os.environ, "TRITON_INTERPRET": _INTERPRETS[tier], "TRITON_DISABLE_LINE_INFO": "1"}
    command = [sys.executable, "-m", f"{__package__}.worker", str(declaration), str(tier)]
    records: list[dict[str, Any]] = []
    failures: list[str] = []
    jobs = done = 0
    finished = False
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert worker.stdout
    assert worker.stderr
    try:
        for line in worker.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a print of the declaration's own
            if not isinstance(record, dict):
                continue
            if "refused" in record:
                failures.append(record["refused"])
                finished = True
            elif "jobs" in record:
                jobs = record["jobs"]
            elif "progress" in record:
                progress(f"tier {tier}", done, max(jobs, 1), record["progress"])
            elif "done" in record:
                finished = True
            elif "tier" in record:
                done += 1
                records.append(record)
                if "error" in record:
                    failures.append(f"{record['of']}, {record['target']}: {record['error']}")
        said = worker.stderr.read()
        code = worker.wait()
    except BaseException:
        worker.kill()
        raise
    finally:
        worker.stdout.close()
        worker.stderr.close()
    if not finished:
        last = next((x for x in reversed(said.splitlines()) if x.strip()), "nothing was said")
        failures.append(f"tier {tier} ended before all was measured (exit {code}): {last}")
    return [r for r in records if "figures" in r], failures
