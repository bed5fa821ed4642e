"""Shared by specs of ops on a network's weights: misuses that `mathematics.network` refuses, and weights that alias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .misuses import Misuse, misuse_of

# of three layers, or of fewer, the weights that share memory with each other
ALIASED: Mapping[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "one-weight": lambda w: (w, w, w),
    "transposed": lambda w: (w, w.mT, w),
    "rows": lambda w: (w, w[1:4]),
}


def network_misuses(op: Callable[..., Any], device: torch.device) -> list[Misuse]:
    """Weights, sizes, strides and paddings that are no network's. op takes the weights, as a list, and options."""
    w = torch.zeros(3, 2, device=device), torch.zeros(4, 3, device=device)
    image, flat = torch.zeros(4, 2, 3, 3, device=device), torch.zeros(5, 4, device=device)
    bad, of_size = misuse_of(op), misuse_of(op, input_size=3)
    mixed = r"weights\[1\] is torch.float64 and weights\[0\] is torch.float32; expected one dtype"
    chain = r"weights\[1\] has shape \(3, 2\); expected \(out, 3\), to follow weights\[0\]'s \(3, 2\)"
    strides = "stride has 2 entries; expected an integer, or one entry for each of the 1"
    channels = r"weights\[1\] has shape \(4, 2, 3, 3\); expected \(out, 4, kh, kw\)"
    follows = r"weights\[1\] .* of a convolution follows a Linear layer"
    return [
        bad("one-tensor", TypeError, "weights is a Tensor; expected a list of weights", w[0]),
        bad("no-weights", ValueError, "weights is empty; expected one weight or more", []),
        bad("integers", TypeError, r"weights\[0\] is torch.int32; expected float64", [w[0].int()]),
        bad("mixed", TypeError, mixed, [w[0], w[1].double()]),
        bad("rank", ValueError, r"weights\[0\] has shape \(2,\); expected \(out, in\)", [w[0][0], w[1]]),
        bad("chain", ValueError, chain, [w[0], w[0]]),
        bad("no-size", ValueError, "input_size is None; expected the", [image]),
        bad("window", ValueError, "a window of 3 × 3 over 2 × 2 nodes", [image], input_size=2),
        bad("channels", ValueError, channels, [image, image], input_size=9),
        bad(
            "flattened",
            ValueError,
            r"weights\[1\] has shape \(5, 4\); expected \(out, 36\)",
            [image, flat],
            input_size=5,
        ),
        bad("convolution-after-linear", ValueError, follows, [w[0], image]),
        of_size("size-of-linear", ValueError, "input_size is 3; expected None", w),
        of_size("stride", ValueError, "stride is 0; expected integers, at least 1", [image], stride=0),
        of_size("strides", ValueError, strides, [image], stride=(1, 1)),
    ]
