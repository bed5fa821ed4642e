"""Compiles a Triton or Gluon kernel for a GPU that is not here, and reads what the machine code costs.

Triton's wheel carries ptxas, cuobjdump and nvdisasm, and LLVM's assembler and linker for AMD, so registers, spills and
the instruction mix need no device. Spills show as STACK, not as LOCAL; for AMD, as the private segment.
"""

from __future__ import annotations

import collections
import importlib
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from unittest import mock

from ...triton_or_stub import HAS_TRITON, triton
from .cost import MachineCode


class _Syntax(NamedTuple):
    """The patterns that read a listing of machine code."""

    opcode: re.Pattern[str]
    label: re.Pattern[str]
    branch: re.Pattern[str]


_NVIDIA = _Syntax(
    re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Z0-9_.]+)?)"),
    re.compile(r"(\.L_\w+):"),
    re.compile(r"\bBRA\b.*`\((\.L_\w+)\)"),
)
_AMD = _Syntax(
    re.compile(r"^\t([a-z]+_\w+)", re.MULTILINE),
    re.compile(r"(\.LBB\w+):"),
    re.compile(r"\bs_c?branch\w*\s+(\.LBB\w+)"),
)


def compile(
    kernel: Any,
    signature: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    capability: int | str,
    num_warps: int = 4,
    divisible: Collection[str] = (),
    maxnreg: int | None = None,
    enable_fp_fusion: bool = True,
) -> MachineCode:
    """Machine code of a `@triton.jit` or `@gluon.jit` kernel.

    Args:
        kernel: the jitted function, not an interpreted one (TRITON_INTERPRET must be off).
        signature: the type of each argument that is no constant: {"a_ptr": "*fp32", "M": "i32"}; of a tuple, those of
            its elements. Pointers are taken to be aligned to 16 bytes.
        constants: the value of each tl.constexpr argument.
        capability: 80, 90 or 100; or an AMD architecture, such as "gfx942".
        num_warps: warps of a block.
        divisible: the integer arguments to be taken as multiples of 16, which a launch finds out by itself.
        maxnreg: the most registers that a thread may take; by default the assembler decides.
        enable_fp_fusion: whether a product and a sum may become one instruction.

    Raises:
        RuntimeError: triton is missing or interprets; or a tool of its wheel failed, whose words the message has.
    """
    if not HAS_TRITON:
        raise RuntimeError("ahead_of_time.compile: triton is not installed: pip install triton (Linux)")
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(f"ahead_of_time.compile: {kernel!r} is not jitted: unset TRITON_INTERPRET before the import")
    types = dict(signature) | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    places = {(index,): (name, kind) for index, (name, kind) in enumerate(ordered.items()) if isinstance(kind, str)}
    for index, (name, kinds) in enumerate(ordered.items()):
        if isinstance(kinds, tuple):
            places |= {(index, element): (name, kind) for element, kind in enumerate(kinds)}
    aligned = {
        place: [["tt.divisibility", 16]]
        for place, (name, kind) in places.items()
        if kind.startswith("*") or name in divisible
    }
    source_type = triton.compiler.ASTSource
    if kernel.is_gluon():
        source_type = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource
    source = source_type(kernel, ordered, dict(constants), aligned)
    family = ("cuda", capability, 32)
    if isinstance(capability, str):
        family = ("hip", capability, 64 if capability.startswith("gfx9") else 32)  # RDNA's waves are half of CDNA's
    target = triton.backends.compiler.GPUTarget(*family)
    options = {"num_warps": num_warps, "maxnreg": maxnreg, "enable_fp_fusion": enable_fp_fusion}
    compiled = triton.compile(source, target=target, options=options)
    return machine_code(compiled, capability)


def machine_code(compiled: Any, capability: int | str) -> MachineCode:
    """The costs of what triton.compile returned."""
    if "amdgcn" in compiled.asm:
        listing = usage = compiled.asm["amdgcn"]
        syntax, names = _AMD, ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size")
    else:
        syntax, names = _NVIDIA, ("REG", "STACK", "SHARED")
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            usage = _tool("cuobjdump", "-res-usage", cubin.name)
            listing = _tool("nvdisasm", "-c", cubin.name)
    figures = {name: int(value) for name, value in re.findall(rf"\b({'|'.join(names)}):\s*(\d+)", usage)}
    registers, stack, shared = (figures[name] for name in names)
    return MachineCode(
        capability,
        registers,
        stack,
        max(shared, compiled.metadata.shared),
        collections.Counter(syntax.opcode.findall(listing)),
        collections.Counter(syntax.opcode.findall(_longest_inner_loop(listing, syntax))),
        compiled.asm.get("ttir", compiled.asm["ttgir"]),
    )


@dataclass(frozen=True)
class Plan:
    """A launch that was not made: what it would compile, and its size."""

    function: str
    name: str  # equal for launches of the same machine code
    blocks: int
    threads: int  # of a block
    capability: int | str
    compile: Callable[[], Any] = field(repr=False)  # into Triton's own cache, where the launch finds it


def plan(call: Callable[[], Any]) -> list[Plan]:
    """The launches of Triton and Gluon kernels that a call would make, in order. None is made, nothing is compiled.

    The call sees uninitialised results, and must do nothing with them on the host.
    """
    plans: list[Plan] = []
    run, blocks = triton.JITFunction.run, [0]

    def planned(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        plans.append(_plan(fn.jit_function, compile, blocks[0]))
        return True  # Triton then neither compiles nor launches

    def counted(self, *args, grid: Any, warmup: bool, **kwargs):
        sizes: Any = grid(kwargs) if callable(grid) else grid
        blocks[0] = math.prod(sizes)
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        if compiled is not None:  # by an earlier call
            options, target = compiled.metadata, compiled.metadata.target
            threads = options.num_warps * target.warp_size
            name = f"{options.name}-{compiled.hash}"
            plans.append(Plan(options.name, name, blocks[0], threads, target.arch, lambda: compiled))

    with mock.patch.object(triton.JITFunction, "run", counted), triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = planned
        call()
    return plans


def _plan(function: Any, compile: Mapping[str, Any], blocks: int) -> Plan:
    specialization = json.loads(compile["specialization_data"])
    # JSON made lists of its tuples
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in specialization["options"].items()
    }
    target = triton.runtime.driver.active.get_current_target()

    def compiled() -> Any:
        source = function.ASTSource(function, compile["signature"], compile["constants"], compile["configs"][0])
        return triton.compile(source, target=target, options=options)

    name = f"{function.__name__}-{compile['key']}"
    return Plan(function.__name__, name, blocks, options["num_warps"] * target.warp_size, target.arch, compiled)


def compile_all(plans: Sequence[Plan], deadline: float = math.inf) -> dict[str, MachineCode | str]:
    """Plan.name -> its machine code, or why it does not compile; on all cores.

    deadline: the time of perf_counter() from which on no compilation begins. The plans that are left have no entry.
    """
    distinct = {plan.name: plan for plan in plans}

    def compiled(plan: Plan) -> MachineCode | str | None:
        if perf_counter() >= deadline:
            return None
        try:
            return machine_code(plan.compile(), plan.capability)
        except Exception as error:  # whatever a compiler says, it is the config's fault
            text = str(error).strip().splitlines()
            return f"{plan.function} does not compile: {type(error).__name__}: {text[0] if text else ''}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = zip(distinct, pool.map(compiled, distinct.values()), strict=True)
        return {name: code for name, code in codes if code is not None}


def _longest_inner_loop(listing: str, syntax: _Syntax) -> str:
    """The most lines between a label and a branch back to it that has no other such pair inside."""
    lines = listing.splitlines()
    labels, loops = {}, []
    for end, line in enumerate(lines):
        if label := syntax.label.match(line):
            labels[label[1]] = end
        elif (branch := syntax.branch.search(line)) and branch[1] in labels:
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
