"""Optimizers and solvers: they take parameters, torch.nn modules or small documented protocols, never tropigrad.nn."""

from .basis_paths import BasisPaths
from .gsgd import GSGD
from .path_sgd import PathSGD
from .worst_sample_subgradient import WorstSampleSubgradient

__all__ = ["GSGD", "BasisPaths", "PathSGD", "WorstSampleSubgradient"]
