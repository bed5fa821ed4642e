"""Chains of layers with hidden nodes between them, whose weights lie as edges of a graph of paths.

A chain may branch: its layers are in an order in which each takes nodes of layers before it, of one or of several.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from ...kernels.path_step import Shape, Skeleton, Wiring, layout, prefixes, skeleton, suffixes


@dataclass(frozen=True)
class ChainLayer:
    """A Linear, Conv or BatchNorm of the model, by its name there, and how its weight lies as edges."""

    name: str
    shape: Shape
    weight: nn.Parameter
    bias: nn.Parameter | None
    turned: bool = False  # the weight lies as [G, I, O, T], as that of a transposed convolution does

    def by_targets(self, x: Tensor) -> Tensor:
        """The weight, or what is shaped as it, as [G, O, I, T]: a view of what lies in one piece."""
        return x.reshape(self.shape.turned).transpose(1, 2) if self.turned else x.reshape(self.shape)

    def as_weight(self, x: Tensor) -> Tensor:
        """The same the other way: [G, O, I, T] as the weight lies."""
        return (x.transpose(1, 2) if self.turned else x).reshape(self.weight.shape)

    @property
    def size(self) -> int:
        """Weights, the bias among them."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())


@dataclass(frozen=True)
class Chain:
    """Two or more layers with hidden nodes between them.

    wiring: which layers the nodes are of that each layer takes.
    """

    layers: tuple[ChainLayer, ...]
    parameters: tuple[nn.Parameter, ...]
    shapes: tuple[Shape, ...]
    wiring: Wiring
    runs: int  # of nodes that skeleton edges join: each has a path value V

    # shapes and wiring as numbers, and of each layer whether it has a bias
    edges: tuple[list[int], list[bool]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        biased = [layer.bias is not None for layer in self.layers]
        object.__setattr__(self, "edges", (layout(self.shapes, self.wiring), biased))

    @property
    def branches(self) -> bool:
        """Whether a layer takes nodes of other layers than the one before it, or inputs beside them."""
        sources = Wiring.of_chain(self.shapes).sources
        return self.wiring.sources != sources

    @property
    def skeleton(self) -> Skeleton:
        return skeleton(self.shapes, self.layers[0].weight.device, self.wiring)

    @property
    def size(self) -> int:
        """m: weights, biases among them."""
        return sum(layer.size for layer in self.layers)

    @torch.no_grad()
    def values(self) -> Tensor:
        """V, [runs]: the path values of the skeleton."""
        bones, weights = self.skeleton, [layer.weight.reshape(-1) for layer in self.layers]
        into = [weights[l][edges] for l, edges in zip(bones.made, bones.edge_in, strict=True)]
        out = [weights[l][edges] for l, edges in zip(bones.taken, bones.edge_out, strict=True)]
        return (prefixes(into, bones) * suffixes(out, bones))[bones.first]

    def skeleton_edges(self) -> list[Tensor]:
        """The places of each layer's skeleton edges in its flattened weight, int64."""
        bones, found = self.skeleton, [[] for _ in self.layers]
        for l, edges in [*zip(bones.made, bones.edge_in, strict=True), *zip(bones.taken, bones.edge_out, strict=True)]:
            found[l].append(edges)
        none = torch.zeros(0, dtype=torch.int64, device=self.layers[0].weight.device)
        return [torch.cat([none, *edges]).unique() for edges in found]

    def takers(self, layer: int) -> list[tuple[int, int]]:
        """The layers that take the nodes of one, and the first of their sources that those are; as often as they do."""
        found = []
        for number, parts in enumerate(self.wiring.sources):
            begins = accumulate((count for _, count in parts), initial=0)
            found += [(number, begin) for (made, _), begin in zip(parts, begins, strict=False) if made == layer]
        return found


def joined(layers: dict[str, ChainLayer], sources: dict[str, list[tuple[str | None, int]]]) -> list[Chain]:
    """Layers that take nodes of each other, together.

    layers: each behind those that it takes nodes of.
    sources: of each the layers whose hidden nodes it takes, and how many; None where they are no hidden nodes.
    """
    of = {name: name for name in layers}  # the first layer of its chain
    for name in layers:
        firsts = {of[name], *(of[made] for made, _ in sources[name] if made is not None)}
        first = min(firsts, key=[*layers].index)
        of = {other: first if its in firsts else its for other, its in of.items()}
    chains = []
    for first in layers:
        names = [name for name in layers if of[name] == first]
        if len(names) < 2:
            continue
        number = {name: at for at, name in enumerate(names)}
        members = tuple(layers[name] for name in names)
        parameters = (p for layer in members for p in (layer.weight, layer.bias) if p is not None)
        shapes = tuple(layer.shape for layer in members)
        parts = [tuple((-1 if made is None else number[made], n) for made, n in sources[name]) for name in names]
        wiring = Wiring(tuple(parts), tuple(layer.turned for layer in members))
        runs = skeleton(shapes, members[0].weight.device, wiring).runs
        chains.append(Chain(members, tuple(parameters), shapes, wiring, runs))
    return chains
