"""The search for hidden targets that are feasible, and with which the head makes fewer errors.

propose   targets T = −sign(∂L/∂H) for the units below, with weights |∂L/∂H|, from the layer above at its optimum
project   fit each unit to its targets; H becomes what the fitted units realise, which is feasible by construction
accept    where (errors of the head at its own optimum, then its loss) falls; else the next proposal
kick      where none is accepted: one unit becomes the bisector of a wrong row and a row of another class
restart   from new random weights, where kicks have not helped for a while
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .convex_fit import Rows, fit_units, logistic_slope
from .problem import Head, Problem

_KICKS = 12  # without a better network, after which the search restarts
_LEAST_FALL = 1e-6  # of the loss, relative, for a proposal to be accepted at equal errors


@dataclass(frozen=True, eq=False)
class Network:
    """Weights of all layers and what they answer."""

    hidden: tuple[np.ndarray, ...]  # of each layer [D, U], the bias last
    outputs: tuple[np.ndarray, ...]  # of each layer [N, U]
    head: Head

    @property
    def value(self) -> tuple[int, float]:
        return self.head.errors, self.head.loss


@dataclass(frozen=True, eq=False)
class Targets:
    """T = −sign(∂L/∂H) and the weights |∂L/∂H| of one layer's units, [N, U]; a weight of 0 leaves the row out."""

    signs: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(gradient: np.ndarray) -> Targets:
        return Targets(np.where(gradient > 0, -1.0, 1.0), np.abs(gradient))


class Spent(Exception):
    """The budget of convex fits is used up."""


class Search:
    """One run; `best` is replaced as a whole, so that an interruption finds it complete."""

    def __init__(
        self,
        problem: Problem,
        budget: int,
        generator: np.random.Generator,
        tell: Callable[[int, int], None] = lambda fits, errors: None,
    ) -> None:
        self.problem, self.budget, self.generator, self.tell = problem, budget, generator, tell
        self.fits = 0
        self.best: Network | None = None
        self.modes = ("all", "wrong", "unit")
        self.variant = "B"

    def run(self, enough: int) -> None:
        """Searches until the head makes `enough` errors or the budget is used up."""
        try:
            while self.best is None or self.best.head.errors > enough:
                self._descent_with_kicks(enough)
        except Spent:
            pass

    def _descent_with_kicks(self, enough: int) -> None:
        here = self._descend(self._realised(self._random_weights()), enough)
        patience = _KICKS
        while patience and here.head.errors > enough:
            other = self._descend(self._kicked(here), enough)
            patience -= 1
            if other.value < here.value:
                patience = _KICKS
            if other.value[0] <= here.value[0]:
                here = other

    def _descend(self, here: Network, enough: int) -> Network:
        """Accepts proposals for as long as one is better."""
        is_better = True
        while is_better and here.head.errors > enough:
            is_better = False
            for other in self._proposals(here):
                if other.value < (here.head.errors, here.head.loss * (1 - _LEAST_FALL)):
                    here, is_better = other, True
                    break
        return here

    # proposals

    def _proposals(self, here: Network) -> Iterator[Network]:
        for depth in range(1, len(self.problem.hidden) + 1):
            for mode in self.modes:
                other = self._projected(here, mode, depth)
                if other is not None:
                    yield other

    def _projected(self, here: Network, mode: str, depth: int) -> Network | None:
        """The network after the last `depth` hidden layers were fitted to targets from the layer above each.

        None where what they realise is what they did before.
        """
        top = len(self.problem.hidden) - 1
        gradient = head_gradient(self.problem, here.head)
        targets = self._chosen(Targets.of(gradient), here, top, mode)
        wanted = {top: targets}
        for layer in range(top, top - depth + 1, -1):
            rows = self.problem.rows_of(layer, here.outputs)
            z = rows.a @ here.hidden[layer]
            targets = Targets.of(unit_gradient(wanted[layer], z, here.hidden[layer], rows.has_bias))
            wanted[layer - 1] = self._chosen(targets, here, layer - 1, mode)
        hidden, outputs = list(here.hidden), list(here.outputs)
        for layer in range(top - depth + 1, top + 1):
            rows = self.problem.rows_of(layer, tuple(outputs))
            hidden[layer] = self._fitted(rows, wanted[layer], hidden[layer])
            outputs[layer] = self.problem.hidden[layer].outputs(rows.a @ hidden[layer])
        if np.array_equal(outputs[top], here.outputs[top]):
            return None
        return self._network(tuple(hidden), tuple(outputs))

    def _chosen(self, targets: Targets, here: Network, layer: int, mode: str) -> Targets:
        if mode == "all":
            return targets
        wrong = (here.head.margins <= 0)[:, None]
        own = np.where(here.outputs[layer] > self.problem.hidden[layer].below, 1.0, -1.0)
        weights = np.where(wrong, targets.weights, 0.0)
        on_wrong = weights.sum(axis=0)
        if mode == "unit":
            chosen = np.zeros(len(on_wrong))
            chosen[on_wrong.argmax()] = 1.0
            weights = weights * chosen
        if self.variant == "A":
            return Targets(targets.signs, weights)
        mean = weights.sum(axis=0) / max(1, wrong.sum())
        return Targets(np.where(wrong, targets.signs, own), np.where(wrong, weights, mean))

    def _fitted(self, rows: Rows, targets: Targets, present: np.ndarray) -> np.ndarray:
        """The units fitted to their targets; those that have none stay as they are."""
        asked = targets.weights.any(axis=0)
        self._count()
        weights = present.copy()
        if asked.any():
            weights[:, asked] = fit_units(rows, targets.signs[:, asked], targets.weights[:, asked]).weights
        return weights

    # starts

    def _random_weights(self) -> tuple[np.ndarray, ...]:
        sizes = [self.problem.x.shape[1], *(layer.units for layer in self.problem.hidden)]
        return tuple(
            self.generator.standard_normal((size + layer.has_bias, layer.units))
            for size, layer in zip(sizes, self.problem.hidden, strict=False)
        )

    def _realised(self, hidden: tuple[np.ndarray, ...], centred: bool = True) -> Network:
        """The network of these weights; centred, each unit's threshold lies midway between two random rows."""
        outputs: list[np.ndarray] = []
        placed = []
        for layer, (kind, weights) in enumerate(zip(self.problem.hidden, hidden, strict=True)):
            rows = self.problem.rows_of(layer, tuple(outputs))
            if centred and kind.has_bias:
                z = rows.a[:, :-1] @ weights[:-1]
                two = self.generator.integers(len(z), size=(2, kind.units))
                weights = np.vstack([weights[:-1], -0.5 * z[two, np.arange(kind.units)].sum(axis=0)])
            placed.append(weights)
            outputs.append(kind.outputs(rows.a @ weights))
        return self._network(tuple(placed), tuple(outputs))

    def _kicked(self, here: Network) -> Network:
        problem = self.problem
        wrong = self.generator.choice(np.flatnonzero(here.head.margins <= 0))
        other = self.generator.choice(np.flatnonzero(problem.labels != problem.labels[wrong]))
        layer = int(self.generator.integers(len(problem.hidden)))
        below = problem.rows_of(layer, here.outputs)
        inputs = below.a[:, :-1] if below.has_bias else below.a
        if (inputs[wrong] == inputs[other]).all():
            layer = 0
            inputs = problem.x
        direction = inputs[wrong] - inputs[other]
        unit = int(self.generator.integers(problem.hidden[layer].units))
        weights = here.hidden[layer].copy()
        weights[: len(direction), unit] = direction
        if problem.hidden[layer].has_bias:
            weights[-1, unit] = -0.5 * direction @ (inputs[wrong] + inputs[other])
        hidden = (*here.hidden[:layer], weights, *here.hidden[layer + 1 :])
        return self._realised(hidden, centred=False)

    # fits

    def _network(self, hidden: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> Network:
        """With the head at its optimum."""
        self._count()
        head = self.problem.fit_head(self.problem.rows_of(len(hidden), outputs))
        network = Network(hidden, outputs, head)
        if self.best is None or network.value < self.best.value:
            self.best = network
        self.tell(self.fits, self.best.head.errors)
        return network

    def _count(self) -> None:
        if self.fits >= self.budget and self.best is not None:
            raise Spent
        self.fits += 1


def head_gradient(problem: Problem, head: Head) -> np.ndarray:
    """∂L/∂H of the last hidden layer's outputs, [N, U]."""
    weights = head.weights[:-1] if problem.head_has_bias else head.weights
    return problem.head_slope(head.z) @ weights.T


def unit_gradient(targets: Targets, z: np.ndarray, weights: np.ndarray, has_bias: bool) -> np.ndarray:
    """∂/∂H of Σ weights · log(1 + exp(−T z)) over a layer's units, at the outputs H below them."""
    slope = targets.weights * targets.signs * logistic_slope(targets.signs * z)
    return slope @ (weights[:-1] if has_bias else weights).T
