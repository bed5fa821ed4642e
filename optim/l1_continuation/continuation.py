"""The regularization path of a network by continuation: the front of loss and ℓ¹ norm, walked from a first point.

    min over θ of (L(θ), ‖θ‖₁):  corrector to a first point θ0;  from it predictor (gradient epochs) and corrector
    towards smaller losses;  from it again predictor (soft threshold) and corrector towards smaller norms

The corrector is the multiobjective proximal gradient (MPG), which lets both objectives fall by equal amounts, or, ours,
the proximal gradient at a λ that is held.

Source: Amakor, Sonntag & Peitz, "A multiobjective continuation method to compute the regularization path of deep neural
networks", arXiv 2308.12044, Machine Learning with Applications 19, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .correctors import Corrector, Held, Multiobjective
from .tracing import Tracer, checked_count, checked_number, checked_positive

_STRIDE = 0.15  # of log ‖θ‖₁ between held points, where no spacing is asked for
_WIDEST = math.log(4.0)  # of log λ in one step
_LEAST, _MOST = 1e-8, 1e4  # of the λ that a step begins at: the first point's may be 0 or ∞
_FALL, _HALVINGS = 4.0, 6  # a step of more strides than this is halved, so many times; then it is the path's own


class L1Continuation(Tracer):
    """The path between the least loss and the sparsest network, from the middle to both ends.

    Args:
        model: any module with float32 or float64 parameters on one device; or DistributedDataParallel around one.
        loss_fn: loss_fn(model(x), y) -> the mean over a batch.
        h: the step of the correctors, positive.
        shrinkage: t of each soft threshold θ ← soft(θ, t) of the sparse predictor.
        acceleration: a of MPG's momentum, max(k − 1, 0) / (k + a).
        first_steps: epochs of MPG to the first point.
        dense_points, sparse_points: points after the first, towards smaller losses and towards smaller norms.
        predictor_steps: epochs of gradient steps before each dense point, at the most.
        shrinkages: soft thresholds before each sparse point.
        correctors: epochs of the corrector before each point.
        predictor: "adam" or "sgd", of the dense predictor; its state lives through the dense phase.
        predictor_lr: its learning rate.
        corrector: "mpg", or "held": λ is held during a corrector, from that of the first point on down for denser and
            up for sparser points, by steps that adapt to even steps of log ‖θ‖₁. There is no predictor then.
        spacing: δ in (0, 1]: points lie about δ of the range apart. The dense predictor ends when loss or norm has
            moved by δ of its range (the loss at θ = 0; the first point's norm), the sparse one takes the threshold
            that leaves (1 − δ) ‖θ‖₁; held points aim at that ratio of norms. None: the fixed counts above.
        penalize: whether the norm takes in the parameter of such a name; None: all, biases too, as the paper has it.
        seed: of torch's and Python's random numbers during a run, and of the loaders' own generators. NumPy's are not
            seeded, nor kept in a checkpoint.

    Counts of steps are epochs of the loader. Attributes: `front`, the points so far.

    Raises:
        ValueError: an argument is out of range, or nothing is penalised.
        TypeError: parameters are of another dtype, or shared out, as under FSDP.
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
        corrector: Literal["mpg", "held"] = "mpg",
        spacing: float | None = None,
        penalize: Callable[[str], bool] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss_fn, penalize, seed)
        where = self.where
        self.h = checked_positive(where, "h", h)
        self.shrinkage = checked_positive(where, "shrinkage", shrinkage)
        self.acceleration = checked_positive(where, "acceleration", acceleration)
        self.predictor_lr = checked_positive(where, "predictor_lr", predictor_lr)
        self.first_steps = checked_count(where, "first_steps", first_steps, 1)
        self.dense_points = checked_count(where, "dense_points", dense_points, 0)
        self.sparse_points = checked_count(where, "sparse_points", sparse_points, 0)
        self.predictor_steps = checked_count(where, "predictor_steps", predictor_steps, 0)
        self.shrinkages = checked_count(where, "shrinkages", shrinkages, 0)
        self.correctors = checked_count(where, "correctors", correctors, 1)
        if spacing is not None:
            checked_number(where, "spacing", spacing, "a number in (0, 1], or None", lambda x: 0 < x <= 1)
        for name, value, choices in (
            ("predictor", predictor, ("adam", "sgd")),
            ("corrector", corrector, ("mpg", "held")),
        ):
            if value not in choices:
                raise ValueError(f"{where}: {name} is {value!r}; expected {' or '.join(map(repr, choices))}")
        self.predictor, self.corrector_kind, self.spacing = predictor, corrector, spacing

    def _settings(self) -> dict[str, Any]:
        names = (
            "h", "shrinkage", "acceleration", "first_steps", "dense_points", "sparse_points", "predictor_steps",
            "shrinkages", "correctors", "predictor", "predictor_lr", "spacing",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"corrector": self.corrector_kind}

    @property
    def _points(self) -> int:
        return 1 + self.dense_points + self.sparse_points

    # -------------------------------------------------------------------------------------------- the walk

    def _begin(self) -> None:
        self.position = {"phase": "start", "point": 0, "stage": "correct", "epoch": 0}
        self._start: dict[str, Tensor] = {}  # the model's state at the first point
        self._left: dict[str, Tensor] = {}  # and at the point that the walk comes from
        self._optimizer = self._new_optimizer()
        self._use(Multiobjective(self.weights, self.h, self.acceleration))

    def _use(self, corrector: Corrector) -> None:
        self.corrector = corrector
        corrector.restart()

    def _advance(self) -> float:
        at = self.position
        if at["stage"] == "predict":
            return self._predict()
        loss = self._correct()
        at["epoch"] += 1
        if at["epoch"] == (self.first_steps if at["phase"] == "start" else self.correctors):
            self._arrive()
        return loss

    def _arrive(self) -> None:
        """The end of a corrector: a point, or, of a held step that went too far, another try at half the step."""
        at = self.position
        if at["phase"] == "start":
            point = self._store("start", self.corrector.lam)
            self._start = self.weights.state()
            at |= {"loss": point.loss, "l1": point.l1, "lam": point.lam, "first_l1": point.l1, "first_lam": point.lam}
            if self.spacing is not None and self.corrector_kind == "mpg":
                at["loss_range"] = self._loss_at_zero()
            self._enter("dense" if self.dense_points else "sparse" if self.sparse_points else "done")
            return
        is_held_sparse = self.corrector_kind == "held" and at["phase"] == "sparse"
        if is_held_sparse and at["tries"] < _HALVINGS and self._has_fallen(at["l1"]):
            at["log_step"] /= 2
            at["tries"] += 1
            self.model.load_state_dict(self._left)
            self._set_lambda()
            return
        before = at["l1"]
        point = self._store(at["phase"], self.corrector.lam)
        at |= {"loss": point.loss, "l1": point.l1, "lam": point.lam, "point": at["point"] + 1}
        if self.corrector_kind == "held":
            self._adapt(before, point.l1)
        at_end = at["phase"] == "sparse" and point.l1 == 0  # 0 is a point of the front that nothing leaves
        if at["point"] == (self.dense_points if at["phase"] == "dense" else self.sparse_points) or at_end:
            self._enter("sparse" if at["phase"] == "dense" and self.sparse_points else "done")
        else:
            self._leave()

    def _enter(self, phase: str) -> None:
        at = self.position
        at |= {"phase": phase, "point": 0}
        if phase == "done":
            return
        if phase == "sparse":
            self.model.load_state_dict(self._start)
            at |= {"l1": at["first_l1"], "lam": at["first_lam"]}
        if self.corrector_kind == "held":
            at["log_step"] = math.log(2.0)
        self._leave()

    def _leave(self) -> None:
        """Sets out from a point for the next one."""
        at = self.position
        at |= {"epoch": 0, "stage": "correct"}
        if self.corrector_kind == "held":
            self._left = self.weights.state()
            at["tries"] = 0
            self._set_lambda()
        elif at["phase"] == "sparse":
            self._shrink()
            self._use(Multiobjective(self.weights, self.h, self.acceleration))
        elif self.predictor_steps:
            at["stage"] = "predict"
        else:
            self._use(Multiobjective(self.weights, self.h, self.acceleration))

    # -------------------------------------------------------------------------------------------- predictors

    def _new_optimizer(self) -> torch.optim.Optimizer:
        if self.predictor == "adam":
            return torch.optim.Adam(self.weights.parameters, lr=self.predictor_lr)
        return torch.optim.SGD(self.weights.parameters, lr=self.predictor_lr)

    def _predict(self) -> float:
        at = self.position
        loss = self.epochs.train(self._loader, self.weights.parameters, self._optimizer.step)
        self.count += 1
        at["epoch"] += 1
        has_moved = self.spacing is not None and (
            at["loss"] - loss >= self.spacing * at["loss_range"]
            or self.weights.l1() - at["l1"] >= self.spacing * at["first_l1"]
        )
        if has_moved or at["epoch"] == self.predictor_steps:
            at |= {"stage": "correct", "epoch": 0}
        self._use(Multiobjective(self.weights, self.h, self.acceleration))  # so that the iterate is the model's weights
        return loss

    def _shrink(self) -> None:
        if self.spacing is None:
            self.weights.shrink(self.shrinkages * self.shrinkage)  # n soft thresholds by t are one by n t
        else:
            self.weights.shrink(self.weights.threshold_of_share(1 - self.spacing))

    def _loss_at_zero(self) -> float:
        """The loss of the network whose penalised weights are all 0: the range of the losses."""
        kept = self.weights.copies()
        self.weights.shrink(math.inf)
        loss = self.epochs.evaluate(self._loader).loss
        self.weights.write(kept)
        return loss

    # -------------------------------------------------------------------------------------------- held λ

    def _set_lambda(self) -> None:
        at = self.position
        corrector = Held(self.weights, self.h)
        toward = 1 if at["phase"] == "sparse" else -1
        corrector.lam = min(max(at["lam"], _LEAST), _MOST) * math.exp(toward * at["log_step"])
        at |= {"epoch": 0, "stage": "correct"}
        self._use(corrector)

    @property
    def _stride(self) -> float:
        """How far apart points are to lie, in log ‖θ‖₁."""
        return _STRIDE if self.spacing is None else -math.log1p(-min(self.spacing, 0.99))

    def _has_fallen(self, before: float) -> bool:
        """Whether a step towards sparser networks went so far that the network may have collapsed on the way."""
        return self.weights.l1() < before * math.exp(-_FALL * self._stride)

    def _adapt(self, before: float, after: float) -> None:
        """Lengthens or shortens the next step of log λ, so that log ‖θ‖₁ moves by even steps."""
        moved = abs(math.log(after / before)) if before > 0 and after > 0 else math.inf
        factor = self._stride / moved if moved > 0 else 2.0
        self.position["log_step"] = min(self.position["log_step"] * min(max(factor, 0.5), 2.0), _WIDEST)

    # -------------------------------------------------------------------------------------------- checkpoints

    def _extra(self) -> dict[str, Any]:
        return {"start": self._start, "left": self._left, "optimizer": self._optimizer.state_dict()}

    def _load_extra(self, state: dict[str, Any]) -> None:
        self._start, self._left = state["start"], state["left"]
        self._optimizer.load_state_dict(state["optimizer"])
        if self.corrector_kind == "held" and self.position["phase"] != "start":
            self.corrector = Held(self.weights, self.h)
