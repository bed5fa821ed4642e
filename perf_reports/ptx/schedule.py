"""Runs the blocks of a launch in an order: one after the other, or some at a time, in turns of memory operations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .clock import WARP, Clock
from .doubts import Doubts
from .faults import NotConverged, NotResident, WaitsForever
from .gang import Gang, Steps
from .instructions import Compiler
from .memory import GlobalMemory, Space
from .parser import Instruction, Program
from .values import KINDS, Approximations, bits_of

Name = Literal["together", "forward", "backward", "shuffled", "interleaved"]
_TOGETHER = 4096  # threads that step together
_VERY_LONG = 1 << 62


@dataclass(frozen=True)
class Order:
    """An order of the blocks.

    together: as many as fit step in one, instruction by instruction; the quickest to run.
    forward, backward, shuffled: one block after the other.
    interleaved: `resident` blocks at a time, each for a random number of global memory operations.

    Args:
        name: one of these.
        seed: of what is random.
        resident: how many blocks have a place at a time. A block gets one when another has ended, as on a GPU. None:
            all, of "together" and "interleaved"; one, of the others.
    """

    name: Name = "together"
    seed: int = 0
    resident: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}" if self.name in ("shuffled", "interleaved") else self.name


TOGETHER = Order()
ORDERS = (Order("forward"), Order("backward"), Order("shuffled", 1), Order("interleaved", 2))


class Launch:
    """One kernel on its memory."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        parameters: Sequence[Any],
        allocations: Sequence[tuple[str, Any, int, int, Any]],
        approximate: Approximations,
        doubts: Doubts | None = None,
    ) -> None:
        """doubts: of an earlier run, what is followed in this one.

        allocations: name, bytes with padding, the padding before, the size, and which bytes are written (or None).
        """
        self.program, self.grid, self.threads, self.shared = program, grid, threads, shared
        self.shared_stride = -(-shared // 128) * 128
        self.parameters = parameters
        if threads % WARP:
            raise ValueError(f"ptx: {threads} threads a block; expected a multiple of {WARP}")
        self.blocks = grid[0] * grid[1] * grid[2]
        self.clock = Clock(self.blocks, threads)
        self.follows = doubts is not None
        if doubts is not None:
            self.clock.doubts = doubts
        self._instructions = program.instructions
        self._grains = {name: _grain(program.instructions, name) for name in ("global", "shared")}
        spaces = [
            Space(name, data, self._grains["global"], self.clock, program.instructions, written, start, number=number)
            for number, (name, data, start, _, written) in enumerate(allocations)
        ]
        self.memory = GlobalMemory(spaces, [item[2] for item in allocations], [item[3] for item in allocations])
        self.steps = Steps(program, Compiler(program, approximate))

    @property
    def version(self) -> int:
        return self.memory.version

    def shared_memory(self, blocks: int) -> Space:
        size = max(self.shared_stride * blocks, 16)
        data, written = np.zeros(size, np.uint8), np.zeros(size, bool)
        return Space(
            "shared memory",
            data,
            self._grains["shared"],
            self.clock,
            self._instructions,
            written,
            0,
            self.shared_stride,
        )

    def run(self, order: Order) -> None:
        """Run all blocks.

        Raises:
            Fault: one of the faults of faults.py.
        """
        with np.errstate(all="ignore"):
            random_numbers = random.Random(order.seed)
            waiting = list(range(self.blocks))
            if order.name == "backward":
                waiting.reverse()
            elif order.name == "shuffled":
                random_numbers.shuffle(waiting)
            if order.name == "together":
                self._run_together(waiting, order.resident)
            elif order.name == "interleaved":
                self._run_in_turns(waiting, order.resident or self.blocks, random_numbers)
            else:
                self._run_in_turns(waiting, order.resident or 1, None)

    def _run_together(self, waiting: list[int], resident: int | None) -> None:
        most = min(resident or self.blocks, max(1, _TOGETHER // self.threads))
        if resident is None and self.blocks > most:
            # more than step together: those that wait for others are kept, and looked at again
            gangs: list[Gang] = []
            for blocks in _parts(waiting, most):
                gangs.append(Gang(self, blocks))
                gangs = [gang for gang in gangs if not self._finish(gang)]
            self._until_all_end(gangs)
            return
        for blocks in _parts(waiting, most):
            gang = Gang(self, blocks)
            if not self._finish(gang):
                self._stuck([gang], more=blocks[-1] != waiting[-1])

    def _finish(self, gang: Gang) -> bool:
        while gang.advance(_VERY_LONG) and not gang.ended:
            pass
        if gang.ended:
            self._check_copies(gang)
        return gang.ended

    def _until_all_end(self, gangs: list[Gang]) -> None:
        while gangs:
            moved = False
            for gang in list(gangs):
                moved |= gang.advance(_VERY_LONG)
                if gang.ended:
                    self._check_copies(gang)
                    gangs.remove(gang)
            if gangs and not moved:
                self._stuck(gangs, more=False)

    def _run_in_turns(self, waiting: list[int], resident: int, numbers: random.Random | None) -> None:
        """Blocks one by one where there are no random numbers; else in turns."""
        live: list[Gang] = []
        idle = 0
        while waiting or live:
            while waiting and len(live) < resident:
                live.append(Gang(self, [waiting.pop(0)]))
            gang = live[idle % len(live)] if numbers is None or idle else numbers.choice(live)
            touches = _VERY_LONG if numbers is None else numbers.choice((1, 1, 2, 5, 20, 100))
            moved = gang.advance(touches)
            if gang.ended:
                self._check_copies(gang)
                live.remove(gang)
                idle = 0
            elif moved:
                idle = 0
            else:
                idle += 1
                if idle > len(live):
                    self._stuck(live, more=bool(waiting))

    def _check_copies(self, gang: Gang) -> None:
        if gang.copies:
            copy = gang.copies[0]
            raise NotConverged("a block ends while an asynchronous copy is under way that was not waited for", copy.at)

    def _stuck(self, gangs: Sequence[Gang], more: bool) -> None:
        at: Instruction | None = next((at for gang in gangs if (at := gang.spinning()) is not None), None)
        blocks = sorted(int(block) for gang in gangs for block in gang.blocks)
        named = ", ".join(map(str, blocks[:4])) + ("…" if len(blocks) > 4 else "")
        if more:
            raise NotResident(
                f"block {named} waits for memory to change, and only blocks that are not resident could change it: "
                "they get a place when a block ends",
                at,
            )
        raise WaitsForever(f"block {named} waits for memory to change, and no block is left that could change it", at)


def _parts(blocks: list[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(blocks), size):
        yield blocks[begin : begin + size]


def _grain(instructions: Sequence[Instruction], space: str) -> int:
    """The bytes of the smallest access to a kind of memory, at most 4."""
    sizes = [4]
    for at in instructions:
        if at.parts[0] in ("ld", "st", "atom", "red") and any(part.startswith(space) for part in at.parts):
            kinds = [part for part in at.parts if KINDS.match(part)]
            sizes += [bits_of(kinds[-1]) // 8] if kinds else []
        elif at.parts[0] in ("ldmatrix", "stmatrix") and "trans" in at.parts and space == "shared":
            sizes.append(2)
    return min(sizes)
