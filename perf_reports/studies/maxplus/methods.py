"""Training a linear-min-max network by the sparse subgradient of the worst-sample loss, beside dense backprop.

    F(W) = max_n ℓ_n,    W ← W − γ g,    γ = (F − L) / ‖g‖²

g has at most four entries. `WorstSampleSubgradient` touches what they move; its rivals go through the same iterates by
a dense evaluation, of fused products or of all candidates in memory, or train by mini-batches. Mathematics, steps and
sources: kernels/worst_sample/definition.py. The network and its start are those of Enaieh & Fercoq, arXiv 2603.04133;
loss, step rule and settings are our own.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ....autotune.timing import synchronize
from ....kernels.worst_sample import is_available
from ....kernels.worst_sample.definition import IDLE, Settings, beginning, step_length
from ....nn import KMedoidsInit, LinearMinMax, WorstSampleLoss
from ....optim import WorstSampleSubgradient
from ....optim.worst_sample_subgradient import Iterate
from ... import data
from ...data import Dataset
from ...measuring.memory import peak_memory
from ..runs import (
    CHECKPOINT,
    CHECKPOINT_SECONDS,
    METRICS,
    MODEL,
    PLOT,
    Progress,
    interruption,
    read_checkpoint,
    replace,
    write_metrics,
)
from .features import view

STUDY = "maxplus"
# One grey level of the digits is 1/16 of their range: in the units of the scores, 4. The margin asks for that much.
SCALE = 64.0
MARGIN = 4.0
clock: Callable[[], float] = time.perf_counter  # of the methods' training; the comparison may set another


# ------------------------------------------------------------------------------------------------ methods


class DenseLinearMinMax(LinearMinMax):
    """The same network by its definition: all candidates [N, q, 2d] in memory, and torch's autograd through them."""

    candidates = 1 << 26  # at a time, 256 MiB in float32; more samples than fit go through in parts

    def _materialised(self, x: Tensor, weight: Tensor, reduce: Callable[..., Any]) -> Tensor:
        rows = max(1, self.candidates // weight.numel())
        return torch.cat([reduce(part[:, None, :] + weight, dim=2).values for part in x.split(rows)])

    def min_units(self, z: Tensor) -> Tensor:
        return self._materialised(z, self.W1, torch.min)

    def max_units(self, u: Tensor) -> Tensor:
        return self._materialised(u, self.W2, torch.max)


class Method:
    """One way of training a network, an iteration at a time; its clock stands still while it is judged."""

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float) -> None:
        self.name = name
        self.role = role
        self.model = model
        self.worst = WorstSampleLoss(margin)
        self.dataset = dataset
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.iteration = 0
        self.times: list[float] = []
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.scores: Tensor | None = None
        # z = A x is the same in every iteration unless A is trained
        self.z = None if model.A.requires_grad else model.linear(dataset.x_train)

    @property
    def seconds(self) -> float:
        return sum(self.times)

    def evaluate(self) -> float:
        """F of the present iterate, over all training samples."""
        raise NotImplementedError

    def advance(self) -> None:
        """To the next iterate."""
        raise NotImplementedError

    def gradients(self) -> tuple[Tensor, ...]:
        """What one step needs: a loss, then its gradient in each trained parameter. Changes nothing."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to gain from the iterate just evaluated: F is 0, to rounding."""
        return False

    def finish(self) -> None:
        """Settle on the iterate that the method stands for: the last one."""

    def score(self) -> Tensor:
        z = self.model.linear(self.dataset.x_train) if self.z is None else self.z
        return self.model.max_units(self.model.min_units(z))

    def _keep_best(self, loss: float) -> None:
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def test_accuracy(self) -> float:
        # by the kernels whatever the method: the scores are the same, and this is not what is timed
        scores = LinearMinMax.max_units(
            self.model, LinearMinMax.min_units(self.model, self.model.linear(self.dataset.x_test))
        )
        return _accuracy(scores, self.dataset.y_test)

    def record(self, loss: float) -> dict[str, Any]:
        """The present iterate, just evaluated, as a line of the results."""
        assert self.scores is not None
        return {
            "kind": "training",
            "study": STUDY,
            "method": self.name,
            "dataset": self.dataset.name,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "loss": loss,
            "train_accuracy": _accuracy(self.scores, self.dataset.y_train),
            "test_accuracy": self.test_accuracy(),
        }


class Subgradient(Method):
    """Full-batch subgradient steps on the worst-sample loss; dense or sparse by the model's own forward."""

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.settings = Settings(margin=margin)
        self.progress = beginning(self.settings)
        self._found: tuple[Tensor, ...] = ()
        self.loss = math.inf
        self.idle = 0  # iterations in a row that found F within its rounding of 0, and no better than before

    def gradients(self) -> tuple[Tensor, ...]:
        scores = self.score()
        loss = self.worst(scores, self.dataset.y_train)
        self.scores = scores.detach()
        return loss.detach(), *torch.autograd.grad(loss, self.trained)

    def evaluate(self) -> float:
        start = clock()
        self._found = self.gradients()
        self.loss = self._found[0].item()  # waits for the device
        self._previous = self.best_loss
        self._keep_best(self.loss)
        self.times.append(clock() - start)
        return self.loss

    @torch.no_grad()
    def advance(self) -> None:
        start = clock()
        gradients = self._found[1:]
        self._found = ()
        self.idle = self.idle + 1 if self._previous <= self.loss <= self._rounding() else 0
        self.progress.best_loss, self.progress.iteration = self.best_loss, self.iteration
        squared_norm = sum(g.square().sum().item() for g in gradients)
        step = step_length(self.settings, self.progress, self.loss, squared_norm)
        if step is None:
            self.model.load_state_dict(self.best)
        else:
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.add_(gradient, alpha=-step)
        self.iteration += 1
        self.times[-1] += clock() - start

    @property
    def is_done(self) -> bool:
        # steps as small as the rounding of the scores may be absorbed, and F stay a unit in the last place above 0
        return self.loss == 0 or self.idle >= IDLE

    def _rounding(self) -> float:
        assert self.scores is not None
        return torch.finfo(self.scores.dtype).eps * self.scores.abs().max().item()

    def finish(self) -> None:
        """To the iterate with the best F: a subgradient step need not descend."""
        self.model.load_state_dict(self.best)


class Sparse(Method):
    """Ours: many iterations in one call, between two that are logged."""

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, last: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.z = None  # it is not ours to keep: the optimizer has it
        is_available(model.W1.dtype)  # compiled before its time is taken
        start = clock()
        self.optimizer = WorstSampleSubgradient(model, dataset.x_train, dataset.y_train, margin=margin)
        self.times.append(clock() - start)  # the caches: the evaluation of the start
        self.loss = self.best_loss = self.optimizer.loss
        self._last = last
        self._ahead: list[float] = []

    def gradients(self) -> tuple[Tensor, ...]:
        return ()

    def evaluate(self) -> float:
        return self.loss

    def advance(self) -> None:
        self.iteration += 1
        if not self._ahead:
            until = next(i for i in range(self.iteration, self._last + 1) if _logged(i, self._last) or i == self._last)
            start = clock()
            self._ahead = self.optimizer.step(until - self.iteration + 1).tolist()
            self.times += [(clock() - start) / len(self._ahead)] * len(self._ahead)
            self.best_loss = self.optimizer.best.loss
        self.loss = self._ahead.pop(0)

    @property
    def is_done(self) -> bool:
        return not self._ahead and self.optimizer.status != "going"

    @torch.no_grad()
    def record(self, loss: float) -> dict[str, Any]:
        self.scores = self.model(self.dataset.x_train)
        return super().record(loss)

    def finish(self) -> None:
        self.optimizer.load_best()


class MiniBatchAdam(Method):
    """The usual way: Adam on the mean cross-entropy of mini-batches, by our kernels. An iteration is an epoch."""

    batch = 128
    learning_rate = 0.1  # in the units of the scores, as the weights are

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, seed: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.optimizer = torch.optim.Adam(self.trained, lr=self.learning_rate)
        self.order = torch.Generator().manual_seed(seed)

    def gradients(self) -> tuple[Tensor, ...]:
        return self._gradients(torch.arange(min(self.batch, len(self.dataset.y_train)), device="cpu"))

    def _gradients(self, rows: Tensor) -> tuple[Tensor, ...]:
        z = self.model.linear(self.dataset.x_train[rows]) if self.z is None else self.z[rows]
        scores = self.model.max_units(self.model.min_units(z))
        loss = functional.cross_entropy(scores, self.dataset.y_train[rows])
        return loss.detach(), *torch.autograd.grad(loss, self.trained)

    @torch.no_grad()
    def evaluate(self) -> float:
        self.scores = self.score()
        loss = self.worst(self.scores, self.dataset.y_train).item()
        self._keep_best(loss)
        return loss

    def advance(self) -> None:
        start = clock()
        for rows in _batches(len(self.dataset.y_train), self.batch, self.order):
            _, *gradients = self._gradients(rows)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        synchronize()
        self.iteration += 1
        self.times.append(clock() - start)


class Perceptron(Method):
    """A ReLU network with as many hidden units, by the same mini-batches."""

    learning_rate = 1e-3

    def __init__(self, name: str, role: str, model: LinearMinMax, dataset: Dataset, margin: float, seed: int) -> None:
        super().__init__(name, role, model, dataset, margin)
        self.z = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(model.in_features, model.hidden, device="cpu"),
                torch.nn.ReLU(),
                torch.nn.Linear(model.hidden, model.classes, device="cpu"),
            )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)
        self.order = torch.Generator().manual_seed(seed)

    def gradients(self) -> tuple[Tensor, ...]:
        return self._gradients(torch.arange(min(MiniBatchAdam.batch, len(self.dataset.y_train)), device="cpu"))

    def _gradients(self, rows: Tensor) -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(self.net(self.dataset.x_train[rows]), self.dataset.y_train[rows])
        return loss.detach(), *torch.autograd.grad(loss, list(self.net.parameters()))

    @torch.no_grad()
    def evaluate(self) -> float:
        self.scores = self.net(self.dataset.x_train)
        self.best_loss = min(self.best_loss, loss := self.worst(self.scores, self.dataset.y_train).item())
        return loss

    def advance(self) -> None:
        start = clock()
        for rows in _batches(len(self.dataset.y_train), MiniBatchAdam.batch, self.order):
            _, *gradients = self._gradients(rows)
            for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        self.iteration += 1
        self.times.append(clock() - start)

    @torch.no_grad()
    def test_accuracy(self) -> float:
        return _accuracy(self.net(self.dataset.x_test), self.dataset.y_test)


def _batches(samples: int, size: int, order: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randperm(samples, generator=order, device="cpu").split(size)


def _accuracy(scores: Tensor, targets: Tensor) -> float:
    return (scores.argmax(dim=1) == targets).double().mean().item()


@torch.no_grad()
def _accuracy_of(model: LinearMinMax, x: Tensor, y: Tensor) -> float:
    return _accuracy(model(x), y)


def start(dataset: Dataset, hidden: int, seed: int, scale: float, margin: float) -> tuple[LinearMinMax, KMedoidsInit]:
    """The network as the nearest-medoid classifier of the training samples."""
    model = LinearMinMax(dataset.features, hidden, dataset.classes, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    return model, model.init_kmedoids(dataset.x_train, dataset.y_train, scale, margin=margin, generator=generator)


def _dense_copy(model: LinearMinMax) -> DenseLinearMinMax:
    train_a = model.A.requires_grad
    dense = DenseLinearMinMax(model.in_features, model.hidden, model.classes, train_a=train_a, device="cpu")
    dense.load_state_dict(model.state_dict())
    return dense


def _kernel_copy(model: LinearMinMax) -> LinearMinMax:
    train_a = model.A.requires_grad
    copy = LinearMinMax(model.in_features, model.hidden, model.classes, train_a=train_a, device="cpu")
    copy.load_state_dict(model.state_dict())
    return copy


def _logged(iteration: int, iterations: int) -> bool:
    """Every iteration while F falls fastest, then about a hundred of the rest."""
    return iteration < 10 or iteration % max(1, iterations // 100) == 0


# ------------------------------------------------------------------------------------------------ the comparison


@dataclass(frozen=True)
class Setting:
    """How much the comparison does. Seconds are training time; the method stops at the first limit."""

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
    dataset = data.load(data_dir=data_dir, seed=seed)
    if data_dir is not None:
        dataset = dataset.subset(setting.train_per_class, setting.test_per_class, seed)
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
        Subgradient("dense autograd", "dense", _dense_copy(model), dataset, MARGIN),
        Subgradient("fused dense", "other", _kernel_copy(model), dataset, MARGIN),
        MiniBatchAdam("mini-batch Adam", "other", _kernel_copy(model), dataset, MARGIN, seed),
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
            if method in stopped or _logged(iteration, setting.iterations):
                yield method.record(loss) | {"seed": seed}
            if method not in stopped:
                method.advance()
    progress(setting.iterations, setting.iterations, f"trained, {dataset.name}")
    for method in methods:
        memory = peaks[method]
        method.finish()
        yield {
            "kind": "training_summary",
            "study": STUDY,
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


# ------------------------------------------------------------------------------------------------ one training run

_ANSWER_SECONDS = 0.5
_BETTER = (
    "Adam on mini-batches of the mean cross-entropy, of scores times a temperature, trains this network to a better "
    "accuracy: docs/maxplus-networks.md"
)


class _Samples(NamedTuple):
    x: Tensor
    y: Tensor


def _hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, _Samples | None, Tensor]:
    """The data without a share of each class's training samples; these, or None where there are none; the rows left."""
    generator, y = torch.Generator().manual_seed(seed), dataset.y_train
    held = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=generator, device="cpu")
        held[rows[order[: min(len(rows) - 1, round(share * len(rows)))]]] = True
    left, x = (~held).nonzero().squeeze(1), dataset.x_train
    if not held.any():
        return dataset, None, left
    kept = dataclasses.replace(dataset, x_train=x[~held], y_train=y[~held])
    return kept, _Samples(x[held], y[held]), left


def _remarks(kept: Mapping[str, Any]) -> list[str]:
    """What must not be left unsaid of a run whose iterates are no better than its start."""
    if not kept["validation_samples"]:
        return []
    if kept["kept"] == "validation" and kept["kept_iteration"] == 0 < kept["iterations"]:
        said = "no iterate is right more often on the validation samples than the start, and the start is kept"
        return [f"{said} (--keep loss keeps the iterate of the least loss)", _BETTER]
    if kept["validation_accuracy"] < kept["first_validation_accuracy"]:
        return [
            "the iterate that is kept, of the least loss, is worse on the validation samples than the start",
            _BETTER,
        ]
    return []


def train(
    dataset: Dataset,
    out: Path,
    *,
    features: str = "pixels",
    hidden: int | None = None,
    iterations: int = 300,
    seed: int = 0,
    scale: float = SCALE,
    margin: float = MARGIN,
    step: Literal["polyak", "sqrt", "power"] = "polyak",
    loss: Literal["hinge", "cross_entropy"] = "hinge",
    memory: Literal["auto", "trees", "winners"] = "auto",
    train_a: bool = False,
    validation: float = 0.1,
    keep: Literal["validation", "loss"] = "validation",
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train one network by the sparse backward, and leave it in a folder.

    Writes metrics.jsonl (the logged iterations), model.pt (`state_dict` of the iterate that is kept, `config`, and
    `view`, what makes features of pixels: View(*view).of(x), or None; loads with weights_only=True), training.png
    (where matplotlib is installed) and checkpoint.pt; each is replaced as a whole. Ctrl-C ends after the iteration
    under way with all of these in place; a run that is resumed goes through the same iterates, bit for bit, as one that
    never stopped.

    Args:
        features: of FEATURES in maxplus_features.py.
        hidden: hidden units; by default 300, or a quarter of the samples where that is less.
        iterations: in all, those before a resumption included. It ends sooner where F is 0, to rounding.
        seed: of the samples that k-medoids draws, and of random directions.
        scale, margin: λ and Δ, see LinearMinMax.init_kmedoids.
        step, loss, memory, train_a: see WorstSampleSubgradient.
        validation: the share of each class's training samples that is held out, in [0, 1); F does not see them.
        keep: "validation", the iterate that is right most often on them: of equal ones that of the least F, where it is
            one of them, else the first. "loss", that of the least F, also where no sample is held out. F falls for the
            sake of one sample: others may fare worse than at the start.
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called before each iteration.
    Returns:
        The summary: iterations, losses, accuracies, seconds, whether it was interrupted, the files, and remarks.
    Raises:
        ValueError: settings that do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if iterations < 1:
        raise ValueError(f"train: iterations is {iterations}; expected at least 1")
    if not 0 <= validation < 1:
        raise ValueError(f"train: validation is {validation}; expected a share in [0, 1)")
    if keep not in ("validation", "loss"):
        raise ValueError(f"train: keep is {keep!r}; expected 'validation' or 'loss'")
    dataset, held_out, rows_left = _hold_out(dataset, validation, seed)
    if hidden is None:
        hidden = min(300, max(dataset.classes, len(dataset.y_train) // 4))
    seen = view(features, dataset.x_train, seed)
    dataset = dataset if seen is None else seen.on(dataset)
    watched = None if held_out is None else (held_out.x if seen is None else seen.of(held_out.x), held_out.y)
    keep = keep if watched else "loss"
    config = {
        "dataset": dataset.name,
        "features": features,
        "in_features": dataset.features,
        "hidden": hidden,
        "classes": dataset.classes,
        "seed": seed,
        "scale": scale,
        "margin": margin,
        "step": step,
        "loss": loss,
        "train_a": train_a,
        "validation": validation,
    }
    pace = 1  # iterations that take as long as Ctrl-C may wait
    state = read_checkpoint(out / CHECKPOINT, config) if resume else None
    if state is None:
        progress(0, iterations, "k-medoids")
        model, _ = start(dataset, hidden, seed, scale, margin)
    else:
        model = LinearMinMax(dataset.features, hidden, dataset.classes, device="cpu")
        model.load_state_dict(state["optimizer"]["weights"])
    optimizer = WorstSampleSubgradient(
        model,
        dataset.x_train,
        dataset.y_train,
        step,
        memory,
        loss=loss,
        margin=margin,
        train_A=train_a,
        validation=watched,
    )
    rows: list[dict[str, Any]] = []
    spent = 0.0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        rows, spent = state["rows"], state["seconds"]
    out.mkdir(parents=True, exist_ok=True)

    def log() -> None:
        # an iterate may have been logged as the last one before
        rows[:] = [row for row in rows if row["iteration"] < optimizer.iteration]
        rows.append(
            {
                "kind": "training",
                "study": STUDY,
                "method": "sparse",
                "dataset": dataset.name,
                "iteration": optimizer.iteration,
                "seconds": spent,
                "loss": optimizer.loss,
                "train_accuracy": _accuracy_of(model, dataset.x_train, dataset.y_train),
                "validation_accuracy": None if watched is None else _accuracy_of(model, *watched),
                "test_accuracy": _accuracy_of(model, dataset.x_test, dataset.y_test),
                "seed": seed,
            }
        )

    def kept() -> Iterate:
        best = optimizer.best
        if watched is None or keep == "loss":
            return best
        twin = _kernel_copy(model)
        twin.load_state_dict(best.weights)
        first = optimizer.best_validation
        return best if _accuracy_of(twin, *watched) == first.accuracy else first

    def save() -> None:
        checkpoint = {"config": config, "rows": rows, "seconds": spent, "optimizer": optimizer.state_dict()}
        replace(out / CHECKPOINT, lambda path: torch.save(checkpoint, path))
        model_of = {"config": config, "state_dict": kept().weights, "view": None if seen is None else tuple(seen)}
        replace(out / MODEL, lambda path: torch.save(model_of, path))
        write_metrics(out / METRICS, rows)

    saved = time.monotonic()
    with interruption() as interrupted:
        while True:
            progress(optimizer.iteration, iterations, f"F {optimizer.best.loss:.4g}")
            done = optimizer.status != "going" or optimizer.iteration >= iterations
            if done or interrupted.is_set() or _logged(optimizer.iteration, iterations):
                log()
            if done or interrupted.is_set():
                break
            until = range(optimizer.iteration + 1, iterations + 1)
            asked = next(i for i in until if _logged(i, iterations) or i == iterations) - optimizer.iteration
            asked = min(asked, pace)
            begun = time.perf_counter()
            optimizer.step(asked)
            seconds = time.perf_counter() - begun
            spent += seconds
            pace = max(1, round(asked * _ANSWER_SECONDS / seconds))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
        progress(optimizer.iteration, iterations, f"F {optimizer.best.loss:.4g}")
        save()
        plotted = _plot(rows, out / PLOT)
    last = rows[-1]
    worst = optimizer.worst
    worst = worst._replace(sample=int(rows_left[worst.sample]))  # as in the data set
    memory_of = optimizer.why
    best = optimizer.load_best()
    best_loss_test_accuracy = _accuracy_of(model, dataset.x_test, dataset.y_test)
    left = kept()
    model.load_state_dict(left.weights)
    of_kept = {
        "kept": keep,
        "kept_iteration": left.iteration,
        "iterations": last["iteration"],
        "validation_samples": 0 if watched is None else len(watched[1]),
        "first_validation_accuracy": rows[0]["validation_accuracy"],
        "validation_accuracy": None if watched is None else _accuracy_of(model, *watched),
    }
    return {
        **config,
        **of_kept,
        "remarks": _remarks(of_kept),
        "memory": memory_of,
        "interrupted": not done,
        "seconds": spent,
        "first_loss": rows[0]["loss"],
        "final_loss": last["loss"],
        "best_loss": best.loss,
        "best_loss_test_accuracy": best_loss_test_accuracy,
        "first_test_accuracy": rows[0]["test_accuracy"],
        "test_accuracy": _accuracy_of(model, dataset.x_test, dataset.y_test),
        "train_accuracy": last["train_accuracy"],
        "worst_sample": worst._asdict(),
        "files": [str(out / name) for name in (MODEL, METRICS, CHECKPOINT, *([PLOT] if plotted else []))],
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """What `train` returned, for people."""
    worst = summary["worst_sample"]
    interrupted = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    accuracies = (
        f"{summary['first_test_accuracy']:.2%} at the start, {summary['best_loss_test_accuracy']:.2%} at best loss, "
        f"{summary['test_accuracy']:.2%} as kept: iterate {summary['kept_iteration']}"
    )
    watched = f"on {summary['validation_samples']} training samples held out"
    if summary["validation_samples"]:
        first, last = summary["first_validation_accuracy"], summary["validation_accuracy"]
        of_validation = f"{first:.2%} at the start, {last:.2%} as kept, {watched}"
    else:
        of_validation = f"{watched}: the iterate of the least loss is kept"
    return [
        f"network        {summary['dataset']}: {summary['in_features']} features, {summary['hidden']} hidden units",
        f"memory         {summary['memory']}",
        f"iterations     {summary['iterations']} in {summary['seconds']:.3g} s{interrupted}",
        f"worst loss     {summary['first_loss']:.4g} at the start, {summary['best_loss']:.4g} at best",
        f"validation     {of_validation}",
        f"test accuracy  {accuracies}",
        f"worst sample   {worst['sample']}, in {worst['share']:.0%} of the iterates",
        f"files          {'  '.join(summary['files'])}",
        *(f"remark         {remark}" for remark in summary["remarks"]),
    ]


def _plot(rows: list[dict[str, Any]], path: Path) -> bool:
    """Loss and accuracy over iterations; False where matplotlib is not installed."""
    try:
        from matplotlib.ticker import PercentFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    iterations = [row["iteration"] for row in rows]
    with drawing(10, 4.3, ncols=2) as (figure, (loss, accuracy)):  # pyright: ignore
        loss.plot(iterations, [row["loss"] for row in rows], color=COLOR["ours"], linewidth=1.8)
        loss.set_title("Worst-sample loss")
        for field, color in (("train_accuracy", COLOR["muted"]), ("test_accuracy", COLOR["ours"])):
            accuracy.plot(
                iterations,
                [row[field] for row in rows],
                color=color,
                linewidth=1.8,
                label=field.removesuffix("_accuracy"),
            )
        accuracy.set_title("Accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        accuracy.legend()
        for panel in (loss, accuracy):
            panel.grid(axis="y")
            panel.set_xlabel("iteration")
        loss.set_ylim(bottom=0)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True
