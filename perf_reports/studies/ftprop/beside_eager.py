"""Hard thresholds by the fused layer, beside the same rule as the released code has it, and a network of ReLUs.

The first two are one network from one start: their weights part only by how sums are rounded. Methods take turns, a
mini-batch each, on one thread, so that a slow minute of the machine is shared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ... import data
from ...commands import Progress
from ...data import Dataset
from ...measuring.memory import peak_memory
from ..threads import one_thread
from .eager import eager_port
from .methods import NAME, Recipe, Training


@dataclass(frozen=True)
class Setting:
    """The size of the comparison."""

    epochs: int
    train_per_class: int  # samples taken of each class, of a data set in a folder
    test_per_class: int = 100


SETTINGS = {False: Setting(epochs=10, train_per_class=150), True: Setting(epochs=4, train_per_class=50)}
METHODS = {"fused soft hinge": "ours", "eager soft hinge": "dense", "ReLU": "other"}  # name -> role


def compare(
    data_dir: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[dict[str, Any]]:
    """Networks of hard thresholds, fused and eager, and of ReLUs, on the digits or a subset of MNIST.

    Args:
        data_dir: MNIST-format files, of which a subset is taken (SETTINGS); None for scikit-learn's digits.
        quick: the smallest setting.
        seed: of the split, the subset, the weights and the order of the mini-batches.
        progress: called before each round of mini-batches.
    Yields:
        A record per epoch (kind "training"), then one per method (kind "training_summary"), with the bytes that it
        saves for the backward of a mini-batch.
    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    setting = SETTINGS[quick]
    dataset = data.load_few(data_dir, setting.train_per_class, setting.test_per_class, seed)
    with one_thread():
        trainings = {name: _begun(name, dataset, setting.epochs, seed) for name in METHODS}
        # warms up as well
        peaks = {name: peak_memory(_gradients(training))[1] for name, training in trainings.items()}
        saved = {name: training.saved_bytes() for name, training in trainings.items()}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
        first = next(iter(trainings.values()))
        while first.epoch < setting.epochs:
            progress(first.epoch, setting.epochs, f"three networks, {dataset.name}")
            for name, training in trainings.items():
                row = training.advance()
                if row is not None:
                    before = rows[name][-1]["seconds"] if rows[name] else 0.0
                    rows[name].append({**row, "method": name, "seconds": before + row["seconds"]})
                    yield rows[name][-1]
    progress(setting.epochs, setting.epochs, f"trained, {dataset.name}")
    steps = math.ceil(len(dataset.y_train) / first.recipe.batch)
    for name, role in METHODS.items():
        peak, last = peaks[name], rows[name][-1]
        losses = [row["loss"] for row in rows[name] if row["loss"] is not None]
        yield {
            "kind": "training_summary",
            "study": NAME,
            "method": name,
            "role": role,
            "dataset": dataset.name,
            "seed": seed,
            "train_samples": len(dataset.y_train),
            "test_samples": len(dataset.y_test),
            # of steps that took turns: their median, so that a pause of the machine is no method's
            "seconds_per_iteration": statistics.median(row["step_seconds"] for row in rows[name]) * steps,
            "iterations": setting.epochs,
            "stopped": f"{setting.epochs} epochs done, batches of {first.recipe.batch}",
            "final_loss": last["loss"],
            "best_loss": min(losses, default=None),
            "test_accuracy": last["test_accuracy"],
            "peak_bytes": None if peak is None else peak.peak_bytes,  # of one loss and its gradient
            "saved_bytes": saved[name],
        }


def _begun(name: str, dataset: Dataset, epochs: int, seed: int) -> Training:
    is_fused = METHODS[name] == "ours"
    rule = "relu" if METHODS[name] == "other" else "soft_hinge"
    training = Training(Recipe(rule=rule, epochs=epochs, seed=seed, packed=is_fused), dataset)
    if METHODS[name] == "dense":
        eager_port(training.model)
    return training


def _gradients(training: Training) -> Any:
    x, y = training.batches.drawn(training.order[: training.recipe.batch], 0, 0)

    def call() -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(training.model(x), y)
        return torch.autograd.grad(loss, list(training.model.parameters()))

    return call
