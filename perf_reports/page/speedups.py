"""Speedups: the time of each contender / the time of ours, per workload and shape.

Over shapes the geometric mean. Only where the correctness gate was green; shapes where we gain nothing stay in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from ...autotune.timing import Interval
from .figures import COLOR, drawing, save

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

    @property
    def mean(self) -> float:
        """The geometric mean over shapes."""
        return geometric_mean([ratio.value for ratio in self.by_shape.values()])


def groups(records: Sequence[Record]) -> list[Group]:
    """Every (workload, contender) with a green ratio, in the order of measuring, training last."""
    intervals: dict[tuple[str, str, str], dict[str, Interval]] = {}
    for r in records:
        if r["kind"] == "timing" and r["ratio"] is not None:
            key = (r["workload"], r["contender"], r["role"])
            intervals.setdefault(key, {})[r["shape_label"]] = Interval(**r["ratio"])
    result = [Group(*key, by_shape) for key, by_shape in intervals.items()]
    return result + _training(records)


def _training(records: Sequence[Record]) -> list[Group]:
    result = []
    summaries = [r for r in records if r["kind"] == "training_summary"]
    for ours in (r for r in summaries if r["role"] == "ours"):
        for dense in (r for r in summaries if r["role"] == "dense" and r["study"] == ours["study"]):
            ratio = dense["seconds_per_iteration"] / ours["seconds_per_iteration"]
            by_shape = {ours["dataset"]: Interval(ratio, ratio, ratio)}
            result.append(Group(TRAINING, dense["method"], "dense", by_shape))
    return result


def times(value: float) -> str:
    """Three digits: 1.50×, 40.7×, 400×."""
    return f"{value:#.3g}".removesuffix(".") + "×" if value < 1000 else f"{value:,.0f}×"


def draw(records: Sequence[Record], out: Path) -> str | None:
    """Write speedups.png and .svg; returns the drawing for the page, None where nothing was compared."""
    rows = groups(records)
    if not rows:
        return None
    shapes = list(dict.fromkeys(shape for row in rows for shape in row.by_shape))
    markers = {shape: _MARKERS[i % len(_MARKERS)] for i, shape in enumerate(shapes)}
    workloads = list(dict.fromkeys(row.workload for row in rows))
    # a line for each row, and one for each workload's heading
    heights: list[float] = []
    y = 0.0
    for i, row in enumerate(rows):
        y += 1 if i and rows[i - 1].workload == row.workload else 1.9
        heights.append(y)
    with drawing(10, 0.9 + 0.36 * (y + 1)) as (figure, axes):
        ends = [end for row in rows for ratio in row.by_shape.values() for end in (ratio.low, ratio.high)]
        left, right = min(0.5, *ends) / 1.25, max(2.0, *ends) * 1.9
        axes.set(xscale="log", xlim=(left, right), ylim=(y + 0.8, 0.2))
        axes.axvspan(left, 1, color=COLOR["grid"], alpha=0.45, linewidth=0)
        axes.axvline(1, color=COLOR["muted"], linewidth=1.2)
        for words, side, offset in (("slower than", "right", -7), ("faster than", "left", 7)):
            note = {
                "xytext": (offset, 0),
                "textcoords": "offset points",
                "ha": side,
                "va": "center",
                "color": COLOR["muted"],
            }
            axes.annotate(words, (1, 0.5), **note)
        for row, height in zip(rows, heights, strict=True):
            _row(axes, row, height, markers)
        for workload in workloads:
            first = next(h for row, h in zip(rows, heights, strict=True) if row.workload == workload)
            axes.annotate(
                workload,
                (0, first - 0.85),
                xycoords=("axes fraction", "data"),
                xytext=(-8, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                weight="bold",
            )
        axes.set_yticks(heights, [row.contender for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_title("Speed of tropigrad over each contender", loc="left")
        handles = [
            Line2D([], [], color=COLOR["ink"], marker=markers[s], linestyle="", markersize=5, label=s) for s in shapes
        ]
        handles.append(
            Line2D(
                [],
                [],
                color=COLOR["ink"],
                marker="|",
                linestyle="",
                markersize=14,
                markeredgewidth=3,
                label="geometric mean",
            )
        )
        columns = 3 if max(map(len, shapes), default=0) > 24 else 4
        figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), handletextpad=0.3)
        return save(figure, out, "speedups")


def _row(axes: Axes, row: Group, height: float, markers: Mapping[str, str]) -> None:
    color = COLOR[ROLE_COLORS.get(row.role, "other")]
    for i, (shape, ratio) in enumerate(row.by_shape.items()):
        # spread a little, so that equal shapes stay apart
        level = height + 0.16 * (i - (len(row.by_shape) - 1) / 2) / max(1, len(row.by_shape) - 1)
        axes.plot([ratio.low, ratio.high], [level, level], color=color, linewidth=1.2)
        axes.plot(
            ratio.value,
            level,
            markers[shape],
            color=color,
            markersize=5,
            markeredgecolor=COLOR["paper"],
            markeredgewidth=0.5,
        )
    axes.plot(row.mean, height, "|", color=color, markersize=16, markeredgewidth=3)
    rightmost = max(ratio.high for ratio in row.by_shape.values())
    axes.annotate(
        times(row.mean),
        (rightmost, height),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=color,
        weight="bold",
    )
