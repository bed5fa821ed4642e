"""Compares a result with its oracle's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_same(got: Any, expected: Any, exact: bool, what: str = "result") -> None:
    """Demands the same shape, dtype, NaN and values; if the op is not exact, values within the dtype's tolerance."""
    if not isinstance(expected, Tensor):
        for index, (x, y) in enumerate(zip(got, expected, strict=True)):
            assert_same(x, y, exact, f"{what}[{index}]")
        return
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{what}: {got.dtype}, expected {expected.dtype}"
    if not exact and expected.is_floating_point():
        tolerance = TOLERANCE[expected.dtype]
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        return
    wrong = ~((got == expected) | ((got != got) & (expected != expected)))
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, "
            f"first at {where}: {got[where]}, expected {expected[where]}"
        )
