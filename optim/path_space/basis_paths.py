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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ...kernels.path_step import Shape, Skeleton, prefixes, skeleton, suffixes

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
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_OURS = f"{__name__.partition('.')[0]}."
_ROUNDING = 1e-6  # of float64, through any network, far from what another function would differ by


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
        """Of each layer the places of its skeleton edges in the flattened [G, O, I, T], int64."""
        into, out = self.skeleton.edge_in, self.skeleton.edge_out
        return [into[0], *(torch.cat(pair).unique() for pair in zip(into[1:], out, strict=False)), out[-1]]


class BasisPaths:
    """The chains of a model, found by tracing it with torch.fx.

    Args:
        model: of Linear, Conv1d to Conv3d and BatchNorm modules, positively homogeneous activations and poolings
            between them (ReLU, LeakyReLU, PReLU, Dropout, max and average pooling, flattening), residual sums and
            concatenations. Before the first layer and behind the last anything may stand. Of a model that
            DistributedDataParallel or torch.compile has wrapped, the module inside is taken.
        example_inputs: what the model's forward takes, a tensor or a tuple of positional arguments, for its shapes and
            dtypes alone. With them every shape is known, and the result is checked: on random numbers shaped so, a copy
            in float64 must compute the same when its hidden nodes are rescaled. Without them inputs are taken to have a
            dimension of samples, and those of a BatchNorm1d behind a Linear to have no other than channels; what the
            shapes alone decide, and what has forward hooks, is refused.

    Attributes:
        chains: each a tuple of layers with hidden nodes between them. Layers with a parameter that does not require
            gradients are in none: their nodes could not be rescaled.
        plain: name → (parameter, why it takes plain SGD).

    Printed, it is a table of both; `draw` shows the skeleton.

    Raises:
        ValueError: the model cannot be traced; something that is not positively homogeneous, or is not known to be,
            stands between two layers; a parameter is shared by two modules or a module is used twice; a weight is
            computed of others, by a parametrization; a weight on the skeleton is 0 or not finite. The message names the
            module and the parameter. The model does not run on example_inputs, or computes something else when it is
            rescaled.
        TypeError: model is no module, or a parameter of a chain is neither float32 nor float64.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"BasisPaths: model is a {type(model).__name__}; expected a torch.nn.Module")
        model = _unwrapped(model)
        _check_not_shared(model)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        graph = _graph(model)
        checked, inputs, shapes = model, (), None
        if example_inputs is not None:
            checked, inputs = _in_double(model, example_inputs)
            run = _Shapes(checked, graph)
            _run(checked, run.run, inputs)
            shapes = run.found
        trace = _Trace(model, graph, shapes)
        reasons = trace.reasons
        self.chains = tuple(_joined(trace.layers, trace.links))
        if shapes is not None:
            _check_by_rescaling(checked, inputs, self.chains)
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

    def check_skeleton(self) -> None:
        """Raises ValueError, naming the parameter and the first edge, where a skeleton weight is 0 or not finite."""
        for chain in self.chains:
            for edge, value in self._bad_on_skeleton(chain):
                raise ValueError(
                    f"BasisPaths: {edge} is {value:g}; expected a finite weight other than 0 on the skeleton: "
                    "unit_skeleton_() sets them all to 1"
                )

    def zero_on_skeleton(self, chain: Chain) -> str | None:
        """The first weight on the skeleton of a chain that is 0, by name and place, where one is."""
        return next((edge for edge, value in self._bad_on_skeleton(chain) if value == 0), None)

    @torch.no_grad()
    def _bad_on_skeleton(self, chain: Chain) -> Iterator[tuple[str, float]]:
        """Weights on the skeleton that are 0 or not finite: name and place, and the value."""
        for layer, edges in zip(chain.layers, chain.skeleton_edges(), strict=True):
            weights = layer.weight.reshape(-1)[edges]
            bad = (weights == 0) | ~weights.isfinite()
            for edge, value in zip(edges[bad], weights[bad].tolist(), strict=True):
                at = ", ".join(str(int(i)) for i in torch.unravel_index(edge, layer.weight.shape))
                yield f"{self.names[layer.weight]}[{at}]", value

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
                _rescale(before, behind, generator, spread)
        return self

    @staticmethod
    def fold(model: nn.Module) -> nn.Module:
        """A copy of the model in which each BatchNorm behind a Linear or Conv is a part of it, as in evaluation mode.

        The pair y = γ (W x + b − μ) / √(σ² + ε) + β becomes one layer with a bias, which trains without batch
        statistics; an Identity stands where the BatchNorm stood.
        """
        model = copy.deepcopy(_unwrapped(model))
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

    "first": in dimension 1 of three or more, as a Conv leaves them; "last", as a Linear does; "flat": in dimension 1 of
    two, the positions of each beside each other; "only": in dimension 1 of two, as a BatchNorm1d is taken to leave them
    where nothing tells that there are three.
    """

    layer: str
    dimension: str
    rank: int | None = None  # of the tensor, its dimension of samples too; None where that is not known


@dataclass(frozen=True)
class _Bent:
    """What came through something that is not known to be positively homogeneous."""

    what: str
    depends_on_shapes: bool = False  # which example inputs would tell


class _Tracer(fx.Tracer):
    """Looks into what torch.compile and DistributedDataParallel have wrapped; modules of tropigrad.nn are leaves."""

    where: str | None = None  # the innermost module that could not be traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_ours(type(m)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        inner = _unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if getattr(m, "_compiled_call_impl", None) is not None:  # by m.compile(), in place
            forward = m.forward
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.where = self.where or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, of one that torch.compile or a data-parallel module wraps."""
    while True:
        inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _is_ours(what: Any) -> bool:
    """Whether it is of tropigrad.nn or of the kernels: max-plus layers and products, where paths end."""
    return f"{getattr(what, '__module__', '')}.".startswith(_OURS)


def _graph(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except Exception as error:  # tracing runs the model's own code, which fails in its own ways
        raise ValueError(
            f"BasisPaths: {tracer.where or type(model).__name__} cannot be traced by torch.fx "
            f"({type(error).__name__}: {error}); expected a forward without control flow on values: give BasisPaths "
            "the part of the model that has none, and its other parameters to an optimizer of their own"
        ) from error


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of its tensors."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = value.shape
        return value


class _Trace:
    """The layers by name, the pairs with hidden nodes between them, and why other modules are in no chain.

    shapes: of the tensors, where inputs are known: then hooks are taken to change nothing, for that is checked.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size] | None) -> None:
        self.layers: dict[str, Layer] = {}
        self.links: list[tuple[str, str]] = []
        self.reasons: dict[str, str] = {}
        self.shapes = shapes
        self.ranks: dict[fx.Node, int | None] = {}
        self.origin: dict[fx.Node, _Channels | _Bent | None] = {}  # None: a path may end here, nothing is claimed
        modules = dict(model.named_modules())
        for node in graph.nodes:
            if not _is_size(node):
                module = modules.get(str(node.target)) if node.op == "call_module" else None
                self._visit(node, module)
        for name, layer in self.layers.items():
            self.reasons.setdefault(name, "no hidden node at either side")
            if not all(p.requires_grad for p in (layer.weight, layer.bias) if p is not None):
                self.links = [link for link in self.links if name not in link]

    def _visit(self, node: fx.Node, module: nn.Module | None) -> None:
        sources = [x for x in node.all_input_nodes if x in self.origin]
        if node.target is operator.getitem and not sources:
            return
        name = str(node.target)
        found = self.origin[sources[0]] if len(sources) == 1 else None
        rank = self.ranks[sources[0]] if len(sources) == 1 else None
        hooked = module if self.shapes is None else None
        if hooked is not None and hooked._forward_pre_hooks and isinstance(found, _Channels):
            found = _Bent(f"a forward pre-hook of {name}", True)
        if isinstance(module, (*_LINEAR, *_NORMS)):
            found = self._enter(name, module, found, rank)
            rank = found.rank if found is not None else rank
            if self.shapes is not None and rank is not None and len(self.shapes[node]) != rank:
                raise ValueError(
                    f"BasisPaths: {name} makes a tensor of shape {tuple(self.shapes[node])}; expected {rank} "
                    "dimensions, of which the first counts samples"
                )
        elif _is_ours(type(module) if module is not None else node.target):
            self.reasons[name], found, rank = "paths end at a max-plus or min-plus layer", None, None
        elif found is None or node.target in _SUMS or node.op == "output":
            rank = max((self.ranks[x] or 0 for x in sources), default=0) or None if node.target in _SUMS else None
            rank = rank or (self.ranks[sources[0]] if len(sources) == 1 and _keeps_rank(node, module) else None)
            found = None
        elif isinstance(found, _Channels):
            found = self._through(node, module, found)
            rank = found.rank if isinstance(found, _Channels) else None
        else:
            rank = rank if _keeps_rank(node, module) else None
        if hooked is not None and hooked._forward_hooks and isinstance(found, _Channels):
            found = _Bent(f"a forward hook of {name} ({type(hooked).__name__})", True)
        if isinstance(found, _Channels) and sum(not _is_size(user) for user in node.users) > 1:
            self.reasons[found.layer] = "its output is used more than once"
            found = None
        if self.shapes is not None:
            rank = len(self.shapes[node]) if node in self.shapes else None
        self.origin[node], self.ranks[node] = found, rank

    def _enter(
        self, name: str, module: nn.Module, source: _Channels | _Bent | None, rank: int | None
    ) -> _Channels | None:
        """Enters a layer and its link to the one before; returns where its output comes from."""
        if name in self.layers:
            raise ValueError(
                f"BasisPaths: {name} is used twice, and {name}.weight with it; expected one use of each layer"
            )
        if module.weight is None:
            return None
        weight = _parameter(name, module, "weight")
        if isinstance(source, _Bent) and not isinstance(module, _NORMS):
            remedy = "; where it is, example_inputs show it" if source.depends_on_shapes else ""
            raise ValueError(
                f"BasisPaths: {source.what} stands before {name}, and is not known to be positively homogeneous: "
                f"{name}.weight is on no path; expected ReLU, LeakyReLU, PReLU, Dropout, pooling or flattening{remedy}"
            )
        if isinstance(module, _NORMS):
            source = None  # whatever scales its input, it takes away again
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
            channels = self.layers[source.layer].shape.targets
            if source.dimension == "flat" and shape.inputs % channels == 0:
                shape = Shape(1, shape.outputs, channels, shape.inputs // channels)  # a position is a tap
            expected = ("last", "flat", "only") if isinstance(module, nn.Linear) else ("first", "only")
            if shape.sources != channels or source.dimension not in expected or not _fits(module, source):
                raise ValueError(
                    f"BasisPaths: {name} takes {shape.sources} channels and {source.layer} makes {channels}, or in "
                    f"another dimension: {name}.weight is on no path; expected flattening from dimension 1 between "
                    "Conv and Linear; shapes that are not known are told by example_inputs"
                )
            self.links.append((source.layer, name))
        bias = None if module.bias is None else _parameter(name, module, "bias")
        self.layers[name] = Layer(name, shape, weight, bias)
        if isinstance(module, nn.Linear):
            return _Channels(name, "last", rank)
        if isinstance(module, nn.BatchNorm1d) and rank != 3:
            return _Channels(name, "only", rank)
        return _Channels(name, "first", _dimensions(type(module).__name__) + 2)

    def _through(self, node: fx.Node, module: nn.Module | None, found: _Channels) -> _Channels | _Bent:
        """Channels behind a node that is no layer."""
        name = getattr(node.target, "__name__", str(node.target))
        what = name if module is None else f"{name} ({type(module).__name__})"
        kind = type(module).__name__ if module is not None else name
        if isinstance(module, nn.Flatten) or node.target in _FLATTENING:
            return self._flattened(node, module, found) or _Bent(what, found.rank is None)
        if node.target in ("mean", torch.mean):
            return self._averaged(node, found) or _Bent(what, found.rank is None)
        if not (isinstance(module, _HOMOGENEOUS) if module is not None else node.target in _HOMOGENEOUS_CALLS):
            return _Bent(what)
        if "pool" in kind.lower():
            rank = _dimensions(kind) + 2
            if found.dimension == "only" and found.rank is None and rank == 3:
                return _Channels(found.layer, "first")  # of two dimensions it would mix channels: a Conv has three
            if found.dimension != "first" or found.rank not in (rank, None):
                return _Bent(what, found.rank is None)
        return found

    def _flattened(self, node: fx.Node, module: nn.Module | None, found: _Channels) -> _Channels | None:
        """Behind flattening of all dimensions but the first; None behind another."""
        if node.target in ("view", "reshape"):
            size: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
            if self.shapes is not None:
                before, behind = (self.shapes[x] for x in (node.all_input_nodes[0], node))
                flattens = len(behind) == 2 and behind[0] == before[0]
            else:
                is_pair = isinstance(size, Sequence) and len(size) == 2
                flattens = is_pair and size[1] == -1 and self._is_batch(size[0])
        else:
            settings = (module.start_dim, module.end_dim) if isinstance(module, nn.Flatten) else node.args[1:]
            named = dict(zip(("start_dim", "end_dim"), settings, strict=False)) | node.kwargs
            last = named.get("end_dim", -1)
            flattens = named.get("start_dim", 0) == 1 and (last == -1 or last == (found.rank or 0) - 1)
        if not flattens or (found.dimension == "first" and found.rank is None):
            return None
        return _Channels(found.layer, "last" if found.dimension == "last" else "flat", 2)

    def _averaged(self, node: fx.Node, found: _Channels) -> _Channels | None:
        """Behind a mean over positions; None where channels or samples are averaged too."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, Sequence) or found.dimension != "first" or found.rank is None:
            return None
        over = {dim % found.rank if isinstance(dim, int) else 0 for dim in dims}
        if not over or min(over) < 2:
            return None
        rank = found.rank if keeps else found.rank - len(over)
        return _Channels(found.layer, "first" if rank > 2 else "flat", rank)

    def _is_batch(self, size: Any) -> bool:
        """Whether a size is that of dimension 0 of a tensor whose dimension 0 counts samples."""
        if not isinstance(size, fx.Node):
            return False
        tensor, asked = size.args[0], size.args[1:]
        if size.target is operator.getitem and isinstance(tensor, fx.Node):
            is_shape = tensor.target == "size" or (tensor.target is getattr and tensor.args[1] == "shape")
            tensor = tensor.args[0] if is_shape else None
        elif size.target != "size":
            return False
        is_of_samples = isinstance(tensor, fx.Node) and (
            tensor.op == "placeholder" or isinstance(self.origin.get(tensor), _Channels)
        )
        return is_of_samples and asked == (0,)


def _is_size(node: fx.Node) -> bool:
    """Whether what it gives carries no values of a tensor."""
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
    )


def _keeps_rank(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it gives a tensor of as many dimensions as it takes."""
    if module is not None:
        of_pools = isinstance(module, _HOMOGENEOUS) and not isinstance(module, nn.Flatten)
        return of_pools or type(module).__module__ == "torch.nn.modules.activation"
    return node.target in _HOMOGENEOUS_CALLS


def _dimensions(name: str) -> int:
    """Of positions, as the names of torch have them: 2 of max_pool2d or BatchNorm2d."""
    return next(int(x) for x in name if x in "123")


def _fits(module: nn.Module, source: _Channels) -> bool:
    """Whether a layer takes tensors of that rank: a Conv takes one more as a sample, and another dimension then."""
    if isinstance(module, nn.Linear):
        return True
    rank = _dimensions(type(module).__name__) + 2
    return source.rank in (rank, None) and (source.dimension != "only" or rank == 3)


def _parameter(name: str, module: nn.Module, of: str) -> nn.Parameter:
    """The weight or bias of a layer, which must be a Parameter: what computes it would undo what a step does to it."""
    found = getattr(module, of)
    remedy = ""
    if parametrize.is_parametrized(module, of):
        remedy = f"torch.nn.utils.parametrize.remove_parametrizations({name}, {of!r}) makes it one"
    elif hasattr(module, f"{of}_g"):
        remedy = f"torch.nn.utils.remove_weight_norm({name}, {of!r}) makes it one"
    elif hasattr(module, f"{of}_mask"):
        remedy = f"torch.nn.utils.prune.remove({name}, {of!r}) makes it one"
    elif hasattr(module, f"{of}_orig"):
        remedy = f"torch.nn.utils.remove_spectral_norm({name}, {of!r}) makes it one"
    if remedy:
        raise ValueError(
            f"BasisPaths: {name}.{of} is parametrized, computed anew of other parameters in each forward; expected a "
            f"Parameter: {remedy}"
        )
    if not isinstance(found, nn.Parameter) or isinstance(found, nn.parameter.UninitializedParameter):
        raise ValueError(f"BasisPaths: {name}.{of} is a {type(found).__name__}; expected an initialised Parameter")
    return found


# ------------------------------------------------------------------------------------------------ rescaling


def _in_double(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy for evaluation in float64, and random inputs shaped as the examples; integers stay as they are."""
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(
            f"BasisPaths: example_inputs is a {type(given).__name__}; expected a tensor or a tuple, what forward takes"
        )
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x.device)

    return copy.deepcopy(model).double().eval(), tuple(drawn(x) for x in given)


def _run(model: nn.Module, call: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    try:
        with torch.no_grad():
            return call(*inputs)
    except Exception as error:  # the model's own code, as in tracing
        raise ValueError(
            f"BasisPaths: {type(model).__name__} does not run on example_inputs in float64 "
            f"({type(error).__name__}: {error}); expected what its forward takes"
        ) from error


def _tensors(output: Any) -> list[Tensor]:
    """Floating tensors of an output, in their order, through tuples, lists and dicts."""
    if isinstance(output, Tensor):
        return [output.double()] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [x for value in values for x in _tensors(value)]


@torch.no_grad()
def _check_by_rescaling(model: nn.Module, inputs: tuple[Any, ...], chains: Sequence[Chain]) -> None:
    """Raises ValueError, naming two layers, where scaling the nodes between them changes what the model computes.

    The model, a copy in float64, is another one then.
    """
    pairs = [(_of(model, before), _of(model, behind)) for chain in chains for before, behind in pairwise(chain.layers)]
    kept, wanted = copy.deepcopy(model.state_dict()), _tensors(_run(model, model, inputs))
    size = max((float(x.abs().max()) for x in wanted if x.numel()), default=0.0)

    def change(some: Sequence[tuple[Layer, Layer]]) -> float:
        model.load_state_dict(kept)
        generator = torch.Generator().manual_seed(1)
        for before, behind in some:
            _rescale(before, behind, generator, 1.0)
        outputs = zip(_tensors(_run(model, model, inputs)), wanted, strict=True)
        return max((float((x - y).abs().max()) for x, y in outputs if x.numel()), default=0.0)

    if change(pairs) <= _ROUNDING * size:
        return
    (before, behind), most = max(((pair, change([pair])) for pair in pairs), key=lambda found: found[1])
    raise ValueError(
        f"BasisPaths: scaling the nodes between {before.name} and {behind.name} changes the output by {most:.2g}, of "
        f"at most {size:.2g}; expected {behind.name} to take the channels that {before.name} makes, with nothing but "
        "positively homogeneous operations between them"
    )


def _of(model: nn.Module, layer: Layer) -> Layer:
    """The same layer of a copy."""
    module = model.get_submodule(layer.name)
    return replace(layer, weight=module.weight, bias=module.bias)


@torch.no_grad()
def _rescale(before: Layer, behind: Layer, generator: torch.Generator | None, spread: float) -> None:
    """Scales the hidden nodes between two layers by c = exp(spread · ξ), ξ standard normal, in place."""
    (G, O, _, _), (G_behind, _, I_behind, _) = before.shape, behind.shape
    device = torch.device("cpu") if generator is None else generator.device
    c = torch.randn(G * O, generator=generator, dtype=torch.float64, device=device)
    c = c.mul(spread).exp().to(before.weight)
    before.weight.view(before.shape).mul_(c.view(G, O, 1, 1))
    behind.weight.view(behind.shape).div_(c.view(G_behind, 1, I_behind, 1))
    if before.bias is not None:
        before.bias.mul_(c)


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
