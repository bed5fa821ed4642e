"""The parts of a run that were planned and are not measured: named on its page, and taken up by `--resume`.

A run's first record lists by name what it plans: "ceilings", "startup", "training, <study>", a cell, a growth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

CEILINGS, STARTUP = "ceilings", "startup"


def training(study: str) -> str:
    """The name that a study's training is planned under."""
    return f"training, {study}"


def pending(run: Sequence[Record]) -> list[str]:
    """The names of parts that were planned and are not there, in the order of the plan."""
    there = {name for record in run if (name := measured(record))}
    return [name for name in run[0].get("planned") or () if name not in there]


def unfinished(run: Sequence[Record]) -> list[str]:
    """The names of parts that `--resume` measures: those pending, and cells where time left a rival out."""
    cut = {_cell(r) for r in run if r["kind"] == "left_out" and r.get("budget") and r.get("op")}
    waiting = {*pending(run), *cut}
    return [name for name in run[0].get("planned") or () if name in waiting]


def _cell(record: Record) -> str:
    return f"{record['op']}, {record['workload']}, {record['shape_label']}"


def measured(record: Record) -> str:
    """The name of the part that a record is of, where it shows that this part was measured; else ""."""
    kind = record["kind"]
    if kind == "ceiling":
        return CEILINGS
    if kind == "startup":
        return STARTUP
    if kind == "training_summary":
        return training(record["study"])
    if kind == "growth":
        return f"growth of {record['op']}, {record['workload']}, with {record['letter']}"
    if kind == "timing" or (kind == "gate" and record["role"] == "ours"):
        return _cell(record)
    if kind == "left_out" and not record.get("budget"):
        return record["what"]
    return ""
