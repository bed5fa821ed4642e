"""Tier 3: the host's work in a call up to Triton's launcher, without a GPU.

Triton's launcher is replaced by a function that does nothing, so a call runs all of its own Python and launches no
kernel: what it would have written is what its memory held. Counted are the launches, and the bytecode instructions
outside of the launcher: what a call costs beyond it. The call is made twice before, so that what it remembers counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from ...triton_or_stub import triton
from . import host
from .declaration import Call


def figures(function: Callable[[], object]) -> dict[str, int]:
    """The launches of a call, and its instructions beside them. Every Triton launch of the process is left out."""
    launches = 0

    def run(kernel: Any, *args: Any, **options: Any) -> None:
        nonlocal launches
        launches += 1

    with mock.patch.object(triton.JITFunction, "run", run):
        for _ in range(host.WARM_UP):
            function()
        launches = 0
        instructions = host.bytecode(function, (run.__code__,))
        made = launches
        instructions = min(instructions, host.bytecode(function, (run.__code__,)))
    return {"bytecode instructions": instructions, "launches": made}


def measure(calls: Sequence[Call], tell: Callable[[str], object] = lambda what: None) -> Iterator[dict[str, Any]]:
    """A record for each call: its figures, or why it failed."""
    return host.records(3, "up to the launcher", figures, calls, tell)
