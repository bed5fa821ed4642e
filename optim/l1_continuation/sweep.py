"""The regularization path by a sweep of weighted sums: L(θ) + λ ‖θ‖₁ for one λ after the other, dense to sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .correctors import Held
from .tracing import Tracer, checked_count, checked_number, checked_positive


class L1Sweep(Tracer):
    """The front by proximal gradients at a grid of λ, each begun where the last one ended.

    The walk goes from dense to sparse: near θ = 0 the gradient of a ReLU or tanh network vanishes, and no λ leaves it.

    Args:
        model, loss_fn, h, penalize, seed: as in `L1Continuation`.
        lambdas: the grid, ascending and positive; None: `points` numbers in equal ratios from `least` to `most`.
        first_steps: epochs at the first λ.
        correctors: epochs at each other one.

    Raises:
        ValueError: an argument is out of range, or nothing is penalised.
        TypeError: parameters are of another dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        *,
        lambdas: Iterable[float] | None = None,
        points: int = 17,
        least: float = 1e-5,
        most: float = 2e-2,
        h: float = 0.1,
        first_steps: int = 100,
        correctors: int = 20,
        penalize: Callable[[str], bool] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss_fn, penalize, seed)
        where = self.where
        self.h = checked_positive(where, "h", h)
        self.first_steps = checked_count(where, "first_steps", first_steps, 1)
        self.correctors = checked_count(where, "correctors", correctors, 1)
        if lambdas is None:
            checked_count(where, "points", points, 1)
            checked_positive(where, "least", least)
            checked_number(where, "most", most, "a finite number of at least `least`", lambda x: least <= x < math.inf)
            ratio = (most / least) ** (1 / max(points - 1, 1))
            lambdas = [least * ratio**i for i in range(points)]
        self.lambdas = [checked_positive(where, "a λ of lambdas", x) for x in lambdas]
        if not self.lambdas or self.lambdas != sorted(self.lambdas):
            raise ValueError(
                f"{where}: lambdas is {self.lambdas}; expected one number at least, ascending: dense to sparse"
            )

    def _settings(self) -> dict[str, Any]:
        return {
            "h": self.h, "lambdas": self.lambdas, "first_steps": self.first_steps, "correctors": self.correctors
        }  # fmt: skip

    @property
    def _points(self) -> int:
        return len(self.lambdas)

    def _begin(self) -> None:
        self.position = {"phase": "sweep", "point": 0, "epoch": 0}
        self._hold()

    def _hold(self) -> None:
        corrector = Held(self.weights, self.h)
        corrector.lam = self.lambdas[self.position["point"]]
        corrector.restart()
        self.corrector = corrector

    def _advance(self) -> float:
        at = self.position
        loss = self._correct()
        at["epoch"] += 1
        if at["epoch"] == (self.correctors if at["point"] else self.first_steps):
            point = self._store("sweep", self.corrector.lam)
            at |= {"point": at["point"] + 1, "epoch": 0}
            if at["point"] == len(self.lambdas) or point.l1 == 0:
                at["phase"] = "done"
            else:
                self._hold()
        return loss
