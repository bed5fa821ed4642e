"""Reads of what nobody wrote, and reads that race inside a block: whether it matters what they read.

Where a tensor has fewer elements than the block has threads, Triton keeps copies of an element in several threads: all
load it, and one stores. A copy that is late reads the new value. That is a fault if the value goes anywhere, and none
if it does not: mostly a copy's result is thrown away by the very predicate that keeps it from storing. So the first run
only notes which reads race. A second run, the same in all else, marks what they give, and whatever is computed from it;
a mark that comes to a write, to another thread or to a branch is the fault. It is the same for memory that nobody has
written: padding may be read, and copied, as long as nothing follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .faults import Race

SEVERAL = -1  # in the place of a thread: more than one of its block
_Key = tuple[int, int, int]  # number of the space, block, and the stamp of its last barrier


@dataclass
class Doubts:
    """Places that are read and written by different threads of a block between two barriers."""

    unwritten: bool = False  # whether somebody has read what nobody wrote

    found: dict[_Key, dict[int, tuple[int, Race]]] = field(default_factory=dict)  # place -> its writer, and the race

    def __bool__(self) -> bool:
        return self.unwritten or bool(self.found)

    def note(self, space: int, places: Any, blocks: Any, since: Any, writers: Any, race: Race) -> None:
        for place, block, writer in zip(places.tolist(), blocks.tolist(), writers.tolist(), strict=True):
            known = self.found.setdefault((space, block, int(since[block])), {})
            before = known.get(place)
            if before is None:
                known[place] = writer, race
            elif before[0] != writer:
                known[place] = SEVERAL, before[1]

    def about(self, space: int, places: Any, threads: Any, blocks: Any, since: Any) -> tuple[Any, Race | None]:
        """Whether what each thread reads at each place is in doubt: somebody else writes there meanwhile."""
        doubtful, race = np.zeros(len(places), bool), None
        for block in np.unique(blocks).tolist():
            known = self.found.get((space, block, int(since[block])))
            if not known:
                continue
            for index in np.flatnonzero((blocks == block) & np.isin(places, list(known))).tolist():
                writer, why = known[int(places[index])]
                if writer != int(threads[index]):
                    doubtful[index], race = True, race or why
        return doubtful, race
