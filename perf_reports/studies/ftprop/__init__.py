"""Hard-threshold networks trained by feasible target propagation, beside straight-through and smooth ones."""

from .beside_eager import compare
from .methods import LOSS_TITLE, METHODS, NAME, Recipe, methods_of, usual_epochs
from .training import SEEDS, summary_lines, train

__all__ = [
    "LOSS_TITLE",
    "METHODS",
    "NAME",
    "SEEDS",
    "Recipe",
    "compare",
    "methods_of",
    "summary_lines",
    "train",
    "usual_epochs",
]
