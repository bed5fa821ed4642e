"""One step of a compiled program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .instruction import Instruction
from .instructions import Compute


@dataclass(frozen=True)
class Step:
    """A compiled instruction."""

    kind: str  # "compute", "branch", "return", "barrier", "warp", "memory", "effect"
    at: Instruction
    guard: int  # register; -1 for none
    targets: tuple[tuple[int, int], ...] = ()  # registers written, with their bits
    compute: Compute | None = None
    effect: Callable[[Any, Any, int], None] | None = None  # of a gang, the threads, and the step's number
    goal: int = -1  # of a branch
    is_global: bool = False
    sources: tuple[int, ...] = ()  # registers read, the guard's not among them
    ordered: tuple[int, ...] = ()  # by operand, -1 of a number
    rule: str = "whole"  # of marks.py
