"""G-SGD beside SGD: the same network from the same start, and from starts that compute the same at other scales.

A skeleton of ones, where G-SGD starts, is close to the identity and a good start for SGD as well; so SGD gets it too,
and each method the best of the same learning rates on its own training loss. A rescaled start multiplies the weights
into every hidden node by a random c > 0 and divides those out of it by c: the network is the same function, G-SGD goes
the same way, and SGD another one.

Networks and schedule: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space",
ICLR 2019. The MLP has four hidden layers of 64 and no bias; the learning rate is η exp(−epoch / 100), batches hold 64.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....autotune.timing import synchronize
from ....optim import GSGD, BasisPaths, PathSGD
from ... import data
from ...data import Dataset
from .. import runs
from ..runs import CHECKPOINT, METRICS, MODEL, PLOT, Progress

STUDY = "gsgd"
NETWORKS = ("mlp", "cnn")
OPTIMIZERS = ("gsgd", "sgd", "path_sgd")
DECAY = math.exp(-0.01)  # of the learning rate, an epoch
HIDDEN = (64, 64, 64, 64)
CHANNELS = (16, 16, 32, 32, 64, 64)
# the logs released with the paper, MNIST, the MLP, 300 epochs: first epoch's training loss, last test accuracy
RELEASED = {"gsgd": (0.304, 0.9764), "sgd": (0.441, 0.9737)}


@dataclass(frozen=True)
class Recipe:
    """What is trained, by what, from where."""

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
        """Raises ValueError where a setting is none of those there are."""
        for name, value, known in (("network", self.network, NETWORKS), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise ValueError(f"train: {name} is {value!r}; expected one of {', '.join(known)}")
        if self.batch < 1:
            raise ValueError(f"train: batch is {self.batch}; expected at least 1")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"train: spread is {self.spread}; expected a number that is not negative")
        if self.optimizer == "path_sgd" and (self.momentum or self.weight_decay):
            raise ValueError("train: path_sgd has neither momentum nor weight decay; expected 0 for both")


def network(recipe: Recipe, dataset: Dataset) -> nn.Sequential:
    """The network at its start; the same seed draws the same weights, whatever is done to them then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _mlp(dataset) if recipe.network == "mlp" else _cnn(dataset)
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


def _cnn(dataset: Dataset) -> nn.Sequential:
    """Six convolutions of 3 × 3, every second one followed by pooling; no bias, no normalisation."""
    channels, side = image_shape(dataset)
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, side, side))]
    for number, (before, behind) in enumerate(pairwise((channels, *CHANNELS))):
        layers += [nn.Conv2d(before, behind, 3, padding=1, bias=False), nn.ReLU()]
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], dataset.classes, bias=False)
    return nn.Sequential(*layers, *head)


def image_shape(dataset: Dataset) -> tuple[int, int]:
    """Channels and side of square images, from the number of features.

    Raises:
        ValueError: the features are no square image of one channel or three.
    """
    for channels in (1, 3):
        side = math.isqrt(dataset.features // channels)
        if channels * side * side == dataset.features and side >= 4:
            return channels, side
    raise ValueError(f"train: the cnn takes square images; {dataset.name} has {dataset.features} features")


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
        """Of the samples in this epoch, whatever came before it: a run that is resumed draws the same."""
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
            "study": STUDY,
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


# ------------------------------------------------------------------------------------------------ the comparison


@dataclass(frozen=True)
class Setting:
    """How much the comparison does."""

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
    """G-SGD beside SGD and Path-SGD, from one start and from a rescaled one; an iteration is an epoch.

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
    dataset = data.load(data_dir=data_dir, seed=seed)
    if data_dir is not None:
        dataset = dataset.subset(setting.train_per_class, setting.test_per_class, seed)
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
                "study": STUDY,
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
    medians = {each: statistics.median(found) for each, found in times.items()}
    return {**medians, "ratio": medians[name] / medians["sgd"]}


def draw_starts(
    dataset: Dataset,
    path: Path,
    *,
    spreads: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75),
    epochs: int = 15,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Trains the MLP by G-SGD and by SGD from one start, rescaled ever more, and draws the losses.

    The picture of what G-SGD is for: its lines lie on each other. Needs matplotlib.

    Args:
        spreads: of log c, one line each.
        progress: called before each training.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from ...page.figures import COLOR, drawing

    colors = [COLOR[name] for name in ("ours", "dense", "peer", "other", "compiled")]
    with drawing(10, 4.3, ncols=2, sharey=True) as (figure, axes):
        for row, (panel, name) in enumerate(zip(axes, ("gsgd", "sgd"), strict=True)):
            for number, spread in enumerate(spreads):
                progress(row * len(spreads) + number, 2 * len(spreads), f"{name}, spread {spread:g}")
                training = Training(Recipe(optimizer=name, spread=spread, seed=seed), dataset)
                losses = []
                while training.epoch < epochs:
                    found = training.advance()
                    if found is not None:
                        losses.append(found["loss"])
                # thinner towards the last, so that lines on each other can be seen
                width = 1.2 + 1.8 * (len(spreads) - 1 - number)
                color = colors[number % len(colors)]
                panel.plot(range(1, epochs + 1), losses, color=color, linewidth=width, label=f"{spread:g}")
            panel.set_title({"gsgd": "G-SGD", "sgd": "SGD"}[name])
            panel.set(yscale="log", xlabel="epoch")
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="y")
            if name == "gsgd":  # SGD's losses have been seen to leave any range
                low, high = panel.dataLim.intervaly
                panel.set_ylim(low / 2, 4 * high)
        axes[0].set_ylabel(f"training loss, {dataset.name}")
        axes[1].legend(title="spread of log c")
        runs.replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))


# ------------------------------------------------------------------------------------------------ one training run


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    *,
    epochs: int = 20,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train one network, and leave it in a folder.

    Writes metrics.jsonl (an epoch a line), model.pt (`state_dict` and `config`; loads with weights_only=True),
    training.png (where matplotlib is installed) and checkpoint.pt; each is replaced as a whole. Ctrl-C ends after the
    mini-batch under way with all of these in place; a run that is resumed goes through the same weights, bit for bit,
    as one that never stopped.

    Args:
        epochs: in all, those before a resumption included.
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called at the start and after each epoch.
    Returns:
        The summary: epochs, losses, accuracies, seconds, whether it was interrupted, the files.
    Raises:
        ValueError: settings that do not exist, or do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if epochs < 1:
        raise ValueError(f"train: epochs is {epochs}; expected at least 1")
    config = {"dataset": dataset.name, "features": dataset.features, "classes": dataset.classes, **asdict(recipe)}
    training = Training(recipe, dataset)
    rows: list[dict[str, Any]] = []
    if resume:
        state = runs.read_checkpoint(out / CHECKPOINT, config)
        training.load_state(state)
        rows = state["rows"]
    out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        checkpoint = {"config": config, "rows": rows, **training.state()}
        weights = {"config": config, "state_dict": training.model.state_dict()}
        runs.replace(out / CHECKPOINT, lambda path: torch.save(checkpoint, path))
        runs.replace(out / MODEL, lambda path: torch.save(weights, path))
        runs.write_metrics(out / METRICS, rows)

    saved = time.monotonic()
    progress(training.epoch, epochs, f"{recipe.optimizer}, {dataset.name}")
    with runs.interruption() as interrupted:
        while training.epoch < epochs and not interrupted.is_set():
            row = training.advance()
            if row is not None:
                rows.append(row)
                progress(training.epoch, epochs, f"loss {_number(row['loss'])}, {row['test_accuracy']:.2%} right")
            if time.monotonic() - saved > runs.CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
        save()
        plotted = _plot(rows, out / PLOT)
    last = rows[-1] if rows else {"loss": None, "train_accuracy": None, "test_accuracy": training.test_accuracy()}
    return {
        **config,
        "epochs": training.epoch,
        "interrupted": training.epoch < epochs,
        "seconds": training.seconds,
        "first_loss": rows[0]["loss"] if rows else None,
        "final_loss": last["loss"],
        "test_accuracy": last["test_accuracy"],
        "best_test_accuracy": max((row["test_accuracy"] for row in rows), default=None),
        "train_accuracy": last["train_accuracy"],
        "files": [str(out / name) for name in (MODEL, METRICS, CHECKPOINT, *([PLOT] if plotted else []))],
    }


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """What `train` returned, for people; for the MLP on MNIST beside the logs released with the paper."""
    interrupted = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    lines = [
        f"network        {summary['dataset']}: {summary['network']}, by {summary['optimizer']} at {summary['lr']:g}",
        f"epochs         {summary['epochs']} in {summary['seconds']:.3g} s of training{interrupted}",
        f"training loss  {_number(summary['first_loss'])} first epoch, {_number(summary['final_loss'])} last epoch",
        f"test accuracy  {summary['test_accuracy']:.2%}",
    ]
    if summary["dataset"] == "mnist" and summary["network"] == "mlp" and summary["optimizer"] in RELEASED:
        loss, accuracy = RELEASED[summary["optimizer"]]
        lines.append(f"released       {loss:g} first epoch, {accuracy:.2%} after 300")
    return [*lines, f"files          {'  '.join(summary['files'])}"]


def _plot(rows: list[dict[str, Any]], path: Path) -> bool:
    """Loss and accuracy over epochs; False where matplotlib is not installed or there is no epoch yet."""
    if not rows:
        return False
    try:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    epochs = [row["iteration"] for row in rows]
    with drawing(10, 4.3, ncols=2) as (figure, (loss, accuracy)):  # pyright: ignore
        loss.plot(epochs, [row["loss"] for row in rows], color=COLOR["ours"], linewidth=1.8)
        loss.set(yscale="log")
        loss.set_title("Training loss")
        for field, color in (("train_accuracy", COLOR["muted"]), ("test_accuracy", COLOR["ours"])):
            label = field.removesuffix("_accuracy")
            accuracy.plot(epochs, [row[field] for row in rows], color=color, linewidth=1.8, label=label)
        accuracy.set_title("Accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        accuracy.legend()
        for panel in (loss, accuracy):
            panel.grid(axis="y")
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        runs.replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True
