"""Path-SGD: steepest descent in the norm of all path values, a step that no positive rescaling can change.

    w_e ← w_e − η g_e / γ_e,    γ_e = Σ over the paths through e of Π_{other edges f} w_f² = a(i) b(j)

of an edge e = (i, j), where a(i) sums w² over the ways from the ends of the chain to i, and b(j) from j on. Scaling
node i by c takes a(i) to c² a(i) and b(i) to b(i) / c². Taps of a convolution are edges beside each other.

Source: Neyshabur, Salakhutdinov & Srebro, "Path-SGD: Path-Normalized Optimization in Deep Neural Networks", NeurIPS
2015, p = 2; a convolution's positions are not told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .basis_paths import BasisPaths
from .chain import Chain
from .optimizer import PathOptimizer, check_numbers


class PathSGD(PathOptimizer):
    """Path-SGD on the chains of BasisPaths.

    Args:
        paths: BasisPaths(model); param groups as in GSGD: parameters of no chain take plain SGD.
        lr: η > 0.
        floor: γ is taken to be this at least. Where all other edges of its paths are 0, γ = g = 0.
        groups, maximize, foreach, capturable, differentiable, fused: those of GSGD.

    Gradients of all parameters of a chain or of none must be there: else RuntimeError, and nothing has been updated. A
    chain, or a group of plain parameters, that would not stay finite keeps its weights in that step: `kept` counts
    them. It keeps no state.
    """

    def __init__(
        self,
        paths: BasisPaths,
        lr: float | Tensor = 0.1,
        *,
        floor: float = 1e-30,
        groups: Sequence[Mapping[str, Any]] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            paths,
            {"lr": lr, "floor": floor},
            groups,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _check(self, settings: Mapping[str, Any]) -> None:
        check_numbers("PathSGD", **settings)
        for name, value in settings.items():
            if not value > 0:
                raise ValueError(f"PathSGD: {name} is {value}; expected a positive number")

    def _move(self, chain: Chain, gradients: list[Tensor], group: dict[str, Any]) -> None:
        before, behind = path_sums(chain)
        moved, slopes = [], iter(gradients)
        for layer, a, b in zip(chain.layers, before, behind, strict=True):
            G, O, I, _ = layer.shape
            γ = (a.view(G, 1, I, 1) * b.view(G, O, 1, 1)).clamp_(min=group["floor"])
            moved.append(layer.weight - layer.as_weight(group["lr"] * layer.by_targets(next(slopes)) / γ))
            if layer.bias is not None:
                moved.append(layer.bias - group["lr"] * next(slopes) / b.clamp(min=group["floor"]))
        self._settle(chain.parameters, moved, chain.size)

    def _move_plainly(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        moved = [p - group["lr"] * g for p, g in zip(parameters, gradients, strict=True)]
        self._settle(parameters, moved, sum(p.numel() for p in parameters))


def path_sums(chain: Chain) -> tuple[list[Tensor], list[Tensor]]:
    """Sums of w² over the ways to the ends: for each layer a of its sources [G · I] and b of its targets [G · O]."""
    layers, wiring = chain.layers, chain.wiring
    made = {number for parts in wiring.sources for number, _ in parts}
    squares = [layer.by_targets(layer.weight).square().sum(3) for layer in layers]
    one, before, behind = (
        layers[0].weight.new_ones(1),
        [],
        [layer.weight.new_zeros(layer.shape.targets) for layer in layers],
    )
    into: list[Tensor] = []  # a of each layer's targets
    for layer, square, parts in zip(layers, squares, wiring.sources, strict=True):
        G, _, I, _ = layer.shape
        before.append(torch.cat([one.expand(count) if number < 0 else into[number] for number, count in parts]))
        a = (square * before[-1].view(G, 1, I)).sum(2).flatten()
        into.append(a if layer.bias is None else a + layer.bias.square())
    for number in reversed(range(len(layers))):
        G, O, _, _ = layers[number].shape
        if number not in made:
            behind[number] += 1
        b = (squares[number] * behind[number].view(G, O, 1)).sum(1).flatten()
        sources, counts = zip(*wiring.sources[number], strict=True)
        for source, part in zip(sources, b.split(counts), strict=True):
            if source >= 0:
                behind[source] = behind[source] + part
    return before, behind
