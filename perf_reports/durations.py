"""Durations as text: read from an option, and written for people."""

from __future__ import annotations


def parse_duration(text: str) -> float:
    """Seconds of "8m", "90s", "1.5h", or of a plain number of seconds.

    Raises:
        ValueError: neither.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"the budget is {text!r}; expected a positive time such as 90s, 8m or 1h")
    return seconds


def format_duration(seconds: float | None) -> str:
    """Three digits and a unit: 1.23 ms."""
    if seconds is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:#.3g}".removesuffix(".") + " " + unit
    return f"{seconds / 1e-9:#.3g}".removesuffix(".") + " ns"
