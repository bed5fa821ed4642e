"""The pictures of training runs. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace
from .. import runs
from .methods import LOSS_TITLE


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a run's curves over iterations; returns False where matplotlib is not installed."""
    return runs.plot(
        rows, path, loss_title=LOSS_TITLE, unit="iteration", adjust=lambda loss, _: loss.set_ylim(bottom=0)
    )


def plot_objectives(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the accuracy on held-out and on test samples over training time, a line an objective; False as above."""
    try:
        from matplotlib.ticker import PercentFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    colors = {"mean": COLOR["ours"], "cvar": COLOR["peer"], "worst": COLOR["dense"]}
    with drawing(10, 4.3, ncols=2, sharey=True) as (figure, panels):  # pyright: ignore
        fields = ("validation_accuracy", "test_accuracy")
        for panel, field, title in zip(panels, fields, ("Held-out samples", "Test samples"), strict=True):
            for objective in dict.fromkeys(row["objective"] for row in rows):
                # the start, at no time at all, has no place on a logarithmic axis
                shown = [
                    r for r in rows if r["objective"] == objective and r["seconds"] > 0 and r.get(field) is not None
                ]
                at, values = [row["seconds"] for row in shown], [row[field] for row in shown]
                panel.plot(at, values, color=colors[objective], linewidth=1.8, label=objective)
            panel.set_title(title)
            if any(row["seconds"] > 0 for row in rows):
                panel.set_xscale("log")
            panel.set_xlabel("training time, seconds")
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            panel.grid(axis="y")
        panels[1].legend(loc="lower right")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True
