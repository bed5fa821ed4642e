"""The picture of the study: all fronts. It needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace

Record = dict[str, Any]
_COLORS = {
    "held": "ours", "mpg": "peer", "sweep": "dense", "released": "other", "pruning": "compiled", "NSGA-II": "muted",
    "LassoNet": "ink",
}  # fmt: skip
_LEAST = 1e-3  # of the loss shown
_ACROSS = 3  # data sets side by side: more would be too small to read on a page


def draw(records: Sequence[Record], path: Path) -> bool:
    """Training loss over ℓ¹, and below it over nonzeros: a column a data set, a line a method and seed.

    Returns False where matplotlib is not installed, or there is no front.
    """
    try:
        from matplotlib.ticker import NullFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    rows = [r for r in records if r["kind"] == "front"]
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    if not names:
        return False
    across = min(len(names), _ACROSS)
    down = -(-len(names) // across)
    with drawing(3.1 * across + 0.6, 5.4 * down + 0.6, nrows=2 * down, ncols=across, squeeze=False) as drawn:  # pyright: ignore
        figure, panels = drawn
        lines = {}
        for number in range(len(names), across * down):
            for panel in panels[-2:, number % across]:
                panel.set_axis_off()
        for number, name in enumerate(names):
            row, column = divmod(number, across)
            pair = panels[2 * row : 2 * row + 2, column]
            own = [r for r in rows if r["dataset"] == name]
            losses = [max(r["points"][i]["loss"], _LEAST) for r in own for i in r["non_dominated"]]
            for panel, field in zip(pair, ("l1", "nnz"), strict=True):
                for r in own:
                    points = [r["points"][i] for i in r["non_dominated"]]
                    points = [p for p in points if p[field] > 0]
                    style = {"color": COLOR[_COLORS[r["method"]]], "linewidth": 1.2, "alpha": 0.75}
                    (lines[r["method"]],) = panel.plot(
                        [p[field] for p in points], [max(p["loss"], _LEAST) for p in points],
                        "o-" if field == "l1" else "o", markersize=2.5, markeredgewidth=0, **style,
                    )  # fmt: skip
                panel.set(xscale="log", xlabel={"l1": "ℓ¹", "nnz": "nonzeros"}[field])
                if max(losses) > 10 * min(losses):  # within a decade a logarithmic axis has no round numbers to show
                    panel.set(yscale="log")
                most = max(p[field] for r in own for p in r["points"])
                panel.set_xlim(left=most / 200)  # further left there is but the loss of 0
                panel.xaxis.set_minor_formatter(NullFormatter())  # whose labels run into each other
                panel.grid(axis="y")
            pair[0].set_title(name)
        for panel in panels[:, 0]:
            panel.set_ylabel("training loss")
        figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines))
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))
    return True
