"""Global and shared memory that know who has touched each place, and whether anybody wrote it.

A place is as many bytes as the smallest access of the kernel, at most four. Of each place stand the last write, the
reads since then, and the atomic accesses since then; a new access is compared with them (clock.py). Two threads may
write the same bits to one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .clock import Clock
from .doubts import SEVERAL
from .faults import CopyInFlight, Fault, Misaligned, OutOfBounds, Race, UnwrittenRead
from .instruction import Instruction
from .values import UNSIGNED

_NOBODY, _BLOCKS = -1, -2  # in the place of a block: none, several
_LARGEST_LOG = 1 << 22  # places
_LARGEST_TABLE = 1 << 27  # blocks times places


@dataclass(frozen=True)
class Access:
    """Who does something now: a thread and its block for each address, and the instruction."""

    threads: Any
    blocks: Any
    at: Instruction
    number: int  # of the instruction in its program

    def of_places(self, count: int) -> Access:
        if count == 1:
            return self
        return Access(np.repeat(self.threads, count), np.repeat(self.blocks, count), self.at, self.number)


class Visited(NamedTuple):
    """Visits that are not in order: the index in the access, the thread or SEVERAL, its block, the instruction."""

    index: Any
    thread: Any
    block: Any
    number: Any


_NOTHING = Visited(*(np.zeros(0, np.int64) for _ in range(4)))


class Visits:
    """Who has read, or atomically changed, each place since it was written: a thread, several, or several blocks."""

    def __init__(self, places: int, clock: Clock) -> None:
        self._clock, self._places = clock, places
        self.block = np.full(places, _NOBODY, np.int32)
        self.thread, self.stamp, self.number = (np.zeros(places, np.int32) for _ in range(3))
        self._table: tuple[Any, Any] | None = None  # of places that several blocks visit: stamp and thread, by block
        self._is_small = len(clock.now) * places <= _LARGEST_TABLE

    def note(self, places: Any, access: Access, stamps: Any) -> None:
        threads, blocks = access.threads, access.blocks
        before, thread = self.block[places], self.thread[places]
        since = self._clock.since_block
        several = (before == blocks) & (self.stamp[places] >= since[blocks]) & (thread != threads)
        elsewhere = (before != blocks) & (before != _NOBODY)
        if elsewhere.any():
            self._spread(places[elsewhere], threads[elsewhere], blocks[elsewhere], stamps[elsewhere])
            self.number[places[elsewhere]] = access.number
            if elsewhere.all():
                return
            here = ~elsewhere
            several, places, threads, blocks, stamps = (x[here] for x in (several, places, threads, blocks, stamps))
        self.block[places], self.thread[places], self.stamp[places] = blocks, threads, stamps
        self.number[places] = access.number
        # another thread of this very instruction
        others = self.block[places] != blocks
        if others.any():
            self._spread(places[others], threads[others], blocks[others], stamps[others])
        shared = several | (self.thread[places] != threads)
        shared = shared & (self.block[places] != _BLOCKS)
        self.thread[places[shared]] = SEVERAL

    def _spread(self, places: Any, threads: Any, blocks: Any, stamps: Any) -> None:
        """Enters places that more than one block visits into the table."""
        if not self._is_small:
            self.block[places] = _NOBODY  # too large to be told apart: such reads are not held against writes
            return
        if self._table is None:
            shape = len(self._clock.now), self._places
            self._table = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
        stamp, thread = self._table
        first = places[self.block[places] != _BLOCKS]
        stamp[:, first] = -1
        stamp[self.block[first], first], thread[self.block[first], first] = self.stamp[first], self.thread[first]
        self.block[places] = _BLOCKS
        since = self._clock.since_block
        shared = (stamp[blocks, places] >= since[blocks]) & (thread[blocks, places] != threads)
        stamp[blocks, places], thread[blocks, places] = stamps, threads
        shared |= thread[blocks, places] != threads
        thread[blocks[shared], places[shared]] = SEVERAL

    def unordered(self, places: Any, access: Access) -> Visited:
        """The visits that did not happen before the access."""
        block = self.block[places]
        if (block == _NOBODY).all():
            return _NOTHING
        found = []
        single = np.flatnonzero(block >= 0)
        if len(single):
            at = places[single]
            ordered = self._clock.before(
                access.threads[single], access.blocks[single], self.thread[at], block[single], self.stamp[at]
            )
            if not ordered.all():
                bad = np.flatnonzero(~ordered)
                found.append(Visited(single[bad], self.thread[at[bad]], block[single[bad]], self.number[at[bad]]))
        many = np.flatnonzero(block == _BLOCKS)
        if len(many) and self._table is not None:
            stamps, threads = self._table
            at = places[many]
            for other in np.flatnonzero((stamps[:, at] >= 0).any(1)).tolist():
                visited = np.flatnonzero(stamps[other, at] >= 0)
                spots, which = at[visited], many[visited]
                ordered = self._clock.before(
                    access.threads[which], access.blocks[which], threads[other, spots],
                    np.full(len(spots), other), stamps[other, spots],
                )  # fmt: skip
                if not ordered.all():
                    bad = np.flatnonzero(~ordered)
                    blocks = np.full(len(bad), other)
                    found.append(Visited(which[bad], threads[other, spots[bad]], blocks, self.number[spots[bad]]))
        return Visited(*map(np.concatenate, zip(*found, strict=True))) if found else _NOTHING

    def forget(self, places: Any) -> None:
        self.block[places] = _NOBODY


class Space:
    """A piece of memory: an allocation of global memory, or the shared memory of some blocks."""

    def __init__(
        self, name: str, data: Any, grain: int, clock: Clock, instructions: Sequence[Instruction], written: Any = None,
        start: int = 0, period: int = 0, number: int = -1,
    ) -> None:  # fmt: skip
        """data: uint8, as long as a multiple of 16. written: of each byte, whether it holds anything; None for all.

        start: bytes of padding before the first. period: bytes of each block, of shared memory. number: of an
        allocation, its place among them.
        """
        self._start, self._period, self.number = start, period or len(data), number
        self.name, self.data, self.grain = name, data, grain
        self.version = 0  # of what it holds
        self._clock, self._instructions = clock, instructions
        self._views = {8: data} | {8 * size: data.view(UNSIGNED[8 * size]) for size in (2, 4, 8)}
        places = len(data) // grain
        self._written = None if written is None else written.reshape(-1, grain).all(1)
        self._writer = np.full(places, _NOBODY, np.int32)
        self._stamp, self._number = np.zeros(places, np.int32), np.zeros(places, np.int32)
        self._flying: Any = None  # of each place, whether a copy to it is under way
        self._reads, self._atomics = Visits(places, clock), None
        self._log: list[tuple[Any, Access, Any]] | None = []  # reads of what nobody has written in this launch yet
        self._logged = 0

    # -------------------------------------------------------------------------------------------- accesses

    def load(self, offsets: Any, bits: int, count: int, access: Access) -> Any:
        """`count` neighbours of so many bits at each offset, [len(offsets), count]."""
        places, many = self._touch(offsets, bits * count // 8, access)
        self._read(places, many)
        first = offsets // (bits // 8)
        return self._views[bits][first[:, None] + np.arange(count)] if count > 1 else self._views[bits][first][:, None]

    def store(self, offsets: Any, bits: int, data: Any, access: Access) -> None:
        """data: [len(offsets), count], unsigned."""
        count = data.shape[1]
        places, many = self._touch(offsets, bits * count // 8, access)
        view = self._views[bits]
        at = (offsets // (bits // 8))[:, None] + np.arange(count)
        before = view[at]
        view[at] = data
        kept = view[at]
        if (kept != data).any():
            bad = int(np.flatnonzero((kept != data).any(1))[0])
            raise Race(
                f"threads write different values to {self._where(int(offsets[bad]) // self.grain)} by one instruction, "
                f"thread {self._who(int(access.threads[bad]))} among them",
                access.at,
            )
        changes = kept != before
        if changes.any():
            self.version += 1
        self._written_by(places, many, changes, bits)

    def atomic(self, offsets: Any, bits: int, access: Access) -> Any:
        """Notes an atomic access; returns the numbers at these offsets, to be read and written one by one."""
        places, many = self._touch(offsets, bits // 8, access)
        if (fault := self._unwritten(places, many)[1]) is not None:
            raise fault
        self._open()
        self._check_write(places, many, None, atomic=True)
        self._raise("changes atomically", places, many, "reads", self._reads.unordered(places, many))
        if self._atomics is None:
            self._atomics = Visits(len(self._writer), self._clock)
        self._atomics.note(places, many, self._clock.now[many.blocks])
        return self._views[bits]

    def changed(self) -> None:
        self.version += 1

    def begin_copy(self, offsets: Any, size: int, access: Access) -> Any:
        """Places that an asynchronous copy will write: nobody may touch them until it is waited for."""
        places, many = self._touch(offsets, size, access)
        self._open()
        self._check_write(places, many, np.ones(len(places), bool))
        self._raise("copies to", places, many, "reads", self._reads.unordered(places, many))
        if self._flying is None:
            self._flying = np.zeros(len(self._writer), bool)
        self._flying[places] = True
        return places

    def end_copy(self, offsets: Any, data: Any, written: Any, access: Access) -> None:
        """data: [len(offsets), bytes], and which of these anybody has written."""
        size = data.shape[1]
        places, many = self._places(offsets, size), access.of_places(size // self.grain)
        if self._flying is not None:
            self._flying[places] = False
        self.data[offsets[:, None] + np.arange(size)] = data
        self.version += 1
        self._mark(places, many)
        if self._written is not None and not written.all():
            self._written[places[~written.reshape(-1, self.grain).all(1)]] = False

    # -------------------------------------------------------------------------------------------- checks

    def _places(self, offsets: Any, size: int) -> Any:
        count = size // self.grain
        first = offsets // self.grain
        return first if count == 1 else (first[:, None] + np.arange(count)).reshape(-1)

    def _touch(self, offsets: Any, size: int, access: Access) -> tuple[Any, Access]:
        places = self._places(offsets, size)
        many = access.of_places(size // self.grain)
        if self._flying is not None and self._flying[places].any():
            bad = int(np.flatnonzero(self._flying[places])[0])
            raise CopyInFlight(
                f"thread {self._who(int(many.threads[bad]))} touches {self._where(int(places[bad]))}, to which an "
                "asynchronous copy is under way that was not waited for",
                access.at,
            )
        return places, many

    def _open(self) -> None:
        """From the first write on, reads are entered where they happen."""
        if self._log is not None:
            log, self._log = self._log, None
            for places, access, stamps in log:
                self._reads.note(places, access, stamps)

    def _unwritten(self, places: Any, many: Access) -> tuple[Any, UnwrittenRead | None]:
        """Which places nobody has written, and the fault that using them is."""
        if self._written is None or self._written[places].all():
            return np.zeros(len(places), bool), None
        unwritten = ~self._written[places]
        bad = int(np.flatnonzero(unwritten)[0])
        who, where = self._who(int(many.threads[bad])), self._where(int(places[bad]))
        return unwritten, UnwrittenRead(f"thread {who} reads {where}, which nobody has written", many.at)

    def _read(self, places: Any, many: Access) -> None:
        if self._unwritten(places, many)[1] is not None:
            self._clock.doubts.unwritten = True
        stamps = self._clock.now[many.blocks]
        if self._log is not None:
            self._log.append((places, many, stamps))
            self._logged += len(places)
            if self._logged > _LARGEST_LOG:
                self._open()
            return
        self._check_write(places, many, np.ones(len(places), bool), doing="reads")
        if self._atomics is not None:
            self._raise("reads", places, many, "changes atomically", self._atomics.unordered(places, many))
        self._reads.note(places, many, stamps)

    def _check_write(
        self, places: Any, many: Access, matters: Any, doing: str = "writes", atomic: bool = False
    ) -> None:
        """Compares with the last write of each place, where it matters; an atomic one does not to another."""
        writer = self._writer[places]
        known = writer != _NOBODY
        if not known.any():
            return
        stamp = self._stamp[places]
        blocks = writer // self._clock.threads
        ordered = ~known | self._clock.before(many.threads, many.blocks, writer, blocks, stamp)
        if matters is not None:
            ordered |= ~matters
        if not ordered.all():
            bad = np.flatnonzero(~ordered)
            found = Visited(bad, writer[bad], blocks[bad], self._number[places[bad]])
            if doing == "reads":
                found = self._doubt(doing, places, many, "writes", found, writer[bad])
            self._raise("changes atomically" if atomic else doing, places, many, "writes", found)

    def _written_by(self, places: Any, many: Access, changes: Any, bits: int) -> None:
        self._open()
        width = bits // 8
        per_value = width // self.grain
        changed = np.repeat(changes.reshape(-1), per_value) if per_value > 1 else changes.reshape(-1)
        self._check_write(places, many, changed)
        found = self._reads.unordered(places, many)
        if len(found.index):
            found = self._doubt("writes", places, many, "reads", found, many.threads[found.index])
            self._raise("writes", places, many, "reads", found)
        if self._atomics is not None:
            self._raise("writes", places, many, "changes atomically", self._atomics.unordered(places, many))
        self._mark(places, many)

    def _mark(self, places: Any, many: Access) -> None:
        self._open()
        self._writer[places], self._stamp[places] = many.threads, self._clock.now[many.blocks]
        self._number[places] = many.number
        self._reads.forget(places)
        if self._atomics is not None:
            self._atomics.forget(places)
        if self._written is not None:
            self._written[places] = True

    def writer_of(self, byte: int) -> Instruction | None:
        """The instruction that has changed a byte last, plainly or atomically."""
        place = byte // self.grain
        if self._atomics is not None and self._atomics.block[place] != _NOBODY:
            return self._instructions[int(self._atomics.number[place])]
        return None if self._writer[place] == _NOBODY else self._instructions[int(self._number[place])]

    # -------------------------------------------------------------------------------------------- words

    def _who(self, thread: int) -> str:
        block, own = divmod(thread, self._clock.threads)
        return f"{own} of block {block}" if len(self._clock.now) > 1 else str(own)

    def _where(self, place: int) -> str:
        return f"byte {place * self.grain % self._period - self._start} of {self.name}"

    def _doubt(self, doing: str, places: Any, many: Access, did: str, found: Visited, writers: Any) -> Visited:
        """Notes what races with a read of the same block; returns the others."""
        near = found.block == many.blocks[found.index]
        if near.any():
            first = int(np.flatnonzero(near)[0])
            race = self._race(
                doing, places, many, did, *(int(x[first]) for x in (found.index, found.thread, found.number))
            )
            index = found.index[near]
            self._clock.doubts.note(
                self.number, places[index], many.blocks[index], self._clock.since_block, writers[near], race
            )
        return Visited(*(x[~near] for x in found))

    def doubtful(self, offsets: Any, bits: int, count: int, access: Access) -> tuple[Any, Fault | None]:
        """Tells which numbers that a load gives, or halves of them, are in doubt, and the fault that using one is.

        In doubt is what nobody has written, and what another thread of the block writes now. [len(offsets), count, 2 or
        1].
        """
        size = bits * count // 8
        many, places = access.of_places(size // self.grain), self._places(offsets, size)
        unwritten, fault = self._unwritten(places, many)
        raced, race = self._clock.doubts.about(self.number, places, many.threads, many.blocks, self._clock.since_block)
        found = (unwritten | raced).reshape(len(offsets), count, -1)
        if bits == 32 and self.grain == 2:
            return found, race or fault
        if bits == 32 and self.grain == 1:
            return found.reshape(len(offsets), count, 2, 2).any(3), race or fault
        return found.any(2, keepdims=True), race or fault

    def raced(self, offsets: Any, size: int, access: Access) -> Race | None:
        """The race with a read, if there is one."""
        many, places = access.of_places(size // self.grain), self._places(offsets, size)
        return self._clock.doubts.about(self.number, places, many.threads, many.blocks, self._clock.since_block)[1]

    def written(self, offsets: Any, size: int) -> Any:
        """Tells of each byte whether anybody has written it: [len(offsets), size]."""
        if self._written is None:
            return np.ones((len(offsets), size), bool)
        return self._written[(offsets[:, None] + np.arange(size)) // self.grain]

    def _raise(self, doing: str, places: Any, many: Access, did: str, found: Visited) -> None:
        if len(found.index):
            raise self._race(doing, places, many, did, *(int(x[0]) for x in (found.index, found.thread, found.number)))

    def _race(self, doing: str, places: Any, many: Access, did: str, index: int, thread: int, number: int) -> Race:
        """The access of `index` meets what another thread did by the instruction of this number."""
        who, block = int(many.threads[index]), int(many.blocks[index])
        whom = "several threads of a block" if thread == SEVERAL else f"thread {self._who(thread)}"
        is_near = thread == SEVERAL or thread // self._clock.threads == block
        between = "no barrier" if is_near else "no release and acquire"
        return Race(
            f"thread {self._who(who)} {doing} {self._where(int(places[index]))}, which {whom} {did} at "
            f"{self._instructions[number].short_place}, and {between} is between",
            many.at,
        )


class GlobalMemory:
    """Allocations far from each other, so that what misses one hits none."""

    _APART = 36

    def __init__(self, spaces: Sequence[Space], starts: Sequence[int], sizes: Sequence[int]) -> None:
        """starts: of each, the bytes of padding before it; sizes: its own bytes."""
        self.spaces = list(spaces)
        self._start, self._size = np.array([*starts, 0], np.int64), np.array([*sizes, 0], np.int64)

    def address(self, space: int, offset: int) -> int:
        return (space + 1 << self._APART) + int(self._start[space]) + offset

    @property
    def version(self) -> int:
        return sum(space.version for space in self.spaces)

    def find(self, addresses: Any, size: int, access: Access) -> list[tuple[Space, Any, Any]]:
        """(space, the indices of the addresses in it or None for all, their offsets).

        Raises:
            OutOfBounds, Misaligned: an address is in no space, or not a multiple of `size`.
        """
        number = (addresses >> self._APART) - 1
        offsets = addresses & ((1 << self._APART) - 1)
        inside = (number >= 0) & (number < len(self.spaces))
        number = np.where(inside, number, len(self.spaces))
        own = offsets - self._start[number]
        good = inside & (own >= 0) & (own + size <= self._size[number])
        if not good.all():
            raise OutOfBounds(self._missed(int(np.flatnonzero(~good)[0]), addresses, size, access), access.at)
        if (addresses % size).any():
            bad = int(np.flatnonzero(addresses % size)[0])
            raise Misaligned(
                f"thread {self._who(access, bad)} touches {size} bytes at byte {int(own[bad])} of "
                f"{self.spaces[int(number[bad])].name}, whose address is no multiple of {size}",
                access.at,
            )
        if (number == number[0]).all():
            return [(self.spaces[int(number[0])], None, offsets)]
        found = []
        for one in np.unique(number).tolist():
            which = np.flatnonzero(number == one)
            found.append((self.spaces[one], which, offsets[which]))
        return found

    def _who(self, access: Access, index: int) -> str:
        return f"{int(access.threads[index])} (block {int(access.blocks[index])})"

    def _missed(self, bad: int, addresses: Any, size: int, access: Access) -> str:
        address = int(addresses[bad])
        # the nearest allocation, from which the pointer was meant to start
        near = min(max((address + (1 << self._APART - 1) >> self._APART) - 1, 0), len(self.spaces) - 1)
        what = "there is no allocation"
        if self.spaces:
            offset = address - self.address(near, 0)
            name, length = self.spaces[near].name, int(self._size[near])
            what = f"the nearest allocation is {name} of {length} bytes, at whose byte {offset} it begins"
        return f"thread {self._who(access, bad)} touches {size} bytes outside of every allocation; {what}"
