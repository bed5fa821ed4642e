"""Optimizers and solvers: they take parameters, torch.nn modules or small documented protocols, never tropigrad.nn."""

from .basis_paths import BasisPaths
from .gsgd import GSGD
from .path_sgd import PathSGD

__all__ = ["GSGD", "BasisPaths", "PathSGD"]
