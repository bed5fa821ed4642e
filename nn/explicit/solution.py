"""From counts to logits, in closed form, and the two numbers that counts leave open: smoothing and temperature.

    F = Xᵀ Y + ε,   S_c = Σ_d F_dc,   logits = (x W + b) / T

    rows of sum K:        W = log F − (1 − 1/K) log S,   b = 0         class prior ∝ S ("mass")
    any rows, and K = ∞:  W = log (F / S),               b = log S ("mass") or log N ("count")

Both come from F alone. So a search of ε needs no second pass over the rows that were counted: each candidate is a
logarithm of F, and is measured on rows that F does not hold. With logits z, the cross-entropy of z β, β = 1/T, is
convex in β: its minimum is found by Newton's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels import cooccurrence, log_shift
from .ranks import added
from .rows import Rows, Scaling

SMOOTHINGS = tuple(10.0 ** (k / 2) for k in range(-8, 9))  # what smoothing="search" tries, 1e-4 to 1e4
_IMPOSSIBLE = -1e30  # a logit in place of −∞, of a class without rows: 0 · ∞ is NaN
_HOTTEST = 1e4  # temperatures are searched in [1 / _HOTTEST, _HOTTEST]


# ------------------------------------------------------------------------------------------------ counts


@dataclass(frozen=True, eq=False)
class Counts:
    """F, without smoothing, and how many rows each class had."""

    features: Tensor  # [D, C] int64 or float64
    rows: Tensor  # [C] int64

    def plus(self, other: Counts) -> Counts:
        return Counts(self.features + other.features, self.rows + other.rows)

    def among(self, classes: np.ndarray, places: np.ndarray) -> Counts:
        """The same for more classes: of these the ones here have `places`."""
        if len(places) == len(classes):
            return self
        at = torch.from_numpy(places).to(self.rows.device)
        D = self.features.shape[0]
        features = self.features.new_zeros(len(classes), D)
        features[at] = self.features.t()
        rows = self.rows.new_zeros(len(classes))
        rows[at] = self.rows
        return Counts(features.t(), rows)


def count(where: str, rows: Rows, index: Tensor, classes: int, scaling: Scaling) -> Counts:
    """F and N of rows with class indices `index` [N], on the CPU or where the rows are.

    Raises:
        ValueError: a row is negative, not finite or, where it is to be scaled, all zero; the message names it.
    """
    scaling.check(where, rows)
    index = index.to(rows.device)
    try:
        features = cooccurrence(rows.values, index, classes, scale=scaling.scale, offset=scaling.offset)
    except ValueError:
        scaling.refuse(where, rows)
    return Counts(features, torch.bincount(index, minlength=classes))


def count_apart(
    where: str, rows: Rows, index: Tensor, held: Tensor | None, classes: int, scaling: Scaling
) -> tuple[Counts, Counts | None]:
    """The counts of the rows that are not held out, and of those that are, in one pass."""
    if held is None:
        return count(where, rows, index, classes, scaling), None
    both = count(where, rows, index + classes * held, 2 * classes, scaling)
    kept, out = both.features.t()[:classes], both.features.t()[classes:]
    return Counts(kept.t(), both.rows[:classes]), Counts(out.t(), both.rows[classes:])


# ------------------------------------------------------------------------------------------------ solution


@dataclass(frozen=True, eq=False)
class Solution:
    """logits = x weight + bias, temperature included. float64."""

    weight: Tensor  # [D, C]
    bias: Tensor  # [C]

    def over(self, temperature: float) -> Solution:
        return Solution(self.weight / temperature, self.bias / temperature)

    @cached_property
    def _casts(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias}

    def logits(self, x: Tensor) -> Tensor:
        """Computes logits of rows as the model sees them: in x's dtype, and up to a number that all classes share."""
        key = x.device, x.dtype
        if key not in self._casts:
            # a feature's mean over the classes shifts all logits alike; without it less is lost to rounding
            centred = self.weight - self.weight.mean(1, keepdim=True)
            self._casts[key] = centred.to(x.device, x.dtype).contiguous(), self.bias.to(x.device, x.dtype)
        weight, bias = self._casts[key]
        return x @ weight + bias

    def to_linear(self, dtype: torch.dtype, device: Any) -> nn.Linear:
        """The layer as a module with these weights."""
        features, out = self.weight.shape
        layer = nn.Linear(features, out, device="meta", dtype=dtype)  # where no random numbers are drawn
        layer = layer.to_empty(device=device or self.weight.device)
        with torch.no_grad():
            layer.weight.copy_(self.weight.t())
            layer.bias.copy_(self.bias)
        return layer


def smoothing_of_classes(smoothing: float, prior: str, rows: Tensor) -> float | Tensor:
    """ε, or with the prior "unigram" ε_c = ε C p_c, p_c = (N_c + ½) / (N + C/2)."""
    if prior == "uniform":
        return smoothing
    counts = rows.double() + 0.5
    return smoothing * len(rows) * counts / counts.sum()


def solve(
    where: str, counts: Counts, classes: np.ndarray, smoothing: float, smoothing_prior: str, scale: float, prior: str
) -> Solution:
    """The solution at temperature 1, for rows of sum `scale`: math.inf for rows of any sums.

    Raises:
        ValueError: smoothing is 0 and a feature never occurs in a class.
    """
    if smoothing == 0:
        _check_positive(where, counts, classes)
    as_count = prior == "count"
    weight, log_mass = log_shift(
        counts.features,
        smoothing=smoothing_of_classes(smoothing, smoothing_prior, counts.rows),
        scale=math.inf if as_count else scale,
    )[:2]
    if as_count:
        return Solution(weight, counts.rows.double().log())
    return Solution(weight, log_mass if math.isinf(scale) else torch.zeros_like(log_mass))


def _check_positive(where: str, counts: Counts, classes: np.ndarray) -> None:
    empty = counts.features == 0
    if empty.any():
        feature, place = (int(i) for i in empty.nonzero()[0])
        raise ValueError(
            f"{where}: smoothing is 0 and feature {feature} never occurs in class {classes.tolist()[place]!r}; "
            "expected smoothing > 0, as 0 · log 0 is NaN"
        )


# ------------------------------------------------------------------------------------------------ search


class Tuned(NamedTuple):
    smoothing: float
    temperature: float
    loss: float  # mean cross-entropy on the rows held out


def search(
    candidates: Iterable[float],
    logits_at: Callable[[float], Tensor],
    targets: Tensor,
    temperature: float | None,
    group: Any = None,
    tolerance: float = 1e-12,
) -> Tuned:
    """The smoothing, and where temperature is None the temperature, of the least cross-entropy; of equals the first.

    Args:
        logits_at: smoothing -> logits [M, C] of rows that were not counted, at temperature 1.
        targets: [M] int64, their classes, none of them of logits −∞.
        group: the ranks whose rows count together.
        tolerance: of temperatures, relative.
    """
    best: Tuned | None = None
    for smoothing in candidates:
        z = logits_at(smoothing).double().clamp(min=_IMPOSSIBLE)
        if temperature is None:
            tried = Tuned(smoothing, *best_temperature(z, targets, group, tolerance))
        else:
            tried = Tuned(smoothing, temperature, moments(z, targets, 1 / temperature, group)[0])
        if best is None or tried.loss < best.loss:
            best = tried
    if best is None or math.isnan(best.loss):
        raise AssertionError("a search without a candidate, or with logits that are NaN")
    return best


def moments(
    z: Tensor, targets: Tensor, beta: float, group: Any = None, extra: float = 0.0
) -> tuple[float, float, float]:
    """The mean cross-entropy of z β, and its first and second derivative in β.

    With `extra`, slope and curvature are of rows of which each stands `extra` times more for any class alike.
    """
    logp = (z * beta).log_softmax(1)
    p = logp.exp()
    mean = (p * z).sum(1)
    picked = targets[:, None]
    slopes = mean - z.gather(1, picked)[:, 0]
    curvatures = (p * (z - mean[:, None]).square()).sum(1)
    if extra:
        possible = z > _IMPOSSIBLE / 2
        slopes = slopes + extra * (mean - z.where(possible, 0).sum(1) / possible.sum(1))
        curvatures = (1 + extra) * curvatures
    sums = torch.stack([-logp.gather(1, picked).sum(), slopes.sum(), curvatures.sum(), z.new_tensor(float(len(z)))])
    loss, slope, curvature, rows = added(sums, group).tolist()
    return loss / rows, slope / rows, curvature / rows


def best_temperature(z: Tensor, targets: Tensor, group: Any = None, tolerance: float = 1e-12) -> tuple[float, float]:
    """The T in [1e-4, 1e4] of the least mean cross-entropy of z / T, and that. Newton in 1/T, kept within a bracket.

    Where all M rows are right the less T the better, to any confidence. One row more, of any class alike, then keeps
    it at what M rows can show.
    """
    z = z - z.amax(1, keepdim=True)
    wrong = (z.gather(1, targets[:, None]) < 0).sum()
    wrong, rows = added(torch.stack([wrong, torch.full_like(wrong, len(z))]), group).tolist()
    extra = 0.0 if wrong else 1 / rows
    low, high, beta = 1 / _HOTTEST, _HOTTEST, 1.0
    for _ in range(100):
        loss, slope, curvature = moments(z, targets, beta, group, extra)
        if abs(slope) * beta <= 1e-12 * max(loss, 1e-3):
            return 1 / beta, loss
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else math.inf
        step = step if low < step < high else math.sqrt(low * high)
        if abs(step - beta) <= tolerance * beta:
            return 1 / beta, loss
        beta = step
    return 1 / beta, moments(z, targets, beta, group)[0]
