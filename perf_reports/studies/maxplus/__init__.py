"""A linear-min-max network trained on the worst sample, the worst share or the mean, beside dense backprop."""

from .beside_dense import compare
from .methods import LOSS_TITLE, NAME
from .networks import load_model
from .objectives import summary_lines as objective_lines
from .objectives import train_objective
from .training import summary_lines, train

__all__ = [
    "LOSS_TITLE",
    "NAME",
    "compare",
    "load_model",
    "objective_lines",
    "summary_lines",
    "train",
    "train_objective",
]
