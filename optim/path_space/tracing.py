"""Finds the layers of a model and the hidden nodes between them, by tracing it with torch.fx.

A tensor's channels are followed from the layers that make them through what is positively homogeneous, and through
concatenations, to all the layers that take them. Everything else ends the paths there: then no node before it is
hidden. What stands between two layers as an activation or a change of shape would, and is none that scaling passes, is
refused by name, for it is more likely a mistake.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ...kernels.path_step import Shape
from .chain import ChainLayer

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
_FLATTENING = (torch.flatten, "flatten", "view", "reshape")
_HOMOGENEOUS_CALLS = (
    *(torch.relu, torch.relu_, functional.relu, functional.relu_, functional.leaky_relu, "relu", "relu_", "contiguous"),
    *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.interpolate),
    *(functional.max_pool1d, functional.max_pool2d, functional.max_pool3d),
    *(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d),
    *(functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d),
)
_JOINS = (torch.cat, torch.concat, torch.concatenate)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")  # where paths meet, they end
_ACTIVATIONS = (
    *("abs", "celu", "clamp", "cos", "elu", "erf", "exp", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish"),
    *("hardtanh", "log_softmax", "logsigmoid", "mish", "relu6", "rrelu", "selu", "sigmoid", "silu", "sin", "softmax"),
    *("softmin", "softplus", "softshrink", "softsign", "sqrt", "square", "tanh", "tanhshrink", "threshold"),
)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_PACKAGE = __name__.partition(".")[0]
_OURS = f"{_PACKAGE}.nn.", f"{_PACKAGE}.kernels."


@dataclass(frozen=True)
class _Channels:
    """Which layers made a tensor's channels, and where they lie.

    parts: one behind the other, the layer, or None where scaling does not reach them, and how many channels: where that
        is not known, the tensor that has so many.
    dimension: "first": in dimension 1 of three or more, as a Conv leaves them; "last", as a Linear does; "flat": in
        dimension 1 of two, the positions of each beside each other; "only": in dimension 1 of two, as a BatchNorm1d is
        taken to leave them where nothing tells that there are three.
    """

    parts: tuple[tuple[str | None, int | fx.Node], ...]
    dimension: str
    rank: int | None = None  # of the tensor, its dimension of samples too; None where that is not known

    @property
    def layers(self) -> list[str]:
        return [layer for layer, _ in self.parts if layer is not None]


@dataclass(frozen=True)
class _Bent:
    """The origin of a tensor that came through something that is not known to be positively homogeneous."""

    what: str
    depends_on_shapes: bool = False  # which example inputs would tell


class _Tracer(fx.Tracer):
    """Looks into what torch.compile and DistributedDataParallel have wrapped; modules of tropigrad.nn are leaves."""

    where: str | None = None  # the innermost module that could not be traced

    def __init__(self, opaque: Iterable[str] = ()) -> None:
        super().__init__()
        self.opaque = opaque  # modules that are not looked into

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or _is_ours(type(m)):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if getattr(m, "_compiled_call_impl", None) is not None:  # by m.compile(), in place
            forward = m.forward
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.where = self.where or self.path_of_module(m)
            raise


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, of one that torch.compile or a data-parallel module wraps."""
    while True:
        inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _is_ours(what: Any) -> bool:
    """Whether a class or function is of tropigrad.nn or the kernels: max-plus layers and products, where paths end."""
    if isinstance(namespace := getattr(what, "namespace", None), str):  # an operator, as torch.export leaves it
        return namespace == _PACKAGE
    return f"{getattr(what, '__module__', '')}.".startswith(_OURS)


def graph_of(model: nn.Module, may_be_opaque: bool = False) -> tuple[fx.Graph, dict[str, str]]:
    """The graph of a model, and the modules that could not be looked into, where they may be opaque: name → why not.

    Raises:
        ValueError: the model cannot be traced.
    """
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(opaque)
        try:
            return tracer.trace(model), opaque
        except Exception as error:  # tracing runs the model's own code, which fails in its own ways
            said = f"{type(error).__name__}: {error}"
            if may_be_opaque and tracer.where and tracer.where not in opaque:
                opaque[tracer.where] = said
                continue
            what = type(model).__name__
            if tracer.where:
                what = f"{tracer.where} ({type(model.get_submodule(tracer.where)).__name__})"
            raise ValueError(
                f"BasisPaths: {what} cannot be traced by torch.fx ({said}); expected a forward without control flow on "
                "values: with example_inputs torch.export traces it for inputs of those shapes; or give BasisPaths the "
                "part of the model that can be traced, and its other parameters to an optimizer of their own"
            ) from error


class Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of its tensors."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value


class Trace:
    """The layers by name, whose channels each of them takes, and where paths end.

    layers: in the order of their use.
    sources: of each layer the layers that make its channels, and how many; None where those are no hidden nodes.
    ends: of layers, and of modules that are none, why paths end there.

    shapes: those of the tensors, where there are example inputs. Hooks are then taken to change nothing, which
        check_by_rescaling holds them to.
    opaque: modules that could not be looked into, and why.
    """

    def __init__(
        self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size] | None, opaque: dict[str, str]
    ) -> None:
        self.layers: dict[str, ChainLayer] = {}
        self.sources: dict[str, list[tuple[str | None, int]]] = {}
        self.ended: set[str] = set()  # layers whose nodes are no hidden ones
        self.ends = {name: f"paths end here: torch.fx cannot trace it ({said})" for name, said in opaque.items()}
        self.shapes = shapes
        self.ranks: dict[fx.Node, int | None] = {}
        self.widths: dict[fx.Node, int] = {}  # channels of tensors that no layer made, as layers behind them tell
        self.origin: dict[fx.Node, _Channels | _Bent | None] = {}  # None: a path may end here, nothing is claimed
        modules = dict(model.named_modules())
        for node in graph.nodes:
            if not _is_size(node):
                module = modules.get(str(node.target)) if node.op == "call_module" else None
                self._visit(node, module)
        self._check_used_once(graph)
        for name, layer in self.layers.items():
            if not all(p.requires_grad for p in (layer.weight, layer.bias) if p is not None):
                self._end(layer for layer, _ in self.sources[name])
                self._end([name])
        for name, parts in self.sources.items():
            self.sources[name] = [(None if made in self.ended else made, count) for made, count in parts]

    def _end(self, layers: Iterable[str | None], why: str = "") -> None:
        """No node behind these layers is hidden."""
        for layer in layers:
            if layer is not None:
                self.ended.add(layer)
                if why:
                    self.ends.setdefault(layer, why)

    def _visit(self, node: fx.Node, module: nn.Module | None) -> None:
        sources = [x for x in node.all_input_nodes if x in self.origin]
        if node.target is operator.getitem and not sources:
            return
        name = str(node.target)
        origin = self.origin[sources[0]] if len(sources) == 1 else None
        rank = self.ranks[sources[0]] if len(sources) == 1 else None
        hooked = module if self.shapes is None else None
        if hooked is not None and hooked._forward_pre_hooks and isinstance(origin, _Channels):
            origin = self._bent(origin, f"a forward pre-hook of {name}", True)
        if isinstance(module, (*LINEAR, *NORMS)):
            self._end_all(sources if len(sources) > 1 else (), node, module)
            origin = self._enter(name, module, origin, rank)
            rank = origin.rank if origin is not None else rank
            if self.shapes is not None and rank is not None and len(self.shapes[node]) != rank:
                raise ValueError(
                    f"BasisPaths: {name} makes a tensor of shape {tuple(self.shapes[node])}; expected {rank} "
                    "dimensions, of which the first counts samples"
                )
        elif node.target in _JOINS:
            rank = max((self.ranks[x] or 0 for x in sources), default=0) or None
            origin = self._joined(node)
            if origin is None:
                self._end_all(sources, node, module)
        elif isinstance(origin, _Channels) and not self._is_opaque(node, module):
            origin = self._through(node, module, origin)
            rank = origin.rank if isinstance(origin, _Channels) else None
        else:
            self._end_all(sources, node, module)
            is_sum = node.target in _SUMS
            if self._is_opaque(node, module) and not is_sum and node.op == "call_module":
                kind = "a max-plus or min-plus layer" if _is_ours(type(module)) else f"a {type(module).__name__}"
                self.ends.setdefault(name, f"paths end at {kind}")
            if not isinstance(origin, _Bent) or self._is_opaque(node, module):
                origin = None
            if is_sum:
                rank = max((self.ranks[x] or 0 for x in sources), default=0) or None
            else:
                rank = self.ranks[sources[0]] if len(sources) == 1 and _keeps_rank(node, module) else None
        if hooked is not None and hooked._forward_hooks and isinstance(origin, _Channels):
            origin = self._bent(origin, f"a forward hook of {name} ({type(hooked).__name__})", True)
        if self.shapes is not None:
            rank = len(self.shapes[node]) if node in self.shapes else None
        self.origin[node], self.ranks[node] = origin, rank

    def _is_opaque(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node is neither a layer, nor what may stand between two as an activation or a change of shape."""
        if module is not None:
            kind = type(module).__module__
            between = kind in ("torch.nn.modules.activation", "torch.nn.modules.pooling", "torch.nn.modules.flatten")
            has_own = any(True for _ in module.parameters()) and not isinstance(module, nn.PReLU)
            return has_own or not (isinstance(module, _HOMOGENEOUS) or between)
        if node.op == "output" or node.target in _SUMS:
            return True
        if node.target in (*_HOMOGENEOUS_CALLS, *_FLATTENING, "mean", torch.mean):
            return False
        return node.op == "get_attr" or _name_of(node).rstrip("_") not in _ACTIVATIONS

    def _end_all(self, tensors: Iterable[fx.Node], node: fx.Node, module: nn.Module | None) -> None:
        """Paths end where these tensors go into a node."""
        where = node.meta.get("where") or (f"{node.target} ({type(module).__name__})" if module else _name_of(node))
        for tensor in tensors:
            origin = self.origin.get(tensor)
            if isinstance(origin, _Channels):
                self._end(origin.layers, "" if node.op == "output" else f"its paths end at {where}")

    def _bent(self, origin: _Channels, what: str, depends_on_shapes: bool = False) -> _Bent:
        self._end(origin.layers, f"its paths end at {what}")
        return _Bent(what, depends_on_shapes)

    def _check_used_once(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            within = [layer for layer in self.layers if layer.startswith(f"{node.target}.")]
            if node.op == "call_module" and within:
                raise ValueError(
                    f"BasisPaths: {within[0]}.weight is used by {node.target} beside {within[0]}; expected one use of "
                    "each parameter: scaling the nodes of one would change the other"
                )
            owner, _, name = str(node.target).rpartition(".")
            if node.op == "get_attr" and owner in self.layers and name in ("weight", "bias") and node.users:
                user = next(iter(node.users))
                raise ValueError(
                    f"BasisPaths: {node.target} is used by {user.name} beside {owner}; expected one use of each "
                    "parameter: scaling the nodes of one would change the other"
                )

    def _joined(self, node: fx.Node) -> _Channels | None:
        """The channels of some tensors one behind the other; None where no known channels are, or other dimensions."""
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if not isinstance(tensors, Sequence) or not isinstance(dim, int):
            return None
        origins = [self.origin.get(x) if isinstance(x, fx.Node) else None for x in tensors]
        known = [x for x in origins if isinstance(x, _Channels)]
        if not known or any(isinstance(x, _Bent) for x in origins) or len({x.dimension for x in known}) > 1:
            return None
        dimension, rank = known[0].dimension, next((x.rank for x in known if x.rank is not None), None)
        if self.shapes is not None and isinstance(tensors[0], fx.Node):
            rank = len(self.shapes[tensors[0]])
        at = dim if dim >= 0 or rank is None else dim + rank
        if dimension == "last":
            is_of_channels = dim == -1 or (rank is not None and at == rank - 1)
        else:
            is_of_channels = at == 1 and dimension != "flat"  # positions of another number would be beside each other
        if not is_of_channels:
            return None
        parts: list[tuple[str | None, int | fx.Node]] = []
        for tensor, origin in zip(tensors, origins, strict=True):
            if isinstance(origin, _Channels):
                parts += origin.parts
            elif not isinstance(tensor, fx.Node):
                return None
            else:
                shape = None if self.shapes is None else self.shapes.get(tensor)
                parts.append((None, tensor if shape is None else shape[at]))
        return _Channels(tuple(parts), dimension, rank)

    def _enter(
        self, name: str, module: nn.Module, source: _Channels | _Bent | None, rank: int | None
    ) -> _Channels | None:
        """Enters a layer and its link to those before; returns where its output comes from."""
        if name in self.layers:
            raise ValueError(
                f"BasisPaths: {name} is used twice, and {name}.weight with it; expected one use of each layer: a path "
                "through both, or through a cycle, would move one weight twice"
            )
        if isinstance(module, NORMS) and isinstance(source, _Channels):
            self._end(source.layers, f"its paths end at {name} ({type(module).__name__})")
        if module.weight is None:
            return None
        weight = _parameter(name, module, "weight")
        if isinstance(source, _Bent) and not isinstance(module, NORMS):
            remedy = "; where it is, example_inputs show it" if source.depends_on_shapes else ""
            raise ValueError(
                f"BasisPaths: {source.what} stands before {name}, and is not known to be positively homogeneous: "
                f"{name}.weight is on no path; expected ReLU, LeakyReLU, PReLU, Dropout, pooling or flattening{remedy}"
            )
        if isinstance(module, NORMS):
            source = None  # whatever scales its input, it takes away again
        if weight.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"BasisPaths: {name}.weight is {weight.dtype}; expected float32 or float64: under autocast they stay so"
            )
        if not weight.is_contiguous():
            raise ValueError(f"BasisPaths: {name}.weight has strides {weight.stride()}; expected it to be contiguous")
        shape, turned = Shape(weight.shape[0], 1, 1, 1), isinstance(module, TRANSPOSED)
        if isinstance(module, LINEAR):
            G = int(getattr(module, "groups", 1))
            shape = Shape(G, weight.shape[0] // G, weight.shape[1], weight[0, 0].numel())
            shape = shape.turned if turned else shape
        parts: list[tuple[str | None, int]] = [(None, shape.sources)]
        if isinstance(source, _Channels):
            shape, parts = self._taken(name, module, shape, source)
        bias = None if module.bias is None else _parameter(name, module, "bias")
        self.layers[name] = ChainLayer(name, shape, weight, bias, turned)
        self.sources[name] = parts
        own = ((name, shape.targets),)
        if isinstance(module, nn.Linear):
            return _Channels(own, "last", rank)
        if isinstance(module, nn.BatchNorm1d) and rank != 3:
            return _Channels(own, "only", rank)
        return _Channels(own, "first", _dimensions(type(module).__name__) + 2)

    def _taken(
        self, name: str, module: nn.Module, shape: Shape, source: _Channels
    ) -> tuple[Shape, list[tuple[str | None, int]]]:
        """The shape of a layer, and how many channels it takes of which others."""
        counts = [count if isinstance(count, int) else self.widths.get(count) for _, count in source.parts]
        unknown = counts.count(None)
        channels = sum(count or 0 for count in counts)
        if unknown == 1 and source.dimension != "flat" and shape.sources > channels:
            tensor = source.parts[counts.index(None)][1]
            assert isinstance(tensor, fx.Node)
            counts[counts.index(None)] = self.widths[tensor] = shape.sources - channels
            unknown, channels = 0, shape.sources
        if source.dimension == "flat" and not unknown and shape.inputs % channels == 0:
            shape = Shape(1, shape.outputs, channels, shape.inputs // channels)  # a position is a tap
        if unknown:
            self._end(source.layers, "its paths end at a concatenation of which example_inputs would show the channels")
            return shape, [(None, shape.sources)]
        expected = ("last", "flat", "only") if isinstance(module, nn.Linear) else ("first", "only")
        if shape.sources != channels or source.dimension not in expected or not _fits(module, source):
            raise ValueError(
                f"BasisPaths: {name} takes {shape.sources} channels and {', '.join(source.layers)} makes {channels}, "
                f"or in another dimension: {name}.weight is on no path; expected flattening from dimension 1 between "
                "Conv and Linear; shapes that are not known are told by example_inputs"
            )
        return shape, [(made, count or 0) for (made, _), count in zip(source.parts, counts, strict=True)]

    def _through(self, node: fx.Node, module: nn.Module | None, origin: _Channels) -> _Channels | _Bent:
        """Channels behind a node that is no layer."""
        name = _name_of(node)
        what = name if module is None else f"{name} ({type(module).__name__})"
        kind = type(module).__name__ if module is not None else name
        if isinstance(module, nn.Flatten) or node.target in _FLATTENING:
            return self._flattened(node, module, origin) or self._bent(origin, what, origin.rank is None)
        if node.target in ("mean", torch.mean):
            return self._averaged(node, origin) or self._bent(origin, what, origin.rank is None)
        if not (isinstance(module, _HOMOGENEOUS) if module is not None else node.target in _HOMOGENEOUS_CALLS):
            return self._bent(origin, what)
        if "pool" in kind.lower():
            rank = _dimensions(kind) + 2
            if origin.dimension == "only" and origin.rank is None and rank == 3:
                return _Channels(origin.parts, "first")  # of two dimensions it would mix channels: a Conv has three
            if origin.dimension != "first" or origin.rank not in (rank, None):
                return self._bent(origin, what, origin.rank is None)
        if ("sampl" in kind or kind == "interpolate") and origin.dimension != "first":
            return self._bent(origin, what, origin.rank is None)
        return origin

    def _flattened(self, node: fx.Node, module: nn.Module | None, origin: _Channels) -> _Channels | None:
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
            flattens = named.get("start_dim", 0) == 1 and (last == -1 or last == (origin.rank or 0) - 1)
        if not flattens or (origin.dimension == "first" and origin.rank is None):
            return None
        return _Channels(origin.parts, "last" if origin.dimension == "last" else "flat", 2)

    def _averaged(self, node: fx.Node, origin: _Channels) -> _Channels | None:
        """Behind a mean over positions; None where channels or samples are averaged too."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, Sequence) or origin.dimension != "first" or origin.rank is None:
            return None
        over = {dim % origin.rank if isinstance(dim, int) else 0 for dim in dims}
        if not over or min(over) < 2:
            return None
        rank = origin.rank if keeps else origin.rank - len(over)
        return _Channels(origin.parts, "first" if rank > 2 else "flat", rank)

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


def _name_of(node: fx.Node) -> str:
    """Returns what a node calls: the name of a module, a function or a method."""
    name = getattr(node.target, "__name__", str(node.target))
    return name.partition(".")[0] if node.op == "call_function" else name  # an operator's overload stands behind a dot


def _is_size(node: fx.Node) -> bool:
    """Whether a node's result is a size, a device or a dtype, and carries no values of a tensor."""
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
    )


def _keeps_rank(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node gives a tensor of as many dimensions as it takes."""
    if module is not None:
        of_pools = isinstance(module, _HOMOGENEOUS) and not isinstance(module, nn.Flatten)
        return of_pools or type(module).__module__ == "torch.nn.modules.activation"
    return node.target in _HOMOGENEOUS_CALLS


def _dimensions(name: str) -> int:
    """The number of dimensions of positions, which torch has in its names: 2 of max_pool2d or BatchNorm2d."""
    return next(int(x) for x in name if x in "123")


def _fits(module: nn.Module, source: _Channels) -> bool:
    """Whether a layer takes tensors of that rank: a Conv takes one more as a sample, and another dimension then."""
    if isinstance(module, nn.Linear):
        return True
    rank = _dimensions(type(module).__name__) + 2
    return source.rank in (rank, None) and (source.dimension != "only" or rank == 3)


def _parameter(name: str, module: nn.Module, of: str) -> nn.Parameter:
    """The weight or bias of a layer, which must be a Parameter: what computes it would undo what a step does to it."""
    parameter = getattr(module, of)
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
    if not isinstance(parameter, nn.Parameter) or isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"BasisPaths: {name}.{of} is a {type(parameter).__name__}; expected an initialised Parameter")
    return parameter
