"""Fragility of a linear-min-max network's features: which one change of a sample's gives it another class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernels.feature_fragility import Fragility, feature_fragility

__all__ = ["Fragility", "fragility"]


def fragility(model: Any, x: Tensor, *, box: tuple[float, float] | None = None) -> Fragility:
    """For each sample and feature the least change, alone, beyond which the network says another class. Exact.

    Args:
        model: a `LinearMinMax`, or anything with tensors A [p, d], W1 [q, p] and W2 [K, q].
        x: [..., d] in the dtype of the model, on its device.
        box: (low, high), in which features lie and stay, as (0, 1) for pixels; None for no bounds.

    Returns:
        (change [..., d], classes [..., d]): the signed change, inf where none is enough, and the class it leads to, −1
        where there is none. `kernels.feature_fragility` says what both are at ties and how they are rounded. The class
        that is left is the network's own in real numbers: where two scores are equal but for rounding, the model may
        name the other.

    Raises:
        TypeError: the model has no such tensors; dtypes that differ.
        ValueError: shapes or devices that do not fit; x outside the box.
    """
    missing = [name for name in ("A", "W1", "W2") if not isinstance(getattr(model, name, None), Tensor)]
    if missing:
        raise TypeError(
            f"fragility: {type(model).__name__} has no tensor {', '.join(missing)}; expected a LinearMinMax, or "
            "another model with A [p, d], W1 [q, p] and W2 [K, q]"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"fragility: x is a {type(x).__name__}; expected a torch.Tensor")
    if x.dim() == 0 or x.shape[-1] != model.A.shape[-1]:
        raise ValueError(f"fragility: x has shape {tuple(x.shape)}; expected [..., {model.A.shape[-1]}]")
    change, classes = feature_fragility(x.reshape(-1, x.shape[-1]), model.A, model.W1, model.W2, box=box)
    return Fragility(change.reshape(x.shape), classes.reshape(x.shape))
