"""Networks of hard thresholds, whose backward propagates targets."""

from .batch_norm import BatchNormThreshold
from .hard_threshold import HardThreshold
from .packed import PackedConv2d, PackedLinear
from .quantized_relu import QuantizedReLU

__all__ = ["BatchNormThreshold", "HardThreshold", "PackedConv2d", "PackedLinear", "QuantizedReLU"]
