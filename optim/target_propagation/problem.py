"""The problem in numbers: rows, labels and the sizes of the layers, apart from torch and the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .convex_fit import Fit, Rows, fit_classes, fit_units, logistic_slope, margins, softmax


@dataclass(frozen=True)
class HiddenLayer:
    """A layer of units: `above` where u·a > 0, else `below`."""

    units: int
    has_bias: bool
    below: float
    above: float

    def outputs(self, z: np.ndarray) -> np.ndarray:
        return np.where(z > 0, self.above, self.below)


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

    def fit_head(self, rows: Rows) -> Head:
        if self.has_one_output:
            fit = fit_units(rows, self.signs[:, None], np.ones((len(self.x), 1)))
        else:
            fit = fit_classes(rows, self.labels, self.classes)
        return Head(fit.weights, fit.z, self.margins(fit.z), float(fit.losses[0]))

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
    def least_errors(self) -> int:
        """Errors that no weights avoid: of equal rows, all but those of the label that most of them have."""
        _, group = np.unique(self.x, axis=0, return_inverse=True)
        counts = np.zeros((group.max() + 1, self.classes), dtype=np.int64)
        np.add.at(counts, (group.reshape(-1), self.labels), 1)
        return int((counts.sum(axis=1) - counts.max(axis=1)).sum())

    def conflict(self) -> tuple[int, int] | None:
        """Two equal rows of different labels."""
        _, group = np.unique(self.x, axis=0, return_inverse=True)
        first: dict[int, int] = {}
        for n, place in enumerate(group.reshape(-1)):
            other = first.setdefault(int(place), n)
            if self.labels[other] != self.labels[n]:
                return other, n
        return None


__all__ = ["Fit", "Head", "HiddenLayer", "Problem"]
