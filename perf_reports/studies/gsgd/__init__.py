"""ReLU networks trained by SGD on their path values, beside SGD on their weights."""

from .beside_sgd import compare, overhead
from .drawing import draw_starts
from .methods import LOSS_TITLE, NAME, Recipe
from .training import summary_lines, train

__all__ = ["LOSS_TITLE", "NAME", "Recipe", "compare", "draw_starts", "overhead", "summary_lines", "train"]
