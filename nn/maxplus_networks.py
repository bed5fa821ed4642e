"""Networks of linear and max-plus layers:  y_o = max_i (a_i · x + b_i + w_oi),  one after another.

A linear layer makes units, and a max-plus layer takes for each of its outputs the best of them: a maxout whose groups
are learned. Source: Zhang, Blusseau, Velasco-Forero, Bloch, Angulo, "Max-plus operators applied to filter selection and
model pruning in neural networks", ISMM 2019. Two max-plus layers in a row are one, of the max-plus product of their
weights; so a linear layer stands between any two, as it must for more than that (Fotopoulos, Maragos, "Training deep
morphological neural networks as universal approximators", arXiv 2505.09710).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .arguments import check_positive, check_size
from .maxplus import MaxPlusLinear


class MaxPlusMLP(nn.Module):
    """Linear → MaxPlusLinear, as often as there are hidden sizes; the last max-plus layer gives the scores.

    With hidden sizes h_1, …, h_L and h_(L+1) the number of classes, block l is Linear(h_l, h_l) → MaxPlusLinear(h_l,
    h_(l+1)); the first linear layer sees x. The scores are those of a classifier: for `nn.CrossEntropyLoss`, without a
    softmax.

    Each output of a max-plus layer starts with a share of the units of its own, at weight 0, and the others at −lag:
    gradients reach all units, and a unit of another share wins only where it is better by more than the lag. From
    U(−1, 1), as MaxPlusLinear starts, one block of 128 units came to a lower accuracy on MNIST, at three rates of Adam.

    Args:
        in_features: d.  hidden: the size of the only hidden layer, or a sequence of sizes.  classes: K.
        bias: whether the linear layers have one.
        sparse: whether the gradients of the max-plus weights are sparse tensors, as in MaxPlusLinear.
        lag: how far behind a unit starts for outputs that are not its own, > 0, in the units of the linear layers'
            outputs. The wider, the nearer is the start to a maxout with fixed groups.
        device, dtype: of the parameters; a floating point dtype.

    Shapes:
        x [..., d], in the dtype of the parameters → scores [..., K].

    Raises:
        TypeError: a size that is no integer, a lag that is no number.
        ValueError: a size below 1, no hidden size; a lag that is not positive and finite; the last dimension of x is
            not d.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        classes: int,
        *,
        bias: bool = True,
        sparse: bool = False,
        lag: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = (hidden,) if isinstance(hidden, int | str) or not isinstance(hidden, Sequence) else tuple(hidden)
        if not sizes:
            raise ValueError(f"MaxPlusMLP: hidden is {hidden!r}; expected a size, or at least one of them")
        for name, size in (("in_features", in_features), *(("hidden", s) for s in sizes), ("classes", classes)):
            check_size("MaxPlusMLP", name, size)
        check_positive("MaxPlusMLP", "lag", lag)
        self.in_features = in_features
        self.classes = classes
        self.lag = lag
        layers: list[nn.Module] = []
        for inputs, units, outputs in zip((in_features, *sizes[1:]), sizes, (*sizes[1:], classes), strict=True):
            layers.append(nn.Linear(inputs, units, bias=bias, device=device, dtype=dtype))
            layers.append(MaxPlusLinear(units, outputs, device=device, dtype=dtype, sparse=sparse))
        self.layers = nn.Sequential(*layers)
        self.reset_parameters()

    @property
    def hidden(self) -> tuple[int, ...]:
        """The number of units of each linear layer."""
        return tuple(layer.out_features for layer in self.layers if isinstance(layer, nn.Linear))

    def reset_parameters(self) -> None:
        """The linear layers as torch starts them; max-plus weights 0 in an output's own share, −lag elsewhere."""
        _start(self.layers, self.lag)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"MaxPlusMLP: x has shape {tuple(x.shape)}; expected [..., {self.in_features}] (in_features)"
            )
        return self.layers(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, hidden={self.hidden}, classes={self.classes}"


class ResidualMaxPlus(nn.Module):
    """y = x + scale · MaxPlusLinear(Linear(x)), a block of a deep network, with one scale for each feature.

    The scale starts at 0, so a stack of blocks starts as the identity and trains at any depth (Bachlechner et al.,
    "ReZero is all you need", 2021). Its sign is free: a max of linear functions is convex, and a feature whose scale is
    negative gets a concave one. A max-plus layer is 1-Lipschitz in the ∞-norm, so a block with a linear weight U is
    (1 + max|scale| · ‖U‖∞)-Lipschitz. Residual connections in such networks: Fotopoulos, Maragos, arXiv 2505.09710.

    Args:
        features: d.  hidden: units of the linear layer; by default d.
        bias, sparse, lag: of the linear and of the max-plus layer, as in MaxPlusMLP.
        device, dtype: of the parameters; a floating point dtype.

    Shapes:
        x [..., d], in the dtype of the parameters → y [..., d].

    Raises:
        TypeError: a size that is no integer, a lag that is no number.
        ValueError: a size below 1; a lag that is not positive and finite; the last dimension of x is not d.
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        bias: bool = True,
        sparse: bool = False,
        lag: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = features if hidden is None else hidden
        for name, size in (("features", features), ("hidden", hidden)):
            check_size("ResidualMaxPlus", name, size)
        check_positive("ResidualMaxPlus", "lag", lag)
        self.features = features
        self.lag = lag
        self.layers = nn.Sequential(
            nn.Linear(features, hidden, bias=bias, device=device, dtype=dtype),
            MaxPlusLinear(hidden, features, device=device, dtype=dtype, sparse=sparse),
        )
        self.scale = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 0; the layers as in MaxPlusMLP."""
        _start(self.layers, self.lag)
        nn.init.zeros_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[-1] != self.features):
            raise ValueError(
                f"ResidualMaxPlus: x has shape {tuple(x.shape)}; expected [..., {self.features}] (features)"
            )
        return x + self.scale * self.layers(x)

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _start(layers: nn.Sequential, lag: float) -> None:
    for layer in layers:
        if isinstance(layer, MaxPlusLinear):
            _start_with_shares(layer, lag)
        elif isinstance(layer, nn.Linear):
            layer.reset_parameters()


@torch.no_grad()
def _start_with_shares(layer: MaxPlusLinear, lag: float) -> None:
    """Give each output inputs of its own: w_oi = 0 where o ≡ i, modulo the smaller of both sizes, else −lag."""
    outputs, inputs = layer.weight.shape
    modulus = min(outputs, inputs)
    output, unit = (torch.arange(size, device=layer.weight.device) % modulus for size in (outputs, inputs))
    layer.weight.copy_(torch.where(output[:, None] == unit, 0.0, -lag))
