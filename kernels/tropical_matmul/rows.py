"""Where a program is that goes through a piece of one row of [B, M, N]: dividing by sizes is for scalars."""

from __future__ import annotations

from ...triton_or_stub import tl, triton


@triton.jit
def piece_of_a_row(M, N, BLOCK: tl.constexpr):
    """The row among all B · M, its batch and its m, and the columns n [BLOCK], of which the last may be outside.

    For a grid of B · M · ⌈N / BLOCK⌉ programs.
    """
    pid = tl.program_id(0)
    pieces = tl.cdiv(N, BLOCK)
    row = (pid // pieces).to(tl.int64)
    n = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, row // M, row % M, n
