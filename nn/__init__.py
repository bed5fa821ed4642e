"""Torch modules and losses over the kernels."""

from .explicit import ExplicitLanguageModel, ExplicitMLP, ExplicitSoftmax
from .kmedoids import KMedoids, chebyshev_distances, kmedoids
from .linear_min_max import KMedoidsInit, LinearMinMax
from .losses import WorstSampleLoss
from .maxplus import MaxPlusLinear, MinPlusLinear
from .quantized import BatchNormThreshold, HardThreshold, PackedConv2d, PackedLinear, QuantizedReLU
from .tropical_conv import MaxPlusConv2d, MinPlusConv2d

__all__ = [
    "BatchNormThreshold",
    "ExplicitLanguageModel",
    "ExplicitMLP",
    "ExplicitSoftmax",
    "HardThreshold",
    "KMedoids",
    "KMedoidsInit",
    "LinearMinMax",
    "MaxPlusConv2d",
    "MaxPlusLinear",
    "MinPlusConv2d",
    "MinPlusLinear",
    "PackedConv2d",
    "PackedLinear",
    "QuantizedReLU",
    "WorstSampleLoss",
    "chebyshev_distances",
    "kmedoids",
]
