"""A ⊗ B in Triton, and the place of a program that takes a piece of one row.

The place is computed from scalars, once a program: dividing vectors by sizes is slow.
"""

from __future__ import annotations

from ...triton_or_stub import tl, triton


@triton.jit
def candidate(a, b, dtype: tl.constexpr, PRODUCT: tl.constexpr):
    """A ⊗ B as ⊕ compares it, not yet `rounded`: bfloat16 in fp32, int16 and int8 in int32."""
    if dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    elif dtype == tl.int16 or dtype == tl.int8:
        a, b = a.to(tl.int32), b.to(tl.int32)
    if dtype == tl.int32:
        if PRODUCT:
            x = a.to(tl.int64) * b.to(tl.int64)
            x = tl.minimum(tl.maximum(x, -2147483648), 2147483647).to(tl.int32)
        else:  # b is clamped to where the sum does not wrap: no 64-bit arithmetic, and bounds that depend on a alone
            x = a + tl.minimum(tl.maximum(b, -2147483648 - tl.minimum(a, 0)), 2147483647 - tl.maximum(a, 0))
    else:
        x = a * b if PRODUCT else a + b
    return x


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Rounds or saturates x to a value that the dtype has. Non-decreasing in x."""
    if dtype == tl.bfloat16:
        x = x.to(dtype).to(tl.float32)
    elif dtype == tl.int16:
        x = tl.minimum(tl.maximum(x, -32768), 32767)
    return x


@triton.jit
def combine(a, b, dtype: tl.constexpr, PRODUCT: tl.constexpr):
    """A ⊗ B, rounded to the dtype (bfloat16: through fp32, whose second rounding is innocuous, and held there) or
    saturated at its bounds; int8 is exact in int32.
    """
    return rounded(candidate(a, b, dtype, PRODUCT), dtype)


@triton.jit
def piece_of_a_row(M, N, BLOCK: tl.constexpr):
    """The program's row among all B · M, the row's batch and m, and the columns n [BLOCK]; the last may be outside.

    The grid has B · M · ⌈N / BLOCK⌉ programs.
    """
    pid = tl.program_id(0)
    pieces = tl.cdiv(N, BLOCK)
    row = (pid // pieces).to(tl.int64)
    n = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, row // M, row % M, n
