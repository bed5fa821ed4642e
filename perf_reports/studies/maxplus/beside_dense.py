"""Sparse iterations beside dense ones and mini-batches: every method from one start, until its time is up."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....nn import LinearMinMax
from ... import data
from ...commands import Progress
from ...data import Dataset
from ...measuring.memory import peak_memory
from .methods import (
    MARGIN,
    NAME,
    SCALE,
    Method,
    MiniBatchAdam,
    Perceptron,
    Sparse,
    Subgradient,
    accuracy,
    dense_copy,
    kernel_copy,
    logged,
    start,
)
from .minibatch import RATE, TEMPERATURE, MiniBatchTraining
from .objectives import ALPHA, RATE_OVER_A, rescaled


@dataclass(frozen=True)
class Setting:
    """The size of the comparison. Seconds are training time; the method stops at the first limit.

    Attributes:
        study_seconds: of all methods, judging included; then all but the sparse iterations stop.
    """

    iterations: int
    dense_seconds: float
    adam_seconds: float
    train_per_class: int = 200  # samples that `compare` takes of each class, of a data set in a folder
    test_per_class: int = 100
    hidden: int = 300
    epochs: int = 60  # of the mean and the worst share by mini-batches
    study_seconds: float = math.inf


class Objective(Method):
    """The mean or the worst share of mini-batches, A trained: an iteration is an epoch, and F in the start's units."""

    def __init__(
        self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, training: MiniBatchTraining
    ) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.training = training
        self.z = None
        self.end = f"{training.epochs} epochs done"

    def gradients(self) -> tuple[Tensor, ...]:
        rows = slice(0, self.training.batch)
        model = self.training.model
        loss = self.training.loss(model(self.dataset.x_train[rows]), self.dataset.y_train[rows])
        return loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    @torch.no_grad()
    def evaluate(self) -> float:
        self.scores = SCALE * self.training.model(self.dataset.x_train)
        self.best_loss = min(self.best_loss, loss := self.worst(self.scores, self.dataset.y_train).item())
        return loss

    def advance(self) -> None:
        before = self.training.seconds
        self.training.advance()
        self.iteration += 1
        self.times.append(self.training.seconds - before)

    @property
    def is_done(self) -> bool:
        return self.training.is_done

    @torch.no_grad()
    def test_accuracy(self) -> float:
        return accuracy(self.training.model(self.dataset.x_test), self.dataset.y_test)


SETTINGS = {
    False: Setting(iterations=300, dense_seconds=8.0, adam_seconds=5.0, study_seconds=20.0),
    True: Setting(iterations=300, dense_seconds=2.0, adam_seconds=0.7, train_per_class=50, study_seconds=6.0),
}


def compare(
    data_dir: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[dict[str, Any]]:
    """`compare_on` the digits, or a subset of MNIST.

    Args:
        data_dir: MNIST-format files, of which a subset is taken (SETTINGS); None for scikit-learn's digits.
        quick: the smallest setting.
        seed: of the split, the subset and the order of the mini-batches.
        progress: called before each iteration.
    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    setting = SETTINGS[quick]
    dataset = data.load_few(data_dir, setting.train_per_class, setting.test_per_class, seed)
    yield from compare_on(dataset, setting, seed, progress, objectives=True)


def by_objectives(model: LinearMinMax, dataset: Dataset, setting: Setting, seed: int) -> list[Method]:
    """The same network, A trained, by mini-batches of the mean and of the worst share, from the same start."""
    methods: list[Method] = []
    for name, alpha in (("mean, mini-batches", 1.0), (f"CVaR {ALPHA:.0%}, mini-batches", ALPHA)):
        own = rescaled(model, 1 / SCALE, 1.0, MARGIN)
        own.A.requires_grad_(True)
        training = MiniBatchTraining(
            own,
            dataset,
            objective="cvar",
            alpha=alpha,
            temperature=TEMPERATURE,
            rate=RATE,
            rate_of_a=RATE / RATE_OVER_A,
            epochs=setting.epochs,
            seed=seed,
            method=name,
        )
        methods.append(Objective(name, "other", own, dataset, MARGIN, training))
    return methods


def compare_on(
    dataset: Dataset,
    setting: Setting,
    seed: int,
    progress: Progress = lambda done, total, what: None,
    *,
    objectives: bool = False,
) -> Iterator[dict[str, Any]]:
    """Sparse iterations beside dense ones, on the same network from the same start with the same steps.

    The iterates of the first three methods are equal, bit for bit, and their iterations take turns; dense ones stop
    early where their time is up. Mini-batch Adam trains the same network in the usual way, and a ReLU network with as
    many hidden units: an iteration of theirs is an epoch.

    Args:
        objectives: in place of mini-batch Adam at the start's scale, A fixed, the two objectives of `by_objectives`.
    Yields:
        A record per logged iteration (kind "training": method, iteration, seconds of training alone, loss F,
        accuracies), then one per method (kind "training_summary").
    """
    progress(0, setting.iterations, f"k-medoids, {dataset.name}")
    model, medoids = start(dataset, setting.hidden, seed, SCALE, MARGIN)
    methods: list[Method] = [
        Subgradient("dense autograd", "dense", dense_copy(model), dataset, MARGIN),
        Subgradient("fused dense", "other", kernel_copy(model), dataset, MARGIN),
        *(
            by_objectives(model, dataset, setting, seed)
            if objectives
            else [MiniBatchAdam("mini-batch Adam", "other", kernel_copy(model), dataset, MARGIN, seed)]
        ),
        Perceptron("MLP, Adam", "other", model, dataset, MARGIN, seed),
    ]
    peaks = {method: peak_memory(method.gradients)[1] for method in methods}  # warms up as well
    made: list[Method] = []

    def make() -> tuple[Tensor, ...]:
        name = "worst sample, sparse" if objectives else "sparse"
        made.append(Sparse(name, "ours", model, dataset, MARGIN, setting.iterations))
        return ()

    ours_peak = peak_memory(make)[1]
    methods = made + methods
    peaks[methods[0]] = ours_peak
    limits = {
        method: setting.dense_seconds if isinstance(method, Subgradient) else setting.adam_seconds for method in methods
    }
    limits[methods[0]] = math.inf
    stopped: dict[Method, str] = {}
    losses: dict[Method, float] = {}
    begun = time.perf_counter()
    for iteration in range(setting.iterations + 1):
        for method in methods:
            if method in stopped:
                continue
            progress(iteration, setting.iterations, f"{method.name}, {dataset.name}")
            losses[method] = loss = method.evaluate()
            if method.is_done:
                stopped[method] = method.end
            elif iteration == setting.iterations:
                stopped[method] = f"{iteration} iterations done"
            elif method.seconds > limits[method]:
                stopped[method] = f"{limits[method]:g} s of training done"
            elif method is not methods[0] and time.perf_counter() - begun > setting.study_seconds:
                stopped[method] = f"{setting.study_seconds:g} s of all methods done"
            if method in stopped or logged(iteration, setting.iterations):
                yield method.record(loss) | {"seed": seed}
            if method not in stopped:
                method.advance()
    progress(setting.iterations, setting.iterations, f"trained, {dataset.name}")
    for method in methods:
        memory = peaks[method]
        method.finish()
        yield {
            "kind": "training_summary",
            "study": NAME,
            "method": method.name,
            "role": method.role,
            "dataset": dataset.name,
            "seed": seed,
            "hidden": setting.hidden,
            "scale": SCALE,
            "margin": MARGIN,
            "features": dataset.features,
            "train_samples": len(dataset.y_train),
            "test_samples": len(dataset.y_test),
            "seconds_per_iteration": statistics.median(method.times or [0.0]),
            "iterations": method.iteration,
            "stopped": stopped[method],
            "final_loss": losses[method],
            "best_loss": method.best_loss,
            "test_accuracy": method.test_accuracy(),
            # of one loss and its gradient; of ours, of the caches
            "peak_bytes": None if memory is None else memory.peak_bytes,
            "init_seconds": medoids.seconds,
            "init_loss": medoids.loss,
        }
