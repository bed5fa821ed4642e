"""Torch modules and losses over the kernels."""

from .explicit import ExplicitLanguageModel, ExplicitMLP, ExplicitSoftmax
from .fragility import Fragility, fragility
from .kmedoids import KMedoids, chebyshev_distances, kmedoids
from .linear_min_max import KMedoidsInit, LinearMinMax
from .losses import CVaRLoss, WorstSampleLoss, best_temperature
from .maxplus import MaxPlusLinear, MinPlusLinear
from .maxplus_classifier import MaxPlusClassifier
from .maxplus_networks import MaxPlusMLP, ResidualMaxPlus
from .pruning import PrunedUnits, prune_units
from .quantized import (
    FTPROP_SETTINGS,
    BatchNormThreshold,
    HardThreshold,
    PackedConv2d,
    PackedLinear,
    QuantizedReLU,
    TrainingSettings,
    alexnet,
    convnet4,
    convnet8,
    resnet18,
)
from .tropical_conv import MaxPlusConv2d, MinPlusConv2d

__all__ = [
    "FTPROP_SETTINGS",
    "BatchNormThreshold",
    "CVaRLoss",
    "ExplicitLanguageModel",
    "ExplicitMLP",
    "ExplicitSoftmax",
    "Fragility",
    "HardThreshold",
    "KMedoids",
    "KMedoidsInit",
    "LinearMinMax",
    "MaxPlusClassifier",
    "MaxPlusConv2d",
    "MaxPlusLinear",
    "MaxPlusMLP",
    "MinPlusConv2d",
    "MinPlusLinear",
    "PackedConv2d",
    "PackedLinear",
    "PrunedUnits",
    "QuantizedReLU",
    "ResidualMaxPlus",
    "TrainingSettings",
    "WorstSampleLoss",
    "alexnet",
    "best_temperature",
    "chebyshev_distances",
    "convnet4",
    "convnet8",
    "fragility",
    "kmedoids",
    "prune_units",
    "resnet18",
]
