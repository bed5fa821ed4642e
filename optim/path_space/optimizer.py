"""The base of optimizers in the space of path values: a chain moves as one or not at all, others take plain steps."""

from __future__ import annotations

import logging
import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .basis_paths import BasisPaths
from .chain import Chain

_log = logging.getLogger(__name__)


class PathOptimizer(torch.optim.Optimizer):
    """An optimizer of the chains of BasisPaths, the first param groups, and of what takes plain SGD, those behind them.

    Args:
        defaults: the settings of the optimizer.
        groups: param groups of chains with settings of their own, [{"chains": (0, 2), "lr": 0.01}, …], by the numbers
            that print(paths) gives chains. The chains that none of them names are the first group, where there are
            any; then come these groups, and last the plain parameters.
        maximize: the loss is to grow: the step is that on the negated gradients.
        foreach, fused: taken for the sake of torch's spelling, and without effect: a step is one call a chain, on
            tensors of every layer, as fast as there is on the device. Not both, as in torch.
        capturable: likewise. On a GPU no step waits for the host, so a graph may capture it, after a first step outside
            that makes the momenta; a learning rate that is to change between replays is a tensor there.
        differentiable: refused.

    `add_param_group` adds parameters that take plain SGD; chains are grouped here alone.

    No step writes a number that is not finite: what would become one keeps its value. `kept` counts the weights that
    did, over all steps, and a warning is logged whenever their number has doubled; on a GPU it is not, for that would
    wait for it.

    Raises:
        TypeError: paths is something else; a setting has the wrong type, or is unknown.
        ValueError: paths has no chain; a chain is in two groups; differentiable, or both of foreach and fused.
    """

    def __init__(
        self,
        paths: BasisPaths,
        settings: dict[str, Any],
        groups: Sequence[Mapping[str, Any]] | None,
        *,
        maximize: bool,
        foreach: bool | None,
        capturable: bool,
        differentiable: bool,
        fused: bool | None,
    ) -> None:
        name = type(self).__name__
        habits = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        habits |= {"differentiable": differentiable, "fused": fused}
        _check_habits(name, **habits)
        self._check(settings)
        if not isinstance(paths, BasisPaths):
            raise TypeError(f"{name}: paths is a {type(paths).__name__}; expected BasisPaths(model)")
        if not paths.chains:
            raise ValueError(f"{name}: no hidden node can be rescaled; expected one at least:\n{paths}")
        self.paths = paths
        self._chains: list[tuple[int, ...]] = []  # of each param group; none behind those
        given = self._grouped(groups or (), {*settings, *habits})
        super().__init__([*given, *paths.param_groups()[1:]], settings | habits)
        # how many R were held, how many of those were not positive, how many weights kept their values
        self._events = torch.zeros(3, dtype=torch.int64, device=paths.chains[0].layers[0].weight.device)
        self._warned = {"flips": 0, "kept": 0}
        self._counted = [0, 0, 0]  # the same as far as the host knows: on a CPU all of it

    @property
    def kept(self) -> int:
        """How many times a weight kept its value, for the new one would not be finite. Waits for the device."""
        return int(self._events[2])

    def __getstate__(self) -> dict[str, Any]:
        own = ("paths", "_chains", "_events", "_warned", "_counted")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state saved by a version without them
            for name, value in _HABITS.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters that take plain SGD, with the optimizer's settings where the group has none of its own.

        Raises:
            ValueError: it names chains, which are grouped where the optimizer is made; or a parameter that is in a
                group already.
        """
        if isinstance(param_group, dict) and "chains" in param_group:
            raise ValueError(
                f"{type(self).__name__}: add_param_group got chains; expected parameters, which take plain SGD: chains "
                "are grouped where the optimizer is made, by groups=[{'chains': …}]"
            )
        super().add_param_group(param_group)

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
                group = self.param_groups[self._place_of(chain)[0] if len(self._chains) > 1 else 0]
                self._move(chain, _uphill(gradients) if group["maximize"] else gradients, group)
            for group in self.param_groups[len(self._chains) :]:
                parameters = [p for p in group["params"] if p.grad is not None]
                if parameters:
                    gradients = [p.grad for p in parameters]
                    self._move_plainly(parameters, _uphill(gradients) if group["maximize"] else gradients, group)
            self._warn()
        return loss

    def _place_of(self, chain: Chain) -> tuple[int, int]:
        """The number of a chain's param group, and the chain's place in it."""
        number = next(number for number, other in enumerate(self.paths.chains) if other is chain)
        return next((at, chains.index(number)) for at, chains in enumerate(self._chains) if number in chains)

    def _grouped(self, groups: Sequence[Mapping[str, Any]], known: set[str]) -> list[dict[str, Any]]:
        """The param groups of chains, and `_chains`, from those that the caller asked for."""
        name, count = type(self).__name__, len(self.paths.chains)
        free, found = [*range(count)], []
        for at, group in enumerate(groups):
            if not isinstance(group, Mapping) or "chains" not in group:
                raise TypeError(
                    f"{name}: groups[{at}] is {group!r}; expected a dict with 'chains', numbers, and settings"
                )
            if unknown := {*group} - known - {"chains"}:
                raise TypeError(
                    f"{name}: groups[{at}] sets {min(unknown)!r}; expected some of {', '.join(sorted(known))}"
                )
            chains = group["chains"]
            chains = (chains,) if isinstance(chains, int) else chains
            if not isinstance(chains, Sequence) or not chains:
                raise TypeError(f"{name}: groups[{at}] has chains {chains!r}; expected a chain's number, or several")
            for number in chains:
                if number not in range(count):
                    raise ValueError(f"{name}: groups[{at}] names chain {number!r}; expected 0 to {count - 1}")
                if number not in free:
                    raise ValueError(f"{name}: groups[{at}] names chain {number}, which is in a group already")
                free.remove(number)
            settings = {key: value for key, value in group.items() if key != "chains"}
            self._check({key: value for key, value in settings.items() if key not in _HABITS})
            _check_habits(name, **{key: value for key, value in settings.items() if key in _HABITS})
            found.append((tuple(chains), settings))
        if free:
            found.insert(0, (tuple(free), {}))
        self._chains = [chains for chains, _ in found]
        members = [[p for number in chains for p in self.paths.chains[number].parameters] for chains in self._chains]
        return [{"params": params, **settings} for params, (_, settings) in zip(members, found, strict=True)]

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
    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raises TypeError or ValueError, naming a setting that is no number or lies outside its range."""

    @abstractmethod
    def _move(self, chain: Chain, gradients: list[Tensor], group: dict[str, Any]) -> None:
        """The step of a chain, all of whose parameters have gradients, by the settings of the group."""

    @abstractmethod
    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Plain SGD."""


_HABITS = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None}


def _uphill(gradients: Sequence[Tensor]) -> list[Tensor]:
    return [g.neg() for g in gradients]


def _check_habits(optimizer: str, **habits: Any) -> None:
    for name, value in habits.items():
        may_be_none = _HABITS[name] is None
        if not isinstance(value, bool) and not (may_be_none and value is None):
            expected = "True, False or None" if may_be_none else "True or False"
            raise TypeError(f"{optimizer}: {name} is {value!r}; expected {expected}")
    if habits.get("differentiable"):
        raise ValueError(
            f"{optimizer}: differentiable is True; expected False: a step works in place, no gradient goes through it"
        )
    if habits.get("foreach") and habits.get("fused"):
        raise ValueError(f"{optimizer}: foreach and fused are True; expected one of them, or neither")


def check_numbers(optimizer: str, **settings: Any) -> None:
    """
    Raises:
        TypeError: a setting is no number; the rate lr may be a tensor.
        ValueError: the rate is a tensor of several numbers, or wants a gradient.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real | Tensor if name == "lr" else numbers.Real):
            raise TypeError(f"{optimizer}: {name} is {value!r}; expected a number")
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{optimizer}: lr has shape {tuple(value.shape)}; expected a tensor of one number")
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{optimizer}: lr requires a gradient, which no step has; expected lr.detach()")
