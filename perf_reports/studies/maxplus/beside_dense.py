"""Sparse iterations beside dense ones and mini-batches: every method from one start, until its time is up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

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
    dense_copy,
    kernel_copy,
    logged,
    start,
)


@dataclass(frozen=True)
class Setting:
    """The size of the comparison. Seconds are training time; the method stops at the first limit."""

    iterations: int
    dense_seconds: float
    adam_seconds: float
    train_per_class: int = 200  # samples that `compare` takes of each class, of a data set in a folder
    test_per_class: int = 100
    hidden: int = 300


SETTINGS = {
    False: Setting(iterations=300, dense_seconds=55.0, adam_seconds=8.0, train_per_class=200),
    True: Setting(iterations=300, dense_seconds=4.0, adam_seconds=1.0, train_per_class=50),
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
    yield from compare_on(dataset, setting, seed, progress)


def compare_on(
    dataset: Dataset, setting: Setting, seed: int, progress: Progress = lambda done, total, what: None
) -> Iterator[dict[str, Any]]:
    """Sparse iterations beside dense ones, on the same network from the same start with the same steps.

    The iterates of the first three methods are equal, bit for bit, and their iterations take turns; dense ones stop
    early where their time is up. Mini-batch Adam trains the same network in the usual way, and a ReLU network with as
    many hidden units: an iteration of theirs is an epoch.

    Yields:
        A record per logged iteration (kind "training": method, iteration, seconds of training alone, loss F,
        accuracies), then one per method (kind "training_summary").
    """
    progress(0, setting.iterations, f"k-medoids, {dataset.name}")
    model, medoids = start(dataset, setting.hidden, seed, SCALE, MARGIN)
    methods: list[Method] = [
        Subgradient("dense autograd", "dense", dense_copy(model), dataset, MARGIN),
        Subgradient("fused dense", "other", kernel_copy(model), dataset, MARGIN),
        MiniBatchAdam("mini-batch Adam", "other", kernel_copy(model), dataset, MARGIN, seed),
        Perceptron("MLP, Adam", "other", model, dataset, MARGIN, seed),
    ]
    peaks = {method: peak_memory(method.gradients)[1] for method in methods}  # warms up as well
    made: list[Method] = []

    def make() -> tuple[Tensor, ...]:
        made.append(Sparse("sparse", "ours", model, dataset, MARGIN, setting.iterations))
        return ()

    ours_peak = peak_memory(make)[1]
    methods = made + methods
    peaks[methods[0]] = ours_peak
    seconds = (math.inf, setting.dense_seconds, setting.dense_seconds, setting.adam_seconds, setting.adam_seconds)
    limits = dict(zip(methods, seconds, strict=True))
    stopped: dict[Method, str] = {}
    losses: dict[Method, float] = {}
    for iteration in range(setting.iterations + 1):
        for method in methods:
            if method in stopped:
                continue
            progress(iteration, setting.iterations, f"{method.name}, {dataset.name}")
            losses[method] = loss = method.evaluate()
            if method.is_done:
                stopped[method] = "F is 0, to rounding"
            elif iteration == setting.iterations:
                stopped[method] = f"{iteration} iterations done"
            elif method.seconds > limits[method]:
                stopped[method] = f"{limits[method]:g} s of training done"
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
