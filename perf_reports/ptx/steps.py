"""Compiles a program into steps: what each instruction asks of the threads that make it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .clock import WARP
from .faults import UnknownInstruction
from .instruction import Instruction
from .instructions import ARITHMETIC, PARAMETER_SIZE, Compiler, Compute
from .marks import rule_of
from .parser import Program
from .step import Step
from .values import KINDS, as_type, bits_of, canonical, dtype_of

_SHUFFLES = ("shfl", "redux", "vote", "ldmatrix", "stmatrix", "match", "activemask")
_MEMORY = ("ld", "st", "atom", "red", "cp")
_WITHOUT_RESULT = ("st", "red", "bra", "bar", "barrier", "ret", "exit", "fence", "membar", "stmatrix")
_NAMES = re.compile(r"[%$\w.]+")
_ATOMIC = re.compile(r"add|max|min|or|and|xor|exch|cas|inc|dec")


class Steps:
    """The program as functions, compiled once a launch."""

    def __init__(self, program: Program, compiler: Compiler) -> None:
        self.program, self.compiler = program, compiler
        self.list = [self._with_sources(self._step(at)) for at in program.instructions]
        self.count = len(program.registers)

    def _with_sources(self, step: Step) -> Step:
        """The step with the registers that it reads."""
        at, numbers = step.at, self.program.registers
        writes = at.parts[0] not in _WITHOUT_RESULT and at.parts[0] != "cp"
        names = _NAMES.findall(" ".join(at.operands[writes:]))
        ordered = tuple(numbers.get(name, -1) for name in names)
        return replace(step, sources=tuple({*ordered} - {-1}), ordered=ordered, rule=rule_of(at))

    def _step(self, at: Instruction) -> Step:
        name = at.parts[0]
        guard = self.program.number(at.guard) if at.guard else -1
        if name == "bra":
            return Step("branch", at, guard, goal=self.program.labels[at.operands[0]])
        if name in ("ret", "exit"):
            return Step("return", at, guard)
        if name in ("bar", "barrier"):
            return self._barrier(at, guard)
        if name == "griddepcontrol" or at.opcode == "nanosleep.u32":
            return Step("effect", at, guard, effect=lambda gang, active, number: None)
        if at.opcode.startswith("ld.param"):
            return self._parameter(at, guard)
        if name in ("fence", "membar"):
            return Step("effect", at, guard, effect=_fence)
        if name in _MEMORY:
            return self._memory(at, guard)
        if name in _SHUFFLES:
            return self._warp(at, guard)
        if name == "cvta":
            return Step("compute", at, guard, self._targets(at.operands[0]), self.compiler.read(at.operands[1], "u64"))
        if name not in ARITHMETIC:
            raise self.compiler.unknown(at)
        return Step("compute", at, guard, self._targets(at.operands[0]), self.compiler.compute(at))

    def _targets(self, operand: str) -> tuple[tuple[int, int], ...]:
        names = self.compiler.names(operand.replace("|", ","))
        return tuple((-1 if name == "_" else self.program.number(name), self.program.width(name)) for name in names)

    def _barrier(self, at: Instruction, guard: int) -> Step:
        if at.opcode in ("bar.warp.sync", "barrier.warp.sync"):
            return Step("warp", at, guard, effect=_warp_barrier)
        if at.opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned", "barrier.cta.sync", "bar.cta.sync"):
            raise self.compiler.unknown(at)
        return Step("barrier", at, guard)

    def _parameter(self, at: Instruction, guard: int) -> Step:
        kind = self.compiler.kind(at)
        names = [name for _, name in self.program.parameters]
        inside = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(\d+))?\s*\]", at.operands[1])
        if inside is None:
            raise self.compiler.unknown(at)
        if int(inside[2] or 0):
            raise self.compiler.unknown(at)
        dtype, targets = dtype_of(kind), self._targets(at.operands[0])
        if inside[1] in names:
            place = names.index(inside[1])

            def load(gang: Any, active: Any, number: int) -> None:
                gang.set(targets, (as_type(gang.launch.parameters[place], dtype),), active, dtype.kind == "i")
        else:  # of an address that was chosen among those of parameters
            address = self.compiler.read(inside[1], "u64")

            def load(gang: Any, active: Any, number: int) -> None:
                table = np.array([as_type(value, np.dtype(np.uint64)) for value in gang.launch.parameters])
                at_place = (address(gang.regs) // np.uint64(PARAMETER_SIZE)).astype(np.int64) - 1
                gang.set(targets, (as_type(table[at_place], dtype),), active, dtype.kind == "i")

        return Step("effect", at, guard, targets, effect=load)

    def _address(self, at: Instruction, operand: str) -> Compute:
        """The address that an operand [register + number], [variable + number] or [number] stands for."""
        parts = re.fullmatch(r"([%$\w]+)([+-]\w+)?", operand.strip("[] ").replace(" ", "").replace("+-", "-"))
        if parts is None:
            raise self.compiler.unknown(at)
        base, offset = parts[1], int(parts[2], 0) if parts[2] else 0
        is_register = base not in self.program.shared and not base[0].isdigit()
        read = self.compiler.read(base, f"u{self.program.width(base) if is_register else 64}")
        return lambda regs: np.asarray(read(regs)).astype(np.int64) + offset

    def _memory(self, at: Instruction, guard: int) -> Step:
        name, parts = at.parts[0], at.parts
        if name == "cp":
            return self._copy(at, guard)
        if "shared" in parts or "shared::cta" in parts:
            is_global = False
        elif "global" in parts:
            is_global = True
        else:
            raise self.compiler.unknown(at)
        if name in ("atom", "red"):
            return self._atomic(at, guard, is_global)
        kind = self.compiler.kind(at)
        known = {
            "global",
            "shared",
            "shared::cta",
            "v2",
            "v4",
            "v8",
            "nc",
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "weak",
        }
        ordered = {"volatile", "relaxed", "acquire", "release", "gpu", "cta", "sys", "cluster"}
        hints = ("L1::", "L2::")
        rest = {p for p in parts[1:] if not KINDS.match(p) and not p.startswith(hints)}
        if rest - known - ordered:
            raise self.compiler.unknown(at)
        address_operand, data_operand = (at.operands[1], at.operands[0]) if name == "ld" else at.operands[:2]
        address = self._address(at, address_operand)
        names = self.compiler.names(data_operand)
        bits, signed = bits_of(kind), kind[0] == "s"
        is_strong = bool(rest & ordered)
        sync = "acquire" in rest or "release" in rest
        block_only = "cta" in rest
        if name == "ld":
            targets = self._targets(data_operand)

            def effect(gang: Any, active: Any, number: int) -> None:
                gang.load(address, bits, targets, signed, active, at, number, is_global, is_strong, sync)
        else:
            reads = self.compiler.reads(names, f"u{bits}")

            def effect(gang: Any, active: Any, number: int) -> None:
                gang.store(address, bits, reads, active, at, number, is_global, is_strong, sync, block_only)

        return Step("memory", at, guard, targets if name == "ld" else (), effect=effect, is_global=is_global)

    def _atomic(self, at: Instruction, guard: int, is_global: bool) -> Step:
        kind = self.compiler.kind(at)
        rest = {p for p in at.parts[1:] if not KINDS.match(p)}
        operation = next((p for p in at.parts if _ATOMIC.fullmatch(p)), "")
        known = {
            "global",
            "shared",
            "shared::cta",
            "gpu",
            "cta",
            "sys",
            "relaxed",
            "acquire",
            "release",
            "acq_rel",
            "noftz",
        }
        if rest - known - {operation} or kind.endswith("x2"):
            raise self.compiler.unknown(at)
        returns = at.parts[0] == "atom"
        operands = at.operands[returns:]
        address = self._address(at, operands[0])
        reads = self.compiler.reads(operands[1:], kind)
        targets = self._targets(at.operands[0]) if returns else ()
        acquires, releases = bool(rest & {"acquire", "acq_rel"}), bool(rest & {"release", "acq_rel"})
        change = _change(operation, kind)
        if change is None:
            raise self.compiler.unknown(at)

        def effect(gang: Any, active: Any, number: int) -> None:
            gang.atomic(
                address, kind, change, reads, targets, active, at, number, is_global, acquires, releases, "cta" in rest
            )

        return Step("memory", at, guard, targets, effect=effect, is_global=is_global)

    def _copy(self, at: Instruction, guard: int) -> Step:
        if at.opcode == "cp.async.commit_group":
            return Step("effect", at, guard, effect=lambda gang, active, number: gang.commit(active))
        if at.opcode in ("cp.async.wait_group", "cp.async.wait_all"):
            left = self.compiler.integer(at, at.operands[0]) if at.operands else 0
            return Step("memory", at, guard, effect=lambda gang, active, number: gang.wait(left, active, at, number))
        if not re.match(r"cp\.async\.c[ag]\.shared(::cta)?\.global", at.opcode):
            raise self.compiler.unknown(at)
        target, source = (self._address(at, operand) for operand in at.operands[:2])
        size = self.compiler.integer(at, at.operands[2])
        taken = self.compiler.read(at.operands[3], "u32") if len(at.operands) > 3 else lambda regs: np.uint32(size)

        def effect(gang: Any, active: Any, number: int) -> None:
            gang.copy(target, source, size, taken, active, at, number)

        return Step("memory", at, guard, effect=effect, is_global=True)

    # -------------------------------------------------------------------------------------------- warps

    def _warp(self, at: Instruction, guard: int) -> Step:
        name = at.parts[0]
        if name in ("ldmatrix", "stmatrix"):
            return self._matrix(at, guard)
        make = {"shfl": self._shuffle, "redux": self._reduce, "vote": self._vote}.get(name)
        if make is None:
            raise self.compiler.unknown(at)
        compute = make(at)
        targets = self._targets(at.operands[0])

        def effect(gang: Any, active: Any, number: int) -> None:
            result = compute(gang, active)
            gang.set(targets, result if isinstance(result, tuple) else (result,), active)

        return Step("warp", at, guard, targets, effect=effect)

    def _members(self, at: Instruction, operand: str) -> Callable[[Any, Any], None]:
        """A function that refuses what is for some lanes of a warp only."""
        read = self.compiler.read(operand, "u32")

        def check(gang: Any, active: Any) -> None:
            members = gang.full(read(gang.regs))
            if ((members if active is None else members[active]) != np.uint32(0xFFFFFFFF)).any():
                raise UnknownInstruction("a shuffle of some lanes of a warp is not known to this interpreter", at)

        return check

    def _shuffle(self, at: Instruction) -> Callable[[Any, Any], Any]:
        mode = at.parts[2]
        if at.parts[1] != "sync" or mode not in ("bfly", "up", "down", "idx") or at.parts[3] != "b32":
            raise self.compiler.unknown(at)
        value, distance, clamp = self.compiler.reads(at.operands[1:4], "u32")
        check = self._members(at, at.operands[4])
        lanes = np.arange(WARP)

        def shuffled(gang: Any, active: Any) -> Any:
            check(gang, active)
            x = gang.full(value(gang.regs)).reshape(-1, WARP)
            by = gang.full(distance(gang.regs)).reshape(-1, WARP).astype(np.int64)
            c = gang.full(clamp(gang.regs)).reshape(-1, WARP).astype(np.int64)
            segment, last = c >> 8 & 31, c & 31
            most = (lanes & segment) | (last & ~segment)
            least = lanes & segment
            if mode == "up":
                source = lanes - by
                inside = source >= most
            elif mode == "down":
                source = lanes + by
                inside = source <= most
            elif mode == "bfly":
                source = lanes ^ by
                inside = source <= most
            else:
                source = least | (by & ~segment & 31)
                inside = source <= most
            source = np.where(inside, source, lanes)
            moved = np.take_along_axis(x, source, 1).reshape(-1)
            return (moved, inside.reshape(-1)) if "|" in at.operands[0] else moved

        return shuffled

    def _reduce(self, at: Instruction) -> Callable[[Any, Any], Any]:
        kind = self.compiler.kind(at)
        reduce: Any = {
            "add": np.add, "min": np.minimum, "max": np.maximum, "or": np.bitwise_or, "and": np.bitwise_and,
            "xor": np.bitwise_xor,
        }.get(at.parts[2])  # fmt: skip
        if reduce is None or bits_of(kind) != 32 or (kind[0] == "f" and set(at.parts) & {"abs", "NaN"}):
            raise self.compiler.unknown(at)
        value = self.compiler.read(at.operands[1], kind)
        check = self._members(at, at.operands[2])

        def reduced(gang: Any, active: Any) -> Any:
            check(gang, active)
            x = gang.full(value(gang.regs)).reshape(-1, WARP)
            return np.repeat(reduce.reduce(x, 1, dtype=x.dtype), WARP)

        return reduced

    def _vote(self, at: Instruction) -> Callable[[Any, Any], Any]:
        mode = at.parts[2]
        if at.parts[1] != "sync" or mode not in ("all", "any", "ballot", "uni"):
            raise self.compiler.unknown(at)
        value = self.compiler.read(at.operands[1], "pred")
        check = self._members(at, at.operands[2])
        powers = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

        def voted(gang: Any, active: Any) -> Any:
            check(gang, active)
            x = gang.full(value(gang.regs)).reshape(-1, WARP)
            if mode == "ballot":
                return np.repeat((x * powers).sum(1, dtype=np.uint32), WARP)
            result = x.all(1) if mode == "all" else x.any(1) if mode == "any" else x.all(1) | ~x.any(1)
            return np.repeat(result, WARP)

        return voted

    def _matrix(self, at: Instruction, guard: int) -> Step:
        parts, loads = at.parts, at.parts[0] == "ldmatrix"
        allowed = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
        if set(parts[1:]) - allowed or "m8n8" not in parts:
            raise self.compiler.unknown(at)
        data, place = at.operands if loads else at.operands[::-1]
        address = self._address(at, place)
        names, transposed = self.compiler.names(data), "trans" in parts
        targets = self._targets(data) if loads else ()
        reads = [] if loads else self.compiler.reads(names, "u32")

        def effect(gang: Any, active: Any, number: int) -> None:
            gang.matrices(address, len(names), transposed, targets, reads, active, at, number)

        return Step("warp", at, guard, targets, effect=effect)


def _change(operation: str, kind: str) -> Callable[..., Any] | None:
    """The new value of an atomic operation, from the old one and the operands."""
    if kind[0] == "f":
        return {"add": lambda old, x: canonical(old + x), "exch": lambda old, x: x}.get(operation)
    table: dict[str, Callable[..., Any]] = {
        "add": lambda old, x: old + x,
        "max": np.maximum,
        "min": np.minimum,
        "or": lambda old, x: old | x,
        "and": lambda old, x: old & x,
        "xor": lambda old, x: old ^ x,
        "exch": lambda old, x: x,
        "cas": lambda old, x, y: np.where(old == x, y, old),
        "inc": lambda old, x: np.where(old >= x, old * 0, old + old.dtype.type(1)),
        "dec": lambda old, x: np.where((old == 0) | (old > x), x, old - old.dtype.type(1)),
    }
    return table.get(operation)


def _fence(gang: Any, active: Any, number: int) -> None:
    for thread in gang.threads_of(active).tolist():
        gang.launch.clock.fence(thread)


def _warp_barrier(gang: Any, active: Any, number: int) -> None:
    gang.launch.clock.meet_warps(np.unique(gang.threads_of(active) // WARP))
