"""The front of a network's loss and ℓ¹ norm, by continuation and by its rivals."""

from .beside_sweep import LOSS_TITLE, NAME, compare
from .methods import METHODS, Recipe
from .training import summary_lines, train

__all__ = ["LOSS_TITLE", "METHODS", "NAME", "Recipe", "compare", "summary_lines", "train"]
