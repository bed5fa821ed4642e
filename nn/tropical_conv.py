"""Max-plus and min-plus convolutions:  y[b, o, p, q] = max_{c, i, j} x[b, c, p + i, q + j] + w[o, c, i, j],  or min.

Grey dilation and erosion by learned structuring functions (Angulo, "Some open questions on morphological operators and
representations in the deep learning era", 2021). With groups = in_channels each channel has its own, as in morphology.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels import tropical_conv2d
from .arguments import check_size, pair


class _TropicalConv2d(nn.Module):
    semiring: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(layer, "kernel_size", kernel_size), pair(layer, "stride", stride)
        self.padding, self.dilation = pair(layer, "padding", padding), pair(layer, "dilation", dilation)
        for name in ("in_channels", "out_channels", "groups"):
            check_size(layer, name, getattr(self, name))
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{layer}: {name} is {getattr(self, name)}; expected at least 1")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{type(self).__name__}: groups is {groups}; expected a divisor of in_channels {in_channels} "
                f"and out_channels {out_channels}"
            )
        windows = zip(self.padding, self.dilation, self.kernel_size, strict=True)
        if not all(0 <= pad <= d * (k - 1) for pad, d, k in windows):
            raise ValueError(
                f"{type(self).__name__}: padding is {padding}; expected at least 0 and less than the window, "
                f"of kernel_size {self.kernel_size} and dilation {self.dilation}"
            )
        shape = out_channels, in_channels // groups, *self.kernel_size
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w ~ U(−1, 1), as in MaxPlusLinear: as wide as inputs of unit scale, so that each tap can win each output."""
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return tropical_conv2d(
            x,
            self.weight,
            semiring=self.semiring,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        unusual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        return sizes + "".join(f", {name}={getattr(self, name)}" for name, usual in unusual.items()
                              if getattr(self, name) != usual)  # fmt: skip


class MaxPlusConv2d(_TropicalConv2d):
    """y[b, o, p, q] = max_{c, i, j} x[b, c, p·s − pad + i·d, q·s − pad + j·d] + w[o, c, i, j], a dilation.

    A tap in the padding is no candidate. At ties the lowest (c, i, j) takes the whole gradient; NaN propagates as in
    torch.max.

    Args:
        in_channels, out_channels: C and O, at least 1.
        kernel_size, stride, padding, dilation: (kh, kw), s, pad, d: an int or a pair for rows and columns. The padding
            is narrower than the window, of d·(kh − 1) + 1 rows.
        groups: a divisor of C and O; filters see the C / groups channels of their own group.
        device, dtype: of the weight [O, C / groups, kh, kw]; a floating point dtype.

    Shapes:
        x [B, C, H, W] or [C, H, W], in the dtype of the weight → y [B, O, P, Q] or [O, P, Q],
        P = ⌊(H + 2 pad − d·(kh − 1) − 1) / s⌋ + 1.

    Raises:
        ValueError: a size is out of its range; x does not have C channels, or is smaller than the window.
    """

    semiring = "max_plus"


class MinPlusConv2d(_TropicalConv2d):
    """The same with min, an erosion; all else as in MaxPlusConv2d."""

    semiring = "min_plus"
