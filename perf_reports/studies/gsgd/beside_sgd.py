"""G-SGD beside SGD: the same network from the same start, and from starts that compute the same at other scales.

A skeleton of ones, where G-SGD starts, is close to the identity and a good start for SGD as well; so SGD gets it too,
and each method the best of the same learning rates on its own training loss. A rescaled start multiplies the weights
into every hidden node by a random c > 0 and divides those out of it by c: the network is the same function, G-SGD goes
the same way, and SGD another one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import data
from ...commands import Progress
from ...data import Dataset
from ..threads import one_thread
from .methods import NAME, OPTIMIZERS, Recipe, Training


@dataclass(frozen=True)
class Setting:
    """The size of the comparison."""

    epochs: int
    seeds: int
    tuning_epochs: int
    train_per_class: int  # samples taken of each class, of a data set in a folder
    test_per_class: int = 500
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    spread: float = 0.5  # of log c in the rescaled starts


SETTINGS = {
    False: Setting(epochs=20, seeds=3, tuning_epochs=3, train_per_class=1000),
    True: Setting(epochs=4, seeds=1, tuning_epochs=1, train_per_class=100, rates=(0.03, 0.1)),
}


def compare(
    data_dir: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[dict[str, Any]]:
    """G-SGD beside SGD and Path-SGD, from one start and from a rescaled one; an iteration is an epoch, on one thread.

    Args:
        data_dir: MNIST-format files, of which a subset is taken (SETTINGS); None for scikit-learn's digits.
        quick: the smallest setting.
        seed: the first of the seeds, of weights and order; the learning rates are chosen at this one.
        progress: called before each epoch.
    Yields:
        A record per epoch of the first seed (kind "training"), then one per method (kind "training_summary"), with its
        learning rate and the test accuracy of every seed.
    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    setting = SETTINGS[quick]
    dataset = data.load_few(data_dir, setting.train_per_class, setting.test_per_class, seed)
    with one_thread():
        yield from _compared(dataset, setting, seed, progress)


def _compared(dataset: Dataset, setting: Setting, seed: int, progress: Progress) -> Iterator[dict[str, Any]]:
    tuned: dict[str, float] = {}
    for name in OPTIMIZERS:
        progress(0, setting.epochs, f"learning rate of {name}, {dataset.name}")
        tuned[name] = tuned_rate(Recipe(optimizer=name, seed=seed), dataset, setting)
    recipes = {
        "GSGD": ("ours", Recipe(optimizer="gsgd")),
        "SGD": ("dense", Recipe(optimizer="sgd")),
        "Path-SGD": ("other", Recipe(optimizer="path_sgd")),
        "GSGD, rescaled start": ("other", Recipe(optimizer="gsgd", spread=setting.spread)),
        "SGD, rescaled start": ("other", Recipe(optimizer="sgd", spread=setting.spread)),
    }
    summaries = []
    for method, (role, recipe) in recipes.items():
        lasts, times = [], []
        rows: list[dict[str, Any]] = []
        for number in range(setting.seeds):
            training = Training(replace(recipe, seed=seed + number, lr=tuned[recipe.optimizer]), dataset)
            rows = []
            while training.epoch < setting.epochs:
                if training.position == 0:
                    progress(training.epoch, setting.epochs, f"{method}, seed {seed + number}, {dataset.name}")
                row = training.advance()
                if row is not None:
                    rows.append(row)
                    if number == 0:
                        yield {**row, "method": method}
            lasts.append(rows[-1])
            times.append(training.seconds / setting.epochs)
        losses = [row["loss"] for row in lasts if row["loss"] is not None]
        summaries.append(
            {
                "kind": "training_summary",
                "study": NAME,
                "method": method,
                "role": role,
                "dataset": dataset.name,
                "seed": seed,
                "train_samples": len(dataset.y_train),
                "test_samples": len(dataset.y_test),
                "lr": tuned[recipe.optimizer],
                "seconds_per_iteration": statistics.median(times),
                "iterations": setting.epochs,
                "stopped": f"{setting.epochs} epochs, {setting.seeds} seeds, learning rate {tuned[recipe.optimizer]:g}",
                "final_loss": statistics.mean(losses) if losses else None,
                "best_loss": min(losses, default=None),
                "test_accuracy": statistics.mean(row["test_accuracy"] for row in lasts),
                "test_accuracies": [row["test_accuracy"] for row in lasts],
                "peak_bytes": None,
            }
        )
    progress(setting.epochs, setting.epochs, f"trained, {dataset.name}")
    yield from summaries


def tuned_rate(recipe: Recipe, dataset: Dataset, setting: Setting) -> float:
    """The learning rate with the least training loss in the last of the tuning epochs."""
    losses = {}
    for rate in setting.rates:
        training = Training(replace(recipe, lr=rate), dataset)
        row = None
        while training.epoch < setting.tuning_epochs:
            row = training.advance()
        losses[rate] = math.inf if row is None or row["loss"] is None else row["loss"]
    return min(losses, key=lambda rate: losses[rate])


def overhead(network: str = "mlp", batch: int = 128, rounds: int = 300, name: str = "gsgd") -> dict[str, float]:
    """Median seconds of a training step by G-SGD and by torch's SGD with foreach, which take turns, and their ratio.

    On random images of MNIST's size, or of CIFAR-10's for the cnn; the learning rate is one at which nothing happens.
    """
    features = 784 if network == "mlp" else 3 * 32 * 32
    x, y = torch.rand(batch, features), torch.arange(batch) % 10
    dataset = Dataset(x, y, x, y, "random")
    times: dict[str, list[float]] = {name: [], "sgd": []}
    recipe = Recipe(network=network, lr=1e-6, batch=batch)
    trainings = {each: Training(replace(recipe, optimizer=each), dataset) for each in times}
    for number in range(rounds + 3):
        for each, training in trainings.items():
            training.seconds = 0.0
            training.step(training.order)
            if number >= 3:  # the first ones compile and allocate
                times[each].append(training.seconds)
    medians = {each: statistics.median(seconds) for each, seconds in times.items()}
    return {**medians, "ratio": medians[name] / medians["sgd"]}
