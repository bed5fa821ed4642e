"""The front of a network's loss and ℓ¹ norm, by continuation and by its rivals."""

from .methods import METHODS, Recipe
from .training import summary_lines, train

__all__ = ["METHODS", "Recipe", "summary_lines", "train"]
