"""Keeps a layer whole for torch.fx, where its call depends on more than x: whether it trains, or records gradients."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def whole(layer: nn.Module, x: Any) -> Any:
    """One call of the layer in torch.fx's graph, as of torch's own layers; None where x is no proxy of a tracer.

    What the call depends on is then asked when the traced network is called.

    Raises:
        TypeError: the layer is what is traced, and so can be no part of it.
    """
    if not isinstance(x, Proxy):
        return None
    path = x.tracer.path_of_module(layer)  # pyright: ignore[reportAttributeAccessIssue]
    if not path:
        name = type(layer).__name__
        raise TypeError(f"{name}: torch.fx traces it alone; expected a network that holds it: nn.Sequential(layer)")
    return x.tracer.create_proxy("call_module", path, (x,), {})
