"""Compiles a Triton or Gluon kernel for a GPU that is not here, and reads what the machine code costs.

Triton's wheel carries ptxas, cuobjdump and nvdisasm, and LLVM's assembler and linker for AMD, so registers, spills and
the instruction mix need no device. Spills show as STACK, not as LOCAL; for AMD, as the private segment.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from unittest import mock

from ...triton_or_stub import HAS_TRITON, triton
from . import disassembly
from .cost import MachineCode


@dataclass(frozen=True)
class Assembled:
    """A compiled kernel's code and IR, which another process may read."""

    capability: int | str
    ir: str  # the highest level that there is
    assembly: str  # NVIDIA's PTX; AMD's own
    code: bytes  # NVIDIA's cubin, AMD's hsaco
    shared: int  # bytes that Triton gives a block


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
    """Machine code of a `@triton.jit` or `@gluon.jit` kernel; arguments and errors as of `assemble`."""
    made = assemble(kernel, signature, constants, capability, num_warps, divisible, maxnreg, enable_fp_fusion)
    return machine_codes([made], capability)[0]


def assemble(
    kernel: Any,
    signature: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    capability: int | str,
    num_warps: int = 4,
    divisible: Collection[str] = (),
    maxnreg: int | None = None,
    enable_fp_fusion: bool = True,
) -> Assembled:
    """Compile a `@triton.jit` or `@gluon.jit` kernel, and leave its code to `machine_codes`.

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
    return _assembled(triton.compile(source, target=target, options=options), capability)


def _assembled(compiled: Any, capability: int | str) -> Assembled:
    """The parts of what triton.compile returned."""
    asm = compiled.asm
    assembly, code = ("amdgcn", "hsaco") if isinstance(capability, str) else ("ptx", "cubin")
    ir = asm["ttir" if "ttir" in asm else "ttgir"]
    return Assembled(capability, ir, asm[assembly], asm[code], compiled.metadata.shared)


def machine_codes(assembled: Sequence[Assembled], capability: int | str) -> list[MachineCode]:
    """The costs of several kernels for one target, in much less time than one by one.

    Raises:
        RuntimeError: a tool of triton's wheel failed on one of them, whose words the message has.
    """
    if isinstance(capability, str):
        names = ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size")
        usages = [made.assembly for made in assembled]
        listings = [disassembly.of_assembly(usage) for usage in usages]
    else:
        names = ("REG", "STACK", "SHARED")
        usages = [_resource_usage(made.code) for made in assembled]
        listings = disassembly.of_cubins([made.code for made in assembled], capability)
    costs = []
    for made, usage, listing in zip(assembled, usages, listings, strict=True):
        figures = {name: int(value) for name, value in re.findall(rf"\b({'|'.join(names)}):\s*(\d+)", usage)}
        registers, stack, shared = (figures[name] for name in names)
        costs.append(MachineCode(capability, registers, stack, max(shared, made.shared), *listing, made.ir))
    return costs


def read(assembled: Sequence[Assembled]) -> list[MachineCode | Exception]:
    """Costs as of `machine_codes`, for any targets; where the tools fail on all together, of each alone, or why not."""
    codes: dict[int, MachineCode | Exception] = {}
    for capability in dict.fromkeys(made.capability for made in assembled):
        places = [place for place, made in enumerate(assembled) if made.capability == capability]
        codes |= zip(places, _read_together([assembled[place] for place in places], capability), strict=True)
    return [codes[place] for place in range(len(assembled))]


def _read_together(assembled: Sequence[Assembled], capability: int | str) -> list[MachineCode | Exception]:
    try:
        return [*machine_codes(assembled, capability)]
    except Exception as error:
        if len(assembled) < 2:
            return [error for _ in assembled]
    return [code for made in assembled for code in _read_together([made], capability)]


def _resource_usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return disassembly.tool("cuobjdump", "-res-usage", file.name)


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

    def compiled(plan: Plan) -> Any:
        if perf_counter() >= deadline:
            return None
        try:
            return _assembled(plan.compile(), plan.capability)
        except Exception as error:  # whatever a compiler says, it is the config's fault
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(distinct, pool.map(compiled, distinct.values()), strict=True))
    whole = {name: one for name, one in made.items() if isinstance(one, Assembled)}
    made |= zip(whole, read([*whole.values()]), strict=True)
    return {
        name: _reason(distinct[name], code) if isinstance(code, Exception) else code
        for name, code in made.items()
        if code is not None
    }


def _reason(plan: Plan, error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{plan.function} does not compile: {type(error).__name__}: {text[0] if text else ''}"
