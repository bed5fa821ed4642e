"""The convex fits: of all units of a layer to ±1 targets at once, and of the head to labels.

    units   min_u   Σ_n w_n log(1 + exp(−t_n a_n·u))  +  λ/2 ‖u‖²             of each unit alone, Σ_n w_n = 1
    head    min_V   Σ_n w_n (log Σ_k exp(a_n·V_k) − a_n·V_y)  +  λ/2 ‖V‖²     y = y_n

Both are solved by Newton's method, with conjugate gradients where the Hessian is large, in coordinates in which the
rows are orthonormal: the rows of a layer need one singular value decomposition, after which the Hessian is near a
multiple of 1. λ is applied to rows of a mean square norm of 1. A fit may end where nothing is left to separate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

RIDGE = 1e-7  # λ
_NEWTON_STEPS = 60
_SMALL = 1e-6  # gradient norm, beside the first one, at which a fit ends
_ROUNDING = 1e-12  # of the loss, relative: a step that promises less ends a fit
_DIRECT = 128  # coordinates up to which a unit's Hessian is written out and solved
_RANK = 1e-11  # singular values, beside the largest, that count as 0


class Rows:
    """The rows of one layer's input, in coordinates in which they are orthonormal.

    Args:
        inputs: [N, D] float64.
        has_bias: a column of ones is put behind them.
    """

    def __init__(self, inputs: np.ndarray, has_bias: bool) -> None:
        self.has_bias = has_bias
        self.a = np.hstack([inputs, np.ones((len(inputs), 1))]) if has_bias else np.ascontiguousarray(inputs)

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Basis [N, R], ridge [R] of its coordinates, and [D, R], which turns coordinates into weights."""
        basis, s, across = np.linalg.svd(self.a, full_matrices=False)
        kept = s > _RANK * max(s.max(initial=0.0), np.finfo(float).tiny)
        basis, s, across = basis[:, kept], s[kept], across[kept]
        mean = np.sqrt(np.square(s).sum() / max(1, len(self.a)))
        return basis, np.square(mean / s), across.T / s

    @property
    def basis(self) -> np.ndarray:
        return self._parts[0]

    @property
    def ridge(self) -> np.ndarray:
        return self._parts[1]

    def weights(self, coordinates: np.ndarray) -> np.ndarray:
        """The weights, [D, U], of coordinates [R, U]."""
        return self._parts[2] @ coordinates


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights and what they answer."""

    weights: np.ndarray  # [D, U]
    z: np.ndarray  # [N, U]: a_n·u
    losses: np.ndarray  # [U]; of a head [1]


def logistic(m: np.ndarray) -> np.ndarray:
    """log(1 + exp(−m))."""
    return np.logaddexp(0.0, -m)


def logistic_slope(m: np.ndarray) -> np.ndarray:
    """The derivative of `logistic`: −1 / (1 + exp(m))."""
    return -0.5 * (1.0 - np.tanh(0.5 * m))


def unit_slope(targets: np.ndarray, weights: np.ndarray, z: np.ndarray) -> np.ndarray:
    """∂/∂z of Σ w log(1 + exp(−t z)), the loss of units; all [N, U]."""
    return weights * targets * logistic_slope(targets * z)


def softmax(z: np.ndarray) -> np.ndarray:
    raised = np.exp(z - z.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def fit_units(
    rows: Rows, targets: np.ndarray, weights: np.ndarray, ridge: float = RIDGE, until_separated: bool = True
) -> Fit:
    """Fits U units, each to targets and weights of its own.

    Args:
        targets: [N, U], ±1.
        weights: [N, U], ≥ 0; scaled to a sum of 1 for each unit. A unit without any gets weights of 0.
        ridge: λ.
        until_separated: a unit whose rows are separated is not fitted further.
    """
    totals = weights.sum(axis=0)
    task = _Units(rows, targets, weights / np.where(totals > 0, totals, 1.0), ridge)
    return _newton(rows, task, until_separated)


def fit_classes(
    rows: Rows, labels: np.ndarray, classes: int, ridge: float = RIDGE, until_separated: bool = True
) -> Fit:
    """Fits a head of several classes to labels, [N] int64."""
    return _newton(rows, _Classes(rows, labels, classes, ridge), until_separated)


class _Units:
    """U problems side by side: sums run over rows, and each unit has its own step."""

    def __init__(self, rows: Rows, targets: np.ndarray, weights: np.ndarray, ridge: float) -> None:
        self.basis, self.targets, self.w = rows.basis, targets, weights
        self.ridge = ridge * rows.ridge[:, None]
        self.shape = (rows.basis.shape[1], targets.shape[1])

    def value(self, z: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (self.w * logistic(self.targets * z)).sum(axis=0) + 0.5 * (self.ridge * c * c).sum(axis=0)

    def slope(self, z: np.ndarray) -> np.ndarray:
        return unit_slope(self.targets, self.w, z)

    def curvature(self, z: np.ndarray) -> np.ndarray:
        return self.w * 0.25 * (1.0 - np.square(np.tanh(0.5 * z)))

    def curve(self, curvature: np.ndarray, z: np.ndarray) -> np.ndarray:
        return curvature * z

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(axis=0)

    def preconditioner(self, curvature: np.ndarray) -> np.ndarray:
        return np.square(self.basis).T @ curvature

    def solved(self, curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray | None:
        """Newton's step, exactly, where the Hessians are small; 0 of units without a gradient."""
        size = len(self.ridge)
        if size > _DIRECT:
            return None
        going = gradient.any(axis=0)
        hessians = (self.basis.T[None] * curvature.T[going, None, :]) @ self.basis
        hessians[:, np.arange(size), np.arange(size)] += self.ridge.T
        step = np.zeros_like(gradient)
        step[:, going] = -np.linalg.solve(hessians, gradient.T[going, :, None])[:, :, 0].T
        return step

    def is_separated(self, z: np.ndarray) -> np.ndarray:
        return ((self.targets * z > 0) | (self.w == 0)).all(axis=0)


class _Classes:
    """One problem of C classes."""

    def __init__(self, rows: Rows, labels: np.ndarray, classes: int, ridge: float) -> None:
        self.basis, self.labels = rows.basis, labels
        self.ridge = ridge * rows.ridge[:, None]
        self.shape = (rows.basis.shape[1], classes)
        self.each = np.arange(len(labels))
        self.one_hot = np.zeros((len(labels), classes))
        self.one_hot[self.each, labels] = 1.0

    def value(self, z: np.ndarray, c: np.ndarray) -> np.ndarray:
        top = z.max(axis=1)
        rows = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[self.each, self.labels]
        return np.array([rows.mean() + 0.5 * (self.ridge * c * c).sum()])

    def slope(self, z: np.ndarray) -> np.ndarray:
        return (softmax(z) - self.one_hot) / len(z)

    def curvature(self, z: np.ndarray) -> np.ndarray:
        return softmax(z)

    def curve(self, p: np.ndarray, z: np.ndarray) -> np.ndarray:
        return p * (z - (p * z).sum(axis=1, keepdims=True)) / len(z)

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([(a * b).sum()])

    def preconditioner(self, p: np.ndarray) -> np.ndarray:
        return np.square(self.basis).T @ (p * (1 - p)) / len(p)

    def solved(self, curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray | None:
        return None

    def is_separated(self, z: np.ndarray) -> np.ndarray:
        return np.array([(margins(z, self.labels) > 0).all()])


def margins(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """z_y − max over k ≠ y of z_k, [N]."""
    each = np.arange(len(z))
    others = z.copy()
    others[each, labels] = -np.inf
    return z[each, labels] - others.max(axis=1)


def _newton(rows: Rows, task: _Units | _Classes, until_separated: bool) -> Fit:
    c = np.zeros(task.shape)
    z = rows.basis @ c
    value = task.value(z, c)
    first = None
    for _ in range(_NEWTON_STEPS):
        gradient = rows.basis.T @ task.slope(z) + task.ridge * c
        norm = np.sqrt(task.dot(gradient, gradient))
        first = norm if first is None else first
        going = norm > _SMALL * first
        if until_separated:
            going &= ~task.is_separated(z)
        if not going.any():
            break
        step = _direction(rows, task, z, gradient * going, norm, first)
        along, slope = rows.basis @ step, task.dot(gradient, step)
        going &= -slope > _ROUNDING * value
        if not going.any():
            break
        length = going.astype(np.float64)
        for _ in range(20):
            tried = task.value(z + length * along, c + length * step)
            fails = tried > value + 1e-4 * length * slope
            if not fails.any():
                break
            length = np.where(fails, 0.5 * length, length)
        else:
            length = np.where(fails, 0.0, length)  # within rounding of the least
        if not (length > 0).any():
            break
        c, z = c + length * step, z + length * along
        value = task.value(z, c)
    return Fit(rows.weights(c), z, value)


def _direction(
    rows: Rows, task: _Units | _Classes, z: np.ndarray, gradient: np.ndarray, norm: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Newton's step, by conjugate gradients where it is large: the more exact the smaller the gradient is."""
    curvature = task.curvature(z)
    direct = task.solved(curvature, gradient)
    if direct is not None:
        return direct
    scale = 1.0 / (task.preconditioner(curvature) + task.ridge + 1e-300)
    enough = np.square(np.minimum(0.1, np.sqrt(norm / np.where(first > 0, first, 1))) * norm)
    step = np.zeros_like(gradient)
    rest = -gradient
    conjugate = scale * rest
    product = task.dot(rest, conjugate)
    for _ in range(2 * gradient.size // len(product) + 10):
        if not (task.dot(rest, rest) > enough).any():
            break
        bent = rows.basis.T @ task.curve(curvature, rows.basis @ conjugate) + task.ridge * conjugate
        bend = task.dot(conjugate, bent)
        share = np.where(bend > 0, product / np.where(bend > 0, bend, 1), 0.0)
        if not (share > 0).any():
            break
        step += share * conjugate
        rest -= share * bent
        scaled = scale * rest
        last, product = product, task.dot(rest, scaled)
        conjugate = scaled + np.where(last > 0, product / np.where(last > 0, last, 1), 0.0) * conjugate
    return step
