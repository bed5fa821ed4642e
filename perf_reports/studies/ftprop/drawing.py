"""The pictures of the study. They need matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace

Record = dict[str, Any]
_COLORS = {
    "soft_hinge": "ours",
    "sste": "peer",
    "ste": "compiled",
    "hinge": "other",
    "relu": "dense",
    "saturated_relu": "muted",
}


def plot(rows: Sequence[Record], path: Path) -> bool:
    """Draw training loss and test accuracy over epochs, a line a method, the mean of its seeds between least and
    greatest; returns False where matplotlib is not installed or there is no epoch yet."""
    if not rows:
        return False
    try:
        from ...page.figures import drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    with drawing(10, 4.3, ncols=2) as (figure, (loss, accuracy)):  # pyright: ignore
        _scale(loss, rows)
        curves(loss, rows, "loss")
        loss.set_title("Training loss")
        curves(accuracy, rows, "test_accuracy")
        accuracy.set_title("Test accuracy")
        accuracy.legend(loc="lower right")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True


def draw_comparison(rows: Sequence[Record], path: Path) -> bool:
    """Draw training loss and test accuracy, a column an experiment; returns False where matplotlib is not installed."""
    if not rows:
        return False
    try:
        from ...page.figures import drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    names = list(dict.fromkeys(row["experiment"] for row in rows))
    with drawing(3.1 * len(names) + 1, 5.8, nrows=2, ncols=len(names), squeeze=False) as (figure, panels):  # pyright: ignore
        for (loss, accuracy), name in zip(panels.T, names, strict=True):
            own = [row for row in rows if row["experiment"] == name]
            _scale(loss, own)
            for panel, field in ((loss, "loss"), (accuracy, "test_accuracy")):
                curves(panel, own, field)
            loss.set_xlabel("")
            loss.set_title(f"{own[0]['dataset'].split(',')[0]}, {own[0]['network']}")
        panels[0, 0].set_ylabel("training loss")
        panels[1, 0].set_ylabel("test accuracy")
        lines, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=min(2 * len(names), len(labels)))
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))
    return True


def _scale(panel: Any, rows: Sequence[Record]) -> None:
    """Logarithmic, unless the losses lie within a decade, in which such an axis has hardly a number to show."""
    losses = [row["loss"] for row in rows if row["loss"]]
    if losses and max(losses) > 10 * min(losses):
        panel.set(yscale="log")


def curves(panel: Any, rows: Sequence[Record], field: str) -> None:
    """A line over epochs for each method, the mean of its seeds, in a band from their least to their greatest."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

    from ...page.figures import COLOR

    for name in dict.fromkeys(row["rule"] for row in rows):
        own = [row for row in rows if row["rule"] == name and row[field] is not None]
        epochs = sorted({row["iteration"] for row in own})
        values = [[row[field] for row in own if row["iteration"] == epoch] for epoch in epochs]
        color = COLOR[_COLORS.get(name, "ink")]
        mark = "o" if len(epochs) == 1 else None
        panel.plot(epochs, list(map(statistics.mean, values)), color=color, linewidth=1.8, marker=mark, label=name)
        if max(map(len, values), default=1) > 1:
            panel.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15, lw=0)
    panel.grid(axis="y")
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if field == "loss":
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
