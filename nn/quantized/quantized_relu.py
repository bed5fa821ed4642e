"""A staircase between 0 and 1 as a layer; backward, a target."""

from __future__ import annotations

from torch import Tensor, nn

from ...kernels import hard_threshold
from .options import ThresholdOptions


class QuantizedReLU(ThresholdOptions, nn.Module):
    """y = clamp(⌈z (n − 1)⌉, 0, n) / n: a ReLU that saturates at 1, in n steps; as HardThreshold in all else.

    It rises above 0, 1 / (n − 1), …, 1. With n = 3 a unit has four levels, which 2 bits tell apart.

    Args:
        steps: n, at least 2.
        rule: "soft_hinge", "sste" or "ste".
        weighted, save, pool: as in HardThreshold.

    Shapes:
        z, any shape → y, the same; with pool=2 z [..., 2H, 2W] → y [..., H, W].

    Raises:
        TypeError, ValueError: an option is of another type, out of its range or unknown, or save does not fit the rule.
    """

    steps: int

    def __init__(
        self,
        steps: int = 3,
        rule: str | None = "soft_hinge",
        weighted: bool = True,
        save: str = "auto",
        pool: int | None = None,
    ) -> None:
        super().__init__()
        self._keep_options("staircase", steps, rule, weighted, save, pool)

    @property
    def levels(self) -> tuple[float, ...]:
        """0, 1 / n, …, 1"""
        return tuple(k / self.steps for k in range(self.steps + 1))

    def forward(self, z: Tensor) -> Tensor:
        return hard_threshold(z, **self._options())

    def extra_repr(self) -> str:
        return self._shown_options("steps", "rule")
