"""How hidden units are shared out among the classes of a network that starts from its data."""

from __future__ import annotations

from torch import Tensor


def units_by_class(counts: Tensor, hidden: int) -> list[int]:
    """Hidden units in proportion to the class sizes (Sainte-Laguë), at least one, at most one for each sample.

    Where there are more units than samples, the first class takes those that are left.
    """
    units = counts.new_ones(len(counts))
    for _ in range(hidden - len(counts)):
        claims = counts.double() / (2 * units + 1)
        claims[units == counts] = -1.0
        units[claims.argmax()] += 1
    return units.tolist()
