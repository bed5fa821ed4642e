"""Traces a model by torch.export, for inputs of given shapes, where torch.fx cannot: a forward that asks for a shape.

torch.export gives a graph of ATen operators. Here those of Linear, Conv and BatchNorm modules become calls of them
again, and others the functions of torch.nn.functional that they are of; whatever has no such name stays an operator,
where paths end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .tracing import LINEAR, NORMS

_LAYERS = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
)
_NORMED = ("batch_norm", "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training")
_METHODS = ("view", "reshape", "contiguous")
_FUNCTIONS: dict[str, Any] = {
    "relu": torch.relu,
    "relu_": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "leaky_relu_": functional.leaky_relu,
    "flatten": torch.flatten,
    "mean": torch.mean,
    "cat": torch.cat,
    "concat": torch.cat,
    "add": torch.add,
    "add_": torch.add,
    "dropout": functional.dropout,
    "dropout_": functional.dropout,
    "feature_dropout": functional.dropout,
    "upsample_nearest1d": functional.interpolate,
    "upsample_nearest2d": functional.interpolate,
    "upsample_nearest3d": functional.interpolate,
    "upsample_linear1d": functional.interpolate,
    "upsample_bilinear2d": functional.interpolate,
    "upsample_trilinear3d": functional.interpolate,
}
for _dimensions in "123":
    for _pool in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        _FUNCTIONS[f"{_pool}{_dimensions}d"] = getattr(functional, f"{_pool}{_dimensions}d")


class ExportError(Exception):
    """torch.export cannot trace the model."""


def exported(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> tuple[fx.Graph, dict[fx.Node, torch.Size]]:
    """The graph of a model for inputs of those shapes, in training mode or not, and the shapes of its tensors.

    Raises:
        ExportError: it has none: its control flow depends on values.
    """
    was = model.training
    try:
        program = torch.export.export(model.train(training), inputs, strict=False)
    except Exception as error:  # the model's own code, as in tracing
        raise ExportError(str(error)) from error
    finally:
        model.train(was)
    signature = program.graph_signature
    of_model = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    modules, graph = dict(model.named_modules()), fx.Graph()
    found: dict[fx.Node, fx.Node] = {}
    shapes: dict[fx.Node, torch.Size] = {}

    def argument(node: fx.Node) -> fx.Node:
        """The node in the new graph; that of a parameter where an operator other than its layer takes it."""
        if node not in found:
            found[node] = graph.get_attr(of_model[node.name])
        return found[node]

    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in of_model:
                found[node] = graph.placeholder(node.name)
        elif node.op == "output":
            users = signature.user_outputs
            results = [x for x in node.all_input_nodes if x.name in users]
            graph.output(tuple(argument(x) for x in results))
        elif node.op == "get_attr":
            found[node] = graph.create_node("get_attr", node.target)
        else:
            found[node] = _rewritten(graph, node, argument, modules, of_model)
            stack = [*node.meta.get("nn_module_stack", {}).values()]
            if stack and stack[-1][0] and found[node].target is node.target:
                found[node].meta["where"] = f"{_name(node)} of {stack[-1][0]}"
        value = node.meta.get("val")
        if node in found and isinstance(value, Tensor):
            shapes[found[node]] = torch.Size(value.shape)
    return graph, shapes


def _name(node: fx.Node) -> str:
    """The name of an operator, without its overload."""
    return getattr(node.target, "__name__", "").partition(".")[0]


def _rewritten(
    graph: fx.Graph, node: fx.Node, argument, modules: dict[str, nn.Module], of_model: dict[str, str]
) -> fx.Node:
    """A node as torch.fx's tracing would have it."""
    operator = _name(node)
    if operator in (*_LAYERS, *_NORMED, "prelu"):
        owned = [x for x in node.all_input_nodes if x.name in of_model]
        owners = {of_model[x.name].rpartition(".")[0] for x in owned}
        kinds = NORMS if operator in _NORMED else (nn.PReLU,) if operator == "prelu" else LINEAR
        if len(owners) == 1 and isinstance(modules.get(owner := owners.pop()), kinds):
            tensors = [x for x in node.all_input_nodes if x not in owned]
            if tensors == [node.args[0]]:
                return graph.call_module(owner, (argument(tensors[0]),))
    args, kwargs = fx.map_arg(node.args, argument), fx.map_arg(node.kwargs, argument)
    if operator in _METHODS:
        return graph.call_method(operator, args, kwargs)
    return graph.create_node("call_function", _FUNCTIONS.get(operator, node.target), args, kwargs)
