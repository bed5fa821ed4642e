"""The model and the data as they come: what is read from them, and what is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .problem import HiddenLayer, Problem

WHERE = "FeasibleTargetPropagation"
_EXPECTED = "expected nn.Sequential(Linear, HardThreshold, Linear, HardThreshold, …, Linear) with 1 to 3 thresholds"


@dataclass(frozen=True, eq=False)
class Layers:
    """The Linear layers of a model and the levels between them."""

    names: tuple[str, ...]
    linears: tuple[nn.Linear, ...]
    thresholds: tuple[nn.Module, ...]
    levels: tuple[tuple[float, float], ...]
    flatten: nn.Flatten | None

    @property
    def dtype(self) -> torch.dtype:
        return self.linears[0].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.linears[0].weight.device

    @property
    def hidden(self) -> tuple[HiddenLayer, ...]:
        pairs = zip(self.linears, self.levels, strict=False)
        return tuple(HiddenLayer(linear.out_features, linear.bias is not None, *levels) for linear, levels in pairs)


def read_layers(model: Any) -> Layers:
    """The layers of a Sequential.

    Raises:
        TypeError: the model is no Sequential, or a module in it is none of those expected.
        ValueError: they do not alternate, do not fit each other, are used twice, or lie on different devices.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"{WHERE}: model is a {type(model).__name__}; {_EXPECTED}")
    modules = list(_flat(model))
    flatten = modules[0][1] if modules and isinstance(modules[0][1], nn.Flatten) else None
    if flatten is not None:
        del modules[0]
        if (flatten.start_dim, flatten.end_dim) != (1, -1):
            raise ValueError(f"{WHERE}: the model begins with {flatten}; expected nn.Flatten() of all but the first")
    names, linears, thresholds, levels = [], [], [], []
    for place, (name, module) in enumerate(modules):
        if place % 2:
            levels.append(_levels(name, module))
            thresholds.append(module)
        elif isinstance(module, nn.Linear):
            names.append(name)
            linears.append(module)
        else:
            raise TypeError(f"{WHERE}: module {name} is {_named(module)} where a Linear stands; {_EXPECTED}")
    if len(linears) == len(thresholds):
        raise ValueError(
            f"{WHERE}: the model ends with {_named(modules[-1][1]) if modules else 'nothing'}; {_EXPECTED}"
        )
    if not 1 <= len(thresholds) <= 3:
        raise ValueError(f"{WHERE}: the model has {len(thresholds)} hidden layers; {_EXPECTED}")
    for below, above, name in zip(linears, linears[1:], names[1:], strict=False):
        if below.out_features != above.in_features:
            raise ValueError(
                f"{WHERE}: module {name} takes {above.in_features} features and the layer below gives "
                f"{below.out_features}; expected equal numbers"
            )
    if len({id(linear.weight) for linear in linears}) < len(linears):
        raise ValueError(f"{WHERE}: two layers share one weight; expected a weight of its own for each")
    kinds = {(linear.weight.dtype, linear.weight.device) for linear in linears}
    if len(kinds) > 1:
        raise ValueError(f"{WHERE}: the layers' weights are {kinds}; expected one dtype on one device")
    if not linears[0].weight.is_floating_point() or linears[0].weight.is_meta:
        raise ValueError(f"{WHERE}: the weights are {kinds}; expected floating-point weights that hold values")
    return Layers(tuple(names), tuple(linears), tuple(thresholds), tuple(levels), flatten)


def _flat(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children() if _is_distinct(model) else enumerate(model):
        if isinstance(module, nn.Sequential):
            yield from _flat(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _is_distinct(model: nn.Sequential) -> bool:
    """Whether named_children, which leaves out what comes twice, lists all."""
    return len({id(module) for module in model}) == len(model)


def _levels(name: str, module: nn.Module) -> tuple[float, float]:
    levels = getattr(module, "levels", None)
    if levels is None:
        raise TypeError(f"{WHERE}: module {name} is {_named(module)} where a hard threshold stands; {_EXPECTED}")
    try:
        values = tuple(float(level) for level in levels)
    except TypeError:
        values = ()
    if len(values) != 2 or values[0] == values[1] or not all(map(math.isfinite, values)):
        raise ValueError(
            f"{WHERE}: module {name}, {_named(module)}, has levels {levels}; expected two different numbers (below, "
            "above), as of HardThreshold"
        )
    if getattr(module, "pool", None) is not None:
        raise ValueError(f"{WHERE}: module {name}, {_named(module)}, pools; expected a threshold alone")
    return values[0], values[1]


def _named(module: nn.Module) -> str:
    return repr(module).splitlines()[0]


def read_problem(layers: Layers, x: Any, y: Any) -> tuple[Tensor, Problem]:
    """The rows as the model will see them, on its device and in its dtype, and the problem they make with their labels.

    Raises:
        TypeError: x holds no real numbers, or y no integers.
        ValueError: shapes do not fit, there are no rows, a row is not finite, a label is out of range or alone.
    """
    values = x.detach() if isinstance(x, Tensor) else np.asarray(x)
    if values.dtype.is_complex if isinstance(values, Tensor) else values.dtype.kind not in "fiub":
        raise TypeError(f"{WHERE}: x is {values.dtype}; expected real numbers")
    rows = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    features = layers.linears[0].in_features
    flat = rows.flatten(1) if layers.flatten is not None and rows.dim() > 1 else rows
    if flat.dim() != 2 or flat.shape[1] != features:
        raise ValueError(
            f"{WHERE}: x has shape {tuple(rows.shape)}; expected [N, {features}], the first layer's in_features"
        )
    if not len(flat):
        raise ValueError(f"{WHERE}: x has shape {tuple(rows.shape)}, no rows; expected at least two of two classes")
    rows, flat = rows.to(layers.device, layers.dtype), flat.to(layers.dtype)
    unfit = (~flat.isfinite().all(dim=1)).nonzero()
    if len(unfit):
        raise ValueError(
            f"{WHERE}: row {int(unfit[0])} of x is not finite in {layers.dtype} ({len(unfit)} such row(s)); expected "
            "finite features: leave those rows out or fill them in"
        )
    outputs = layers.linears[-1].out_features
    labels = _read_labels(y, len(rows), outputs)
    problem = Problem(
        flat.double().cpu().numpy() + 0.0,  # −0 becomes 0: equal rows have equal bits
        labels,
        max(2, outputs),
        outputs == 1,
        layers.hidden,
        layers.linears[-1].bias is not None,
    )
    return rows, problem


def _read_labels(y: Any, size: int, outputs: int) -> np.ndarray:
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.dtype.kind not in "iub":
        raise TypeError(f"{WHERE}: y is {labels.dtype}; expected integer labels: convert them, y.long() of a tensor")
    if labels.shape != (size,):
        raise ValueError(f"{WHERE}: y has shape {labels.shape} and x {size} row(s); expected y [{size}]")
    labels = labels.astype(np.int64)
    values = np.unique(labels)
    if outputs == 1:
        if not (set(values) <= {0, 1} or set(values) <= {-1, 1}):
            raise ValueError(
                f"{WHERE}: y holds {_listed(values)} and the model has one output; expected labels of 0 and 1, or of "
                "-1 and 1; for more classes end the model with one output a class"
            )
        labels = (labels > 0).astype(np.int64)
    elif values[0] < 0 or values[-1] >= outputs:
        row = int(np.flatnonzero((labels < 0) | (labels >= outputs))[0])
        raise ValueError(
            f"{WHERE}: row {row} of y is {labels[row]} and the model has {outputs} outputs; expected labels from 0 to "
            f"{outputs - 1}"
        )
    if len(values) < 2:
        raise ValueError(f"{WHERE}: all labels of y are {values[0]}; expected rows of at least two classes")
    return labels


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")


def check_integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{WHERE}: {name} is {value!r}; expected an integer, at least {least}")
    if value < least:
        raise ValueError(f"{WHERE}: {name} is {value}; expected at least {least}")
    return int(value)


def check_tolerance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{WHERE}: tol is {value!r}; expected a number")
    if not 0 < float(value) < 1:
        raise ValueError(f"{WHERE}: tol is {value}; expected a number between 0 and 1, 1e-9 for instance")
    return float(value)
