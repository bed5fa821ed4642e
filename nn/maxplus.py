"""Max-plus and min-plus layers:  y[b, o] = max_i x[b, i] + w[o, i],  and the same with min.

A dilation and an erosion, in the words of mathematical morphology. One input decides each output, so the gradient of
an output has one entry in x and one in w, and the backward is a scatter of O(batch · out).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ..kernels import tropical_matmul
from .arguments import check_size
from .sparse_gradients import tropical_linear

fx.wrap("tropical_linear")  # one node of a traced graph


class _TropicalLinear(nn.Module):
    semiring: str

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_size(type(self).__name__, name, size)
        self.in_features = in_features
        self.out_features = out_features
        self.sparse = sparse
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w ~ U(−1, 1): as wide as inputs of unit scale, so that each input can win each output.

        Much wider, and the same few inputs win whatever x is; constant, and all outputs are equal and stay so.
        """
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        # an argument that is no tensor is a tracer's proxy, whose shape is not known
        if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}; expected [..., {self.in_features}] (in_features)"
            )
        if self.sparse:
            return tropical_linear(x, self.weight, self.semiring, type(self).__name__)
        return tropical_matmul(x.unsqueeze(-2), self.weight.T, semiring=self.semiring).squeeze(-2)

    def extra_repr(self) -> str:
        sparse = ", sparse=True" if self.sparse else ""
        return f"in_features={self.in_features}, out_features={self.out_features}{sparse}"


class MaxPlusLinear(_TropicalLinear):
    """y[b, o] = max_i x[b, i] + w[o, i], the max-plus (dilation) layer.

    At ties the lowest i takes the whole gradient; NaN propagates as in torch.max.

    Args:
        in_features, out_features: sizes I and O, at least 1.
        device, dtype: of the weight [O, I]; a floating point dtype.
        sparse: whether the gradient of the weight is a sparse tensor, as of nn.Embedding: an entry for each output
            whose gradient is not 0, uncoalesced. `optim.SparseMaxPlus`, torch.optim.SparseAdam and torch.optim.SGD
            take it. It cannot be differentiated again.

    Shapes:
        x [..., I], in the dtype of the weight → y [..., O].

    Raises:
        ValueError: the last dimension of x is not I.
    """

    semiring = "max_plus"


class MinPlusLinear(_TropicalLinear):
    """y[b, o] = min_i x[b, i] + w[o, i], the min-plus (erosion) layer; all else as in MaxPlusLinear."""

    semiring = "min_plus"
