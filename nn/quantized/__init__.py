"""Layers of networks whose activations have few levels."""

from .packed import PackedConv2d, PackedLinear

__all__ = ["PackedConv2d", "PackedLinear"]
