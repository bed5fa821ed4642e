"""torch.nn.Linear and torch.nn.Conv2d for inputs of ±1, of which a bit an element is kept for the weight gradient.

    y = x Wᵀ + b:    dW = dyᵀ x needs x,    dx = dy W does not

torch keeps x in 32 bits an element, which is most of what a network of sign activations keeps for its backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.packed_layers import packed_conv2d, packed_linear
from .tracing import whole

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class PackedLinear(nn.Linear):
    """nn.Linear for inputs of −1 and 1: its arguments, parameters and state_dict, its value to the bit.

    For the weight gradient a bit of each element of x is kept, in place of x, wherever a weight gradient is recorded.
    Elsewhere (eval under no_grad, a frozen weight, torch.export) the layer is nn.Linear, and looks at nothing.

    Shapes:
        x [..., I], in the dtype of the weight or under autocast → y [..., O].

    The weight gradient is summed a few samples at a time, so it agrees with nn.Linear's within rounding; 16 bits are
    summed in float32. NaN in x passes to y, and makes the weight gradient NaN, as no bit holds it. On a GPU other
    values than ±1 do so too, since looking for them would wait. Differentiable once, in reverse mode.

    Raises:
        ValueError: x holds other values than ±1 (and NaN): on the CPU, and on a GPU inside
            torch.autograd.detect_anomaly().
        NotImplementedError: a second derivative, or forward mode.
    """

    def forward(self, input: Tensor) -> Tensor:
        if (traced := whole(self, input)) is not None:
            return traced
        if not _records(self.weight):
            return super().forward(input)
        x, weight, bias = _under_autocast(input, self.weight, self.bias)
        return packed_linear(x, weight, bias, True)[0]


class PackedConv2d(nn.Conv2d):
    """nn.Conv2d for inputs of −1 and 1: its arguments, parameters and state_dict, its value to the bit.

    For the weight gradient a bit of each element of x is kept, in place of x; all else is as in `PackedLinear`. An x in
    channels_last is packed as it lies. Zeros of the padding belong to the convolution, and are no part of x.

    Shapes:
        x [N, C, H, W] or [C, H, W], in the dtype of the weight or under autocast → y [N, O, P, Q] or [O, P, Q].

    Raises:
        ValueError: x holds other values than ±1 (and NaN): on the CPU, and on a GPU inside
            torch.autograd.detect_anomaly().
        NotImplementedError: a second derivative, or forward mode.
    """

    def forward(self, input: Tensor) -> Tensor:
        if (traced := whole(self, input)) is not None:
            return traced
        packs = _records(self.weight)
        if not packs and not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        if torch.compiler.is_exporting() or input.dim() not in (3, 4):
            return super().forward(input)
        x, weight, bias = _under_autocast(input, self.weight, self.bias)
        x = x.unsqueeze(0) if input.dim() == 3 else x
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        padding, margins = self._paddings()
        options = self.stride, padding, self.dilation, self.groups, _MODES[self.padding_mode], margins
        y = packed_conv2d(x, weight, bias, *options, channels_last, packs)[0]
        return y.squeeze(0) if input.dim() == 3 else y

    def _paddings(self) -> tuple[list[int], list[int]]:
        """The convolution's own padding of rows and columns, and (left, right, above, below) before it."""
        left, right, above, below = (int(n) for n in self._reversed_padding_repeated_twice)
        if self.padding_mode != "zeros":
            return [0, 0], [left, right, above, below]
        return [above, left], [0, right - left, 0, below - above]  # "same" of an even kernel pads one side more


def _records(weight: Tensor) -> bool:
    """Whether a gradient of the weight is recorded. An exported program is made of torch's own layers."""
    return weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()


def _under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors as autocast hands them to torch's layers."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors
    )
