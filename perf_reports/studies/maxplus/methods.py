"""The methods that train a linear-min-max network, by subgradients of the worst-sample loss or by mini-batches.

    F(W) = max_n ℓ_n,    W ← W − γ g,    γ = (F − L) / ‖g‖²

g has at most four entries. `WorstSampleSubgradient` touches what they move; its rivals go through the same iterates by
a dense evaluation, of fused products or of all candidates in memory, or train by mini-batches. Mathematics, steps and
sources: kernels/worst_sample/definition.py. The network and its start are those of Enaieh & Fercoq, arXiv 2603.04133;
loss, step rule and settings are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ....autotune.timing import synchronize
from ....nn import KMedoidsInit, LinearMinMax, WorstSampleLoss
from ....optim import WorstSampleSubgradient
from ....optim.worst_sample import is_available
from ....optim.worst_sample.definition import IDLE, Settings, beginning, step_length
from ...data import Dataset
from . import clock

NAME = "maxplus"
LOSS_TITLE = "Worst-sample loss"
# One grey level of the digits is 1/16 of their range: in the units of the scores, 4. The margin asks for that much.
SCALE = 64.0
MARGIN = 4.0
ANSWER_SECONDS = 0.5  # that Ctrl-C may wait
START_SAMPLES = 3000  # what mini-batches need to begin well: the medoids move afterwards


class DenseLinearMinMax(LinearMinMax):
    """The same network by its definition: all candidates [N, q, 2d] in memory, and torch's autograd through them."""

    candidates = 1 << 26  # at a time, 256 MiB in float32; more samples than fit go through in parts

    def _materialised(self, x: Tensor, weight: Tensor, reduce: Callable[..., Any]) -> Tensor:
        rows = max(1, self.candidates // weight.numel())
        return torch.cat([reduce(part[:, None, :] + weight, dim=2).values for part in x.split(rows)])

    def min_units(self, z: Tensor) -> Tensor:
        return self._materialised(z, self.W1, torch.min)

    def max_units(self, u: Tensor) -> Tensor:
        return self._materialised(u, self.W2, torch.max)


class Method:
    """One way of training a network, an iteration at a time; its clock stands still while it is judged."""

    end = "F is 0, to rounding"  # why it is done

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float) -> None:
        self.name = name
        self.role = role
        self.model = model
        self.worst = WorstSampleLoss(margin)
        self.dataset = dataset
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.iteration = 0
        self.times: list[float] = []
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.scores: Tensor | None = None
        # z = A x is the same in every iteration unless A is trained
        self.z = None if model.A.requires_grad else model.linear(dataset.x_train)

    @property
    def seconds(self) -> float:
        return sum(self.times)

    def evaluate(self) -> float:
        """F of the present iterate, over all training samples."""
        raise NotImplementedError

    def advance(self) -> None:
        """To the next iterate."""
        raise NotImplementedError

    def gradients(self) -> tuple[Tensor, ...]:
        """The figures that one step needs: a loss, then its gradient in each trained parameter. Changes nothing."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """True where nothing is left to gain from the iterate just evaluated: F is 0, to rounding."""
        return False

    def finish(self) -> None:
        """Settle on the iterate that the method stands for: the last one."""

    def score(self) -> Tensor:
        z = self.model.linear(self.dataset.x_train) if self.z is None else self.z
        return self.model.max_units(self.model.min_units(z))

    def _keep_best(self, loss: float) -> None:
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def test_accuracy(self) -> float:
        # by the kernels whatever the method: the scores are the same, and this is not what is timed
        scores = LinearMinMax.max_units(
            self.model, LinearMinMax.min_units(self.model, self.model.linear(self.dataset.x_test))
        )
        return accuracy(scores, self.dataset.y_test)

    def record(self, loss: float) -> dict[str, Any]:
        """The present iterate, just evaluated, as a line of the results."""
        assert self.scores is not None
        return {
            "kind": "training",
            "study": NAME,
            "method": self.name,
            "dataset": self.dataset.name,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "loss": loss,
            "train_accuracy": accuracy(self.scores, self.dataset.y_train),
            "test_accuracy": self.test_accuracy(),
        }


class Subgradient(Method):
    """Full-batch subgradient steps on the worst-sample loss; dense or sparse by the model's own forward."""

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.settings = Settings(margin=margin)
        self.progress = beginning(self.settings)
        self._evaluated: tuple[Tensor, ...] = ()
        self.loss = math.inf
        self.idle = 0  # iterations in a row that found F within its rounding of 0, and no better than before

    def gradients(self) -> tuple[Tensor, ...]:
        scores = self.score()
        loss = self.worst(scores, self.dataset.y_train)
        self.scores = scores.detach()
        return loss.detach(), *torch.autograd.grad(loss, self.trained)

    def evaluate(self) -> float:
        start = clock.now()
        self._evaluated = self.gradients()
        self.loss = self._evaluated[0].item()  # waits for the device
        self._previous = self.best_loss
        self._keep_best(self.loss)
        self.times.append(clock.now() - start)
        return self.loss

    @torch.no_grad()
    def advance(self) -> None:
        start = clock.now()
        gradients = self._evaluated[1:]
        self._evaluated = ()
        self.idle = self.idle + 1 if self._previous <= self.loss <= self._rounding() else 0
        self.progress.best_loss, self.progress.iteration = self.best_loss, self.iteration
        squared_norm = sum(g.square().sum().item() for g in gradients)
        step = step_length(self.settings, self.progress, self.loss, squared_norm)
        if step is None:
            self.model.load_state_dict(self.best)
        else:
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.add_(gradient, alpha=-step)
        self.iteration += 1
        self.times[-1] += clock.now() - start

    @property
    def is_done(self) -> bool:
        # steps as small as the rounding of the scores may be absorbed, and F stay a unit in the last place above 0
        return self.loss == 0 or self.idle >= IDLE

    def _rounding(self) -> float:
        assert self.scores is not None
        return torch.finfo(self.scores.dtype).eps * self.scores.abs().max().item()

    def finish(self) -> None:
        """To the iterate with the best F: a subgradient step need not descend."""
        self.model.load_state_dict(self.best)


class Sparse(Method):
    """Ours: many iterations in one call, between two that are logged."""

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, last: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.z = None  # it is not ours to keep: the optimizer has it
        is_available(model.W1.dtype)  # compiled before its time is taken
        start = clock.now()
        self.optimizer = WorstSampleSubgradient(model, dataset.x_train, dataset.y_train, margin=margin)
        self.times.append(clock.now() - start)  # the caches: the evaluation of the start
        self.loss = self.best_loss = self.optimizer.loss
        self._last = last
        self._ahead: list[float] = []

    def gradients(self) -> tuple[Tensor, ...]:
        return ()

    def evaluate(self) -> float:
        return self.loss

    def advance(self) -> None:
        self.iteration += 1
        if not self._ahead:
            until = next(i for i in range(self.iteration, self._last + 1) if logged(i, self._last) or i == self._last)
            start = clock.now()
            self._ahead = self.optimizer.step(until - self.iteration + 1).tolist()
            self.times += [(clock.now() - start) / len(self._ahead)] * len(self._ahead)
            self.best_loss = self.optimizer.best.loss
        self.loss = self._ahead.pop(0)

    @property
    def is_done(self) -> bool:
        return not self._ahead and self.optimizer.status != "going"

    @torch.no_grad()
    def record(self, loss: float) -> dict[str, Any]:
        self.scores = self.model(self.dataset.x_train)
        return super().record(loss)

    def finish(self) -> None:
        self.optimizer.load_best()


class MiniBatchAdam(Method):
    """The usual way: Adam on the mean cross-entropy of mini-batches, by our kernels. An iteration is an epoch."""

    batch = 128
    learning_rate = 0.1  # in the units of the scores, as the weights are

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, seed: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.optimizer = torch.optim.Adam(self.trained, lr=self.learning_rate)
        self.order = torch.Generator().manual_seed(seed)

    def gradients(self) -> tuple[Tensor, ...]:
        return self._gradients(torch.arange(min(self.batch, len(self.dataset.y_train)), device="cpu"))

    def _gradients(self, rows: Tensor) -> tuple[Tensor, ...]:
        z = self.model.linear(self.dataset.x_train[rows]) if self.z is None else self.z[rows]
        scores = self.model.max_units(self.model.min_units(z))
        loss = functional.cross_entropy(scores, self.dataset.y_train[rows])
        return loss.detach(), *torch.autograd.grad(loss, self.trained)

    @torch.no_grad()
    def evaluate(self) -> float:
        self.scores = self.score()
        loss = self.worst(self.scores, self.dataset.y_train).item()
        self._keep_best(loss)
        return loss

    def advance(self) -> None:
        start = clock.now()
        for rows in _batches(len(self.dataset.y_train), self.batch, self.order):
            _, *gradients = self._gradients(rows)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        synchronize()
        self.iteration += 1
        self.times.append(clock.now() - start)


class Perceptron(Method):
    """A ReLU network with as many hidden units, by the same mini-batches."""

    learning_rate = 1e-3

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, seed: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.z = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(model.in_features, model.hidden, device="cpu"),
                torch.nn.ReLU(),
                torch.nn.Linear(model.hidden, model.classes, device="cpu"),
            )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)
        self.order = torch.Generator().manual_seed(seed)

    def gradients(self) -> tuple[Tensor, ...]:
        return self._gradients(torch.arange(min(MiniBatchAdam.batch, len(self.dataset.y_train)), device="cpu"))

    def _gradients(self, rows: Tensor) -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(self.net(self.dataset.x_train[rows]), self.dataset.y_train[rows])
        return loss.detach(), *torch.autograd.grad(loss, list(self.net.parameters()))

    @torch.no_grad()
    def evaluate(self) -> float:
        self.scores = self.net(self.dataset.x_train)
        self.best_loss = min(self.best_loss, loss := self.worst(self.scores, self.dataset.y_train).item())
        return loss

    def advance(self) -> None:
        start = clock.now()
        for rows in _batches(len(self.dataset.y_train), MiniBatchAdam.batch, self.order):
            _, *gradients = self._gradients(rows)
            for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        self.iteration += 1
        self.times.append(clock.now() - start)

    @torch.no_grad()
    def test_accuracy(self) -> float:
        return accuracy(self.net(self.dataset.x_test), self.dataset.y_test)


def _batches(samples: int, size: int, order: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randperm(samples, generator=order, device="cpu").split(size)


def accuracy(scores: Tensor, targets: Tensor) -> float:
    return (scores.argmax(dim=1) == targets).double().mean().item()


@torch.no_grad()
def accuracy_of(model: LinearMinMax, x: Tensor, y: Tensor) -> float:
    return accuracy(model(x), y)


def start(
    dataset: Dataset, hidden: int, seed: int, scale: float, margin: float, *, sparse: bool = False
) -> tuple[LinearMinMax, KMedoidsInit]:
    """The network as the nearest-medoid classifier of the training samples."""
    model = LinearMinMax(dataset.features, hidden, dataset.classes, sparse=sparse, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    return model, model.init_kmedoids(dataset.x_train, dataset.y_train, scale, margin=margin, generator=generator)


def quick_start(
    dataset: Dataset, hidden: int, seed: int, scale: float, margin: float, *, sparse: bool = False
) -> tuple[LinearMinMax, KMedoidsInit]:
    """`start`, with the medoids sought among at most START_SAMPLES samples: as many of each class, drawn by seed."""
    samples = max(START_SAMPLES, hidden)
    if len(dataset.y_train) > samples:
        dataset = dataset.subset(samples // dataset.classes, 1, seed)
    return start(dataset, hidden, seed, scale, margin, sparse=sparse)


def dense_copy(model: LinearMinMax) -> DenseLinearMinMax:
    train_a = model.A.requires_grad
    dense = DenseLinearMinMax(model.in_features, model.hidden, model.classes, train_a=train_a, device="cpu")
    dense.load_state_dict(model.state_dict())
    return dense


def kernel_copy(model: LinearMinMax) -> LinearMinMax:
    train_a = model.A.requires_grad
    copy = LinearMinMax(model.in_features, model.hidden, model.classes, train_a=train_a, device="cpu")
    copy.load_state_dict(model.state_dict())
    return copy


def logged(iteration: int, iterations: int) -> bool:
    """Every iteration while F falls fastest, then about a hundred of the rest."""
    return iteration < 10 or iteration % max(1, iterations // 100) == 0
