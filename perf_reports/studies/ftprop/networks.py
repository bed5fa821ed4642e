"""The networks of the study: an MLP of our own, and the paper's for CIFAR-10."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ....kernels import hard_threshold
from ....nn import HardThreshold, QuantizedReLU

if TYPE_CHECKING:
    from .images import Batches

HIDDEN = (256, 256)


class SaturatedReLU(nn.Module):
    """clamp(z, 0, 1), of which a bit an element is kept for the backward."""

    def forward(self, z: Tensor) -> Tensor:
        return hard_threshold(z, kind="saturated_relu")


def build(network: str, activation: str, rule: str, batches: Batches, *, packed: bool) -> nn.Module:
    """A network at its start, for the samples of `batches`.

    Args:
        network: "mlp".
        activation: "sign", "step" or "quantized_relu", where `rule` is one of a threshold's.
        rule: of the backward of the activation; or "relu" or "saturated_relu", which is the activation then.
        packed: thresholds are kept for the backward as bits.

    Raises:
        ValueError: the network takes images of another size.
    """
    return _mlp(activation, rule, batches)


def _activation(activation: str, rule: str) -> nn.Module:
    if rule == "relu":
        return nn.ReLU()
    if rule == "saturated_relu":
        return SaturatedReLU()
    return QuantizedReLU(rule=rule) if activation == "quantized_relu" else HardThreshold(activation, rule)


def _mlp(activation: str, rule: str, batches: Batches) -> nn.Sequential:
    widths = batches.features, *HIDDEN, batches.classes
    layers = [(nn.Linear(before, behind), _activation(activation, rule)) for before, behind in pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])
