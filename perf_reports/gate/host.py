"""Tier 2: the host's work in a call, in units that no other process on the machine can change.

The call is made twice to fill caches, then once for each figure: the bytecode instructions that Python runs, the
operators that torch dispatches, the tensors that these allocate and their bytes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .declaration import Call

WARM_UP = 2


def bytecode(function: Callable[[], object], without: Container[CodeType] = ()) -> int:
    """How many bytecode instructions Python runs in one call, but for those of some functions, and what these call."""
    count = 0
    is_without = False

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        nonlocal count, is_without
        if is_without:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if frame.f_code in without:
            frame.f_trace_opcodes, is_without = False, True
            return leave
        count += event == "opcode"
        return trace

    def leave(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal is_without
        is_without = event != "return"
        return leave

    before = sys.gettrace()
    is_collecting = gc.isenabled()
    gc.disable()  # a finaliser that runs by chance would be counted
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        if is_collecting:
            gc.enable()
    return count


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors in what an operator takes or returns."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class _Dispatches(TorchDispatchMode):
    """Counts operators, and the storages that are new in their results."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.tensors = self.bytes = 0
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # alive until the end, so that no address comes twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for given in _tensors((args, kwargs)):
            if given.layout == torch.strided:
                self._seen.add(given.untyped_storage().data_ptr())
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        for made in _tensors(result):
            if made.layout == torch.strided:
                storage = made.untyped_storage()
                if storage.nbytes() and storage.data_ptr() not in self._seen:
                    self._seen.add(storage.data_ptr())
                    self._kept.append(storage)
                    self.tensors += 1
                    self.bytes += storage.nbytes()
        return result


def figures(function: Callable[[], object]) -> dict[str, int]:
    for _ in range(WARM_UP):
        function()
    instructions = min(bytecode(function) for _ in range(2))
    with _Dispatches() as seen:
        function()
    return {
        "bytecode instructions": instructions,
        "dispatched operators": seen.operators,
        "tensors allocated": seen.tensors,
        "bytes allocated": seen.bytes,
    }


def records(
    tier: int,
    words: str,
    figures: Callable[[Callable[[], object]], dict[str, int]],
    calls: Sequence[Call],
    tell: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """A record for each call of a tier on the host: its figures, or why they failed. `words` say what is measured."""
    for call in calls:
        if tier not in call.tiers:
            continue
        tell(f"{call.key}, {words}")
        record: dict[str, Any] = {"tier": tier, "of": call.key, "target": "host"}
        try:
            yield record | {"figures": figures(call.function)}
        except Exception as error:
            yield record | {"error": f"{type(error).__name__}: {error}"}


def measure(calls: Sequence[Call], tell: Callable[[str], object] = lambda what: None) -> Iterator[dict[str, Any]]:
    """A record for each call: the host's work, or why it failed."""
    return records(2, "on the host", figures, calls, tell)
