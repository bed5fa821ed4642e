"""The chains of a network in which paths are counted: where its nodes may be rescaled, and where they may not.

A hidden node is a channel that one Linear or Conv layer makes and one other takes, with nothing between them but what
is positively homogeneous: f(c x) = c f(x) for c > 0. Everywhere else (inputs, outputs, residual sums, a tensor that is
used twice, the input of a BatchNorm) a path begins or ends. A BatchNorm's scale and shift are a layer of their own, one
edge and one bias a channel. A bias is an edge from a constant node, so it counts among the m weights.

A chain of L ≥ 2 layers with m weights and H hidden nodes has m − H basis paths (kernels/path_step). A layer with no
hidden node at either side has one path an edge, of value w: it takes plain SGD.

Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..kernels.path_step import Shape, Skeleton, skeleton

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_FLATTENING = (torch.flatten, "flatten", "view", "reshape")
_HOMOGENEOUS_CALLS = (
    *(torch.relu, torch.relu_, functional.relu, functional.relu_, functional.leaky_relu, "relu", "relu_", "contiguous"),
    *(functional.dropout, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
)
_SUMS = (operator.add, operator.iadd, torch.add, torch.cat, "add", "add_")  # where paths meet, they end
_SIZES = ("size", "dim", getattr)


@dataclass(frozen=True)
class Layer:
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

    layers: tuple[Layer, ...]
    parameters: tuple[nn.Parameter, ...]
    shapes: tuple[Shape, ...]
    runs: int  # of nodes that skeleton edges join: each has a path value V

    @property
    def skeleton(self) -> Skeleton:
        return skeleton(self.shapes, self.layers[0].weight.device)

    @property
    def size(self) -> int:
        """m: weights, biases among them."""
        return sum(layer.size for layer in self.layers)

    def skeleton_edges(self) -> list[Tensor]:
        """Of each layer the places of its skeleton edges in the flattened [G, O, I, T], int64."""
        into, out = self.skeleton.edge_in, self.skeleton.edge_out
        return [into[0], *(torch.cat(pair).unique() for pair in zip(into[1:], out, strict=False)), out[-1]]


class BasisPaths:
    """The chains of a model, found by tracing it with torch.fx.

    Args:
        model: of Linear, Conv1d to Conv3d and BatchNorm modules, positively homogeneous activations and poolings
            between them (ReLU, LeakyReLU, PReLU, Dropout, max and average pooling, flattening), residual sums and
            concatenations. Before the first layer and behind the last anything may stand.

    Attributes:
        chains: each a tuple of layers with hidden nodes between them. Layers with a parameter that does not require
            gradients are in none: their nodes could not be rescaled.
        plain: name → (parameter, why it takes plain SGD).

    Printed, it is a table of both; `draw` shows the skeleton.

    Raises:
        ValueError: the model cannot be traced; something that is not positively homogeneous, or is not known to be,
            stands between two layers; a parameter is shared by two modules or a module is used twice; a weight on the
            skeleton is 0 or not finite. The message names the module and the parameter.
        TypeError: model is no module, or a parameter of a chain is neither float32 nor float64.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"BasisPaths: model is a {type(model).__name__}; expected a torch.nn.Module")
        _check_not_shared(model)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        layers, links, reasons = _trace(model)
        self.chains = tuple(_joined(layers, links))
        in_chains = {parameter for chain in self.chains for parameter in chain.parameters}
        self.plain = {
            name: (parameter, reasons.get(name.rpartition(".")[0], "not a weight of a path"))
            for parameter, name in self.names.items()
            if parameter not in in_chains and parameter.requires_grad
        }
        self.check_skeleton()

    @property
    def hidden(self) -> int:
        """H, the hidden nodes of all chains."""
        return sum(chain.skeleton.hidden for chain in self.chains)

    @property
    def size(self) -> int:
        """m, the weights of all chains, biases among them."""
        return sum(chain.size for chain in self.chains)

    @property
    def count(self) -> int:
        """m − H, the basis paths of all chains."""
        return self.size - self.hidden

    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters of the chains, and those that take plain SGD, where there are any."""
        groups: list[dict[str, Any]] = [{"params": [p for chain in self.chains for p in chain.parameters]}]
        if self.plain:
            groups.append({"params": [parameter for parameter, _ in self.plain.values()]})
        return groups

    def moving(self, optimizer: str) -> list[Chain]:
        """The chains that have gradients.

        Raises:
            RuntimeError: a chain's parameter has none while others of the chain have, or a sparse one.
        """
        found = []
        for chain in self.chains:
            grads = [p.grad for p in chain.parameters]
            lacking = [p for p, grad in zip(chain.parameters, grads, strict=True) if grad is None]
            if len(lacking) == len(grads):
                continue
            if lacking:
                raise RuntimeError(
                    f"{optimizer}: {self.names[lacking[0]]} has no gradient, others of its chain have; expected those "
                    "of all, for they move together: freeze it (requires_grad = False) before BasisPaths"
                )
            for p, grad in zip(chain.parameters, grads, strict=True):
                if grad is not None and grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{optimizer}: the gradient of {self.names[p]} is {grad.layout}; expected torch.strided"
                    )
            found.append(chain)
        return found

    @torch.no_grad()
    def check_skeleton(self) -> None:
        """Raises ValueError, naming the parameter and the first edge, where a skeleton weight is 0 or not finite."""
        for chain in self.chains:
            for layer, edges in zip(chain.layers, chain.skeleton_edges(), strict=True):
                weights = layer.weight.reshape(-1)[edges]
                bad = (weights == 0) | ~weights.isfinite()
                if bad.any():
                    edge = edges[bad][0]
                    at = ", ".join(str(int(i)) for i in torch.unravel_index(edge, layer.weight.shape))
                    raise ValueError(
                        f"BasisPaths: {self.names[layer.weight]}[{at}] is {weights[bad][0].item():g}; expected a "
                        "finite weight other than 0 on the skeleton: unit_skeleton_() sets them all to 1"
                    )

    @torch.no_grad()
    def unit_skeleton_(self) -> BasisPaths:
        """Sets every skeleton weight to 1, the start of Meng et al.; the others keep their values. Returns self."""
        for chain in self.chains:
            for layer, edges in zip(chain.layers, chain.skeleton_edges(), strict=True):
                layer.weight.view(-1)[edges] = 1.0
        return self

    @torch.no_grad()
    def rescale_(self, generator: torch.Generator | None = None, spread: float = 1.0) -> BasisPaths:
        """Scales every hidden node by its own c = exp(spread · ξ), ξ standard normal: the function stays. Returns self.

        Edges into the node, and its bias, are multiplied by c, edges out of it divided by c.
        """
        for chain in self.chains:
            for before, behind in pairwise(chain.layers):
                (G, O, _, _), (G_behind, _, I_behind, _) = before.shape, behind.shape
                c = torch.randn(G * O, generator=generator, dtype=torch.float64).mul(spread).exp().to(before.weight)
                before.weight.view(before.shape).mul_(c.view(G, O, 1, 1))
                behind.weight.view(behind.shape).div_(c.view(G_behind, 1, I_behind, 1))
                if before.bias is not None:
                    before.bias.mul_(c)
        return self

    @staticmethod
    def fold(model: nn.Module) -> nn.Module:
        """A copy of the model in which each BatchNorm behind a Linear or Conv is a part of it, as in evaluation mode.

        The pair y = γ (W x + b − μ) / √(σ² + ε) + β becomes one layer with a bias, which trains without batch
        statistics; an Identity stands where the BatchNorm stood.
        """
        model = copy.deepcopy(model)
        modules = dict(model.named_modules())
        graph = _graph(model)
        for node in graph.nodes:
            behind = modules.get(str(node.target)) if node.op == "call_module" else None
            source = node.args[0] if node.args else None
            if not isinstance(behind, _NORMS) or not isinstance(source, fx.Node) or len(source.users) != 1:
                continue
            before = modules.get(str(source.target)) if source.op == "call_module" else None
            if isinstance(before, _LINEAR):
                _fold_into(before, behind, str(node.target))
                parent, _, name = str(node.target).rpartition(".")
                setattr(model.get_submodule(parent), name, nn.Identity())
        return model

    def __str__(self) -> str:
        rows = [("module", "weights [G, O, I, T]", "weights", "where")]
        for number, chain in enumerate(self.chains):
            special = chain.skeleton.special
            rows += [
                (
                    layer.name,
                    str(list(layer.shape)),
                    f"{layer.size:,}",
                    f"paths, chain {number}" + ", s" * (at == special),
                )
                for at, layer in enumerate(chain.layers)
            ]
        rows += [
            (name, str(list(parameter.shape)), f"{parameter.numel():,}", f"plain SGD: {reason}")
            for name, (parameter, reason) in self.plain.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {size:>{widths[2]}}  {where}"
            for name, shape, size, where in rows
        ]
        lines.append(
            f"{self.size:,} weights in {len(self.chains)} chain{'s' * (len(self.chains) != 1)}, "
            f"{self.hidden:,} hidden nodes: {self.count:,} basis paths"
        )
        return "\n".join(lines)

    __repr__ = __str__

    def draw(self, axes: Any, chain: int = 0, most: int = 12) -> None:
        """Draws a chain's nodes, at most `most` of a layer, and its skeleton on matplotlib axes; the rest in grey."""
        shown = self.chains[chain]
        bones = shown.skeleton
        widths = [shown.layers[0].shape.sources, *(layer.shape.targets for layer in shown.layers)]

        tallest = min(max(widths), most)

        def height(layer: int, node: int) -> float:
            return (min(widths[layer], most) - 1) / 2 - node

        for number, (layer, edges) in enumerate(zip(shown.layers, shown.skeleton_edges(), strict=True)):
            G, O, I, T = layer.shape
            on = set((edges // T).tolist())
            for edge in range(G * O * I):
                target = edge // I
                source = target // O * I + edge % I
                if target < most and source < most:
                    ends = height(number, source), height(number + 1, target)
                    color, width, order = ("#0072b2", 1.8, 2) if edge in on else ("#dfe2e6", 0.8, 1)
                    axes.plot((number, number + 1), ends, color=color, linewidth=width, zorder=order)
        for number, width in enumerate(widths):
            for node in range(min(width, most)):
                axes.plot(number, height(number, node), "o", color="#1b1d21", markersize=5, zorder=3)
            axes.text(number, height(number, -1), str(width), ha="center")
        for number, layer in enumerate(shown.layers):
            label = layer.name + ", s" * (number == bones.special)
            axes.text(number + 0.5, -tallest / 2 - 0.3, label, ha="center", va="top")
        axes.set(xlim=(-0.2, len(shown.layers) + 0.2), ylim=(-tallest / 2 - 1.5, tallest / 2 + 1))
        axes.set_axis_off()


# ------------------------------------------------------------------------------------------------ tracing


@dataclass(frozen=True)
class _Channels:
    """Which layer made a tensor's channels, and where they lie.

    "first": in dimension 1, as a Conv leaves them; "last", as a Linear does; "flat": in dimension 1 of two, the
    positions of each beside each other; "only": in dimension 1 of two, as a BatchNorm1d is taken to leave them.
    """

    layer: str
    dimension: str


@dataclass(frozen=True)
class _Bent:
    """What came through something that is not known to be positively homogeneous."""

    what: str


def _graph(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code, which fails in its own ways
        raise ValueError(
            f"BasisPaths: {type(model).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}); "
            "expected a forward without control flow on values"
        ) from error


def _trace(model: nn.Module) -> tuple[dict[str, Layer], list[tuple[str, str]], dict[str, str]]:
    """The layers by name, the pairs with hidden nodes between them, and why other modules are in no chain."""
    layers: dict[str, Layer] = {}
    links: list[tuple[str, str]] = []
    reasons: dict[str, str] = {}
    origin: dict[fx.Node, _Channels | _Bent | None] = {}  # None: a path may end here, nothing is claimed
    modules = dict(model.named_modules())
    for node in _graph(model).nodes:
        inputs = [origin[x] for x in node.all_input_nodes if x in origin]
        if node.target in _SIZES or (node.target is operator.getitem and not inputs):
            continue  # sizes carry no values
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        found = inputs[0] if len(inputs) == 1 else None
        if isinstance(module, (*_LINEAR, *_NORMS)):
            found = _layer(str(node.target), module, found, layers, links)
        elif found is None or node.target in _SUMS or node.op == "output":
            found = None
        elif not _is_homogeneous(node, module) or (_is_over_features(found) and _pools(node, module)):
            name = getattr(node.target, "__name__", str(node.target))
            found = _Bent(name if module is None else f"{name} ({type(module).__name__})")
        elif isinstance(found, _Channels) and found.dimension == "first" and _flattens(node, module):
            found = _Channels(found.layer, "flat")
        if isinstance(found, _Channels) and sum(user.target not in _SIZES for user in node.users) > 1:
            reasons[found.layer] = "its output is used more than once"
            found = None
        origin[node] = found
    for name, layer in layers.items():
        reasons.setdefault(name, "no hidden node at either side")
        if not all(p.requires_grad for p in (layer.weight, layer.bias) if p is not None):
            links = [link for link in links if name not in link]
    return layers, links, reasons


def _layer(
    name: str,
    module: nn.Module,
    source: _Channels | _Bent | None,
    layers: dict[str, Layer],
    links: list[tuple[str, str]],
) -> _Channels | None:
    """Enters a layer and its link to the one before; returns where its output comes from."""
    if name in layers:
        raise ValueError(f"BasisPaths: {name} is used twice, and {name}.weight with it; expected one use of each layer")
    if isinstance(source, _Bent) and not isinstance(module, _NORMS):
        raise ValueError(
            f"BasisPaths: {source.what} stands before {name}, and is not known to be positively homogeneous: "
            f"{name}.weight is on no path; expected ReLU, LeakyReLU, PReLU, Dropout, pooling or flattening"
        )
    weight = getattr(module, "weight", None)
    if isinstance(module, _NORMS):
        source = None  # whatever scales its input, it takes away again
        if weight is None:
            return None
    if not isinstance(weight, nn.Parameter) or isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"BasisPaths: {name}.weight is a {type(weight).__name__}; expected an initialised Parameter")
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"BasisPaths: {name}.weight is {weight.dtype}; expected float32 or float64: under autocast they stay so"
        )
    if not weight.is_contiguous():
        raise ValueError(f"BasisPaths: {name}.weight has strides {weight.stride()}; expected it to be contiguous")
    shape = Shape(weight.shape[0], 1, 1, 1)
    if isinstance(module, _LINEAR):
        G = int(getattr(module, "groups", 1))
        shape = Shape(G, weight.shape[0] // G, weight.shape[1], weight[0, 0].numel())
    if isinstance(source, _Channels):
        channels = layers[source.layer].shape.targets
        if source.dimension == "flat" and shape.inputs % channels == 0:
            shape = Shape(1, shape.outputs, channels, shape.inputs // channels)  # a position is a tap
        expected = ("last", "flat", "only") if isinstance(module, nn.Linear) else ("first", "only")
        if shape.sources != channels or source.dimension not in expected:
            raise ValueError(
                f"BasisPaths: {name} takes {shape.sources} channels and {source.layer} makes {channels}, or in another "
                f"dimension: {name}.weight is on no path; expected flattening from dimension 1 between Conv and Linear"
            )
        links.append((source.layer, name))
    layers[name] = Layer(name, shape, weight, module.bias)  # pyright: ignore[reportArgumentType]
    if isinstance(module, nn.BatchNorm1d):
        return _Channels(name, "only")
    return _Channels(name, "last" if isinstance(module, nn.Linear) else "first")


def _is_over_features(found: _Channels | _Bent) -> bool:
    """Whether pooling would mix channels."""
    return isinstance(found, _Channels) and found.dimension == "last"


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, nn.Flatten) or node.target in (*_FLATTENING, "mean")


def _pools(node: fx.Node, module: nn.Module | None) -> bool:
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
    return "pool" in str(name).lower() or name == "mean"


def _is_homogeneous(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether scaling a channel of its input by c > 0 scales the same channel of its output."""
    if module is not None:
        return isinstance(module, _HOMOGENEOUS) and (not isinstance(module, nn.Flatten) or module.start_dim == 1)
    if node.target in ("view", "reshape"):
        return node.args[2:] == (-1,)
    if node.target in ("flatten", torch.flatten):
        return (node.args[1:] or tuple(node.kwargs.values())) in ((1,), (1, -1))
    if node.target == "mean":
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(dims, Sequence) and all(dim in (2, 3, -1, -2) for dim in dims)
    return node.target in _HOMOGENEOUS_CALLS


def _joined(layers: dict[str, Layer], links: list[tuple[str, str]]) -> list[Chain]:
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


def _check_not_shared(model: nn.Module) -> None:
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            raise ValueError(
                f"BasisPaths: {name} is {first[parameter]}, one parameter under two names; expected weights of its own "
                "for each module: a path through both would move one weight twice"
            )


def _fold_into(before: nn.Module, norm: nn.Module, name: str) -> None:
    if norm.running_mean is None:
        raise ValueError(f"BasisPaths.fold: {name} keeps no running statistics; expected track_running_stats=True")
    fuse = fuse_linear_bn_weights if isinstance(before, nn.Linear) else fuse_conv_bn_weights
    statistics = norm.running_mean, norm.running_var, norm.eps
    before.weight, before.bias = fuse(before.weight, before.bias, *statistics, norm.weight, norm.bias)  # pyright: ignore
    before.requires_grad_(True)  # a bias that was not there came back frozen
