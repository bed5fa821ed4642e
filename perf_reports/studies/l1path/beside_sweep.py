"""Fronts of training loss and ℓ¹ norm: held λ beside a sweep of weighted sums and the algorithm as it was released.

All set out from one network, on one thread; the sweep is given the epochs that held λ took. Schedules are shorter than
those of comparison.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import data
from ...commands import Progress
from ..threads import one_thread
from .comparison import SCHEDULES, common_range, front_of, shares

NAME = "l1path"
LOSS_TITLE = "Training loss"
METHODS = {"held": ("held λ", "ours"), "sweep": ("sweep", "other"), "released": ("as released", "other")}


@dataclass(frozen=True)
class Setting:
    """The size of the comparison: points after the first, epochs to it and to each other one."""

    dense: int
    sparse: int
    first_steps: int
    correctors: int
    train_per_class: int = 100  # samples taken of each class, of a data set in a folder
    test_per_class: int = 100


SETTINGS = {
    False: Setting(dense=3, sparse=6, first_steps=50, correctors=12),
    True: Setting(dense=2, sparse=3, first_steps=20, correctors=6),
}


def compare(
    data_dir: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[dict[str, Any]]:
    """The front of each method on the digits, or on a subset of MNIST.

    Args:
        data_dir: MNIST-format files, of which a subset is taken (SETTINGS); None for scikit-learn's digits.
        quick: the smallest setting.
        seed: of the split, the subset, the weights and the order of the mini-batches.
        progress: called after each epoch.
    Yields:
        A record per method (kind "front"), then another one (kind "training_summary"): the share of hypervolume over
        the norms that all reach, and how validation's choice among the points answers.
    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    setting = SETTINGS[quick]
    dataset = data.load_few(data_dir, setting.train_per_class, setting.test_per_class, seed)
    name = "digits" if data_dir is None else "mnist"
    schedule = replace(
        SCHEDULES[name],
        dense=setting.dense,
        sparse=setting.sparse,
        first_steps=setting.first_steps,
        correctors=setting.correctors,
    )
    total, walked, budget = schedule.points * len(METHODS), [], 0
    with one_thread():
        for number, (method, (title, role)) in enumerate(METHODS.items()):
            before = number * schedule.points

            def told(done: int, _: int, what: str, title: str = title, before: int = before) -> None:
                progress(before + done, total, f"{title}, {what}, {dataset.name}")

            front = front_of(name, method, dataset, schedule, seed, budget, told)
            budget = budget or round(front["epochs"])
            walked.append({**front, "method": method, "seed": seed, "classes": dataset.classes})
            kept = ("loss", "l1", "nnz", "test_accuracy")
            stay = set(front["non_dominated"])
            yield {
                "kind": "front",
                "study": NAME,
                "method": title,
                "role": role,
                "dataset": dataset.name,
                "seed": seed,
                "seconds": front["seconds"],
                "epochs": front["epochs"],
                "points": [
                    {**{field: point[field] for field in kept}, "is_dominated": i not in stay}
                    for i, point in enumerate(front["points"])
                ],
            }
    progress(total, total, f"walked, {dataset.name}")
    low, high = common_range(walked)
    within = shares(walked, high) if high > low else {}
    for front in walked:
        title, role = METHODS[front["method"]]
        choice = front["points"][front["chosen"]]
        yield {
            "kind": "training_summary",
            "study": NAME,
            "method": title,
            "role": role,
            "dataset": dataset.name,
            "seed": seed,
            "train_samples": len(dataset.y_train),
            "test_samples": len(dataset.y_test),
            "iterations": round(front["epochs"]),
            "seconds_per_iteration": front["seconds"] / front["epochs"],
            "stopped": f"{len(front['points'])} points, {len(front['non_dominated'])} of them not dominated",
            "final_loss": choice["loss"],
            "best_loss": min(point["loss"] for point in front["points"]),
            "test_accuracy": choice["test_accuracy"],
            "nonzeros": choice["nnz"],
            "peak_bytes": None,
            "seconds": front["seconds"],
            "common_range": [low, high] if within else None,
            "hypervolume": within[front["method"], seed][0] if within else None,
        }
