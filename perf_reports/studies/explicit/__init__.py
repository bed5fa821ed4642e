"""Softmax networks solved from counts, beside a few steps of Adam, and language models beside Kneser–Ney."""

from . import language, training

__all__ = ["language", "training"]
