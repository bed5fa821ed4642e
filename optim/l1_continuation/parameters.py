"""A model's parameters as a point of the path: which of them the ℓ¹ norm takes in, their copies, their norm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Parameters:
    """The trained parameters of a model, in the order of `named_parameters`.

    Args:
        penalize: whether the ℓ¹ norm takes in the parameter of a name; None: all.

    Raises:
        ValueError: no parameter is trained, or none is penalised.
        TypeError: a parameter is of no real float dtype.
    """

    def __init__(self, where: str, model: nn.Module, penalize: Callable[[str], bool] | None) -> None:
        named = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
        self.model = model
        self.names = [name for name, _ in named]
        self.parameters = [x for _, x in named]
        self.penalized = [penalize is None or bool(penalize(name)) for name in self.names]
        if not named:
            raise ValueError(f"{where}: model has no parameter that requires a gradient; expected one at least")
        if not any(self.penalized):
            raise ValueError(
                f"{where}: penalize takes none of {', '.join(self.names)}; expected one at least that the norm takes in"
            )
        for name, x in named:
            if x.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{where}: {name} is {x.dtype}; expected float32 or float64")
        devices = {x.device for x in self.parameters}
        if len(devices) > 1:
            raise ValueError(f"{where}: parameters lie on {', '.join(map(str, devices))}; expected one device")
        self.device = devices.pop()

    def copies(self) -> list[Tensor]:
        return [x.detach().clone() for x in self.parameters]

    @torch.no_grad()
    def write(self, values: list[Tensor]) -> None:
        for x, value in zip(self.parameters, values, strict=True):
            x.copy_(value)

    def penalized_values(self) -> list[Tensor]:
        return [x.detach() for x, is_penalized in zip(self.parameters, self.penalized, strict=True) if is_penalized]

    def l1(self) -> float:
        """The ℓ¹ norm of the penalised parameters, added up in float64."""
        return float(sum(x.double().abs().sum() for x in self.penalized_values()))

    def nonzeros(self) -> int:
        return int(sum(x.count_nonzero() for x in self.penalized_values()))

    def gradients(self) -> list[Tensor]:
        """The gradients, zeros where a parameter took no part."""
        return [torch.zeros_like(x) if x.grad is None else x.grad for x in self.parameters]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that the model holds, on the CPU: parameters and buffers."""
        return {name: x.detach().to("cpu", copy=True) for name, x in self.model.state_dict().items()}

    @torch.no_grad()
    def shrink(self, threshold: float) -> None:
        """The penalised parameters' soft threshold, in place."""
        for x in self.penalized_values():
            x.copy_(x.sign() * (x.abs() - threshold).relu())

    def threshold_of_share(self, share: float) -> float:
        """The t at which ‖soft(θ, t)‖₁ = share · ‖θ‖₁, exactly, from the sorted magnitudes."""
        sizes = torch.cat([x.double().abs().flatten() for x in self.penalized_values()]).sort(descending=True).values
        above = sizes.cumsum(0)  # of the i + 1 largest
        target = share * float(above[-1])
        # with the i + 1 largest left, the norm is above[i] − (i + 1) t; the next magnitude bounds t from below
        count = torch.arange(1, len(sizes) + 1, dtype=torch.float64, device=sizes.device)
        smallest = torch.cat([sizes[1:], sizes.new_zeros(1)])
        norms = above - count * smallest
        at = int((norms >= target).nonzero()[0])
        return float((above[at] - target) / count[at])

    def fingerprint(self) -> str:
        """A hash of names, shapes and dtypes of all that the model holds, and of what is penalised."""
        facts = [(name, tuple(x.shape), str(x.dtype)) for name, x in self.model.state_dict().items()]
        return hashlib.sha256(repr((facts, self.names, self.penalized)).encode()).hexdigest()
