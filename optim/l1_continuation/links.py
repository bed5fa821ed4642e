"""Pairs of layers with hidden units between them, where a unit is a channel that nothing mixes with others.

They are looked for in the graph that torch.fx traces. From a Linear or Conv layer its output is followed through
modules and functions that act on each channel for itself, to the layer that takes it. Anything else ends the search,
and the layer is named with what stood there.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),  # in eval mode
)
_POOLS = {
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "max"),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "average"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "adaptive"),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "adaptive"),
}
# in a forward: functions, and methods by their names
_ELEMENTWISE_CALLS = (
    *(torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6, "relu", "relu_"),
    *(torch.tanh, functional.tanh, "tanh", "tanh_", torch.sigmoid, functional.sigmoid, "sigmoid", "sigmoid_"),
    *(functional.leaky_relu, functional.elu, functional.selu, functional.gelu, functional.silu, functional.softplus),
    *(functional.dropout, functional.hardtanh, functional.hardswish, "contiguous"),
)
_POOL_CALLS: dict[Any, str] = {
    **dict.fromkeys((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d, torch.max_pool2d), "max"),
    **dict.fromkeys((functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), "average"),
    **dict.fromkeys((functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d), "adaptive"),
    **dict.fromkeys((functional.adaptive_max_pool1d, functional.adaptive_max_pool2d), "adaptive"),
}
_POOL_ARGUMENTS = {  # behind the input, by position
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "average": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive": ("output_size", "return_indices"),
}
_RESHAPING = ("view", "reshape", torch.reshape)

# where the channels of a tensor lie: in dimension 1 of a Conv's output; in the last one of a Linear's; in dimension 1
# of two, after the positions were laid beside the channels: position by position inside a channel, or the other way
Layout = Literal["first", "last", "flat, channel by channel", "flat, position by position"]


@dataclass(frozen=True)
class Elementwise:
    """An activation, or what is none in eval mode."""

    call: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Window:
    """A pooling, and whether a channel that is constant stays so at the borders."""

    name: str
    keeps_constants: bool
    keeps_zeros: bool


@dataclass(frozen=True)
class Scaling:
    """A BatchNorm, or a PReLU with a slope a channel."""

    module: nn.Module

    @property
    def features(self) -> int:
        return self.module.num_parameters if isinstance(self.module, nn.PReLU) else self.module.num_features  # pyright: ignore

    def vectors(self) -> dict[str, Tensor]:
        """Parameters and buffers with an entry a feature, by attribute."""
        names = ("weight", "bias", "running_mean", "running_var")
        return {n: t for n in names if isinstance(t := getattr(self.module, n, None), Tensor)}


Step = Elementwise | Window | Scaling


class Link:
    """A layer, the steps behind it, and the layer that takes its units; both are changed in place.

    C units, O outputs of the target, T taps of its kernel or positions that it takes of a unit.
    """

    def __init__(
        self, source: str, target: str, modules: dict[str, nn.Module], steps: list[Step], layout: Layout
    ) -> None:
        self.source, self.target = source, target
        self._from: Any = modules[source]
        self._to: Any = modules[target]
        self._steps = steps
        self._by_position = layout == "flat, position by position"

    @property
    def units(self) -> int:
        return self._from.weight.shape[0]

    @property
    def pads_with_zeros(self) -> bool:
        if not isinstance(self._to, CONVS) or self._to.padding_mode != "zeros":
            return False
        padding = self._to.padding
        if isinstance(padding, str):
            return padding == "same" and max(self._to.kernel_size) > 1
        return any(p > 0 for p in padding)

    def columns(self) -> Tensor:
        """The target's weights [O, C, T], a view or a copy."""
        weight = self._to.weight
        if isinstance(self._to, CONVS):
            return weight.flatten(2)
        if self._by_position:
            return weight.unflatten(1, (-1, self.units)).transpose(1, 2)
        return weight.unflatten(1, (self.units, -1))

    def constants(self) -> tuple[Tensor, Tensor, str | None]:
        """Values that the target sees of units that are constant.

        Returns:
            values [C, 1 or T] float64, of use where constant [C] holds; and the name of a pooling at whose borders a
            unit ceased to be constant, or None.
        """
        layer, pooling = self._from, None
        constant = (layer.weight.flatten(1) == 0).all(1)[:, None]
        bias = layer.weight.new_zeros(self.units) if layer.bias is None else layer.bias
        values = bias.detach().double()[:, None]
        for step in self._steps:
            if isinstance(step, Elementwise):
                values = step.call(values.clone())
            elif isinstance(step, Scaling):
                values, constant = self._scaled(step, values, constant)
            elif not step.keeps_constants:
                remains = constant & (values == 0) if step.keeps_zeros else torch.zeros_like(constant)
                pooling = step.name if bool((constant & ~remains).any()) else pooling
                constant = remains
        return values, (constant & values.isfinite()).all(1), pooling

    def _scaled(self, step: Scaling, values: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        vectors = {name: self._by_channel(tensor.detach().double()) for name, tensor in step.vectors().items()}
        if isinstance(step.module, nn.PReLU):
            values = torch.where(values > 0, values, vectors["weight"] * values)
            return values, constant.expand_as(values)
        module: Any = step.module
        values = (values - vectors["running_mean"]) / (vectors["running_var"] + module.eps).sqrt()
        constant = constant.expand_as(values)
        if "weight" in vectors:
            zero = vectors["weight"] == 0
            values, constant = (values * vectors["weight"]).where(~zero, 0), constant | zero
        return values + vectors.get("bias", 0), constant

    def _by_channel(self, vector: Tensor) -> Tensor:
        """[C, T] of a vector with an entry a feature."""
        return vector.view(-1, self.units).T if self._by_position else vector.view(self.units, -1)

    def _features(self, units: Tensor, features: int) -> Tensor:
        """The places of some units' features, in their order."""
        places = torch.arange(features, device=units.device)
        if self._by_position:
            return places.view(-1, self.units)[:, units].flatten()
        return places.view(self.units, -1)[units].flatten()

    # ----------------------------------------------------------------------------------------------- what changes it

    def keep(self, units: Tensor) -> None:
        """Drops all other units."""
        inputs = self._to.weight.shape[1]
        taken = self._features(units, inputs)
        _select(self._to, "weight", taken, dim=1)
        for step in self._steps:
            if isinstance(step, Scaling):
                features = self._features(units, step.features)
                for name in step.vectors():
                    _select(step.module, name, features)
                size = "num_parameters" if isinstance(step.module, nn.PReLU) else "num_features"
                setattr(step.module, size, len(features))
        _select(self._from, "weight", units)
        if self._from.bias is not None:
            _select(self._from, "bias", units)
        convolves = isinstance(self._from, CONVS), isinstance(self._to, CONVS)
        setattr(self._from, "out_channels" if convolves[0] else "out_features", len(units))
        setattr(self._to, "in_channels" if convolves[1] else "in_features", len(taken))

    def set_columns(self, unit: Tensor, weights: Tensor) -> None:
        """Writes a convolution's weights of one unit, [O, T]."""
        self._to.weight[:, unit] = weights.view_as(self._to.weight[:, unit]).to(self._to.weight.dtype)

    def add_to_bias(self, shift: Tensor) -> None:
        """Adds [O] to the target's bias, which is made where there is none."""
        weight, bias = self._to.weight, self._to.bias
        if bias is None:
            self._to.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
        else:
            bias.copy_(bias.double() + shift)

    def silence(self, unit: int) -> bool:
        """Makes all weights into a unit and out of it 0; returns whether one was not."""
        into, out = self._from.weight[unit], self._features(torch.tensor([unit]), self._to.weight.shape[1])
        bias = None if self._from.bias is None else self._from.bias[unit]
        parts = [into, self._to.weight[:, out], *([bias] if bias is not None else [])]
        changed = any(bool((part != 0).any()) for part in parts)
        into.zero_()
        self._to.weight[:, out] = 0
        if bias is not None:
            bias.zero_()
        return changed


def _select(module: nn.Module, name: str, places: Tensor, dim: int = 0) -> None:
    tensor = getattr(module, name)
    chosen = tensor.detach().index_select(dim, places.to(tensor.device))
    setattr(module, name, nn.Parameter(chosen, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else chosen)


# --------------------------------------------------------------------------------------------------- finding them


def find_links(model: nn.Module) -> tuple[list[Link], dict[str, str]]:
    """The links of a model, and name → why for the layers whose units cannot be looked at.

    The layer that makes the network's output is in neither.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code, which fails in its own ways
        why = f"the forward of {type(model).__name__} cannot be traced by torch.fx ({type(error).__name__})"
        return [], {name: why for name, module in model.named_modules() if isinstance(module, LAYERS)}
    search = _Search(model, graph)
    return search.links, search.left


class _Search:
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.links: list[Link] = []
        self.left: dict[str, str] = {}
        self._modules = dict(model.named_modules())
        self._uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self._owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        for node in graph.nodes:
            module = self._module(node)
            if module is None or not any(True for _ in module.parameters()):
                continue
            name = str(node.target)
            why = self._unfit(name, module)
            if why is None and isinstance(module, LAYERS):
                why = self._follow(node)
            if why is not None:
                self.left[name] = why

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def _unfit(self, name: str, module: nn.Module) -> str | None:
        """Why a module's own parameters cannot be cut; None where they can."""
        if self._uses[name] > 1:
            return "it is used more than once"
        if any(self._owners[id(p)] > 1 for p in module.parameters()):
            return "it shares a parameter with another module"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it has forward hooks, which may compute its weights or change its output"
        if type(module) in NORMS and getattr(module, "running_mean", None) is None:
            return "it has no running statistics, so a unit depends on the batch"
        if type(module) not in (*LAYERS, *NORMS, nn.PReLU):
            return f"compact does not know {type(module).__name__}"
        if isinstance(module, CONVS) and module.groups != 1:
            return f"it has {module.groups} groups"
        return None

    def _follow(self, node: fx.Node) -> str | None:
        """Enters the link that begins at a layer; returns why there is none where units end in another layer."""
        source = str(node.target)
        layer: Any = self._module(node)
        units = layer.weight.shape[0]
        layout: Layout = "first" if isinstance(layer, CONVS) else "last"
        steps: list[Step] = []
        while True:
            users = [user for user in node.users if not _is_batch_size(user)]
            if not any(self._has_parameters(user) for user in _downstream(users)):
                return None  # its units are the network's output, or nobody's
            if len(users) > 1:
                return "its output is used more than once"
            before, node = node, users[0]
            if [x for x in node.all_input_nodes if not _is_batch_size(x)] != [before]:
                return f"{_described(node)} joins its output with another"
            module = self._module(node)
            if module is not None and isinstance(module, LAYERS):
                return self._end(source, str(node.target), units, steps, layout)
            flat = _flattens(node, module)
            if flat is not None:
                if isinstance(flat, str):
                    return flat
                if not layout.startswith("flat"):
                    layout = "flat, channel by channel" if layout == "first" else "flat, position by position"
                continue
            step = self._step(node, module, layout, units)
            if isinstance(step, str):
                return step
            steps.append(step)

    def _end(self, source: str, target: str, units: int, steps: list[Step], layout: Layout) -> str | None:
        layer: Any = self._modules[target]
        why = self._unfit(target, layer)
        if why is not None:
            return f"{target} takes its units, and {why}"
        if isinstance(layer, CONVS):
            fits = layout == "first" and layer.in_channels == units
        else:
            fits = layer.in_features == units if layout == "last" else layout != "first"
            fits = fits and layer.in_features % units == 0
        if not fits:
            return f"{target} takes its output along another dimension than its units lie in"
        self.links.append(Link(source, target, self._modules, steps, layout))
        return None

    def _step(self, node: fx.Node, module: nn.Module | None, layout: Layout, units: int) -> Step | str:
        name, kind = _described(node), type(module)
        if module is None:
            return _call(node, layout)
        if kind in (*NORMS, nn.PReLU):
            why = self._unfit(str(node.target), module)
            if why is not None:
                return f"{name} follows, and {why}"
            step = Scaling(module)
            if kind is nn.PReLU and step.features == 1:
                slope: Any = module.weight
                return Elementwise(lambda v: torch.where(v > 0, v, slope.double() * v))
            if step.features % units != 0 or (step.features != units and not layout.startswith("flat")):
                return f"{name} follows, which has {step.features} features, not its {units} units"
            return step
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name} follows, which has forward hooks"
        if kind in _ELEMENTWISE:
            return Elementwise(module)
        if kind in _POOLS and layout == "first" and not getattr(module, "return_indices", False):
            return _window(name, _POOLS[kind], vars(module))
        return f"{name} follows, which is not known to act on each of its units alone"

    def _has_parameters(self, node: fx.Node) -> bool:
        module = self._module(node)
        of_the_model = any(x.op == "get_attr" for x in node.all_input_nodes)
        return of_the_model or (module is not None and any(True for _ in module.parameters()))


def _downstream(nodes: list[fx.Node]) -> Iterator[fx.Node]:
    seen, waiting = set(nodes), list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        fresh = [user for user in node.users if user not in seen]
        seen.update(fresh)
        waiting += fresh


def _described(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is the number of samples, or a shape of which that alone is read."""
    arguments: tuple[Any, ...] = (*node.args[1:], *node.kwargs.values())
    if node.op == "call_method" and node.target == "size" and arguments:
        return arguments == (0,)
    if _is_shape(node):
        return all(_reads_the_first(user) for user in node.users)
    shape = node.args[0] if _reads_the_first(node) else None
    return isinstance(shape, fx.Node) and _is_shape(shape)


def _is_shape(node: fx.Node) -> bool:
    by_attribute = node.target is getattr and node.args[1:] == ("shape",)
    return by_attribute or (node.op == "call_method" and node.target == "size" and len(node.args) == 1)


def _reads_the_first(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1:] == (0,)


def _flattens(node: fx.Node, module: nn.Module | None) -> bool | str | None:
    """Whether a node lays all but the samples in one dimension: True, None where it is no flattening, or why not."""
    if isinstance(module, nn.Flatten):
        dimensions: tuple[Any, ...] = (module.start_dim, module.end_dim)
    elif node.target in (torch.flatten, "flatten"):
        arguments = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        dimensions = (arguments.get("start_dim", 0), arguments.get("end_dim", -1))
    elif node.op in ("call_method", "call_function") and node.target in _RESHAPING:
        sizes = node.args[1:] or tuple(node.kwargs.values())
        sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
        if len(sizes) == 2 and isinstance(sizes[0], fx.Node) and _is_batch_size(sizes[0]) and sizes[1] == -1:
            return True
        return f"{_described(node)} follows, with sizes of its own; flatten(1) would do for any number of units"
    else:
        return None
    return True if dimensions == (1, -1) else f"{_described(node)} follows, and flattens dimensions {dimensions}"


def _call(node: fx.Node, layout: Layout) -> Step | str:
    """The step of a function or a method that a forward calls."""
    target: Any = node.target
    name = _described(node)
    rest, options = node.args[1:], node.kwargs
    if not any(isinstance(x, fx.Node) for x in (*rest, *options.values())) and "input" not in options:
        if target in _ELEMENTWISE_CALLS:
            if node.op == "call_method":
                return Elementwise(lambda v: getattr(v, target)(*rest, **options))
            return Elementwise(lambda v: target(v, *rest, **options))
        if layout == "first" and target in _POOL_CALLS:
            kind = _POOL_CALLS[target]
            named = dict(zip(_POOL_ARGUMENTS[kind], rest, strict=False)) | options
            if not named.get("return_indices", False):
                return _window(name, kind, named)
    return f"{name} follows, which is not known to act on each of its units alone"


def _window(name: str, kind: str, arguments: Mapping[str, Any]) -> Window:
    """The step of a pooling, by the arguments of its module or function."""
    if kind == "adaptive":
        return Window(name, True, True)
    padded = _largest(arguments.get("padding", 0)) > 0
    if kind == "max":
        # padding is −∞, and every window has an entry of its own, unless it is dilated
        return Window(name, not padded or _largest(arguments.get("dilation", 1)) == 1, False)
    counts_padding = padded and arguments.get("count_include_pad", True)
    return Window(name, not counts_padding and arguments.get("divisor_override") is None, True)


def _largest(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else max(size)
