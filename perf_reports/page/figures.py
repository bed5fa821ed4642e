"""The look of our figures: one palette that colour-blind eyes can tell apart, few lines, light and dark.

The roles' colours were searched for the largest least difference ΔE₀₀, between any two and to the muted ink, as seen
with full sight, with protanopia and with deuteranopia; tests/perf_reports/page/test_palette.py holds it.

A figure is drawn once, in the light colours. Saved as PNG and SVG it keeps them; inside the page its colours become CSS
variables (`var(--ours)` …), so the same drawing follows the reader's theme.
`COLOR` and `drawing` are public: the examples draw with them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# name -> (light, dark); each light one is unique: it is what the SVG is searched for
THEME = {
    "ink": ("#1b1d21", "#e9e7e3"),
    "muted": ("#666b73", "#a2a8b0"),
    "grid": ("#dfe2e6", "#34393f"),
    "paper": ("#fffffe", "#15171a"),
    "ours": ("#104ac7", "#507cdf"),
    "dense": ("#cc4e07", "#dc8c5e"),
    "compiled": ("#4e3200", "#fcf423"),
    "peer": ("#2d9c70", "#b0ffd6"),
    "other": ("#5b144f", "#ba3d6a"),
}
COLOR = {name: light for name, (light, _) in THEME.items()}

_STYLE: dict[Any, Any] = {
    "figure.facecolor": COLOR["paper"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOR["muted"],
    "axes.labelcolor": COLOR["ink"],
    "axes.titlecolor": COLOR["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": COLOR["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOR["muted"],
    "ytick.color": COLOR["muted"],
    "xtick.labelcolor": COLOR["ink"],
    "ytick.labelcolor": COLOR["ink"],
    "text.color": COLOR["ink"],
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same drawing on every machine
    "font.size": 10.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "tropigrad",
}


@contextmanager
def drawing(width: float, height: float, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in our style and its axes, closed at the end; sizes in inches."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **subplots)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def save(figure: Figure, out: Path, name: str) -> str:
    """Write `name`.png and `name`.svg into `out`; returns the SVG for the page, its colours CSS variables."""
    figure.savefig(out / f"{name}.png", dpi=140)
    svg = _svg(figure)
    (out / f"{name}.svg").write_text(svg, encoding="utf-8")
    return inline(svg, name)


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "tropigrad"})
    return svg.getvalue()


@dataclass(frozen=True)
class Panel:
    """One small picture of the page: it is read at the width of a phone, and stands beside others on a desk.

    Its axes are as high as `height`, in inches; `left` and `below` are kept for ticks, labels and a legend.
    """

    name: str
    title: str  # states the finding
    words: str  # for those who do not see the drawing
    draw: Callable[[Axes], None]
    height: float = 2.2
    left: float = 0.62
    below: float = 0.5


@dataclass(frozen=True)
class Drawn:
    """A panel as the page shows it."""

    name: str
    title: str
    words: str
    svg: str


_WIDTH, _EDGE, _TITLE = 4.4, 0.12, 0.5  # inches


def draw_panels(panels: Sequence[Panel], sheet: str, out: Path | None, columns: int = 3) -> list[Drawn]:
    """Draw each panel for the page and, where `out` is given, all of them as one sheet: <sheet>.png and .svg there."""
    result = []
    with matplotlib.rc_context(_STYLE):
        for panel in panels:
            height = panel.height + panel.below + _EDGE
            figure = plt.figure(figsize=(_WIDTH, height))
            try:
                panel.draw(_place(figure, panel, 0.0, height - _EDGE))
                svg = inline(_svg(figure), f"{sheet}-{panel.name}")
            finally:
                plt.close(figure)
            result.append(Drawn(panel.name, panel.title, panel.words, svg))
        if out is not None and panels:
            _draw_sheet(panels, sheet, out, min(columns, len(panels)))
    return result


def _place(figure: Figure, panel: Panel, x: float, top: float) -> Axes:
    """The axes of a panel whose left edge is at x and whose axes end at top, in inches from below."""
    width, height = figure.get_size_inches()
    bottom = top - panel.height
    box = (x + panel.left) / width, bottom / height, (_WIDTH - panel.left - _EDGE) / width, panel.height / height
    return figure.add_axes(box)


def _draw_sheet(panels: Sequence[Panel], sheet: str, out: Path, columns: int) -> None:
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.height + panel.below for panel in row) + _TITLE for row in rows]
    figure = plt.figure(figsize=(_WIDTH * columns, sum(heights)))
    try:
        for number, row in enumerate(rows):
            top = sum(heights[number:]) - _TITLE
            for column, panel in enumerate(row):
                axes = _place(figure, panel, _WIDTH * column, top)
                panel.draw(axes)
                at = ((_WIDTH * column + _EDGE) / figure.get_figwidth(), (top + 0.08) / figure.get_figheight())
                figure.text(*at, textwrap.fill(panel.title, 52), fontsize=9.5, weight="bold", va="bottom")
        save(figure, out, sheet)
    finally:
        plt.close(figure)


def legend_below(axes: Axes, offset: float, **options: Any) -> None:
    """A legend that begins so many inches below the axes, at their left edge."""
    height = axes.get_position().height * axes.figure.get_figheight()  # pyright: ignore
    where = {"loc": "upper left", "bbox_to_anchor": (0, -offset / height), "borderaxespad": 0, "borderpad": 0}
    axes.legend(**{**where, "fontsize": 8, "handletextpad": 0.6, "handlelength": 1.1, "labelspacing": 0.35, **options})


def spread(wanted: Sequence[float], least: float) -> list[float]:
    """Places as near to the wanted ones as may be, in their order, no two nearer than `least`: for labels."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of wanted first places, number]
    for i, index in enumerate(order):
        blocks.append([wanted[index] - i * least, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    shifts = [total / count for total, count in blocks for _ in range(int(count))]
    places = [0.0] * len(wanted)
    for i, (index, shift) in enumerate(zip(order, shifts, strict=True)):
        places[index] = shift + i * least
    return places


def inline(svg: str, name: str) -> str:
    """A drawing for the inside of a page: scales with its box, has ids of its own, takes its colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    svg = (
        f'<svg viewBox="0 0 {width:g} {height:g}" xmlns:xlink="http://www.w3.org/1999/xlink" role="presentation">{body}'
    )
    svg = re.sub(r" font-family: [^;]*;", "", svg)  # the page's own
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for theme, light in COLOR.items():
        svg = svg.replace(light, f"var(--{theme})")
    # what matplotlib leaves black by default, the glyphs above all
    return svg.replace("#000000", "var(--ink)")


def css() -> str:
    """The variables that `inline` drawings ask for, light and dark."""
    light = " ".join(f"--{name}: {pair[0]};" for name, pair in THEME.items())
    dark = " ".join(f"--{name}: {pair[1]};" for name, pair in THEME.items())
    # paper is white, whatever the screen is
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
