"""Explicit solutions of softmax networks on non-negative features: estimators that count, and take no gradient step."""

from .softmax import ExplicitSoftmax

__all__ = ["ExplicitSoftmax"]
