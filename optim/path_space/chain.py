"""Chains of layers with hidden nodes between them, whose weights lie as edges of a graph of paths."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...kernels.path_step import Shape, Skeleton, prefixes, skeleton, suffixes


@dataclass(frozen=True)
class ChainLayer:
    """A Linear, Conv or BatchNorm of the model, by its name there, and how its weight lies as edges."""

    name: str
    shape: Shape
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def size(self) -> int:
        """Weights, the bias among them."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())


@dataclass(frozen=True)
class Chain:
    """Two or more layers with hidden nodes between them."""

    layers: tuple[ChainLayer, ...]
    parameters: tuple[nn.Parameter, ...]
    shapes: tuple[Shape, ...]
    runs: int  # of nodes that skeleton edges join: each has a path value V

    # G, O, I, T of layer after layer, and of each whether it has a bias
    edges: tuple[list[int], list[bool]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes, biased = [n for shape in self.shapes for n in shape], [layer.bias is not None for layer in self.layers]
        object.__setattr__(self, "edges", (sizes, biased))

    @property
    def skeleton(self) -> Skeleton:
        return skeleton(self.shapes, self.layers[0].weight.device)

    @property
    def size(self) -> int:
        """m: weights, biases among them."""
        return sum(layer.size for layer in self.layers)

    @torch.no_grad()
    def values(self) -> Tensor:
        """V, [runs]: the path values of the skeleton."""
        bones, weights = self.skeleton, [layer.weight.reshape(-1) for layer in self.layers]
        into = [w[edges] for w, edges in zip(weights[:-1], bones.edge_in, strict=True)]
        out = [w[edges] for w, edges in zip(weights[1:], bones.edge_out, strict=True)]
        P, S = prefixes(into, bones.source), suffixes(out, bones.target)
        return (torch.cat(P) * torch.cat(S))[bones.first]

    def skeleton_edges(self) -> list[Tensor]:
        """The places of each layer's skeleton edges in its flattened [G, O, I, T], int64."""
        into, out = self.skeleton.edge_in, self.skeleton.edge_out
        return [into[0], *(torch.cat(pair).unique() for pair in zip(into[1:], out, strict=False)), out[-1]]


def joined(layers: dict[str, ChainLayer], links: list[tuple[str, str]]) -> list[Chain]:
    """The links, one after the other."""
    behind = dict(links)
    chains = []
    for name in layers:
        if name in behind and name not in behind.values():
            names = [name]
            while names[-1] in behind:
                names.append(behind[names[-1]])
            members = tuple(layers[name] for name in names)
            parameters = (p for layer in members for p in (layer.weight, layer.bias) if p is not None)
            shapes = tuple(layer.shape for layer in members)
            runs = skeleton(shapes, members[0].weight.device).runs
            chains.append(Chain(members, tuple(parameters), shapes, runs))
    return chains
