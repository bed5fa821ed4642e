"""The look of our figures: one palette that colour-blind eyes can tell apart, few lines, light and dark.

A figure is drawn once, in the light colours. Saved as PNG and SVG it keeps them; inside the page its colours become CSS
variables (`var(--ours)` …), so the same drawing follows the reader's theme.
`COLOR` and `drawing` are public: the examples draw with them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# name -> (light, dark), after Okabe and Ito's palette; each light one is unique: it is what the SVG is searched for
THEME = {
    "ink": ("#1b1d21", "#e9e7e3"),
    "muted": ("#666b73", "#a2a8b0"),
    "grid": ("#dfe2e6", "#34393f"),
    "paper": ("#fffffe", "#15171a"),
    "ours": ("#0072b2", "#56b4e9"),
    "dense": ("#d55e00", "#ff8f4a"),
    "compiled": ("#a07000", "#f0c04a"),
    "peer": ("#00815e", "#3fd1a4"),
    "other": ("#a8457f", "#e79bc6"),
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
    "svg.fonttype": "path",
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
    figure.savefig(out / f"{name}.png", dpi=160)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "tropigrad"})
    (out / f"{name}.svg").write_text(svg.getvalue(), encoding="utf-8")
    return inline(svg.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """A drawing for the inside of a page: scales with its box, has ids of its own, takes its colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    svg = (
        f'<svg viewBox="0 0 {width:g} {height:g}" xmlns:xlink="http://www.w3.org/1999/xlink" role="presentation">{body}'
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for theme, light in COLOR.items():
        svg = svg.replace(light, f"var(--{theme})")
    # what matplotlib leaves black by default, the glyphs above all
    return svg.replace("#000000", "var(--ink)")


def css() -> str:
    """The variables that `inline` drawings ask for, light and dark."""
    light = " ".join(f"--{name}: {pair[0]};" for name, pair in THEME.items())
    dark = " ".join(f"--{name}: {pair[1]};" for name, pair in THEME.items())
    return (
        f":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
