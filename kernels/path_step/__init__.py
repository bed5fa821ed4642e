"""A step of gradient descent on the values of paths: see definition.py for its mathematics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import PLAIN_FLOATS
from ..runtime.dispatch import Plan, operator
from ..runtime.implementations import Implementations
from . import by_cpp, by_triton
from .definition import Layer, Options, Shape, Skeleton, Wiring, path_step_ref, prefixes, skeleton, suffixes

__all__ = [
    "Layer",
    "Options",
    "Shape",
    "Skeleton",
    "Wiring",
    "layout",
    "path_step",
    "path_step_ref",
    "prefixes",
    "skeleton",
    "suffixes",
    "take_step",
]

# ------------------------------------------------------------------------------------------------ the step


def _operator(parameters, grads, momenta, run_momentum, events, sizes, symbols, biased, lr, rate, *others) -> None:
    """parameters: of each layer the weight and, where it is biased, the bias; grads, and momenta if any, likewise.

    sizes: as `layout` gives them; to a compiler they may be symbols, which torch reads five times as slowly.
    The others are those of Options; rate takes the place of lr.
    """
    layers = _layers(parameters, grads, momenta, biased)
    options = Options(lr if rate is None else rate, *others)
    _step(layers, *_laid_out(sizes or symbols, len(biased)), run_momentum, events, options)


def _plan(parameters, grads, momenta, run_momentum, events, sizes, symbols, biased, lr, rate, *options) -> Plan:
    weight, layers = parameters[0], _layers(parameters, grads, momenta, biased)
    if rate is not None and not (rate.is_cpu and rate.dtype == torch.float64):
        return []
    if _STEPS.backend_of(weight) != "cpp" or not by_cpp.takes(layers, run_momentum):
        return []
    shapes, wiring = _laid_out(sizes or symbols, len(biased))
    bones = skeleton(shapes, weight.device, wiring)
    if run_momentum is not None and run_momentum.shape != (bones.runs,):
        return []
    return by_cpp.plan(layers, bones, options[-1])


def _layers(parameters, grads, momenta, biased) -> list[Layer]:
    members = zip(parameters, grads, momenta or [None] * len(parameters), strict=True)
    layers = []
    for has_bias in biased:
        weight, grad, momentum = next(members)
        bias = next(members) if has_bias else (None, None, None)
        layers.append(Layer(weight, grad, *bias[:2], momentum, bias[2]))
    return layers


def layout(shapes: Sequence[Shape], wiring: Wiring | None = None) -> list[int]:
    """Shapes as numbers, G, O, I, T of layer after layer, and behind them the wiring, where the layers are no chain.

    Of each layer that is whether it is turned, how many parts its sources have, and the two numbers of each part.
    """
    numbers = [n for shape in shapes for n in shape]
    if wiring is None or wiring == Wiring.of_chain(shapes):
        return numbers
    for parts, turned in zip(*wiring, strict=True):
        numbers += [int(turned), len(parts), *(n for part in parts for n in part)]
    return numbers


def _laid_out(numbers: Sequence[int], count: int) -> tuple[tuple[Shape, ...], Wiring | None]:
    """The shapes of `count` layers and their wiring, None of a chain: what `layout` was given."""
    shapes = tuple(Shape(*numbers[at : at + 4]) for at in range(0, 4 * count, 4))
    rest = iter(numbers[4 * count :])
    layers = []
    for turned in rest:
        layers.append((tuple((next(rest), next(rest)) for _ in range(next(rest))), bool(turned)))
    return shapes, Wiring(*zip(*layers, strict=True)) if layers else None


def _no_vmap(info, in_dims, *args) -> NoReturn:
    raise NotImplementedError(
        "path_step: vmap does not apply, as it works in place; expected a call for each of the networks"
    )


def _by_triton(layers, bones, run_momentum, events, options) -> None:
    path_step_ref(layers, bones, run_momentum, events, options, by_triton.layer_flows, by_triton.move)


_STEPS = Implementations(
    "path_step", source=by_cpp.SOURCE, torch=path_step_ref, cpp=by_cpp.path_step, triton=_by_triton
)


def _step(
    layers: Sequence[Layer],
    shapes: tuple[Shape, ...],
    wiring: Wiring | None,
    run_momentum: Tensor | None,
    events: Tensor,
    options: Options,
) -> None:
    weight = layers[0].weight
    if not _are_apart(layers, run_momentum, events):
        layers = _apart(layers, run_momentum, events)
    bones = skeleton(shapes, weight.device, wiring)
    if run_momentum is not None and run_momentum.shape != (bones.runs,):
        raise ValueError(
            f"path_step: run_momentum has shape {tuple(run_momentum.shape)}; expected ({bones.runs},), one for each run"
        )
    if not isinstance(options.lr, Tensor) or options.lr.is_cpu:
        options = options._replace(lr=_checked_rate(options.lr))
    chosen = _STEPS.backend_of(weight)
    if chosen == "cpp":
        takes = by_cpp.takes(layers, run_momentum)
    else:
        takes = chosen == "torch" or by_triton.takes(layers, options)
    _STEPS.functions[chosen if takes else "torch"](layers, bones, run_momentum, events, options)
    if not weight.is_inference():  # such tensors have no version
        torch.autograd.graph.increment_version([x for layer in layers for x in layer[:3:2] if x is not None])


def _checked_rate(lr: float | Tensor) -> float:
    lr = float(lr)
    if not math.isfinite(lr):
        raise ValueError(f"path_step: lr is {lr}; expected a finite number; nothing was written")
    return lr


_IS_GRADIENT = tuple(name.endswith("grad") for name in Layer._fields)


def _are_apart(layers: Sequence[Layer], run_momentum: Tensor | None, events: Tensor) -> bool:
    """Whether nothing that is written lies in another of the operands, or between its elements."""
    operands = [*zip((x for layer in layers for x in layer), _IS_GRADIENT * len(layers), strict=True)]
    operands += (run_momentum, False), (events, False)
    end_written = end = 0
    for begin, behind, reads in sorted((*memory.span(x), reads) for x, reads in operands if x is not None):
        if begin < (end_written if reads else end):
            return False
        end, end_written = max(end, behind), end_written if reads else max(end_written, behind)
    return True


def _apart(layers: Sequence[Layer], run_momentum: Tensor | None, events: Tensor) -> Sequence[Layer]:
    """The layers, with copies of gradients that lie in something that is written.

    Raises:
        ValueError: two tensors that are written have memory in common.
    """
    written = {
        f"layers[{number}].{name}": x
        for number, layer in enumerate(layers)
        for name, x, reads in zip(Layer._fields, layer, _IS_GRADIENT, strict=True)
        if x is not None and not reads
    }
    written |= {"events": events} if run_momentum is None else {"run_momentum": run_momentum, "events": events}
    for (name, x), (other, y) in combinations(written.items(), 2):
        if memory.overlap(x, y):
            raise ValueError(
                f"path_step: {name} and {other} share memory; expected tensors with places of their own, as each is "
                "written; nothing was written"
            )

    def free(x: Tensor | None) -> Tensor | None:
        return x if x is None else memory.apart(x, *written.values())

    return [layer._replace(grad=free(layer.grad), bias_grad=free(layer.bias_grad)) for layer in layers]


# ------------------------------------------------------------------------------------------------ operator

_STEP = operator(
    "path_step(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)? run_momentum, "
    "Tensor(d!) events, int[] sizes, SymInt[] symbols, bool[] biased, float lr, Tensor? rate, float momentum, "
    "float weight_decay, float least_ratio, float floor, bool norms) -> ()",
    _operator,
    fake=lambda *args: None,
    vmap=_no_vmap,
    plan=_plan,
)

# ------------------------------------------------------------------------------------------------ public


def path_step(
    layers: Sequence[Layer],
    shapes: Sequence[Shape],
    run_momentum: Tensor | None,
    events: Tensor,
    options: Options,
    wiring: Wiring | None = None,
) -> None:
    """One step of SGD on the path values of a chain, in place: u ← u − η m_u, V ← V − η m_V, m ← μ m + ∂L/∂v + λ v.

    Source: Meng et al., "G-SGD: Optimizing ReLU Neural Networks in its Positively Scale-Invariant Space", ICLR 2019.

    Args:
        layers: two or more, from the input on, all float32 or all float64, on one device. Weights are contiguous;
            gradients are shaped as what they are of, in any strides, and may be views of what is written: the step
            is that on copies of them. A bias [G · O] has a gradient too. Where
            options.momentum is not 0 every parameter has a momentum, shaped as it is, 0 before the first step.
        shapes: how the elements of each layer's weight lie as edges [G, O, I, T]; G · I nodes in are the G · O nodes
            out of the layer before.
        run_momentum: that of V, [skeleton(shapes, device).runs], where options.momentum is not 0.
        events: int64 [3], on that device; to it is added how many R the bounds held, how many of those were not
            positive, and how many weights kept their values because the new ones would not have been finite.
        options: learning rate, a number or a tensor [], momentum, weight decay, the bounds, and whether the chain is
            measured by path norms.
        wiring: of layers that do not simply follow one another: which nodes each of them takes.

    Raises:
        TypeError: something is no strided tensor, or of another dtype.
        ValueError: sizes, devices or strides do not fit, a layer takes nodes of one that is not before it, a bias or a
            momentum is missing, tensors that are written share memory, as tied weights do, or lr is not finite. Nothing
            has been written.
    """
    _check(layers, shapes, run_momentum, events, options, wiring)
    sizes, biased = layout(shapes, wiring), [layer.bias is not None for layer in layers]
    with torch.no_grad():
        take_step(*by_cpp.operands(layers), run_momentum, events, sizes, biased, options)


def take_step(
    parameters: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    run_momentum: Tensor | None,
    events: Tensor,
    sizes: list[int],
    biased: list[bool],
    options: Options,
) -> None:
    """`path_step` without its checks, which take as long as the step of a small layer; to be called inside no_grad.

    Args:
        parameters: of layer after layer the weight and, where it has one, the bias.
        grads, momenta: of each of them; no momenta where options.momentum is 0.
        sizes: `layout` of their shapes and wiring.
        biased: of each layer whether it has a bias.
    """
    lr, momentum, decay, ratio, floor, norms = options
    rate, symbols = lr if isinstance(lr, Tensor) else None, []
    if torch.compiler.is_compiling():
        sizes, symbols = symbols, sizes
        if rate is None:  # to a compiler a number would be a constant
            rate = torch.tensor(float(lr), dtype=torch.float64, device="cpu")
    elif True in [x.is_neg() for x in grads]:  # torch's own way with lazy negations fails where run_momentum is None
        grads = [x.resolve_neg() for x in grads]
    layout, rates = (sizes, symbols, biased), (float(lr) if rate is None else 0.0, rate)
    settings = float(momentum), float(decay), float(ratio), float(floor), bool(norms)
    _STEP.call(parameters, grads, momenta, run_momentum, events, *layout, *rates, *settings)


def _check(
    layers: Sequence[Layer],
    shapes: Sequence[Shape],
    run_momentum,
    events,
    options: Options,
    wiring: Wiring | None,
) -> None:
    if len(layers) < 2 or len(layers) != len(shapes):
        raise ValueError(
            f"path_step: {len(layers)} layers and {len(shapes)} shapes came; expected two or more, a shape for each"
        )
    first = layers[0].weight
    memory.check_dense("path_step", "layers[0].weight", first)
    if first.dtype not in PLAIN_FLOATS:
        raise TypeError(f"path_step: layers[0].weight is {first.dtype}; expected a tensor of float64 or float32")
    dtype, device = first.dtype, first.device
    _check_options(options)
    moving = options.momentum != 0
    if wiring is None:
        for number, (before, shape) in enumerate(pairwise(shapes), 1):
            if shape.sources != before.targets:
                raise ValueError(
                    f"path_step: shapes[{number}] has {shape.sources} nodes in; expected the {before.targets} before it"
                )
    else:
        _check_wiring(wiring, shapes)
    for number, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
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


def _check_wiring(wiring: Wiring, shapes: Sequence[Shape]) -> None:
    if not len(wiring.sources) == len(wiring.turned) == len(shapes):
        raise ValueError(
            f"path_step: wiring has {len(wiring.sources)} layers' sources and {len(wiring.turned)} of turned; expected "
            f"both of the {len(shapes)} layers"
        )
    for number, (parts, shape) in enumerate(zip(wiring.sources, shapes, strict=True)):
        for made, count in parts:
            if not -1 <= made < number:
                raise ValueError(
                    f"path_step: layers[{number}] takes nodes of layers[{made}]; expected layers before it, or -1: "
                    "what flows in a cycle has no path values"
                )
            if count < 1 or (made >= 0 and count != shapes[made].targets):
                expected = "1 or more" if made < 0 else f"all {shapes[made].targets}"
                raise ValueError(
                    f"path_step: layers[{number}] takes {count} nodes of layers[{made}]; expected {expected}"
                )
        if sum(count for _, count in parts) != shape.sources:
            raise ValueError(
                f"path_step: shapes[{number}] has {shape.sources} nodes in; expected the "
                f"{sum(count for _, count in parts)} of its wiring"
            )
    if all(made < 0 for parts in wiring.sources for made, _ in parts):
        raise ValueError("path_step: no layer takes nodes of another; expected a hidden node at least")


def _check_options(options: Options) -> None:
    lr = options.lr
    if isinstance(lr, Tensor):
        if lr.dim() or not lr.is_floating_point():
            raise ValueError(f"path_step: lr is {lr.dtype} of shape {tuple(lr.shape)}; expected one float, shape ()")
        if lr.requires_grad:
            raise ValueError("path_step: lr requires a gradient, which no step has; expected lr.detach()")
    for name, x in zip(Options._fields, options, strict=True):
        if not isinstance(x, (int, float, Real)) and not (name == "lr" and isinstance(x, Tensor)):
            raise TypeError(f"path_step: {name} is a {type(x).__name__}; expected a number")


def _check_momentum(name: str, x: Tensor | None, moving: bool, dtype, device, shape=None) -> None:
    if (x is not None) != moving:
        expected = "a torch.Tensor, as options.momentum is not 0" if moving else "None, as options.momentum is 0"
        raise ValueError(f"path_step: {name} is a {type(x).__name__}; expected {expected}")
    if x is not None:
        _check_tensor(name, x, dtype, device, shape)


def _check_tensor(name: str, x, dtype: torch.dtype, device: torch.device, shape=None, in_one_piece=True) -> None:
    memory.check_dense("path_step", name, x)
    if x.dtype != dtype:
        raise TypeError(f"path_step: {name} is {x.dtype}; expected {dtype}")
    if x.device != device:
        raise ValueError(f"path_step: {name} is on {x.device}; expected {device}, where the first weight is")
    if shape is not None and x.shape != shape:
        raise ValueError(f"path_step: {name} has shape {tuple(x.shape)}; expected {tuple(shape)}")
    if in_one_piece and not x.is_contiguous():
        raise ValueError(f"path_step: {name} has strides {x.stride()}; expected a contiguous tensor")
