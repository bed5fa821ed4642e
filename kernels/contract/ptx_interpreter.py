"""Runs PTX without a GPU: the only way to see there what a Gluon kernel computes.

All threads of a block step together, and each register is a vector over them. A branch must be uniform, and an unknown
instruction stops the run. The memory model is stricter than any GPU's:

* global memory is the buffers of the arguments alone: an access outside of them is an error;
* an asynchronous copy lands when it is waited for and not before, so that reading ahead of it is an error;
* only after a barrier may other threads read what a thread's copy has landed, or overwrite what a thread has read.

Semantics: NVIDIA, Parallel Thread Execution ISA.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_TYPES = {
    **dict.fromkeys(("b16", "u16"), np.uint16),
    **dict.fromkeys(("b32", "u32"), np.uint32),
    **dict.fromkeys(("b64", "u64"), np.uint64),
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    **dict.fromkeys(("f16", "f16x2"), np.float16),  # pairs are a vector twice as long
    "f32": np.float32,
    "pred": np.bool_,
}
_COMPARISONS = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("mul", "mul.lo"), operator.mul),
    "add": operator.add,
    "sub": operator.sub,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "max": np.fmax,
    "min": np.fmin,
    "max.NaN": np.maximum,
    "min.NaN": np.minimum,
    "div": lambda a, b: (np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype),  # towards zero
}
_INSTRUCTION = re.compile(r"^\s*(?:@(!?)(%p\d+)\s+)?([a-zA-Z][\w.]*)\s*(.*)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_BASE = 1 << 40  # the address of the first buffer, and the distance from each buffer to the next


class Race(RuntimeError):
    """Threads of a block did not wait for one another, or for a copy."""


def run(text: str, arguments: Sequence[np.ndarray | int], blocks: int, threads: int, shared: int) -> None:
    """Launches the only kernel of a PTX text. An array is passed as a pointer to it, and written in place.

    Raises:
        Race: threads do not wait for one another, or for a copy.
        ValueError: an array is not contiguous.
        IndexError: an access outside of all buffers, or one that is not aligned.
        NotImplementedError: an instruction that this interpreter does not know.
    """
    for index, x in enumerate(arguments):
        if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
            raise ValueError(
                f"ptx.run: argument {index}, {x.shape}, is not contiguous: give np.ascontiguousarray of it"
            )
    program, labels = [], {}
    for line in text[text.index("{\n", text.index(".entry")) : text.index("// -- End function")].splitlines():
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = len(program)
            continue
        for parts in filter(None, map(_INSTRUCTION.match, line.split(";"))):  # inline assembly has several in a line
            program.append((parts[1] == "!", parts[2], parts[3], _OPERAND.findall(parts[4])))
    for block in range(blocks):
        _Block(program, labels, arguments, block, threads, shared).run()


class _Block:
    def __init__(self, program, labels, arguments, block, threads, shared) -> None:
        self.program, self.labels, self.arguments = program, labels, arguments
        self.buffers = [x.reshape(-1).view(np.uint8) for x in arguments if isinstance(x, np.ndarray)]
        pointers = iter(range(_BASE, _BASE * (len(self.buffers) + 1), _BASE))
        self.parameters = [next(pointers) if isinstance(x, np.ndarray) else x for x in arguments]
        self.lanes = np.arange(threads)
        self.registers = {"%tid.x": self.lanes.astype(np.uint32), "%ctaid.x": np.full(threads, block, np.uint32)}
        self.registers["global_smem"] = np.zeros(threads, np.uint32)
        self.shared = np.zeros(shared // 4, np.uint32)
        # of each word of shared memory: whether a copy to it has not landed yet
        self.flying = np.zeros(shared // 4, bool)
        # the only thread that may read it, since its copy landed after the last barrier; -1: all may
        self.landed = np.full(shared // 4, -1)
        # the thread that has read it since the last barrier; -1: none; -2: several
        self.reader = np.full(shared // 4, -1)
        self.groups: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []
        self.group: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def run(self) -> None:
        at = 0
        while True:
            negated, guard, opcode, operands = self.program[at]
            active = np.ones(len(self.lanes), bool) if guard is None else self.registers[guard] ^ negated
            at += 1
            if opcode == "ret":
                return
            if opcode.startswith("bra"):
                if active.any() != active.all():
                    raise NotImplementedError("ptx.run: a branch that the threads of a block do not share")
                at = self.labels[operands[-1]] if active.all() else at
            else:
                with np.errstate(all="ignore"):
                    self.step(opcode, operands, active)

    def read(self, operand: str, kind: str) -> np.ndarray:
        dtype = _TYPES[kind]
        if operand in self.registers:
            value = self.registers[operand]
            return value if value.dtype == dtype else value.view(dtype)
        if operand.startswith("0f"):
            return np.full(len(self.lanes), int(operand[2:], 16), np.uint32).view(dtype)
        number = int(operand.rstrip("U"), 0)
        if dtype == np.float32:
            raise NotImplementedError(f"ptx.run: the float {operand}")
        return np.full(len(self.lanes), number & (1 << 8 * dtype().itemsize) - 1, f"u{dtype().itemsize}").view(dtype)

    def write(self, name: str, value: np.ndarray) -> None:
        self.registers[name] = value

    def address(self, operand: str, kind: str) -> np.ndarray:
        base, *offset = operand.strip("[] ").replace(" ", "").split("+")
        return self.read(base, kind).astype(np.int64) + (int(offset[0]) if offset else 0)

    def bytes_at(self, addresses: np.ndarray, size: int) -> list[np.ndarray]:
        """Views of the `size` bytes at each address, to be read or written."""
        places = []
        for address in addresses.tolist():
            buffer, start = divmod(address, _BASE)
            if not 1 <= buffer <= len(self.buffers) or start + size > len(self.buffers[buffer - 1]) or start % size:
                raise IndexError(f"ptx.run: {size} bytes at {address:#x} are in no buffer, or not aligned")
            places.append(self.buffers[buffer - 1][start : start + size])
        return places

    def land(self, left: int) -> None:
        """Lands all groups of copies but the last `left`."""
        while len(self.groups) > left:
            for threads, words, data in self.groups.pop(0):
                self.shared[words], self.flying[words], self.landed[words] = data, False, threads[:, None]

    def copy(self, operands: list[str], active: np.ndarray) -> None:
        """Begins a copy of 16 bytes a thread, or of as many zeros."""
        threads = self.lanes[active]
        words = self.address(operands[0], "b32")[active][:, None] // 4 + np.arange(4)
        if ((self.reader[words] != -1) & (self.reader[words] != threads[:, None])).any():
            raise Race("ptx.run: a copy overwrites what other threads may still read")
        data = np.zeros((len(threads), 4), np.uint32)
        wanted = self.read(operands[3], "u32")[active] > 0 if len(operands) > 3 else np.ones(len(threads), bool)
        sources = self.address(operands[1], "b64")[active][wanted]
        if wanted.any():
            data[wanted] = np.stack(self.bytes_at(sources, 16)).view(np.uint32)
        self.flying[words] = True
        self.group.append((threads, words, data))

    def load_shared(self, operands: list[str], active: np.ndarray) -> None:
        names = _names(operands[0])
        words = self.address(operands[1], "b32")[:, None] // 4 + np.arange(len(names))
        lanes = np.broadcast_to(self.lanes[:, None], words.shape)
        if self.flying[words].any() or ((self.landed[words] != -1) & (self.landed[words] != lanes)).any():
            raise Race("ptx.run: a thread reads what was not waited for")
        others = (self.reader[words] != -1) & (self.reader[words] != lanes)
        self.reader[words] = lanes
        others |= self.reader[words] != lanes  # another lane of this very instruction
        self.reader[words[others]] = -2
        for name, column in zip(names, words.T, strict=True):
            self.write(name, self.shared[column])

    def store(self, kind: str, operands: list[str], active: np.ndarray) -> None:
        names = _names(operands[1])
        data = np.stack([self.read(name, kind) for name in names], 1)[active]
        places = self.bytes_at(self.address(operands[0], "b64")[active], data.itemsize * len(names))
        for place, row in zip(places, data, strict=True):
            place[:] = row.view(np.uint8)

    def step(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        name, _, kind = opcode.rpartition(".")
        if opcode.startswith("cp.async.cg"):
            self.copy(operands, active)
        elif opcode == "cp.async.commit_group":
            self.groups.append(self.group)
            self.group = []
        elif opcode == "cp.async.wait_group":
            self.land(int(operands[0]))
        elif opcode == "bar.sync":
            self.landed[:] = self.reader[:] = -1
        elif opcode.startswith("ld.shared") and kind == "b32" and active.all():
            self.load_shared(operands, active)
        elif opcode.startswith("st.global"):
            self.store(kind, operands, active)
        elif opcode.startswith("ld.global") and active.all():
            size = _TYPES[kind]().itemsize
            data = np.stack(self.bytes_at(self.address(operands[1], "b64"), size)).view(_TYPES[kind])
            for register, column in zip(_names(operands[0]), data.T, strict=True):
                self.write(register, np.ascontiguousarray(column))
        elif opcode.startswith("ld.param") and active.all():
            value = self.parameters[int(operands[1].rstrip("]").rpartition("_")[2])]
            self.write(operands[0], self.read(str(value), kind))
        elif opcode == "mov.b32" and operands[0].startswith("{"):
            halves = self.read(operands[1], "b32").view(np.uint16).reshape(-1, 2)
            for half, column in zip(_names(operands[0]), halves.T, strict=True):
                self.write(half, np.ascontiguousarray(column))
        elif active.all():
            self.write(operands[0], self.value(name, kind, operands[1:]))
        else:
            raise NotImplementedError(f"ptx.run: {opcode} under a predicate")

    def value(self, name: str, kind: str, operands: list[str]) -> np.ndarray:
        wide = {"s32": np.int64, "u32": np.uint64}
        if name == "mov" and operands[0].startswith("{"):
            return np.stack([self.read(half, "b16") for half in _names(operands[0])], 1).view(np.uint32)[:, 0]
        if name == "mov":
            return self.read(operands[0], kind)
        if name.startswith("cvt"):
            return self.read(operands[0], kind).astype(_TYPES[name.split(".")[1]])
        if name in ("shl", "shr"):
            shift = operator.lshift if name == "shl" else operator.rshift
            return shift(self.read(operands[0], kind), self.read(operands[1], "u32").astype(_TYPES[kind]))
        if name == "selp":
            return np.where(self.read(operands[2], "pred"), self.read(operands[0], kind), self.read(operands[1], kind))
        if name == "bfe":
            start, length = (int(x) for x in operands[1:])
            return self.read(operands[0], kind) >> np.uint32(start) & np.uint32((1 << length) - 1)
        if name == "prmt":
            pair = np.stack([self.read(x, "b32") for x in operands[:2]], 1).view(np.uint8)
            pick = [int(operands[2].rstrip("U"), 0) >> 4 * i & 7 for i in range(4)]
            return np.ascontiguousarray(pair[:, pick]).view(np.uint32)[:, 0]
        if name in ("mul.wide", "mad.wide"):
            product = self.read(operands[0], kind).astype(wide[kind]) * self.read(operands[1], kind).astype(wide[kind])
            return product + self.read(operands[2], kind.replace("32", "64")) if name == "mad.wide" else product
        if name == "mad.lo":
            return self.read(operands[0], kind) * self.read(operands[1], kind) + self.read(operands[2], kind)
        if name.startswith("setp."):
            comparison = name.removeprefix("setp.")
            a, b = (self.read(x, kind) for x in operands)
            return a != b if comparison in ("ne", "neu") else _COMPARISONS[comparison](a, b)
        if name not in _BINARY:
            raise NotImplementedError(f"ptx.run: {name}.{kind}")
        return _BINARY[name](*(self.read(x, kind) for x in operands))


def _names(vector: str) -> list[str]:
    return vector.strip("{} ").replace(" ", "").split(",")
