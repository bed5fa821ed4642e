"""Runs the blocks of a launch in an order: one after the other, or some at a time, in turns of memory operations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .faults import NotConverged, NotResident, WaitsForever
from .gang import Gang
from .instruction import Instruction
from .launched import Launch

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


def run(launch: Launch, order: Order) -> None:
    """Run all blocks of a launch.

    Raises:
        Fault: one of the faults of faults.py.
    """
    with np.errstate(all="ignore"):
        random_numbers = random.Random(order.seed)
        waiting = list(range(launch.blocks))
        if order.name == "backward":
            waiting.reverse()
        elif order.name == "shuffled":
            random_numbers.shuffle(waiting)
        if order.name == "together":
            _run_together(launch, waiting, order.resident)
        elif order.name == "interleaved":
            _run_in_turns(launch, waiting, order.resident or launch.blocks, random_numbers)
        else:
            _run_in_turns(launch, waiting, order.resident or 1, None)


def _run_together(launch: Launch, waiting: list[int], resident: int | None) -> None:
    most = min(resident or launch.blocks, max(1, _TOGETHER // launch.threads))
    if resident is None and launch.blocks > most:
        # more than step together: those that wait for others are kept, and looked at again
        gangs: list[Gang] = []
        for blocks in _parts(waiting, most):
            gangs.append(Gang(launch, blocks))
            gangs = [gang for gang in gangs if not _finish(gang)]
        _until_all_end(gangs)
        return
    for blocks in _parts(waiting, most):
        gang = Gang(launch, blocks)
        if not _finish(gang):
            _stuck([gang], more=blocks[-1] != waiting[-1])


def _finish(gang: Gang) -> bool:
    while gang.advance(_VERY_LONG) and not gang.ended:
        pass
    if gang.ended:
        _check_copies(gang)
    return gang.ended


def _until_all_end(gangs: list[Gang]) -> None:
    while gangs:
        moved = False
        for gang in list(gangs):
            moved |= gang.advance(_VERY_LONG)
            if gang.ended:
                _check_copies(gang)
                gangs.remove(gang)
        if gangs and not moved:
            _stuck(gangs, more=False)


def _run_in_turns(launch: Launch, waiting: list[int], resident: int, numbers: random.Random | None) -> None:
    """Blocks one by one where there are no random numbers; else in turns."""
    live: list[Gang] = []
    idle = 0
    while waiting or live:
        while waiting and len(live) < resident:
            live.append(Gang(launch, [waiting.pop(0)]))
        gang = live[idle % len(live)] if numbers is None or idle else numbers.choice(live)
        touches = _VERY_LONG if numbers is None else numbers.choice((1, 1, 2, 5, 20, 100))
        moved = gang.advance(touches)
        if gang.ended:
            _check_copies(gang)
            live.remove(gang)
            idle = 0
        elif moved:
            idle = 0
        else:
            idle += 1
            if idle > len(live):
                _stuck(live, more=bool(waiting))


def _check_copies(gang: Gang) -> None:
    if gang.copies:
        copy = gang.copies[0]
        raise NotConverged("a block ends while an asynchronous copy is under way that was not waited for", copy.at)


def _stuck(gangs: Sequence[Gang], more: bool) -> None:
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
