"""Classifiers of the study, each tuned on rows held out: solved from counts, naive Bayes, and the linear softmax.

All have `fit`, `predict_log_proba` and `classes_`, and see the same rows: counts as uint8 or CSR where a model takes
them, the same as float64 where it would convert them, so that no conversion is on its clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ....nn import ExplicitMLP, ExplicitSoftmax
from ...data import Dataset
from ...texts import Speeches

Record = dict[str, Any]
clock: Callable[[], float] = time.process_time  # of learning: others may be at work on the machine


@dataclass(frozen=True)
class Split:
    """Counts x, uint8 [N, D] or CSR, and labels y [N] in [0, classes), of three parts."""

    train: tuple[Any, np.ndarray]
    valid: tuple[Any, np.ndarray]
    test: tuple[Any, np.ndarray]
    name: str

    @property
    def classes(self) -> int:
        return int(self.learning[1].max()) + 1

    @property
    def learning(self) -> tuple[Any, np.ndarray]:
        """Training and validation rows: what a tuned model learns from at last."""
        (x, y), (more, labels) = self.train, self.valid
        if isinstance(x, np.ndarray):
            return np.concatenate([x, more]), np.concatenate([y, labels])
        from scipy import sparse

        return sparse.vstack([x, more], format="csr"), np.concatenate([y, labels])


def of_images(dataset: Dataset, top: int, seed: int, valid: int | None = None) -> Split:
    """Grey levels 0 to `top` of a data set; `valid` rows of training, by default a tenth, are held out."""

    def levels(x: Tensor) -> np.ndarray:
        return (x * top).round().to(torch.uint8).numpy()

    order = np.random.default_rng(seed).permutation(len(dataset.y_train))
    held, kept = np.split(order, [valid or len(order) // 10])
    x, y = levels(dataset.x_train), dataset.y_train.numpy()
    test = levels(dataset.x_test), dataset.y_test.numpy()
    return Split((x[kept], y[kept]), (x[held], y[held]), test, dataset.name)


def of_speeches(speeches: Speeches, seed: int, most: int | None = None) -> Split:
    """Bags of words, 7 : 1 : 2, of the speakers with the most speeches."""
    x, y = speeches.csr(), speeches.y
    if most is not None:
        chosen = np.argsort(-np.bincount(y), kind="stable")[:most]
        place = np.full(len(speeches.names), -1)
        place[chosen] = np.arange(len(chosen))
        kept = np.flatnonzero(place[y] >= 0)
        x, y = x[kept], place[y[kept]]
    order = np.random.default_rng(seed).permutation(len(y))
    parts = np.split(order, [len(order) * 7 // 10, len(order) * 8 // 10])
    train, valid, test = ((x[rows], y[rows]) for rows in parts)
    return Split(train, valid, test, "speakers")


def judged(model: Any, part: tuple[Any, np.ndarray]) -> tuple[float, float]:
    """Cross-entropy in nats, and accuracy. A class that the model does not know has the probability of 1e-30."""
    x, y = part
    log_p = np.asarray(model.predict_log_proba(x), dtype=np.float64)
    classes = np.asarray(model.classes_)
    place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    known = classes[place] == y
    loss = -np.where(known, log_p[np.arange(len(y)), place], np.log(1e-30)).clip(min=np.log(1e-30)).mean()
    return float(loss), float((classes[log_p.argmax(1)] == y).mean())


# ------------------------------------------------------------------------------------------------ the arms


@dataclass(frozen=True)
class Arm:
    """A classifier, and the settings of which held-out rows choose one."""

    name: str
    role: str  # "paper", "ours", "bayes", "gradient"
    make: Callable[..., Any]
    grid: Mapping[str, Sequence[Any]]
    as_float: bool = False

    def settings(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))


def tuned(arm: Arm, split: Split, seed: int) -> Record:
    """The arm learned from all but the test rows: its test cross-entropy, and its test accuracy.

    Each is that of the settings that are best in it on held-out rows: the smoothing that makes the probabilities of
    naive Bayes bearable is not that of its best classes.
    """
    convert = _as_float if arm.as_float else (lambda part: part)
    train, valid, learning, test = map(convert, (split.train, split.valid, split.learning, split.test))
    start = clock()
    candidates = list(arm.settings())
    held_out = [(0.0, 0.0)]
    if len(candidates) > 1:
        held_out = [judged(arm.make(**settings).fit(*train), valid) for settings in candidates]
    by_loss = candidates[min(range(len(candidates)), key=lambda i: held_out[i][0])]
    by_accuracy = candidates[max(range(len(candidates)), key=lambda i: held_out[i][1])]
    chosen = clock()
    model = arm.make(**by_loss).fit(*learning)
    end = clock()
    loss, accuracy = judged(model, test)
    if by_accuracy != by_loss:
        accuracy = judged(arm.make(**by_accuracy).fit(*learning), test)[1]
    return {
        "kind": "classification",
        "dataset": split.name,
        "method": arm.name,
        "role": arm.role,
        "seed": seed,
        "settings": {name: str(value) for name, value in by_loss.items()},
        "settings_of_accuracy": {name: str(value) for name, value in by_accuracy.items()},
        "seconds": end - chosen,
        "tuning_seconds": chosen - start,
        "cross_entropy": loss,
        "accuracy": accuracy,
    }


def _as_float(part: tuple[Any, np.ndarray]) -> tuple[Any, np.ndarray]:
    return part[0].astype(np.float64), part[1]


SEARCH = {"smoothing": "search", "temperature": "search"}
EPSILONS = tuple(10.0**k for k in range(-3, 3))


def arms(dataset: str, seed: int, quick: bool = False) -> list[Arm]:
    """The arms of a data set: "digits", "mnist" or "speakers"."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import ComplementNB, MultinomialNB

    is_text = dataset == "speakers"
    top = {"digits": 16, "mnist": 255}.get(dataset, 0)
    offsets = (0.0,) if is_text else (0.0, top / 8)

    def explicit(**settings: Any) -> Any:
        return ExplicitSoftmax(seed=seed, **settings)

    def network(**settings: Any) -> Any:
        return ExplicitMLP(seed=seed, **settings)

    paper = {"scale": (1.0, 8.0, 32.0, 128.0), "offset": offsets, "smoothing": EPSILONS}
    tempered = {**{name: (value,) for name, value in SEARCH.items()}}
    found = [
        Arm("explicit, the paper's form", "paper", explicit, paper),
        Arm("explicit, temperature", "ours", explicit, {"scale": (32.0,), "offset": offsets, **tempered}),
        Arm(
            "explicit, temperature, prior of counts, rows as they are",
            "ours",
            explicit,
            {"normalize": (False,), "prior": ("count",), **tempered},
        ),
    ]
    if is_text:
        found.append(
            Arm(
                "explicit, the same, unigram smoothing",
                "ours",
                explicit,
                {"normalize": (False,), "prior": ("count",), "smoothing_prior": ("unigram",), **tempered},
            )
        )
    sizes = {"digits": (40,), "mnist": (100,) if quick else (100, 1000), "speakers": (196,)}[dataset]
    for size in sizes:
        grid = {"hidden": (size,), "scale": (32.0,), "offset": offsets if size < 1000 else offsets[:1]}
        if size < 1000:
            found.append(Arm(f"explicit MLP, labels, H = {size}", "paper", network, {"codes": ("labels",), **grid}))
        found.append(Arm(f"explicit MLP, subclasses, H = {size}", "ours", network, {"codes": ("subclasses",), **grid}))
    found.append(Arm("MultinomialNB", "bayes", MultinomialNB, {"alpha": EPSILONS}, as_float=True))
    found.append(Arm("ComplementNB", "bayes", ComplementNB, {"alpha": EPSILONS, "norm": (False, True)}, as_float=True))
    if dataset == "mnist":
        grid = {"rate": (3e-4, 1e-3, 3e-3), "batch": (128, 512), "epochs": (5,), "seed": (seed,)}
        found.append(Arm("linear softmax, Adam", "gradient", AdamSoftmax, grid))
    else:
        regularized = {
            "C": (0.3, 1.0, 3.0) if is_text else (1e-3, 1e-2, 1e-1, 1.0),
            "max_iter": (60 if is_text else 1000,),
        }
        found.append(Arm("logistic regression, L-BFGS", "gradient", LogisticRegression, regularized, as_float=True))
    return found


class AdamSoftmax:
    """A linear softmax on grey levels / 255 by Adam from zero, whose rate falls linearly to zero."""

    def __init__(self, rate: float, batch: int, epochs: int, seed: int) -> None:
        self.rate, self.batch, self.epochs, self.seed = rate, batch, epochs, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> AdamSoftmax:
        self.classes_ = np.unique(y)
        rows, labels = torch.from_numpy(x).float() / 255, torch.from_numpy(np.searchsorted(self.classes_, y))
        layer = self.layer_ = nn.Linear(rows.shape[1], len(self.classes_))
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        steps = self.epochs * -(-len(labels) // self.batch)
        optimizer = torch.optim.Adam(layer.parameters(), self.rate, foreach=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            for part in torch.randperm(len(labels), generator=generator).split(self.batch):
                optimizer.zero_grad()
                functional.cross_entropy(layer(rows[part]), labels[part]).backward()
                optimizer.step()
                schedule.step()
        return self

    @torch.no_grad()
    def predict_log_proba(self, x: np.ndarray) -> np.ndarray:
        return self.layer_(torch.from_numpy(x).float() / 255).log_softmax(1).numpy()


# ------------------------------------------------------------------------------------------------ the sign


def signs(split: Split, seed: int, scale: float = 32.0) -> Iterator[Record]:
    """Logits x log F + s (K − 1) log S of rows of sum K, for s = −1 (the paper's), 0 and 1.

    Each s has a record with ε = 0.1, one with the ε of the least held-out cross-entropy, and one with that and its own
    temperature.
    """
    model = ExplicitSoftmax(scale=scale).fit(*split.train)
    counts = torch.from_numpy(np.ascontiguousarray(model.feature_count_.T))  # [D, C]
    (valid, of_valid), (test, of_test) = ((_dense(model.normalized(x)), y) for x, y in (split.valid, split.test))

    def logits(x: Tensor, sign: float, epsilon: float) -> Tensor:
        smoothed = counts + epsilon
        return x @ smoothed.log() + sign * (scale - 1) * smoothed.sum(0).log()

    def loss(z: Tensor, y: np.ndarray) -> float:
        return functional.cross_entropy(z, torch.from_numpy(y)).item()

    epsilons = tuple(10.0**k for k in range(-3, 5))
    temperatures = tuple(2.0 ** (k / 2) for k in range(13))
    for chosen, of_epsilon, of_temperature in (
        ("nothing", (0.1,), (1.0,)),
        ("ε", epsilons, (1.0,)),
        ("ε and temperature", epsilons, temperatures),
    ):
        for name, sign in (("minus", -1.0), ("none", 0.0), ("plus", 1.0)):
            trials = {}
            for epsilon in of_epsilon:
                z = logits(valid, sign, epsilon)
                trials |= {(epsilon, t): loss(z / t, of_valid) for t in of_temperature}
            epsilon, temperature = min(trials, key=lambda pair: trials[pair])
            z = logits(test, sign, epsilon) / temperature
            yield {
                "kind": "sign",
                "dataset": split.name,
                "sign": name,
                "chosen": chosen,
                "seed": seed,
                "smoothing": epsilon,
                "temperature": temperature,
                "cross_entropy": loss(z, of_test),
                "accuracy": float((z.argmax(1).numpy() == of_test).mean()),
            }


def _dense(x: Any) -> Tensor:
    rows = x if isinstance(x, np.ndarray) else x.toarray()
    return torch.from_numpy(rows).double()
