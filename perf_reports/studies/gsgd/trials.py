"""Trainings of one table: each is one line of a JSON Lines file, and none that the file holds runs again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data import Dataset
from ...environment import machine, versions
from ..runs import ResumeError, write_metrics

_KINDS = ("run", "training_curve")


class Trials:
    """The records of a table's trainings, in a file that is replaced as a whole after each of them.

    Args:
        path: where the records stand; what an earlier run of the same setting left there is taken up.
        setting: everything that all trainings have in common, numbers and texts.
        say: told of each training, once it is done.
    Raises:
        ResumeError: the file is corrupt, or holds the trainings of another setting.
    """

    def __init__(self, path: Path, setting: dict[str, Any], say: Callable[[str], None] = print) -> None:
        self.path, self.say = path, say
        self.records: list[dict[str, Any]] = []
        if path.exists():
            self.records = _read(path)
            earlier = self.records[0]["setting"]
            if earlier != setting:
                other = sorted(name for name in {*earlier, *setting} if earlier.get(name) != setting.get(name))
                raise ResumeError(f"{path}: trainings of another setting ({', '.join(other)}); name another folder")
        else:
            self.records.append({"kind": "run", "setting": setting, "machine": machine(), "versions": versions()})

    def get(self, train: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """The record of the training that `key` names: the one in the file, else of train(), which joins them."""
        for record in self.records[1:]:
            if all(record.get(name) == value for name, value in key.items()):
                return record
        began = time.process_time()
        curve = train()
        seconds = round(time.process_time() - began, 1)
        record = {"kind": "training_curve", "study": "gsgd", **key, **curve, "processor_seconds": seconds}
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_metrics(self.path, self.records)
        last = record["loss"][-1]
        what = ", ".join(f"{name} {value}" for name, value in key.items())
        self.say(f"{what}: loss {'not finite' if last is None else f'{last:.4f}'}, {seconds} s")
        return record


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not records or {record["kind"] for record in records} - {*_KINDS} or "setting" not in records[0]:
            raise KeyError("kind")
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path}: no records of this study ({type(error).__name__}); name another folder") from None
    return records


def final_loss(record: dict[str, Any]) -> float:
    """The training loss of the last epoch; infinite where the training left the finite numbers."""
    last = record["loss"][-1]
    return math.inf if last is None else last


@dataclass(frozen=True)
class Task:
    """Inputs and targets, for training and for the test, and the mean loss of an output."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    is_classifying: bool


def classifying(dataset: Dataset) -> Task:
    """Cross-entropy of the classes."""
    parts = dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test
    return Task(*parts, functional.cross_entropy, is_classifying=True)


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, *, epochs: int, batch: int, seed: int
) -> dict[str, Any]:
    """Trains a model; an epoch's losses are those of the weights before each step.

    Returns:
        loss, an epoch each, and test_accuracy or test_loss; None from where the loss is not finite.
    """
    field = "test_accuracy" if task.is_classifying else "test_loss"
    losses: list[float | None] = []
    tests: list[float | None] = []
    count = len(task.y_train)
    for epoch in range(epochs):
        order = torch.randperm(count, generator=torch.Generator().manual_seed((seed << 20) + epoch))
        total = 0.0
        model.train()
        for rows in order.split(batch):
            optimizer.zero_grad()
            loss = task.loss(model(task.x_train[rows]), task.y_train[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            if not math.isfinite(total):
                missing: list[float | None] = [None] * (epochs - epoch)
                return {"loss": losses + missing, field: tests + missing}
        losses.append(round(total / count, 6))
        tests.append(_tested(model, task))
    return {"loss": losses, field: tests}


@torch.no_grad()
def _tested(model: nn.Module, task: Task) -> float | None:
    model.eval()
    output = torch.cat([model(x) for x in task.x_test.split(500)])
    if task.is_classifying:
        return (output.argmax(1) == task.y_test).double().mean().item()
    loss = float(task.loss(output, task.y_test))
    return round(loss, 6) if math.isfinite(loss) else None


def means(records: Sequence[dict[str, Any]], field: str) -> str:
    """The last value of each record, as a table's cell."""
    cells = [record[field][-1] for record in records]
    written = "{:.1%}".format if field == "test_accuracy" else "{:.4f}".format
    return ", ".join("not finite" if value is None else written(value) for value in cells)
