"""The tropical convolution in a few lines of torch: the oracle of every kernel in this folder.

y[b, o, p, q] = ⊕_{c, i, j} x[b, c, p·s − pad + i·d, q·s − pad + j·d] + w[o, c, i, j],  ⊕ = max (dilation) or min
(erosion). c runs over the channels of o's group, and k = (c·kh + i)·kw + j numbers the taps. A tap in the padding is no
candidate. Sums are rounded or saturated as in the tropical matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..mathematics.semiring import candidates, semiring_zero

SEMIRINGS = ("max_plus", "min_plus")


class Window(NamedTuple):
    """How the window moves: one entry for rows, one for columns."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, axis: int, size: int, taps: int) -> int:
        """How many outputs an axis of `size` inputs has; below 1 where the window does not fit."""
        reach = self.dilation[axis] * (taps - 1)
        return (size + 2 * self.padding[axis] - reach - 1) // self.stride[axis] + 1

    def position(self, axis: int, output, tap):
        """The input that an output sees at a tap, integers or tensors of them; outside [0, size) in the padding."""
        return output * self.stride[axis] - self.padding[axis] + tap * self.dilation[axis]


def tropical_conv2d_ref(
    x: Tensor, weight: Tensor, window: Window, groups: int, *, semiring: str = "max_plus", nan: str = "propagate"
) -> tuple[Tensor, Tensor]:
    """The oracle: values [B, O, P, Q] and winners [B, O, P, Q] (int64 k; −1 where nothing won), differentiable.

    x: [B, C, H, W]; weight: [O, C / groups, kh, kw]. Materialises all candidates [B, groups, O / groups, K, P, Q].
    """
    (B, C, H, W), (O, _, kh, kw) = x.shape, weight.shape
    P, Q = window.outputs(0, H, kh), window.outputs(1, W, kw)
    row, column = (
        window.position(axis, torch.arange(count, device=x.device), torch.arange(taps, device=x.device).unsqueeze(-1))
        for axis, count, taps in ((0, P, kh), (1, Q, kw))
    )
    row, column = row.view(kh, 1, P, 1), column.view(1, kw, 1, Q)
    inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
    K = C // groups * kh * kw
    seen = x[:, :, row.clamp(0, max(H - 1, 0)), column.clamp(0, max(W - 1, 0))] if x.numel() else x.new_zeros(())
    seen = seen.expand(B, C, kh, kw, P, Q).reshape(B, groups, 1, K, P, Q)
    sums = candidates(seen, weight.reshape(groups, O // groups, K, 1, 1), semiring)
    zero = semiring_zero(semiring, sums.dtype)
    if K == 0:
        values = sums.new_full((B, O, P, Q), zero)
        return values, torch.full_like(values, -1, dtype=torch.int64)
    skipped = ~inside.expand(C // groups, kh, kw, P, Q).reshape(K, P, Q) | (sums.isnan() & (nan == "ignore"))
    best = (torch.amin if semiring == "min_plus" else torch.amax)(sums.detach().masked_fill(skipped, zero), 3, True)
    winners = (~skipped & ((sums == best) | sums.isnan())).int().argmax(3, True)  # the first; a NaN best equals nothing
    nothing = skipped.all(3, True)
    values = sums.gather(3, winners).masked_fill(nothing, zero)
    return values.reshape(B, O, P, Q), winners.masked_fill(nothing, -1).reshape(B, O, P, Q)
