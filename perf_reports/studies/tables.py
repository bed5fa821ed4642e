"""Tables of the studies: Markdown, and mean ± standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def spread(values: Sequence[float], written: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean ± standard deviation; the value alone where there is one, or all are equal."""
    mean = written(statistics.mean(values))
    return mean if len(set(values)) == 1 else f"{mean} ± {written(statistics.stdev(values))}"
