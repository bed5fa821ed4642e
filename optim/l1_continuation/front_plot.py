"""Draws a front: loss over ℓ¹ and over nonzeros. It needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...whole_files import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID, _FRONT = "#1b1d21", "#666b73", "#dfe2e6", "#0072b2"  # the last after Okabe and Ito
_MARKS = {"knee": ("D", "#d55e00"), "one_se": ("s", "#00815e"), "val_loss": ("s", "#00815e")}
_LABELS = {"knee": "knee", "one_se": "validation, one s.e.", "val_loss": "validation, least loss"}
_WIDE = 20.0  # nonzeros that differ by such a factor are drawn on a logarithmic axis


def draw(
    points: Sequence[Any], front: Sequence[int], marked: Mapping[str, int], ax: Axes | str | os.PathLike | None
) -> Figure:
    """Draws in the Axes, or in a new figure, which is saved where ax is a path.

    Args:
        points: with loss, l1 and nnz.
        front: the indices of those that are not dominated, by ℓ¹.
        marked: name → index.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("ParetoFront.plot needs matplotlib: pip install 'tropigrad[reports]'") from None
    if ax is not None and not isinstance(ax, str | os.PathLike):
        if not hasattr(ax, "plot"):
            raise TypeError(f"ParetoFront.plot: got a {type(ax).__name__}; expected matplotlib Axes, a path or None")
        _panel(ax, points, front, marked, "l1")
        ax.set_ylabel("training loss")
        ax.legend(frameon=False)
        figure = ax.get_figure(root=True)
        assert figure is not None
        return figure
    with_nonzeros = bool(points) and all(point.nnz is not None for point in points)
    columns = ["l1", "nnz"] if with_nonzeros else ["l1"]
    figure = Figure(figsize=(5.2 * len(columns), 4.2), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        _panel(panel, points, front, marked, column)
    panels[0].set_ylabel("training loss")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if ax is not None:
        kind = Path(ax).suffix.lstrip(".") or "png"
        replace(ax, lambda fresh: figure.savefig(fresh, format=kind, dpi=160))
    return figure


def _panel(ax: Axes, points: Sequence[Any], front: Sequence[int], marked: Mapping[str, int], column: str) -> None:
    across = [getattr(point, column) for point in points]
    loss = [point.loss for point in points]
    dominated = sorted(set(range(len(points))) - set(front))
    if dominated:
        ax.plot(*_at(dominated, across, loss), "o", color=_MUTED, alpha=0.3, ms=4.5, mew=0, label="dominated", zorder=2)
    if front:
        # over nonzeros the front need not fall, and a line would zigzag
        style = "o-" if column == "l1" else "o"
        ax.plot(*_at(front, across, loss), style, color=_FRONT, lw=1.5, ms=4.5, mew=0, label="front", zorder=3)
    for name, i in marked.items():
        symbol, color = _MARKS[name]
        ax.plot(
            *_at([i], across, loss), symbol, mfc="none", mec=color, mew=1.8, ms=11 if name == "knee" else 14,
            label=f"{_LABELS[name]}: point {i}", zorder=4,
        )  # fmt: skip
    ax.set_xlabel({"l1": "ℓ¹ norm", "nnz": "nonzeros"}[column], color=_INK)
    if column == "nnz":
        if min(across) > 0 and max(across) > _WIDE * min(across):
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter("")
        ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(color=_GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_MUTED, which="both")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_MUTED)


def _at(chosen: Sequence[int], across: Sequence[float], loss: Sequence[float]) -> tuple[list[float], list[float]]:
    return [across[i] for i in chosen], [loss[i] for i in chosen]
