"""One instruction of PTX, as it stands in the text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One instruction and where it stands."""

    kernel: str
    line: int  # of the PTX text, from 1 on
    source: str  # file:line of the kernel; "" where the PTX does not say
    text: str
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""  # the predicate under which it runs
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        """The opcode and its modifiers."""
        return self.opcode.split(".")

    @property
    def place(self) -> str:
        source = f", {self.source}" if self.source else ""
        return f"{self.kernel}{source} (line {self.line} of the PTX: {self.text})"

    @property
    def short_place(self) -> str:
        return f"{self.source or f'line {self.line}'} ({self.text})"
