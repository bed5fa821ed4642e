"""The faults that running a kernel's PTX finds, each with the kernel, the line of PTX and the line of source."""

from __future__ import annotations

from .instruction import Instruction


class Fault(RuntimeError):
    """Something that no kernel may do. `instruction` did it, the last of those involved."""

    def __init__(self, message: str, instruction: Instruction | None = None, named: Instruction | None = None) -> None:
        """named: the instruction, where the message names it already."""
        self.instruction = instruction or named
        super().__init__(f"{instruction.place}: {message}" if instruction else message)


class UnwrittenRead(Fault):
    """Something follows from shared or global memory that nobody has written."""


class OutOfBounds(Fault, IndexError):
    """An access touches bytes that belong to no allocation."""


class Misaligned(Fault):
    """An address is no multiple of what is read or written there."""


class Race(Fault):
    """Two threads touch one place, one of them writes, nothing says which comes first, and it matters."""


class CopyInFlight(Race):
    """An asynchronous copy is read, or overwritten, before its thread has waited for it."""


class NotConverged(Fault):
    """Some threads wait at a barrier, or at a shuffle, that the others never reach."""


class WaitsForever(Fault):
    """Every thread waits for a change of memory, and nobody is left to make it."""


class NotResident(WaitsForever):
    """A block waits for one that gets its place only when a block ends."""


class OrderDependent(Fault):
    """The results are not the same in every order of the blocks."""


class UnknownInstruction(Fault, NotImplementedError):
    """An instruction, or a form of one, that is not interpreted here."""
