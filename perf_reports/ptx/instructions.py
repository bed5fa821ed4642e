"""Tells what each arithmetic instruction computes, by table: it becomes a function of the registers.

A register is a vector over the threads, or one NumPy number where all threads have the same. Nothing is changed in
place: what a function returns may be kept by several registers.

Source: NVIDIA, Parallel Thread Execution ISA, "Instruction Set".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import values
from .faults import UnknownInstruction
from .instruction import Instruction
from .parser import Program
from .values import KINDS, SIGNED, UNSIGNED, Approximations, as_type, bits_of, dtype_of

Registers = list[Any]
Compute = Callable[[Registers], Any]
_COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
PARAMETER_SIZE = 16  # from the address of one to that of the next
_LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
_BY_HALVES = {"f16x2": np.float16, "bf16x2": np.uint16, "s16x2": np.int16, "u16x2": np.uint16}


def _is_integer(kind: str) -> bool:
    return kind[0] in "us" or kind in ("b8", "b16", "b32", "b64")


class Compiler:
    """Compiles the instructions of one program."""

    def __init__(self, program: Program, approximate: Approximations) -> None:
        self.program, self.approximate = program, approximate
        self._parameters = [name for _, name in program.parameters]

    def compute(self, at: Instruction) -> Compute:
        """The function of an instruction that reads and writes registers alone.

        Raises:
            UnknownInstruction: it is not known, or has a modifier that is not.
        """
        try:
            make = _TABLE[at.parts[0]]
        except KeyError:
            raise self.unknown(at) from None
        return make(self, at)

    def unknown(self, at: Instruction) -> UnknownInstruction:
        return UnknownInstruction(f"{at.opcode} is not known to this interpreter", at)

    def known(self, at: Instruction, *modifiers: str) -> set[str]:
        """The modifiers of an instruction, beside its types; all must be among those that are named."""
        found = {part for part in at.parts[1:] if not KINDS.match(part)}
        if found - set(modifiers):
            raise self.unknown(at)
        return found

    def kind(self, at: Instruction) -> str:
        """The last type of an instruction."""
        kinds = [part for part in at.parts if KINDS.match(part)]
        if not kinds:
            raise self.unknown(at)
        return kinds[-1]

    def read(self, operand: str, kind: str) -> Compute:
        """A function that reads an operand as a type."""
        dtype = dtype_of(kind)
        if operand.startswith("!"):
            inner = self.read(operand[1:], kind)
            return lambda regs: ~inner(regs)
        constant = self.constant(operand, dtype)
        if constant is not None:
            return lambda regs: constant
        place = self.program.number(operand)
        return lambda regs: as_type(regs[place], dtype)

    def reads(self, operands: Iterable[str], kind: str) -> list[Compute]:
        return [self.read(operand, kind) for operand in operands]

    def constant(self, operand: str, dtype: np.dtype) -> Any:
        """The value of an operand that is a number or an address; None of a register."""
        if operand in self._parameters:
            return as_type(np.uint64((self._parameters.index(operand) + 1) * PARAMETER_SIZE), dtype)
        if operand in self.program.shared:
            return np.array(self.program.shared[operand]).astype(dtype)[()]
        if operand[:2] in ("0f", "0F", "0d", "0D"):
            double = operand[1] in "dD"
            number = np.array(int(operand[2:], 16), np.uint64 if double else np.uint32)
            if dtype.kind == "f":
                return number.view(np.float64 if double else np.float32).astype(dtype)[()]
            return as_type(number, dtype)[()]
        if re.match(r"-?\d", operand):
            number = int(operand.rstrip("U"), 0)
            if dtype.kind == "b":
                return np.bool_(number)
            return np.array(number & ((1 << 8 * dtype.itemsize) - 1), UNSIGNED[8 * dtype.itemsize]).view(dtype)[()]
        return None

    def names(self, operand: str) -> list[str]:
        """The registers of a vector, or the one."""
        return [name.strip() for name in operand.strip("{} ").split(",")]

    def integer(self, at: Instruction, operand: str) -> int:
        if not re.match(r"-?\d", operand):
            raise self.unknown(at)
        return int(operand.rstrip("U"), 0)


# ------------------------------------------------------------------------------------------------ two operands


def _halves(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """The function of two packed halves, from that of one."""
    half = _BY_HALVES[kind]

    def of_pairs(*pairs: Any) -> Any:
        return values.join_pair(function(*(values.split_pair(pair, half) for pair in pairs)).astype(half, copy=False))

    return of_pairs


def _in_bf16(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: values.to_bf16(function(*map(values.from_bf16, xs)))


def _floating(function: Callable[..., Any], kind: str, flushes: bool) -> Callable[..., Any]:
    """A function of floats on operands of a PTX type: packed, in bfloat16, subnormals flushed, its NaN canonical."""
    single = kind.removesuffix("x2")
    if single == "bf16":
        whole = _in_bf16(function)
    elif flushes and single == "f32":

        def whole(*xs: Any) -> Any:
            return values.canonical(values.flush(function(*map(values.flush, xs))))
    else:

        def whole(*xs: Any) -> Any:
            return values.canonical(function(*xs))

    return _halves(whole, kind) if kind.endswith("x2") else whole


def _of(function: Callable[..., Any], reads: Sequence[Compute]) -> Compute:
    match reads:
        case [a]:
            return lambda regs: function(a(regs))
        case [a, b]:
            return lambda regs: function(a(regs), b(regs))
        case [a, b, c]:
            return lambda regs: function(a(regs), b(regs), c(regs))
    return lambda regs: function(*(read(regs) for read in reads))


def _directed_sum(mode: str, sign: int) -> Callable[..., Any]:
    def added(a: Any, b: Any) -> Any:
        total, left_out = values.two_sum(a, b if sign > 0 else -b)
        return values.directed(np.asarray(total), left_out, mode)[()]

    return added


def _directed_product(mode: str) -> Callable[..., Any]:
    def multiplied(a: Any, b: Any) -> Any:
        exact = a.astype(np.float64) * b.astype(np.float64)
        near = np.asarray(exact.astype(a.dtype))
        return values.directed(near, exact - near, mode)[()]

    return multiplied


def _arithmetic(function: Callable[..., Any]) -> Callable[[Compiler, Instruction], Compute]:
    """add, sub, mul: of integers modulo 2^n, of floats with one rounding."""

    def make(compiler: Compiler, at: Instruction) -> Compute:
        kind, name = compiler.kind(at), at.parts[0]
        single = kind.removesuffix("x2")
        if _is_integer(single):
            modifiers = compiler.known(at, "lo", "wide", "hi", "sat")
            if modifiers & {"wide", "hi", "sat"}:
                return _special_integer(compiler, at, kind, function, modifiers)
            whole = _halves(function, kind) if kind.endswith("x2") else function
            return _of(whole, compiler.reads(at.operands[1:], kind))
        modifiers = compiler.known(at, "rn", "rz", "rm", "rp", "ftz")
        mode = (modifiers - {"ftz"} or {"rn"}).pop()
        chosen = function
        if mode != "rn":
            if kind not in ("f32", "f64") or (kind, name) == ("f64", "mul"):
                raise compiler.unknown(at)
            chosen = _directed_product(mode) if name == "mul" else _directed_sum(mode, -1 if name == "sub" else 1)
        return _of(_floating(chosen, kind, "ftz" in modifiers), compiler.reads(at.operands[1:], kind))

    return make


def _special_integer(
    compiler: Compiler, at: Instruction, kind: str, function: Callable[..., Any], modifiers: set[str]
) -> Compute:
    bits = bits_of(kind)
    reads = compiler.reads(at.operands[1:], kind)
    if "wide" in modifiers:
        wide = np.dtype((SIGNED if kind[0] == "s" else UNSIGNED)[2 * bits])
        return _of(lambda a, b: function(a.astype(wide), b.astype(wide)), reads)
    if "hi" in modifiers:
        return _of(lambda a, b: _high(a, b, kind), reads)
    if bits > 32 or kind.endswith("x2"):
        raise compiler.unknown(at)
    bounds = np.iinfo(dtype_of(kind))
    return _of(
        lambda a, b: np.clip(function(a.astype(np.int64), b.astype(np.int64)), bounds.min, bounds.max).astype(a.dtype),
        reads,
    )


def _high(a: Any, b: Any, kind: str) -> Any:
    """The upper half of a product."""
    bits = bits_of(kind)
    if bits < 64:
        wide = (SIGNED if kind[0] == "s" else UNSIGNED)[2 * bits]
        return (a.astype(wide) * b.astype(wide) >> wide(bits)).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if kind[0] == "s":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def _multiply_add(compiler: Compiler, at: Instruction) -> Compute:
    kind = compiler.kind(at)
    if at.parts[0] == "fma" or kind[0] == "f":
        modifiers = compiler.known(at, "rn", "ftz")
        single = kind.removesuffix("x2")
        if single == "bf16":
            whole = values.fused_bf16
            whole = _halves(whole, kind) if kind.endswith("x2") else whole
        else:
            whole = _floating(values.fused, kind, "ftz" in modifiers)
        return _of(whole, compiler.reads(at.operands[1:], kind))
    modifiers = compiler.known(at, "lo", "wide", "hi")
    a, b = compiler.reads(at.operands[1:3], kind)
    if "wide" in modifiers:
        wide = f"{kind[0]}{2 * bits_of(kind)}"
        dtype, c = dtype_of(wide), compiler.read(at.operands[3], wide)
        return lambda regs: a(regs).astype(dtype) * b(regs).astype(dtype) + c(regs)
    c = compiler.read(at.operands[3], kind)
    if "hi" in modifiers:
        return lambda regs: _high(a(regs), b(regs), kind) + c(regs)
    return lambda regs: a(regs) * b(regs) + c(regs)


def _extremum(largest: bool) -> Callable[[Compiler, Instruction], Compute]:
    """max, min: of floats the number where one is NaN, or NaN with .NaN; +0 above −0."""

    def make(compiler: Compiler, at: Instruction) -> Compute:
        kind = compiler.kind(at)
        single = kind.removesuffix("x2")
        if _is_integer(single):
            modifiers = compiler.known(at, "relu")
            best: Callable[..., Any] = np.maximum if largest else np.minimum
            whole = (lambda a, b: np.maximum(best(a, b), a.dtype.type(0))) if "relu" in modifiers else best
            return _of(_halves(whole, kind) if kind.endswith("x2") else whole, compiler.reads(at.operands[1:], kind))
        modifiers = compiler.known(at, "NaN", "ftz")
        keeps = "NaN" in modifiers
        choose = (np.maximum if keeps else np.fmax) if largest else (np.minimum if keeps else np.fmin)

        def chosen(*xs: Any) -> Any:
            best = xs[0]
            for x in xs[1:]:
                zeros = (best == 0) & (x == 0)
                signs = np.signbit(best) & np.signbit(x) if largest else np.signbit(best) | np.signbit(x)
                top = choose(best, x)
                if zeros.any():
                    top = np.where(zeros, np.where(signs, -0.0, 0.0).astype(top.dtype), top)
                best = top
            return best

        return _of(_floating(chosen, kind, "ftz" in modifiers), compiler.reads(at.operands[1:], kind))

    return make


def _divide(compiler: Compiler, at: Instruction) -> Compute:
    kind = compiler.kind(at)
    reads = compiler.reads(at.operands[1:], kind)
    if kind[0] in "us":
        compiler.known(at)

        def quotient(a: Any, b: Any) -> Any:
            return _truncated(a, b)[0]

        return _of(quotient, reads)
    modifiers = compiler.known(at, "rn", "full", "approx", "ftz")
    function = np.divide if "rn" in modifiers else partial(compiler.approximate, "div")
    return _of(_floating(function, kind, "ftz" in modifiers), reads)


def _remainder(compiler: Compiler, at: Instruction) -> Compute:
    compiler.known(at)
    return _of(lambda a, b: _truncated(a, b)[1], compiler.reads(at.operands[1:], compiler.kind(at)))


def _truncated(a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient towards zero, and remainder; by zero, all ones and the dividend, as the hardware's sequence gives."""
    zero = b == 0
    divisor = np.where(zero, b.dtype.type(1), b)
    remainder = np.fmod(a, divisor)
    quotient = np.floor_divide(a - remainder, divisor)
    if np.any(zero):
        quotient, remainder = np.where(zero, ~(a * 0), quotient), np.where(zero, a, remainder)
    return quotient.astype(a.dtype), remainder.astype(a.dtype)


def _bitwise(function: Callable[..., Any]) -> Callable[[Compiler, Instruction], Compute]:
    def make(compiler: Compiler, at: Instruction) -> Compute:
        compiler.known(at)
        return _of(function, compiler.reads(at.operands[1:], compiler.kind(at)))

    return make


def _shift(compiler: Compiler, at: Instruction) -> Compute:
    """shl, shr: by 32 bits of distance, of which all beyond the width shift everything out."""
    compiler.known(at)
    kind = compiler.kind(at)
    bits, left = bits_of(kind), at.parts[0] == "shl"
    value, distance = compiler.read(at.operands[1], kind), compiler.read(at.operands[2], "u32")
    dtype = dtype_of(kind)
    shift = np.left_shift if left else np.right_shift

    def shifted(regs: Registers) -> Any:
        x, by = value(regs), distance(regs)
        small = np.minimum(by, np.uint32(bits - 1)).astype(dtype)
        result = shift(x, small)
        beyond = by >= bits
        if np.any(beyond) and (left or kind[0] != "s"):
            result = np.where(beyond, dtype.type(0), result)
        return result

    return shifted


def _funnel(compiler: Compiler, at: Instruction) -> Compute:
    """shf: 32 of the 64 bits {b, a}, from the left or the right."""
    modifiers = compiler.known(at, "l", "r", "wrap", "clamp")
    low, high, distance = compiler.reads(at.operands[1:], "b32")
    left = "l" in modifiers

    def shifted(regs: Registers) -> Any:
        by = distance(regs)
        by = (by & np.uint32(31) if "wrap" in modifiers else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = high(regs).astype(np.uint64) << np.uint64(32) | low(regs).astype(np.uint64)
        return ((both << by) >> np.uint64(32) if left else both >> by).astype(np.uint32)

    return shifted


# ------------------------------------------------------------------------------------------------ one operand


def _negate(compiler: Compiler, at: Instruction) -> Compute:
    kind = compiler.kind(at)
    modifiers = compiler.known(at, "ftz")
    if kind.startswith("bf16"):
        mask = np.uint32(0x80008000) if kind.endswith("x2") else np.uint16(0x8000)
        return _of(lambda a: a ^ mask, compiler.reads(at.operands[1:], kind))
    function = _floating(operator.neg, kind, "ftz" in modifiers) if kind[0] == "f" else operator.neg
    return _of(function, compiler.reads(at.operands[1:], kind))


def _absolute(compiler: Compiler, at: Instruction) -> Compute:
    kind = compiler.kind(at)
    modifiers = compiler.known(at, "ftz")
    if kind.startswith("bf16"):
        mask = np.uint32(0x7FFF7FFF) if kind.endswith("x2") else np.uint16(0x7FFF)
        return _of(lambda a: a & mask, compiler.reads(at.operands[1:], kind))
    function = _floating(np.abs, kind, "ftz" in modifiers) if kind[0] == "f" else np.abs
    return _of(function, compiler.reads(at.operands[1:], kind))


def _approximate(compiler: Compiler, at: Instruction) -> Compute:
    """ex2, lg2, rcp, sqrt, rsqrt, sin, cos, tanh."""
    kind, name = compiler.kind(at), at.parts[0]
    modifiers = compiler.known(at, "approx", "ftz", "rn")
    read = compiler.read(at.operands[1], kind)
    if "rn" in modifiers:
        if name not in ("rcp", "sqrt"):
            raise compiler.unknown(at)
        function: Callable[..., Any] = np.sqrt if name == "sqrt" else np.reciprocal
    elif kind == "f64" and name in ("rcp", "rsqrt"):
        function = partial(_of_upper_half, values.APPROXIMATE[name][0])
    elif kind in ("f32", "f16", "bf16"):
        function = partial(compiler.approximate, name)
    else:
        raise compiler.unknown(at)
    return _of(_floating(function, kind, "ftz" in modifiers), [read])


def _of_upper_half(function: Callable[..., Any], x: Any) -> Any:
    """An approximation in float64: it reads the upper half of the number, and leaves the lower half zero."""
    upper = np.uint64(0xFFFFFFFF00000000)
    exact = np.asarray(function((np.asarray(x).view(np.uint64) & upper).view(np.float64)))
    return (exact.view(np.uint64) & upper).view(np.float64)[()]


def _count(compiler: Compiler, at: Instruction) -> Compute:
    """popc, clz, brev, bfind."""
    compiler.known(at)
    kind, name = compiler.kind(at), at.parts[0]
    bits = bits_of(kind)
    read = compiler.read(at.operands[1], f"u{bits}")
    if name == "popc":
        return lambda regs: np.bitwise_count(read(regs)).astype(np.uint32)

    def length(x: Any) -> Any:
        """Bits up to the highest one."""
        found = np.zeros(np.shape(x), np.uint32)
        for step in (32, 16, 8, 4, 2, 1):
            if step < bits:
                more = x >> x.dtype.type(step) != 0
                found, x = found + np.uint32(step) * more, np.where(more, x >> x.dtype.type(step), x)
        return (found + (x != 0)).astype(np.uint32)

    if name == "clz":
        return lambda regs: np.uint32(bits) - length(read(regs))
    if name == "bfind" and kind[0] != "s":
        return lambda regs: length(read(regs)) - np.uint32(1)
    if name == "brev":

        def reversed_bits(regs: Registers) -> Any:
            x = read(regs)
            result = x * 0
            for place in range(bits):
                result |= (x >> x.dtype.type(place) & x.dtype.type(1)) << x.dtype.type(bits - 1 - place)
            return result

        return reversed_bits
    raise compiler.unknown(at)


def _not(compiler: Compiler, at: Instruction) -> Compute:
    compiler.known(at)
    return _of(operator.invert, [compiler.read(at.operands[1], compiler.kind(at))])


# ------------------------------------------------------------------------------------------------ choices


def _set_predicate(compiler: Compiler, at: Instruction) -> Compute:
    kind = compiler.kind(at)
    _, comparison, *rest = at.parts
    logic = next((part for part in rest if part in _LOGIC), None)
    flushes = "ftz" in rest
    if [part for part in rest if not KINDS.match(part) and part not in (*_LOGIC, "ftz")]:
        raise compiler.unknown(at)
    a, b = compiler.reads(at.operands[1:3], kind)
    third = compiler.read(at.operands[3], "pred") if logic else None
    floating = kind[0] == "f" or kind.startswith("bf")
    ordered = comparison
    if floating and comparison in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        ordered = comparison[:-1]
    if ordered not in (*_COMPARISONS, "num", "nan") or (logic and "|" in at.operands[0]):
        raise compiler.unknown(at)
    single = kind.removesuffix("x2")

    def compared(regs: Registers) -> Any:
        x, y = a(regs), b(regs)
        if kind.endswith("x2"):
            x, y = values.split_pair(x, _BY_HALVES[kind]), values.split_pair(y, _BY_HALVES[kind])
        if single == "bf16":
            x, y = values.from_bf16(x), values.from_bf16(y)
        if flushes:
            x, y = values.flush(x), values.flush(y)
        if not floating:
            return _COMPARISONS[comparison](x, y)
        if ordered in ("num", "nan"):
            unordered = (x != x) | (y != y)
            return ~unordered if ordered == "num" else unordered
        result = _COMPARISONS[ordered](x, y)
        if ordered != comparison:
            return result | (x != x) | (y != y)
        return result & (x == x) & (y == y) if comparison == "ne" else result

    if third is None:
        chosen: Compute = compared
    else:
        combine = _LOGIC[logic or "and"]
        chosen = lambda regs: combine(compared(regs), third(regs))  # noqa: E731
    if kind.endswith("x2"):

        def of_both(regs: Registers) -> tuple[Any, Any]:
            result = compared(regs)
            return (result[0, 0], result[0, 1]) if len(result) == 1 else (result[:, 0], result[:, 1])

        return of_both
    if "|" in at.operands[0]:

        def with_opposite(regs: Registers) -> tuple[Any, Any]:
            result = compared(regs)
            return result, ~result

        return with_opposite
    return chosen


def _select(compiler: Compiler, at: Instruction) -> Compute:
    compiler.known(at)
    a, b = compiler.reads(at.operands[1:3], compiler.kind(at))
    chosen = compiler.read(at.operands[3], "pred")

    def selected(regs: Registers) -> Any:
        choice = chosen(regs)
        if choice.ndim == 0:
            return a(regs) if choice else b(regs)
        return np.where(choice, a(regs), b(regs))

    return selected


def _lookup(compiler: Compiler, at: Instruction) -> Compute:
    """lop3: any function of three bits."""
    compiler.known(at)
    table = compiler.integer(at, at.operands[4])
    a, b, c = compiler.reads(at.operands[1:4], "b32")

    def looked_up(regs: Registers) -> Any:
        x, y, z = a(regs), b(regs), c(regs)
        result = np.uint32(0)
        for case in range(8):
            if table >> case & 1:
                result = result | (x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z)
        return result

    return looked_up


def _permute(compiler: Compiler, at: Instruction) -> Compute:
    """prmt: four of eight bytes, or their signs."""
    compiler.known(at)
    a, b, selector = compiler.reads(at.operands[1:4], "b32")

    def permuted(regs: Registers) -> Any:
        both = b(regs).astype(np.uint64) << np.uint64(32) | a(regs).astype(np.uint64)
        chosen = selector(regs)
        result = np.uint32(0)
        for place in range(4):
            nibble = chosen >> np.uint32(4 * place)
            byte = (both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(
                255
            )
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            byte = np.where(nibble & np.uint32(8), sign, byte).astype(np.uint32)
            result = result | byte << np.uint32(8 * place)
        return result

    return permuted


def _extract(compiler: Compiler, at: Instruction) -> Compute:
    """bfe: a field of bits, its sign extended if the type has one."""
    compiler.known(at)
    kind = compiler.kind(at)
    bits = bits_of(kind)
    value, start, length = compiler.read(at.operands[1], kind), *compiler.reads(at.operands[2:], "u32")

    def extracted(regs: Registers) -> Any:
        x = value(regs).astype(SIGNED[64] if kind[0] == "s" else np.uint64)
        one = x.dtype.type(1)
        first = (start(regs) & np.uint32(255)).astype(x.dtype)
        size = np.minimum((length(regs) & np.uint32(255)).astype(x.dtype), x.dtype.type(bits))
        if bits == 64 or (kind[0] == "s" and np.any(first + size > bits)):
            raise compiler.unknown(at)
        field = x >> np.minimum(first, x.dtype.type(63)) & (one << size) - one
        if kind[0] == "s":
            sign = one << np.maximum(size, one) - one
            field = np.where(size > 0, (field ^ sign) - sign, 0)
        return field.astype(dtype_of(kind))

    return extracted


def _insert(compiler: Compiler, at: Instruction) -> Compute:
    """bfi: a field of bits put into another word."""
    compiler.known(at)
    kind = compiler.kind(at)
    if bits_of(kind) != 32:
        raise compiler.unknown(at)
    field, word, start, length = compiler.reads(at.operands[1:], "u32")

    def inserted(regs: Registers) -> Any:
        first = np.minimum(start(regs) & np.uint32(255), np.uint32(32)).astype(np.uint64)
        size = np.minimum(length(regs) & np.uint32(255), np.uint32(32)).astype(np.uint64)
        mask = (((np.uint64(1) << size) - np.uint64(1)) << first).astype(np.uint32)
        return word(regs) & ~mask | (field(regs).astype(np.uint64) << first).astype(np.uint32) & mask

    return inserted


def _move(compiler: Compiler, at: Instruction) -> Compute:
    """mov: one register, or the parts of one to or from a vector."""
    compiler.known(at)
    kind, (target, source) = compiler.kind(at), at.operands[:2]
    bits = bits_of(kind)
    if target.startswith("{"):
        names = compiler.names(target)
        part = bits // len(names)
        read, narrow, wide = compiler.read(source, f"u{bits}"), UNSIGNED[part], UNSIGNED[bits]
        return lambda regs: tuple((read(regs) >> wide(part * i)).astype(narrow) for i in range(len(names)))
    if source.startswith("{"):
        names = compiler.names(source)
        part = bits // len(names)
        reads, wide = compiler.reads(names, f"u{part}"), UNSIGNED[bits]

        def joined(regs: Registers) -> Any:
            result = wide(0)
            for i, read in enumerate(reads):
                result = result | read(regs).astype(wide) << wide(part * i)
            return result

        return joined
    return compiler.read(source, kind)


def _convert(compiler: Compiler, at: Instruction) -> Compute:
    kinds = [part for part in at.parts if KINDS.match(part)]
    modifiers = compiler.known(at, "rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz")
    mode = (modifiers - {"sat", "ftz"} or {""}).pop()
    target, source = kinds
    saturate, flushes = "sat" in modifiers, "ftz" in modifiers
    if target.endswith("x2"):
        high, low = compiler.reads(at.operands[1:3], source)
        half = target.removesuffix("x2")

        def packed(regs: Registers) -> Any:
            parts = [values.convert(read(regs), source, half, mode, saturate) for read in (high, low)]
            high_bits, low_bits = (np.asarray(part).view(np.uint16).astype(np.uint32) for part in parts)
            return high_bits << np.uint32(16) | low_bits

        return packed
    read = compiler.read(at.operands[1], source)

    def converted(regs: Registers) -> Any:
        x = read(regs)
        if flushes and source == "f32":
            x = values.flush(x)
        try:
            result = values.convert(x, source, target, mode, saturate)
        except NotImplementedError:
            raise compiler.unknown(at) from None
        return values.flush(result) if flushes and target == "f32" else result

    return converted


def _sign(compiler: Compiler, at: Instruction) -> Compute:
    """copysign: the sign of the first, the magnitude of the second."""
    kind = compiler.kind(at)
    compiler.known(at)
    return _of(lambda a, b: np.copysign(b, a), compiler.reads(at.operands[1:], kind))


def _sum_of_products(compiler: Compiler, at: Instruction) -> Compute:
    """dp4a: a sum of four products of bytes."""
    compiler.known(at)
    first, second = at.parts[1:3]
    a, b = compiler.reads(at.operands[1:3], "b32")
    c = compiler.read(at.operands[3], "s32" if "s" in first + second else "u32")

    def summed(regs: Registers) -> Any:
        total = c(regs).astype(np.int64)
        for place in range(4):
            parts = [(x(regs) >> np.uint32(8 * place)).astype(np.uint8) for x in (a, b)]
            x, y = (p.view(np.int8) if k[0] == "s" else p for p, k in zip(parts, (first, second), strict=True))
            total = total + x.astype(np.int64) * y.astype(np.int64)
        return total.astype(np.uint32)

    return summed


def _test(compiler: Compiler, at: Instruction) -> Compute:
    """testp: what kind of number it is."""
    tests: dict[str, Callable[..., Any]] = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x), "notanumber": np.isnan,
    }  # fmt: skip
    name = at.parts[1]
    if name not in tests:
        raise compiler.unknown(at)
    return _of(tests[name], [compiler.read(at.operands[1], compiler.kind(at))])


_TABLE: dict[str, Callable[[Compiler, Instruction], Compute]] = {
    "add": _arithmetic(operator.add),
    "sub": _arithmetic(operator.sub),
    "mul": _arithmetic(operator.mul),
    "mad": _multiply_add,
    "fma": _multiply_add,
    "max": _extremum(True),
    "min": _extremum(False),
    "div": _divide,
    "rem": _remainder,
    "and": _bitwise(operator.and_),
    "or": _bitwise(operator.or_),
    "xor": _bitwise(operator.xor),
    "not": _not,
    "cnot": lambda compiler, at: _of(
        lambda a: (a == 0).astype(a.dtype), [compiler.read(at.operands[1], compiler.kind(at))]
    ),
    "neg": _negate,
    "abs": _absolute,
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "setp": _set_predicate,
    "selp": _select,
    "lop3": _lookup,
    "prmt": _permute,
    "bfe": _extract,
    "bfi": _insert,
    "mov": _move,
    "cvt": _convert,
    "copysign": _sign,
    "dp4a": _sum_of_products,
    "testp": _test,
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), _count),
    **dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"), _approximate),
}
ARITHMETIC = frozenset(_TABLE)
