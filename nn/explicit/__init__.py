"""Explicit solutions of softmax networks on non-negative features: estimators that count, and take no gradient step."""

from .mlp import ExplicitMLP
from .softmax import ExplicitSoftmax

__all__ = ["ExplicitMLP", "ExplicitSoftmax"]
