"""The declaration of a gate: kernels and calls, listed in a file of the project that is gated.

from tropigrad.perf_reports.gate import Call, Kernel

GATE = [
    Kernel(softmax_kernel, {"x_ptr": "*fp32", "y_ptr": "*fp32", "columns": "i32"}, {"BLOCK": 1024}),
    Call("softmax", lambda: softmax(torch.ones(4, 1000))),
]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGETS = (80, 90, 100, "gfx942")
NAME = "GATE"


class DeclarationError(ValueError):
    """A declaration that cannot be read, or that names nothing; the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, compiled for targets that need not be there.

    Attributes:
        function: `@triton.jit` or `@gluon.jit`.
        signature: the type of each argument that is no constant, as triton.compile takes it: {"x_ptr": "*fp32"}.
        constants: the value of each tl.constexpr argument.
        targets: compute capabilities, and AMD architectures by name.
        warps: of a block.
        name: by which the baseline knows it; that of the function by default. Two of one name differ by their variant.
        variant: what sets this one apart from others of its name.
        fuses: whether a product and a sum may become one instruction.
    """

    function: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Any] = field(default_factory=dict)
    targets: Sequence[int | str] = TARGETS
    warps: int = 4
    name: str = ""
    variant: str = ""
    fuses: bool = True

    @property
    def key(self) -> str:
        name = self.name or getattr(self.function, "__name__", repr(self.function))
        return f"{name} [{self.variant}]" if self.variant else name


@dataclass(frozen=True)
class Call:
    """A call on the CPU: counted as it is interpreted (tier 1), as the host runs it (2), and up to the launcher (3).

    Attributes:
        name: by which the baseline knows it.
        function: what is called, without arguments. Inputs are best made before, so that they are not counted.
        tiers: of 1, 2 and 3, those that it is measured by.
    """

    name: str
    function: Callable[[], object]
    tiers: Sequence[int] = (1, 2)

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class Declaration:
    """The kernels and calls that a file declares."""

    path: Path
    kernels: tuple[Kernel, ...]
    calls: tuple[Call, ...]

    @classmethod
    def read(cls, path: Path, tier: int) -> Declaration:
        """Run the file and take its list GATE; where GATE is a function, it is called with the tier.

        Raises:
            DeclarationError: no such file, no list GATE in it, an entry of another kind, two of one name, or none at
                all; and whatever the file itself raises, named.
        """
        if not path.is_file():
            raise DeclarationError(f"{path}: no such file; expected a declaration, a Python file with a list {NAME}")
        sys.path.insert(0, str(path.resolve().parent))
        try:
            entries = runpy.run_path(str(path)).get(NAME)
            entries = entries(tier) if callable(entries) else entries
        except Exception as error:
            raise DeclarationError(f"{path}: it raises {type(error).__name__}: {error}") from error
        finally:
            sys.path.pop(0)
        if not isinstance(entries, (list, tuple)):
            raise DeclarationError(f"{path}: {NAME} is {type(entries).__name__}; expected a list of Kernel and Call")
        if not entries:
            raise DeclarationError(f"{path}: {NAME} is empty: it names no kernel; expected a Kernel or a Call")
        for entry in entries:
            if not isinstance(entry, (Kernel, Call)):
                raise DeclarationError(f"{path}: {NAME} holds a {type(entry).__name__}; expected Kernel and Call")
        kernels = tuple(x for x in entries if isinstance(x, Kernel))
        calls = tuple(x for x in entries if isinstance(x, Call))
        for kind, group in (("kernels", kernels), ("calls", calls)):
            keys = [x.key for x in group]
            if twice := sorted({key for key in keys if keys.count(key) > 1}):
                raise DeclarationError(
                    f"{path}: two {kind} are called {twice[0]!r}; expected a name each, or variant= to tell them apart"
                )
        return cls(path, kernels, calls)
