"""The networks of the study: an MLP of our own, and the paper's for CIFAR-10."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ....kernels import hard_threshold
from ....nn import HardThreshold, PackedLinear, QuantizedReLU, convnet4, convnet8

if TYPE_CHECKING:
    from .images import Batches

HIDDEN = (256, 256)
SMOOTH = ("relu", "saturated_relu")  # activations with a derivative: no target, no rule
_PIXELS = 3 * 32 * 32


class SaturatedReLU(nn.Module):
    """clamp(z, 0, 1), of which a bit an element is kept for the backward."""

    def forward(self, z: Tensor) -> Tensor:
        return hard_threshold(z, kind="saturated_relu")


def build(network: str, activation: str, rule: str, batches: Batches, *, packed: bool = True) -> nn.Module:
    """A network at its start, which takes the rows of `batches`.

    Args:
        network: "mlp", "convnet4" or "convnet8".
        activation: "sign", "step" or "quantized_relu", where `rule` is one of a threshold's.
        rule: of the backward of the activation; or "relu" or "saturated_relu", which is the activation then.
        packed: what can be is kept for the backward as bits.

    Raises:
        ValueError: a convolutional network, and no images of 3 × 32 × 32.
    """
    options: dict[str, Any] = {"activation": rule} if rule in SMOOTH else {"activation": activation, "rule": rule}
    if network == "mlp":
        return _mlp(options, batches, packed)
    if batches.features != _PIXELS:
        raise ValueError(
            f"train: {network} takes images of 3 × 32 × 32; {batches.dataset.name} has {batches.features} features; "
            "expected --net mlp, or --data cifar10:DIR"
        )
    constructor = {"convnet4": convnet4, "convnet8": convnet8}[network]
    model = constructor(**options, classes=batches.classes, packed=packed)
    return nn.Sequential(nn.Unflatten(1, (3, 32, 32)), model)


def _mlp(options: dict[str, Any], batches: Batches, packed: bool) -> nn.Sequential:
    widths = batches.features, *HIDDEN, batches.classes
    modules: list[nn.Module] = []
    for before, behind in pairwise(widths):
        is_of_signs = bool(modules) and options["activation"] == "sign" and packed
        modules += [(PackedLinear if is_of_signs else nn.Linear)(before, behind), _activation(**options)]
    return nn.Sequential(*modules[:-1])


def _activation(activation: str, rule: str | None = None) -> nn.Module:
    if activation == "relu":
        return nn.ReLU()
    if activation == "saturated_relu":
        return SaturatedReLU()
    return QuantizedReLU(rule=rule) if activation == "quantized_relu" else HardThreshold(activation, rule)
