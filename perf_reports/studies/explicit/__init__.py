"""Softmax networks solved from counts, beside a few steps of Adam, and language models beside Kneser–Ney."""

from . import text_training, training
from .beside_adam import LOSS_TITLE, NAME, compare

__all__ = ["LOSS_TITLE", "NAME", "compare", "text_training", "training"]
