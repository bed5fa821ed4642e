"""Training curves: the loss, and accuracy, over training time; each method's name stands at its line's end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..durations import format_duration
from .figures import COLOR, Panel, spread
from .numbers import percent

Record = Mapping[str, Any]

# a method is told by its colour, by its dashes and by its name: no two agree in two of them
LINES = ("ours", "dense", "peer", "other", "compiled", "muted")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))
Line = list[tuple[float, float, float, float]]  # seconds, median, least, most over the seeds
_DECADES = 4.5  # that have room for a tick at 1 and one at 3, where no names stand beside the lines
FIELDS = {"loss": "loss", "test_accuracy": "test accuracy"}


def panels(run: Sequence[Record], study: str, loss_title: str) -> list[Panel]:
    """Loss and test accuracy of a study; none where nothing was trained."""
    logged = [r for r in run if r["kind"] == "training" and r["study"] == study]
    methods = _ours_first(run, study, list(dict.fromkeys(r["method"] for r in logged)))
    result = []
    for field in FIELDS:
        lines = lines_of(run, study, field)
        if not lines:
            continue
        ends = {method: line[-1][1] for method, line in lines.items()}
        words = "; ".join(
            f"{method} ends at {written(field, end)} after {format_duration(lines[method][-1][0])}"
            for method, end in ends.items()
        )
        name = loss_title if field == "loss" else "Test accuracy"
        places = {method: methods.index(method) for method in lines}
        draw = partial(_draw, lines, places, field)
        result.append(Panel(f"{study}-{field}", f"{name}: {_finding(lines, field)}", words, draw, height=2.7))
    return result


def lines_of(run: Sequence[Record], study: str, field: str) -> dict[str, Line]:
    """The line of each method of a study, ours first; of those alone that logged the field."""
    logged = [r for r in run if r["kind"] == "training" and r["study"] == study]
    methods = _ours_first(run, study, list(dict.fromkeys(r["method"] for r in logged)))
    lines = {method: _line([r for r in logged if r["method"] == method], field) for method in methods}
    return {method: line for method, line in lines.items() if line}


def _ours_first(run: Sequence[Record], study: str, methods: list[str]) -> list[str]:
    ours = {r["method"] for r in run if r["kind"] == "training_summary" and r["study"] == study and r["role"] == "ours"}
    return sorted(methods, key=lambda method: method not in ours)


def _line(rows: Sequence[Record], field: str) -> Line:
    """The median over seeds at each logged iteration, with the band of all of them."""
    by_iteration: dict[Any, list[Record]] = {}
    for place, r in enumerate(rows):
        if r.get(field) is not None:
            by_iteration.setdefault(r.get("iteration", place), []).append(r)
    line = []
    for own in by_iteration.values():
        values = [r[field] for r in own]
        seconds = statistics.median(r["seconds"] for r in own)
        line.append((seconds, statistics.median(values), min(values), max(values)))
    return sorted(line)


def _finding(lines: Mapping[str, Line], field: str) -> str:
    """Which of the first method and the others reaches first where the first one ends, as far as they do."""
    ours, *others = lines
    end = lines[ours][-1][1]
    at = first_at(lines[ours], field, end)
    assert at is not None  # it is where it ends
    sooner = [m for m in others for t in [first_at(lines[m], field, end)] if t is not None and t < at]
    where = f"{written(field, end)} after {format_duration(at)}"
    if not others:
        return f"{ours} reaches {where}"
    if not sooner:
        return f"{ours} is first to its {where}"
    return f"{ours} reaches {where}; sooner there: {', '.join(sooner)}"


def first_at(line: Line, field: str, level: float) -> float | None:
    """The seconds at which a line is first as good as a level; None where it never is."""
    return next((row[0] for row in line if (row[1] <= level if field == "loss" else row[1] >= level)), None)


def written(field: str, value: float) -> str:
    """A value of a field, for people."""
    return percent(value) if field == "test_accuracy" else f"{value:.3g}"


def _draw(lines: Mapping[str, Line], places: Mapping[str, int], field: str, axes: Axes) -> None:
    # the first iteration may be logged at zero seconds, which a logarithm has no place for
    shown = {method: late for method, line in lines.items() if (late := [row for row in line if row[0] > 0])}
    if not shown:
        axes.annotate("nothing was trained yet", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    seconds = [row[0] for line in shown.values() for row in line]
    axes.set_xscale("log")
    left, last = min(seconds) / 1.2, max(seconds)
    names = 0.06 + 0.0185 * max(map(len, shown))  # the share of the axes that they take
    right = last * (last / left) ** (names / (1 - names))
    axes.set_xlim(left, right)
    axes.set_ylim(*_range(shown, field))
    low, top = axes.get_ylim()
    inside = {method: min(max(line[-1][1], low), top) for method, line in shown.items()}
    lowest = low + (top - low) * 0.035  # a name as low as the axis would be crossed by it
    labels = spread([max(value, lowest) for value in inside.values()], (top - low) * 0.075)
    beneath, beyond = max(0.0, lowest - min(labels)), max(0.0, max(labels) - top)
    labels = [label + beneath - beyond for label in labels]
    for (method, line), label in zip(shown.items(), labels, strict=True):
        color, dashes = COLOR[LINES[places[method] % 6]], DASHES[places[method] % 6]
        times, values, least, most = zip(*line, strict=True)
        if any(a < b for a, b in zip(least, most, strict=True)):
            axes.fill_between(times, least, most, color=color, alpha=0.15, linewidth=0)
        axes.plot(times, values, color=color, linewidth=2.2 if not places[method] else 1.6, linestyle=dashes)
        axes.plot(times[-1], values[-1], "o", color=color, markersize=4.5)
        at = last * (last / left) ** 0.05
        axes.plot([times[-1], at], [inside[method], label], color=color, linewidth=0.6, alpha=0.7, clip_on=False)
        axes.annotate(method, (at, label), xytext=(2, 0), textcoords="offset points", va="center", color=color,
                      fontsize=8.5, annotation_clip=False)  # fmt: skip
    axes.grid(axis="y")
    axes.set_xlabel("training time, seconds", fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())
    is_narrow = math.log10(last / left) > _DECADES * (1 - names)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if is_narrow else (1, 3), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= last * 1.01 else ""))
    if field == "test_accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _range(lines: Mapping[str, Line], field: str) -> tuple[float, float]:
    """A range that tells the methods' ends apart, whatever one of them started from."""
    ends = [line[-1][1] for line in lines.values()]
    if field == "loss":
        most = max(row[1] for line in lines.values() for row in line)
        top = min(most, 4 * max(ends)) if max(ends) > 0 else most
        return 0.0, 1.05 * top if math.isfinite(top) and top > 0 else 1.0
    best = max(row[1] for line in lines.values() for row in line)
    gap = max(best - min(ends), 0.02)
    return max(0.0, min(ends) - 1.5 * gap), min(1.0, best + 0.25 * gap)
