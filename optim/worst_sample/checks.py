"""Checks of WorstSampleSubgradient's arguments: errors say what came, what was expected and what to do."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Protocol

import torch
from torch import Tensor

from .definition import Weights

WHERE = "WorstSampleSubgradient"


class LinearMinMaxLike(Protocol):
    """A trainable network: f_k = max_j (u_j + W2_kj), u_j = min_i (z_i + W1_ji), z = A x."""

    @property
    def A(self) -> Tensor: ...  # [p, d]
    @property
    def W1(self) -> Tensor: ...  # [q, p]
    @property
    def W2(self) -> Tensor: ...  # [K, q]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{WHERE}: {name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_number(name: str, value: float, dtype: torch.dtype, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{WHERE}: {name} is {value!r}; expected a number")
    rounded = torch.tensor(float(value), dtype=torch.float64, device="cpu").to(dtype).item()
    if not (0 < rounded < math.inf if positive else 0 <= rounded < math.inf):
        sign = "positive" if positive else "not negative"
        of = "" if dtype == torch.float64 else f" in {dtype}"
        raise ValueError(f"{WHERE}: {name} is {value}; expected a finite number, {sign}{of}")
    return float(value)


def check_share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{WHERE}: {name} is {value!r}; expected a number")
    if not 0 < value <= 1:
        raise ValueError(f"{WHERE}: {name} is {value}; expected a share of the samples, more than 0 and at most 1")
    return float(value)


def check_count(n: int) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise TypeError(f"{WHERE}.step: n is {n!r}; expected an integer, at least 1")
    if count < 1:
        raise ValueError(f"{WHERE}.step: n is {n}; expected at least 1")
    return count


def check_squares(x: Tensor) -> None:
    """Refuses samples whose squares overflow: where A is trained, ‖g‖² has ‖x_n‖² as a factor."""
    most = math.sqrt(torch.finfo(torch.float64).max / (4 * x.shape[1]))
    low, high = (bound.item() for bound in x.aminmax())
    if max(-low, high) > most:
        raise ValueError(
            f"{WHERE}: x spans [{low:.3g}, {high:.3g}]; expected no more than {most:.3g} where A is trained, for the "
            "squares of a sample to add up: rescale x"
        )


def check_model(model: LinearMinMaxLike) -> Weights:
    missing = [name for name in ("A", "W1", "W2") if not isinstance(getattr(model, name, None), Tensor)]
    if missing:
        raise TypeError(
            f"{WHERE}: {type(model).__name__} has no tensor {', '.join(missing)}; expected A [p, d], W1 [q, p] and "
            "W2 [K, q], as in tropigrad.nn.LinearMinMax"
        )
    return Weights(model.A, model.W1, model.W2)


def check_weights(model: LinearMinMaxLike) -> Weights:
    a, w1, w2 = weights = check_model(model)
    shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in zip(("A", "W1", "W2"), weights, strict=True))
    fits = a.dim() == w1.dim() == w2.dim() == 2 and w1.shape[1] == a.shape[0] and w2.shape[1] == w1.shape[0]
    if not fits or min(*a.shape, *w1.shape) < 1 or len(w2) < 2:
        raise ValueError(f"{WHERE}: the model has {shapes}; expected A [p, d], W1 [q, p] and W2 [K, q] with K ≥ 2")
    if not a.dtype == w1.dtype == w2.dtype or not a.device == w1.device == w2.device or not a.is_floating_point():
        kinds = ", ".join(f"{w.dtype} on {w.device}" for w in weights)
        raise TypeError(f"{WHERE}: the weights are {kinds}; expected one floating dtype and one device")
    if a.is_meta:
        raise ValueError(f"{WHERE}: the weights are on meta, which holds no values; expected them on a device")
    for name, w in zip(("A", "W1", "W2"), weights, strict=True):
        if not w.is_contiguous():
            raise ValueError(f"{WHERE}: {name} has strides {w.stride()}; expected it contiguous: .contiguous()")
        if not w.isfinite().all():
            raise ValueError(f"{WHERE}: {name} holds NaN or infinite values; expected finite weights")
    return weights


def check_samples(x_name: str, y_name: str, x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    """The labels as int32, or an error that names what does not fit."""
    d, K = weights.a.shape[1], len(weights.w2)
    for name, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            what = value.layout if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(f"{WHERE}: {name} is {what}; expected a dense torch.Tensor")
    if x.dim() != 2 or x.shape[1] != d or len(x) == 0:
        raise ValueError(f"{WHERE}: {x_name} has shape {tuple(x.shape)}; expected [N, {d}] with N ≥ 1")
    if x.dtype != weights.a.dtype or x.device != weights.a.device:
        raise TypeError(
            f"{WHERE}: {x_name} is {x.dtype} on {x.device}; expected {weights.a.dtype} on {weights.a.device}, as the "
            "weights"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(f"{WHERE}: {y_name} has shape {tuple(y.shape)}; expected [{len(x)}], one label for each row")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{WHERE}: {y_name} is {y.dtype}; expected integer class labels")
    if y.min() < 0 or y.max() >= K:
        raise ValueError(f"{WHERE}: {y_name} spans [{y.min()}, {y.max()}]; expected labels in [0, {K - 1}]")
    if not x.isfinite().all():
        row = int((~x.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(
            f"{WHERE}: {x_name} holds NaN or infinite values, first in row {row}; expected finite features"
        )
    return y.to(x.device, torch.int32, copy=True)
