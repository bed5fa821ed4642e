"""One launch: its program, its memory, and what has happened before what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .clock import WARP, Clock
from .doubts import Doubts
from .instruction import Instruction
from .instructions import Compiler
from .memory import GlobalMemory, Space
from .parser import Program
from .steps import Steps
from .values import KINDS, Approximations, bits_of


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
