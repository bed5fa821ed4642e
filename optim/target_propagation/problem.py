"""The problem in numbers: rows, labels and the sizes of the layers, apart from torch and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .convex_fit import RIDGE, Rows, fit_classes, fit_units, logistic, logistic_slope, margins, softmax
from .separability import Separability, separable_classes

_ROUNDING = 1e-12  # of the largest that z could be: below it z is 0 but for rounding


@dataclass(frozen=True)
class HiddenLayer:
    """A layer of units: `above` where u·a > 0, else `below`."""

    units: int
    has_bias: bool
    below: float
    above: float

    def outputs(self, signs: np.ndarray) -> np.ndarray:
        """[N, U] of ±1 as the units' levels."""
        return np.where(signs > 0, self.above, self.below)

    def realised(self, rows: Rows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The outputs, [N, U], of units with these weights, [D, U], and the weights as they were placed.

        A row on a unit's boundary, but for rounding, counts as below it, and the boundary moves midway between the
        rows below and above, where there is a bias to move it by.
        """
        z = rows.a @ weights
        is_above = z > _ROUNDING * np.abs(rows.a).sum(axis=1).max() * np.abs(weights).max(axis=0)
        if self.has_bias:
            lower = np.where(is_above, -np.inf, z).max(axis=0)
            upper = np.where(is_above, z, np.inf).min(axis=0)
            middle = 0.5 * (lower + upper)
            weights = weights.copy()
            weights[-1] -= np.where(np.isfinite(middle), middle, 0.0)
        return self.outputs(is_above * 2.0 - 1.0), weights

    def signs(self, outputs: np.ndarray) -> np.ndarray:
        """The outputs as ±1."""
        return np.where(outputs == self.above, 1.0, -1.0)


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer at its convex optimum, and what it answers."""

    weights: np.ndarray  # [D, C], or [D, 1] where two classes have one output
    z: np.ndarray  # [N, C] or [N, 1]
    margins: np.ndarray  # [N]: z_y − the largest other output, or t z; right where positive
    loss: float  # mean cross-entropy

    @property
    def errors(self) -> int:
        return int((self.margins <= 0).sum())


@dataclass(frozen=True, eq=False)
class Problem:
    """x [N, D] float64; labels [N] int64 in [0, classes), of one output 0 and 1."""

    x: np.ndarray
    labels: np.ndarray
    classes: int
    has_one_output: bool
    hidden: tuple[HiddenLayer, ...]
    head_has_bias: bool

    @cached_property
    def signs(self) -> np.ndarray:
        """The labels of one output, [N] ±1."""
        return np.where(self.labels > 0, 1.0, -1.0)

    @cached_property
    def inputs(self) -> Rows:
        """The rows of the first layer."""
        return Rows(self.x, self.hidden[0].has_bias)

    def rows_of(self, layer: int, outputs: tuple[np.ndarray, ...]) -> Rows:
        """The rows that hidden layer `layer` sees; the head's where it is the number of hidden layers."""
        if layer == 0:
            return self.inputs
        has_bias = self.head_has_bias if layer == len(self.hidden) else self.hidden[layer].has_bias
        return Rows(outputs[layer - 1], has_bias)

    def fit_head(self, rows: Rows, ridge: float = RIDGE, until_separated: bool = True) -> Head:
        if self.has_one_output:
            ones = np.ones((len(self.x), 1))
            fit = fit_units(rows, self.signs[:, None], ones, ridge, until_separated)
        else:
            fit = fit_classes(rows, self.labels, self.classes, ridge, until_separated)
        return Head(fit.weights, fit.z, self.margins(fit.z), float(fit.losses[0]))

    def head_of(self, rows: Rows, weights: np.ndarray) -> Head:
        """The head with these weights."""
        z = rows.a @ weights
        if self.has_one_output:
            losses = logistic(self.signs * z[:, 0])
        else:
            losses = -np.log(np.maximum(softmax(z)[np.arange(len(z)), self.labels], np.finfo(float).tiny))
        return Head(weights, z, self.margins(z), float(losses.mean()))

    def separability(self, rows: Rows, tol: float) -> Separability:
        """Whether some head answers all rows rightly; the separator is [D, C], or [D, 1] of one output."""
        test = separable_classes(rows.a, self.labels, self.classes, tol=tol)
        if self.has_one_output and test.separator is not None:
            return replace(test, separator=test.separator[:, 1:] - test.separator[:, :1])
        return test

    def margins(self, z: np.ndarray) -> np.ndarray:
        return self.signs * z[:, 0] if self.has_one_output else margins(z, self.labels)

    def head_slope(self, z: np.ndarray) -> np.ndarray:
        """∂L/∂z of the mean cross-entropy, [N, C] or [N, 1]."""
        if self.has_one_output:
            return (self.signs * logistic_slope(self.signs * z[:, 0]))[:, None] / len(z)
        slope = softmax(z)
        slope[np.arange(len(z)), self.labels] -= 1.0
        return slope / len(z)

    @cached_property
    def groups(self) -> np.ndarray:
        """[N]: equal rows have equal numbers."""
        return np.unique(self.x, axis=0, return_inverse=True)[1].reshape(-1)

    @cached_property
    def least_errors(self) -> int:
        """Errors that no weights avoid: of equal rows, all but those of the label that most of them have."""
        counts = np.zeros((self.groups.max() + 1, self.classes), dtype=np.int64)
        np.add.at(counts, (self.groups, self.labels), 1)
        return int((counts.sum(axis=1) - counts.max(axis=1)).sum())

    def conflict(self) -> tuple[int, int] | None:
        """Two equal rows of different labels."""
        first: dict[int, int] = {}
        for n, group in enumerate(self.groups.tolist()):
            other = first.setdefault(group, n)
            if self.labels[other] != self.labels[n]:
                return other, n
        return None
