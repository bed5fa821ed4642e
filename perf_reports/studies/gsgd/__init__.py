"""ReLU networks trained by SGD on their path values, beside SGD on their weights."""

from .methods import Recipe, compare, draw_starts, overhead, summary_lines, train

__all__ = ["Recipe", "compare", "draw_starts", "overhead", "summary_lines", "train"]
