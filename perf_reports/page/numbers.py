"""Numbers as the page writes them: three digits and a unit."""

from __future__ import annotations

from collections.abc import Mapping

TIE = 1.05  # a ratio up to which two are told to be level


def times(value: float) -> str:
    """Three digits: 1.50×, 40.7×, 400×."""
    return f"{value:#.3g}".removesuffix(".") + "×" if value < 1000 else f"{value:,.0f}×"


def byte_count(value: float | None) -> str:
    """Three digits and a unit: 4.19 MB, decimal."""
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:#.3g}".removesuffix(".") + " " + unit
    return f"{value:.0f} B"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def ratio(value: float | None) -> str:
    return "–" if value is None else times(value)


def ratio_interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['low']:.3g} – {value['high']:.3g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
