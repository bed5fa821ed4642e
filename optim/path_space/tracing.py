"""Finds the layers of a model and the hidden nodes between them, by tracing it with torch.fx.

A tensor's channels are followed from the layer that makes them through what is positively homogeneous to the layer that
takes them. Everything else ends the paths there, or is refused by name where a weight would be on no path.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ...kernels.path_step import Shape
from .chain import ChainLayer

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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
_OURS = tuple(f"{__name__.partition('.')[0]}.{floor}." for floor in ("nn", "kernels"))


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
    """The origin of a tensor that came through something that is not known to be positively homogeneous."""

    what: str
    depends_on_shapes: bool = False  # which example inputs would tell


class _Tracer(fx.Tracer):
    """Looks into what torch.compile and DistributedDataParallel have wrapped; modules of tropigrad.nn are leaves."""

    where: str | None = None  # the innermost module that could not be traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_ours(type(m)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if getattr(m, "_compiled_call_impl", None) is not None:  # by m.compile(), in place
            forward = m.forward
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.where = self.where or f"{self.path_of_module(m)} ({type(m).__name__})"
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
    return f"{getattr(what, '__module__', '')}.".startswith(_OURS)


def graph_of(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except Exception as error:  # tracing runs the model's own code, which fails in its own ways
        raise ValueError(
            f"BasisPaths: {tracer.where or type(model).__name__} cannot be traced by torch.fx "
            f"({type(error).__name__}: {error}); expected a forward without control flow on values: give BasisPaths "
            "the part of the model that has none, and its other parameters to an optimizer of their own"
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
    """The layers by name, the pairs with hidden nodes between them, and why other modules are in no chain.

    shapes: those of the tensors, where there are example inputs. Hooks are then taken to change nothing, which
        check_by_rescaling holds them to.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, torch.Size] | None) -> None:
        self.layers: dict[str, ChainLayer] = {}
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
        origin = self.origin[sources[0]] if len(sources) == 1 else None
        rank = self.ranks[sources[0]] if len(sources) == 1 else None
        hooked = module if self.shapes is None else None
        if hooked is not None and hooked._forward_pre_hooks and isinstance(origin, _Channels):
            origin = _Bent(f"a forward pre-hook of {name}", True)
        if isinstance(module, (*LINEAR, *NORMS)):
            origin = self._enter(name, module, origin, rank)
            rank = origin.rank if origin is not None else rank
            if self.shapes is not None and rank is not None and len(self.shapes[node]) != rank:
                raise ValueError(
                    f"BasisPaths: {name} makes a tensor of shape {tuple(self.shapes[node])}; expected {rank} "
                    "dimensions, of which the first counts samples"
                )
        elif _is_ours(type(module) if module is not None else node.target):
            self.reasons[name], origin, rank = "paths end at a max-plus or min-plus layer", None, None
        elif origin is None or node.target in _SUMS or node.op == "output":
            rank = max((self.ranks[x] or 0 for x in sources), default=0) or None if node.target in _SUMS else None
            rank = rank or (self.ranks[sources[0]] if len(sources) == 1 and _keeps_rank(node, module) else None)
            origin = None
        elif isinstance(origin, _Channels):
            origin = self._through(node, module, origin)
            rank = origin.rank if isinstance(origin, _Channels) else None
        else:
            rank = rank if _keeps_rank(node, module) else None
        if hooked is not None and hooked._forward_hooks and isinstance(origin, _Channels):
            origin = _Bent(f"a forward hook of {name} ({type(hooked).__name__})", True)
        if isinstance(origin, _Channels) and sum(not _is_size(user) for user in node.users) > 1:
            self.reasons[origin.layer] = "its output is used more than once"
            origin = None
        if self.shapes is not None:
            rank = len(self.shapes[node]) if node in self.shapes else None
        self.origin[node], self.ranks[node] = origin, rank

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
        shape = Shape(weight.shape[0], 1, 1, 1)
        if isinstance(module, LINEAR):
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
        self.layers[name] = ChainLayer(name, shape, weight, bias)
        if isinstance(module, nn.Linear):
            return _Channels(name, "last", rank)
        if isinstance(module, nn.BatchNorm1d) and rank != 3:
            return _Channels(name, "only", rank)
        return _Channels(name, "first", _dimensions(type(module).__name__) + 2)

    def _through(self, node: fx.Node, module: nn.Module | None, origin: _Channels) -> _Channels | _Bent:
        """Channels behind a node that is no layer."""
        name = getattr(node.target, "__name__", str(node.target))
        what = name if module is None else f"{name} ({type(module).__name__})"
        kind = type(module).__name__ if module is not None else name
        if isinstance(module, nn.Flatten) or node.target in _FLATTENING:
            return self._flattened(node, module, origin) or _Bent(what, origin.rank is None)
        if node.target in ("mean", torch.mean):
            return self._averaged(node, origin) or _Bent(what, origin.rank is None)
        if not (isinstance(module, _HOMOGENEOUS) if module is not None else node.target in _HOMOGENEOUS_CALLS):
            return _Bent(what)
        if "pool" in kind.lower():
            rank = _dimensions(kind) + 2
            if origin.dimension == "only" and origin.rank is None and rank == 3:
                return _Channels(origin.layer, "first")  # of two dimensions it would mix channels: a Conv has three
            if origin.dimension != "first" or origin.rank not in (rank, None):
                return _Bent(what, origin.rank is None)
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
        return _Channels(origin.layer, "last" if origin.dimension == "last" else "flat", 2)

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
        return _Channels(origin.layer, "first" if rank > 2 else "flat", rank)

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
