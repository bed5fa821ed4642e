"""Training curves: the loss, and accuracy, over training time, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from .figures import COLOR, drawing, save

Record = Mapping[str, Any]

_LINES = ("ours", "dense", "other", "peer", "compiled", "muted")  # ours is the first method of a study


def draw(records: Sequence[Record], study: str, out: Path, loss_title: str) -> str | None:
    """Write training-<study>.png and .svg; returns the drawing for the page, None where nothing was trained."""
    logged = [r for r in records if r["kind"] == "training" and r["study"] == study]
    if not logged:
        return None
    methods = list(dict.fromkeys(r["method"] for r in logged))
    with drawing(10, 4.3, ncols=2) as (figure, axes):
        loss, accuracy = axes
        for number, method in enumerate(methods):
            rows = [r for r in logged if r["method"] == method]
            color = COLOR[_LINES[number % len(_LINES)]]
            _line(loss, rows, "loss", color, method)
            _line(accuracy, rows, "test_accuracy", color, method)
        # the first iteration may be logged at zero seconds, which a logarithm has no place for
        least = min((r["seconds"] for r in logged if r["seconds"] > 0), default=1e-3)
        for panel in (loss, accuracy):
            panel.set_xscale("log")
            panel.set_xlim(left=least / 1.5)
            panel.grid(axis="y")
            panel.set_xlabel("training time, seconds")
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.set_ylim(bottom=0)
        loss.set_title(loss_title)
        accuracy.set_title("Test accuracy")
        if shown := _range([[r for r in logged if r["method"] == method] for method in methods]):
            accuracy.set_ylim(*shown)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        handles, labels = loss.get_legend_handles_labels()
        columns = len(methods) if len(methods) <= 5 else -(-len(methods) // 2)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.6)
        return save(figure, out, f"training-{study}")


def _range(curves: Sequence[Sequence[Record]]) -> tuple[float, float] | None:
    """Test accuracies that tell the methods' ends apart, whatever one of them started from."""
    measured = [[r["test_accuracy"] for r in rows if r.get("test_accuracy") is not None] for rows in curves]
    ends, best = [own[-1] for own in measured if own], max((max(own) for own in measured if own), default=0.0)
    if not ends:
        return None
    spread = max(best - min(ends), 0.02)
    return max(0.0, min(ends) - 0.5 * spread), min(1.0, best + 0.25 * spread)


def _line(axes: Axes, rows: Sequence[Record], field: str, color: str, label: str) -> None:
    shown = [(r["seconds"], r[field]) for r in rows if r.get(field) is not None]
    if not shown:
        return
    seconds, values = zip(*shown, strict=True)
    axes.plot(seconds, values, color=color, linewidth=1.8, label=label)
    axes.plot(seconds[-1], values[-1], "o", color=color, markersize=5)
