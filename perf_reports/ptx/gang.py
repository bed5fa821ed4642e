"""Blocks that step together: each instruction is made once, for all of their threads that stand at it.

Threads that part go on in the order of their instructions, the hindmost first, and so meet again. What must be reached
by all (a barrier, a shuffle) waits until it is. A loop that comes back to the same registers while no memory has
changed waits for somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .clock import WARP
from .faults import CopyInFlight, Misaligned, NotConverged, OutOfBounds, UnknownInstruction
from .instructions import ARITHMETIC, PARAMETER_SIZE, Compiler, Compute
from .marks import Marks, rule_of
from .memory import Access, Space
from .parser import SPECIAL, Instruction, Program
from .values import KINDS, SIGNED, UNSIGNED, as_type, bits_of, canonical, dtype_of

if TYPE_CHECKING:
    from .schedule import Launch

_RUNS, _AT_BARRIER, _AT_WARP, _SPINS, _ENDED = range(5)
_SAME_LOOPS = 64  # times round loops without a change of memory, after which a repetition is looked for
_SHUFFLES = ("shfl", "redux", "vote", "ldmatrix", "stmatrix", "match", "activemask")
_MEMORY = ("ld", "st", "atom", "red", "cp")
_WITHOUT_RESULT = ("st", "red", "bra", "bar", "barrier", "ret", "exit", "fence", "membar", "stmatrix")
_NAMES = re.compile(r"[%$\w.]+")
_ATOMIC = re.compile(r"add|max|min|or|and|xor|exch|cas|inc|dec")


@dataclass(frozen=True)
class Step:
    """A compiled instruction."""

    kind: str  # "compute", "branch", "return", "barrier", "warp", "memory", "effect"
    at: Instruction
    guard: int  # register; -1 for none
    targets: tuple[tuple[int, int], ...] = ()  # registers written, with their bits
    compute: Compute | None = None
    effect: Callable[[Gang, Any, int], None] | None = None
    goal: int = -1  # of a branch
    is_global: bool = False
    sources: tuple[int, ...] = ()  # registers read, the guard's not among them
    ordered: tuple[int, ...] = ()  # by operand, -1 of a number
    rule: str = "whole"  # of marks.py


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

            def load(gang: Gang, active: Any, number: int) -> None:
                gang.set(targets, (as_type(gang.launch.parameters[place], dtype),), active, dtype.kind == "i")
        else:  # of an address that was chosen among those of parameters
            address = self.compiler.read(inside[1], "u64")

            def load(gang: Gang, active: Any, number: int) -> None:
                table = np.array([as_type(value, np.dtype(np.uint64)) for value in gang.launch.parameters])
                at_place = (address(gang.regs) // np.uint64(PARAMETER_SIZE)).astype(np.int64) - 1
                gang.set(targets, (as_type(table[at_place], dtype),), active, dtype.kind == "i")

        return Step("effect", at, guard, targets, effect=load)

    def _split_address(self, operand: str) -> tuple[Compute, int, bool]:
        """The base of an address in 64 bits, its offset, and whether it is a variable."""
        inside = operand.strip("[] ").replace(" ", "").replace("+-", "-")
        parts = re.fullmatch(r"([%$\w]+)([+-]\w+)?", inside)
        if parts is None:
            raise ValueError(operand)
        offset = int(parts[2], 0) if parts[2] else 0
        base = parts[1]
        is_variable = base in self.program.shared
        bits = 64 if is_variable or re.match(r"\d", base) else self.program.width(base)
        read = self.compiler.read(base, f"u{bits}")
        return lambda regs: np.asarray(read(regs)).astype(np.int64) + offset, offset, is_variable

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
        address, _, _ = self._split_address(address_operand)
        names = self.compiler.names(data_operand)
        bits, signed = bits_of(kind), kind[0] == "s"
        is_strong = bool(rest & ordered)
        sync = "acquire" in rest or "release" in rest
        block_only = "cta" in rest
        if name == "ld":
            targets = self._targets(data_operand)

            def effect(gang: Gang, active: Any, number: int) -> None:
                gang.load(address, bits, targets, signed, active, at, number, is_global, is_strong, sync)
        else:
            reads = self.compiler.reads(names, f"u{bits}")

            def effect(gang: Gang, active: Any, number: int) -> None:
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
        address, _, _ = self._split_address(operands[0])
        reads = self.compiler.reads(operands[1:], kind)
        targets = self._targets(at.operands[0]) if returns else ()
        acquires, releases = bool(rest & {"acquire", "acq_rel"}), bool(rest & {"release", "acq_rel"})
        change = _change(operation, kind)
        if change is None:
            raise self.compiler.unknown(at)

        def effect(gang: Gang, active: Any, number: int) -> None:
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
        target, source = (self._split_address(operand)[0] for operand in at.operands[:2])
        size = self.compiler.integer(at, at.operands[2])
        taken = self.compiler.read(at.operands[3], "u32") if len(at.operands) > 3 else lambda regs: np.uint32(size)

        def effect(gang: Gang, active: Any, number: int) -> None:
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

        def effect(gang: Gang, active: Any, number: int) -> None:
            result = compute(gang, active)
            gang.set(targets, result if isinstance(result, tuple) else (result,), active)

        return Step("warp", at, guard, targets, effect=effect)

    def _members(self, at: Instruction, operand: str) -> Callable[[Gang, Any], None]:
        """A function that refuses what is for some lanes of a warp only."""
        read = self.compiler.read(operand, "u32")

        def check(gang: Gang, active: Any) -> None:
            members = gang.full(read(gang.regs))
            if ((members if active is None else members[active]) != np.uint32(0xFFFFFFFF)).any():
                raise UnknownInstruction("a shuffle of some lanes of a warp is not known to this interpreter", at)

        return check

    def _shuffle(self, at: Instruction) -> Callable[[Gang, Any], Any]:
        mode = at.parts[2]
        if at.parts[1] != "sync" or mode not in ("bfly", "up", "down", "idx") or at.parts[3] != "b32":
            raise self.compiler.unknown(at)
        value, distance, clamp = self.compiler.reads(at.operands[1:4], "u32")
        check = self._members(at, at.operands[4])
        lanes = np.arange(WARP)

        def shuffled(gang: Gang, active: Any) -> Any:
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

    def _reduce(self, at: Instruction) -> Callable[[Gang, Any], Any]:
        kind = self.compiler.kind(at)
        reduce: Any = {
            "add": np.add, "min": np.minimum, "max": np.maximum, "or": np.bitwise_or, "and": np.bitwise_and,
            "xor": np.bitwise_xor,
        }.get(at.parts[2])  # fmt: skip
        if reduce is None or bits_of(kind) != 32 or (kind[0] == "f" and set(at.parts) & {"abs", "NaN"}):
            raise self.compiler.unknown(at)
        value = self.compiler.read(at.operands[1], kind)
        check = self._members(at, at.operands[2])

        def reduced(gang: Gang, active: Any) -> Any:
            check(gang, active)
            x = gang.full(value(gang.regs)).reshape(-1, WARP)
            return np.repeat(reduce.reduce(x, 1, dtype=x.dtype), WARP)

        return reduced

    def _vote(self, at: Instruction) -> Callable[[Gang, Any], Any]:
        mode = at.parts[2]
        if at.parts[1] != "sync" or mode not in ("all", "any", "ballot", "uni"):
            raise self.compiler.unknown(at)
        value = self.compiler.read(at.operands[1], "pred")
        check = self._members(at, at.operands[2])
        powers = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

        def voted(gang: Gang, active: Any) -> Any:
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
        address, _, _ = self._split_address(place)
        names, transposed = self.compiler.names(data), "trans" in parts
        targets = self._targets(data) if loads else ()
        reads = [] if loads else self.compiler.reads(names, "u32")

        def effect(gang: Gang, active: Any, number: int) -> None:
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


def _fence(gang: Gang, active: Any, number: int) -> None:
    for thread in gang.threads_of(active).tolist():
        gang.launch.clock.fence(thread)


def _warp_barrier(gang: Gang, active: Any, number: int) -> None:
    gang.launch.clock.meet_warps(np.unique(gang.threads_of(active) // WARP))


@dataclass
class _Copy:
    """Asynchronous copies that one instruction has begun."""

    lanes: Any
    groups: Any  # of each lane, how many it had closed then
    targets: Any
    sources: Any
    taken: Any
    data: Any
    at: Instruction
    number: int


class Gang:
    """The threads of some blocks, and what they hold."""

    def __init__(self, launch: Launch, blocks: list[int]) -> None:
        self.launch, self.steps, self.blocks = launch, launch.steps, np.array(blocks)
        per_block = launch.threads
        self.size = len(blocks) * per_block
        self.block = np.repeat(self.blocks, per_block)
        own = np.tile(np.arange(per_block), len(blocks))
        self.thread = self.block * per_block + own
        self.local = np.repeat(np.arange(len(blocks)), per_block)
        self.regs: list[Any] = [np.uint32(0x7FC0DEAD)] * launch.steps.count
        for name, value in self._special(own).items():
            self.regs[SPECIAL.index(name)] = value
        for name, place in launch.program.registers.items():
            if launch.program.width(name) == 1:
                self.regs[place] = np.bool_(False)
        self.pcs, self.state = np.zeros(self.size, np.int64), np.zeros(self.size, np.uint8)
        self.shared = launch.shared_memory(len(blocks))
        self.copies: list[_Copy] = []
        self.closed = np.zeros(self.size, np.int64)  # groups of copies that a thread has closed
        self.touched = 0  # global accesses so far
        self._loops, self._version = 0, -1
        self._before: dict[int, tuple[list[Any], Any]] = {}
        self._differs: dict[int, int] = {}
        self.marks = Marks(self.size) if launch.follows else None
        self._waits_for = -1  # the version of memory at which the spinning threads looked last

    def _special(self, own: Any) -> dict[str, Any]:
        x, y, z = self.launch.grid
        zero, one = np.uint32(0), np.uint32(1)
        single = len(self.blocks) == 1
        block = self.blocks[0] if single else self.block
        of = {
            "%ctaid.x": block % x, "%ctaid.y": block // x % y, "%ctaid.z": block // (x * y), "%tid.x": own,
            "%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z, "%ntid.x": self.launch.threads,
            "%laneid": own % WARP, "%warpid": own // WARP,
        }  # fmt: skip
        ids = {name: np.asarray(value).astype(np.uint32)[()] for name, value in of.items()}
        return ids | {"%tid.y": zero, "%tid.z": zero, "%ntid.y": one, "%ntid.z": one}

    # -------------------------------------------------------------------------------------------- registers

    def full(self, value: Any) -> Any:
        """A value of each thread."""
        return value if value.shape == (self.size,) else np.broadcast_to(value, self.size)

    def set(self, targets: Any, results: tuple[Any, ...], active: Any, signed: bool = False) -> None:
        """Writes registers where `active`, everywhere if it is None; narrower results are extended to the register."""
        for (place, bits), result in zip(targets, results, strict=True):
            if place < 0:
                continue
            if bits > 1 and result.dtype.itemsize * 8 < bits:
                wide = (SIGNED if signed or result.dtype.kind == "i" else UNSIGNED)[bits]
                result = result.astype(wide)
            if active is not None:
                old = self.regs[place]
                old = old if old.dtype == result.dtype else as_type(old, result.dtype) if bits > 1 else old
                result = np.where(active, result, old)
            self.regs[place] = result

    def threads_of(self, active: Any) -> Any:
        return self.thread if active is None else self.thread[active]

    def lanes_of(self, active: Any) -> Any:
        return np.arange(self.size) if active is None else np.flatnonzero(active)

    # -------------------------------------------------------------------------------------------- stepping

    @property
    def ended(self) -> bool:
        return bool((self.state == _ENDED).all())

    def advance(self, touches: int) -> bool:
        """Steps until that many global accesses are made, or nobody can step; returns whether anybody has."""
        goal, moved = self.touched + touches, False
        while self.touched < goal:
            runs = self.state == _RUNS
            if not runs.any():
                if not self._look_again() and not self._release():
                    return moved
                continue
            moved = True
            if runs.all():
                first = int(self.pcs[0])
                if (self.pcs == first).all():
                    self._run(first, None, -1, goal)
                    continue
            pcs = self.pcs[runs]
            first = int(pcs.min())
            later = pcs[pcs > first]
            self._run(first, runs & (self.pcs == first), int(later.min()) if len(later) else -1, goal)
        return moved

    def _look_again(self) -> bool:
        """Wakes the threads that wait for memory to change, if it has."""
        spins = self.state == _SPINS
        if not spins.any() or self._version_now() == self._waits_for:
            return False
        self.state[spins] = _RUNS
        return True

    def _version_now(self) -> int:
        return self.launch.version + self.shared.version

    def _run(self, pc: int, mask: Any, stop: int, goal: int) -> None:
        """Steps the threads of `mask`, all at `pc`, until they part, wait, or come to `stop`."""
        regs, steps = self.regs, self.steps.list
        while True:
            step = steps[pc]
            active = mask
            if step.guard >= 0:
                active = self._guarded(step, mask)
            kind = step.kind
            if self.marks is not None:
                self.marks.follow(step, mask, active, regs)
            if kind == "compute":
                if active is not False:
                    result = step.compute(regs)  # pyright: ignore[reportOptionalCall]
                    targets = step.targets
                    if len(targets) == 1:
                        place, bits = targets[0]
                        if active is None and (bits == 1 or result.dtype.itemsize * 8 >= bits):
                            regs[place] = result
                        else:
                            self.set(targets, (result,), active)
                    else:
                        self.set(targets, result, active)
            elif kind == "branch":
                if active is False:
                    pass
                elif active is mask:
                    if step.goal <= pc and self._repeats(pc, mask):
                        self._stay(pc, mask, _SPINS)
                        return
                    pc = step.goal
                    if mask is not None:  # others may be at, or behind, where it leads
                        self._stay(pc, mask, _RUNS)
                        return
                    continue
                else:
                    self._stay(pc + 1, mask, _RUNS)
                    self._stay(step.goal, active, _RUNS)
                    return
            elif kind == "memory" or kind == "effect":
                if active is not False:
                    step.effect(self, active, pc)  # pyright: ignore[reportOptionalCall]
                    if step.is_global:
                        self.touched += 1
                        if self.touched >= goal:
                            self._stay(pc + 1, mask, _RUNS)
                            return
            elif kind == "warp":
                if mask is not None and not self._whole(mask):
                    self._stay(pc, mask, _AT_WARP)
                    return
                if active is not False:
                    if active is not None and not self._whole(active):
                        raise NotConverged("a predicate that the lanes of a warp do not share keeps some away", step.at)
                    step.effect(self, active, pc)  # pyright: ignore[reportOptionalCall]
            elif kind == "barrier":
                if active is not mask:
                    raise UnknownInstruction("a barrier under a predicate", step.at)
                if mask is not None:
                    self._stay(pc, mask, _AT_BARRIER)
                    return
                self.launch.clock.meet(self.blocks)
            elif kind == "return" and active is not False:
                if active is not mask:
                    self._stay(pc + 1, mask, _RUNS)
                self._stay(pc, active, _ENDED)
                return
            pc += 1
            if pc == stop:
                self._stay(pc, mask, _RUNS)
                return

    def _guarded(self, step: Step, mask: Any) -> Any:
        """Who makes a step: `mask` itself where all do, False where nobody does."""
        on = self.regs[step.guard]
        if step.at.negated:
            on = ~on
        if on.ndim == 0:
            return mask if on else False
        if mask is None:
            if on.all():
                return None
            return on if on.any() else False
        both = on & mask
        if not both.any():
            return False
        return mask if (both == mask).all() else both

    def _stay(self, pc: int, mask: Any, state: int) -> None:
        if mask is None:
            self.pcs[:], self.state[:] = pc, state
        else:
            self.pcs[mask], self.state[mask] = pc, state

    def _whole(self, active: Any) -> bool:
        warps = active.reshape(-1, WARP)
        return bool((warps.any(1) == warps.all(1)).all())

    def _release(self) -> bool:
        """Lets threads go on that have waited for each other; returns whether there are any."""
        waits = self.state == _AT_WARP
        if waits.any():
            warps, pcs = waits.reshape(-1, WARP), self.pcs.reshape(-1, WARP)
            whole = warps.all(1) & (pcs == pcs[:, :1]).all(1)
            if not whole.any():
                if (self.state == _SPINS).any():
                    return False
                self._not_converged(waits, "are at it with all lanes of their warp")
            self.state[np.repeat(whole.reshape(-1), WARP)] = _RUNS
            return True
        waits = (self.state == _AT_BARRIER).reshape(len(self.blocks), -1)
        if not waits.any():
            return False
        pcs = self.pcs.reshape(len(self.blocks), -1)
        whole = waits.all(1) & (pcs == pcs[:, :1]).all(1)
        if not whole.any():
            if (self.state == _SPINS).any():
                return False
            self._not_converged(waits.reshape(-1), "reach it")
        self.launch.clock.meet(self.blocks[whole])
        lanes = np.repeat(whole, self.launch.threads)
        self.pcs[lanes] += 1
        self.state[lanes] = _RUNS
        return True

    def _not_converged(self, waits: Any, does: str) -> None:
        lane = int(np.flatnonzero(waits)[0])
        block = self.local == self.local[lane]
        there = block & (self.pcs == self.pcs[lane])
        others = np.flatnonzero(block & ~there)
        at = self.steps.list[int(self.pcs[lane])].at
        if len(others):
            other = int(others[0])
            where = (
                "has ended"
                if self.state[other] == _ENDED
                else (f"waits at {self.steps.list[int(self.pcs[other])].at.short_place}")
            )
            tail = f"; thread {other % self.launch.threads} {where}"
        else:
            tail = ""
        count = int(there.sum())
        raise NotConverged(
            f"{count} of the {self.launch.threads} threads of block {int(self.block[lane])} {does}, and not all{tail}",
            at,
        )

    def _repeats(self, pc: int, mask: Any) -> bool:
        """Whether a loop has come back to the same registers, and no memory has changed."""
        version = self._version_now()
        if version != self._version:
            self._version, self._loops = version, 0
            self._before.clear()
            return False
        self._loops += 1
        if self._loops < _SAME_LOOPS:
            return False
        before = self._before.get(pc)
        self._before[pc] = list(self.regs), mask
        if before is None:
            return False
        old, old_mask = before
        if (mask is None) != (old_mask is None) or (mask is not None and not np.array_equal(mask, old_mask)):
            return False
        hint = self._differs.get(pc)
        places = range(len(old)) if hint is None else [hint, *range(len(old))]
        for place in places:
            x, y = old[place], self.regs[place]
            if x is y:
                continue
            if mask is not None and (x.ndim or y.ndim):
                x, y = self.full(x)[mask], self.full(y)[mask]
            if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                self._differs[pc] = place
                return False
        self._waits_for = version
        return True

    def spinning(self) -> Instruction | None:
        """The instruction at which threads wait for memory to change."""
        waits = np.flatnonzero(self.state == _SPINS)
        return self.steps.list[int(self.pcs[waits[0]])].at if len(waits) else None

    # -------------------------------------------------------------------------------------------- memory

    def access(self, lanes: Any, at: Instruction, number: int) -> Access:
        return Access(self.thread[lanes], self.block[lanes], at, number)

    def _own(self, access: Access, index: int) -> int:
        return int(access.threads[index]) % self.launch.threads

    def places(
        self, addresses: Any, lanes: Any, size: int, access: Access, is_global: bool
    ) -> list[tuple[Space, Any, Any]]:
        if is_global:
            return self.launch.memory.find(addresses, size, access)
        good = (addresses >= 0) & (addresses + size <= self.launch.shared)
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            raise OutOfBounds(
                f"thread {self._own(access, bad)} touches {size} bytes at {int(addresses[bad])} of shared memory, of which "
                f"a block has {self.launch.shared} bytes",
                access.at,
            )
        if (addresses % size).any():
            bad = int(np.flatnonzero(addresses % size)[0])
            raise Misaligned(
                f"thread {self._own(access, bad)} touches {size} bytes at {int(addresses[bad])} of shared memory, no "
                f"multiple of {size}",
                access.at,
            )
        return [(self.shared, None, addresses + self.local[lanes] * self.launch.shared_stride)]

    def load(
        self, address: Compute, bits: int, targets: Any, signed: bool, active: Any, at: Instruction, number: int,
        is_global: bool, is_strong: bool, acquires: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        count = len(targets)
        out = np.zeros((count, self.size), UNSIGNED[bits])
        for space, which, offsets in self.places(addresses, lanes, bits * count // 8, access, is_global):
            chosen = lanes if which is None else lanes[which]
            own = access if which is None else self.access(chosen, at, number)
            if is_strong:
                view = space.atomic(offsets, bits, own)
                out[0, chosen] = view[offsets // (bits // 8)]
            else:
                out[:, chosen] = space.load(offsets, bits, count, own).T
                if self.marks is not None:
                    self.marks.read(targets, chosen, *space.doubtful(offsets, bits, count, own))
        if is_strong:
            if count > 1:
                raise UnknownInstruction("a strong access to a vector", at)
            for thread, where in zip(self.thread[lanes].tolist(), addresses.tolist(), strict=True):
                self.launch.clock.read(thread, where, acquires)
        if signed:
            out = out.view(SIGNED[bits])
        self.set(targets, tuple(out), active, signed)

    def store(
        self, address: Compute, bits: int, reads: list[Compute], active: Any, at: Instruction, number: int,
        is_global: bool, is_strong: bool, releases: bool, block_only: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        data = np.stack([self.full(read(self.regs))[lanes] for read in reads], 1)
        for space, which, offsets in self.places(addresses, lanes, bits * len(reads) // 8, access, is_global):
            own = access if which is None else self.access(lanes[which], at, number)
            values = data if which is None else data[which]
            if is_strong:
                if len(reads) > 1:
                    raise UnknownInstruction("a strong access to a vector", at)
                view = space.atomic(offsets, bits, own)
                view[offsets // (bits // 8)] = values[:, 0]
                space.changed()
            else:
                space.store(offsets, bits, values, own)
        if is_strong:
            for thread, where in zip(self.thread[lanes].tolist(), addresses.tolist(), strict=True):
                self.launch.clock.write(thread, where, releases, False, block_only)

    def atomic(
        self, address: Compute, kind: str, change: Callable[..., Any], reads: list[Compute], targets: Any, active: Any,
        at: Instruction, number: int, is_global: bool, acquires: bool, releases: bool, block_only: bool,
    ) -> None:  # fmt: skip
        lanes = self.lanes_of(active)
        addresses = self.full(address(self.regs))[lanes]
        access = self.access(lanes, at, number)
        bits, dtype = bits_of(kind), dtype_of(kind)
        operands = [self.full(read(self.regs))[lanes] for read in reads]
        old = np.zeros(self.size, dtype)
        for space, which, offsets in self.places(addresses, lanes, bits // 8, access, is_global):
            own = access if which is None else self.access(lanes[which], at, number)
            chosen = np.arange(len(lanes)) if which is None else which
            view = space.atomic(offsets, bits, own).view(dtype)
            places = offsets // (bits // 8)
            if len(np.unique(places)) == len(places):
                before = view[places]
                view[places] = change(before, *(x[chosen] for x in operands))
                old[lanes[chosen]] = before
                changed = (view[places] != before).any()
            else:
                changed = False
                for index, place in zip(chosen.tolist(), places.tolist(), strict=True):
                    before = view[place : place + 1].copy()
                    view[place : place + 1] = change(before, *(x[index : index + 1] for x in operands))
                    old[lanes[index]] = before[0]
                    changed = changed or view[place] != before[0]
            if changed:
                space.changed()
        clock = self.launch.clock
        for thread, where in zip(self.thread[lanes].tolist(), addresses.tolist(), strict=True):
            clock.read(thread, where, acquires)
            clock.write(thread, where, releases, True, block_only)
        if targets:
            self.set(targets, (old,), active)

    def matrices(
        self, address: Compute, count: int, transposed: bool, targets: Any, reads: list[Compute], active: Any,
        at: Instruction, number: int,
    ) -> None:  # fmt: skip
        """8 × 8 matrices of 16 bits: lane l names row l % 8 of matrix l // 8, and holds two numbers of row l // 4."""
        lanes = self.lanes_of(active)
        access = self.access(lanes, at, number)
        rows = self.full(address(self.regs)).reshape(-1, WARP)
        own = np.arange(WARP)
        for matrix in range(count):
            starts = rows[:, 8 * matrix : 8 * matrix + 8]
            if (starts[np.unique(lanes // WARP)] % 16).any():
                raise Misaligned("a row of a matrix is at no multiple of 16 bytes of shared memory", at)
            halves = []
            for part in (0, 1):
                row, column = ((own % 4) * 2 + part, own // 4) if transposed else (own // 4, (own % 4) * 2 + part)
                halves.append((starts[:, row] + 2 * column).reshape(-1)[lanes])
            if not transposed:  # two neighbours: one access of 32 bits
                ((space, _, offsets),) = self.places(halves[0], lanes, 4, access, False)
                if targets:
                    out = np.zeros(self.size, np.uint32)
                    out[lanes] = space.load(offsets, 32, 1, access)[:, 0]
                    if self.marks is not None:
                        self.marks.read(targets[matrix : matrix + 1], lanes, *space.doubtful(offsets, 32, 1, access))
                    self.set(targets[matrix : matrix + 1], (out,), active)
                else:
                    space.store(offsets, 32, self.full(reads[matrix](self.regs))[lanes][:, None], access)
                continue
            out = np.zeros(self.size, np.uint32)
            word = None if targets else self.full(reads[matrix](self.regs))[lanes]
            for part, places in enumerate(halves):
                ((space, _, offsets),) = self.places(places, lanes, 2, access, False)
                shift = np.uint32(16 * part)
                if word is None:
                    out[lanes] |= space.load(offsets, 16, 1, access)[:, 0].astype(np.uint32) << shift
                    if self.marks is not None:
                        self.marks.read(targets[matrix : matrix + 1], lanes, *space.doubtful(offsets, 16, 1, access))
                else:
                    space.store(offsets, 16, (word >> shift).astype(np.uint16)[:, None], access)
            if targets:
                self.set(targets[matrix : matrix + 1], (out,), active)

    # -------------------------------------------------------------------------------------------- copies

    def copy(
        self, target: Compute, source: Compute, size: int, taken: Compute, active: Any, at: Instruction, number: int
    ) -> None:
        """Begins a copy of `size` bytes a thread, of which the first `taken` are read and the others are zero."""
        lanes = self.lanes_of(active)
        access = self.access(lanes, at, number)
        targets, sources = (self.full(x(self.regs))[lanes] for x in (target, source))
        counts = self.full(taken(self.regs))[lanes].astype(np.int64)
        data, _ = self._source(lanes, sources, counts, size, at, number)
        ((space, _, offsets),) = self.places(targets, lanes, size, access, False)
        space.begin_copy(offsets, size, access)
        self.copies.append(_Copy(lanes, self.closed[lanes], offsets, sources, counts, data, at, number))

    def _source(
        self, lanes: Any, sources: Any, counts: Any, size: int, at: Instruction, number: int
    ) -> tuple[Any, Any]:
        """The bytes to be copied, and which of them anybody has written."""
        data, written = np.zeros((len(lanes), size), np.uint8), np.ones((len(lanes), size), bool)
        for count in np.unique(counts[counts > 0]).tolist():
            which = np.flatnonzero(counts == count)
            access = self.access(lanes[which], at, number)
            if (sources[which] % size).any():
                raise Misaligned(f"an asynchronous copy of {size} bytes begins at no multiple of {size}", at)
            width = next(w for w in (8, 4, 2, 1) if count % w == 0)
            for space, some, offsets in self.launch.memory.find(sources[which], min(count, width), access):
                chosen = which if some is None else which[some]
                own = self.access(lanes[chosen], at, number)
                self.launch.memory.find(sources[chosen] + (count - width), width, own)  # its end is inside as well
                data[chosen, :count] = space.load(offsets, 8 * width, count // width, own).view(np.uint8)
                written[chosen, :count] = space.written(offsets, count)
                if self.marks is not None and (race := space.raced(offsets, count, own)) is not None:
                    raise race
        return data, written

    def commit(self, active: Any) -> None:
        self.closed[self.lanes_of(active)] += 1

    def wait(self, left: int, active: Any, at: Instruction, number: int) -> None:
        """Lands the copies of all groups but the last `left`."""
        waits = np.zeros(self.size, bool)
        waits[self.lanes_of(active)] = True
        remaining = []
        for copy in self.copies:
            landed = waits[copy.lanes] & (copy.groups < self.closed[copy.lanes] - left)
            if landed.any():
                self._land(copy, landed, at, number)
            if not landed.all():
                kept = ~landed
                parts = (x[kept] for x in (copy.lanes, copy.groups, copy.targets, copy.sources, copy.taken, copy.data))
                remaining.append(_Copy(*parts, copy.at, copy.number))
        self.copies = remaining

    def _land(self, copy: _Copy, landed: Any, at: Instruction, number: int) -> None:
        lanes, data = copy.lanes[landed], copy.data[landed]
        now, written = self._source(
            lanes, copy.sources[landed], copy.taken[landed], data.shape[1], copy.at, copy.number
        )
        if (now != data).any():
            raise CopyInFlight("the source of an asynchronous copy has changed before it was waited for", copy.at)
        self.shared.end_copy(copy.targets[landed], data, written, self.access(lanes, at, number))
