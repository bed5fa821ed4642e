"""Optimizers and solvers: they take parameters, torch.nn modules or small documented protocols, never tropigrad.nn."""

from .l1_continuation.continuation import L1Continuation
from .l1_continuation.front import ParetoFront
from .l1_continuation.sweep import L1Sweep
from .path_space.basis_paths import BasisPaths
from .path_space.gsgd import GSGD
from .path_space.path_sgd import PathSGD
from .sparse_max_plus import SparseMaxPlus
from .target_propagation.solver import FeasibleTargetPropagation
from .worst_sample import tuning_calls as _tuning_calls  # noqa: F401  registers its iterations with the tuner
from .worst_sample.subgradient import WorstSampleSubgradient

__all__ = [
    "GSGD",
    "BasisPaths",
    "FeasibleTargetPropagation",
    "L1Continuation",
    "L1Sweep",
    "ParetoFront",
    "PathSGD",
    "SparseMaxPlus",
    "WorstSampleSubgradient",
]
