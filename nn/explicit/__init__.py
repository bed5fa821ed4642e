"""Explicit solutions of softmax networks on non-negative features: estimators that count, and take no gradient step."""

from .language_model import ExplicitLanguageModel
from .mlp import ExplicitMLP
from .softmax import ExplicitSoftmax

__all__ = ["ExplicitLanguageModel", "ExplicitMLP", "ExplicitSoftmax"]
