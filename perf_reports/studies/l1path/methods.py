"""The study's networks and data, and the three walks along a front: held λ, MPG, and a sweep of weighted sums.

Networks: Amakor, Sonntag & Peitz, arXiv 2308.12044: iris 4-4-4-3 with tanh, MNIST 784-20-20-10 with ReLU, CIFAR-10 two
convolutions and two linear layers, 612,778 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....optim import L1Continuation, L1Sweep
from ...data import Dataset

METHODS = ("held", "mpg", "sweep")
HELD_OUT = 0.2
_VALIDATION_BATCHES = 10  # whose spread gives the loss's standard error
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Recipe:
    """One walk: its method, how many points, how long each takes.

    Attributes:
        points: in all; a third of those after the first are denser than it, of held λ and MPG; of iris two thirds.
        first_steps: epochs to the first point.
        correctors: epochs before each other point.
        h: step; None: 0.1, of images in colour 0.01.
        batch: samples of a mini-batch; None: a tenth of the training samples.
    """

    method: str = "sweep"
    points: int = 20
    first_steps: int = 100
    correctors: int = 20
    h: float | None = None
    batch: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError where a setting is none of those there are."""
        if self.method not in METHODS:
            raise ValueError(f"train: method is {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.points < 2:
            raise ValueError(f"train: points is {self.points}; expected at least 2")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"train: batch is {self.batch}; expected at least 1")


class Batches:
    """Mini-batches of tensors, in a new order each time; `generator` draws it."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size, self.generator = x, y, size, torch.Generator()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        for rows in order.split(self.size):
            yield self.x[rows], self.y[rows]


@dataclass(frozen=True)
class Task:
    """A data set, scaled and split for a walk."""

    train: Batches
    validation: list[tuple[Tensor, Tensor]]
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def of(cls, dataset: Dataset, recipe: Recipe) -> Task:
        x, x_test = _scaled(dataset)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        x, y, x_test, y_test = (t.to(device) for t in (x, dataset.y_train, x_test, dataset.y_test))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(recipe.seed)).to(device)
        held = max(round(HELD_OUT * len(x)), 1)
        rows, kept = order[:held], order[held:]
        validation = [(x[part], y[part]) for part in rows.split(math.ceil(held / _VALIDATION_BATCHES))]
        size = recipe.batch or math.ceil(len(kept) / 10)
        return cls(Batches(x[kept], y[kept], size), validation, x_test, y_test)


def _scaled(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The features less their mean over the training samples, over the spread of all; images in colour by channel."""
    if is_colour(dataset):
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (_CIFAR10_MEAN, _CIFAR10_STD))
        images = [x.view(-1, 3, 32, 32) for x in (dataset.x_train, dataset.x_test)]
        return (images[0] - mean) / std, (images[1] - mean) / std
    mean, std = dataset.x_train.mean(0), dataset.x_train.std()
    return (dataset.x_train - mean) / std, (dataset.x_test - mean) / std


def is_colour(dataset: Dataset) -> bool:
    return dataset.features == 3 * 32 * 32


def network(dataset: Dataset, seed: int) -> nn.Sequential:
    """The study's network of a data set, as torch draws it by seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_colour(dataset):
            return nn.Sequential(
                nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 4), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, dataset.classes),
            )  # fmt: skip
        is_tiny = dataset.features < 10
        hidden = (4, 4) if is_tiny else (20, 20)
        activation = nn.Tanh if is_tiny else nn.ReLU
        modules: list[nn.Module] = []
        for before, behind in pairwise((dataset.features, *hidden, dataset.classes)):
            modules += [nn.Linear(before, behind), activation()]
        return nn.Sequential(*modules[:-1])


@torch.no_grad()
def paper_start(dataset: Dataset) -> nn.Sequential:
    """The iris network as the paper starts it: 0.1 I in both hidden layers, and 0 elsewhere."""
    model = network(dataset, 0)
    for parameter in model.parameters():
        parameter.zero_()
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.eye_(layer.weight).mul_(0.1)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """The share of the test samples that a network has right."""
    model.eval()
    right: list[Tensor] = [
        (model(x).argmax(1) == y).sum() for x, y in zip(task.x_test.split(4096), task.y_test.split(4096), strict=True)
    ]
    return float(torch.stack(right).sum()) / len(task.y_test)


def walk(model: nn.Module, dataset: Dataset, recipe: Recipe) -> L1Continuation | L1Sweep:
    """The walk of a recipe."""
    common: dict[str, Any] = {
        "h": recipe.h if recipe.h is not None else 0.01 if is_colour(dataset) else 0.1,
        "first_steps": recipe.first_steps,
        "correctors": recipe.correctors,
        "seed": recipe.seed,
    }
    if recipe.method == "sweep":
        return L1Sweep(model, functional.cross_entropy, points=recipe.points, **common)
    after = recipe.points - 1
    dense = 2 * after // 3 if dataset.features < 10 else after // 3  # iris' first point is near the sparse end
    return L1Continuation(
        model,
        functional.cross_entropy,
        corrector="held" if recipe.method == "held" else "mpg",
        dense_points=dense,
        sparse_points=recipe.points - 1 - dense,
        spacing=0.15,
        **common,
    )
