"""Networks of hard thresholds, whose backward propagates targets."""

from .batch_norm import BatchNormThreshold
from .hard_threshold import HardThreshold
from .networks import FTPROP_SETTINGS, TrainingSettings, alexnet, convnet4, convnet8, resnet18
from .packed import PackedConv2d, PackedLinear
from .quantized_relu import QuantizedReLU

__all__ = [
    "FTPROP_SETTINGS",
    "BatchNormThreshold",
    "HardThreshold",
    "PackedConv2d",
    "PackedLinear",
    "QuantizedReLU",
    "TrainingSettings",
    "alexnet",
    "convnet4",
    "convnet8",
    "resnet18",
]
