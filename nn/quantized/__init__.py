"""Networks of hard thresholds, whose backward propagates targets."""

from .hard_threshold import HardThreshold
from .quantized_relu import QuantizedReLU

__all__ = ["HardThreshold", "QuantizedReLU"]
