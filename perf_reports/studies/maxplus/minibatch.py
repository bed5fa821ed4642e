"""Training by mini-batches, of the mean, the worst share or the worst sample of a batch; a scale found by short runs.

    loss = CVaR_α of the cross-entropies of f / T over a batch,    rate of step s:  r (1 + cos(π s / S)) / 2

T and the rate go together with λ, the scale of the start. f is homogeneous of degree 1 in (A, W1, W2), so Adam, whose
steps do not depend on the scale of the gradients, trains a start at λ and margin Δ with T and r as one at 1 and Δ/λ
with T/λ and r/λ. The search therefore keeps λ and looks for T and r.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ....nn import CVaRLoss, best_temperature
from ....optim import SparseMaxPlus
from ...data import Dataset
from . import clock
from .methods import ANSWER_SECONDS, NAME, accuracy

Objective = Literal["mean", "cvar", "worst"]
OBJECTIVES: tuple[Objective, ...] = ("mean", "cvar", "worst")
TEMPERATURE, RATE, BATCH = 1 / 8, 3e-3, 128
_ROWS = 4096  # samples that are judged at a time

_RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


class Judged(NamedTuple):
    """The accuracy and losses of a network on samples. The losses are cross-entropies of f / T."""

    accuracy: float
    mean_loss: float
    worst_loss: float


class MiniBatchTraining:
    """A network trained by mini-batches of one objective, an epoch or a part of one at a time.

    Its clock stands still while the network is judged. A training that goes on from `state_dict()` goes through the
    same iterates, bit for bit, as one that never stopped.

    Args:
        model: what is trained: a linear-min-max network, or any module of the data's sizes. Its parameters that require
            a gradient are.
        dataset: x_train and y_train are trained on, x_test and y_test only reported.
        objective: "mean", α = 1; "cvar", the worst share `alpha` of each batch; "worst", the worst sample of each. The
            share falls from 1 geometrically over the first half of the steps, and stays: from a start that most samples
            are wrong at, the worst ones alone lead to scores that are the same for all.
        alpha: of "cvar" alone.
        temperature: T of the cross-entropy of f / T.
        end_temperature: where the temperature is annealed to, geometrically over the steps; None leaves it.
        learn_temperature: T is trained with the weights, at the same rate for log T.
        rate: of the first step. It falls to 0 by a cosine over all epochs, after a rise over `warm_up` batches.
        rate_of_a: the same for the parameter A, where the network has one that is trained; None: rate.
        epochs: in all.
        batch: samples a step. The last one of an epoch may be smaller.
        rule: the optimizer's, with torch's own settings: "adam", "rmsprop", "adagrad", "sgd".
        momentum: of "sgd", and of "rmsprop" where its steps are not sparse, in [0, 1).
        sparse: steps by SparseMaxPlus; for a model whose layers were made with sparse=True.
        shifts: pixels by which each image of a batch is moved at random, at most, in rows and in columns, the rest
            blank; 0 moves none. The features are then the pixels of square images.
        average: decay of an average of the weights, which is then what is judged and kept; 0 judges the weights.
        seed: of the order of the samples.
        validation: held-out samples (x, y). The iterate that is right most often on them is kept, of equal ones that
            of the least mean loss; without any, the last one.

    Attributes:
        history: a row for the start and for each epoch. `loss` and `train_accuracy` are means over the batches of the
            epoch as they were trained on, for the start over at most 10,000 training samples.

    Raises:
        ValueError: a setting that is out of its range, named; a model without a trained parameter.
        TypeError: a setting that is no number.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        *,
        objective: Objective = "mean",
        alpha: float = 0.1,
        temperature: float = TEMPERATURE,
        end_temperature: float | None = None,
        learn_temperature: bool = False,
        rate: float = RATE,
        rate_of_a: float | None = None,
        epochs: int = 10,
        batch: int = BATCH,
        rule: str = "adam",
        momentum: float = 0.0,
        sparse: bool = False,
        average: float = 0.0,
        warm_up: int = 0,
        shifts: int = 0,
        seed: int = 0,
        validation: tuple[Tensor, Tensor] | None = None,
        method: str = "mini-batches",
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"MiniBatchTraining: objective is {objective!r}; expected {', '.join(OBJECTIVES)}")
        if rule not in _RULES:
            raise ValueError(f"MiniBatchTraining: rule is {rule!r}; expected {', '.join(_RULES)}")
        for name, value, least in (
            ("epochs", epochs, 1),
            ("batch", batch, 1),
            ("warm_up", warm_up, 0),
            ("shifts", shifts, 0),
        ):
            if value < least:
                raise ValueError(f"MiniBatchTraining: {name} is {value}; expected at least {least}")
        for name, value in (("rate", rate), ("rate_of_a", rate if rate_of_a is None else rate_of_a)):
            if not 0 < value < math.inf:
                raise ValueError(f"MiniBatchTraining: {name} is {value}; expected a positive, finite number")
        if not 0 <= average < 1:
            raise ValueError(f"MiniBatchTraining: average is {average}; expected a decay in [0, 1)")
        if end_temperature is not None and learn_temperature:
            raise ValueError("MiniBatchTraining: the temperature is to be annealed and to be learned; expected one")
        if shifts and math.isqrt(dataset.features) ** 2 != dataset.features:
            raise ValueError(f"MiniBatchTraining: shifts of {dataset.features} features; expected square images")
        if not 0 <= momentum < 1:
            raise ValueError(f"MiniBatchTraining: momentum is {momentum}; expected a number in [0, 1)")
        if momentum and rule not in (rules := ("sgd",) if sparse else ("sgd", "rmsprop")):
            steps = f"{'sparse ' if sparse else ''}steps"
            raise ValueError(
                f"MiniBatchTraining: momentum is {momentum} with rule {rule!r}; {steps} take one with "
                f"{' or '.join(rules)}"
            )
        self.model = model
        self.dataset = dataset
        self.method = method
        self.validation = validation
        self.epochs = epochs
        self.batch = min(batch, len(dataset.y_train))
        self.average = average
        self.warm_up = warm_up
        self.shifts = shifts
        self.seed = seed
        self._alpha = {"mean": 1.0, "cvar": alpha, "worst": 1.0 / self.batch}[objective]
        self.loss = CVaRLoss(self._alpha, temperature=temperature, learn_temperature=learn_temperature)
        self.loss.to(dataset.x_train.device)
        self._temperatures = (temperature, temperature if end_temperature is None else end_temperature)
        if end_temperature is not None:
            CVaRLoss(temperature=end_temperature)  # checks it
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("MiniBatchTraining: no parameter of the model requires a gradient; expected one at least")
        of_a = [p for name, p in trained if name == "A"]
        rest = [p for name, p in trained if name != "A"] + list(self.loss.parameters())
        rates = [(rest, rate), *([(of_a, rate if rate_of_a is None else rate_of_a)] if of_a else [])]
        self._rates = [r for _, r in rates]
        groups = [{"params": parameters, "lr": r} for parameters, r in rates]
        self.optimizer: torch.optim.Optimizer
        options: dict[str, Any] = {"momentum": momentum} if momentum else {}
        if sparse:
            self.optimizer = SparseMaxPlus(groups, rule="momentum" if momentum else rule, **options)
        else:
            if rule == "adam":
                options["fused"] = True  # one pass over weights and moments, where the default makes a dozen
            self.optimizer = _RULES[rule](groups, **options)
        self.order = torch.Generator().manual_seed(seed)
        self.iteration = 0  # epochs that are done
        self.seconds = 0.0
        self._pace = 1  # batches
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_row: dict[str, Any] = {}
        self._averaged = {name: value.detach().clone() for name, value in model.named_parameters()} if average else {}
        self._begin_epoch()
        self._log(self._judged_start())

    @property
    def is_done(self) -> bool:
        return self.iteration >= self.epochs

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.dataset.y_train) // self.batch)

    @property
    def share(self) -> float:
        """Done of the whole, in whole epochs, in [0, 1]."""
        return self.iteration / self.epochs

    def advance_briefly(self) -> None:
        """Some batches on, as many as take no longer than Ctrl-C may wait, at most to the end of the epoch."""
        begun = time.perf_counter()
        self.advance(self._pace)
        seconds = time.perf_counter() - begun
        self._pace = max(1, min(2 * self._pace, round(self._pace * ANSWER_SECONDS / seconds)))

    def advance(self, batches: int | None = None) -> None:
        """To the end of the epoch, or so many batches on, at most to its end; at its end a row is logged."""
        if self.is_done:
            return
        begin = clock.now()
        last = self.batches if batches is None else min(self.batches, self._at + batches)
        x, y = self.dataset.x_train, self.dataset.y_train
        while self._at < last:
            rows = self._permutation[self._at * self.batch : (self._at + 1) * self.batch]
            self._step(x[rows], y[rows])
            self._at += 1
        self.seconds += clock.now() - begin
        if self._at == self.batches:
            self.iteration += 1
            samples = len(self.dataset.y_train)
            self._log((self._sums[0].item() / samples, self._sums[1].item() / samples))
            if not self.is_done:
                self._begin_epoch()

    def run(self) -> None:
        """To the last epoch; the iterate that is kept is the model's then."""
        while not self.is_done:
            self.advance()
        self.load_best()

    def load_best(self) -> None:
        """Put the iterate that is kept into the model."""
        self.model.load_state_dict(self.best)

    def judge(self, x: Tensor, y: Tensor) -> Judged:
        """The present iterate, or its average, on samples, at the temperature of its training."""
        with self._judged_weights():
            return judge(self.model, x, y, self.loss.temperature)

    def state_dict(self) -> dict[str, Any]:
        """The state that a training of the same settings goes on from; torch.load reads it with weights_only=True."""
        return {
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self._averaged,
            "best": self.best,
            "best_row": self.best_row,
            "history": self.history,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "at": self._at,
            "order": self._order_before,
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._averaged = {name: value.clone() for name, value in state["averaged"].items()}
        self.best = {name: value.clone() for name, value in state["best"].items()}
        self.best_row = dict(state["best_row"])
        self.history = [dict(row) for row in state["history"]]
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.order.set_state(state["order"])
        self._begin_epoch()
        self._at, self._sums = state["at"], state["sums"].clone()

    def _begin_epoch(self) -> None:
        self._order_before = self.order.get_state()
        self._permutation = torch.randperm(len(self.dataset.y_train), generator=self.order, device="cpu")
        self._at = 0
        self._sums = torch.zeros(2, dtype=torch.float64, device="cpu")  # losses, and samples that were right

    def _step(self, x: Tensor, y: Tensor) -> None:
        step = self.iteration * self.batches + self._at
        share = step / (self.epochs * self.batches)
        factor = 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (step + 1) / (self.warm_up + 1))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.loss.alpha = self._alpha ** min(1.0, 2 * share)
        first, end = self._temperatures
        if end != first:
            self.loss.temperature = first * (end / first) ** share
        if self.shifts:
            # by seed and step, so that a resumed epoch moves its images alike
            x = shifted(x, self.shifts, torch.Generator().manual_seed(self.seed << 32 | step))
        scores = self.model(x)
        loss = self.loss(scores, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._sums[0] += loss.detach() * len(y)
        self._sums[1] += (scores.detach().argmax(dim=1) == y).sum()
        if self.average:
            # an average of few iterates forgets faster: its start would weigh on it
            decay = min(self.average, (step + 1) / (step + 10))
            parameters = dict(self.model.named_parameters())
            for name, value in self._averaged.items():
                value.lerp_(parameters[name].detach(), 1 - decay)

    def _judged_start(self) -> tuple[float, float]:
        few = slice(0, 10_000)
        judged = self.judge(self.dataset.x_train[few], self.dataset.y_train[few])
        return judged.mean_loss, judged.accuracy

    def _log(self, of_training: tuple[float, float]) -> None:
        loss, train_accuracy = of_training
        row = {
            "kind": "training",
            "study": NAME,
            "method": self.method,
            "dataset": self.dataset.name,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "temperature": self.loss.temperature,
            "loss": loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": self.judge(self.dataset.x_test, self.dataset.y_test).accuracy,
        }
        if self.validation is not None:
            judged = self.judge(*self.validation)
            row |= {"validation_accuracy": judged.accuracy, "validation_loss": judged.mean_loss}
        self.history.append(row)
        if self.validation is None or not self.best_row or _rank(row) > _rank(self.best_row):
            self.best_row = row
            with self._judged_weights():
                self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _judged_weights(self) -> _Swapped:
        return _Swapped(dict(self.model.named_parameters()), self._averaged)


class _Swapped:
    """The averaged weights in the model's place, for as long as the block lasts; nothing where none are averaged."""

    def __init__(self, parameters: dict[str, nn.Parameter], averaged: dict[str, Tensor]) -> None:
        self.pairs = [(parameters[name], value) for name, value in averaged.items()]

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in self.pairs:
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    return row["validation_accuracy"], -row["validation_loss"]


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Square images [N, side · side], each moved by up to `most` rows and columns, blank where nothing moved in."""
    side = math.isqrt(x.shape[1])
    padded = nn.functional.pad(x.view(-1, side, side), (most,) * 4)
    first = torch.randint(2 * most + 1, (2, len(x), 1, 1), generator=generator, device="cpu").to(x.device)
    every = torch.arange(side, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[image, first[0] + every[:, None], first[1] + every].reshape(len(x), -1)


@torch.no_grad()
def scores_of(model: nn.Module, x: Tensor) -> Tensor:
    """The scores of samples [N, K], some of them at a time."""
    return torch.cat([model(rows) for rows in x.split(_ROWS)])


def judge(model: nn.Module, x: Tensor, y: Tensor, temperature: float) -> Judged:
    """Accuracy, and the mean and the worst cross-entropy of f / T, over samples."""
    return judge_scores(scores_of(model, x), y, temperature)


def judge_scores(scores: Tensor, y: Tensor, temperature: float) -> Judged:
    """The same of scores f."""
    losses = nn.functional.cross_entropy(scores / temperature, y, reduction="none").double()
    return Judged(accuracy(scores, y), losses.mean().item(), losses.max().item())


# ------------------------------------------------------------------------------------------------ the scale


class Scale(NamedTuple):
    """A temperature and a rate, the seconds that choosing them took, and the trials: a row for each run."""

    temperature: float
    rate: float
    seconds: float
    trials: list[dict[str, float]]


def search_scale(
    model: nn.Module,
    dataset: Dataset,
    validation: tuple[Tensor, Tensor],
    *,
    temperatures: Sequence[float] = (1 / 4, 1 / 8, 1 / 16),
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    usual: tuple[float, float] | None = None,
    rate_over_a: float = 1.0,
    batches: int = 24,
    samples: int = 1000,
    **settings: Any,
) -> Scale:
    """Choose temperature and rate for a model at its start, by short runs of copies of it.

    The rates are tried at the usual temperature, then the temperatures at the rate that was chosen, each by a run of
    `batches` batches, which are the same ones, and a cosine that ends there. Better is a lower cross-entropy on
    held-out samples at the temperature that suits them best, which is comparable between temperatures, and less coarse
    than an accuracy. Runs so short tell a bad pair from a good one, and hardly the better of two good ones: a pair is
    left only for one that is better by two standard errors of the difference over the held-out samples.

    Args:
        model: at its start; it is copied, and left as it is.
        validation: held-out (x, y), of which at most `samples` are judged.
        usual: the pair to begin with; by default those in the middle.
        rate_over_a: the rate of the parameter A is the pair's divided by this.
        settings: further ones of MiniBatchTraining: the batch, objective, rule, seed.
    Raises:
        ValueError: no temperature, no rate, or no batch; usual is none of the pairs.
    """
    if not (temperatures and rates) or batches < 1:
        raise ValueError(
            f"search_scale: {len(temperatures)} temperatures, {len(rates)} rates and {batches} batches; "
            "expected at least one of each"
        )
    best = (temperatures[len(temperatures) // 2], rates[len(rates) // 2]) if usual is None else usual
    if best[0] not in temperatures or best[1] not in rates:
        raise ValueError(
            f"search_scale: usual is {best}; expected one of {list(temperatures)} and one of {list(rates)}"
        )
    begin = clock.now()
    held_out = validation[0][:samples], validation[1][:samples]
    losses: dict[tuple[float, float], Tensor] = {}

    def take_best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        """The one of these pairs, best among them, to go on with."""
        if len(pairs) == 1:
            return best
        for temperature, rate in pairs:
            if (temperature, rate) not in losses:
                own = {**settings, "temperature": temperature, "rate": rate, "rate_of_a": rate / rate_over_a}
                losses[temperature, rate] = _held_out_losses(model, dataset, held_out, batches, own)
        first = min(pairs, key=lambda pair: losses[pair].mean().item())
        return first if _is_less(losses[first], losses[best]) else best

    best = take_best([(best[0], rate) for rate in rates])
    best = take_best([(temperature, best[1]) for temperature in temperatures])
    trials = [{"temperature": t, "rate": r, "loss": each.mean().item()} for (t, r), each in losses.items()]
    return Scale(*best, clock.now() - begin, trials)


def _is_less(ours: Tensor, theirs: Tensor) -> bool:
    """Whether losses of the same samples are lower by more than two standard errors of their mean difference."""
    if not theirs.isfinite().all():
        return bool(ours.isfinite().all())
    gain = theirs - ours
    return bool(gain.mean() > 2 * gain.std(correction=0) / math.sqrt(len(gain)))


class _Trial(MiniBatchTraining):
    """A short run, of which nothing is judged or logged on the way."""

    def _judged_start(self) -> tuple[float, float]:
        return math.nan, math.nan

    def _log(self, of_training: tuple[float, float]) -> None:
        pass


def _held_out_losses(
    model: nn.Module, dataset: Dataset, validation: tuple[Tensor, Tensor], batches: int, settings: dict[str, Any]
) -> Tensor:
    """Held-out cross-entropies, at their best temperature, of a copy trained so long; infinite where it diverged."""
    trial = _short(dataset, batches * int(settings.get("batch", BATCH)), int(settings.get("seed", 0)))
    size = min(int(settings.get("batch", BATCH)), len(trial.y_train))
    epochs = -(-batches // -(-len(trial.y_train) // size))  # of few samples more than one, for as many batches
    training = _Trial(copy.deepcopy(model), trial, **{**settings, "validation": None, "epochs": epochs})
    while not training.is_done:
        training.advance()
    x, y = validation
    with torch.no_grad():
        scores = training.model(x)
    if not scores.isfinite().all():
        return torch.full((len(y),), math.inf, dtype=torch.float64, device="cpu")
    return nn.functional.cross_entropy(scores.double() / best_temperature(scores, y), y, reduction="none")


def _short(dataset: Dataset, samples: int, seed: int) -> Dataset:
    """So many samples of the training part, drawn by seed; none to test on."""
    rows = torch.randperm(len(dataset.y_train), generator=torch.Generator().manual_seed(seed), device="cpu")[:samples]
    few = slice(0, 1)  # a row of results needs one
    return Dataset(dataset.x_train[rows], dataset.y_train[rows], dataset.x_test[few], dataset.y_test[few], dataset.name)
