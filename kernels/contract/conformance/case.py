"""The form of a conformance case: a check of one promise of one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class NotHere(Exception):
    """This machine cannot run the case; the message says why."""


@dataclass(frozen=True)
class Case:
    """One check of one op: `run()` passes, or raises AssertionError or NotHere."""

    op: str
    promise: str
    id: str
    run: Callable[[], None]
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.op}-{self.promise}-{self.id}"
