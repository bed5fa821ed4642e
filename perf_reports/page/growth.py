"""Time and peak memory while one size grows, with the fitted exponent: y ∝ size^e, by least squares in logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ..durations import format_duration
from .figures import COLOR, Panel, spread
from .numbers import byte_count

Record = Mapping[str, Any]

QUANTITIES = {"seconds": "time", "peak_bytes": "memory"}


@dataclass(frozen=True)
class Growth:
    """One contender's time or memory over the sizes of a letter."""

    op: str
    workload: str
    letter: str
    meaning: str
    contender: str
    role: str
    quantity: str
    sizes: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The exponent of the power that fits best."""
        return exponent(self.sizes, self.values)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size by least squares; nan of fewer than two sizes."""
    if len(sizes) < 2:
        return math.nan
    xs, ys = [math.log(x) for x in sizes], [math.log(y) for y in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def growths(run: Sequence[Record]) -> list[Growth]:
    """All that a run has measured at two sizes or more."""
    rows = [r for r in run if r["kind"] == "growth"]
    result = []
    for quantity in QUANTITIES:
        keys = dict.fromkeys((r["op"], r["workload"], r["letter"], r["contender"], r["role"]) for r in rows)
        for op, workload, letter, contender, role in keys:
            own = [
                r
                for r in rows
                if (r["op"], r["workload"], r["letter"], r["contender"]) == (op, workload, letter, contender)
                and (r[quantity] or 0) > 0
            ]
            own.sort(key=lambda r: r["size"])
            if len(own) > 1:
                sizes, values = tuple(r["size"] for r in own), tuple(r[quantity] for r in own)
                meaning = own[0].get("meaning", letter)
                result.append(Growth(op, workload, letter, meaning, contender, role, quantity, sizes, values))
    return result


def panels(run: Sequence[Record]) -> list[Panel]:
    """A panel for each op, letter and quantity."""
    every = growths(run)
    result = []
    for op, letter, quantity in dict.fromkeys((g.op, g.letter, g.quantity) for g in every):
        own = [g for g in every if (g.op, g.letter, g.quantity) == (op, letter, quantity)]
        fitted = ", ".join(f"{_who(g)} {letter}^{g.exponent:.2f}" for g in own)
        title = f"{op}, {QUANTITIES[quantity]} with {own[0].meaning}: {fitted}"
        words = f"{own[0].workload}. " + "; ".join(
            f"{_who(g)}: "
            + ", ".join(f"{letter} = {x:g} {_written(quantity, y)}" for x, y in zip(g.sizes, g.values, strict=True))
            for g in own
        )
        result.append(Panel(f"{op}-{letter}-{quantity}", title, words, partial(_draw, own), height=1.9, left=0.75))
    return result


def _who(growth: Growth) -> str:
    return "ours" if growth.role == "ours" else "dense"


def _written(quantity: str, value: float) -> str:
    return format_duration(value) if quantity == "seconds" else byte_count(value)


def _draw(own: Sequence[Growth], axes: Axes) -> None:
    sizes = [x for g in own for x in g.sizes]
    values = [y for g in own for y in g.values]
    axes.set(
        xscale="log", yscale="log", xlim=(min(sizes) / 1.3, max(sizes) * 3.2), ylim=(min(values) / 2, max(values) * 2)
    )
    low, top = (math.log(y) for y in axes.get_ylim())
    places = spread([math.log(g.values[-1]) for g in own], (top - low) * 0.1)
    for g, place in zip(own, places, strict=True):
        color = COLOR["ours" if g.role == "ours" else "dense"]
        axes.plot(g.sizes, g.values, "o-" if g.role == "ours" else "D--", color=color, markersize=5, linewidth=1.6)
        axes.annotate(
            f"{_who(g)} {g.letter}^{g.exponent:.2f}",
            (g.sizes[-1], math.exp(place)),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
        )
    quantity = own[0].quantity
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted({*own[0].sizes}), [f"{x:g}" for x in sorted({*own[0].sizes})])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: _written(quantity, value).replace(".00 ", " ").replace(".0 ", " "))
    )
    axes.set_xlabel(own[0].meaning, fontsize=9)
    axes.grid(axis="y")
