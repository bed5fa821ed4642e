"""The baseline: a sign whose backward is the soft hinge, operator for operator as the paper's released code has it.

It computes what hard_threshold(z) does, but of NaN, in 23 passes over memory, each with a tensor of its own. Written
anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....nn import HardThreshold

SCALE_IN, SCALE_OUT = 1.0, 1.0  # of the tanh: the released code multiplies by both


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(z)
        # 0 becomes −1
        return torch.sign(z).clamp(min=0) * 2 - 1

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        target = torch.sign(-dy)
        loss = SCALE_OUT * torch.tanh(-(z * target).float() * SCALE_IN) + 1
        height = loss - 1
        samples = len(dy)
        dz = (1 - height * height) * SCALE_IN * SCALE_OUT * -target / samples
        return dz * samples * dy.abs()


def eager_sign(z: Tensor) -> Tensor:
    return _Sign.apply(z)  # pyright: ignore[reportReturnType]


class EagerSign(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return eager_sign(z)


def eager_port(model: nn.Module) -> nn.Module:
    """The model with EagerSign in the place of each sign threshold; its weights are the same tensors.

    Raises:
        ValueError: a threshold of it is none that the port computes.
    """
    for name, module in model.named_children():
        if isinstance(module, HardThreshold):
            if (module.kind, module.rule, module.weighted, module.pool) != ("sign", "soft_hinge", True, None):
                raise ValueError(f"eager_port: {name} is {module}; expected a sign with soft_hinge, and no pool")
            setattr(model, name, EagerSign())
        else:
            eager_port(module)
    return model
