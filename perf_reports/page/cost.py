"""The picture that a page opens with: the time of dense backprop and of ours, a line for each system."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ..durations import format_duration
from .figures import COLOR, Panel, legend_below
from .numbers import TIE, byte_count, times
from .systems import Cost


def verdict(costs: Sequence[Cost]) -> str:
    """One sentence: what dense backprop costs beside ours, losses included."""
    if not costs:
        return "Nothing was measured yet that can be compared with dense backprop."
    gains = sorted((c for c in costs if c.ratio > TIE), key=lambda c: -c.ratio)
    ties = [c for c in costs if c.ratio <= TIE]
    if gains:
        first, *others = gains
        words = f"Dense backprop takes {times(first.ratio)} the time of tropigrad on {first.system.title}"
        if others:
            words += ", " + ", ".join(f"{times(c.ratio)} on {c.system.title}" for c in others)
        words += "."
    else:
        words = "Dense backprop takes no longer than tropigrad in what was measured here."
    if ties:
        listed = " and ".join(f"{c.system.title} (ours takes {times(1 / c.ratio)} as long)" for c in ties)
        words += f" No time is gained on {listed}."
    return words


def panel(costs: Sequence[Cost]) -> Panel | None:
    """The picture; None where nothing was compared."""
    if not costs:
        return None
    words = "; ".join(
        f"{c.system.title}: {c.dense_name} {format_duration(c.dense)}, tropigrad {format_duration(c.ours)}"
        for c in costs
    )
    title = "What a step or a training costs: dense backprop ◆ beside tropigrad ●, on a logarithmic scale"
    return Panel("cost", title, words, partial(_draw, costs), height=0.88 * len(costs), left=0.15, below=0.62)


def _draw(costs: Sequence[Cost], axes: Axes) -> None:
    times_ = [t for c in costs for t in (c.dense, c.ours)]
    room = (max(times_) / min(times_)) ** 0.25 * 1.5  # for what is written beside the ends
    axes.set(xscale="log", xlim=(min(times_) / room, max(times_) * room), ylim=(len(costs) - 0.55, -0.8))
    for row, c in enumerate(costs):
        gains = c.ratio > 1
        axes.plot([c.ours, c.dense], [row, row], color=COLOR["grid"], linewidth=7, solid_capstyle="round", zorder=1)
        axes.plot(c.dense, row, "D", color=COLOR["dense"], markersize=8, zorder=3)
        axes.plot(c.ours, row, "o", color=COLOR["ours"], markersize=9, zorder=3)
        for value, color, is_right in ((c.dense, "dense", gains), (c.ours, "ours", not gains)):
            axes.annotate(
                format_duration(value),
                (value, row),
                xytext=(9 if is_right else -9, 0),
                textcoords="offset points",
                ha="left" if is_right else "right",
                va="center",
                color=COLOR[color],
                fontsize=9.5,
            )
        at = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(c.system.title, (0, row - 0.62), ha="left", weight="bold", **at)
        axes.annotate(
            times(c.ratio), (1, row - 0.62), ha="right", weight="bold", color=COLOR["ours" if gains else "dense"], **at
        )
        axes.annotate(c.measured, (0, row - 0.36), fontsize=7.5, color=COLOR["muted"], **at)
        if c.dense_bytes and c.our_bytes:
            beside = {"xytext": (-8 - 7.6 * len(times(c.ratio)), 0), "textcoords": "offset points", "ha": "right"}
            memory = f"{byte_count(c.dense_bytes)} → {byte_count(c.our_bytes)}"
            axes.annotate(memory, (1, row - 0.62), fontsize=8, color=COLOR["muted"], **beside, **at)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_duration(value).replace(".00", "").replace("0.0 ", "0 "))
    )
    axes.plot([], [], "D", color=COLOR["dense"], label="dense backprop")
    axes.plot([], [], "o", color=COLOR["ours"], label="tropigrad")
    legend_below(axes, 0.36, ncols=2, fontsize=9)
