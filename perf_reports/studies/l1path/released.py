"""The algorithm as its authors released it, with what goes wrong in it. The study measures it; the library does not.

It differs from `L1Continuation(corrector="mpg")` in this:

    α comes from ten bisections, so it is an odd multiple of 2⁻¹¹, and λ = (1 − α)/α one of 4.89e-4, 1.47e-3, … 2047;
    momentum sets out from the last *accelerated* point:  p = x + (k − 1)/(k + a) (x − p_before), an over-relaxation;
    its coefficient is −1/a at k = 0, after each restart (at the start it multiplies zero);
    momentum is not reset at a predictor, nor on the return to the first point.

`ends` is the rule by which its iris run ends a predictor: the loss has fallen by one number, or ℓ¹ grown by another.
`momentum=False` is its form for iris, whose counter never advances. That form's end of the first phase, at ‖θ‖ < .01 in
place of a short step, is left out.

Source: github.com/aamakor/continuation-method, predictor-corrector, in our words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....optim.l1_continuation.parameters import Parameters
from ....optim.l1_continuation.tracing import Tracer

_BISECTIONS = 10

# What the authors' repository holds of their own runs; accuracies are of training and test, from dense to sparse
STORED: tuple[dict[str, Any], ...] = (
    {
        "data": "MNIST", "method": "continuation", "points": 44, "accuracy": "99.2 / 95.9 to 82.3 / 81.1 %",
        "seconds": 329, "facts": "loss .036 to .66; ℓ¹ 285 at the first point, 50 at the sparse end",
        "wrong": "norms are stored divided by 44, and the file of norms is empty",
    },
    {
        "data": "MNIST", "method": "weighted sum", "points": 44, "accuracy": "43 of 44 points at chance",
        "seconds": 1140, "facts": "8,800 epochs of Adam, one model walked from the sparse end",
        "wrong": "it walks from w = 0, where a ReLU network has no gradient to leave by; this run is what 3.46 × is of",
    },
    {
        "data": "MNIST", "method": "NSGA-II", "points": None, "accuracy": "17.8 %", "seconds": 810,
        "facts": "10,000 evaluations, losses 59 to 223",
        "wrong": "binary sampling and bit flips: every weight is 0 or 1",
    },
    {
        "data": "CIFAR-10", "method": "continuation", "points": 21, "accuracy": "54.5 / 52.8 to 17.3 / 16.5 %",
        "seconds": None, "facts": "ℓ¹ divided by 8.16",
        "wrong": "pixels are laid out as HWC and read as CHW; the test figures are of the last batch, 750 images",
    },
    {
        "data": "CIFAR-10", "method": "weighted sum", "points": 20, "accuracy": "19 of 20 points at chance",
        "seconds": None, "facts": "",
        "wrong": "as on MNIST",
    },
)  # fmt: skip


class Released(Tracer):
    """The walk from a first point to smaller losses, and from it again to smaller norms.

    Args:
        model, loss_fn, h, shrinkage, acceleration, first_steps, dense_points, sparse_points, predictor_steps,
            shrinkages, correctors, predictor, predictor_lr, seed: as in `L1Continuation`.
        momentum: False leaves it out.
        ends: (fall of the loss, growth of ℓ¹) since the last point, of which either ends the dense predictor before
            predictor_steps; None: neither does.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        *,
        h: float = 0.1,
        shrinkage: float = 5e-4,
        acceleration: float = 2,
        first_steps: int = 500,
        dense_points: int = 25,
        sparse_points: int = 18,
        predictor_steps: int = 7,
        shrinkages: int = 7,
        correctors: int = 20,
        predictor: Literal["adam", "sgd"] = "adam",
        predictor_lr: float = 1e-3,
        momentum: bool = True,
        ends: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss_fn, None, seed)
        self.h, self.shrinkage, self.acceleration, self.momentum = h, shrinkage, acceleration, momentum
        self.first_steps, self.dense_points, self.sparse_points = first_steps, dense_points, sparse_points
        self.predictor_steps, self.shrinkages, self.correctors = predictor_steps, shrinkages, correctors
        self.predictor, self.predictor_lr, self.ends = predictor, predictor_lr, ends

    def _settings(self) -> dict[str, Any]:
        names = (
            "h", "shrinkage", "acceleration", "momentum", "first_steps", "dense_points", "sparse_points",
            "predictor_steps", "shrinkages", "correctors", "predictor", "predictor_lr", "ends",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def _points(self) -> int:
        return 1 + self.dense_points + self.sparse_points

    def _begin(self) -> None:
        self.position = {"phase": "start", "point": 0, "stage": "correct", "epoch": 0}
        self._start: dict[str, Tensor] = {}
        optimizer = torch.optim.Adam if self.predictor == "adam" else torch.optim.SGD
        self._optimizer = optimizer(self.weights.parameters, lr=self.predictor_lr)
        self.corrector = _Bisecting(self.weights, self.h, self.acceleration, self.momentum)
        self.corrector.restart()

    def _advance(self) -> float:
        at = self.position
        if at["stage"] == "predict":
            loss = self.epochs.train(self._loader, self.weights.parameters, self._optimizer.step)
            self.count += 1
            at["epoch"] += 1
            has_moved = self.ends is not None and (
                at["loss"] - loss >= self.ends[0] or self.weights.l1() - at["l1"] >= self.ends[1]
            )
            if has_moved or at["epoch"] == self.predictor_steps:
                at |= {"stage": "correct", "epoch": 0}
            return loss
        assert isinstance(self.corrector, _Bisecting)
        loss = self.epochs.train(self.corrector.before_each(self._loader), self.weights.parameters, self.corrector.step)
        self.count += 1
        at["epoch"] += 1
        if at["epoch"] == (self.first_steps if at["phase"] == "start" else self.correctors):
            point = self._store(at["phase"], self.corrector.lam)
            at |= {"loss": point.loss, "l1": point.l1}
            self._leave()
        return loss

    def _leave(self) -> None:
        at = self.position
        if at["phase"] == "start":
            self._start = self.weights.state()
            at |= {"phase": "dense", "point": 0}
        else:
            at["point"] += 1
        if at["phase"] == "dense" and at["point"] == self.dense_points:
            self.model.load_state_dict(self._start)
            at |= {"phase": "sparse", "point": 0}
        if at["phase"] == "sparse" and at["point"] == self.sparse_points:
            at["phase"] = "done"
        elif at["phase"] == "sparse":
            self.weights.shrink(self.shrinkages * self.shrinkage)  # n soft thresholds by t are one by n t
        at["epoch"] = 0
        at["stage"] = "predict" if at["phase"] == "dense" and self.predictor_steps else "correct"

    def _extra(self) -> dict[str, Any]:
        return {"start": self._start, "optimizer": self._optimizer.state_dict()}

    def _load_extra(self, state: dict[str, Any]) -> None:
        self._start = state["start"]
        self._optimizer.load_state_dict(state["optimizer"])


class _Bisecting:
    """The corrector: momentum before a mini-batch, a proximal gradient at its α after it."""

    def __init__(self, weights: Parameters, h: float, acceleration: float, has_momentum: bool) -> None:
        self.weights, self.h, self.acceleration, self.has_momentum = weights, h, acceleration, has_momentum
        self.lam = float("nan")

    def restart(self) -> None:
        self.k, self.last = 0, self.weights.copies()

    @torch.no_grad()
    def before_each(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; before each of them the momentum."""
        for batch in loader:
            if self.has_momentum:
                self._accelerate()
            with torch.enable_grad():
                yield batch

    def _accelerate(self) -> None:
        x = self.weights.copies()
        coefficient = (self.k - 1) / (self.k + self.acceleration)
        p = [xi + coefficient * (xi - last) for xi, last in zip(x, self.last, strict=True)]
        has_grown = bool(sum(pi.abs().sum() for pi in p) > sum(xi.abs().sum() for xi in x))
        self.k = 0 if has_grown else self.k + 1
        self.last = x if has_grown else p
        self.weights.write(self.last)
        self.last = [last.clone() for last in self.last]

    @torch.no_grad()
    def step(self) -> None:
        x = torch.cat([p.detach().flatten() for p in self.weights.parameters])
        d = torch.cat([g.flatten() for g in self.weights.gradients()])
        norm = x.abs().sum()
        alpha = 0.5
        for j in range(_BISECTIONS):
            y = self._proximal(x, d, alpha)
            is_high = bool(torch.dot(d, y - x) > y.abs().sum() - norm)
            alpha += 0.5 ** (j + 2) if is_high else -(0.5 ** (j + 2))
        y = self._proximal(x, d, alpha)
        self.lam = (1 - alpha) / alpha
        sizes = [p.numel() for p in self.weights.parameters]
        self.weights.write([
            part.view_as(p) for part, p in zip(y.split(sizes), self.weights.parameters, strict=True)
        ])  # fmt: skip

    def _proximal(self, x: Tensor, d: Tensor, alpha: float) -> Tensor:
        z = x - self.h * alpha * d
        return z.sign() * (z.abs() - self.h * (1 - alpha)).clamp(min=0)

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def iterate(self) -> list[Tensor]:
        return [p.detach() for p in self.weights.parameters]

    def state(self) -> dict[str, Any]:
        return {"k": self.k, "last": [x.cpu() for x in self.last], "lam": self.lam}

    def load_state(self, state: dict[str, Any]) -> None:
        self.k, self.lam = state["k"], state["lam"]
        self.last = [x.to(self.weights.device) for x in state["last"]]
