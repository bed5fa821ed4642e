"""The base of optimizers in the space of path values: a chain moves as one or not at all, others take plain steps."""

from __future__ import annotations

import logging
import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .basis_paths import BasisPaths
from .chain import Chain

_log = logging.getLogger(__name__)


class PathOptimizer(torch.optim.Optimizer):
    """An optimizer of the chains of BasisPaths, the first param group, and of what takes plain SGD, those behind it.

    No step writes a number that is not finite: what would become one keeps its value. `kept` counts the weights that
    did, over all steps, and a warning is logged whenever their number has doubled; on a GPU it is not, for that would
    wait for it.

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
        # how many R were held, how many of those were not positive, how many weights kept their values
        self._events = torch.zeros(3, dtype=torch.int64, device=paths.chains[0].layers[0].weight.device)
        self._warned = {"flips": 0, "kept": 0}
        self._counted = [0, 0, 0]  # the same as far as the host knows: on a CPU all of it

    @property
    def kept(self) -> int:
        """How many times a weight kept its value, for the new one would not be finite. Waits for the device."""
        return int(self._events[2])

    def __getstate__(self) -> dict[str, Any]:
        own = ("paths", "_events", "_warned", "_counted")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

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
        with torch.set_grad_enabled(False):  # in a third of no_grad's time
            for chain, gradients in self.paths.moving(type(self).__name__):
                self._move(chain, gradients, self.param_groups[0])
            for group in self.param_groups[1:]:
                parameters = [p for p in group["params"] if p.grad is not None]
                if parameters:
                    self._move_plainly(parameters, [p.grad for p in parameters], group)
            self._warn()
        return loss

    def _settle(self, tensors: Sequence[Tensor], values: Sequence[Tensor], counted: int) -> None:
        """tensors ← values, if those are finite, all of them; else none, and `counted` more weights kept theirs."""
        if tensors[0].is_cpu and not torch.compiler.is_compiling():
            if all(math.isfinite(x.sum()) or bool(x.isfinite().all()) for x in values):
                for x, value in zip(tensors, values, strict=True):
                    x.copy_(value)
            else:
                self._events[2] += counted
                self._counted = self._events.tolist()
            return
        finite = torch.stack([x.isfinite().all() for x in values]).all()
        for x, value in zip(tensors, values, strict=True):
            x.copy_(torch.where(finite, value, x))
        self._events[2] += counted * (~finite).to(self._events)

    def _warn(self) -> None:
        if not self._events.is_cpu or torch.compiler.is_compiling():
            return
        _, flips, kept = self._counted
        if not (flips or kept):
            return
        name = type(self).__name__
        if self._doubled("flips", flips):
            _log.warning(
                "%s: a step would have changed the sign of a skeleton's path value, %d times by now", name, flips
            )
        if self._doubled("kept", kept):
            _log.warning(
                "%s: %d weights by now have kept their values, as the new ones were not finite; gradients are not "
                "finite, or lr %g is too large",
                *(name, kept, self.param_groups[0]["lr"]),
            )

    def _doubled(self, name: str, count: int) -> bool:
        if not count or count < 2 * self._warned[name]:
            return False
        self._warned[name] = count
        return True

    @abstractmethod
    def _move(self, chain: Chain, gradients: list[Tensor], group: dict[str, Any]) -> None:
        """The step of a chain, all of whose parameters have gradients, by the settings of the group."""

    @abstractmethod
    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Plain SGD."""


def check_numbers(optimizer: str, **settings: Any) -> None:
    """
    Raises:
        TypeError: a setting is no number; the rate lr may be a tensor.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real | Tensor if name == "lr" else numbers.Real):
            raise TypeError(f"{optimizer}: {name} is {value!r}; expected a number")
