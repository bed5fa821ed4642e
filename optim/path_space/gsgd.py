"""SGD in the space of path values: a step that no positive rescaling of the weights can change.

    u ← u − η m_u,  m_u ← μ m_u + ∂L/∂u + λ u      and likewise for the V, on every chain of BasisPaths

u_e = ψ_e w_e off the skeleton and the skeleton's V_k are the values of basis paths, and kernels/path_step has what they
are and how weights with the new values are found. Momentum m and weight decay λ act on path values; so all that the
optimizer remembers is free of the scale as well.

From a start whose V are small, as torch draws them, no rate is small enough for such steps; a chain like that is
measured by path norms, and each step is that of SGD in the scaling of the nodes that makes those even. It, too, is the
same whatever the scaling of the weights.

Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.sgd import sgd

from ...kernels.path_step import Options, take_step
from .basis_paths import BasisPaths
from .chain import Chain
from .optimizer import PathOptimizer, check_numbers

_log = logging.getLogger(__name__)


class GSGD(PathOptimizer):
    """SGD on the values of basis paths.

    Args:
        paths: BasisPaths(model). The first param group holds the parameters of its chains, the second, where there are
            any, those that take plain SGD with the same settings: `param_groups[1]["lr"]` changes theirs alone.
            Chains with settings of their own: `groups`.
        lr: η > 0, of path values: at a skeleton of ones (`paths.unit_skeleton_()`) that of SGD.
        momentum: μ ≥ 0, in path values. 0 keeps no state.
        weight_decay: λ ≥ 0, on path values: ½ λ (Σ u² + Σ V²) is added to the loss.
        least_ratio: a step multiplies a skeleton's path value V by R = 1 − η m_V / V; R is held at this or above.
        floor: no step takes |V| below this: other paths move by η ∂L/∂w / ψ², and ψ shrinks with V. Fits a skeleton
            that starts at ones; without it (0) V that comes near 0 was seen to end in a loss of 1e8. A chain with a |V|
            below half of it at the start is measured by path norms, where neither bound is needed.
        groups: param groups of chains with settings of their own, [{"chains": (0, 2), "lr": 0.01}, …], by the numbers
            that print(paths) gives them. The other chains are the first group; then come these, then the plain one.
        maximize: the loss is to grow: the step is that on the negated gradients.
        foreach, fused, capturable: taken, and without effect: a step is one call a chain on all of its layers, and on a
            GPU it never waits for the host. Not both of the first two.
        differentiable: refused.

    Gradients of all parameters of a chain or of none must be there: else RuntimeError names one that lacks, and nothing
    has been updated.

    A V that a bound held loses its momentum. `held` counts these events, `flips` those of them with R ≤ 0, where V
    would have changed its sign.

    A weight whose new value would not be finite keeps the one it has, and so does its momentum; a chain with a V or an
    R that is not finite keeps all of its weights in that step, and plain parameters keep theirs all together. `kept`
    counts the weights. Flips, and what was kept, are logged as warnings whenever their number has doubled; on a GPU
    they are not, for that would wait for it.

    `param_groups[0]["norms"]` says of each chain of the group whether it is measured by path norms. A chain becomes one
    that is where a weight on its skeleton has been set to 0 between two steps, as pruning does: its momenta start anew,
    and a warning names the weight. On a GPU, and in a compiled step, nobody looks: the chain keeps its weights.

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
        groups: Sequence[Mapping[str, Any]] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        settings |= {"least_ratio": least_ratio, "floor": floor}
        super().__init__(
            paths,
            settings,
            groups,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        for group, chains in zip(self.param_groups, self._chains, strict=False):
            group["norms"] = [_is_weak(paths.chains[number], group["floor"]) for number in chains]
        measured = [(chain, self.param_groups[self._place_of(chain)[0]]) for chain in paths.chains]
        weak = [chain.layers[0].name for chain, group in measured if self._is_by_norms(chain, group)]
        if weak:
            _log.info("GSGD: path norms measure the chains that begin at %s: their skeletons are weak", ", ".join(weak))

    @property
    def held(self) -> int:
        """How many times an R was held at a bound. Waits for the device."""
        return int(self._events[0])

    @property
    def flips(self) -> int:
        """How many of these were not positive. Waits for the device."""
        return int(self._events[1])

    def _check(self, settings: Mapping[str, Any]) -> None:
        check_numbers("GSGD", **settings)
        for name, value in settings.items():
            if name == "lr" and not value > 0:
                raise ValueError(f"GSGD: lr is {value}; expected a positive number")
            if name == "least_ratio" and not 0 < value < 1:
                raise ValueError(f"GSGD: least_ratio is {value}; expected a number between 0 and 1")
            if not value >= 0:
                raise ValueError(f"GSGD: {name} is {value}; expected a number that is not negative")

    def _is_by_norms(self, chain: Chain, group: dict[str, Any]) -> bool:
        """Whether path norms measure a chain of the group. A state saved by a version without them has no entry."""
        norms = group.get("norms") or ()
        return True in norms and norms[self._place_of(chain)[1]]

    def _move(self, chain: Chain, gradients: list[Tensor], group: dict[str, Any]) -> None:
        options = Options(
            group["lr"],
            group["momentum"],
            group["weight_decay"],
            group["least_ratio"],
            group["floor"],
            self._is_by_norms(chain, group),
        )
        parameters: list[Tensor] = [*chain.parameters]
        first, momenta, run_momentum = parameters[0], [], None
        if options.momentum:
            momenta = self._momenta(parameters)
            state = self.state[first]
            if "run_momentum" not in state:
                state["run_momentum"] = first.new_zeros(chain.runs)
            run_momentum = state["run_momentum"]
        if self._events.device != first.device:
            self._events = self._events.to(first.device)
        take_step(parameters, gradients, momenta, run_momentum, self._events, *chain.edges, options)
        if not first.is_cpu or torch.compiler.is_compiling():
            return
        before, counted = self._counted[2], self._events.tolist()
        if counted[2] > before and not options.norms and (zero := self.paths.zero_on_skeleton(chain)):
            self._turn_to_norms(chain, zero)
            self._events[2] = before
            self._move(chain, gradients, group)
            return
        self._counted = counted

    def _turn_to_norms(self, chain: Chain, zero: str) -> None:
        """Has path norms measure a chain whose skeleton weight `zero` became 0; its momenta start from 0."""
        number, place = self._place_of(chain)
        norms = self.param_groups[number].get("norms") or [False] * len(self._chains[number])
        norms[place] = True
        self.param_groups[number]["norms"] = norms
        for parameter in chain.parameters:
            for momentum in self.state[parameter].values():
                momentum.zero_()
        _log.warning("GSGD: %s is 0, on the skeleton of its chain: path norms measure that from now on", zero)

    def _momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        states = [self.state[p] for p in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
        return [state["momentum"] for state in states]

    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momenta = self._momenta(parameters) if group["momentum"] else []
        if parameters[0].is_cuda and not torch.compiler.is_compiling():
            self._move_by_fused_sgd(parameters, gradients, momenta, group)
            return
        lr, decay, slopes = group["lr"], group["weight_decay"], gradients
        if decay:
            slopes = [g.add(p, alpha=decay) for p, g in zip(parameters, slopes, strict=True)]
        if momenta:
            slopes = [m.mul(group["momentum"]).add_(slope) for m, slope in zip(momenta, slopes, strict=True)]
        pairs = zip(parameters, slopes, strict=True)
        moved = [p - lr * slope if isinstance(lr, Tensor) else p.add(slope, alpha=-lr) for p, slope in pairs]
        size = sum(p.numel() for p in parameters)
        self._settle([*parameters, *momenta], [*moved, *(slopes if momenta else [])], size)

    def _move_by_fused_sgd(
        self, parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
    ) -> None:
        """The plain step without waiting for the GPU: one launch, which writes nothing where a bound is not finite."""
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        p, g, m = (get_total_norm(x, torch.inf) if x else 0.0 for x in (parameters, gradients, momenta))
        may_overflow = ~((1 + lr * decay) * p + lr * (momentum * m + g) + momentum * m + g + decay * p).isfinite()
        self._events[2] += may_overflow * sum(x.numel() for x in parameters)
        sgd(
            parameters,
            gradients,
            [*momenta] or [None] * len(parameters),
            fused=True,
            found_inf=may_overflow.float(),
            weight_decay=decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def _is_weak(chain: Chain, floor: float) -> bool:
    """Whether some path value of the skeleton is less than half the floor, which no step takes one below."""
    return bool((chain.values().abs() < floor / 2).any())
