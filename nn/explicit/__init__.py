"""Softmax networks solved in closed form, on positive features."""

from .language_model import ExplicitLanguageModel

__all__ = ["ExplicitLanguageModel"]
