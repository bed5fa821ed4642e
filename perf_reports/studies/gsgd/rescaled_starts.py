"""Networks that a user brings, from starts that compute the same at other scales: by G-SGD and by SGD.

    python -m tropigrad.perf_reports.studies.gsgd.rescaled_starts OUT [--data cifar10:DIR] [--network resnet20|unet] \
        [--epochs 3] [--seeds 3]

Torch draws the weights; then every hidden node that BasisPaths finds is scaled by its own c = exp(spread · ξ), ξ
standard normal, which leaves the function as it is. Each method trains at the best of the same rates, by the training
loss of its last epoch, from the start that is not rescaled at the first seed; SGD also at the best rate of each spread,
as someone would have it who tunes anew.

* resnet20: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, at half of its channels, on classes.
* unet: Ronneberger et al., "U-Net", MICCAI 2015, of two levels, convolutions of 16 to 64 channels without
  normalisation, that takes noise away: inputs have noise of standard deviation 0.2, the loss is the mean squared error.

Both take images halved to 16 × 16. Momentum 0.9. Writes rescaled-starts.jsonl, a line a training, rescaled-starts.md
and rescaled-starts.png. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....optim import GSGD, BasisPaths
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ..runs import ResumeError
from ..tables import markdown
from ..threads import one_thread
from .trials import Task, Trials, classifying, final_loss, means, trained

SPREADS = (0.0, 0.5, 1.0)
BATCH, MOMENTUM, NOISE = 64, 0.9, 0.2


class Block(nn.Module):
    """Two convolutions of a residual branch, with BatchNorm, beside a shortcut."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, behind, 3, stride, 1, bias=False), nn.BatchNorm2d(behind)
        self.conv2, self.norm2 = nn.Conv2d(behind, behind, 3, 1, 1, bias=False), nn.BatchNorm2d(behind)
        shortcut = [nn.Conv2d(before, behind, 1, stride, bias=False), nn.BatchNorm2d(behind)]
        self.shortcut = nn.Sequential(*shortcut if before != behind else [])

    def forward(self, x: Tensor) -> Tensor:
        """The sum of branch and shortcut, behind a ReLU."""
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


def resnet20(width: int = 8, classes: int = 10) -> nn.Module:
    """Three stages of three blocks; `width` channels in the first."""
    stem = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    blocks, before = [], width
    for stage in range(3):
        for at in range(3):
            behind = width << stage
            blocks.append(Block(before, behind, 2 if stage and not at else 1))
            before = behind
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class UNet(nn.Module):
    """Two levels; each skip is concatenated with what a ConvTranspose2d brings up from below."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _pair(3, width), _pair(width, 2 * width)
        self.bottom = _pair(2 * width, 4 * width)
        self.rise2, self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), _pair(4 * width, 2 * width)
        self.rise1, self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2), _pair(2 * width, width)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images of the size of x, whose sides are multiples of 4."""
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        below = self.bottom(functional.max_pool2d(second, 2))
        above = self.up2(torch.cat((second, self.rise2(below)), 1))
        return self.head(self.up1(torch.cat((first, self.rise1(above)), 1)))


def _pair(before: int, behind: int) -> nn.Sequential:
    first, second = nn.Conv2d(before, behind, 3, padding=1), nn.Conv2d(behind, behind, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def _images(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x.view(-1, 3, 32, 32), 2)


def _classes(dataset: Dataset) -> Task:
    halved = Dataset(_images(dataset.x_train), dataset.y_train, _images(dataset.x_test), dataset.y_test, dataset.name)
    return classifying(halved)


def _noise(dataset: Dataset) -> Task:
    generator = torch.Generator().manual_seed(0)
    clean = [_images(x) for x in (dataset.x_train, dataset.x_test)]
    noisy = [x + NOISE * torch.randn(x.shape, generator=generator) for x in clean]
    return Task(noisy[0], clean[0], noisy[1], clean[1], functional.mse_loss, is_classifying=False)


@dataclass(frozen=True)
class Subject:
    """A network, the task that it is trained on, and the rates that each method may have."""

    make: Callable[[], nn.Module]
    task: Callable[[Dataset], Task]
    title: str
    rates: tuple[float, ...]


SUBJECTS = {
    "resnet20": Subject(
        resnet20,
        _classes,
        "ResNet-20, CIFAR-10",
        (0.003, 0.01, 0.03),
    ),
    "unet": Subject(
        UNet,
        _noise,
        "U-net, noise taken away",
        (0.01, 0.03),
    ),
}
TITLES = {"gsgd": "G-SGD", "sgd": "SGD", "tuned": "SGD, tuned for each start"}


def start(subject: Subject, task: Task, spread: float, seed: int) -> nn.Module:
    """The network as torch draws it, its hidden nodes rescaled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = subject.make()
    BasisPaths(model, task.x_train[:2]).rescale_(torch.Generator().manual_seed(seed), spread)
    return model


def optimizer(name: str, model: nn.Module, task: Task, lr: float) -> torch.optim.Optimizer:
    """The optimizer of that name; both with the same momentum."""
    if name == "gsgd":
        return GSGD(BasisPaths(model, task.x_train[:2]), lr, MOMENTUM)
    return torch.optim.SGD(model.parameters(), lr, MOMENTUM, foreach=True)


def compare(name: str, dataset: Dataset, trials: Trials, epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Records with the column "method" of TITLES: of every spread and seed, each method at the rate it is due."""
    subject = SUBJECTS[name]
    task = subject.task(dataset)

    def get(method: str, lr: float, spread: float, seed: int) -> dict[str, Any]:
        def train() -> dict[str, Any]:
            model = start(subject, task, spread, seed)
            return trained(model, optimizer(method, model, task, lr), task, epochs=epochs, batch=BATCH, seed=seed)

        return trials.get(train, network=name, optimizer=method, lr=lr, spread=spread, seed=seed)

    found = []
    for method in ("gsgd", "sgd"):
        best = {
            spread: min((get(method, lr, spread, 0) for lr in subject.rates), key=final_loss)["lr"]
            for spread in (SPREADS if method == "sgd" else SPREADS[:1])
        }
        for spread in SPREADS:
            for seed in range(seeds):
                found.append({**get(method, best[0.0], spread, seed), "method": method})
                if method == "sgd":
                    found.append({**get(method, best[spread], spread, seed), "method": "tuned"})
    return found


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each network and method the last training loss and the test, by spread, a value a seed."""
    rows = []
    for network in dict.fromkeys(r["network"] for r in records):
        for method, title in TITLES.items():
            for spread in SPREADS:
                runs = [r for r in records if (r["network"], r["method"], r["spread"]) == (network, method, spread)]
                if runs:
                    field = "test_accuracy" if "test_accuracy" in runs[0] else "test_loss"
                    cells = f"{runs[0]['lr']:g}", means(runs, "loss"), means(runs, field)
                    rows.append((network, title, f"{spread:g}", *cells))
    return markdown(("network", "", "spread of log c", "η", "training loss", "test"), rows)


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """A row a network, a panel a method: the training loss over epochs, a line a spread, of the first seed."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from ...page.figures import COLOR, drawing

    networks = list(dict.fromkeys(r["network"] for r in records))
    size = {"nrows": len(networks), "ncols": len(TITLES), "sharey": "row", "squeeze": False}
    with drawing(10, 0.6 + 3.1 * len(networks), **size) as (figure, axes):
        for row, network in zip(axes, networks, strict=True):
            for panel, (method, title) in zip(row, TITLES.items(), strict=True):
                for number, (spread, name) in enumerate(zip(SPREADS, ("ours", "dense", "other"), strict=False)):
                    run = next(
                        r
                        for r in records
                        if (r["network"], r["method"], r["spread"], r["seed"]) == (network, method, spread, 0)
                    )
                    width = 1.2 + 1.8 * (len(SPREADS) - 1 - number)  # lines on each other can be seen
                    epochs = range(1, len(run["loss"]) + 1)
                    panel.plot(epochs, run["loss"], color=COLOR[name], linewidth=width, label=f"{spread:g}")
                panel.set_title(title)
                panel.set(yscale="log", xlabel="epoch")
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
                for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                    ticks(FuncFormatter(lambda value, _: f"{value:g}"))
                panel.grid(axis="y", which="both")
            row[0].set_ylabel(f"training loss\n{SUBJECTS[network].title}")
        axes[0][-1].legend(title="spread of log c")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/rescaled-starts.jsonl, .md and .png."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.gsgd.rescaled_starts",
        description="Networks from rescaled starts, by G-SGD and by SGD.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="cifar10:DIR (default: cifar10 of TROPIGRAD_DATA)")
    parser.add_argument("--network", choices=SUBJECTS, action="append", help="one or both; default: both")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-per-class", type=int, default=160)
    asked = parser.parse_args(arguments)
    if min(asked.epochs, asked.seeds, asked.train_per_class) < 1:
        parser.error("epochs, seeds and train-per-class: expected at least 1 of each")
    try:
        dataset = data.load(asked.data or "cifar10", data.find_data_dir()).subset(asked.train_per_class, 30)
        setting = {
            "dataset": dataset.name,
            "epochs": asked.epochs,
            "batch": BATCH,
            "momentum": MOMENTUM,
            "spreads": [*SPREADS],
        }
        trials = Trials(asked.out / "rescaled-starts.jsonl", setting, partial(print, flush=True))
    except (DataError, ResumeError) as error:
        parser.error(str(error))
    records: list[dict[str, Any]] = []
    try:
        with one_thread():
            for name in asked.network or SUBJECTS:
                records += compare(name, dataset, trials, asked.epochs, asked.seeds)
    except KeyboardInterrupt:
        print(f"interrupted: {len(trials.records) - 1} trainings stand in {trials.path}; the same command goes on")
        return 130
    written = table(records)
    replace(asked.out / "rescaled-starts.md", lambda fresh: fresh.write_text(written + "\n", encoding="utf-8"))
    draw(records, asked.out / "rescaled-starts.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
