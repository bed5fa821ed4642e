"""Worst-sample loss:  F = max_n ℓ_n,  so the subgradient is that of one sample, and sparse.

ℓ_n is the multiclass hinge  max(0, max_{k ≠ y_n} (Δ + f_nk) − f_n,y_n)  or the cross-entropy.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arguments import check_positive


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

    def __init__(self, margin: float = 1.0, kind: Literal["hinge", "cross_entropy"] = "hinge") -> None:
        super().__init__()
        if kind not in ("hinge", "cross_entropy"):
            raise ValueError(f"WorstSampleLoss: kind is {kind!r}; expected 'hinge' or 'cross_entropy'")
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
        if scores.dim() != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
            raise ValueError(
                f"WorstSampleLoss: scores have shape {tuple(scores.shape)}; expected [N, K] with N ≥ 1 and K ≥ 2"
            )
        if targets.shape != scores.shape[:1]:
            raise ValueError(
                f"WorstSampleLoss: targets have shape {tuple(targets.shape)}; "
                f"expected [{scores.shape[0]}], one label for each row of the scores"
            )
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(f"WorstSampleLoss: targets are {targets.dtype}; expected integer class labels")
        labels = targets.long().unsqueeze(1)
        try:
            losses = self._losses(scores, labels)
        except (RuntimeError, IndexError) as error:  # labels are checked only now: right ones cost nothing
            low, high = (int(bound) for bound in targets.aminmax())
            if low >= 0 and high < scores.shape[1]:
                raise
            raise IndexError(
                f"WorstSampleLoss: targets span [{low}, {high}]; expected labels in [0, {scores.shape[1] - 1}]"
            ) from error
        return losses.max(dim=0).values

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.kind == "cross_entropy":
            # by gather: torch's cross_entropy would leave out the label −100
            return -functional.log_softmax(scores, dim=1).gather(1, labels).squeeze(1)
        rivals = (scores + self.margin).scatter(1, labels, float("-inf"))
        # max over a named dimension, here and above: without one, torch spreads the gradient over ties
        return (rivals.max(dim=1).values - scores.gather(1, labels).squeeze(1)).relu()

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}, kind={self.kind!r}"
