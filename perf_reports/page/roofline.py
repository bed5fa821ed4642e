"""Roofline: the rate a kernel can reach is bounded by what computes it and by what feeds it,

    rate(I) = min(compute, I × bandwidth),    I = steps / bytes

with steps the (m, n, k) of the definition and bytes the least that must move: each input read once, each output written
once. Both roofs are measured on this machine (ceilings.py).  Source: Williams, Waterman & Patterson, "Roofline", 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..measuring.ceilings import WAYS, bandwidth_roof, compute_roof
from .figures import COLOR, drawing, save

Record = Mapping[str, Any]

NAMES = {"add_max": "add + max", "fma_max": "fma + max", "mul_max": "mul + max"}
_MARKERS = "osD^vPX"
_COLORS = ("ours", "dense", "peer", "other", "compiled")


@dataclass(frozen=True)
class Point:
    """One contender's run of a workload at a shape."""

    op: str
    workload: str
    shape: str
    role: str
    mix: str
    intensity: float  # steps a byte
    rate: float  # G steps/s


def attainable(intensity: float, compute: float, bandwidth: float) -> float:
    """The roof in G steps/s at an intensity in steps a byte; compute in G steps/s, bandwidth in GB/s."""
    return min(compute, intensity * bandwidth)


def points(records: Iterable[Record], roles: Sequence[str] = ("ours",)) -> list[Point]:
    """The timed runs of contenders with these roles."""
    return [
        Point(r["op"], r["workload"], r["shape_label"], r["role"], r["mix"], r["operations"] / r["bytes"], r["rate"])
        for r in records
        if r["kind"] == "timing" and r["role"] in roles
    ]


def draw(records: Sequence[Record], out: Path) -> str | None:
    """Write roofline.png and .svg; returns the drawing for the page, None where nothing was timed or no roof is known.

    Args:
        records: of one run.
    """
    ours, dense = (  # of what these roofs bound: steps (m, n, k)
        [point for point in points(records, (role,)) if point.mix in WAYS] for role in ("ours", "dense")
    )
    memory = bandwidth_roof(records)
    if not ours or memory is None:
        return None
    mixes = sorted({point.mix for point in ours})
    roofs = [roof for mix in mixes if (roof := compute_roof(records, mix)) is not None]
    intensities = [point.intensity for point in ours] + [roof / memory for roof in roofs]
    rates = [point.rate for point in (*ours, *dense)] + roofs
    with drawing(10, 6.6) as (figure, axes):
        left, right = min(intensities) / 4, max(intensities) * 3
        axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(min(rates) / 2, max(rates) * 1.9))
        _bandwidth(axes, records, left, max(roofs, default=max(rates)))
        _compute(axes, records, mixes, left, right)
        _runs(figure, axes, ours, dense)
        axes.set_xlabel("steps (m, n, k) per byte that must move")
        axes.set_title("G steps/s against this machine's measured roofs")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return save(figure, out, "roofline")


def _bandwidth(axes: Axes, records: Sequence[Record], left: float, top: float) -> None:
    for name, style, words in (("memory", "-", "memory"), ("cache", (0, (5, 2)), "L2 cache")):
        bandwidth = bandwidth_roof(records, name)
        if bandwidth is None or bandwidth * left > top / 2:  # no room to show its slope
            continue
        axes.plot(
            [left, top / bandwidth], [left * bandwidth, top], color=COLOR["muted"], linewidth=1.6, linestyle=style
        )
        at_foot = name == "memory"  # the cache's lies above it, and is named where it ends
        axes.annotate(
            f"{words} {bandwidth:,.0f} GB/s",
            (left, left * bandwidth) if at_foot else (top / bandwidth, top),
            xytext=(10, -2) if at_foot else (6, 0),
            textcoords="offset points",
            va="top" if at_foot else "center",
            color=COLOR["muted"],
        )


def _compute(axes: Axes, records: Sequence[Record], mixes: Sequence[str], left: float, right: float) -> None:
    wanted = {way for mix in mixes for way in WAYS.get(mix, (mix,))}
    measured = [r for r in records if r["kind"] == "ceiling" and r["name"] in wanted]
    everybody = max((r["threads"] for r in measured), default=1)
    roof = max((r["value"] for r in measured), default=0.0)
    memory = bandwidth_roof(records) or 1.0
    for threads in sorted({r["threads"] for r in measured}):
        # the ways lie close together: the best one is drawn, the top roof's label names them all
        ways = sorted((r for r in measured if r["threads"] == threads), key=lambda r: r["value"])
        level = ways[-1]["value"]
        start = max(left, level / memory)
        axes.plot([start, right], [level] * 2, color=COLOR["muted"], linewidth=1.6 if threads == everybody else 0.9)
        label = f"{threads} thread{'s' * (threads > 1)}: "
        # on a busy machine two threads may do no more than one: the words keep out of each other's way all the same
        if level == roof:
            label += ", ".join(f"{NAMES.get(r['name'], r['name'])} {r['value']:.0f}" for r in ways)
        else:
            label += f"{level:.0f}"
        axes.annotate(  # at the far end, where no run lies
            label,
            (right, level),
            xytext=(-4, 4 if level == roof else -4),
            textcoords="offset points",
            va="bottom" if level == roof else "top",
            ha="right",
            color=COLOR["muted"],
        )


def _runs(figure: Figure, axes: Axes, ours: Sequence[Point], dense: Sequence[Point]) -> None:
    by_op = len({point.op for point in ours}) > 1

    def hue(point: Point) -> str:
        return point.op if by_op else point.workload

    hues = list(dict.fromkeys(hue(point) for point in ours))
    shapes = list(dict.fromkeys(point.shape for point in ours))
    colors = {h: COLOR[_COLORS[i % len(_COLORS)]] for i, h in enumerate(hues)}
    markers = {s: _MARKERS[i % len(_MARKERS)] for i, s in enumerate(shapes)}
    baseline = {(p.op, p.workload, p.shape): p.rate for p in dense}
    for p in ours:
        below = baseline.get((p.op, p.workload, p.shape))
        if below is not None:
            axes.plot([p.intensity] * 2, [below, p.rate], color=colors[hue(p)], linewidth=0.8, alpha=0.45, zorder=2)
            axes.plot(
                p.intensity,
                below,
                markers[p.shape],
                markersize=6,
                color=colors[hue(p)],
                markerfacecolor=COLOR["paper"],
            )
        axes.plot(
            p.intensity,
            p.rate,
            markers[p.shape],
            markersize=9,
            color=colors[hue(p)],
            markeredgecolor=COLOR["paper"],
            zorder=3,
        )
    handles = [Line2D([], [], color=colors[h], linewidth=4, label=h) for h in hues]
    handles += [
        Line2D([], [], color=COLOR["ink"], marker=markers[s], linestyle="", markersize=7, label=s) for s in shapes
    ]
    if baseline:
        hollow = {"marker": "o", "linestyle": "", "markersize": 6, "markerfacecolor": COLOR["paper"]}
        handles.append(Line2D([], [], color=COLOR["ink"], label="hollow: dense backprop", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.4, labelspacing=0.6)
