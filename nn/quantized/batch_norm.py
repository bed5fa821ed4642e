"""Batch norm and a hard threshold in one layer, which keeps one tensor for the backward where the two keep three."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ...kernels import hard_threshold
from ...kernels.hard_threshold import batch_norm_threshold
from ...kernels.runtime import memory
from ...kernels.runtime.arguments import FLOATS, listed
from ..arguments import check_size
from .options import ThresholdOptions
from .tracing import whole


class BatchNormThreshold(ThresholdOptions, _NormBase):
    """y = threshold(batch_norm(z)), or of its 2 × 2 maximum: what nn.BatchNorm2d and the threshold give after another.

    In training mode z alone is kept for the backward. In eval mode batch norm is an affine map, done in the pass of the
    threshold.

    Parameters, buffers and keys of its state are those of nn.BatchNorm2d, so that a state of either loads into the
    other. It is no subclass: nn.SyncBatchNorm.convert_sync_batchnorm leaves it as it is, and its statistics are those
    of a process's own batch; torch.optim.swa_utils.update_bn does not see it. Statistics over processes, or averaged
    weights, take nn.BatchNorm2d followed by HardThreshold.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in nn.BatchNorm2d.
        kind: "sign", "step", "staircase" or "saturated_relu".
        steps: n of a staircase, at least 2; None for other kinds.
        rule: None is "soft_hinge"; a saturated ReLU has none.
        weighted, pool: as in HardThreshold.
        save: as in HardThreshold, where it is in eval mode and its weight takes no gradient. Elsewhere z is kept.

    Shapes:
        z [N, C, ...] → y, the same; with pool=2 z [N, C, 2H, 2W] → y [N, C, H, W].

    Raises:
        TypeError, ValueError: an option is of another type, unknown, or does not fit the others; z does not have C
            channels, or in training mode has a single value of each.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kind: str = "sign",
        steps: int | None = None,
        rule: str | None = None,
        weighted: bool = True,
        save: str = "auto",
        pool: int | None = None,
    ) -> None:
        check_size(type(self).__name__, "num_features", num_features)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self._keep_options(kind, steps, rule, weighted, save, pool)

    def forward(self, z: Tensor) -> Tensor:
        if (traced := whole(self, z)) is not None:
            return traced
        self._check(z)
        wide = torch.promote_types(z.dtype, torch.float32)
        weight = self.weight if self.affine else z.new_ones(self.num_features, dtype=wide)
        bias = self.bias if self.affine else z.new_zeros(self.num_features, dtype=wide)
        options = self._options()
        if not self.training and self.running_mean is not None and self.running_var is not None:
            scale = weight * (self.running_var.to(wide) + self.eps).rsqrt()
            return hard_threshold(z, **options, scale=scale, shift=bias - self.running_mean * scale)
        if z.numel() == 0:  # has no statistics
            return hard_threshold(z, **options, scale=weight, shift=bias)
        del options["save"]
        y, mean, var = batch_norm_threshold(z, weight, bias, self.eps, **options)
        if self.training and self.track_running_stats:
            self._track(mean, var, z.numel() // self.num_features)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Lets the running statistics follow those of a batch of `count` values a channel."""
        if self.running_mean is None or self.running_var is None:
            return
        share: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the average of all batches
                share = 1 / self.num_batches_tracked.to(mean.dtype)
        for running, new in (self.running_mean, mean), (self.running_var, var * (count / (count - 1))):
            running.copy_(share * new + (1 - share) * running)

    def _check(self, z: Any) -> None:
        layer, C = type(self).__name__, self.num_features
        memory.check_dense(layer, "z", z)
        if z.dtype not in FLOATS:
            raise TypeError(f"{layer}: z is {z.dtype}; expected one of {listed(FLOATS)}")
        if z.dim() < 2 or z.shape[1] != C or (self.pool and z.dim() < 4):
            expected = f"[N, {C}, H, W]" if self.pool else f"[N, {C}, ...]"
            raise ValueError(f"{layer}: z has shape {tuple(z.shape)}; expected {expected}, of {C} channels")
        if self.training and z.numel() == C:
            raise ValueError(
                f"{layer}: z has shape {tuple(z.shape)}, one value of each channel, whose variance is 0; expected more "
                "in training mode, or .eval()"
            )

    def extra_repr(self) -> str:
        names = [name for name in ("kind", "steps", "rule") if getattr(self, name) is not None]
        return f"{super().extra_repr()}, {self._shown_options(*names)}"
