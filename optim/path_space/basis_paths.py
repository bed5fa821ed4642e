"""The chains of a network in which paths are counted: where its nodes may be rescaled, and where they may not.

A hidden node is a channel that one Linear, Conv or ConvTranspose layer makes and that only such layers take, one or
several, with nothing between them but what is positively homogeneous, f(c x) = c f(x) for c > 0, and concatenations.
Everywhere else (inputs, outputs, sums, products, the input of a BatchNorm, modules of other kinds) a path begins or
ends. A BatchNorm's scale and shift are a layer of their own, one edge and one bias a channel. A bias is an edge from a
constant node, so it counts among the m weights.

Layers that take nodes of each other are a chain, be it that they follow one another or that it branches. Of two or more
layers, with m weights and H hidden nodes, it has m − H basis paths (kernels/path_step). A layer with no
hidden node at either side has one path an edge, of value w: it takes plain SGD.

Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..distributed import check_whole, data_parallel
from .chain import Chain, joined
from .exporting import ExportError, exported
from .rescaling import check_by_rescaling, in_double, rescale, run_on
from .tracing import LINEAR, NORMS, Shapes, Trace, graph_of, unwrapped


class BasisPaths:
    """The chains of a model, found by tracing it with torch.fx, or else with torch.export.

    Args:
        model: of Linear, Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d and BatchNorm modules, positively
            homogeneous activations and poolings between them (ReLU, LeakyReLU, PReLU, Dropout, max and average pooling,
            upsampling, flattening), sums and concatenations. Paths end at modules of other kinds (LayerNorm,
            attention, max-plus layers), and at those that torch.fx cannot look into. Before the first layer and behind
            the last anything may stand. Of a model that DistributedDataParallel or torch.compile has wrapped, the
            module inside is taken. Give it the wrapper of DistributedDataParallel, which has made the weights of all
            ranks those of the first, and not the bare model.
        example_inputs: what the model's forward takes, a tensor or a tuple of positional arguments, for its shapes and
            dtypes alone. With them every shape is known, torch.export traces what torch.fx cannot (a forward that asks
            for a shape), and the result is checked: on random numbers shaped so, a copy in float64 must compute the
            same when its hidden nodes are rescaled. Without them inputs are taken to have a dimension of samples, and
            those of a BatchNorm1d behind a Linear to have no other than channels; what the shapes alone decide, and
            what has forward hooks, is refused.

    Attributes:
        chains: each a tuple of layers with hidden nodes between them. Layers with a parameter that does not require
            gradients are in none: their nodes could not be rescaled, nor those that they take.
        plain: name → (parameter, why it takes plain SGD).

    Printed, it is a table of both; `draw` shows the skeleton.

    Raises:
        ValueError: the model itself cannot be traced; an activation or a change of shape that is not positively
            homogeneous, or is not known to be, stands between two layers; a parameter is shared by two modules or used
            outside of its own, or a module is used twice; a weight is computed of others, by a parametrization; a
            weight on the skeleton is 0 or not finite. The message names the module and the parameter. The model takes
            another number of example_inputs, does not run on them, or computes something else when it is rescaled.
        TypeError: model is no module, or its parameters are shared out, as under FSDP; or a parameter of a chain is
            neither float32 nor float64.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"BasisPaths: model is a {type(model).__name__}; expected a torch.nn.Module")
        _, self._group = data_parallel(model)
        model = unwrapped(model)
        check_whole("BasisPaths", model)
        _check_not_shared(model)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        checked, inputs = model, None
        if example_inputs is not None:
            checked, inputs = in_double(model, example_inputs)
        trace = _trace(model, checked, inputs)
        self.chains = tuple(joined(trace.layers, trace.sources))
        if inputs is not None:
            check_by_rescaling(checked, inputs, self.chains)
        self._ends = trace.ends
        in_chains = {parameter for chain in self.chains for parameter in chain.parameters}
        self.plain = {
            name: (parameter, self._reason(name, trace))
            for parameter, name in self.names.items()
            if parameter not in in_chains and parameter.requires_grad
        }
        self.check_skeleton()

    def _reason(self, name: str, trace: Trace) -> str:
        """Why a parameter takes plain SGD."""
        module = name.rpartition(".")[0]
        if module in trace.layers:
            return trace.ends.get(module, "no hidden node at either side")
        while module and module not in trace.ends:
            module = module.rpartition(".")[0]
        return trace.ends.get(module, "not a weight of a path")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": None}  # a process group belongs to its process

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

    def moving(self, optimizer: str) -> list[tuple[Chain, list[Tensor]]]:
        """The chains that have gradients, and these, in the order of their parameters.

        Raises:
            RuntimeError: a chain's parameter has none while others of the chain have, or a sparse one.
        """
        moving = []
        for chain in self.chains:
            grads = [grad for grad in [p.grad for p in chain.parameters] if grad is not None]
            if not grads:
                continue
            if len(grads) < len(chain.parameters):
                lacking = next(p for p in chain.parameters if p.grad is None)
                raise RuntimeError(
                    f"{optimizer}: {self.names[lacking]} has no gradient, others of its chain have; expected those "
                    "of all, for they move together: freeze it (requires_grad = False) before BasisPaths"
                )
            for p, grad in zip(chain.parameters, grads, strict=True):
                if grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"{optimizer}: the gradient of {self.names[p]} is {grad.layout}; expected torch.strided"
                    )
            moving.append((chain, grads))
        return moving

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

        Edges into the node, and its bias, are multiplied by c, edges out of it divided by c. Under
        DistributedDataParallel all ranks take the c of the first: every rank makes the call.
        """
        for chain in self.chains:
            for layer in chain.skeleton.made:
                rescale(chain, layer, generator, spread)
            if self._group is not None:
                for parameter in chain.parameters:
                    dist.broadcast(parameter, group=self._group, group_src=0)
        return self

    @staticmethod
    def fold(model: nn.Module) -> nn.Module:
        """A copy of the model in which each BatchNorm behind a Linear or Conv is a part of it, as in evaluation mode.

        The pair y = γ (W x + b − μ) / √(σ² + ε) + β becomes one layer with a bias, which trains without batch
        statistics; an Identity stands where the BatchNorm stood.
        """
        model = copy.deepcopy(unwrapped(model))
        modules = dict(model.named_modules())
        graph, _ = graph_of(model)
        for node in graph.nodes:
            behind = modules.get(str(node.target)) if node.op == "call_module" else None
            source = node.args[0] if node.args else None
            if not isinstance(behind, NORMS) or not isinstance(source, fx.Node) or len(source.users) != 1:
                continue
            before = modules.get(str(source.target)) if source.op == "call_module" else None
            if isinstance(before, LINEAR):
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
                    f"paths, chain {number}" + ", s" * (at == special) + self._taken(chain, at),
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

    def _taken(self, chain: Chain, layer: int) -> str:
        """Returns the table's words on a layer that takes other nodes than those before it, or that ends paths."""
        parts = chain.wiring.sources[layer]
        names = ["inputs" if made < 0 else chain.layers[made].name for made, _ in parts]
        said = f", takes {' and '.join(names)}" if chain.branches and any(made >= 0 for made, _ in parts) else ""
        end = self._ends.get(chain.layers[layer].name)
        return f"{said}; {end}" if end and layer not in chain.skeleton.made else said

    def draw(self, axes: Any, chain: int = 0, most: int = 12) -> None:
        """Draws a chain's nodes, at most `most` of a layer, and its skeleton on matplotlib axes; the rest in grey.

        Raises:
            ValueError: the chain branches.
        """
        shown = self.chains[chain]
        if shown.branches:
            raise ValueError(
                f"BasisPaths.draw: chain {chain}, from {shown.layers[0].name} on, branches; expected one whose layers "
                "follow one another: print(paths) says what each layer takes"
            )
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


def _trace(model: nn.Module, checked: nn.Module, inputs: tuple[Any, ...] | None) -> Trace:
    """Traces a model by torch.fx; where that fails by torch.export, if there are inputs of `checked`, its copy.

    A module that neither looks into is one where paths end.
    """
    try:
        graph, opaque = graph_of(model)
    except ValueError as error:
        if inputs is not None:
            try:
                return Trace(model, *exported(checked, inputs, model.training), {})
            except ExportError:
                pass
        graph, opaque = graph_of(model, may_be_opaque=True)
        if not opaque:
            raise error
    shapes = None
    if inputs is not None:
        run = Shapes(checked, graph)
        run_on(checked, run.run, inputs)
        shapes = run.shapes
    return Trace(model, graph, shapes, opaque)


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
