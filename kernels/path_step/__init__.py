"""A step of gradient descent on the values of paths: see definition.py for its mathematics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend, eager
from . import cpu, portable
from .definition import FLOATS, Layer, Options, Shape, Skeleton, path_step_ref, prefixes, skeleton, suffixes

__all__ = [
    "Layer",
    "Options",
    "Shape",
    "Skeleton",
    "path_step",
    "path_step_ref",
    "prefixes",
    "skeleton",
    "suffixes",
    "take_step",
]

# ------------------------------------------------------------------------------------------------ operator

torch.library.define(
    "tropigrad::path_step",
    "(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)? run_momentum, Tensor(d!) events, "
    "SymInt[] shapes, bool[] biased, Tensor lr, float momentum, float weight_decay, float least_ratio, float floor, "
    "bool norms) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _operator(parameters, grads, momenta, run_momentum, events, shapes, biased, lr, *options) -> None:
    """parameters: of each layer the weight and, where it is biased, the bias; grads, and momenta if any, likewise.

    shapes: G, O, I, T of layer after layer; options: those of Options behind lr.
    """
    members = zip(parameters, grads, momenta or [None] * len(parameters), strict=True)
    layers = []
    for has_bias in biased:
        weight, grad, momentum = next(members)
        bias = next(members) if has_bias else (None, None, None)
        layers.append(Layer(weight, grad, *bias[:2], momentum, bias[2]))
    _step(layers, tuple(Shape(*shapes[at : at + 4]) for at in range(0, len(shapes), 4)), run_momentum, events,
          Options(lr, *options))  # fmt: skip


torch.library.impl("tropigrad::path_step", backend.DEVICES, _operator)


@torch.library.register_fake("tropigrad::path_step")
def _(parameters, grads, momenta, run_momentum, events, shapes, biased, lr, *options):
    return None


def _chosen(weight: Tensor) -> str:
    return backend.choose("path_step", weight.device, ("torch", "cpp", "triton"), weight.dtype, cpu.SOURCE)


def _step(
    layers: Sequence[Layer], shapes: tuple[Shape, ...], run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    weight = layers[0].weight
    bones = skeleton(shapes, weight.device)
    if run_momentum is not None and run_momentum.shape != (bones.runs,):
        raise ValueError(
            f"path_step: run_momentum has shape {tuple(run_momentum.shape)}; expected ({bones.runs},), one for each run"
        )
    if isinstance(options.lr, Tensor) and options.lr.is_cpu:
        options = options._replace(lr=options.lr.item())
    chosen = _chosen(weight)
    if chosen == "cpp" and cpu.takes(layers, run_momentum):
        cpu.path_step(layers, bones, run_momentum, events, options)
        return
    if chosen == "triton" and portable.takes(layers, options):
        path_step_ref(layers, bones, run_momentum, events, options, portable.node_flows, portable.move)
    else:
        path_step_ref(layers, bones, run_momentum, events, options)
    if not weight.is_inference():  # such tensors have no version
        torch.autograd.graph.increment_version([x for layer in layers for x in layer[:3:2] if x is not None])


# ------------------------------------------------------------------------------------------------ public


def path_step(
    layers: Sequence[Layer],
    shapes: Sequence[Shape],
    run_momentum: Tensor | None,
    events: Tensor,
    options: Options,
) -> None:
    """One step of SGD on the path values of a chain, in place: u ← u − η m_u, V ← V − η m_V, m ← μ m + ∂L/∂v + λ v.

    Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.

    Args:
        layers: two or more, from the input on, all float32 or all float64, on one device. Weights are contiguous;
            gradients are shaped as what they are of, in any strides; a bias [G · O] has a gradient too. Where
            options.momentum is not 0 every parameter has a momentum, shaped as it is, 0 before the first step.
        shapes: how the elements of each layer's weight lie as edges [G, O, I, T]; G · I nodes in are the G · O nodes
            out of the layer before.
        run_momentum: that of V, [skeleton(shapes, device).runs], where options.momentum is not 0.
        events: int64 [3], on that device; to it is added how many R the bounds held, how many of those were not
            positive, and how many weights kept their values because the new ones would not have been finite.
        options: learning rate, a number or a tensor [], momentum, weight decay, the bounds, and whether the chain is
            measured by path norms.

    Raises:
        TypeError: something is no strided tensor, or of another dtype.
        ValueError: sizes, devices or strides do not fit, or a bias or a momentum is missing. Nothing has been written.
    """
    _check(layers, shapes, run_momentum, events, options)
    with torch.no_grad():
        take_step(layers, shapes, run_momentum, events, options)


def take_step(
    layers: Sequence[Layer], shapes: Sequence[Shape], run_momentum: Tensor | None, events: Tensor, options: Options
) -> None:
    """`path_step` without its checks, which take as long as the step of a small layer; to be called inside no_grad."""
    shapes = tuple(shapes)
    tensors, label = cpu.operands(layers, run_momentum, events), ("path_step", shapes)
    known = eager.recall(label, tensors)
    if known:
        try:
            known(*tensors, *map(float, options))
            return
        except eager.NotPlain:
            known = False
    if eager.is_unobserved(*[x for x in tensors if x is not None]):
        weight = layers[0].weight
        if known is None and _chosen(weight) == "cpp" and cpu.takes(layers, run_momentum):
            eager.remember(cpu.prepare(layers, skeleton(shapes, weight.device)), label, tensors)
        _step(layers, shapes, run_momentum, events, options)
        return
    members = [member for layer in layers for member in (layer[:2] + layer[4:5], layer[2:4] + layer[5:])]
    parameters, grads, momenta = ([x for x in found if x is not None] for found in zip(*members, strict=True))
    lr, *others = options
    torch.ops.tropigrad.path_step(
        parameters, grads, momenta, run_momentum, events,
        [size for shape in shapes for size in shape], [layer.bias is not None for layer in layers],
        lr if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64), *others,
    )  # fmt: skip


def _check(layers: Sequence[Layer], shapes: Sequence[Shape], run_momentum, events, options: Options) -> None:
    if len(layers) < 2 or len(layers) != len(shapes):
        raise ValueError(
            f"path_step: {len(layers)} layers and {len(shapes)} shapes came; expected two or more, a shape for each"
        )
    first = layers[0].weight
    if not isinstance(first, Tensor) or first.dtype not in FLOATS:
        what = first.dtype if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise TypeError(f"path_step: layers[0].weight is {what}; expected a tensor of float64 or float32")
    dtype, device = first.dtype, first.device
    moving = options.momentum != 0
    nodes = shapes[0].sources
    for number, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        if shape.sources != nodes:
            raise ValueError(
                f"path_step: shapes[{number}] has {shape.sources} nodes in; expected the {nodes} before it"
            )
        nodes = shape.targets
        weight, grad, bias, bias_grad, momentum, bias_momentum = layer
        name, edges = f"layers[{number}]", nodes * shape.inputs * shape.taps
        _check_tensor(f"{name}.weight", weight, dtype, device)
        if weight.numel() != edges:
            raise ValueError(f"path_step: {name}.weight has shape {tuple(weight.shape)}; expected {edges} elements")
        _check_tensor(f"{name}.grad", grad, dtype, device, weight.shape, in_one_piece=False)
        _check_momentum(f"{name}.momentum", momentum, moving, dtype, device, weight.shape)
        if bias is not None:
            _check_tensor(f"{name}.bias", bias, dtype, device, (nodes,))
            _check_tensor(f"{name}.bias_grad", bias_grad, dtype, device, (nodes,), in_one_piece=False)
            _check_momentum(f"{name}.bias_momentum", bias_momentum, moving, dtype, device, (nodes,))
    _check_momentum("run_momentum", run_momentum, moving, dtype, device)
    _check_tensor("events", events, torch.int64, device, (3,))


def _check_momentum(name: str, x: Tensor | None, moving: bool, dtype, device, shape=None) -> None:
    if (x is not None) != moving:
        expected = "a torch.Tensor, as options.momentum is not 0" if moving else "None, as options.momentum is 0"
        raise ValueError(f"path_step: {name} is a {type(x).__name__}; expected {expected}")
    if x is not None:
        _check_tensor(name, x, dtype, device, shape)


def _check_tensor(name: str, x, dtype: torch.dtype, device: torch.device, shape=None, in_one_piece=True) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"path_step: {name} is a {type(x).__name__}; expected a torch.Tensor")
    if x.dtype != dtype or x.layout != torch.strided:
        raise TypeError(f"path_step: {name} is {x.dtype}, {x.layout}; expected {dtype}, torch.strided")
    if x.device != device:
        raise ValueError(f"path_step: {name} is on {x.device}; expected {device}, where the first weight is")
    if shape is not None and x.shape != shape:
        raise ValueError(f"path_step: {name} has shape {tuple(x.shape)}; expected {tuple(shape)}")
    if in_one_piece and not x.is_contiguous():
        raise ValueError(f"path_step: {name} has strides {x.stride()}; expected a contiguous tensor")
