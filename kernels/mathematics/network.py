"""A bias-free network as the list of its weights: the nodes that its layers join, and the path ops' checks.

A node of layer l is an element of the l-th activation, flattened: channel · (height · width) + row · width + column of
a convolution, the feature of a Linear layer. Flattening an image for a Linear layer thus renames no node.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.compiler import is_compiling

from ..runtime import memory
from ..runtime.arguments import FLOATS, as_pair

Size = int | Sequence[int]
_LIMIT = 2**31  # nodes or weights of one layer must be fewer: the kernels number them by 32 bits


class Layer(NamedTuple):
    """A convolution of C × H × W nodes to O × P × Q with weights [O, C, KH, KW]; a Linear layer has one position."""

    C: int
    H: int
    W: int
    O: int
    P: int
    Q: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int


def nodes_into(layer: Layer) -> int:
    return layer.C * layer.H * layer.W


def nodes_out_of(layer: Layer) -> int:
    return layer.O * layer.P * layer.Q


def weights_of(layer: Layer) -> int:
    return layer.O * layer.C * layer.KH * layer.KW


def problem_of(flat: Tensor, paths: Tensor, layers: Sequence[Layer]) -> dict[str, int | str]:
    """The sizes and the dtype that the kernels' configs depend on."""
    widths = {"M": layers[0].O, "N": layers[0].C, "K": layers[-1].O, "weights": flat.shape[1]}
    return {**widths, "P": paths.shape[0] * paths.shape[1], "dtype": str(flat.dtype)}


def pack(layers: tuple[Layer, ...]) -> list[int]:
    """The flat list of integers that operators take for the layers."""
    return list(itertools.chain.from_iterable(layers))


def unpack(sizes: Sequence[int]) -> tuple[Layer, ...]:
    """The layers of the integers that `pack` gave."""
    return tuple(itertools.starmap(Layer, zip(*[iter(sizes)] * len(Layer._fields), strict=True)))


def as_list(op: str, weights: Iterable[Tensor]) -> list[Tensor]:
    """The weights as a list, from any iterable: an nn.ParameterList, or a generator, which can be read only once.

    Raises:
        TypeError: weights is no iterable, or one tensor, or a mapping.
    """
    if not isinstance(weights, list | tuple) and (
        isinstance(weights, Tensor | Mapping | str) or not isinstance(weights, Iterable)
    ):
        raise TypeError(f"{op}: weights is a {type(weights).__name__}; expected a list of weights, one a layer")
    return list(weights)


def network(
    op: str, weights: Sequence[Tensor], input_size: Size | None, stride: Size, padding: Size
) -> tuple[Layer, ...]:
    """The layers of these weights. Everything is checked, and errors name the weight.

    Raises:
        TypeError: weights are no strided float tensors of one dtype.
        ValueError: there are none, their devices, ranks or sizes do not fit, or input_size, stride or padding does not.
    """
    _check_tensors(op, weights)
    shapes = tuple([w.shape for w in weights])
    if type(stride) is type(padding) is int and (input_size is None or type(input_size) is int) and not is_compiling():
        return _known_layers(op, shapes, input_size, stride, padding)
    return _layers(op, shapes, input_size, stride, padding)


def _layers(
    op: str, shapes: Sequence[Sequence[int]], input_size: Size | None, stride: Size, padding: Size
) -> tuple[Layer, ...]:
    count = sum(len(shape) == 4 for shape in shapes)
    strides = _pairs(op, "stride", stride, count, 1)
    paddings = _pairs(op, "padding", padding, count, 0)
    if len(shapes[0]) == 4 and input_size is None:
        raise ValueError(f"{op}: input_size is None; expected the (height, width) that the first convolution sees")
    if len(shapes[0]) == 2 and input_size is not None:
        raise ValueError(f"{op}: input_size is {input_size}; expected None, as weights[0] is of a Linear layer")
    layers: list[Layer] = []
    for index, shape in enumerate(shapes):
        if len(shape) == 2:
            layer = Layer(shape[1], 1, 1, shape[0], 1, 1, 1, 1, 1, 1, 0, 0)
            fits = not layers or nodes_out_of(layers[-1]) == layer.C
        elif layers and len(shapes[index - 1]) == 2:
            raise ValueError(
                f"{op}: weights[{index}] {tuple(shape)} of a convolution follows a Linear layer; expected "
                "convolutions first, then Linear layers"
            )
        else:
            (SH, SW), (PH, PW) = next(strides), next(paddings)
            H, W = (layers[-1].P, layers[-1].Q) if layers else _pair(op, "input_size", input_size, 1)
            O, C, KH, KW = shape
            layer = Layer(C, H, W, O, (H + 2 * PH - KH) // SH + 1, (W + 2 * PW - KW) // SW + 1, KH, KW, SH, SW, PH, PW)
            fits = not layers or C == layers[-1].O
            if min(KH, KW, layer.P, layer.Q) < 1:
                raise ValueError(
                    f"{op}: weights[{index}] has a window of {KH} × {KW} over {H} × {W} nodes with padding "
                    f"{PH} × {PW}; expected one that fits"
                )
        if not fits:
            before = layers[-1]
            expected = f"(out, {nodes_out_of(before)})" if len(shape) == 2 else f"(out, {before.O}, kh, kw)"
            raise ValueError(
                f"{op}: weights[{index}] has shape {tuple(shape)}; expected {expected}, to follow "
                f"weights[{index - 1}]'s {tuple(shapes[index - 1])}"
            )
        if max(nodes_into(layer), nodes_out_of(layer), weights_of(layer)) >= _LIMIT:
            raise ValueError(f"{op}: weights[{index}] {tuple(shape)} has 2³¹ weights or nodes; expected fewer")
        layers.append(layer)
    return tuple(layers)


_known_layers = functools.lru_cache(1 << 10)(_layers)  # half of a small network's call


def _check_tensors(op: str, weights: Sequence[Tensor]) -> None:
    if not weights:
        raise ValueError(f"{op}: weights is empty; expected one weight or more, from the input to the output")
    first = weights[0]
    for index, w in enumerate(weights):
        memory.check_dense(op, f"weights[{index}]", w)
        if w.dtype not in FLOATS:
            raise TypeError(f"{op}: weights[{index}] is {w.dtype}; expected float64, float32, float16 or bfloat16")
        if w.dim() not in (2, 4):
            raise ValueError(
                f"{op}: weights[{index}] has shape {tuple(w.shape)}; expected (out, in) or (out, in, kh, kw)"
            )
        if w.dtype != first.dtype:
            raise TypeError(f"{op}: weights[{index}] is {w.dtype} and weights[0] is {first.dtype}; expected one dtype")
        if w.device != first.device:
            raise ValueError(
                f"{op}: weights[{index}] is on {w.device} and weights[0] on {first.device}; expected one device"
            )


def _pairs(op: str, name: str, value: Size, count: int, least: int):
    """(height, width) of each convolution, from one integer for all, or one entry, an integer or a pair, for each."""
    if not isinstance(value, list | tuple):
        return iter([_pair(op, name, value, least)] * count)
    if len(value) != count:
        raise ValueError(
            f"{op}: {name} has {len(value)} entries; expected an integer, or one entry for each of the {count} "
            "convolutions"
        )
    return iter([_pair(op, name, entry, least) for entry in value])


def _pair(op: str, name: str, value: Size | None, least: int) -> tuple[int, int]:
    pair = as_pair(value, least)
    if pair is None:
        raise ValueError(
            f"{op}: {name} is {value}; expected integers, at least {least}: (height, width), or one for both"
        )
    return pair
