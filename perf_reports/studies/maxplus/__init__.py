"""A linear-min-max network trained by sparse subgradients of its worst sample's loss, beside dense backprop."""

from .beside_dense import compare
from .methods import LOSS_TITLE, NAME
from .training import summary_lines, train

__all__ = ["LOSS_TITLE", "NAME", "compare", "summary_lines", "train"]
