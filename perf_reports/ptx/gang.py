"""Blocks that step together: each instruction is made once, for all of their threads that stand at it.

Threads that part go on in the order of their instructions, the hindmost first, and so meet again. What must be reached
by all (a barrier, a shuffle) waits until it is. A loop that comes back to the same registers while no memory has
changed waits for somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clock import WARP
from .faults import CopyInFlight, Misaligned, NotConverged, OutOfBounds, UnknownInstruction
from .instruction import Instruction
from .instructions import Compute
from .launched import Launch
from .marks import Marks
from .memory import Access, Space
from .parser import SPECIAL
from .step import Step
from .values import SIGNED, UNSIGNED, as_type, bits_of, dtype_of

_RUNS, _AT_BARRIER, _AT_WARP, _SPINS, _ENDED = range(5)
_SAME_LOOPS = 64  # times round loops without a change of memory, after which a repetition is looked for


@dataclass
class _Copy:
    """Asynchronous copies that one instruction has begun."""

    lanes: Any
    groups: Any  # of each lane, how many it had closed then
    targets: Any
    sources: Any
    taken: Any
    data: Any
    at: Instruction
    number: int

    def of(self, kept: Any) -> _Copy:
        """Those of some lanes."""
        lanes, groups, targets = self.lanes[kept], self.groups[kept], self.targets[kept]
        return _Copy(
            lanes, groups, targets, self.sources[kept], self.taken[kept], self.data[kept], self.at, self.number
        )


class Gang:
    """The threads of some blocks, and what they hold."""

    def __init__(self, launch: Launch, blocks: list[int]) -> None:
        self.launch, self.steps, self.blocks = launch, launch.steps, np.array(blocks)
        per_block = launch.threads
        self.size = len(blocks) * per_block
        self.block = np.repeat(self.blocks, per_block)
        own = np.tile(np.arange(per_block), len(blocks))
        self.thread = self.block * per_block + own
        self.local = np.repeat(np.arange(len(blocks)), per_block)
        self.regs: list[Any] = [np.uint32(0x7FC0DEAD)] * launch.steps.count
        for name, value in self._special(own).items():
            self.regs[SPECIAL.index(name)] = value
        for name, place in launch.program.registers.items():
            if launch.program.width(name) == 1:
                self.regs[place] = np.bool_(False)
        self.pcs, self.state = np.zeros(self.size, np.int64), np.zeros(self.size, np.uint8)
        self.shared = launch.shared_memory(len(blocks))
        self.copies: list[_Copy] = []
        self.closed = np.zeros(self.size, np.int64)  # groups of copies that a thread has closed
        self.touched = 0  # global accesses so far
        self._loops, self._version = 0, -1
        self._before: dict[int, tuple[list[Any], Any]] = {}
        self._differs: dict[int, int] = {}
        self.marks = Marks(self.size) if launch.follows else None
        self._waits_for = -1  # the version of memory at which the spinning threads looked last

    def _special(self, own: Any) -> dict[str, Any]:
        x, y, z = self.launch.grid
        zero, one = np.uint32(0), np.uint32(1)
        single = len(self.blocks) == 1
        block = self.blocks[0] if single else self.block
        of = {
            "%ctaid.x": block % x, "%ctaid.y": block // x % y, "%ctaid.z": block // (x * y), "%tid.x": own,
            "%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z, "%ntid.x": self.launch.threads,
            "%laneid": own % WARP, "%warpid": own // WARP,
        }  # fmt: skip
        ids = {name: np.asarray(value).astype(np.uint32)[()] for name, value in of.items()}
        return ids | {"%tid.y": zero, "%tid.z": zero, "%ntid.y": one, "%ntid.z": one}

    # -------------------------------------------------------------------------------------------- registers

    def full(self, value: Any) -> Any:
        """A value of each thread."""
        return value if value.shape == (self.size,) else np.broadcast_to(value, self.size)

    def set(self, targets: Any, results: tuple[Any, ...], active: Any, signed: bool = False) -> None:
        """Writes registers where `active`, everywhere if it is None; narrower results are extended to the register."""
        for (place, bits), result in zip(targets, results, strict=True):
            if place < 0:
                continue
            if bits > 1 and result.dtype.itemsize * 8 < bits:
                wide = (SIGNED if signed or result.dtype.kind == "i" else UNSIGNED)[bits]
                result = result.astype(wide)
            if active is not None:
                old = self.regs[place]
                old = old if old.dtype == result.dtype else as_type(old, result.dtype) if bits > 1 else old
                result = np.where(active, result, old)
            self.regs[place] = result

    def threads_of(self, active: Any) -> Any:
        return self.thread if active is None else self.thread[active]

    def lanes_of(self, active: Any) -> Any:
        return np.arange(self.size) if active is None else np.flatnonzero(active)

    # -------------------------------------------------------------------------------------------- stepping

    @property
    def ended(self) -> bool:
        return bool((self.state == _ENDED).all())

    def advance(self, touches: int) -> bool:
        """Steps until that many global accesses are made, or nobody can step; returns whether anybody has."""
        goal, moved = self.touched + touches, False
        while self.touched < goal:
            runs = self.state == _RUNS
            if not runs.any():
                if not self._look_again() and not self._release():
                    return moved
                continue
            moved = True
            if runs.all():
                first = int(self.pcs[0])
                if (self.pcs == first).all():
                    self._run(first, None, -1, goal)
                    continue
            pcs = self.pcs[runs]
            first = int(pcs.min())
            later = pcs[pcs > first]
            self._run(first, runs & (self.pcs == first), int(later.min()) if len(later) else -1, goal)
        return moved

    def _look_again(self) -> bool:
        """Wakes the threads that wait for memory to change, if it has."""
        spins = self.state == _SPINS
        if not spins.any() or self._version_now() == self._waits_for:
            return False
        self.state[spins] = _RUNS
        return True

    def _version_now(self) -> int:
        return self.launch.version + self.shared.version

    def _run(self, pc: int, mask: Any, stop: int, goal: int) -> None:
        """Steps the threads of `mask`, all at `pc`, until they part, wait, or come to `stop`."""
        regs, steps = self.regs, self.steps.list
        while True:
            step = steps[pc]
            active = mask
            if step.guard >= 0:
                active = self._guarded(step, mask)
            kind = step.kind
            if self.marks is not None:
                self.marks.follow(step, mask, active, regs)
            if kind == "compute":
                if active is not False:
                    result = step.compute(regs)  # pyright: ignore[reportOptionalCall]
                    targets = step.targets
                    if len(targets) == 1:
                        place, bits = targets[0]
                        if active is None and (bits == 1 or result.dtype.itemsize * 8 >= bits):
                            regs[place] = result
                        else:
                            self.set(targets, (result,), active)
                    else:
                        self.set(targets, result, active)
            elif kind == "branch":
                if active is False:
                    pass
                elif active is mask:
                    if step.goal <= pc and self._repeats(pc, mask):
                        self._stay(pc, mask, _SPINS)
                        return
                    pc = step.goal
                    if mask is not None:  # others may be at, or behind, where it leads
                        self._stay(pc, mask, _RUNS)
                        return
                    continue
                else:
                    self._stay(pc + 1, mask, _RUNS)
                    self._stay(step.goal, active, _RUNS)
                    return
            elif kind == "memory" or kind == "effect":
                if active is not False:
                    step.effect(self, active, pc)  # pyright: ignore[reportOptionalCall]
                    if step.is_global:
                        self.touched += 1
                        if self.touched >= goal:
                            self._stay(pc + 1, mask, _RUNS)
                            return
            elif kind == "warp":
                if mask is not None and not self._whole(mask):
                    self._stay(pc, mask, _AT_WARP)
                    return
                if active is not False:
                    if active is not None and not self._whole(active):
                        raise NotConverged("a predicate that the lanes of a warp do not share keeps some away", step.at)
                    step.effect(self, active, pc)  # pyright: ignore[reportOptionalCall]
            elif kind == "barrier":
                if active is not mask:
                    raise UnknownInstruction("a barrier under a predicate", step.at)
                if mask is not None:
                    self._stay(pc, mask, _AT_BARRIER)
                    return
                self.launch.clock.meet(self.blocks)
            elif kind == "return" and active is not False:
                if active is not mask:
                    self._stay(pc + 1, mask, _RUNS)
                self._stay(pc, active, _ENDED)
                return
            pc += 1
            if pc == stop:
                self._stay(pc, mask, _RUNS)
                return

    def _guarded(self, step: Step, mask: Any) -> Any:
        """Who makes a step: `mask` itself where all do, False where nobody does."""
        on = self.regs[step.guard]
        if step.at.negated:
            on = ~on
        if on.ndim == 0:
            return mask if on else False
        if mask is None:
            if on.all():
                return None
            return on if on.any() else False
        both = on & mask
        if not both.any():
            return False
        return mask if (both == mask).all() else both

    def _stay(self, pc: int, mask: Any, state: int) -> None:
        if mask is None:
            self.pcs[:], self.state[:] = pc, state
        else:
            self.pcs[mask], self.state[mask] = pc, state

    def _whole(self, active: Any) -> bool:
        warps = active.reshape(-1, WARP)
        return bool((warps.any(1) == warps.all(1)).all())

    def _release(self) -> bool:
        """Lets threads go on that have waited for each other; returns whether there are any."""
        waits = self.state == _AT_WARP
        if waits.any():
            warps, pcs = waits.reshape(-1, WARP), self.pcs.reshape(-1, WARP)
            whole = warps.all(1) & (pcs == pcs[:, :1]).all(1)
            if not whole.any():
                if (self.state == _SPINS).any():
                    return False
                self._not_converged(waits, "are at it with all lanes of their warp")
            self.state[np.repeat(whole.reshape(-1), WARP)] = _RUNS
            return True
        waits = (self.state == _AT_BARRIER).reshape(len(self.blocks), -1)
        if not waits.any():
            return False
        pcs = self.pcs.reshape(len(self.blocks), -1)
        whole = waits.all(1) & (pcs == pcs[:, :1]).all(1)
        if not whole.any():
            if (self.state == _SPINS).any():
                return False
            self._not_converged(waits.reshape(-1), "reach it")
        self.launch.clock.meet(self.blocks[whole])
        lanes = np.repeat(whole, self.launch.threads)
        self.pcs[lanes] += 1
        self.state[lanes] = _RUNS
        return True

    def _not_converged(self, waits: Any, does: str) -> None:
        lane = int(np.flatnonzero(waits)[0])
        block = self.local == self.local[lane]
        there = block & (self.pcs == self.pcs[lane])
        others = np.flatnonzero(block & ~there)
        at = self.steps.list[int(self.pcs[lane])].at
        if len(others):
            other = int(others[0])
            where = (
                "has ended"
                if self.state[other] == _ENDED
                else (f"waits at {self.steps.list[int(self.pcs[other])].at.short_place}")
            )
            tail = f"; thread {other % self.launch.threads} {where}"
        else:
            tail = ""
        count = int(there.sum())
        raise NotConverged(
            f"{count} of the {self.launch.threads} threads of block {int(self.block[lane])} {does}, and not all{tail}",
            at,
        )

    def _repeats(self, pc: int, mask: Any) -> bool:
        """Whether a loop has come back to the same registers, and no memory has changed."""
        version = self._version_now()
        if version != self._version:
            self._version, self._loops = version, 0
            self._before.clear()
            return False
        self._loops += 1
        if self._loops < _SAME_LOOPS:
            return False
        before = self._before.get(pc)
        self._before[pc] = list(self.regs), mask
        if before is None:
            return False
        old, old_mask = before
        if (mask is None) != (old_mask is None) or (mask is not None and not np.array_equal(mask, old_mask)):
            return False
        hint = self._differs.get(pc)
        places = range(len(old)) if hint is None else [hint, *range(len(old))]
        for place in places:
            x, y = old[place], self.regs[place]
            if x is y:
                continue
            if mask is not None and (x.ndim or y.ndim):
                x, y = self.full(x)[mask], self.full(y)[mask]
            if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                self._differs[pc] = place
                return False
        self._waits_for = version
        return True

    def spinning(self) -> Instruction | None:
        """The instruction at which threads wait for memory to change."""
        waits = np.flatnonzero(self.state == _SPINS)
        return self.steps.list[int(self.pcs[waits[0]])].at if len(waits) else None

    # -------------------------------------------------------------------------------------------- memory

    def access(self, lanes: Any, at: Instruction, number: int) -> Access:
        return Access(self.thread[lanes], self.block[lanes], at, number)

    def _own(self, access: Access, index: int) -> int:
        return int(access.threads[index]) % self.launch.threads

    def places(
        self, addresses: Any, lanes: Any, size: int, access: Access, is_global: bool
    ) -> list[tuple[Space, Any, Any]]:
        if is_global:
            return self.launch.memory.find(addresses, size, access)
        good = (addresses >= 0) & (addresses + size <= self.launch.shared)
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            raise OutOfBounds(
                f"thread {self._own(access, bad)} touches {size} bytes at {int(addresses[bad])} of shared memory, of "
                f"which a block has {self.launch.shared} bytes",
                access.at,
            )
        if (addresses % size).any():
            bad = int(np.flatnonzero(addresses % size)[0])
            raise Misaligned(
                f"thread {self._own(access, bad)} touches {size} bytes at {int(addresses[bad])} of shared memory, no "
                f"multiple of {size}",
                access.at,
            )
        return [(self.shared, None, addresses + self.local[lanes] * self.launch.shared_stride)]

    def _meeting_places(self, lanes: Any, addresses: Any, is_global: bool) -> Iterator[tuple[int, int]]:
        """Each thread and the place that it synchronises by; those of shared memory are a block's own."""
        keys = addresses if is_global else addresses - (self.block[lanes] + 1 << 32)
        return zip(self.thread[lanes].tolist(), keys.tolist(), strict=True)

    def load(
        self, address: Compute, bits: int, targets: Any, signed: bool, active: Any, at: Instruction, number: int,
        is_global: bool, is_strong: bool, acquires: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        count = len(targets)
        out = np.zeros((count, self.size), UNSIGNED[bits])
        for space, which, offsets in self.places(addresses, lanes, bits * count // 8, access, is_global):
            chosen = lanes if which is None else lanes[which]
            own = access if which is None else self.access(chosen, at, number)
            if is_strong:
                view = space.atomic(offsets, bits, own)
                out[0, chosen] = view[offsets // (bits // 8)]
            else:
                out[:, chosen] = space.load(offsets, bits, count, own).T
                if self.marks is not None:
                    self.marks.read(targets, chosen, *space.doubtful(offsets, bits, count, own))
        if is_strong:
            if count > 1:
                raise UnknownInstruction("a strong access to a vector", at)
            for thread, where in self._meeting_places(lanes, addresses, is_global):
                self.launch.clock.read(thread, where, acquires)
        if signed:
            out = out.view(SIGNED[bits])
        self.set(targets, tuple(out), active, signed)

    def store(
        self, address: Compute, bits: int, reads: list[Compute], active: Any, at: Instruction, number: int,
        is_global: bool, is_strong: bool, releases: bool, block_only: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        data = np.stack([self.full(read(self.regs))[lanes] for read in reads], 1)
        for space, which, offsets in self.places(addresses, lanes, bits * len(reads) // 8, access, is_global):
            own = access if which is None else self.access(lanes[which], at, number)
            values = data if which is None else data[which]
            if is_strong:
                if len(reads) > 1:
                    raise UnknownInstruction("a strong access to a vector", at)
                view = space.atomic(offsets, bits, own)
                view[offsets // (bits // 8)] = values[:, 0]
                space.changed()
            else:
                space.store(offsets, bits, values, own)
        if is_strong:
            for thread, where in self._meeting_places(lanes, addresses, is_global):
                self.launch.clock.write(thread, where, releases, False, block_only)

    def atomic(
        self, address: Compute, kind: str, change: Callable[..., Any], reads: list[Compute], targets: Any, active: Any,
        at: Instruction, number: int, is_global: bool, acquires: bool, releases: bool, block_only: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        bits, dtype = bits_of(kind), dtype_of(kind)
        operands = [self.full(read(self.regs))[lanes] for read in reads]
        old = np.zeros(self.size, dtype)
        for space, which, offsets in self.places(addresses, lanes, bits // 8, access, is_global):
            own = access if which is None else self.access(lanes[which], at, number)
            chosen = np.arange(len(lanes)) if which is None else which
            view = space.atomic(offsets, bits, own).view(dtype)
            places = offsets // (bits // 8)
            if len(np.unique(places)) == len(places):
                before = view[places]
                view[places] = change(before, *(x[chosen] for x in operands))
                old[lanes[chosen]] = before
                changed = (view[places] != before).any()
            else:
                changed = False
                for index, place in zip(chosen.tolist(), places.tolist(), strict=True):
                    before = view[place : place + 1].copy()
                    view[place : place + 1] = change(before, *(x[index : index + 1] for x in operands))
                    old[lanes[index]] = before[0]
                    changed = changed or view[place] != before[0]
            if changed:
                space.changed()
        clock = self.launch.clock
        for thread, where in self._meeting_places(lanes, addresses, is_global):
            clock.read(thread, where, acquires)
            clock.write(thread, where, releases, True, block_only)
        if targets:
            self.set(targets, (old,), active)

    def matrices(
        self, address: Compute, count: int, transposed: bool, targets: Any, reads: list[Compute], active: Any,
        at: Instruction, number: int,
    ) -> None:  # fmt: skip
        """8 × 8 matrices of 16 bits: lane l names row l % 8 of matrix l // 8, and holds two numbers of row l // 4."""
        lanes = self.lanes_of(active)
        access = self.access(lanes, at, number)
        rows = self.full(address(self.regs)).reshape(-1, WARP)
        own = np.arange(WARP)
        for matrix in range(count):
            starts = rows[:, 8 * matrix : 8 * matrix + 8]
            if (starts[np.unique(lanes // WARP)] % 16).any():
                raise Misaligned("a row of a matrix is at no multiple of 16 bytes of shared memory", at)
            halves = []
            for part in (0, 1):
                row, column = ((own % 4) * 2 + part, own // 4) if transposed else (own // 4, (own % 4) * 2 + part)
                halves.append((starts[:, row] + 2 * column).reshape(-1)[lanes])
            if not transposed:  # two neighbours: one access of 32 bits
                ((space, _, offsets),) = self.places(halves[0], lanes, 4, access, False)
                if targets:
                    out = np.zeros(self.size, np.uint32)
                    out[lanes] = space.load(offsets, 32, 1, access)[:, 0]
                    if self.marks is not None:
                        self.marks.read(targets[matrix : matrix + 1], lanes, *space.doubtful(offsets, 32, 1, access))
                    self.set(targets[matrix : matrix + 1], (out,), active)
                else:
                    space.store(offsets, 32, self.full(reads[matrix](self.regs))[lanes][:, None], access)
                continue
            out = np.zeros(self.size, np.uint32)
            word = None if targets else self.full(reads[matrix](self.regs))[lanes]
            for part, places in enumerate(halves):
                ((space, _, offsets),) = self.places(places, lanes, 2, access, False)
                shift = np.uint32(16 * part)
                if word is None:
                    out[lanes] |= space.load(offsets, 16, 1, access)[:, 0].astype(np.uint32) << shift
                    if self.marks is not None:
                        self.marks.read(targets[matrix : matrix + 1], lanes, *space.doubtful(offsets, 16, 1, access))
                else:
                    space.store(offsets, 16, (word >> shift).astype(np.uint16)[:, None], access)
            if targets:
                self.set(targets[matrix : matrix + 1], (out,), active)

    # -------------------------------------------------------------------------------------------- copies

    def copy(
        self, target: Compute, source: Compute, size: int, taken: Compute, active: Any, at: Instruction, number: int
    ) -> None:
        """Begins a copy of `size` bytes a thread, of which the first `taken` are read and the others are zero."""
        lanes = self.lanes_of(active)
        access = self.access(lanes, at, number)
        targets, sources = (self.full(x(self.regs))[lanes] for x in (target, source))
        counts = self.full(taken(self.regs))[lanes].astype(np.int64)
        data, _ = self._source(lanes, sources, counts, size, at, number)
        ((space, _, offsets),) = self.places(targets, lanes, size, access, False)
        space.begin_copy(offsets, size, access)
        self.copies.append(_Copy(lanes, self.closed[lanes], offsets, sources, counts, data, at, number))

    def _source(
        self, lanes: Any, sources: Any, counts: Any, size: int, at: Instruction, number: int
    ) -> tuple[Any, Any]:
        """The bytes to be copied, and which of them anybody has written."""
        data, written = np.zeros((len(lanes), size), np.uint8), np.ones((len(lanes), size), bool)
        for count in np.unique(counts[counts > 0]).tolist():
            which = np.flatnonzero(counts == count)
            access = self.access(lanes[which], at, number)
            if (sources[which] % size).any():
                raise Misaligned(f"an asynchronous copy of {size} bytes begins at no multiple of {size}", at)
            width = next(w for w in (8, 4, 2, 1) if count % w == 0)
            for space, some, offsets in self.launch.memory.find(sources[which], min(count, width), access):
                chosen = which if some is None else which[some]
                own = self.access(lanes[chosen], at, number)
                self.launch.memory.find(sources[chosen] + (count - width), width, own)  # its end is inside as well
                data[chosen, :count] = space.load(offsets, 8 * width, count // width, own).view(np.uint8)
                written[chosen, :count] = space.written(offsets, count)
                if self.marks is not None and (race := space.raced(offsets, count, own)) is not None:
                    raise race
        return data, written

    def commit(self, active: Any) -> None:
        self.closed[self.lanes_of(active)] += 1

    def wait(self, left: int, active: Any, at: Instruction, number: int) -> None:
        """Lands the copies of all groups but the last `left`."""
        waits = np.zeros(self.size, bool)
        waits[self.lanes_of(active)] = True
        remaining = []
        for copy in self.copies:
            landed = waits[copy.lanes] & (copy.groups < self.closed[copy.lanes] - left)
            if landed.any():
                self._land(copy, landed, at, number)
            if not landed.all():
                remaining.append(copy.of(~landed))
        self.copies = remaining

    def _land(self, copy: _Copy, landed: Any, at: Instruction, number: int) -> None:
        lanes, data = copy.lanes[landed], copy.data[landed]
        now, written = self._source(
            lanes, copy.sources[landed], copy.taken[landed], data.shape[1], copy.at, copy.number
        )
        if (now != data).any():
            raise CopyInFlight("the source of an asynchronous copy has changed before it was waited for", copy.at)
        self.shared.end_copy(copy.targets[landed], data, written, self.access(lanes, at, number))
