"""The items of a rehearsal: a few real ones of each stage on small inputs, and among them some that fail on purpose."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from time import sleep
from typing import Any

from ... import autotune
from ...autotune.tunable import Sizes, find
from ..measuring import benchmark
from .bench import FIRST, Bench, Tell
from .item import Answer, Item

OPS = (FIRST, "soft_threshold", "log_shift", "pack_bits")
# values on every backend; of the others some have torch import its compiler, which takes each process two seconds
PROMISES = ("strides", "threads")
STAGES = ("conformance", "tuning", "speed")  # that failures are planted in
HANG_S = 1.5  # after which what hangs on purpose is killed
POISON = "CUDA error: an illegal memory access was encountered (rehearsed)"

# fault -> (how it is to end, words that must tell of it)
FAULTS: Mapping[str, tuple[str, str]] = {
    "is wrong": ("failed", "AssertionError: 7 of 9 differ (rehearsed)"),
    "hangs": ("lost", f"no end after {HANG_S:g} s"),
    "kills its process": ("lost", "killed by SIGKILL" if os.name == "posix" else "its process ended with"),
    "poisons the device": ("lost", POISON),
}


def name_of(stage: str, fault: str) -> str:
    """The name of a planted item."""
    return f"planted in {stage}: it {fault}"


class PlantedBench(Bench):
    """Bench on a CPU, whose C++ and interpreted kernels stand in for a GPU's.

    Args:
        store: a folder for what is tuned; the user's own configs are left alone.
    """

    def __init__(self, store: str) -> None:
        super().__init__(OPS)
        self._store = store
        self._poison = ""

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "store": self._store}

    def plan(self) -> list[Item]:
        items = []
        for stage, of_stage in groupby(self._few(super().plan()), key=lambda item: item.stage):
            real = list(of_stage)
            items += _with_failures(stage, real) if stage in STAGES else real
        return items

    def _few(self, items: Iterable[Item]) -> Iterator[Item]:
        """All that is measured; of the cases one of each op and promise, and as many through Triton's interpreter."""
        seen = set()
        for item in items:
            if item.kind == "case":
                case = self._cases[item.name]
                is_wanted = item.stage == "conformance" or case.id.startswith("triton-")
                kind = item.stage, case.op, case.promise
                if not is_wanted or case.slow or case.promise not in PROMISES or kind in seen:
                    continue
                seen.add(kind)
            if item.kind != "cases":
                yield item

    def works(self) -> Mapping[str, Callable[[Item, float, Tell], Answer]]:
        return {**super().works(), "planted": self._fail}

    def why_lost(self) -> str:
        return self._poison

    def store(self) -> autotune.Store:
        return autotune.Store(Path(self._store))

    def keep_ceilings(self, measured: Sequence[Mapping[str, Any]]) -> None:
        pass  # figures of a rehearsal are no reason for anything

    def _tuned_at(self, op: str) -> Mapping[str, Sizes]:
        small = find(op).interpreted
        return {"small": small} if small else {}

    def _timed(self) -> list[benchmark.Cell]:
        return [benchmark.Cell(s, s.workloads[0], "small", s.small_shapes[-1]) for s in self.specs if s.workloads]

    def _fail(self, item: Item, share_s: float, tell: Tell) -> Answer:
        (fault,) = item.about
        if fault == "hangs":
            sleep(3600)
        elif fault == "kills its process":
            os.kill(os.getpid(), signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        elif fault == "poisons the device":
            self._poison = POISON  # and whatever came next in this process would fail
            raise RuntimeError(POISON)
        raise AssertionError("7 of 9 differ (rehearsed)")


def _with_failures(stage: str, items: Sequence[Item]) -> Iterator[Item]:
    """Each fault after another of the first items, as one of that item's op."""
    faults = list(FAULTS)
    for place, item in enumerate(items):
        yield item
        if place < len(faults):
            yield _planted(stage, faults[place], item.group)
    for fault in faults[len(items) :]:
        yield _planted(stage, fault, "planted")


def _planted(stage: str, fault: str, group: str) -> Item:
    return Item(stage, "planted", name_of(stage, fault), group, (fault,), limit_s=HANG_S if fault == "hangs" else 0.0)
