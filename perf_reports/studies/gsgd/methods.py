"""The networks, and their training a mini-batch at a time by G-SGD, SGD or Path-SGD.

Networks and schedule: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space",
ICLR 2019. The MLP has four hidden layers of 64 and no bias; the learning rate is η exp(−epoch / 100), batches hold 64.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....autotune.timing import synchronize
from ....optim import GSGD, BasisPaths, PathSGD
from ...data import Dataset
from .branching import DenseNet, UNet

NAME = "gsgd"
LOSS_TITLE = "Training loss"
NETWORKS = ("mlp", "cnn", "unet", "densenet")
OPTIMIZERS = ("gsgd", "sgd", "path_sgd")
DECAY = math.exp(-0.01)  # of the learning rate, an epoch
HIDDEN = (64, 64, 64, 64)
CHANNELS = (16, 16, 32, 32, 64, 64)


@dataclass(frozen=True)
class Recipe:
    """One training: a network and its start, an optimizer and its settings."""

    network: str = "mlp"
    optimizer: str = "gsgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    unit: bool = True  # the skeleton starts at ones; else as torch draws it
    spread: float = 0.0  # of log c, where the start is rescaled
    batch: int = 64
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError where a setting is none of those there are."""
        for name, value, choices in (("network", self.network, NETWORKS), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in choices:
                raise ValueError(f"train: {name} is {value!r}; expected one of {', '.join(choices)}")
        if self.batch < 1:
            raise ValueError(f"train: batch is {self.batch}; expected at least 1")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"train: spread is {self.spread}; expected a number that is not negative")
        if self.optimizer == "path_sgd" and (self.momentum or self.weight_decay):
            raise ValueError("train: path_sgd has neither momentum nor weight decay; expected 0 for both")


def network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The network at its start; the same seed draws the same weights, whatever is done to them then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _mlp(dataset) if recipe.network == "mlp" else _of_images(recipe.network, dataset)
        paths = BasisPaths(model)
        if recipe.unit:
            paths.unit_skeleton_()
        if recipe.spread:
            paths.rescale_(torch.Generator().manual_seed(recipe.seed), recipe.spread)
    return model


def _mlp(dataset: Dataset) -> nn.Sequential:
    widths = dataset.features, *HIDDEN, dataset.classes
    layers = [(nn.Linear(before, behind, bias=False), nn.ReLU()) for before, behind in pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


def _of_images(name: str, dataset: Dataset) -> nn.Module:
    channels, side = image_shape(dataset, name)
    if name == "unet":
        return UNet(channels, side, dataset.classes)
    if name == "densenet":
        return DenseNet(channels, side, dataset.classes)
    return _cnn(channels, side, dataset)


def _cnn(channels: int, side: int, dataset: Dataset) -> nn.Sequential:
    """Six convolutions of 3 × 3, every second one followed by pooling; no bias, no normalisation."""
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, side, side))]
    for number, (before, behind) in enumerate(pairwise((channels, *CHANNELS))):
        layers += [nn.Conv2d(before, behind, 3, padding=1, bias=False), nn.ReLU()]
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], dataset.classes, bias=False)
    return nn.Sequential(*layers, *head)


def image_shape(dataset: Dataset, network: str = "cnn") -> tuple[int, int]:
    """Channels and side of square images, from the number of features.

    Raises:
        ValueError: the features are no square image of one channel or three.
    """
    for channels in (1, 3):
        side = math.isqrt(dataset.features // channels)
        if channels * side * side == dataset.features and side >= 4:
            return channels, side
    raise ValueError(f"train: the {network} takes square images; {dataset.name} has {dataset.features} features")


def optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "gsgd":
        return GSGD(BasisPaths(model), recipe.lr, **settings)
    if recipe.optimizer == "path_sgd":
        return PathSGD(BasisPaths(model), recipe.lr)
    return torch.optim.SGD(model.parameters(), recipe.lr, **settings, foreach=True)


class Training:
    """A network in training, a mini-batch at a time. Its clock stands still while it is judged."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        recipe.check()
        self.recipe, self.dataset = recipe, dataset
        self.model = network(recipe, dataset)
        self.optimizer = optimizer(recipe, self.model)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, DECAY)
        self.epoch = self.position = 0
        self.seconds = self.loss = self.right = 0.0  # of the epoch: sums over the samples so far
        self.order = self._order()

    def _order(self) -> Tensor:
        """The order of the samples in this epoch, whatever came before it: a run that is resumed draws the same."""
        generator = torch.Generator().manual_seed((self.recipe.seed << 20) + self.epoch)
        return torch.randperm(len(self.dataset.y_train), generator=generator)

    def advance(self) -> dict[str, Any] | None:
        """One mini-batch; at the end of an epoch, its record."""
        rows = self.order[self.position : self.position + self.recipe.batch]
        scores, loss = self.step(rows)
        self.loss += loss.item() * len(rows)
        self.right += (scores.argmax(1) == self.dataset.y_train[rows]).sum().item()
        self.position += len(rows)
        return self._end_of_epoch() if self.position == len(self.order) else None

    def step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One step on these samples: scores and loss, of the weights before it."""
        x, y = self.dataset.x_train[rows], self.dataset.y_train[rows]
        start = time.perf_counter()
        self.optimizer.zero_grad()
        scores = self.model(x)
        loss = functional.cross_entropy(scores, y)
        loss.backward()
        self.optimizer.step()
        synchronize()
        self.seconds += time.perf_counter() - start
        return scores.detach(), loss.detach()

    def _end_of_epoch(self) -> dict[str, Any]:
        self.epoch += 1
        record = {
            "kind": "training",
            "study": NAME,
            "dataset": self.dataset.name,
            "iteration": self.epoch,
            "seconds": self.seconds,
            # JSON has no NaN: a training that has left the finite numbers has no loss
            "loss": self.loss / len(self.order) if math.isfinite(self.loss) else None,
            "train_accuracy": self.right / len(self.order),
            "test_accuracy": self.test_accuracy(),
            "seed": self.recipe.seed,
        }
        self.position, self.loss, self.right = 0, 0.0, 0.0
        self.order = self._order()
        self.schedule.step()
        return record

    @torch.no_grad()
    def test_accuracy(self) -> float:
        self.model.eval()
        parts = zip(self.dataset.x_test.split(1000), self.dataset.y_test.split(1000), strict=True)
        right = sum((self.model(x).argmax(1) == y).sum().item() for x, y in parts)
        self.model.train()
        return right / len(self.dataset.y_test)

    def state(self) -> dict[str, Any]:
        """All that the next mini-batches depend on."""
        scalars = {name: getattr(self, name) for name in ("epoch", "position", "seconds", "loss", "right")}
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        return {**scalars, **parts}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in ("epoch", "position", "seconds", "loss", "right"):
            setattr(self, name, state[name])
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.order = self._order()
