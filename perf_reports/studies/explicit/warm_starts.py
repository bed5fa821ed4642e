"""Explicit solutions as starts of Adam, beside Xavier's and zero; and the time to the loss that they reach.

A linear softmax has one optimum: what a start can change is the time to it, and where a training that stops early ends.
All starts of a network see the same rows, and each has the rate and batch that held-out rows choose for it.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ....nn import ExplicitMLP, ExplicitSoftmax
from . import methods
from .methods import Record, Split

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rows:
    """Rows [N, D] float32 as a network sees them, and labels, of three parts."""

    train: Part
    valid: Part
    test: Part

    def judges(self, part: str, most: int = 2000) -> Part:
        """Rows to judge a network by, of parts that were shuffled in the split."""
        x, y = getattr(self, part)
        return x[:most], y[:most]


def seen_by(model: Any, split: Split) -> Rows:
    """The split as a model's network takes it."""

    def of(part: tuple[Any, np.ndarray]) -> Part:
        x = model.normalized(part[0])
        x = x if isinstance(x, np.ndarray) else x.toarray()
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), torch.from_numpy(part[1])

    return Rows(*map(of, (split.train, split.valid, split.test)))


class Descent:
    """Adam on the cross-entropy, from a copy of a network. Its clock stands still while it is judged."""

    def __init__(self, start: nn.Module, train: Part, rate: float, batch: int, seed: int) -> None:
        self.model = copy.deepcopy(start)
        self.x, self.y = train
        self.batch = min(batch, len(self.y))
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate, foreach=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.steps, self.seconds = 0, 0.0

    def advance(self, steps: int) -> None:
        start = methods.clock()
        for _ in range(steps):
            if len(self.order) < self.batch:
                self.order = torch.randperm(len(self.y), generator=self.generator)
            rows, self.order = self.order[: self.batch], self.order[self.batch :]
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(self.x[rows]), self.y[rows]).backward()
            self.optimizer.step()
        self.steps += steps
        self.seconds += methods.clock() - start

    @torch.no_grad()
    def judged(self, part: Part) -> tuple[float, float]:
        z = self.model(part[0])
        return functional.cross_entropy(z, part[1]).item(), (z.argmax(1) == part[1]).float().mean().item()


# ------------------------------------------------------------------------------------------------ the starts


def xavier(network: nn.Module, seed: int) -> nn.Module:
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return network


def zero(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    return network


def with_relu(features: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


# ------------------------------------------------------------------------------------------------ loss by step

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def after_steps(
    starts: dict[str, Callable[[int], nn.Module]],
    rows: Rows,
    *,
    name: str,
    network: str,
    horizons: Sequence[int] = (10, 100, 500),
    rates: Sequence[float] = RATES,
    batch: int = 256,
    seeds: int = 3,
) -> Iterator[Record]:
    """Losses and accuracies after so many steps. The rate is that of the least held-out loss at each horizon.

    Yields:
        kind "curve": a logged step of the first seed, with what is best at the longest horizon.
        kind "after": each horizon and seed; horizon 0 is the start.
    """
    logged = sorted({0, 1, 2, 3, 5, *horizons, *(int(10 ** (k / 4)) for k in range(3, 40))})
    logged = [step for step in logged if step <= max(horizons)]
    for start, make in starts.items():
        trials: dict[float, dict[int, float]] = {}
        for rate in rates:
            descent = Descent(make(0), rows.train, rate, batch, seed=0)
            losses = trials[rate] = {}
            for horizon in horizons:
                descent.advance(horizon - descent.steps)
                loss = descent.judged(rows.valid)[0]
                losses[horizon] = loss if math.isfinite(loss) else math.inf
        base = {"dataset": name, "network": network, "start": start}
        for seed in range(seeds):
            descent = Descent(make(seed), rows.train, 0.0, batch, seed)
            yield {"kind": "after", **base, "seed": seed, "steps": 0, **_judgements(descent, rows)}
            for horizon in horizons:
                rate = min(trials, key=lambda rate: trials[rate][horizon])
                descent = Descent(make(seed), rows.train, rate, batch, seed)
                settings = {"rate": rate, "batch": batch, "seed": seed}
                if seed == 0 and horizon == max(horizons):
                    for step in logged:
                        descent.advance(step - descent.steps)
                        yield {"kind": "curve", **base, **settings, "steps": step, **_judgements(descent, rows)}
                descent.advance(horizon - descent.steps)
                yield {"kind": "after", **base, **settings, "steps": horizon, **_judgements(descent, rows)}


def _judgements(descent: Descent, rows: Rows) -> Record:
    (train, _), (test, accuracy) = descent.judged(rows.judges("train")), descent.judged(rows.test)
    return {"seconds": descent.seconds, "train_loss": train, "test_loss": test, "test_accuracy": accuracy}


# ------------------------------------------------------------------------------------------------ time to a loss


def race(
    split: Split,
    settings: dict[str, Any],
    *,
    rates: Sequence[float] = RATES[3:],
    batches: Sequence[int] = (128, 1024),
    seeds: int = 3,
    most_seconds: float = 3.0,
    facts: Record | None = None,
) -> Record:
    """Seconds of the explicit solution, and of Adam from zero to its loss, in training and held out.

    Rate and batch of Adam are the fastest of a first seed; what is told is the median of others. A loss that is not
    reached in `most_seconds` has the time None.

    Args:
        settings: of ExplicitSoftmax.
        facts: what the record says besides.
    """
    times = []
    model = None
    for _ in range(3):
        start = methods.clock()
        model = ExplicitSoftmax(**settings).fit(*split.train)
        times.append(methods.clock() - start)
    assert model is not None
    rows = seen_by(model, split)
    layer = model.to_linear()
    solved = Descent(layer, rows.train, 1e-3, 128, 0)
    targets = {part: solved.judged(rows.judges(part))[0] for part in ("train", "valid")}
    record: Record = {
        "kind": "race",
        "dataset": split.name,
        "N": len(split.train[1]),
        "D": split.train[0].shape[1],
        "C": layer.out_features,
        **(facts or {}),
        "explicit_seconds": min(times),
    }
    start = zero(layer)
    reached: dict[str, dict[tuple[float, int], tuple[float, int]]] = {part: {} for part in targets}
    for rate, batch in product(rates, batches):
        # no longer than the fastest so far
        limit = max(min((seconds for seconds, _ in found.values()), default=most_seconds) for found in reached.values())
        for part, moment in _times_to(start, rows, targets, rate, batch, 0, limit).items():
            if moment is not None:
                reached[part][rate, batch] = moment
    for part, target in targets.items():
        record[f"{part}_loss"] = target
        own = reached[part]
        if not own:
            record |= {f"{part}_seconds": None, f"{part}_steps": None, f"{part}_ratio": None}
            continue
        rate, batch = min(own, key=lambda pair: own[pair][0])
        runs = [
            _times_to(start, rows, {part: target}, rate, batch, seed, most_seconds)[part]
            for seed in range(1, seeds + 1)
        ]
        done = [run for run in runs if run is not None]
        if len(done) < seeds:
            done = [*done, own[rate, batch]]
        seconds = statistics.median(seconds for seconds, _ in done)
        record |= {
            f"{part}_rate": rate,
            f"{part}_batch": batch,
            f"{part}_seconds": seconds,
            f"{part}_samples": [seconds for seconds, _ in done],
            f"{part}_steps": statistics.median(steps for _, steps in done),
            f"{part}_ratio": seconds / min(times),
        }
    return record


def _times_to(
    start: nn.Module, rows: Rows, targets: dict[str, float], rate: float, batch: int, seed: int, most_seconds: float
) -> dict[str, tuple[float, int] | None]:
    """When each target was first seen to be reached: seconds and steps."""
    descent = Descent(start, rows.train, rate, batch, seed)
    moments: dict[str, tuple[float, int] | None] = dict.fromkeys(targets)
    while any(moment is None for moment in moments.values()) and descent.seconds < most_seconds:
        descent.advance(max(1, descent.steps // 8))
        for part, target in targets.items():
            if moments[part] is None and descent.judged(rows.judges(part))[0] <= target:
                moments[part] = descent.seconds, descent.steps
    return moments


# ------------------------------------------------------------------------------------------------ the growth


def pooled(split: Split, side: int, by: int) -> Split:
    """Images of side × side pixels as means of by × by pixels."""

    def of(part: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        x = part[0].reshape(len(part[1]), side // by, by, side // by, by).mean((2, 4))
        return x.round().astype(np.uint8).reshape(len(x), -1), part[1]

    return Split(of(split.train), of(split.valid), of(split.test), split.name)


def first_rows(split: Split, size: int) -> Split:
    x, y = split.train
    return Split((x[:size], y[:size]), split.valid, split.test, split.name)


def topics(features: int, classes: int, seed: int, rows: int = 10_000, words: int = 20) -> Split:
    """Bags of words that are independent given the class, of skewed classes: what naive Bayes assumes."""
    from scipy import sparse

    generator = np.random.default_rng(seed)
    p = np.exp(0.7 * generator.standard_normal((classes, features))) / np.arange(1, features + 1)
    p /= p.sum(1, keepdims=True)
    prior = 1 / np.arange(1, classes + 1)
    y = generator.choice(classes, rows, p=prior / prior.sum())
    y[:classes] = np.arange(classes)  # each is in the training part
    x = np.empty((rows, features), np.uint8)
    for c in range(classes):
        own = np.flatnonzero(y == c)
        x[own] = generator.multinomial(words, p[c], len(own))
    parts = [slice(0, rows * 8 // 10), slice(rows * 8 // 10, rows * 9 // 10), slice(rows * 9 // 10, rows)]
    return Split(*((sparse.csr_array(x[part].astype(np.int64)), y[part]) for part in parts), name="topics")


# ------------------------------------------------------------------------------------------------ one optimum


def optima(split: Split, settings: dict[str, Any], penalty: float = 1e-4) -> Iterator[Record]:
    """Mean cross-entropy + penalty/2 ‖W‖² by L-BFGS over all rows in float64, from three starts: one value."""
    model = ExplicitSoftmax(**settings).fit(*split.train)
    rows, layer = seen_by(model, split), model.to_linear()
    x, y = rows.train[0].double(), rows.train[1]
    for name, start in (("explicit", layer), ("Xavier", xavier(layer, 0)), ("zero", zero(layer))):
        network = copy.deepcopy(start).double()
        weights = list(network.parameters())
        optimizer = torch.optim.LBFGS(
            weights,
            max_iter=5000,
            tolerance_grad=1e-9,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective(network: nn.Module = network, weights: list[nn.Parameter] = weights) -> Tensor:
            penalties = sum(weight.square().sum() for weight in weights)
            return functional.cross_entropy(network(x), y) + penalty / 2 * penalties

        def closure(objective: Any = objective, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = objective()
            value.backward()
            return value

        before = objective().item()
        optimizer.step(closure)
        evaluations = optimizer.state[weights[0]]["func_evals"]
        yield {
            "kind": "optimum",
            "dataset": split.name,
            "start": name,
            "objective_at_start": before,
            "objective": objective().item(),
            "evaluations": evaluations,
        }


# ------------------------------------------------------------------------------------------------ networks


def layer_starts(split: Split, settings: dict[str, Any]) -> tuple[dict[str, Callable[[int], nn.Module]], Rows]:
    """A linear softmax: the paper's form, the same with a temperature, Xavier, zero."""
    paper = ExplicitSoftmax(**settings, temperature=1.0).fit(*split.train)
    tempered = ExplicitSoftmax(**settings, temperature="search").fit(*split.train)
    layer = tempered.to_linear()
    starts: dict[str, Callable[[int], nn.Module]] = {
        "explicit, the paper's form": lambda seed: paper.to_linear(),
        "explicit, temperature": lambda seed: layer,
        "Xavier": lambda seed: xavier(layer, seed),
        "zero": lambda seed: zero(layer),
    }
    return starts, seen_by(tempered, split)


def network_starts(split: Split, hidden: int, settings: dict[str, Any]) -> tuple[dict[str, Any], Rows]:
    """A softmax network with one hidden layer: codes of subclasses, of labels, Xavier; and one with ReLU."""
    models = {codes: ExplicitMLP(hidden, codes, **settings).fit(*split.train) for codes in ("subclasses", "labels")}
    rows = seen_by(models["subclasses"], split)
    network = models["subclasses"].to_sequential()
    features, classes = rows.train[0].shape[1], split.classes
    starts: dict[str, Callable[[int], nn.Module]] = {
        **{f"explicit, {codes}": (lambda seed, m=model: m.to_sequential()) for codes, model in models.items()},
        "Xavier": lambda seed: xavier(network, seed),
        "ReLU, Xavier": lambda seed: xavier(with_relu(features, hidden, classes), seed),
    }
    return starts, rows
