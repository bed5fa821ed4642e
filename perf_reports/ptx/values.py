"""Numbers as a GPU computes them: types, roundings, fused products, conversions, and approximations with their errors.

NumPy rounds single operations of float16, float32 and float64 to nearest. What it has not is built here from exact
parts: a fused product and sum, bfloat16, and the other roundings. "Rounding to odd" keeps what a second rounding needs:
an inexact result gets an odd last bit, so that rounding it to fewer bits is as rounding the exact one.

Source: NVIDIA, Parallel Thread Execution ISA, "Floating-Point Instructions"; Boldo and Melquiond, Emulation of FMA and
correctly rounded sums: proved algorithms using rounding to odd (2008).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}
KINDS = re.compile(r"(pred|[bus](8|16|32|64)|(f16|bf16|s16|u16)(x2)?|f32|f64)$")
_NAN_BITS = {np.float16: 0x7FFF, np.float32: 0x7FFFFFFF, np.float64: 0x7FFFFFFFFFFFFFFF}
CANONICAL_NAN = {np.dtype(t): np.array(bits, f"u{np.dtype(t).itemsize}").view(t)[()] for t, bits in _NAN_BITS.items()}
TINY = np.finfo(np.float32).tiny


def bits_of(kind: str) -> int:
    """The width of a type; of a pair, of both together."""
    return 1 if kind == "pred" else 32 if kind.endswith("x2") else int(re.sub(r"\D", "", kind))


def dtype_of(kind: str) -> Any:
    """NumPy's type of a PTX type; bfloat16 is held as its bits, a pair as the bits of both."""
    if kind == "pred":
        return np.dtype(np.bool_)
    bits = bits_of(kind)
    family = UNSIGNED if kind[0] in "bu" or kind.endswith("x2") else SIGNED if kind[0] == "s" else FLOATS
    return np.dtype(family[bits])


def as_type(value: Any, dtype: np.dtype) -> Any:
    """The low bits of a register's value as another type."""
    if value.dtype == dtype:
        return value
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    unsigned = UNSIGNED[8 * value.dtype.itemsize]
    return value.view(unsigned).astype(UNSIGNED[8 * dtype.itemsize]).view(dtype)


def canonical(value: Any) -> Any:
    """The value with every NaN as the one that NVIDIA's units give."""
    is_nan = value != value
    return np.where(is_nan, CANONICAL_NAN[value.dtype], value) if is_nan.any() else value


def flush(value: Any) -> Any:
    """float32 with subnormal numbers replaced by zeros of their sign."""
    small = np.abs(value) < TINY
    return np.where(small, np.copysign(np.float32(0), value), value) if small.any() else value


# ------------------------------------------------------------------------------------------------ bfloat16, pairs


def from_bf16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(value: Any, mode: str = "rn") -> Any:
    """float32 or float64 to the bits of bfloat16."""
    if value.dtype == np.float64:
        value = to_odd_float32(value)
    word = np.asarray(value, np.float32).view(np.uint32)
    above = word >> np.uint32(16)
    if mode == "rn":
        rounded = (word + np.uint32(0x7FFF) + (above & np.uint32(1))) >> np.uint32(16)
    elif mode == "rz":
        rounded = above
    else:
        raise NotImplementedError(mode)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


def split_pair(value: Any, half: Any) -> Any:
    """The two halves of 32 bits, as a last axis, the lower first."""
    value = np.atleast_1d(np.asarray(value)).view(np.uint32)
    return np.ascontiguousarray(value).view(half).reshape(-1, 2)


def join_pair(halves: Any) -> Any:
    joined = np.ascontiguousarray(halves).view(np.uint32)[:, 0]
    return joined[0] if len(joined) == 1 else joined


# ------------------------------------------------------------------------------------------------ roundings


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b rounded, and what rounding left out."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _to_odd(rounded: Any, left_out: Any) -> Any:
    """float64 `rounded` with its last bit set where something was left out."""
    rounded = np.asarray(rounded, np.float64)
    even = (rounded.view(np.uint64) & np.uint64(1)) == 0
    wrong = even & (left_out != 0) & np.isfinite(rounded) & np.isfinite(left_out)
    return np.where(wrong, np.nextafter(rounded, np.where(left_out > 0, np.inf, -np.inf)), rounded)


def to_odd_float32(value: Any) -> Any:
    """float64 to float32, rounded to odd."""
    near = np.asarray(value).astype(np.float32)
    off = value - near.astype(np.float64)
    away = np.where(off > 0, np.inf, -np.inf).astype(np.float32)
    even = (near.view(np.uint32) & np.uint32(1)) == 0
    return np.where(even & (off != 0) & np.isfinite(near) & np.isfinite(value), np.nextafter(near, away), near)


def fused(a: Any, b: Any, c: Any) -> Any:
    """a · b + c with one rounding, of float16, float32 or float64."""
    if a.dtype == np.float64:
        return _fused64(a, b, c)
    return _fused_to_odd(a, b, c).astype(a.dtype)


def _fused_to_odd(a: Any, b: Any, c: Any) -> Any:
    """a · b + c of narrower numbers in float64, rounded to odd; the product is exact there."""
    total, left_out = two_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    return _to_odd(total, left_out)


def fused_bf16(a: Any, b: Any, c: Any) -> Any:
    """a · b + c of bfloat16 in bits."""
    return to_bf16(_fused_to_odd(from_bf16(a), from_bf16(b), from_bf16(c)))


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """a · b rounded, and what rounding left out (Dekker 1971); for magnitudes within 2^±500."""
    factor = 134217729.0  # 2^27 + 1
    high_a = a * factor - (a * factor - a)
    high_b = b * factor - (b * factor - b)
    low_a, low_b, product = a - high_a, b - high_b, a * b
    return product, low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)


def _fused64(a: Any, b: Any, c: Any) -> Any:
    a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
    product, below = _two_product(a, b)
    tail, tail_left = two_sum(c, below)
    head, head_left = two_sum(product, tail)
    result = head + _to_odd(tail_left + head_left, two_sum(tail_left, head_left)[1])
    sizes = np.abs(np.stack(np.broadcast_arrays(a, b, c, product)))
    extreme = (((sizes > 2.0**500) | (sizes < 2.0**-400)) & (sizes != 0)).any(0) | (product == 0)
    if extreme.any():
        # a product that is too large is finite all the same
        plain = np.where(np.isinf(c) & np.isfinite(a) & np.isfinite(b), c, a * b + c)
        result = np.where(extreme, plain, result)
        hard = extreme & np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0)
        if hard.any():
            result[hard] = [_exactly(*xs) for xs in zip(a[hard], b[hard], c[hard], strict=True)]
    return result[()]


def _exactly(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return float(a) * float(b) + float(c)
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def directed(rounded: Any, left_out: Any, mode: str) -> Any:
    """A result rounded to nearest, moved to what rounding towards zero, −∞ or ∞ gives."""
    down = {"rz": (rounded > 0), "rm": True, "rp": False}[mode]
    wrong = np.where(down, left_out < 0, left_out > 0) & np.isfinite(rounded)
    goal = np.where(down, -np.inf, np.inf).astype(rounded.dtype)
    if mode == "rz":
        goal = np.zeros_like(rounded)
        wrong = ((rounded > 0) & (left_out < 0)) | ((rounded < 0) & (left_out > 0))
    return np.where(wrong, np.nextafter(rounded, goal), rounded).astype(rounded.dtype)


def convert(value: Any, source: str, target: str, mode: str, saturate: bool) -> Any:
    """cvt of one number; `source` and `target` are PTX types, bfloat16 in bits."""
    if source == "bf16":
        value, source = from_bf16(value), "f32"
    if target == "bf16":
        return to_bf16(value if source[0] == "f" else value.astype(np.float64), mode or "rn")
    dtype = dtype_of(target)
    if source[0] == "f" and target[0] == "f":
        if mode in _TO_INTEGER:
            value = _TO_INTEGER[mode](value)
        result = np.asarray(value).astype(dtype)
        if mode in ("rz", "rm", "rp"):
            result = directed(result, value - result.astype(value.dtype), mode)
        result = np.clip(np.where(np.isnan(result), 0, result), 0, 1).astype(dtype) if saturate else result
        return canonical(result)[()]
    if source[0] == "f":
        whole = _TO_INTEGER[mode](np.asarray(value, np.float64))
        bounds = np.iinfo(dtype)
        whole = np.where(np.isnan(whole), 0.0, whole)
        inside = np.where((whole > bounds.min) & (whole < bounds.max), whole, 0.0).astype(dtype)
        high, low = whole >= float(bounds.max), whole <= float(bounds.min)
        result = np.where(high, dtype.type(bounds.max), np.where(low, dtype.type(bounds.min), inside))
        # out of range, a conversion from float64 to 64 bits or a NaN of it gives the lowest number
        return np.where(
            np.isnan(value) & (bits_of(source) == 64),
            dtype.type(1 << (bits_of(target) - 1) if target[0] == "u" else bounds.min),
            result,
        )[()]
    if target[0] == "f":
        if bits_of(source) == 64 and bits_of(target) < 64:
            result = _from_wide_integer(value, dtype)
        else:
            result = np.asarray(value).astype(np.float64 if dtype == np.float16 else dtype).astype(dtype)
        if mode in ("rz", "rm", "rp"):
            exact = np.asarray(value).astype(np.float64)
            if bits_of(source) == 64 or bits_of(target) == 16:
                raise NotImplementedError(mode)
            result = directed(result, exact - result.astype(np.float64), mode)
        return result[()]
    if saturate:
        bounds = np.iinfo(dtype)
        low = max(int(bounds.min), int(np.iinfo(value.dtype).min))
        high = min(int(bounds.max), int(np.iinfo(value.dtype).max))
        return np.clip(value, value.dtype.type(low), value.dtype.type(high)).astype(dtype)
    return value.astype(dtype)


def _from_wide_integer(value: Any, dtype: Any) -> Any:
    """64-bit integers to fewer bits with one rounding: float64 rounded to odd is between."""
    near = np.asarray(value).astype(np.float64)
    # of what float64 cannot hold, float64 is within 2^64 and integral: it converts back, but for 2^63 and 2^64
    bound = 2.0**63 if value.dtype == np.int64 else 2.0**64
    back = np.where(near < bound, near, 0.0).astype(value.dtype)
    difference = np.where(near < bound, np.where(value >= back, 1.0, -1.0) * (value != back), -1.0 * (near != 0))
    return _to_odd(near, difference).astype(dtype)


# ------------------------------------------------------------------------------------------------ approximations

# opcode -> the function, and the largest error that the manual states: relative, and absolute
APPROXIMATE: dict[str, tuple[Callable[..., Any], float, float]] = {
    "ex2": (np.exp2, 2.0**-22, 0.0),
    "lg2": (np.log2, 2.0**-22, 2.0**-22),
    "rcp": (np.reciprocal, 2.0**-23, 0.0),
    "sqrt": (np.sqrt, 2.0**-22, 0.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2.0**-22.4, 0.0),
    "sin": (np.sin, 0.0, 2.0**-20.5),
    "cos": (np.cos, 0.0, 2.0**-20.5),
    "tanh": (np.tanh, 2.0**-10.9, 0.0),
    "div": (np.divide, 2.0**-22, 0.0),
}


class Approximations:
    """Approximate functions as a GPU may compute them: to the nearest, or, seeded, with errors as stated."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)

    def __call__(self, name: str, *values: Any) -> Any:
        function, relative, absolute = APPROXIMATE[name]
        dtype = values[0].dtype
        exact = function(*(np.asarray(value, np.float64) for value in values))
        if self._random is not None:
            sign = self._random.uniform(-1, 1, np.shape(exact))
            moved = exact * (1 + relative * sign) + absolute * sign * np.isfinite(exact)
            exact = np.where(np.isfinite(exact), moved, exact)
        return canonical(np.asarray(exact).astype(dtype))[()]
