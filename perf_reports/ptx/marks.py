"""Follows values in doubt from register to register, in the second run that doubts.py speaks of.

A mark has two bits, for the halves of 32 bits: of two packed numbers one may be in doubt and the other not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .clock import WARP
from .faults import Fault
from .instruction import Instruction
from .step import Step

_LOW, _HIGH, _BOTH = (np.uint8(bits) for bits in (1, 2, 3))
_PACKED = ("add", "sub", "mul", "fma", "max", "min", "neg", "abs")
_BITWISE = ("and", "or", "xor", "not", "lop3")


def rule_of(at: Instruction) -> str:
    """How the marks of an instruction's operands become those of its results."""
    name, kind = at.parts[0], at.parts[-1]
    if kind in ("f16x2", "bf16x2", "s16x2", "u16x2"):
        return "halves" if name in _PACKED else "unpack" if name == "setp" else "whole"
    if "bf16x2" in at.parts or "f16x2" in at.parts:  # cvt of two numbers, the upper first
        return "pack backwards"
    if kind == "pred" and name in ("and", "or"):
        return "conjunction"
    if name == "mov" and kind == "b32" and "{" in at.operands[0]:
        return "unpack"
    if name == "mov" and kind == "b32" and "{" in at.operands[1]:
        return "pack"
    if name == "mov" or (kind == "b32" and name in _BITWISE):
        return "halves"
    if kind in ("s32", "u32", "b32"):
        if name == "selp":
            return "select"
        if name in ("add", "sub") or (name in ("mul", "mad") and "lo" in at.parts):
            return "upwards"  # carries go from the lower half to the upper
        if name == "cvt" and at.parts[1][1:] == "16":
            return "narrow"
        if name == "shr" and at.operands[2] == "16" and kind != "s32":
            return "down"
        if name == "shl" and at.operands[2] == "16":
            return "up"
        if name == "prmt" and at.operands[3][0].isdigit():
            return "bytes"
    return "whole"


class Marks:
    """Names for each register the threads whose value is in doubt, or was computed from one that is."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._of: dict[int, tuple[Any, Fault]] = {}

    def read(self, targets: tuple[tuple[int, int], ...], lanes: Any, doubtful: Any, fault: Fault | None) -> None:
        """A load has given values in doubt: doubtful [lanes, targets, halves or 1]."""
        if fault is None:
            return
        for number, (place, bits) in enumerate(targets):
            own = doubtful[:, number]
            halves = own[:, 0] * _LOW | own[:, 1] * _HIGH if own.shape[1] == 2 else own.any(1) * _BOTH
            marks = np.zeros(self._size, np.uint8)
            marks[lanes] = halves if bits > 16 else (halves != 0) * _LOW
            self._add(place, marks, fault)

    def _add(self, place: int, marks: Any, fault: Fault) -> None:
        if not marks.any():
            return
        before = self._of.get(place)
        self._of[place] = (marks, fault) if before is None else (before[0] | marks, before[1])

    def follow(self, step: Step, mask: Any, active: Any, regs: list[Any]) -> None:
        """Marks what a step computes from marked values; raises where they decide something.

        mask: the threads at the step; active: those that its guard lets make it, False for none.
        """
        if not self._of:
            return
        everybody = np.ones(self._size, bool)
        here = everybody if mask is None else mask
        makes = everybody if active is None else ~everybody if active is False else active
        guarded = self._of.get(step.guard)
        may_make = None if guarded is None else (guarded[0] != 0) & here
        if may_make is not None and not may_make.any():
            may_make = None
        is_load = step.at.parts[0] == "ld"
        if may_make is not None and guarded is not None:
            if step.kind not in ("compute", "effect") and not is_load:
                raise _used(guarded[1], step)
            makes = makes | may_make
        faults = [marked[1] for place in step.sources if (marked := self._of.get(place)) is not None]
        results = self._results(step, regs) if faults else [np.zeros(self._size, np.uint8) for _ in step.targets]
        if faults:
            reached = self._any(step.sources, makes)
            if reached and ((step.kind == "memory" and not is_load) or (step.kind == "warp" and not step.targets)):
                raise _used(faults[0], step)
            if step.kind == "warp":
                marked = np.zeros(self._size, bool)
                for place in step.sources:
                    if place in self._of:
                        marked |= self._of[place][0] != 0
                of_warp = np.repeat((marked & makes).reshape(-1, WARP).any(1), WARP)
                results = [of_warp * _BOTH for _ in step.targets]
        for (place, bits), result in zip(step.targets, results, strict=True):
            if place < 0:
                continue
            before = self._of.pop(place, None)
            result = np.where(makes, result, 0).astype(np.uint8)
            if may_make is not None:
                result = result | may_make * _BOTH
            if bits <= 16:
                result = (result != 0) * _LOW
            if before is not None:
                self._add(place, np.where(makes, np.uint8(0), before[0]), before[1])
            if faults or guarded is not None:
                self._add(place, result, faults[0] if faults else guarded[1])  # pyright: ignore[reportOptionalSubscript]

    def _any(self, places: tuple[int, ...], makes: Any) -> bool:
        return any(((self._of[place][0] != 0) & makes).any() for place in places if place in self._of)

    def _mark(self, place: int) -> Any:
        marked = self._of.get(place)
        return np.zeros(self._size, np.uint8) if marked is None else marked[0]

    def _results(self, step: Step, regs: list[Any]) -> list[Any]:
        """The marks of each result, by the rule of the instruction."""
        marks = [self._mark(place) for place in step.sources]
        every = np.bitwise_or.reduce(marks)
        match step.rule:
            case "halves":
                return [every]
            case "unpack":
                return [every & _LOW, every >> 1]
            case "pack" | "pack backwards":
                first, second = (self._mark(place) for place in step.ordered[:2])
                low, high = (first, second) if step.rule == "pack" else (second, first)
                return [(low != 0) * _LOW | (high != 0) * _HIGH]
            case "select":
                a, b, chosen = (self._mark(place) for place in step.ordered[:3])
                return [a | b | (chosen != 0) * _BOTH]
            case "upwards":
                return [np.where(every & _LOW, _BOTH, every)]
            case "narrow":
                return [every & _LOW]
            case "down":
                return [every >> 1]
            case "up":
                return [every << 1 & _BOTH]
            case "bytes":
                a, b = (self._mark(place) for place in step.ordered[:2])
                selector = int(step.at.operands[3].rstrip("U"), 0)
                result = np.zeros(self._size, np.uint8)
                for byte in range(4):
                    chosen = selector >> 4 * byte & 7
                    half = ((a if chosen < 4 else b) >> (chosen % 4 // 2)) & _LOW
                    result |= half << (byte // 2)
                return [result]
            case "conjunction":  # an operand decides where the others do not decide alone
                decided = np.zeros(self._size, np.uint8)
                for place in step.sources:
                    others = [other for other in step.sources if other != place]
                    matters = np.ones(self._size, bool)
                    for other in others:
                        leaves_open = regs[other] if step.at.parts[0] == "and" else ~regs[other]
                        matters &= leaves_open | (self._mark(other) != 0)
                    decided |= (self._mark(place) != 0) & matters
                return [decided]
        return [(every != 0) * _BOTH for _ in step.targets]


def _used(fault: Fault, step: Step) -> Fault:
    return type(fault)(f"{fault}. What is read so decides {step.at.short_place}", None, fault.instruction)
