"""The report on each layer and unit once the weights are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .separability import Certificate, Status


@dataclass(frozen=True, eq=False)
class UnitReport:
    """One unit, or a head of several classes, beside what it is to answer."""

    status: Status
    margin: float  # distance of the nearest row to the unit's boundary, negative of a row on the wrong side
    certificate: Certificate | None  # where inseparable


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One Linear layer: hidden units are to answer what they realise, the head what the labels say."""

    name: str  # of the module
    units: tuple[UnitReport, ...]

    @property
    def margin(self) -> float:
        """The least of its units."""
        return min(unit.margin for unit in self.units)


@dataclass(frozen=True, eq=False)
class Report:
    """Why the search ended as it did, and how far each unit is from answering otherwise.

    `str` of it is a table.
    """

    reason: str  # one sentence
    layers: tuple[LayerReport, ...]  # the head is the last
    equal_rows: tuple[int, int] | None  # two equal rows of different labels
    dichotomies: int | None  # separable ones, where the exhaustive phase tried all

    def __str__(self) -> str:
        lines = [self.reason, f"{'layer':<10} {'units':>6} {'separable':>10} {'least margin':>13}"]
        for layer in self.layers:
            separable = sum(unit.status == "separable" for unit in layer.units)
            lines.append(f"{layer.name:<10} {len(layer.units):>6} {separable:>10} {layer.margin:>13.4g}")
            for place, unit in enumerate(layer.units):
                if unit.status != "separable":
                    rows = "" if unit.certificate is None else f": rows {_listed(unit.certificate.rows)} contradict"
                    lines.append(f"  unit {place} is {unit.status}{rows}")
        return "\n".join(lines)


def unit_margins(weights: np.ndarray, has_bias: bool, z: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """min_n t_n z_n / ‖w‖ of each unit, the bias apart, [U]; ±∞ of a unit that ignores its input."""
    return _distances((signs * z).min(axis=0), np.linalg.norm(weights[:-1] if has_bias else weights, axis=0))


def head_margin(weights: np.ndarray, has_bias: bool, z: np.ndarray, labels: np.ndarray) -> float:
    """min over n and k ≠ y of (z_y − z_k) / ‖w_y − w_k‖."""
    w = weights[:-1] if has_bias else weights
    least = math.inf
    for wanted in np.unique(labels):
        of_it = z[labels == wanted]
        gaps = (of_it[:, [wanted]] - of_it).min(axis=0)
        distances = _distances(gaps, np.linalg.norm(w[:, [wanted]] - w, axis=0))
        least = min(least, float(np.delete(distances, wanted).min()))
    return least


def _distances(gaps: np.ndarray, norms: np.ndarray) -> np.ndarray:
    flat = np.where(gaps > 0, math.inf, np.where(gaps < 0, -math.inf, 0.0))
    return np.where(norms > 0, gaps / np.where(norms > 0, norms, 1), flat)


def _listed(rows: np.ndarray) -> str:
    distinct = np.unique(rows)
    return ", ".join(map(str, distinct[:8])) + (f", … ({len(distinct)} in all)" if len(distinct) > 8 else "")
