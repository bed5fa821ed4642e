"""What optimizers in the space of path values share: chains move together or not at all, the rest takes plain steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .basis_paths import BasisPaths, Chain


class PathOptimizer(torch.optim.Optimizer):
    """An optimizer of the chains of BasisPaths, the first param group, and of what takes plain SGD, those behind it.

    Raises:
        TypeError: paths is something else.
        ValueError: paths has no chain.
    """

    def __init__(self, paths: BasisPaths, defaults: dict[str, Any]) -> None:
        name = type(self).__name__
        if not isinstance(paths, BasisPaths):
            raise TypeError(f"{name}: paths is a {type(paths).__name__}; expected BasisPaths(model)")
        if not paths.chains:
            raise ValueError(f"{name}: no hidden node can be rescaled; expected one at least:\n{paths}")
        self.paths = paths
        super().__init__(paths.param_groups(), defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "paths": self.paths}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """One step of every chain, and of the parameters that take plain SGD.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.
        Returns:
            What closure returned, else None.
        Raises:
            RuntimeError: some parameters of a chain have gradients and one has none, or one is sparse; nothing moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for chain in self.paths.moving(type(self).__name__):
            self._move(chain, self.param_groups[0])
        for group in self.param_groups[1:]:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move_plainly(parameters, [p.grad for p in parameters], group)
        return loss

    @abstractmethod
    def _move(self, chain: Chain, group: dict[str, Any]) -> None:
        """The step of a chain, all of whose parameters have gradients, by the settings of the group."""

    @abstractmethod
    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Plain SGD."""
