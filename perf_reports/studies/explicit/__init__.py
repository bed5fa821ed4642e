"""Softmax networks solved from counts, beside a few steps of Adam, and language models beside Kneser–Ney."""

from . import text_training, training

__all__ = ["text_training", "training"]
