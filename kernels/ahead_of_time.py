"""Compiles a Triton or Gluon kernel for a GPU that is not here, and reads what the machine code costs.

Triton's wheel carries ptxas, cuobjdump and nvdisasm, so registers, spills and the instruction mix need no device.
Spills show as STACK, not as LOCAL.
"""

from __future__ import annotations

import collections
import importlib
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .triton_or_stub import HAS_TRITON, triton

_OPCODE = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Z0-9_.]+)?)")
_LABEL = re.compile(r"(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")


@dataclass(frozen=True)
class MachineCode:
    """What one kernel became on one compute capability."""

    capability: int  # 90 for sm_90
    registers: int  # per thread
    stack: int  # bytes per thread; not 0 where registers were spilled
    shared: int  # bytes per block
    instructions: Mapping[str, int]  # opcode -> count in the listing
    loop: Mapping[str, int]  # the same for the longest loop that has no loop inside; empty where there is none


def compile(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    divisible: Collection[str] = (),
) -> MachineCode:
    """Machine code of a `@triton.jit` or `@gluon.jit` kernel.

    Args:
        kernel: the jitted function, not an interpreted one (TRITON_INTERPRET must be off).
        signature: the type of each argument that is no constant: {"a_ptr": "*fp32", "M": "i32"}. Pointers are taken
            to be aligned to 16 bytes.
        constants: the value of each tl.constexpr argument.
        capability: 80, 90 or 100.
        num_warps: warps of a block.
        divisible: the integer arguments to be taken as multiples of 16, which a launch finds out by itself.

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
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(ordered.items())
        if kind.startswith("*") or name in divisible
    }
    source_type = triton.compiler.ASTSource
    if kernel.is_gluon():
        source_type = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource
    source = source_type(kernel, ordered, dict(constants), aligned)
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
        collections.Counter(_OPCODE.findall(_longest_inner_loop(listing))),
    )


def _longest_inner_loop(listing: str) -> str:
    """The most lines between a label and a branch back to it that has no other such pair inside."""
    lines = listing.splitlines()
    labels, loops = {}, []
    for end, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = end
        elif (branch := _BRANCH.search(line)) and branch[1] in labels:
            loops.append((labels[branch[1]], end))
    inner = [(start, end) for start, end in loops if not any(start <= other[0] and other[1] < end for other in loops)]
    start, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return "\n".join(lines[start : end + 1])


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ahead_of_time.compile: {name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
