"""A gate for the performance of Triton and Gluon kernels that needs no GPU: somebody else's as well as ours.

A declaration names kernels and calls; a baseline, which is committed, holds what they cost; the gate tells what costs
more than it did. Nothing here imports a kernel of this library.

| tier | measures | where it runs | tolerance |
|---|---|---|---|
| 0 | registers, stack, shared memory, instructions, the innermost loop | ahead of time | instructions 1 % |
| 1 | elements loaded, stored, and passed through arithmetic | Triton's interpreter | none |
| 2 | bytecode, dispatched operators, tensors and bytes allocated by a call | the host | small |
| 3 | launches of a call, and its bytecode up to Triton's launcher | the host | small |
"""

from .baseline import Baseline, BaselineError, Difference
from .declaration import Call, Declaration, DeclarationError, Kernel
from .gate import TIERS, Outcome, check

__all__ = [
    "TIERS",
    "Baseline",
    "BaselineError",
    "Call",
    "Declaration",
    "DeclarationError",
    "Difference",
    "Kernel",
    "Outcome",
    "check",
]
