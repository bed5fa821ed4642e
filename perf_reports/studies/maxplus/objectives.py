"""One training run by the objective that does best on held-out samples: the mean, the worst share, or the worst sample.

All contenders begin as the same nearest-medoid classifier. Mean and worst share are trained by mini-batches, the worst
sample by sparse subgradients over all samples. One that falls behind the leader by more than the held-out samples can
mistake is left out after a quarter of its epochs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ....nn import LinearMinMax
from ....optim import WorstSampleSubgradient
from ...commands import Progress
from ...data import Dataset
from ..runs import Run
from . import clock, networks
from .drawing import plot_objectives
from .features import view
from .methods import ANSWER_SECONDS, MARGIN, SCALE, accuracy_of, logged, quick_start
from .minibatch import BATCH, RATE, TEMPERATURE, MiniBatchTraining, Objective, search_scale
from .networks import LINEAR_MIN_MAX, NETWORKS, Network, layered, sizes_of
from .training import hold_out, kept_iterate

OBJECTIVES = ("auto", "mean", "cvar", "worst")
ALPHA = 0.1
STEPS = 1500  # batches that few samples are trained for
AVERAGE = 0.998  # decay of the average of the weights that is judged and kept
RATE_OVER_A = 3.0  # A moves slower than the other weights
_LEAST_EPOCHS, _MOST_EPOCHS = 10, 300
_TEMPERATURES, _RATES = (0.5, 1.0, 2.0), (1 / 3, 1.0, 3.0)  # times the usual ones: what a search tries


class Contender(Protocol):
    """A training in parts, and its iterate that is right most often on held-out samples."""

    @property
    def history(self) -> list[dict[str, Any]]: ...

    @property
    def best(self) -> dict[str, Tensor]: ...

    @property
    def best_row(self) -> dict[str, Any]: ...

    @property
    def is_done(self) -> bool: ...

    @property
    def share(self) -> float:
        """Done of the whole, in [0, 1]."""
        ...

    def advance_briefly(self) -> None:
        """A part that takes no longer than Ctrl-C may wait."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class WorstSample:
    """The worst sample of all, by sparse subgradients; settings as in WorstSampleSubgradient."""

    def __init__(
        self,
        model: LinearMinMax,
        dataset: Dataset,
        validation: tuple[Tensor, Tensor],
        iterations: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.model, self.dataset, self.validation, self.iterations = model, dataset, validation, iterations
        x, y = dataset.x_train, dataset.y_train
        self.optimizer = WorstSampleSubgradient(model, x, y, validation=validation, **settings)
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self._pace = 1
        self._row: tuple[tuple[int, int], dict[str, Any]] | None = None
        self._log()

    @property
    def is_done(self) -> bool:
        return self.optimizer.iteration >= self.iterations or self.optimizer.status != "going"

    @property
    def share(self) -> float:
        return 1.0 if self.is_done else self.optimizer.iteration / self.iterations

    @property
    def best(self) -> dict[str, Tensor]:
        return kept_iterate(self.optimizer, self.model, self.validation).weights

    @property
    def best_row(self) -> dict[str, Any]:
        # three passes over all samples, and asked for at every step: made anew where another iterate is the best
        at = self.optimizer.best.iteration, self.optimizer.best_validation.iteration
        if self._row is None or self._row[0] != at:
            self._row = at, self._judged()
        return self._row[1]

    def _judged(self) -> dict[str, Any]:
        left = kept_iterate(self.optimizer, self.model, self.validation)
        model = copy.deepcopy(self.model)
        model.load_state_dict(left.weights)
        return {
            "iteration": left.iteration,
            "loss": left.loss,
            "train_accuracy": accuracy_of(model, self.dataset.x_train, self.dataset.y_train),
            "validation_accuracy": accuracy_of(model, *self.validation),
            "test_accuracy": accuracy_of(model, self.dataset.x_test, self.dataset.y_test),
        }

    def advance_briefly(self) -> None:
        at = self.optimizer.iteration
        until = next(
            i for i in range(at + 1, self.iterations + 1) if logged(i, self.iterations) or i == self.iterations
        )
        asked = min(until - at, self._pace)
        begun = clock.now()
        self.optimizer.step(asked)
        seconds = clock.now() - begun
        self.seconds += seconds
        self._pace = max(1, min(2 * asked, round(asked * ANSWER_SECONDS / seconds)) if seconds else 2 * asked)
        if self.optimizer.iteration == until or self.is_done:
            self._log()

    def _log(self) -> None:
        x, y = self.dataset.x_train, self.dataset.y_train
        self.history.append(
            {
                "iteration": self.optimizer.iteration,
                "seconds": self.seconds,
                "loss": self.optimizer.loss,
                "train_accuracy": accuracy_of(self.model, x, y),
                "validation_accuracy": accuracy_of(self.model, *self.validation),
                "test_accuracy": accuracy_of(self.model, self.dataset.x_test, self.dataset.y_test),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "seconds": self.seconds, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds = state["seconds"]
        self.history = [dict(row) for row in state["history"]]
        self._row = None


def epochs_for(samples: int) -> int:
    """The usual number of epochs: ten, of few samples as many as make 1,500 batches, at most 300."""
    return max(_LEAST_EPOCHS, min(_MOST_EPOCHS, STEPS // -(-samples // BATCH)))


def is_behind(accuracy: float, leader: float, samples: int) -> bool:
    """Whether an accuracy on so many samples is below the leader's by more than two of its standard errors."""
    share = (leader * samples + 1) / (samples + 2)  # also where all are right the next one may not be
    return leader - accuracy > 2 * math.sqrt(share * (1 - share) / samples)


def rescaled(model: LinearMinMax, scale: float, margin: float, from_margin: float) -> LinearMinMax:
    """A copy of a start at λ = 1 and `from_margin` as a start at another λ and margin."""
    copied = copy.deepcopy(model)
    state = {name: scale * value for name, value in copied.state_dict().items()}
    # other classes' units stand at −BIG = −2 (max|u| + Δ), and max|u| goes with λ
    state["W2"] = torch.where(state["W2"] == 0, 0.0, state["W2"] + 2 * (scale * from_margin - margin))
    copied.load_state_dict(state)
    return copied


def train_objective(
    dataset: Dataset,
    out: Path,
    *,
    objective: Literal["auto", "mean", "cvar"] = "auto",
    features: str = "pixels",
    hidden: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    scale: float | None = None,
    alpha: float = ALPHA,
    temperature: float | None = None,
    rate: float | None = None,
    rule: str = "adam",
    momentum: float = 0.0,
    shifts: int = 0,
    sparse: bool = False,
    network: Network = LINEAR_MIN_MAX,
    train_a: bool | None = None,
    validation: float = 0.1,
    iterations: int = 300,
    margin: float = MARGIN,
    step: Literal["polyak", "sqrt", "power"] = "polyak",
    loss: Literal["hinge", "cross_entropy"] = "hinge",
    memory: Literal["auto", "trees", "winners"] = "auto",
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train one network by an objective, or by that of all which wins on held-out samples, and leave it in a folder.

    Writes the files that training.train writes. Ctrl-C ends within half a second, with all of these in place; a run
    that is resumed goes through the same iterates, bit for bit, as one that never stopped. The temperature and the rate
    that are not given are sought by short runs, on held-out samples.

    Args:
        objective: "mean" or "cvar", the mean cross-entropy of a batch or of its worst share; "auto", the one of these
            and of the worst sample that is right most often on the held-out samples; of equals the mean, then "cvar".
            Of another network than linear-min-max, the mean and "cvar" alone.
        features, seed, validation, resume, progress: as in training.train.
        hidden: hidden units; by default 300, of another network than linear-min-max 256 in its first layer, or a
            quarter of the samples where that is less.
        epochs: by default as `epochs_for` says.
        scale: λ of the start, of linear-min-max; by default 1, and SCALE for the worst sample.
        alpha: the worst share, of "cvar".
        temperature: T of the cross-entropy of f / T, in the units of the scores.
        rate: of the first step, in the units of the scores.
        rule, momentum: the optimizer's; see MiniBatchTraining.
        shifts: pixels by which each image of a batch is moved at random, at most; features are then the pixels.
        sparse: gradients of the max-plus layers are sparse tensors, and steps those of SparseMaxPlus.
        network: of NETWORKS in networks.py.
        train_a: whether A moves, of linear-min-max; by default by mini-batches alone.
        iterations, margin, step, loss, memory: of the worst sample's contender; see training.train.
    Returns:
        The summary: the objective, accuracies, seconds, a line for each contender, whether it was interrupted, files.
    Raises:
        ValueError: settings that do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if objective not in ("auto", "mean", "cvar"):
        raise ValueError(f"train: objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    if iterations < 1:
        raise ValueError(f"train: iterations is {iterations}; expected at least 1")
    if epochs is not None and epochs < 1:
        raise ValueError(f"train: epochs is {epochs}; expected at least 1")
    if not 0 <= validation < 1:
        raise ValueError(f"train: validation is {validation}; expected a share in [0, 1)")
    for name, value in (("temperature", temperature), ("rate", rate)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"train: {name} is {value}; expected a positive, finite number")
    if not 0 < alpha <= 1:
        raise ValueError(f"train: alpha is {alpha}; expected a share in (0, 1]")
    if network not in NETWORKS:
        raise ValueError(f"train: network is {network!r}; expected one of {', '.join(NETWORKS)}")
    is_min_max = network == LINEAR_MIN_MAX
    for name, value in (("scale", scale), ("train_a", train_a)):
        if value is not None and not is_min_max:
            raise ValueError(f"train: {name} is {value} with network {network!r}, which has no A; expected none")
    if shifts:
        _check_images(shifts, features, dataset)
    dataset, held_out, _ = hold_out(dataset, validation, seed)
    if hidden is None:
        hidden = min(300 if is_min_max else 256, max(dataset.classes, len(dataset.y_train) // 4))
    epochs = epochs_for(len(dataset.y_train)) if epochs is None else epochs
    seen = view(features, dataset.x_train, seed)
    dataset = dataset if seen is None else seen.on(dataset)
    watched = None if held_out is None else (held_out.x if seen is None else seen.of(held_out.x), held_out.y)
    config = {
        "dataset": dataset.name,
        "features": features,
        "in_features": dataset.features,
        "hidden": hidden,
        "classes": dataset.classes,
        "seed": seed,
        "objective": objective,
        "epochs": epochs,
        "scale": scale,
        "alpha": alpha,
        "temperature": temperature,
        "rate": rate,
        "rule": rule,
        "momentum": momentum,
        "shifts": shifts,
        "sparse": sparse,
        "network": network,
        "sizes": list(sizes_of(network, hidden, dataset.classes)),
        "train_a": train_a,
        "validation": validation,
    }
    names: list[str] = [objective] if objective != "auto" else ["worst", "mean", "cvar"] if watched else ["mean"]
    if not is_min_max and "worst" in names:
        names.remove("worst")
    if objective == "auto" and is_min_max:
        config |= {"iterations": iterations, "margin": margin, "step": step, "loss": loss}
    run = Run(out, config, resume)
    state = run.state
    first = 1.0 if scale is None else scale
    if state is None and is_min_max:
        progress(0, 1, "k-medoids")
        model, _ = quick_start(dataset, hidden, seed, first, first, sparse=sparse)
    else:
        model = layered(network, dataset.features, hidden, dataset.classes, seed, sparse=sparse)
    if isinstance(model, LinearMinMax):
        model.A.requires_grad_(train_a is not False)
    by_batches: dict[str, Any] = {"batch": BATCH, "rule": rule, "seed": seed, "validation": watched}
    by_batches |= {"momentum": momentum, "shifts": shifts, "sparse": sparse}
    usual = (first * TEMPERATURE, first * RATE) if is_min_max else (networks.TEMPERATURE, networks.RATE)
    t, r = (temperature or usual[0]), (rate or usual[1])
    if state is not None:
        t, r = state["temperature"], state["rate"]
    elif watched is not None:
        progress(0, 1, "temperature and rate")
        temperatures = [t] if temperature is not None else [factor * t for factor in _TEMPERATURES]
        rates = [r] if rate is not None else [factor * r for factor in _RATES]
        few = {name: value for name, value in by_batches.items() if name != "validation"}
        few |= {"temperatures": temperatures, "rates": rates, "usual": (t, r), "rate_over_a": RATE_OVER_A}
        t, r, *_ = search_scale(model, dataset, watched, **few)

    def contender(name: str) -> Contender:
        if name == "worst":
            assert watched is not None
            assert isinstance(model, LinearMinMax)
            own = SCALE if scale is None else scale
            worst = rescaled(model, own / first, margin, first)
            worst.A.requires_grad_(bool(train_a))
            settings = {"step": step, "loss": loss, "margin": margin, "memory": memory, "train_A": bool(train_a)}
            return WorstSample(worst, dataset, watched, iterations, settings)
        kind: Objective = "mean" if name == "mean" else "cvar"
        return MiniBatchTraining(
            copy.deepcopy(model),
            dataset,
            objective=kind,
            alpha=alpha,
            temperature=t,
            rate=r,
            rate_of_a=r / RATE_OVER_A,
            epochs=epochs,
            average=AVERAGE,
            method=name,
            **by_batches,
        )

    contenders = {name: contender(name) for name in names}
    left_out: list[str] = [] if state is None else state["left_out"]
    if state is not None:
        for name, of_contender in state["contenders"].items():
            contenders[name].load_state_dict(of_contender)
    counted = {name: len(c.history) if state is not None else 0 for name, c in contenders.items()}

    def going() -> list[str]:
        return [name for name, c in contenders.items() if not c.is_done and name not in left_out]

    def collect() -> None:
        for name, c in contenders.items():
            for row in c.history[counted[name] :]:
                run.rows.append({**row, "kind": "training", "objective": name, "seed": seed})
            counted[name] = len(c.history)

    def leave_out() -> None:
        running = [name for name in going() if name != "worst"]
        if watched is None or len(running) < 2 or min(contenders[name].share for name in running) < 0.25:
            return
        accuracies = {name: contenders[name].best_row["validation_accuracy"] for name in running}
        leader = max(accuracies.values())
        left_out.extend(name for name in running if is_behind(accuracies[name], leader, len(watched[1])))

    def advance() -> None:
        name = min(going(), key=lambda name: contenders[name].share)
        before = len(contenders[name].history)
        contenders[name].advance_briefly()
        collect()
        if len(contenders[name].history) > before:
            leave_out()

    def tell() -> None:
        shares = [contenders[name].share for name in names if name not in left_out]
        now = min(going(), key=lambda name: contenders[name].share, default="done")
        leader = max((c.best_row["validation_accuracy"] for c in contenders.values()), default=0.0) if watched else None
        shown = "" if leader is None else f", {leader:.1%} of the held-out samples right"
        progress(round(1000 * sum(shares)), 1000 * len(shares), f"{now}{shown}")

    def winner() -> str:
        if watched is None or len(contenders) == 1:
            return names[-1]
        return max(reversed(names), key=lambda name: (contenders[name].best_row["validation_accuracy"], name == "mean"))

    def snapshot() -> tuple[dict[str, Any], dict[str, Any]]:
        training = {
            "temperature": t,
            "rate": r,
            "left_out": left_out,
            "contenders": {name: c.state_dict() for name, c in contenders.items()},
        }
        weights = contenders[winner()].best
        return training, {"state_dict": weights, "view": None if seen is None else tuple(seen)}

    collect()
    run.go(
        is_done=lambda: not going(),
        advance=advance,
        snapshot=snapshot,
        plot=plot_objectives,
        tell=tell,
    )
    won = winner()
    row = contenders[won].best_row
    return {
        **config,
        "asked": objective,
        "objective": won,
        "scale": (SCALE if won == "worst" else 1.0) if scale is None and is_min_max else scale,
        "temperature": t,
        "rate": r,
        "interrupted": bool(going()),
        "seconds": sum(c.history[-1]["seconds"] for c in contenders.values()),
        "validation_samples": 0 if watched is None else len(watched[1]),
        "kept_iteration": row["iteration"],
        "first_test_accuracy": contenders[won].history[0]["test_accuracy"],
        "first_validation_accuracy": contenders[won].history[0].get("validation_accuracy"),
        "validation_accuracy": row.get("validation_accuracy"),
        "test_accuracy": row["test_accuracy"],
        "train_accuracy": row["train_accuracy"],
        "objectives": [_told(name, c, name in left_out) for name, c in contenders.items()],
        "files": run.files,
    }


def _check_images(shifts: int, features: str, dataset: Dataset) -> None:
    """Whether there are images that can be moved so far."""
    if features != "pixels":
        raise ValueError(f"train: shifts is {shifts} with features {features!r}; expected 'pixels', which can be moved")
    side = math.isqrt(dataset.features)
    if side**2 != dataset.features or side <= 2 * shifts:
        raise ValueError(
            f"train: shifts is {shifts} and a sample of {dataset.name} has {dataset.features} features; expected "
            f"square images of more than {2 * shifts} pixels a side"
        )


def _told(name: str, contender: Contender, is_left_out: bool) -> dict[str, Any]:
    last, row = contender.history[-1], contender.best_row
    return {
        "objective": name,
        "iterations": last["iteration"],
        "seconds": last["seconds"],
        "left_out": is_left_out,
        "kept_iteration": row["iteration"],
        "validation_accuracy": row.get("validation_accuracy"),
        "test_accuracy": row["test_accuracy"],
    }


_NAMES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "mean": lambda _: "the mean of a batch",
    "cvar": lambda summary: f"the worst {summary['alpha']:.0%} of a batch",
    "worst": lambda _: "the worst sample of all",
}


def _units(summary: Mapping[str, Any]) -> str:
    if summary["network"] == LINEAR_MIN_MAX:
        return f"{summary['hidden']} hidden units"
    return f"{summary['network']} of {', '.join(map(str, summary['sizes']))} units"


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary that `train_objective` returned, for people."""
    name = _NAMES[summary["objective"]](summary)
    if summary["asked"] != "auto":
        why = ""
    elif summary["validation_samples"]:
        why = f": right most often on {summary['validation_samples']} training samples held out"
    else:
        why = ": no sample is held out to choose by"
    lines = [
        f"network        {summary['dataset']}: {summary['in_features']} features, {_units(summary)}",
        f"objective      {summary['objective']}, {name}{why}",
    ]
    for of in summary["objectives"]:
        unit = "iterations" if of["objective"] == "worst" else "epochs"
        ended = ", left out as too far behind" if of["left_out"] else ""
        held = "" if of["validation_accuracy"] is None else f"{of['validation_accuracy']:.2%} of the held-out samples, "
        right = f"{held}{of['test_accuracy']:.2%} of the test samples right"
        lines.append(f"  {of['objective']:<12} {of['iterations']} {unit} in {of['seconds']:.3g} s{ended}: {right}")
    if summary["objective"] != "worst":
        lines.append(f"scale          temperature {summary['temperature']:.4g}, rate {summary['rate']:.4g}")
    again = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    first, kept = summary["first_test_accuracy"], summary["kept_iteration"]
    lines += [
        f"test accuracy  {first:.2%} at the start, {summary['test_accuracy']:.2%} as kept: iterate {kept}{again}",
        f"files          {'  '.join(summary['files'])}",
    ]
    return lines
