"""A hard threshold as a layer:  y = 1 where z > 0, else −1 (or 0); backward, a target."""

from __future__ import annotations

from torch import Tensor, nn

from ...kernels import hard_threshold
from .options import ThresholdOptions

_LEVELS = {"sign": (-1.0, 1.0), "step": (0.0, 1.0)}


class HardThreshold(ThresholdOptions, nn.Module):
    """y = 1 where z > 0, and −1 (or 0) where z ≤ 0: in place of a ReLU, it makes a network of hard thresholds.

    It has no slope. Its backward names a target for every unit, −sign(∂L/∂y), and passes down the gradient of a loss
    of z and this target, by `rule`: mini-batch feasible target propagation (Friesen & Domingos, ICLR 2018, arXiv
    1710.11573). "ste" is the straight-through estimator, "sste" the saturated one.

    Args:
        kind: "sign": −1 and 1; "step": 0 and 1.
        rule: "soft_hinge", "sste", "ste", "hinge", "lecun_tanh", "sste_wide", "ramp", "sigmoid_2_1", "sigmoid_2_2",
            "sigmoid_3_2", "perceptron" or "adaline"; `hard_threshold` has their formulas.
        weighted: False passes down ±1 in place of the gradient, times the rule's factor.
        save: what is kept for the backward. "auto" is the least that is exact; "byte" keeps 8 bits of a real factor.
        pool: 2 takes the maximum over 2 × 2 first, which gives what MaxPool2d(2) in front gives.

    Shapes:
        z, any shape → y, the same; with pool=2 z [..., 2H, 2W] → y [..., H, W].

    Raises:
        TypeError, ValueError: an option is of another type or unknown, or save does not fit the rule.
    """

    def __init__(
        self,
        kind: str = "sign",
        rule: str | None = "soft_hinge",
        weighted: bool = True,
        save: str = "auto",
        pool: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in tuple(_LEVELS):
            raise ValueError(
                f"{type(self).__name__}: kind is {kind!r}; expected one of 'sign', 'step'; QuantizedReLU is the "
                "staircase"
            )
        self._keep_options(kind, None, rule, weighted, save, pool)

    @property
    def levels(self) -> tuple[float, float]:
        """(y where z ≤ 0, y where z > 0)"""
        return _LEVELS[self.kind]

    def forward(self, z: Tensor) -> Tensor:
        return hard_threshold(z, **self._options())

    def extra_repr(self) -> str:
        return self._shown_options("kind", "rule")
