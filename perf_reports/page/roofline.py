"""Roofline: the rate a kernel can reach is bounded by what computes it and by what feeds it,

    rate(I) = min(compute, I × bandwidth),    I = steps / bytes

with steps the (m, n, k) of the definition and bytes the least that must move: each input read once, each output written
once. Both roofs are measured on this machine (ceilings.py).  Source: Williams, Waterman & Patterson, "Roofline", 2009.

A panel for each op shows the roof that applies to it; beside each point stands its share of that roof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..measuring.ceilings import bandwidth_roof, compute_roof
from .figures import COLOR, Panel, legend_below, spread
from .numbers import percent

Record = Mapping[str, Any]

NAMES = {"add_max": "add + max", "fma_max": "fma + max", "mul_max": "mul + max"}
_MARKERS = "osD^vPX"
_COLORS = ("ours", "peer", "other", "compiled", "muted")


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
        Point(r["op"], r["workload"], r["shape_label"], r["role"], mix_of(r), r["operations"] / r["bytes"], r["rate"])
        for r in records
        if r["kind"] == "timing" and r["role"] in roles
    ]


@dataclass(frozen=True)
class Roof:
    """The least of the roofs over a point."""

    name: str
    rate: float  # G steps/s


def mix_of(timing: Record) -> str:
    """The mix that bounds a timing; "" where it is of another dtype than float32, in which the roofs were measured."""
    return timing["mix"] if timing.get("dtype", "float32") == "float32" else ""


def applying_roof(run: Iterable[Record], mix: str, intensity: float, rate: float) -> Roof | None:
    """The roof that bounds work of this mix and intensity; None where no bandwidth was measured.

    Work that is faster than the memory feeds it was fed by the cache, whose slope then applies.
    """
    run = list(run)
    memory, cache, compute = bandwidth_roof(run), bandwidth_roof(run, "cache"), compute_roof(run, mix)
    if memory is None:
        return None
    roofs = [Roof("the memory", memory * intensity)]
    if rate > roofs[0].rate and cache is not None:
        roofs = [Roof("the L2 cache", cache * intensity)]
    if compute is not None:
        roofs.append(Roof(NAMES.get(mix, mix.replace("_", " + ")), compute))
    return min(roofs, key=lambda roof: roof.rate)


def panels(run: Sequence[Record]) -> list[Panel]:
    """A panel for each op that was timed; none where no bandwidth was measured."""
    ours, dense = points(run), points(run, ("dense",))
    if bandwidth_roof(run) is None:
        return []
    result = []
    for op in dict.fromkeys(point.op for point in ours):
        own, beside = ([p for p in every if p.op == op] for every in (ours, dense))
        shares = {p: _share(run, p) for p in own}
        best = max(own, key=lambda p: shares[p])
        roof = applying_roof(run, best.mix, best.intensity, best.rate)
        title = f"{op}: up to {percent(shares[best])} of {roof.name if roof else 'its roof'}"
        words = "; ".join(
            f"{p.workload}, {p.shape}: {p.rate:.3g} G steps/s, {percent(shares[p])} of the roof" for p in own
        )
        entries = len({p.workload for p in own}) + len({p.shape for p in own}) + bool(beside)
        result.append(Panel(op, title, words, partial(_draw, run, own, beside), below=0.56 + 0.165 * entries))
    return result


def _share(run: Sequence[Record], point: Point) -> float:
    roof = applying_roof(run, point.mix, point.intensity, point.rate)
    return 0.0 if roof is None else point.rate / roof.rate


def _draw(run: Sequence[Record], ours: Sequence[Point], dense: Sequence[Point], axes: Axes) -> None:
    memory, cache = bandwidth_roof(run) or 1.0, bandwidth_roof(run, "cache")
    computes = {mix: roof for mix in dict.fromkeys(p.mix for p in ours) if (roof := compute_roof(run, mix)) is not None}
    intensities = [p.intensity for p in ours]
    left, right = min(intensities) / 3, max(intensities) * 6
    shown = [p.rate for p in (*ours, *dense)]
    roofs = [roof for p in ours if (roof := applying_roof(run, p.mix, p.intensity, p.rate)) is not None]
    low, top = min(shown) / 2, max(*shown, *(roof.rate for roof in roofs)) * 2.2
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, top))
    slopes: list[tuple[str, float, Any]] = [("memory", memory, "-")]
    if cache is not None and any(roof.name == "the L2 cache" for roof in roofs):
        slopes.append(("L2 cache", cache, (0, (5, 2))))
    ceiling = max(computes.values(), default=top)
    for name, bandwidth, style in slopes:
        end = min(right, ceiling / bandwidth)
        axes.plot(
            [left, end], [left * bandwidth, end * bandwidth], color=COLOR["muted"], linewidth=1.5, linestyle=style
        )
        # above the end of its slope: the marks lie below
        at = min(end, top / 2.5 / bandwidth)
        is_right = math.log(at / left) > 0.4 * math.log(right / left)
        axes.annotate(
            f"{name} {bandwidth:,.0f} GB/s",
            (at, at * bandwidth),
            xytext=(-4, 2) if is_right else (4, -3),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="bottom" if is_right else "top",
            color=COLOR["muted"],
            fontsize=8,
        )
    for mix, roof in computes.items():
        axes.plot([max(left, roof / (cache or memory)), right], [roof] * 2, color=COLOR["muted"], linewidth=1.5)
        axes.annotate(f"{NAMES.get(mix, mix.replace('_', ' + '))} {roof:,.0f}", (right, roof), xytext=(-2, 3),
                      textcoords="offset points", ha="right", color=COLOR["muted"], fontsize=8)  # fmt: skip
    _runs(axes, run, ours, dense)
    axes.set_xlabel("steps per byte that must move", fontsize=9)
    axes.set_ylabel("G steps/s", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend_below(axes, 0.47)


def _runs(axes: Axes, run: Sequence[Record], ours: Sequence[Point], dense: Sequence[Point]) -> None:
    workloads = list(dict.fromkeys(p.workload for p in ours))
    shapes = list(dict.fromkeys(p.shape for p in ours))
    colors = {w: COLOR[_COLORS[i % len(_COLORS)]] for i, w in enumerate(workloads)}
    markers = {s: _MARKERS[i % len(_MARKERS)] for i, s in enumerate(shapes)}
    baseline = {(p.workload, p.shape): p.rate for p in dense}
    for p in ours:
        color, below = colors[p.workload], baseline.get((p.workload, p.shape))
        if below is not None:
            axes.plot([p.intensity] * 2, [below, p.rate], color=color, linewidth=0.8, alpha=0.5, zorder=2)
            axes.plot(p.intensity, below, markers[p.shape], markersize=5, color=color, markerfacecolor=COLOR["paper"])
        axes.plot(
            p.intensity, p.rate, markers[p.shape], markersize=8, color=color, markeredgecolor=COLOR["paper"], zorder=3
        )
    low, top = (math.log(y) for y in axes.get_ylim())
    wide = math.log(axes.get_xlim()[1] / axes.get_xlim()[0]) * 0.12
    for column in _columns(ours, wide):
        places = spread([math.log(p.rate) for p in column], (top - low) * 0.065)
        for p, place in zip(column, places, strict=True):
            axes.annotate(f"{100 * _share(run, p):.2g} %", (p.intensity, math.exp(place)), xytext=(7, 0), va="center",
                          textcoords="offset points", fontsize=8, color=colors[p.workload])  # fmt: skip
    for workload in workloads:
        axes.plot([], [], color=colors[workload], linewidth=4, label=workload)
    for shape in shapes:
        axes.plot([], [], markers[shape], color=COLOR["ink"], markersize=5.5, label=shape)
    if baseline:
        axes.plot([], [], "o", color=COLOR["ink"], markersize=5, markerfacecolor=COLOR["paper"], label="hollow: dense")


def _columns(points: Sequence[Point], wide: float) -> list[list[Point]]:
    """Points whose labels could meet: each is within `wide`, of the logarithm, of the one before."""
    columns: list[list[Point]] = []
    for point in sorted(points, key=lambda p: p.intensity):
        if columns and math.log(point.intensity / columns[-1][-1].intensity) < wide:
            columns[-1].append(point)
        else:
            columns.append([point])
    return columns
