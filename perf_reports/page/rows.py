"""The tables of the page as data: timings by op, memory and startup as matrices, what is missing; and the CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import pending
from . import speedups
from .numbers import number, percent, times
from .roofline import applying_roof, mix_of
from .systems import Cost

Record = Mapping[str, Any]

_RIVALS = ("compiled", "peer")


@dataclass(frozen=True)
class Tile:
    """One of the few figures at the top. kind: "gain", "loss" or "none", where nothing was measured."""

    value: str
    label: str
    note: str
    kind: str = "gain"


def tiles(run: Sequence[Record], costs: Sequence[Cost]) -> list[Tile]:
    """Four at most: the best system, dense eager over all ops, the best rival, and how often nothing is gained."""
    timed = [r for r in run if r["kind"] == "timing" and r["ratio"] is not None]
    result = []
    if costs:
        best = max(costs, key=lambda cost: cost.ratio)
        result.append(
            Tile(times(best.ratio), f"over dense backprop: {best.system.title}", best.measured, _kind(best.ratio))
        )
    dense = [r["ratio"]["value"] for r in timed if r["role"] == "dense"]
    if dense:
        mean = speedups.geometric_mean(dense)
        note = f"the definition in eager PyTorch; geometric mean of {len(dense)} op and shape pairs"
        result.append(Tile(times(mean), "over dense PyTorch, all ops", note, _kind(mean)))
    if any(r["kind"] == "timing" for r in run):
        result.append(_best_rival(timed))
        losses = sum(r["ratio"]["low"] <= 1 for r in timed)
        note = "the interval of the speedup holds 1 or lies below it; listed below with the reason"
        share = f"{losses} of {len(timed)}"
        result.append(Tile(share, "comparisons without a clear gain", note, "loss" if losses else "gain"))
    return result


def _best_rival(timed: Sequence[Record]) -> Tile:
    fastest: dict[tuple[str, str, str], Record] = {}
    for r in timed:
        cell = (r["op"], r["workload"], r["shape_label"])
        if cell not in fastest or r["ratio"]["value"] < fastest[cell]["ratio"]["value"]:
            fastest[cell] = r
    beside = {(r["op"], r["workload"], r["shape_label"]) for r in timed if r["role"] in _RIVALS}
    chosen = [r["ratio"]["value"] for cell, r in fastest.items() if cell in beside]
    label = "against the best rival"
    if not chosen:
        return Tile("not measured", label, "no torch.compile and no other library took part in this run", "none")
    mean = speedups.geometric_mean(chosen)
    note = f"the fastest of torch.compile, other libraries and eager PyTorch; geometric mean of {len(chosen)} pairs"
    return Tile(times(mean), label, note, _kind(mean))


def _kind(value: float) -> str:
    return "gain" if value > 1 else "loss"


@dataclass(frozen=True)
class Op:
    """Every timing of one op."""

    name: str
    timings: Sequence[Record]
    has_roofs: bool
    shares: Mapping[tuple[str, str, str], str]  # by workload, shape and contender

    def share(self, timing: Record) -> str:
        """The roof that applies to a timing, and the share of it; "" for those of others."""
        return self.shares.get((timing["workload"], timing["shape_label"], timing["contender"]), "")


def ops(run: Sequence[Record]) -> list[Op]:
    """The timings, by op."""
    timings = [r for r in run if r["kind"] == "timing"]
    result = []
    for name in dict.fromkeys(r["op"] for r in timings):
        own = [r for r in timings if r["op"] == name]
        shares = {}
        for r in own:
            roof = (
                applying_roof(run, mix_of(r), r["operations"] / r["bytes"], r["rate"]) if r["role"] == "ours" else None
            )
            if roof is not None:
                shares[r["workload"], r["shape_label"], r["contender"]] = (
                    f"{percent(r['rate'] / roof.rate)} of {roof.name}"
                )
        result.append(Op(name, own, bool(shares), shares))
    return result


@dataclass(frozen=True)
class Memory:
    """Peaks of one workload at one shape, by role."""

    op: str
    workload: str
    shape: str
    peaks: Mapping[str, int]
    result_bytes: int

    @property
    def ratio(self) -> float | None:
        """How many times ours the dense one takes."""
        ours, dense = self.peaks.get("ours"), self.peaks.get("dense")
        return dense / ours if ours and dense else None


def memory(run: Sequence[Record]) -> list[Memory]:
    """Peaks side by side."""
    cells: dict[tuple[str, str, str], list[Record]] = {}
    for r in run:
        if r["kind"] == "memory":
            cells.setdefault((r["op"], r["workload"], r["shape_label"]), []).append(r)
    return [
        Memory(
            *cell,
            peaks={r["role"]: r["peak_bytes"] for r in reversed(own)},
            result_bytes=next((r["result_bytes"] for r in own if r["role"] == "ours"), own[0]["result_bytes"]),
        )
        for cell, own in cells.items()
    ]


def startup(run: Sequence[Record]) -> tuple[list[Record], list[tuple[str, float | None, float | None]]]:
    """Single waits; and first calls as (what, nothing compiled, compiled)."""
    single, pairs = [], {}
    for r in run:
        if r["kind"] != "startup":
            continue
        what, comma, when = r["what"].rpartition(", ")
        if comma and when in ("nothing compiled", "compiled"):
            pairs.setdefault(what, {})[when] = r["seconds"]
        else:
            single.append(r)
    return single, [(what, pair.get("nothing compiled"), pair.get("compiled")) for what, pair in pairs.items()]


def left_out(run: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """(reason, what was left out for it), the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for r in run:
        if r["kind"] == "left_out":
            reasons.setdefault(r["reason"], []).append(r["what"])
    return sorted(reasons.items(), key=lambda item: -len(item[1]))


def missing(run: Sequence[Record]) -> list[tuple[str, int]]:
    """(what, how many parts of it) was planned and is not measured: studies, ops, growth."""
    counts: dict[str, int] = {}
    for name in pending.pending(run):
        head = name if name.startswith("training, ") else name.split(",")[0]
        counts[head] = counts.get(head, 0) + 1
    return list(counts.items())


def command(head: Record) -> str:
    """The command that made a run."""
    settings = head.get("settings") or {}
    words = ["tropigrad", "report"]
    if settings.get("quick"):
        words.append("--quick")
    for option in ("only", "module"):
        for name in settings.get(option) or ():
            words += [f"--{option}", name]
    if settings.get("data_dir"):
        words += ["--data-dir", settings["data_dir"]]
    for option in ("threads", "device", "dtype"):
        if settings.get(option):
            words += [f"--{option}", str(settings[option])]
    for shape in settings.get("shapes") or ():
        words += ["--shapes", shape]
    if settings.get("seed"):
        words += ["--seed", str(settings["seed"])]
    if settings.get("budget_s"):
        words += ["--budget", f"{settings['budget_s']:g}s"]
    return shlex.join(words)


_COLUMNS: tuple[str, ...] = (
    "op", "workload", "shape", "contender", "role", "backend", "median_s", "low_s", "high_s", "rate_g_steps_s",
    "speedup", "speedup_low", "speedup_high", "results", "peak_bytes",
)  # fmt: skip


def timings(run: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each timing: the columns of results.csv, and time, dtype, device and threads."""
    peaks = {
        (r["op"], r["workload"], r["shape_label"], r["contender"]): r["peak_bytes"]
        for r in run
        if r["kind"] == "memory"
    }
    result = []
    for r in run:
        if r["kind"] != "timing":
            continue
        median, ratio = r["median"], r["ratio"] or {}
        cell = (r["op"], r["workload"], r["shape_label"], r["contender"])
        times_ = (median["value"], median["low"], median["high"], r["rate"])
        speeds = (ratio.get("value"), ratio.get("low"), ratio.get("high"))
        row = (*cell, r["role"], r.get("backend"), *times_, *speeds, r["gate"], peaks.get(cell))
        more = {name: r.get(name) for name in ("time", "dtype", "device", "threads")}
        result.append({**dict(zip(_COLUMNS, row, strict=True)), **more})
    return result


def as_csv(run: Sequence[Record]) -> str:
    """A line for each timing."""
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({**row, "rate_g_steps_s": number(row["rate_g_steps_s"], 6)} for row in timings(run))
    return text.getvalue()
