"""Runs what Triton compiled for an NVIDIA GPU where there is none, and finds what only a GPU would show.

The PTX of any `@triton.jit` or Gluon kernel is interpreted on CPU tensors, grid and all, its threads as vectors:

    from tropigrad.perf_reports import ptx

    with ptx.emulated(capability=90):
        kernel[grid](x, y, n, BLOCK=128)

What is found is raised, with the kernel, the line of PTX and the line of source: memory read that nobody wrote,
accesses outside of every allocation or misaligned, two threads that touch one place with nothing that orders them
(inside a block and between blocks), barriers that not all threads reach, waits for blocks that are not resident,
results that depend on the order of the blocks, asynchronous copies that nobody waited for. Nothing here imports a
kernel of this library.
"""

from .faults import (
    CopyInFlight,
    Fault,
    Misaligned,
    NotConverged,
    NotResident,
    OrderDependent,
    OutOfBounds,
    Race,
    UnknownInstruction,
    UnwrittenRead,
    WaitsForever,
)
from .launch import UNWRITTEN, Made, emulated, run
from .schedule import ORDERS, TOGETHER, Order

__all__ = [
    "ORDERS",
    "TOGETHER",
    "UNWRITTEN",
    "CopyInFlight",
    "Fault",
    "Made",
    "Misaligned",
    "NotConverged",
    "NotResident",
    "Order",
    "OrderDependent",
    "OutOfBounds",
    "Race",
    "UnknownInstruction",
    "UnwrittenRead",
    "WaitsForever",
    "emulated",
    "run",
]
