"""The max-plus networks that a training run makes by name, and makes again from the model that it left."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ....nn import LinearMinMax, MaxPlusMLP, ResidualMaxPlus

Network = Literal["linear-min-max", "max-plus-mlp", "residual"]
LINEAR_MIN_MAX: Network = "linear-min-max"
NETWORKS: tuple[Network, ...] = (LINEAR_MIN_MAX, "max-plus-mlp", "residual")
TEMPERATURE, RATE = 1.0, 3e-3  # of networks whose layers are linear, in part
_BLOCKS = 2  # of the residual network


def sizes_of(name: Network, hidden: int, classes: int) -> tuple[int, ...]:
    """Units of the hidden layers: behind the first a half and a quarter of them, at least one a class."""
    if name == LINEAR_MIN_MAX:
        return (hidden,)
    half, quarter = max(classes, hidden // 2), max(classes, hidden // 4)
    return (hidden, half, quarter) if name == "max-plus-mlp" else (hidden, quarter)


def layered(
    name: Network, in_features: int, hidden: int, classes: int, seed: int = 0, *, sparse: bool = False
) -> nn.Module:
    """A network at its random start, drawn by seed.

    "max-plus-mlp" is the MaxPlusMLP with the sizes of `sizes_of`. "residual" is a MaxPlusMLP from x to the last of
    them, residual blocks of that width, and a MaxPlusMLP to the scores. "linear-min-max" starts from data, by
    `methods.quick_start`; here from random weights.
    """
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}; expected one of {', '.join(NETWORKS)}")
    sizes = sizes_of(name, hidden, classes)
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == LINEAR_MIN_MAX:
            return LinearMinMax(in_features, hidden, classes, sparse=sparse, device=cpu)
        if name == "max-plus-mlp":
            return MaxPlusMLP(in_features, sizes, classes, sparse=sparse, device=cpu)
        last = sizes[-1]
        blocks = (ResidualMaxPlus(last, sparse=sparse, device=cpu) for _ in range(_BLOCKS))
        first = MaxPlusMLP(in_features, hidden, last, sparse=sparse, device=cpu)
        return nn.Sequential(first, *blocks, MaxPlusMLP(last, last, classes, sparse=sparse, device=cpu))


def load_model(path: str | Path) -> nn.Module:
    """The network that `tropigrad train maxplus` left in a model.pt, on the CPU.

    It takes features, which are the pixels unless the run had --features.

    Raises:
        OSError: there is no such file.
        ValueError: the file is not a model of that command.
    """
    saved = torch.load(path, weights_only=True)
    config = saved.get("config", {}) if isinstance(saved, dict) else {}
    if missing := [name for name in ("in_features", "hidden", "classes") if name not in config]:
        raise ValueError(
            f"{path}: a model without {', '.join(missing)}; expected a model.pt of `tropigrad train maxplus`"
        )
    name = config.get("network", LINEAR_MIN_MAX)
    sizes = {key: config[key] for key in ("in_features", "hidden", "classes")}
    model = layered(name, **sizes, sparse=config.get("sparse", False))
    model.load_state_dict(saved["state_dict"])
    return model
