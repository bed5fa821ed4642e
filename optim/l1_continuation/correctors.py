"""Correctors: what takes an iterate back to the front, a step for each mini-batch."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels.proximal_step import held_step, multiobjective_step
from .parameters import Parameters

_LEAST, _MOST = math.log(1e-8), math.log(1e4)  # of log λ in the mean over an epoch, where a batch's λ may be 0 or ∞


class Corrector(Protocol):
    """A step rule; its tensors go into a checkpoint as they are."""

    lam: float  # the weight λ of the ℓ¹ norm that the last epoch ended with

    def restart(self) -> None: ...  # begin at the model's weights, without momentum
    def begin(self) -> None: ...  # an epoch
    def step(self) -> None: ...  # of gradients at the model's weights
    def end(self) -> None: ...  # an epoch
    def iterate(self) -> list[Tensor]: ...  # the weights reached; the model's may be ahead of them
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


class Multiobjective:
    """The multiobjective proximal gradient: each step lets the loss and the norm fall by equal amounts.

    The model's weights are p, where the momentum points; x is the iterate.
    """

    def __init__(self, weights: Parameters, h: float, acceleration: float) -> None:
        self.weights, self.h, self.acceleration = weights, h, acceleration
        self.x: list[Tensor] = []
        self.facts = torch.zeros(4, dtype=torch.float64, device=weights.device)  # k, α, λ, ‖x‖₁
        self.lam = math.nan

    def restart(self) -> None:
        self.x = self.weights.copies()
        self.facts.zero_()

    def begin(self) -> None:
        self._logs = torch.zeros_like(self.facts[0])
        self._steps = 0

    def step(self) -> None:
        multiobjective_step(
            [p.detach() for p in self.weights.parameters], self.weights.gradients(), self.x, self.facts,
            h=self.h, acceleration=self.acceleration, penalized=self.weights.penalized,
        )  # fmt: skip
        self._logs += self.facts[2].log().clamp(_LEAST, _MOST)
        self._steps += 1

    def end(self) -> None:
        self.lam = float(self.facts[2]) if self._steps == 1 else math.exp(float(self._logs) / self._steps)

    def iterate(self) -> list[Tensor]:
        return self.x

    def state(self) -> dict[str, Any]:
        return {"x": [x.cpu() for x in self.x], "facts": self.facts.cpu(), "lam": self.lam}

    def load_state(self, state: dict[str, Any]) -> None:
        self.x = [x.to(self.weights.device) for x in state["x"]]
        self.facts, self.lam = state["facts"].to(self.weights.device), state["lam"]


class Held:
    """Proximal gradient with momentum at a fixed λ; its fixed points are those of L + λ ‖·‖₁."""

    def __init__(self, weights: Parameters, h: float, momentum: float = 0.9) -> None:
        self.weights, self.h, self.momentum, self.lam = weights, h, momentum, math.nan
        self.v: list[Tensor] = []

    def restart(self) -> None:
        self.v = [torch.zeros_like(x) for x in self.weights.parameters]

    def begin(self) -> None:
        pass

    def step(self) -> None:
        held_step(
            [x.detach() for x in self.weights.parameters], self.weights.gradients(), self.v,
            h=self.h, lam=self.lam, momentum=self.momentum, penalized=self.weights.penalized,
        )  # fmt: skip

    def end(self) -> None:
        pass

    def iterate(self) -> list[Tensor]:
        return [x.detach() for x in self.weights.parameters]

    def state(self) -> dict[str, Any]:
        return {"v": [x.cpu() for x in self.v], "lam": self.lam}

    def load_state(self, state: dict[str, Any]) -> None:
        self.v, self.lam = [x.to(self.weights.device) for x in state["v"]], state["lam"]
