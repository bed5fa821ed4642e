"""SGD in the space of path values: a step that no positive rescaling of the weights can change.

    u ← u − η m_u,  m_u ← μ m_u + ∂L/∂u + λ u      and likewise for the V, on every chain of BasisPaths

u_e = ψ_e w_e off the skeleton and the skeleton's V_k are the values of basis paths, and kernels/path_step has what they
are and how weights with the new values are found. Momentum m and weight decay λ act on path values; so all that the
optimizer remembers is free of the scale as well.

Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from ..kernels.path_step import Layer as Operand
from ..kernels.path_step import Options, take_step
from .basis_paths import BasisPaths, Chain, Layer
from .path_optimizer import PathOptimizer

_log = logging.getLogger(__name__)


class GSGD(PathOptimizer):
    """SGD on the values of basis paths.

    Args:
        paths: BasisPaths(model). The first param group holds the parameters of its chains, the second, where there are
            any, those that take plain SGD with the same settings: `param_groups[1]["lr"]` changes theirs alone.
        lr: η > 0, of path values: at a skeleton of ones (`paths.unit_skeleton_()`) that of SGD.
        momentum: μ ≥ 0, in path values. 0 keeps no state.
        weight_decay: λ ≥ 0, on path values: ½ λ (Σ u² + Σ V²) is added to the loss.
        least_ratio: a step multiplies a skeleton's path value V by R = 1 − η m_V / V; R is held at this or above.
        floor: no step takes |V| below this: other paths move by η ∂L/∂w / ψ², and ψ shrinks with V. Fits a skeleton
            that starts at ones; without it (0) V that comes near 0 was seen to end in a loss of 1e8.

    Gradients of all parameters of a chain or of none must be there: else RuntimeError names one that lacks, and nothing
    has been updated.

    A V that a bound held loses its momentum. `held` counts these events, `flips` those of them with R ≤ 0, where V
    would have changed its sign. Flips are logged as warnings whenever their number has doubled; on a GPU they are not,
    for that would wait for it.

    State of each weight: momentum, of u; of each chain's first weight also run_momentum [runs], that of V.
    """

    def __init__(
        self,
        paths: BasisPaths,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        least_ratio: float = 0.5,
        floor: float = 0.1,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"GSGD: lr is {lr}; expected a positive number")
        for name, value in (("momentum", momentum), ("weight_decay", weight_decay), ("floor", floor)):
            if not value >= 0:
                raise ValueError(f"GSGD: {name} is {value}; expected a number that is not negative")
        if not 0 < least_ratio < 1:
            raise ValueError(f"GSGD: least_ratio is {least_ratio}; expected a number between 0 and 1")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(paths, {**settings, "least_ratio": least_ratio, "floor": floor})
        self._events = torch.zeros(2, dtype=torch.int64, device=paths.chains[0].layers[0].weight.device)
        self._warned = 0

    @property
    def held(self) -> int:
        """How many times an R was held at a bound. Waits for the device."""
        return int(self._events[0])

    @property
    def flips(self) -> int:
        """How many of these were not positive. Waits for the device."""
        return int(self._events[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_events": self._events, "_warned": self._warned}

    def _move(self, chain: Chain, group: dict[str, Any]) -> None:
        options = Options(*(group[name] for name in ("lr", "momentum", "weight_decay", "least_ratio", "floor")))
        first = chain.layers[0].weight
        operands = [self._operand(layer, options.momentum != 0) for layer in chain.layers]
        run_momentum = None
        if options.momentum:
            state = self.state[first]
            if "run_momentum" not in state:
                state["run_momentum"] = first.new_zeros(chain.runs)
            run_momentum = state["run_momentum"]
        if self._events.device != first.device:
            self._events = self._events.to(first.device)
        take_step(operands, chain.shapes, run_momentum, self._events, options)
        self._warn()

    def _warn(self) -> None:
        if self._events.device.type != "cpu" or torch.compiler.is_compiling():
            return
        _, flips = self._events.tolist()
        if flips >= 2 * self._warned and flips:
            self._warned = flips
            _log.warning("GSGD: a step would have changed the sign of a skeleton's path value, %d times by now", flips)

    def _operand(self, layer: Layer, moving: bool) -> Operand:
        """A layer with its gradients and momenta."""
        weight, bias = layer.weight, layer.bias
        assert weight.grad is not None
        return Operand(
            weight,
            weight.grad,
            bias,
            None if bias is None else bias.grad,
            self._momentum(weight) if moving else None,
            self._momentum(bias) if moving and bias is not None else None,
        )

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self._momentum(p) if group["momentum"] else None for p in parameters]
        sgd(
            parameters,
            gradients,
            momenta,
            foreach=True,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
