"""Speedups: the time of each contender / the time of ours, per workload and shape; a panel for each op.

Over shapes the geometric mean. Only where the correctness gate was green; shapes where we gain nothing stay in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ...autotune.timing import Interval
from ..measuring.ceilings import bandwidth_roof
from .figures import COLOR, Panel, legend_below
from .numbers import percent, times
from .roofline import applying_roof, mix_of

Record = Mapping[str, Any]

TRAINING = "training iteration"
ROLE_COLORS = {"dense": "dense", "compiled": "compiled", "peer": "peer"}
_MARKERS = "osD^vPX"


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log v)); the mean of ratios that does not depend on which side is the base."""
    return float(np.exp(np.mean(np.log(values))))


@dataclass(frozen=True)
class Group:
    """Ours against one contender on one workload, over shapes."""

    workload: str
    contender: str
    role: str
    by_shape: Mapping[str, Interval]
    op: str = ""  # "" for training

    @property
    def mean(self) -> float:
        """The geometric mean over shapes."""
        return geometric_mean([ratio.value for ratio in self.by_shape.values()])


def groups(records: Sequence[Record]) -> list[Group]:
    """Every (workload, contender) with a green ratio, in the order of measuring, training last."""
    intervals: dict[tuple[str, str, str, str], dict[str, Interval]] = {}
    for r in records:
        if r["kind"] == "timing" and r["ratio"] is not None:
            key = (r["op"], r["workload"], r["contender"], r["role"])
            intervals.setdefault(key, {})[r["shape_label"]] = Interval(**r["ratio"])
    result = [Group(workload, name, role, by_shape, op) for (op, workload, name, role), by_shape in intervals.items()]
    return result + _training(records)


def _training(records: Sequence[Record]) -> list[Group]:
    result = []
    summaries = [r for r in records if r["kind"] == "training_summary"]
    for ours in (r for r in summaries if r["role"] == "ours"):
        for dense in (r for r in summaries if r["role"] == "dense" and r["study"] == ours["study"]):
            if not ours["seconds_per_iteration"] or not dense["seconds_per_iteration"]:
                continue
            if ours.get("iteration") != dense.get("iteration"):
                continue  # a solution is no step
            ratio = dense["seconds_per_iteration"] / ours["seconds_per_iteration"]
            by_shape = {ours["dataset"]: Interval(ratio, ratio, ratio)}
            result.append(Group(TRAINING, dense["method"], "dense", by_shape))
    return result


def panels(run: Sequence[Record]) -> list[Panel]:
    """A panel for each op that was compared with something."""
    every = [group for group in groups(run) if group.op]
    result = []
    for op in dict.fromkeys(group.op for group in every):
        own = [group for group in every if group.op == op]
        workloads = len({group.workload for group in own})
        shapes = list(dict.fromkeys(shape for group in own for shape in group.by_shape))
        height = 0.42 * len(own) + 0.26 * workloads + 0.08
        below = 0.36 + 0.16 * -(-len(shapes) // _columns(shapes))
        words = "; ".join(f"{g.workload}, {g.contender} {times(g.mean)}" for g in own)
        result.append(Panel(op, _title(op, own), words, partial(_draw, own), height, left=0.08, below=below))
    return result


def _title(op: str, own: Sequence[Group]) -> str:
    losing = [g for g in own if g.mean < 1]
    dense = [g.mean for g in own if g.role == "dense"] or [g.mean for g in own]
    against = "dense PyTorch" if any(g.role == "dense" for g in own) else "the best rival"
    best, least = max(dense), min(dense)
    span = times(least) if best / least < 1.05 else f"{times(least)} to {times(best)}"
    title = f"{op}: {span} over {against}"
    if losing:
        worst = min(losing, key=lambda g: g.mean)
        title += f"; slower than {worst.contender} ({times(worst.mean)})"
    return title


def _draw(own: Sequence[Group], axes: Axes) -> None:
    shapes = list(dict.fromkeys(shape for group in own for shape in group.by_shape))
    markers = {shape: _MARKERS[i % len(_MARKERS)] for i, shape in enumerate(shapes)}
    ends = [end for group in own for ratio in group.by_shape.values() for end in (ratio.low, ratio.high)]
    left, right = min(0.5, *ends) / 1.3, max(2.0, *ends) * 1.3
    y, workload = 0.0, ""
    middle = {"xycoords": ("axes fraction", "data"), "va": "center"}
    for group in own:
        if group.workload != workload:
            workload = group.workload
            axes.annotate(workload, (0, y + 0.28), weight="bold", fontsize=9, **middle)
            y += 0.6
        color = COLOR[ROLE_COLORS.get(group.role, "other")]
        axes.annotate(group.contender, (0, y + 0.25), fontsize=9, color=COLOR["ink"], **middle)
        verdict = times(group.mean) + (" slower" if group.mean < 1 else "")
        axes.annotate(verdict, (1, y + 0.25), ha="right", fontsize=9, color=color, weight="bold", **middle)
        for shape, ratio in group.by_shape.items():
            is_lost = ratio.low <= 1
            axes.plot([ratio.low, ratio.high], [y + 0.65] * 2, color=color, linewidth=1.2, zorder=2)
            axes.plot(
                ratio.value,
                y + 0.65,
                markers[shape],
                color=color,
                markersize=6.5,
                markerfacecolor=COLOR["paper"] if is_lost else color,
                markeredgecolor=color if is_lost else COLOR["paper"],
                markeredgewidth=1.3 if is_lost else 0.6,
                zorder=3,
            )
        y += 1
    axes.set(xscale="log", xlim=(left, right), ylim=(y + 0.1, 0))
    axes.axvspan(left, 1, color=COLOR["grid"], alpha=0.45, linewidth=0)
    axes.axvline(1, color=COLOR["muted"], linewidth=1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    for shape in shapes:
        axes.plot([], [], markers[shape], color=COLOR["ink"], markersize=5.5, label=shape)
    legend_below(axes, 0.3, ncols=_columns(shapes), handletextpad=0.2)


def _columns(shapes: Sequence[str]) -> int:
    return 1 if max(map(len, shapes)) > 24 else 2


@dataclass(frozen=True)
class Loss:
    """A comparison in which nothing is gained, and the likely reason."""

    op: str
    workload: str
    shape: str
    contender: str
    ratio: Mapping[str, float]
    reason: str


_SHORT_CALL_S = 60e-6
_NEAR_ROOF = 0.6


def losses(run: Sequence[Record]) -> list[Loss]:
    """Every comparison whose interval reaches 1 or lies below it, the worst first."""
    ours = {(r["op"], r["workload"], r["shape_label"]): r for r in run if r["kind"] == "timing" and r["role"] == "ours"}
    result = []
    for r in run:
        if r["kind"] == "timing" and r["ratio"] is not None and r["ratio"]["low"] <= 1:
            own = ours.get((r["op"], r["workload"], r["shape_label"]))
            reason = _reason(run, r, own)
            result.append(Loss(r["op"], r["workload"], r["shape_label"], r["contender"], r["ratio"], reason))
    return sorted(result, key=lambda loss: loss.ratio["value"])


def _reason(run: Sequence[Record], rival: Record, ours: Record | None) -> str:
    if rival["ratio"]["high"] >= 1:
        return "a tie: the interval holds 1"
    if ours is None:
        return "not known"
    if ours["median"]["value"] < _SHORT_CALL_S:
        return "so short a call that what surrounds the kernel is most of it"
    roof = applying_roof(run, mix_of(ours), ours["operations"] / ours["bytes"], ours["rate"])
    if roof is not None and bandwidth_roof(run) and ours["rate"] / roof.rate >= _NEAR_ROOF:
        share = percent(ours["rate"] / roof.rate)
        return f"ours is at {share} of the roof of {roof.name}: little is left to gain"
    if rival["role"] == "compiled":
        return "torch.compile fuses the passes too, and ours is not at its roof"
    if rival["role"] == "dense":
        return "the definition is a few passes here, and ours is not at its roof"
    return "the other kernel is faster at this size"
