"""Losses of samples, from their mean to that of the worst one; and the temperature that fits scores best.

ℓ_n is the multiclass hinge  max(0, max_{k ≠ y_n} (Δ + f_nk) − f_n,y_n)  or the cross-entropy of f_n / T.

    CVaR_α = the mean of the worst share α:    α = 1 is the mean of all,    α N ≤ 1 the worst sample,  max_n ℓ_n

Sources: the hinge, Crammer & Singer, 2001; CVaR, Rockafellar & Uryasev, "Optimization of conditional value-at-risk",
2000; temperature scaling, Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", 2017.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arguments import check_positive

Kind = Literal["hinge", "cross_entropy"]


class WorstSampleLoss(nn.Module):
    """F = max_n ℓ_n of scores f [N, K] and targets y [N].

    The subgradient is winner-takes-all at every maximum, the first index at ties: with the hinge it has two entries,
    +1 at (n*, best rival) and −1 at (n*, y), or none where F = 0. NaN propagates. Nothing is kept between calls.

    Args:
        margin: Δ > 0 of the hinge, in the units of the scores. The cross-entropy has no margin and ignores it.
        kind: "hinge" (Crammer & Singer, 2001) or "cross_entropy".

    Raises:
        TypeError: a margin that is no number.
        ValueError: an unknown kind, a margin that is not positive and finite.
    """

    def __init__(self, margin: float = 1.0, kind: Kind = "hinge") -> None:
        super().__init__()
        _check_kind("WorstSampleLoss", kind)
        if isinstance(margin, str):
            raise TypeError(
                f"WorstSampleLoss: margin is {margin!r}; expected a number, and the kind as kind={margin!r}"
            )
        check_positive("WorstSampleLoss", "margin", margin)
        self.margin = margin
        self.kind = kind

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The worst of the samples' losses.

        Args:
            scores: [N, K], floating point, N ≥ 1, K ≥ 2.
            targets: [N], integers in [0, K). No label is left out, torch's ignore_index of −100 neither.
        Returns:
            Scalar, the dtype and device of scores.
        Raises:
            TypeError: targets are not integers.  ValueError: sizes that do not fit.  IndexError: a label outside
                [0, K), on the CPU; a GPU's own assertion, and in compiled code torch's own error.
        """
        losses = _checked("WorstSampleLoss", self._losses, scores, targets)
        # max over a named dimension, here and in _hinge: without one, torch spreads the gradient over ties
        return losses.max(dim=0).values

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(scores, labels) if self.kind == "cross_entropy" else _hinge(scores, labels, self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, kind={self.kind!r}"


class CVaRLoss(nn.Module):
    """The mean of the worst share α of the samples' losses: scores f [N, K] and targets y [N].

    m = α N losses are averaged, the last one by the fraction that m leaves it; m ≤ 1 leaves the worst sample alone. The
    first index comes first at ties, so the subgradient is that of exactly ⌈m⌉ samples. With α < 1 it depends on the
    batch: the mean of the losses over batches is more than that of all samples at once, unless α = 1. NaN propagates.

    Args:
        alpha: α in (0, 1].
        kind: "cross_entropy" or "hinge".
        temperature: T > 0 of the cross-entropy of f / T. The hinge has its margin instead, and ignores it.
        margin: Δ > 0 of the hinge, in the units of the scores. The cross-entropy ignores it.
        learn_temperature: log T becomes the Parameter `log_temperature`; an optimizer has to be handed it.

    Attributes:
        temperature: T, as a number. It may be set at any time, between the steps of an annealing say, and is part of
            the state_dict.

    Raises:
        TypeError: a number that is none.
        ValueError: α outside (0, 1]; an unknown kind; a temperature or a margin that is not positive and finite; a
            temperature to be learned for the hinge.
    """

    log_temperature: Tensor | None
    fixed_temperature: Tensor | None

    def __init__(
        self,
        alpha: float = 1.0,
        kind: Kind = "cross_entropy",
        *,
        temperature: float = 1.0,
        margin: float = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(alpha, str):
            raise TypeError(f"CVaRLoss: alpha is {alpha!r}; expected a number, and the kind as kind={alpha!r}")
        check_positive("CVaRLoss", "margin", margin)
        _check_kind("CVaRLoss", kind)
        if learn_temperature and kind == "hinge":
            raise ValueError(
                "CVaRLoss: learn_temperature with kind 'hinge', which has no temperature; expected 'cross_entropy'"
            )
        _check_share("CVaRLoss", alpha)
        self.alpha = float(alpha)
        self.kind = kind
        self.margin = margin
        # tensors, and not numbers: torch.compile need not compile again for another temperature
        blank = torch.zeros((), dtype=torch.float32, device="cpu")
        self.register_buffer("fixed_temperature", None if learn_temperature else blank)
        self.register_parameter("log_temperature", nn.Parameter(blank) if learn_temperature else None)
        self.temperature = temperature

    @property
    def temperature(self) -> float:
        if self.fixed_temperature is not None:
            return self.fixed_temperature.item()
        assert self.log_temperature is not None
        return math.exp(self.log_temperature.item())

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        check_positive("CVaRLoss", "temperature", temperature)
        with torch.no_grad():
            if self.fixed_temperature is not None:
                self.fixed_temperature.fill_(temperature)
            if self.log_temperature is not None:
                self.log_temperature.fill_(math.log(temperature))

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean of the worst share of the samples' losses.

        Args:
            scores: [N, K], floating point, N ≥ 1, K ≥ 2.
            targets: [N], integers in [0, K). No label is left out, torch's ignore_index of −100 neither.
        Returns:
            Scalar, the dtype and device of scores; under autocast that of its log_softmax.
        Raises:
            TypeError: targets are not integers.  ValueError: sizes that do not fit.  IndexError: a label outside
                [0, K), on the CPU; a GPU's own assertion, and in compiled code torch's own error.
        """
        losses = _checked("CVaRLoss", self._losses, scores, targets)
        if self.alpha == 1:
            return losses.mean()
        whole, rest = tail(self.alpha, len(losses))
        worst = losses.sort(dim=0, descending=True, stable=True).values
        if whole == 0:
            return worst[0]
        mean = worst[:whole].mean()  # not the sum, which float16 might not hold
        if rest == 0:
            return mean
        return mean * (whole / (whole + rest)) + worst[whole] * (rest / (whole + rest))

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.kind == "hinge":
            return _hinge(scores, labels, self.margin)
        if self.fixed_temperature is not None:
            return _cross_entropy(scores / self.fixed_temperature, labels)
        assert self.log_temperature is not None
        return _cross_entropy(scores * (-self.log_temperature).exp(), labels)

    def extra_repr(self) -> str:
        if self.kind == "hinge":
            return f"alpha={self.alpha:g}, kind='hinge', margin={self.margin:g}"
        learned = ", learn_temperature=True" if self.log_temperature is not None else ""
        return f"alpha={self.alpha:g}, kind='cross_entropy', temperature={self.temperature:g}{learned}"


def tail(alpha: float, samples: int) -> tuple[int, float]:
    """The worst share α of N samples: how many count in full, and by what fraction the next one counts.

    A product α N within its rounding of an integer is that integer: 0.1 · 30 is 3, not 3 + 4e−16. Where α N ≤ 1, a
    single sample counts, and its weight in the mean is 1: (0, 1.0).
    """
    share = alpha * samples
    if share <= 1:
        return 0, 1.0
    nearest = round(share)
    if abs(share - nearest) <= 1e-9 * share:
        return nearest, 0.0
    return math.floor(share), share - math.floor(share)


@torch.no_grad()
def best_temperature(scores: Tensor, targets: Tensor) -> float:
    """The temperature T at which the mean cross-entropy of scores / T is least: temperature scaling.

    The loss is convex in 1/T. Newton's method on its derivative, kept inside a bracket, finds it in float64 and a dozen
    passes. The temperature is sought between 1/1000 and 1000 times the samples' mean range of scores; that end of
    it is returned where the loss still falls there: the low end where every sample is right, since then no temperature
    is too low, the high end where the scores say less than a constant answer. 1 where all scores are equal.

    Args:
        scores: [N, K] of samples that the network was not trained on, finite, N ≥ 1, K ≥ 2.
        targets: [N], integers in [0, K).
    Raises:
        TypeError: targets are not integers.  ValueError: sizes that do not fit, scores that are not finite.
        IndexError: a label outside [0, K).
    """
    own = _checked("best_temperature", lambda f, labels: f.gather(1, labels), scores, targets)
    if not scores.isfinite().all():
        raise ValueError("best_temperature: scores hold NaN or infinite values; expected finite ones")
    top = scores.double().amax(dim=1, keepdim=True)
    f, own = scores.double() - top, own.double() - top
    spread = (f.amin(dim=1).mean()).neg().item()
    if spread == 0:
        return 1.0

    def derivatives(inverse: float) -> tuple[float, float]:
        p = functional.softmax(inverse * f, dim=1)
        mean = (p * f).sum(dim=1, keepdim=True)
        return (mean - own).mean().item(), (p * (f - mean).square()).sum(dim=1).mean().item()

    low, high = 1e-3 / spread, 1e3 / spread
    if derivatives(low)[0] >= 0:
        return 1 / low
    if derivatives(high)[0] <= 0:
        return 1 / high
    inverse = 1 / spread
    for _ in range(100):
        slope, curvature = derivatives(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - inverse) <= 1e-10 * inverse:
            break
        inverse = following
    return 1 / inverse


def _hinge(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    rivals = (scores + margin).scatter(1, labels, float("-inf"))
    return (rivals.max(dim=1).values - scores.gather(1, labels).squeeze(1)).relu()


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    # by gather: torch's cross_entropy would leave out the label −100
    return -functional.log_softmax(scores, dim=1).gather(1, labels).squeeze(1)


def _checked(loss: str, losses: Callable[[Tensor, Tensor], Tensor], scores: Tensor, targets: Tensor) -> Tensor:
    """losses(scores, labels [N, 1]), or an error in the loss's name."""
    if scores.dim() != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(f"{loss}: scores have shape {tuple(scores.shape)}; expected [N, K] with N ≥ 1 and K ≥ 2")
    if targets.shape != scores.shape[:1]:
        raise ValueError(
            f"{loss}: targets have shape {tuple(targets.shape)}; "
            f"expected [{scores.shape[0]}], one label for each row of the scores"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"{loss}: targets are {targets.dtype}; expected integer class labels")
    try:
        return losses(scores, targets.long().unsqueeze(1))
    except (RuntimeError, IndexError) as error:  # labels are checked only now: right ones cost nothing
        low, high = (int(bound) for bound in targets.aminmax())
        if low >= 0 and high < scores.shape[1]:
            raise
        raise IndexError(
            f"{loss}: targets span [{low}, {high}]; expected labels in [0, {scores.shape[1] - 1}]"
        ) from error


def _check_kind(loss: str, kind: Any) -> None:
    if kind not in ("hinge", "cross_entropy"):
        raise ValueError(f"{loss}: kind is {kind!r}; expected 'hinge' or 'cross_entropy'")


def _check_share(loss: str, alpha: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise TypeError(f"{loss}: alpha is {alpha!r}; expected a number")
    if not 0 < float(alpha) <= 1:
        raise ValueError(f"{loss}: alpha is {alpha}; expected a share in (0, 1]")
