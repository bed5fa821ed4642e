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

from .convex_fit import Rows, fit_units, unit_slope
from .problem import Head, Problem

_KICKS = 2  # without a better network, after which the search restarts
_SINGLE_ROWS = 24  # pairs of a unit and a row that are tried
_TURNED = 2.0  # weight of the row that is turned over, beside 1 of each other row
_REMEMBERED = 512  # outputs of a layer up to which heads are remembered
_LEAST_FALL = 1e-2  # of the loss, relative, for a proposal to be accepted at equal errors


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
        self._heads: dict[bytes, Head] = {}  # of the last hidden layer's outputs; small problems meet them again

    def run(self, enough: int) -> None:
        """Searches until the head makes `enough` errors or the budget is used up."""
        with_copies = True
        try:
            while self.best is None or self.best.head.errors > enough:
                self._descent_with_kicks(enough, with_copies)
                with_copies = not with_copies
        except Spent:
            pass

    def _descent_with_kicks(self, enough: int, with_copies: bool) -> None:
        here = self._descend(self._started(with_copies), enough)
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
            for mode in ("all", "wrong", "unit"):
                other = self._projected(here, mode, depth)
                if other is not None:
                    yield other
        yield from self._single_rows(here)

    def _single_rows(self, here: Network) -> Iterator[Network]:
        """One unit of the last hidden layer turns over one wrong row; the pairs with most |∂L/∂H| first."""
        top = len(self.problem.hidden) - 1
        targets = Targets.of(head_gradient(self.problem, here.head))
        own = self.problem.hidden[top].signs(here.outputs[top])
        is_asked = (here.head.margins <= 0)[:, None] & (own != targets.signs)
        pull = np.where(is_asked, targets.weights, 0.0)
        rows = self.problem.rows_of(top, here.outputs)
        for place in np.argsort(-pull, axis=None, kind="stable")[:_SINGLE_ROWS]:
            n, unit = np.unravel_index(place, pull.shape)
            if pull[n, unit] == 0:
                return
            wanted = Targets(own.copy(), np.zeros_like(own))
            wanted.signs[n, unit] *= -1
            wanted.weights[:, unit] = 1.0
            wanted.weights[n, unit] = _TURNED
            outputs, weights = self._fitted(top, rows, wanted, here.hidden[top])
            if not np.array_equal(outputs, here.outputs[top]):
                yield self._network((*here.hidden[:top], weights), (*here.outputs[:top], outputs))

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
            outputs[layer], hidden[layer] = self._fitted(layer, rows, wanted[layer], hidden[layer])
        if np.array_equal(outputs[top], here.outputs[top]):
            return None
        return self._network(tuple(hidden), tuple(outputs))

    def _chosen(self, targets: Targets, here: Network, layer: int, mode: str) -> Targets:
        """The targets of one proposal.

        "wrong": on rows that the head gets right, units are asked for what they answer, with the mean weight of the
        others. Left out of the fit, those rows would be turned over at random. "unit": the same of one unit alone.
        """
        if mode == "all":
            return targets
        wrong = (here.head.margins <= 0)[:, None]
        own = self.problem.hidden[layer].signs(here.outputs[layer])
        weights = np.where(wrong, targets.weights, 0.0)
        on_wrong = weights.sum(axis=0)
        if mode == "unit":
            chosen = np.zeros(len(on_wrong))
            chosen[on_wrong.argmax()] = 1.0
            weights = weights * chosen
        mean = weights.sum(axis=0) / max(1, wrong.sum())
        return Targets(np.where(wrong, targets.signs, own), np.where(wrong, weights, mean))

    def _fitted(self, layer: int, rows: Rows, targets: Targets, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fits units to their targets: what they then realise, and their weights. Those without targets stay."""
        asked = targets.weights.any(axis=0)
        self._count()
        weights = present.copy()
        if asked.any():
            weights[:, asked] = fit_units(rows, targets.signs[:, asked], targets.weights[:, asked]).weights
        return self.problem.hidden[layer].realised(rows, weights)

    # starts

    def _started(self, with_copies: bool) -> Network:
        """A network of random weights, each unit's boundary midway between two rows drawn at random.

        Args:
            with_copies: the units of upper layers copy those of the layer below, as far as these go, so that the first
                layer's outputs are what the head sees.
        """
        hidden: list[np.ndarray] = []
        outputs: list[np.ndarray] = []
        for layer, kind in enumerate(self.problem.hidden):
            rows = self.problem.rows_of(layer, tuple(outputs))
            size = rows.a.shape[1] - kind.has_bias
            weights = self.generator.standard_normal((rows.a.shape[1], kind.units))
            if kind.has_bias:
                z = rows.a[:, :-1] @ weights[:-1]
                each = np.arange(kind.units)
                one, other = (z[self.generator.integers(len(z), size=kind.units), each] for _ in range(2))
                weights[-1] = -0.5 * (one + other)
            if with_copies and layer:
                copied = min(size, kind.units)
                weights[:, :copied] = np.eye(len(weights), copied)
                if kind.has_bias:
                    weights[-1, :copied] = -0.5 * (kind.below + kind.above)
            output, weights = kind.realised(rows, weights)
            hidden.append(weights)
            outputs.append(output)
        return self._network(tuple(hidden), tuple(outputs))

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
        outputs = list(here.outputs[:layer])
        placed = list(here.hidden[:layer])
        for place in range(layer, len(hidden)):
            output, weights = problem.hidden[place].realised(problem.rows_of(place, tuple(outputs)), hidden[place])
            outputs.append(output)
            placed.append(weights)
        return self._network(tuple(placed), tuple(outputs))

    # fits

    def _network(self, hidden: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> Network:
        """With the head at its optimum."""
        self._count()
        key = outputs[-1].tobytes() if outputs[-1].size <= _REMEMBERED else b""
        head = self._heads.get(key)
        if head is None:
            head = self.problem.fit_head(self.problem.rows_of(len(hidden), outputs))
        if key:
            self._heads[key] = head
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
    slope = unit_slope(targets.signs, targets.weights, z)
    return slope @ (weights[:-1] if has_bias else weights).T
