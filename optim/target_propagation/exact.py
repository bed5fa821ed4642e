"""Proofs in rational arithmetic: floating-point numbers are fractions, so what they satisfy can be checked exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from .separability import Certificate

Vector = list[Fraction]


def separates(rows: np.ndarray, labels: np.ndarray, separator: np.ndarray) -> bool:
    """Whether a_n·V_y > a_n·V_k for all n and all k ≠ y = y_n, without rounding.

    Args:
        rows: [N, D].  labels: [N] int64.  separator: V, [D, C].
    """
    weights = [_exact(column) for column in separator.T]
    for row, label in zip(rows, labels, strict=True):
        a = _exact(row)
        z = [sum((x * w for x, w in zip(a, column, strict=True) if x), Fraction(0)) for column in weights]
        if any(z[label] <= value for k, value in enumerate(z) if k != label):
            return False
    return True


def combination(rows: np.ndarray, certificate: Certificate) -> tuple[np.ndarray, Vector] | None:
    """Points of the certificate and μ > 0 with Σ μ a_n ⊗ (e_y − e_k) = 0 without rounding; None where there are none.

    That is a proof that no V has a_n·V_y > a_n·V_k for all of these points: the sum of what should be positive is 0.
    λ is rounded, so it only says where to look: first among the points with more than a rounding's worth of it. Points
    are taken out as Carathéodory's theorem takes them, until one exact dependence is left.

    Args:
        rows: [N, D], those of the test.
    Returns:
        The points' indices within the certificate, and μ of sum 1.
    """
    heavy = np.flatnonzero(certificate.weights > 1e-7 * certificate.weights.max())
    proof = _combination_of(rows, certificate, heavy)
    return proof or _combination_of(rows, certificate, np.arange(len(certificate.rows)))


def _combination_of(rows: np.ndarray, certificate: Certificate, among: np.ndarray) -> tuple[np.ndarray, Vector] | None:
    classes = int(max(certificate.wanted.max(), certificate.other.max())) + 1
    points = []
    parts = (certificate.rows[among], certificate.wanted[among], certificate.other[among])
    for n, wanted, other in zip(*parts, strict=True):
        a, nothing = _exact(rows[n]), [Fraction(0)] * rows.shape[1]
        blocks = [a if k == wanted else [-x for x in a] if k == other else nothing for k in range(classes - 1)]
        points.append([x for block in blocks for x in block])  # the last class follows from the others
    lengths = np.linalg.norm(rows[parts[0]], axis=1)
    weights = _exact(certificate.weights[among] / np.where(lengths > 0, lengths, 1))
    left = list(range(len(points)))
    while left:
        dependences = _dependences([points[n] for n in left])
        if not dependences:
            return None
        one = dependences[0]
        if len(dependences) == 1:
            if all(mu <= 0 for mu in one):
                one = [-mu for mu in one]
            if any(mu < 0 for mu in one):
                return None
            total = sum(one)
            kept = [(n, mu / total) for n, mu in zip(left, one, strict=True) if mu > 0]
            return among[[n for n, _ in kept]], [mu for _, mu in kept]
        if not any(mu > 0 for mu in one):
            one = [-mu for mu in one]
        share, out = min((weights[n] / mu, at) for at, (n, mu) in enumerate(zip(left, one, strict=True)) if mu > 0)
        for n, mu in zip(left, one, strict=True):
            weights[n] -= share * mu
        del left[out]
    return None


def _exact(values: np.ndarray) -> Vector:
    return [Fraction(float(value)) for value in values]


def _dependences(points: Sequence[Vector]) -> list[Vector]:
    """A basis of all μ with Σ μ_n points_n = 0: Gauss's elimination."""
    size = len(points)
    pivots: list[tuple[int, Vector, Vector]] = []
    basis = []
    for n, point in enumerate(points):
        vector, made_of = list(point), [Fraction(int(k == n)) for k in range(size)]
        for place, pivot, combination_of_it in pivots:
            if factor := vector[place]:
                vector = [x - factor * p for x, p in zip(vector, pivot, strict=True)]
                made_of = [x - factor * p for x, p in zip(made_of, combination_of_it, strict=True)]
        place = next((at for at, x in enumerate(vector) if x), None)
        if place is None:
            basis.append(made_of)
            continue
        scale = 1 / vector[place]
        pivots.append((place, [x * scale for x in vector], [x * scale for x in made_of]))
    return basis
