"""Whether a linear unit, or a linear layer of classes, can answer as it should: a test with a certificate either way.

A unit with weights u separates rows a_n with targets t_n = ±1 where t_n u·a_n > 0 for all n. With
p_n = t_n a_n / ‖a_n‖ that is u·p_n > 0 for all n, and by Gordan's theorem exactly one of two things exists: such a u,
or λ ≥ 0, Σ λ_n = 1, with Σ λ_n p_n = 0. Both are read off the point v of the convex hull of the p_n that is nearest
to 0:

    min_n v·p_n > 0      v is a separator
    ‖v‖ ≤ tol            λ certifies that no u with ‖u‖ = 1 has u·p_n > tol for all n

v is found by Frank–Wolfe steps with away steps (Guélat & Marcotte, "Some comments on Wolfe's 'away step'", 1986), which
need no solver of linear programs. Now and then the point nearest to 0 of the active points' affine hull is solved for
(Wolfe, "Finding the nearest point in a polytope", 1976), which ends the slow approach to a face.

For classes the points are p_nk = a_n ⊗ (e_y − e_k) / ‖a_n‖ for all k ≠ y = y_n (Kesler's construction), and the
separator is a weight a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Status = Literal["separable", "inseparable", "undecided"]
SEPARABLE: Status = "separable"
INSEPARABLE: Status = "inseparable"
UNDECIDED: Status = "undecided"
_ITERATIONS = 50_000
_LEAST_ITERATIONS = 1000
_WORK = 50_000_000  # iterations × points, at most: seconds
_WHOLE = 2048  # points up to which all their products are held at once: 32 MiB
_ROUNDING = 1e-14  # ‖v‖² at or below which λ·(v·p) is mostly rounding
_CORRECTED = 200  # iterations after which the weights of the active points are solved for
_LARGEST_SOLVE = 1_000_000_000  # multiplications that this may take


@dataclass(frozen=True, eq=False)
class Certificate:
    """Weights λ > 0 of sum 1 under which points t_n a_n, or a_n ⊗ (e_y − e_k), add up to nothing."""

    rows: np.ndarray  # [S] int64: n
    wanted: np.ndarray  # [S] int64: the row's class y; 1 or 0 of a unit
    other: np.ndarray  # [S] int64: the class k ≠ y that it is held against; 0 or 1 of a unit
    weights: np.ndarray  # [S] float64: λ, of points scaled to ‖a_n‖ = 1
    norm: float  # ‖Σ λ p‖: no separator of a larger margin exists


@dataclass(frozen=True, eq=False)
class Separability:
    """The answer of the test, and what bears it out."""

    status: Status
    separator: np.ndarray | None  # [D, C]: a weight a class, or [D] of a unit; where separable
    certificate: Certificate | None  # where inseparable
    norm: float  # ‖v‖: of points scaled to ‖a_n‖ = 1, the largest margin is at most this
    iterations: int


def separable_unit(
    rows: np.ndarray, targets: np.ndarray, *, tol: float = 1e-9, iterations: int = _ITERATIONS
) -> Separability:
    """Whether one u has t_n u·a_n > 0 for all n.

    Args:
        rows: [N, D] float64, the a_n, with a column of ones where the unit has a bias.
        targets: [N], the t_n: ±1.
        tol: ‖v‖ at or below which the answer is "inseparable".
        iterations: Frank–Wolfe steps, at most, and fewer of many points; then the answer is "undecided".
    """
    result = separable_classes(rows, (targets > 0).astype(np.int64), 2, tol=tol, iterations=iterations)
    if result.separator is None:
        return result
    weights = result.separator[:, 1] - result.separator[:, 0]
    return Separability(result.status, weights, None, result.norm, result.iterations)


def separable_classes(
    rows: np.ndarray, labels: np.ndarray, classes: int, *, tol: float = 1e-9, iterations: int = _ITERATIONS
) -> Separability:
    """Whether weights V have a_n·V_y > a_n·V_k for all n and all k ≠ y = y_n.

    Args:
        rows: [N, D] float64, the a_n, with a column of ones where the layer has biases.
        labels: [N] int64, the y_n, in [0, classes).
        tol, iterations: as of `separable_unit`.
    """
    norms = np.linalg.norm(rows, axis=1)
    points = _Points(rows / np.where(norms > 0, norms, 1)[:, None], labels, classes)
    iterations = min(iterations, max(_LEAST_ITERATIONS, _WORK // max(1, len(points))))
    pair = _equal_rows(rows, labels)
    if pair is not None:  # what is asked of one is refused by the other
        at = [int(np.flatnonzero((points.row == n) & (points.other == labels[k]))[0]) for n, k in (pair, pair[::-1])]
        return Separability(INSEPARABLE, None, points.certificate(np.array(at), np.ones(2), 0.0), 0.0, 0)
    zero = np.flatnonzero(norms == 0)
    if len(zero):  # 0 > 0 is asked for: that one point is the certificate
        certificate = points.certificate(np.flatnonzero(points.row == zero[0])[:1], np.ones(1), 0.0)
        return Separability(INSEPARABLE, None, certificate, 0.0, 0)
    start = points.towards_the_mean()
    active = np.zeros(len(points))
    active[start] = 1.0
    product = points.column(start)  # v·p_n
    square = product[start]  # ‖v‖²
    step = 0
    for step in range(1, iterations + 1):
        nearest = int(product.argmin())
        if product[nearest] > 0:
            separator = points.combine(active)
            if points.least(separator) > 0:
                return Separability(SEPARABLE, separator, None, float(np.sqrt(max(square, 0.0))), step)
        if square <= max(tol * tol, _ROUNDING):
            combined = points.combine(active)
            norm = float(np.linalg.norm(combined)) * np.sqrt(0.5)
            if norm <= tol:
                support = np.flatnonzero(active)
                certificate = points.certificate(support, active[support], norm)
                return Separability(INSEPARABLE, None, certificate, norm, step)
            product, square = points.products(combined), norm * norm
        support = np.flatnonzero(active)
        farthest = int(support[product[support].argmax()])
        toward, away = square - product[nearest], product[farthest] - square
        if toward >= away:
            at = nearest
            column = points.column(at)
            length = column[at] - 2 * product[at] + square
            share = min(1.0, toward / length) if length > 0 else 1.0
            active *= 1 - share
            active[at] += share
            product = product + share * (column - product)
        else:
            at = farthest
            column = points.column(at)
            length = column[at] - 2 * product[at] + square
            most = active[at] / (1 - active[at]) if active[at] < 1 else 0.0
            share = min(most, away / length) if length > 0 else most
            active *= 1 + share
            active[at] = 0.0 if share == most else active[at] - share
            product = product + share * (product - column)
        if step % _CORRECTED == 0:
            active = points.corrected(active / active.sum())
            product = points.products(points.combine(active))
        square = float(active @ product)
    return Separability(UNDECIDED, None, None, float(np.sqrt(max(square, 0.0))), step)


def _equal_rows(rows: np.ndarray, labels: np.ndarray) -> tuple[int, int] | None:
    """Two equal rows of different labels."""
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    first = first[group.reshape(-1)]
    unlike = np.flatnonzero(labels[first] != labels)
    return (int(first[unlike[0]]), int(unlike[0])) if len(unlike) else None


class _Points:
    """The points p_nk, of which none is ever written out; scaled by 1/√2, so that two classes are a unit's points."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray, classes: int) -> None:
        self.rows, self.classes = rows, classes
        others = np.arange(classes)[None] != labels[:, None]
        self.row, self.other = np.nonzero(others)
        self.wanted = labels[self.row]
        self._whole: np.ndarray | None = None
        if len(self) <= _WHOLE:
            self._whole = (rows @ rows.T)[self.row[:, None], self.row] * self._between(slice(None))

    def __len__(self) -> int:
        return len(self.row)

    def _between(self, at: int | slice) -> np.ndarray:
        """(e_y − e_k)·(e_y' − e_k') / 2 of all points with those at `at`."""
        wanted, other = np.atleast_1d(self.wanted[at])[:, None], np.atleast_1d(self.other[at])[:, None]
        signs = (self.wanted == wanted).astype(np.float64)
        signs += self.other == other
        signs -= self.wanted == other
        signs -= self.other == wanted
        return signs / 2

    def column(self, at: int) -> np.ndarray:
        """p_at·p of all points p."""
        if self._whole is not None:
            return self._whole[at]
        return (self.rows @ self.rows[self.row[at]])[self.row] * self._between(at)[0]

    def towards_the_mean(self) -> int:
        """The point that lies furthest along the sum of all."""
        return int(self.products(self.combine(np.ones(len(self)))).argmax())

    def combine(self, weights: np.ndarray) -> np.ndarray:
        """Σ λ p, as weights of classes, [D, C]."""
        shares = np.zeros((len(self.rows), self.classes))
        np.add.at(shares, (self.row, self.wanted), weights)
        np.add.at(shares, (self.row, self.other), -weights)
        return self.rows.T @ shares

    def products(self, combined: np.ndarray) -> np.ndarray:
        z = self.rows @ combined
        return (z[self.row, self.wanted] - z[self.row, self.other]) / 2

    def corrected(self, weights: np.ndarray) -> np.ndarray:
        """The weights of the active points moved to where their combination is nearest to 0, none below 0."""
        weights = weights.copy()
        while len(support := np.flatnonzero(weights)) > 1:
            written = self.written(support)
            if written.size * len(support) > _LARGEST_SOLVE:
                break
            equations = np.vstack([written.T, np.ones(len(support))])
            change = np.linalg.lstsq(equations, np.append(-written.T @ weights[support], 0.0), rcond=1e-12)[0]
            change -= change.mean()
            falls = change < 0
            shares = np.where(falls, weights[support] / np.where(falls, -change, 1.0), np.inf)
            out = int(shares.argmin())
            weights[support] = np.maximum(weights[support] + min(1.0, shares[out]) * change, 0.0)
            if shares[out] > 1:
                break
            weights[support[out]] = 0.0
        return weights / weights.sum()

    def written(self, at: np.ndarray) -> np.ndarray:
        """These points in full, [S, C D]."""
        full = np.zeros((len(at), self.classes, self.rows.shape[1]))
        each = np.arange(len(at))
        full[each, self.wanted[at]] = self.rows[self.row[at]]
        full[each, self.other[at]] = -self.rows[self.row[at]]
        return full.reshape(len(at), -1) * np.sqrt(0.5)

    def least(self, combined: np.ndarray) -> float:
        return float(self.products(combined).min())

    def certificate(self, support: np.ndarray, weights: np.ndarray, norm: float) -> Certificate:
        weights = weights / weights.sum()
        return Certificate(self.row[support], self.wanted[support], self.other[support], weights, norm)
