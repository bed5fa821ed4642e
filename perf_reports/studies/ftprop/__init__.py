"""Hard-threshold networks trained by feasible target propagation, beside straight-through and smooth ones."""

from .methods import METHODS, NAME, Recipe, methods_of, usual_epochs
from .training import SEEDS, summary_lines, train

__all__ = ["METHODS", "NAME", "SEEDS", "Recipe", "methods_of", "summary_lines", "train", "usual_epochs"]
