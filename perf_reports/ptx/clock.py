"""Tells what happened before what: barriers inside a block, releases and acquires between threads.

A block counts its synchronisations; an access is stamped with the count of its block. An access of thread s at stamp e
happened before what thread t does now where s is t; where both are of one block and its last barrier came after e; or
where t has acquired, directly or through others, what was released after e. What a thread knows of the others is one
bound a block, of all its threads, and bounds of single threads that have released.

Source: NVIDIA, Parallel Thread Execution ISA, "Memory Consistency Model"; Flanagan and Freund, FastTrack: efficient and
precise dynamic race detection (2009).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .doubts import SEVERAL, Doubts

WARP = 32


@dataclass
class Knowledge:
    """The stamps below which all accesses are known: of each block, and of single threads."""

    blocks: dict[int, int] = field(default_factory=dict)
    threads: dict[int, int] = field(default_factory=dict)

    def join(self, other: Knowledge) -> None:
        for mine, theirs in ((self.blocks, other.blocks), (self.threads, other.threads)):
            for name, bound in theirs.items():
                mine[name] = max(mine.get(name, 0), bound)

    def copy(self) -> Knowledge:
        return Knowledge(dict(self.blocks), dict(self.threads))


@dataclass
class _Released:
    """Knowledge that can be acquired from an address."""

    knowledge: Knowledge
    block: int | None  # the only block that may acquire it; None: all


class Clock:
    """The happens-before order of one launch."""

    def __init__(self, blocks: int, threads: int) -> None:
        self.threads, self.doubts = threads, Doubts()
        self.now = np.zeros(blocks, np.int32)
        self.since_block = np.zeros(blocks, np.int32)
        self.since_warp = np.zeros(blocks * (threads // WARP), np.int32)
        self._warps_meet = False
        self._of_block: dict[int, Knowledge] = {}  # known to all threads of a block
        self._of_thread: dict[int, Knowledge] = {}  # beyond that
        self._at: dict[int, _Released] = {}
        self._fenced: dict[int, Knowledge] = {}  # what a thread's coming relaxed writes release
        self._seen: dict[int, Knowledge] = {}  # what its next fence acquires

    def before(self, thread: Any, block: Any, other: Any, other_block: Any, stamp: Any) -> Any:
        """Whether accesses of the `other` threads at `stamp` happened before what `thread` does now."""
        mine = other_block == block
        known = (other == thread) | mine & (stamp < self.since_block[block])
        if self._warps_meet:
            warp = thread // WARP
            known |= mine & (other // WARP == warp) & (other != SEVERAL) & (stamp < self.since_warp[warp])
        if (self._of_block or self._of_thread) and not known.all():
            for i in np.flatnonzero(~known):
                known[i] = self._knows(int(thread[i]), int(block[i]), int(other[i]), int(other_block[i]), int(stamp[i]))
        return known

    def _knows(self, thread: int, block: int, other: int, other_block: int, stamp: int) -> bool:
        for knowledge in (self._of_block.get(block), self._of_thread.get(thread)):
            if knowledge is not None:
                bound = max(knowledge.blocks.get(other_block, 0), knowledge.threads.get(other, 0))
                if stamp < bound:
                    return True
        return False

    def meet(self, blocks: Any) -> None:
        """All threads of these blocks have reached a barrier."""
        self.now[blocks] += 1
        self.since_block[blocks] = self.now[blocks]
        if self._of_thread:
            chosen = set(np.asarray(blocks).tolist())
            for thread in [t for t in self._of_thread if t // self.threads in chosen]:
                self._of_block.setdefault(thread // self.threads, Knowledge()).join(self._of_thread.pop(thread))

    def meet_warps(self, warps: Any) -> None:
        """All threads of these warps have reached a barrier of the warp's."""
        blocks = np.unique(warps * WARP // self.threads)
        self._warps_meet = True
        self.now[blocks] += 1
        self.since_warp[warps] = self.now[warps * WARP // self.threads]

    def _own(self, thread: int) -> Knowledge:
        """All that a thread knows, its own accesses included; what it does from now on is not."""
        block = thread // self.threads
        own = Knowledge({block: int(self.since_block[block])}, {thread: int(self.now[block]) + 1})
        for knowledge in (self._of_block.get(block), self._of_thread.get(thread)):
            if knowledge is not None:
                own.join(knowledge)
        self.now[block] += 1
        return own

    def fence(self, thread: int) -> None:
        if seen := self._seen.pop(thread, None):
            self._of_thread.setdefault(thread, Knowledge()).join(seen)
        self._fenced[thread] = self._own(thread)

    def read(self, thread: int, address: int, acquires: bool) -> None:
        """An atomic or volatile read."""
        found = self._at.get(address)
        if found is None or found.block not in (None, thread // self.threads):
            return
        into = self._of_thread if acquires else self._seen
        into.setdefault(thread, Knowledge()).join(found.knowledge)

    def write(self, thread: int, address: int, releases: bool, reads: bool, block_only: bool) -> None:
        """An atomic or volatile write. One that reads as well keeps what others have released there."""
        mine = self._own(thread) if releases else self._fenced.get(thread)
        found = self._at.get(address)
        knowledge = found.knowledge.copy() if found is not None and reads else Knowledge()
        if mine is not None:
            knowledge.join(mine)
        only = thread // self.threads if block_only else found.block if found is not None and reads else None
        if knowledge.blocks:
            self._at[address] = _Released(knowledge, only)
        else:
            self._at.pop(address, None)
