"""A linear-min-max network trained by sparse subgradients of its worst sample's loss, beside dense backprop."""

from .methods import compare, summary_lines, train

__all__ = ["compare", "summary_lines", "train"]
