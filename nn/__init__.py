"""Torch modules and losses over the kernels."""

from .kmedoids import KMedoids, chebyshev_distances, kmedoids
from .linear_min_max import KMedoidsInit, LinearMinMax
from .losses import WorstSampleLoss
from .maxplus import MaxPlusLinear, MinPlusLinear

__all__ = [
    "KMedoids",
    "KMedoidsInit",
    "LinearMinMax",
    "MaxPlusLinear",
    "MinPlusLinear",
    "WorstSampleLoss",
    "chebyshev_distances",
    "kmedoids",
]
