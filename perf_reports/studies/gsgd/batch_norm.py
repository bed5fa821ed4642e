"""The released BatchNorm rule in both its modes, beside G-SGD with and without folding, SGD, and a step by filters.

    python -m tropigrad.perf_reports.studies.gsgd.batch_norm OUT [--data cifar10:DIR] [--epochs 6] [--seeds 3]

A small plain network in the manner of Plain-34's first blocks: a convolution, and two blocks of three, a BatchNorm
behind each of the seven, then a mean and a Linear. All methods start from the same weights, the skeleton of the blocks
at ones; "folded" folds each BatchNorm into its convolution, by statistics of the training images at that start, where
the network computes the same but for the differences between mini-batches. Each method has the best of the same rates,
by the training loss of its last epoch at the first seed. No momentum, no weight decay, as in the released runs.

Writes batch-norm.jsonl, a line a training, and batch-norm.md. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ....optim import GSGD, BasisPaths
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ..runs import ResumeError
from ..tables import markdown
from ..threads import one_thread
from .released_rule import PerFilterSGD, ReleasedGSGD, unit_skeleton_
from .trials import Trials, classifying, final_loss, means, trained

WIDTHS = (16, 32)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
BATCH = 64


@dataclass(frozen=True)
class Plain:
    """The network, the convolutions of its blocks, and its other parameters."""

    model: nn.Sequential
    blocks: list[list[nn.Parameter]]
    others: list[nn.Parameter]


def network(seed: int, classes: int = 10, widths: Sequence[int] = WIDTHS, depth: int = 3) -> Plain:
    """The network at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Unflatten(1, (3, 32, 32)), *_normed(3, widths[0], 2)]
        blocks = []
        before = widths[0]
        for number, width in enumerate(widths):
            blocks.append([])
            for at in range(depth):
                layers += _normed(before, width, 2 if number and not at else 1)
                blocks[-1].append(layers[-3].weight)
                before = width
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    unit_skeleton_(blocks)
    inside = {p for weights in blocks for p in weights}
    return Plain(model, blocks, [p for p in model.parameters() if p not in inside])


def _normed(before: int, behind: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, behind, 3, stride, 1, bias=False), nn.BatchNorm2d(behind), nn.ReLU()]


@torch.no_grad()
def folded(model: nn.Sequential, x: Tensor) -> nn.Module:
    """A copy with each BatchNorm folded into its convolution, by the statistics of x."""
    norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, which are equal
    model.train()
    for part in x.split(max(1, len(x) // 4)):
        model(part)
    copied = BasisPaths.fold(model)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.reset_running_stats()
    return copied


Made = tuple[nn.Module, torch.optim.Optimizer]


def _by_sgd(plain: Plain, x: Tensor, lr: float) -> Made:
    return plain.model, torch.optim.SGD(plain.model.parameters(), lr, foreach=True)


def _by_gsgd(plain: Plain, x: Tensor, lr: float) -> Made:
    return plain.model, GSGD(BasisPaths(plain.model), lr)


def _by_folding(plain: Plain, x: Tensor, lr: float, is_ours: bool) -> Made:
    model = folded(plain.model, x)
    return model, GSGD(BasisPaths(model), lr) if is_ours else torch.optim.SGD(model.parameters(), lr, foreach=True)


def _by_released(plain: Plain, x: Tensor, lr: float, bn_mode: str) -> Made:
    return plain.model, ReleasedGSGD(plain.blocks, plain.others, lr, bn_mode=bn_mode)


def _by_filters(plain: Plain, x: Tensor, lr: float) -> Made:
    filters = [module.weight for module in plain.model if isinstance(module, nn.Conv2d)]
    inside = {*filters}
    return plain.model, PerFilterSGD(filters, [p for p in plain.model.parameters() if p not in inside], lr)


METHODS: dict[str, Callable[[Plain, Tensor, float], Made]] = {
    "SGD": _by_sgd,
    "SGD, η ‖w‖² a filter": _by_filters,
    "GSGD, paths end at BatchNorm": _by_gsgd,
    'bn_mode="released"': partial(_by_released, bn_mode="released"),
    'bn_mode="released_noweight"': partial(_by_released, bn_mode="released_noweight"),
    "SGD, folded": partial(_by_folding, is_ours=False),
    "GSGD, folded": partial(_by_folding, is_ours=True),
}


def compare(dataset: Dataset, trials: Trials, epochs: int, seeds: int) -> str:
    """Every method at every rate and the first seed, then at its best rate and the others; a Markdown table."""
    task = classifying(dataset)
    rows = []
    for name, make in METHODS.items():

        def train(lr: float, seed: int, make: Callable[[Plain, Tensor, float], Made] = make) -> dict:
            made = make(network(seed, dataset.classes), dataset.x_train, lr)
            return trained(*made, task, epochs=epochs, batch=BATCH, seed=seed)

        tuning = [trials.get(partial(train, lr, 0), method=name, lr=lr, seed=0) for lr in RATES]
        best = min(tuning, key=final_loss)
        lr = best["lr"]
        runs = [
            best,
            *(trials.get(partial(train, lr, seed), method=name, lr=lr, seed=seed) for seed in range(1, seeds)),
        ]
        others = ", ".join(f"{r['lr']:g}: {means([r], 'loss')}" for r in tuning)
        rows.append((name, f"{lr:g}", means(runs, "loss"), means(runs, "test_accuracy"), others))
    header = ("", "η", f"training loss of epoch {epochs}", "test accuracy", "loss at each rate, seed 0")
    return markdown(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/batch-norm.jsonl and .md."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.gsgd.batch_norm",
        description="The released BatchNorm rule beside G-SGD, SGD and a step by filters.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="cifar10:DIR (default: cifar10 of TROPIGRAD_DATA)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-per-class", type=int, default=250)
    asked = parser.parse_args(arguments)
    if min(asked.epochs, asked.seeds, asked.train_per_class) < 1:
        parser.error("epochs, seeds and train-per-class: expected at least 1 of each")
    try:
        dataset = data.load(asked.data or "cifar10", data.find_data_dir()).subset(asked.train_per_class, 100)
        setting = {"dataset": dataset.name, "epochs": asked.epochs, "batch": BATCH, "widths": [*WIDTHS]}
        trials = Trials(asked.out / "batch-norm.jsonl", setting, partial(print, flush=True))
    except (DataError, ResumeError) as error:
        parser.error(str(error))
    try:
        with one_thread():
            written = compare(dataset, trials, asked.epochs, asked.seeds)
    except KeyboardInterrupt:
        print(f"interrupted: {len(trials.records) - 1} trainings stand in {trials.path}; the same command goes on")
        return 130
    replace(asked.out / "batch-norm.md", lambda fresh: fresh.write_text(written + "\n", encoding="utf-8"))
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
