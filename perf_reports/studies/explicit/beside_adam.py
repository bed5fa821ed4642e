"""A softmax layer solved by counting, beside the same layer by Adam from zero: loss over seconds.

Both see the same rows, on one thread, and seconds are processor time. Rate and batch of Adam are those that come first
to the loss of the solution: they are chosen by what is told of them, in Adam's favour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....nn import ExplicitSoftmax
from ... import data
from ...commands import Progress
from ..threads import one_thread
from .methods import of_images
from .warm_starts import Descent, race, seen_by, zero

NAME = "explicit"
LOSS_TITLE = "Training loss"
SOLUTION: dict[str, Any] = {"scale": 32.0, "temperature": "search"}  # of ExplicitSoftmax, on any images
_USUAL = (0.1, 128)  # rate and batch of an Adam that never comes to the solution's loss
_PACE = 8  # a logged step is so many times the distance to the one before


@dataclass(frozen=True)
class Setting:
    """The size of the comparison. Seconds are training time of one run of Adam."""

    seconds: float
    seeds: int
    train_per_class: int  # samples taken of each class, of a data set in a folder
    test_per_class: int = 100
    batches: tuple[int, ...] = (128, 1024)


SETTINGS = {
    False: Setting(seconds=1.0, seeds=3, train_per_class=500),
    True: Setting(seconds=0.3, seeds=1, train_per_class=100, batches=(128,)),
}


def compare(
    data_dir: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Iterator[dict[str, Any]]:
    """The solution and Adam on the digits, or on a subset of MNIST.

    Args:
        data_dir: MNIST-format files, of which a subset is taken (SETTINGS); None for scikit-learn's digits.
        quick: the smallest setting.
        seed: of the split, and the first of those that draw Adam's mini-batches.
        progress: called before each logged step.
    Yields:
        A record per logged step of each seed (kind "training"), then one per method (kind "training_summary").
    Raises:
        DataError: data_dir holds no MNIST-format files, or corrupt ones.
    """
    setting = SETTINGS[quick]
    dataset = data.load_few(data_dir, setting.train_per_class, setting.test_per_class, seed)
    split = of_images(dataset, 16 if data_dir is None else 255, seed)
    with one_thread():
        progress(0, setting.seeds, f"solution, then Adam's rate, {dataset.name}")
        chosen = race(split, SOLUTION, batches=setting.batches, seeds=1, most_seconds=setting.seconds)
        rate, batch = chosen.get("train_rate", _USUAL[0]), chosen.get("train_batch", _USUAL[1])
        model = ExplicitSoftmax(**SOLUTION).fit(*split.train)
        layer, rows = model.to_linear(), seen_by(model, split)

        def row(method: str, descent: Descent, own_seed: int) -> dict[str, Any]:
            loss, train_accuracy = descent.judged(rows.judges("train"))
            return {
                "kind": "training",
                "study": NAME,
                "method": method,
                "dataset": dataset.name,
                "seed": own_seed,
                "iteration": descent.steps,
                "seconds": descent.seconds,
                "loss": loss,
                "train_accuracy": train_accuracy,
                "test_accuracy": descent.judged(rows.test)[1],
            }

        solved = row("closed form", Descent(layer, rows.train, 0.0, batch, seed), seed)
        solved |= {"iteration": 1, "seconds": chosen["explicit_seconds"]}
        yield solved
        trained: list[dict[str, Any]] = []
        for number in range(setting.seeds):
            descent = Descent(zero(layer), rows.train, rate, batch, seed + number)
            trained = []
            while descent.seconds < setting.seconds:
                progress(number, setting.seeds, f"Adam, step {descent.steps:,}, {dataset.name}")
                descent.advance(max(1, descent.steps // _PACE))
                trained.append(row("Adam from zero", descent, seed + number))
                yield trained[-1]
    progress(setting.seeds, setting.seeds, f"trained, {dataset.name}")
    stopped = f"{setting.seconds:g} s of training done, rate {rate:g}, batches of {batch}"
    for role, own, iteration, end in (
        ("ours", [solved], "solution", "every row was counted once, the temperature searched"),
        ("dense", trained, "step", stopped),
    ):
        last = own[-1]
        yield {
            "kind": "training_summary",
            "study": NAME,
            "method": last["method"],
            "role": role,
            "dataset": dataset.name,
            "seed": seed,
            "train_samples": len(split.train[1]),
            "test_samples": len(split.test[1]),
            "iteration": iteration,
            "iterations": last["iteration"],
            "seconds_per_iteration": last["seconds"] / last["iteration"],
            "stopped": end,
            "final_loss": last["loss"],
            "best_loss": min(r["loss"] for r in own),
            "test_accuracy": last["test_accuracy"],
            "peak_bytes": None,
        }
