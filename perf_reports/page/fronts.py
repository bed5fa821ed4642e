"""Fronts of training loss and ℓ¹ norm: the loss over the norm, and over how many weights are not zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..durations import format_duration
from .curves import DASHES, LINES
from .figures import COLOR, Panel, legend_below
from .numbers import percent

Record = Mapping[str, Any]
Front = list[Mapping[str, Any]]  # points that none dominates, sparsest first

_LEAST_LOSS = 1e-3  # below it a loss is drawn there: so near 0 networks do not differ
_FIELDS = {"l1": "ℓ¹ norm", "nnz": "nonzeros"}


def panels(run: Sequence[Record], study: str) -> list[Panel]:
    """Loss over the norm, and over nonzeros, of all fronts of a study; none where there is none."""
    fronts = fronts_of(run, study)
    if not fronts:
        return []
    norms = f"Loss over the ℓ¹ norm: {_of_areas(run, study) or _at_equal_loss(fronts, 'l1')}"
    counts = f"Loss over nonzeros: {_at_equal_loss(fronts, 'nnz')}"
    return [
        Panel(field, title, _words(fronts, field), partial(_draw, fronts, field), height=2.6, left=0.74, below=0.72)
        for field, title in (("l1", norms), ("nnz", counts))
    ]


def fronts_of(run: Sequence[Record], study: str) -> dict[str, Front]:
    """Method → its front, ours first. The network of zeros, which every front begins with, is no point of it."""
    walked = sorted((r for r in run if r["kind"] == "front" and r["study"] == study), key=lambda r: r["role"] != "ours")
    fronts = {}
    for r in walked:
        kept = [point for point in r["points"] if not point.get("is_dominated") and point["l1"] > 0]
        if kept:
            fronts[r["method"]] = sorted(kept, key=lambda point: point["l1"])
    return fronts


def areas(run: Sequence[Record], study: str) -> dict[str, float]:
    """Method → the share of the rectangle over the common range of norms that its front dominates, ours first."""
    ends = [r for r in run if r["kind"] == "training_summary" and r["study"] == study]
    ends = sorted((r for r in ends if r.get("hypervolume") is not None), key=lambda r: r["role"] != "ours")
    return {r["method"]: r["hypervolume"] for r in ends}


def sentences(run: Sequence[Record], study: str) -> list[str]:
    """The hypervolume over the common range, and the time of each front."""
    result = []
    shares = areas(run, study)
    low_high = next((r["common_range"] for r in run if r.get("study") == study and r.get("common_range")), None)
    if shares and low_high:
        listed = ", ".join(f"{method} {share:.3f}" for method, share in shares.items())
        result.append(
            f"Hypervolume over the norms that all fronts reach, {low_high[0]:.3g} to {low_high[1]:.3g}, as a share of "
            f"its rectangle: {listed}."
        )
    times = {r["method"]: (r["seconds"], len(r["points"])) for r in run if r["kind"] == "front" and r["study"] == study}
    if times:
        listed = ", ".join(f"{method} {format_duration(s)} for {n} points" for method, (s, n) in times.items())
        result.append(f"Processor time of each front: {listed}.")
    return result


def no_gain(run: Sequence[Record], study: str) -> str:
    """Which other fronts are as good as ours, or better, over the common range; "" where none is."""
    shares = areas(run, study)
    if len(shares) < 2:
        return ""
    (ours, own), *others = shares.items()
    times = {r["method"]: format_duration(r["seconds"]) for r in run if r["kind"] == "front" and r["study"] == study}
    better = [f"{method} ({share:.3f}, in {times.get(method, '–')})" for method, share in others if share >= own]
    if not better:
        return ""
    mine = f"{ours} ({own:.3f}, in {times.get(ours, '–')})"
    return f"In hypervolume over the norms that all fronts reach {mine} is not ahead of {' and '.join(better)}."


def _of_areas(run: Sequence[Record], study: str) -> str:
    """The finding in hypervolumes; "" before the study ended."""
    shares = areas(run, study)
    if not shares:
        return ""
    listed = ", ".join(
        f"{method} {percent(share)}" for method, share in sorted(shares.items(), key=lambda item: -item[1])
    )
    return f"hypervolume of {listed}"


def _at_equal_loss(fronts: Mapping[str, Front], field: str) -> str:
    """The least norm, or number of weights, that each front needs for the least loss that all reach."""
    level = max(min(p["loss"] for p in front) for front in fronts.values())
    needs = {method: min(p[field] for p in front if p["loss"] <= level) for method, front in fronts.items()}
    listed = ", ".join(f"{method} {_rounded(need)}" for method, need in sorted(needs.items(), key=lambda item: item[1]))
    return f"for a loss of {level:.2g}, {listed}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _words(fronts: Mapping[str, Front], field: str) -> str:

    def at(point: Mapping[str, Any]) -> str:
        return f"loss {point['loss']:.2g} at {_FIELDS[field]} {_rounded(point[field])}"

    return "; ".join(f"{method} goes from {at(front[0])} to {at(front[-1])}" for method, front in fronts.items())


def _draw(fronts: Mapping[str, Front], field: str, axes: Axes) -> None:
    losses = [max(p["loss"], _LEAST_LOSS) for front in fronts.values() for p in front]
    for place, (method, front) in enumerate(fronts.items()):
        # over nonzeros a front may go back: a larger norm can have fewer of them
        points = sorted(front, key=lambda p: (p[field], -p["loss"]))
        axes.plot(
            [p[field] for p in points],
            [max(p["loss"], _LEAST_LOSS) for p in points],
            marker="osD^vP"[place % 6],
            color=COLOR[LINES[place % 6]],
            linestyle=DASHES[place % 6],
            linewidth=2.0 if not place else 1.5,
            markersize=4.5,
            label=method,
        )
    axes.set_xscale("log")
    axes.set_xlim(right=1.3 * max(p[field] for front in fronts.values() for p in front))  # room for the last label
    axes.set_xlabel(_FIELDS[field], fontsize=9, labelpad=1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if max(losses) > 10 * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_loss))
    axes.grid(axis="y")
    legend_below(axes, 0.5, ncols=3, fontsize=8.5, handlelength=2.4)


def _loss(value: float, _: int | None) -> str:
    return f"≤ {value:g}" if value <= _LEAST_LOSS else f"{value:g}"
