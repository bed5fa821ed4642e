"""The step of the code released with G-SGD, with its two rules for BatchNorm, and a step that BatchNorm cannot change.

A block is convolutions of weights W_0 … W_{L-1}, all with C outputs. Its skeleton is the edge (o, o mod in) of W_0 and
(o, o) behind it, at the centre taps. It starts at ones, and behind W_0 it stays there; in W_0 the edge into channel k
carries V_k. With g = ∂L/∂W, v = 1 in W_0 and V of the in channel behind it, and σ_k the sum of w g over the edges off
the skeleton that leave a channel k, the step without BatchNorm is GSGD's own:

    off the skeleton  m ← μ m + g / v + λ v w    w ← (w − η m / v) / R, without R in W_0
    on it, in W_0     m ← μ m + (w g − σ) / V + λ V    R = 1 − η m / V    w ← R w

The released rules know of a BatchNorm behind each convolution. With n [out, 1, kh, kw] the norms of W over the in
channels:

    released            n g takes the place of g off the skeleton, and (w g − σ) / n that of w g − σ on it
    released_noweight   the buffers are those without BatchNorm; η n takes the place of η, off and on the skeleton

So on the skeleton they differ by n², and neither is what BatchNorm asks for. Where it follows a filter w, the network
does not know ‖w‖, and the one step of first order that does not either is per_filter: w ← w − η ‖w‖² g.

Source: the formulas of Meng et al., ICLR 2019 (arXiv 1802.03713), and of the code released with it, written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BN_MODES = ("none", "released", "released_noweight")


class ReleasedGSGD(torch.optim.Optimizer):
    """The released step: `blocks` move on path values, `plain` parameters by SGD at the same rate.

    Args:
        blocks: of each the weights of its convolutions, [C, in, kh, kw] with odd kernels, the skeleton at ones.
        bn_mode: "none", "released" or "released_noweight".

    It has no bounds on R, as the released code has none.

    Raises:
        ValueError: an unknown mode, or a block that is none.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[nn.Parameter]],
        plain: Sequence[nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        bn_mode: str = "none",
    ) -> None:
        if bn_mode not in BN_MODES:
            raise ValueError(f"ReleasedGSGD: bn_mode is {bn_mode!r}; expected one of {', '.join(BN_MODES)}")
        for number, weights in enumerate(blocks):
            widths = [tuple(w.shape[:2]) for w in weights]
            C = widths[0][0]
            if len(widths) < 2 or widths[0][1] > C or widths[1:] != [(C, C)] * (len(widths) - 1):
                raise ValueError(
                    f"ReleasedGSGD: blocks[{number}] has convolutions of (out, in) {widths}; expected two or more "
                    "with equal outputs, the first with no more inputs"
                )
        groups: list[dict[str, Any]] = [*({"params": [*weights]} for weights in blocks), {"params": [*plain]}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "bn_mode": bn_mode})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        """One step of all blocks and plain parameters."""
        *blocks, plain = self.param_groups
        for block in blocks:
            self._move(block["params"], block)
        for p in plain["params"]:
            if p.grad is not None:
                m = self._velocity(p, "momentum", p.grad + plain["weight_decay"] * p, plain["momentum"])
                p.sub_(plain["lr"] * m)

    def _velocity(self, p: Tensor, name: str, slope: Tensor, momentum: float) -> Tensor:
        if not momentum:
            return slope
        state = self.state[p]
        state[name] = state[name] * momentum + slope if name in state else slope.clone()
        return state[name]

    def _move(self, weights: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        lr, momentum, decay, bn_mode = group["lr"], group["momentum"], group["weight_decay"], group["bn_mode"]
        channel = torch.arange(len(weights[0]), device=weights[0].device)
        on = [_centre(w, channel) for w in weights]
        grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
        norms = [w.norm(dim=1, keepdim=True) for w in weights]

        V = weights[0][on[0]]
        σ = torch.zeros_like(V)
        for w, g, edges in zip(weights[1:], grads[1:], on[1:], strict=True):
            through = w * g
            through[edges] = 0.0
            σ += through.sum((0, 2, 3))
        slope = (V * grads[0][on[0]] - σ) / V
        n = norms[0][channel, 0, on[0][2], on[0][3]]
        if bn_mode == "released":
            slope = slope / n
        m = self._velocity(weights[0], "run_momentum", slope + decay * V, momentum)
        R = 1 - lr * m * (n if bn_mode == "released_noweight" else 1.0) / V

        for number, (w, g, edges, norm) in enumerate(zip(weights, grads, on, norms, strict=True)):
            v = V.view(1, -1, 1, 1) if number else torch.ones_like(V).view(1, -1, 1, 1)[:, :1]
            bones = w[edges]
            slope = (norm * g if bn_mode == "released" else g) / v
            m = self._velocity(w, "momentum", slope + decay * w * v, momentum)
            rate = lr * norm if bn_mode == "released_noweight" else lr
            new = w - rate * m / v
            w.copy_(new / R.view(1, -1, 1, 1) if number else new)
            w[edges] = bones if number else bones * R


def _centre(w: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The places of the skeleton in a weight: (o, o mod in) at the centre tap."""
    tap = [torch.full_like(channel, size // 2) for size in w.shape[2:]]
    return channel, channel % w.shape[1], tap[0], tap[1]


@torch.no_grad()
def unit_skeleton_(blocks: Sequence[Sequence[nn.Parameter]]) -> None:
    """Sets the skeleton of each block to ones, the released start."""
    for weights in blocks:
        for w in weights:
            w[_centre(w, torch.arange(len(w), device=w.device))] = 1.0


class PerFilterSGD(torch.optim.Optimizer):
    """SGD whose step of a filter w = W[o] is η ‖w‖² g; `plain` parameters take plain SGD at the same rate.

    Behind a filter with a BatchNorm, the loss as a function of w is that of c w for every c > 0, so g is g / c there
    and this step is scaled by c, as the weights are.
    """

    def __init__(self, filters: Sequence[Tensor], plain: Sequence[Tensor], lr: float) -> None:
        groups: list[dict[str, Any]] = [{"params": [*filters]}, {"params": [*plain]}]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        """One step of all parameters."""
        filters, plain = self.param_groups
        for w in filters["params"]:
            if w.grad is not None:
                w.sub_(filters["lr"] * w.flatten(1).square().sum(1).view(-1, *[1] * (w.dim() - 1)) * w.grad)
        for p in plain["params"]:
            if p.grad is not None:
                p.sub_(plain["lr"] * p.grad)
