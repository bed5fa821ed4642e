"""Draws a flowchart in Mermaid's words as SVG, in rows from the top, so that a page needs no script and no network.

Only what docs/draw_imports.py writes is read: nodes `a["label"]`, subgraphs, and arrows `a --> b & c`. Colours are the
page's: `currentColor`, and the classes `floor`, `node` and `arrow` for its style sheet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, GAP, ROW_GAP, PADDING = 166, 44, 18, 46, 14  # of a box, between boxes, between rows, inside a floor


@dataclass
class Chart:
    """The nodes with their labels, the floors with their titles, and the arrows."""

    labels: dict[str, str] = field(default_factory=dict)
    floors: dict[str, list[str]] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)


def parsed(text: str) -> Chart:
    """The chart that a block of Mermaid describes.

    Raises:
        ValueError: a line is none of those that are read.
    """
    chart, floor = Chart(), ""
    for line in map(str.strip, text.strip().splitlines()):
        if opened := re.fullmatch(r'subgraph \w+\["(.*)"\]', line):
            floor = opened[1]
        elif line == "end":
            floor = ""
        elif node := re.fullmatch(r'(\w+)\["(.*)"\]', line):
            chart.labels[node[1]] = node[2]
            chart.floors.setdefault(floor, []).append(node[1])
        elif arrow := re.fullmatch(r"(\w+) --> (\w+(?: & \w+)*)", line):
            chart.arrows += [(arrow[1], target) for target in arrow[2].split(" & ")]
        elif line != "flowchart TD":
            raise ValueError(f"draw_flowchart: {line!r} is no node, subgraph or arrow; expected one a line")
    named = [name for arrow in chart.arrows for name in arrow if name not in chart.labels]
    for name in dict.fromkeys(named):
        chart.labels[name] = name
        chart.floors.setdefault("", []).append(name)
    return chart


def _rows(chart: Chart) -> list[tuple[str, list[str]]]:
    """The rows from the top, each with its floor: inside a floor, a node lies below all that point to it."""
    rows: list[tuple[str, list[str]]] = []
    for floor, names in chart.floors.items():
        inside = [(a, b) for a, b in chart.arrows if a in names and b in names]
        depth = dict.fromkeys(names, 0)
        for _ in names:
            for a, b in inside:
                depth[b] = max(depth[b], depth[a] + 1)
        rows += [(floor, [n for n in names if depth[n] == d]) for d in range(max(depth.values()) + 1)]
    return rows


def _places(rows: list[tuple[str, list[str]]], arrows: list[tuple[str, str]]) -> tuple[dict, dict, float]:
    """The corner of each node and the box of each floor; nodes of a row stand below those that point to them."""
    width = max(len(names) for _, names in rows) * (WIDTH + GAP) + 2 * PADDING
    places: dict[str, tuple[float, float]] = {}
    floors: dict[str, tuple[float, float]] = {}
    y, before = PADDING, None
    for floor, names in rows:
        y += (PADDING + 16) if floor and floor != before else 0
        centre = {n: [places[a][0] for a, b in arrows if b == n and a in places] for n in names}
        ordered = sorted(names, key=lambda n: sum(centre[n]) / len(centre[n]) if centre[n] else width / 2)
        left = (width - len(names) * (WIDTH + GAP) + GAP) / 2
        places |= {n: (left + i * (WIDTH + GAP), y) for i, n in enumerate(ordered)}
        floors[floor] = (floors.get(floor, (y, 0))[0], y + HEIGHT)
        y, before = y + HEIGHT + ROW_GAP, floor
    return places, floors, width


def svg(text: str, title: str) -> str:
    """The drawing of a block of Mermaid, as an element for HTML; `title` is its alternative text."""
    chart = parsed(text)
    places, floors, width = _places(_rows(chart), chart.arrows)
    height = max(y for _, y in places.values()) + HEIGHT + 2 * PADDING
    parts = [
        f'<svg class="flowchart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>',
    ]
    for floor, (top, bottom) in floors.items():
        if floor:
            y, tall = top - PADDING - 14, bottom - top + 2 * PADDING + 14
            parts.append(f'<rect class="floor" x="2" y="{y}" width="{width - 4:.0f}" height="{tall}" rx="6"/>')
            parts.append(f'<text class="title" x="{PADDING}" y="{y + 17}">{escape(floor)}</text>')
    for a, b in chart.arrows:
        (xa, ya), (xb, yb) = places[a], places[b]
        xa, xb, ya = xa + WIDTH / 2, xb + WIDTH / 2, ya + HEIGHT
        bend = (yb - ya) / 2
        parts.append(
            f'<path class="arrow" marker-end="url(#tip)" d="M{xa:.0f} {ya}C{xa:.0f} {ya + bend:.0f} '
            f'{xb:.0f} {yb - bend:.0f} {xb:.0f} {yb - 2}"/>'
        )
    for name, (x, y) in places.items():
        head, _, note = chart.labels[name].partition(": ")
        middle, first = x + WIDTH / 2, y + (HEIGHT / 2 + 5 if not note else 18)
        parts.append(f'<rect class="node" x="{x:.0f}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>')
        parts.append(
            f'<text x="{middle:.0f}" y="{first:.0f}" text-anchor="middle"{_fit(head, 8)}>{escape(head)}</text>'
        )
        if note:
            place = f'x="{middle:.0f}" y="{y + 34}" text-anchor="middle"{_fit(note, 6)}'
            parts.append(f'<text class="note" {place}>{escape(note)}</text>')
    return "".join([*parts, "</svg>"])


def _fit(text: str, letter: float) -> str:
    """Squeezes a text that would leave its box."""
    most = WIDTH - 12
    return f' textLength="{most}" lengthAdjust="spacingAndGlyphs"' if len(text) * letter > most else ""
