"""Rivals of a walk along the front: magnitude pruning, NSGA-II, and LassoNet on tables.

pymoo and LassoNet are no dependencies; where one is not installed, `Absent` says so.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from ....optim import ParetoFront
from ....optim.l1_continuation.epochs import Epochs
from ....optim.l1_continuation.front import Point
from ....optim.l1_continuation.parameters import Parameters
from .methods import Task

_POPULATION = 50
_BOUND = 3.0  # of a weight, in NSGA-II


class Absent(Exception):
    """A package that is not installed."""


def optional(module: str) -> Any:
    """The module of a package that is no dependency.

    Raises:
        Absent: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"{module.partition('.')[0]} is not installed ({error})") from None


class Measured:
    """Takes the points of a front from a model's weights as they stand, as a walk does."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.task = task
        self.weights = Parameters("rivals", copy.deepcopy(model), None)
        self.model = self.weights.model
        self.epochs = Epochs("rivals", self.model, functional.cross_entropy, self.weights.device)
        self.front = ParetoFront(model=self.model)

    def store(self, values: list[Tensor], phase: str, epochs: float) -> None:
        self.weights.write(values)
        training = self.epochs.evaluate(self.task.train)
        validation = self.epochs.evaluate(self.task.validation)
        point = Point(
            loss=training.loss,
            l1=self.weights.l1(),
            nnz=self.weights.nonzeros(),
            phase=phase,
            val_loss=validation.loss,
            val_error=validation.error,
            accuracy=training.accuracy,
            val_accuracy=validation.accuracy,
            epochs=epochs,
        )
        self.front.append(point, self.weights.state())


def magnitude_pruning(
    model: nn.Module,
    task: Task,
    *,
    points: int,
    first_steps: int,
    correctors: int,
    h: float,
    least: float = 0.02,
    seed: int = 0,
) -> ParetoFront:
    """Iterative magnitude pruning: training, then again and again the smallest weights out, and training of the rest.

    The steps are those of the held walk without a norm: gradients of rate h, momentum 0.9. Weights of Linear and Conv
    layers are pruned, over all layers together, in equal ratios down to the share `least`; biases stay.
    """
    measured = Measured(model, task)
    own = copy.deepcopy(model)
    parameters = list(own.parameters())
    epochs = Epochs("magnitude_pruning", own, functional.cross_entropy, measured.weights.device)
    layers = [(m, "weight") for m in own.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    total = kept = sum(layer.weight.numel() for layer, _ in layers)
    task.train.generator.manual_seed(seed + 1)
    count = 0
    for point in range(points):
        if point:
            left = round(total * least ** (point / (points - 1)))
            prune.global_unstructured(layers, prune.L1Unstructured, amount=kept - left)
            kept = left
        optimizer = torch.optim.SGD(parameters, lr=h, momentum=0.9)
        for _ in range(correctors if point else first_steps):
            epochs.train(task.train, parameters, optimizer.step)
            count += 1
        values = [_masked(own, name) for name in measured.weights.names]
        measured.store(values, "pruned" if point else "start", count)
    return measured.front


def _masked(model: nn.Module, name: str) -> Tensor:
    """A parameter by its name before pruning, times its mask where it has one."""
    path, _, field = name.rpartition(".")
    module = model.get_submodule(path)
    mask = getattr(module, f"{field}_mask", None)
    value = getattr(module, field if mask is None else f"{field}_orig").detach()
    return value if mask is None else value * mask


def nsga2(models: list[nn.Module], task: Task, *, evaluations: int, seed: int = 0) -> ParetoFront:
    """NSGA-II over the weights as real numbers: simulated binary crossover, polynomial mutation.

    An evaluation is a pass over the training samples. The first population are networks as torch draws them, each times
    a factor in [0, 1].

    Args:
        models: networks of one shape, from which the population is drawn.

    Raises:
        Absent: pymoo is not installed.
    """
    core, algorithms = optional("pymoo.core.problem"), optional("pymoo.algorithms.moo.nsga2")
    minimize = optional("pymoo.optimize").minimize
    crossover, mutation = optional("pymoo.operators.crossover.sbx").SBX, optional("pymoo.operators.mutation.pm").PM
    measured = Measured(models[0], task)
    parameters = measured.weights.parameters
    sizes = [p.numel() for p in parameters]

    def values(x: np.ndarray) -> list[Tensor]:
        parts = torch.from_numpy(x).float().to(measured.weights.device).split(sizes)
        return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    class Weights(core.ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=sum(sizes), n_obj=2, xl=-_BOUND, xu=_BOUND)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
            measured.weights.write(values(x))
            out["F"] = [measured.epochs.evaluate(task.train).loss, measured.weights.l1()]

    generator = np.random.default_rng(seed)
    factors = generator.uniform(0, 1, (_POPULATION, 1))
    starts = np.stack([
        torch.cat([p.detach().flatten() for p in models[i % len(models)].parameters()]).cpu().double().numpy()
        for i in range(_POPULATION)
    ])  # fmt: skip
    algorithm = algorithms.NSGA2(_POPULATION, sampling=factors * starts, crossover=crossover(), mutation=mutation())
    result = minimize(Weights(), algorithm, ("n_eval", evaluations), seed=seed)
    for x in np.atleast_2d(result.X):
        measured.store(values(x), "evolved", evaluations / 3)
    return measured.front


def lassonet(task: Task, seed: int, iterations: tuple[int, int] = (1000, 100)) -> list[dict[str, Any]]:
    """LassoNet's path of a network with hidden layers of 20 and 20: a row for each point, from dense to sparse.

    ℓ¹ and nonzeros are of all its parameters, those of the skip connection too. λ grows by a tenth a point, where the
    package's default of a fiftieth makes four hundred points of it.

    Args:
        iterations: at the most, to the first point and to each other one; the package's own numbers.

    Raises:
        Absent: LassoNet is not installed.
    """
    package = optional("lassonet")
    x, y = task.train.x, task.train.y
    x_valid, y_valid = (torch.cat(parts) for parts in zip(*task.validation, strict=True))
    model = package.LassoNetClassifier(
        hidden_dims=(20, 20), path_multiplier=1.1, n_iters=iterations, verbose=0, torch_seed=seed, random_state=seed
    )
    rows = []
    path = model.path(x.numpy(), y.numpy(), X_val=x_valid.numpy(), y_val=y_valid.numpy(), return_state_dicts=True)
    for item in path:
        model.load(item.state_dict)
        parameters = list(item.state_dict.values())

        def judged(x: Tensor, y: Tensor) -> tuple[float, float]:
            scores = torch.from_numpy(model.predict_proba(x.numpy())).double().clamp(min=1e-30).log()
            return float(functional.nll_loss(scores, y)), float((scores.argmax(1) == y).double().mean())

        loss, _ = judged(x, y)
        val_loss, _ = judged(x_valid, y_valid)
        rows.append({
            "loss": loss,
            "l1": float(sum(p.double().abs().sum() for p in parameters)),
            "nnz": int(sum(p.count_nonzero() for p in parameters)),
            "val_loss": val_loss,
            "test_accuracy": judged(task.x_test, task.y_test)[1],
            "features": int(item.selected.sum()),
        })  # fmt: skip
    return rows
