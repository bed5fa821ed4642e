"""Two results files of reports compared: what each call of ours took in the last run of either.

Two runs see one machine in two states, which can differ by more than any change of the code. The rivals of a call tell
them apart, as they took turns with it. So a call is slower where its time is longer, in seconds and in units of theirs:

    t' / t >= 1 + effect    and    (t' / t) / exp(mean_j log(r'_j / r_j)) >= 1 + effect,    both intervals above 1

with t and t' the medians before and after, r_j and r'_j those of the rivals that both runs have. Intervals come by the
bootstrap, of each run's samples on their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...autotune.timing import RESAMPLES, Interval, interval
from ..commands import BadRequest
from ..durations import format_duration
from ..formats import write_json_lines
from ..records import last_run, read_what_can_be

EFFECT = 0.03
Cell = tuple[str, str, str]  # op, workload, shape


@dataclass(frozen=True)
class Comparison:
    """One call of ours in two runs."""

    name: str
    before: float  # seconds, medians
    after: float
    ratio: Interval  # after / before
    relative: Interval | None  # the same, in units of the rivals' times; None where no rival is in both runs

    def is_slower(self, effect: float = EFFECT) -> bool:
        """Whether both ratios reach 1 + effect, with intervals above 1."""
        return all(r.low > 1 and r.value >= 1 + effect for r in (self.ratio, self.relative) if r)


@dataclass(frozen=True)
class Outcome:
    """The calls that both files have, those that one has alone, and what the reader should know."""

    comparisons: list[Comparison]
    only_before: list[str]
    only_after: list[str]
    remarks: list[str]
    effect: float = EFFECT

    @property
    def slower(self) -> list[Comparison]:
        return [c for c in self.comparisons if c.is_slower(self.effect)]

    @property
    def exit_code(self) -> int:
        """0: none slower; 1: one is."""
        return 1 if self.slower else 0


def compare(before: Path, after: Path, *, effect: float = EFFECT) -> Outcome:
    """The calls of two files, each by the run that its file ends with.

    Raises:
        BadRequest: a file that cannot be read or holds no timing; runs on two processors; no call in both.
    """
    runs = [_run(path) for path in (before, after)]
    heads = [next((r for r in run if r["kind"] == "run"), {}) for run in runs]
    machines = [_machine(head) for head in heads]
    if all(machines) and machines[0] != machines[1]:
        raise BadRequest(
            f"{before} was measured on {machines[0]}, {after} on {machines[1]}; expected one: times of two "
            "differ whatever the code"
        )
    timings = [_timings(run) for run in runs]
    for path, of in zip((before, after), timings, strict=True):
        if not of:
            raise BadRequest(f"{path}: its last run holds no timing of ours; expected results.jsonl of a report")
    shared = [cell for cell in timings[0] if cell in timings[1]]
    if not shared:
        raise BadRequest(f"{before} and {after} share no call; expected reports of the same ops and shapes")
    comparisons = [_comparison(cell, timings[0][cell], timings[1][cell]) for cell in shared]
    alone = [[_name(cell) for cell in timings[i] if cell not in timings[1 - i]] for i in (0, 1)]
    versions = [head.get("versions", {}) for head in heads]
    changed = sorted(k for k in {*versions[0], *versions[1]} if versions[0].get(k) != versions[1].get(k))
    remarks = [f"{k}: {versions[0].get(k, 'none')} -> {versions[1].get(k, 'none')}" for k in changed]
    return Outcome(comparisons, alone[0], alone[1], remarks, effect)


def _run(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        raise BadRequest(f"{path}: no such file; expected results.jsonl of a report")
    return last_run(read_what_can_be(path).records)


def _machine(head: Mapping[str, Any]) -> str:
    machine = head.get("machine") or {}
    parts = [str(machine.get("cpu", "")), f"{machine.get('threads', '?')} threads", *map(str, machine.get("gpus", []))]
    return ", ".join(parts) if machine else ""


def _timings(run: Sequence[Mapping[str, Any]]) -> dict[Cell, dict[str, np.ndarray]]:
    """By cell, the samples of ours (under "") and of each rival, in seconds."""
    cells: dict[Cell, dict[str, np.ndarray]] = {}
    for record in run:
        if record["kind"] == "timing":
            cell = (record["op"], record["workload"], record["shape_label"])
            contender = "" if record["role"] == "ours" else record["contender"]
            cells.setdefault(cell, {})[contender] = np.asarray(record["seconds"], dtype=float)
    return {cell: of for cell, of in cells.items() if "" in of}


def _comparison(cell: Cell, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> Comparison:
    # the logarithm of after over before, for each call: its value, then one for each draw
    seeds = np.random.SeedSequence(0).spawn(2 * len(before))
    logs: dict[str, np.ndarray] = {}
    for place, contender in enumerate(c for c in before if c in after):
        old, new = before[contender], after[contender]
        logs[contender] = np.log(_medians(new, seeds[2 * place]) / _medians(old, seeds[2 * place + 1]))
    rivals = [log for contender, log in logs.items() if contender]
    return Comparison(
        _name(cell),
        float(np.median(before[""])),
        float(np.median(after[""])),
        _interval(logs[""]),
        _interval(logs[""] - np.mean(rivals, axis=0)) if rivals else None,
    )


def _medians(samples: np.ndarray, seed: np.random.SeedSequence) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(len(samples), size=(RESAMPLES, len(samples)))
    return np.append(np.median(samples), np.median(samples[drawn], axis=1))


def _interval(logs: np.ndarray) -> Interval:
    value, *drawn = np.exp(logs)
    return interval(np.asarray(drawn), value)


def _name(cell: Cell) -> str:
    return ", ".join(cell)


def lines(outcome: Outcome) -> list[str]:
    """A line a call, the slowest first, then what one file has alone, and the verdict."""
    told = []
    for c in sorted(outcome.comparisons, key=lambda c: (not c.is_slower(outcome.effect), -c.ratio.value)):
        beside = f", {c.relative.value:.3f} x beside its rivals" if c.relative else ", no rival in both"
        said = ": SLOWER" if c.is_slower(outcome.effect) else ""
        told.append(
            f"{c.name}: {format_duration(c.before)} -> {format_duration(c.after)}, {c.ratio.value:.3f} x "
            f"({c.ratio.low:.3f} to {c.ratio.high:.3f}){beside}{said}"
        )
    for where, names in (("before", outcome.only_before), ("after", outcome.only_after)):
        if names:
            told.append(f"measured {where} alone: {'; '.join(names)}")
    told += outcome.remarks
    slower = len(outcome.slower)
    told.append(
        f"{slower} of {len(outcome.comparisons)} calls slower by {outcome.effect:.0%} or more"
        if slower
        else f"none of {len(outcome.comparisons)} calls is slower by {outcome.effect:.0%}"
    )
    return told


def write_records(outcome: Outcome, files: tuple[str, str], path: Path) -> None:
    """JSON Lines: the verdict, then a record a call."""
    slower = [c.name for c in outcome.slower]
    rows: list[dict[str, Any]] = [
        {"kind": "comparison", "files": files, "effect": outcome.effect, "slower": slower, "remarks": outcome.remarks}
    ]
    for c in outcome.comparisons:
        relative = vars(c.relative) if c.relative else None
        row = {"name": c.name, "before": c.before, "after": c.after, "ratio": vars(c.ratio), "relative": relative}
        rows.append({"kind": "compared", **row})
    write_json_lines(rows, path)
