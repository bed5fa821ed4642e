"""The pictures of the two training commands. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace

_COLORS = {"explicit": "ours", "random": "dense"}


def plot_starts(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw test accuracy over Adam's steps, from both starts of both networks; returns False without matplotlib."""
    try:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    networks = list(dict.fromkeys(row["network"] for row in rows))
    with drawing(5 * max(1, len(networks)), 4.3, ncols=max(1, len(networks)), squeeze=False, sharey=True) as (
        figure,
        axes,
    ):
        for panel, network in zip(axes[0], networks, strict=False):
            for start, color in _COLORS.items():
                curve = [r for r in rows if r["network"] == network and r["start"] == start and r["rate"] is not None]
                if not curve:  # solved, and no step was taken
                    curve = [r for r in rows if r["network"] == network and r["start"] == start]
                steps, accuracies = [r["step"] for r in curve], [r["test_accuracy"] for r in curve]
                panel.plot(steps, accuracies, color=COLOR[color], marker="o", markersize=4, label=f"{start} start")
            panel.set_title(network.capitalize())
            panel.set_xlabel("steps of Adam")
            panel.grid(axis="y")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if networks:
            axes[0][0].set_ylabel("test samples answered right")
            axes[0][-1].legend(loc="lower right")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True


def plot_models(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the perplexity of each language model as a bar; returns False without matplotlib."""
    try:
        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    with drawing(8, 0.7 + 0.6 * max(1, len(rows))) as (figure, panel):
        names = [row["model"] for row in rows]
        colors = [COLOR["ours" if row["is_ours"] else "peer"] for row in rows]
        bars = panel.barh(names, [row["perplexity"] for row in rows], color=colors, height=0.6)
        panel.bar_label(bars, labels=[f"{row['perplexity']:.4g}  ({row['seconds']:.2g} s)" for row in rows], padding=4)
        panel.invert_yaxis()
        panel.margins(x=0.2)
        panel.set_title("Perplexity on the test text (time to fit); less is better")
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x")
        panel.set_axisbelow(True)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True
