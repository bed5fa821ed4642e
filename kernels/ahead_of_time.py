"""Compiles a Triton kernel for a GPU that is not here, and reads what the machine code costs.

Triton's wheel carries ptxas, cuobjdump and nvdisasm, so registers, spills and the instruction mix need no device.
Spills show as STACK, not as LOCAL.
"""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .triton_or_stub import HAS_TRITON, triton

_OPCODE = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Z0-9_.]+)?)")


@dataclass(frozen=True)
class MachineCode:
    """What one kernel became on one compute capability."""

    capability: int  # 90 for sm_90
    registers: int  # per thread
    stack: int  # bytes per thread; not 0 where registers were spilled
    shared: int  # bytes per block
    instructions: Mapping[str, int]  # opcode -> count in the listing


def compile(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], capability: int, num_warps: int = 4
) -> MachineCode:
    """Machine code of a `@triton.jit` kernel.

    Args:
        kernel: the jitted function, not an interpreted one (TRITON_INTERPRET must be off).
        signature: the type of each argument that is no constant: {"a_ptr": "*fp32", "M": "i32"}. Pointers are taken
            to be aligned to 16 bytes.
        constants: the value of each tl.constexpr argument.
        capability: 80, 90 or 100.
        num_warps: warps of a block.

    Raises:
        RuntimeError: triton is missing or interprets; or a tool of its wheel failed, whose words the message has.
    """
    if not HAS_TRITON:
        raise RuntimeError("ahead_of_time.compile: triton is not installed: pip install triton (Linux)")
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(f"ahead_of_time.compile: {kernel!r} is not jitted: unset TRITON_INTERPRET before the import")
    types = dict(signature) | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, (_, kind) in enumerate(ordered.items()) if kind.startswith("*")
    }
    source = triton.compiler.ASTSource(kernel, ordered, dict(constants), aligned)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "-res-usage", cubin.name)
        listing = _tool("nvdisasm", "-c", cubin.name)
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return MachineCode(
        capability,
        figures["REG"],
        figures["STACK"],
        max(figures["SHARED"], compiled.metadata.shared),
        collections.Counter(_OPCODE.findall(listing)),
    )


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ahead_of_time.compile: {name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
