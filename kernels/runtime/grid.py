"""How many programs a launch has, worked out on the host."""

from __future__ import annotations


def cdiv(x: int, y: int) -> int:
    """⌈x / y⌉. A call of triton.cdiv takes ten times as long: it is made for kernels as well, and unwraps constants."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The least power of two that is no less than x ≥ 1; of triton.next_power_of_2 the same holds."""
    return 1 << (x - 1).bit_length()
