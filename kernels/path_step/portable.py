"""The two passes over the weights in Triton: w g summed over rows and columns of a layer, and the update.

A layer lies as rows, the I · T edges into one node side by side. Sums go by tiles, each into places of its own, which
torch adds up: one reading of w and g serves both, and no order of additions is left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..triton_or_stub import tl, triton
from .definition import Ends, Layer, Options, Shape

_ROWS, _COLUMNS = 16, 256  # of a tile
_BLOCK = 1024


@triton.jit
def _path_flows_kernel(
    w_ptr, g_ptr,  # [groups, rows, columns]
    row_sums_ptr,  # [groups · rows, tiles of columns]
    column_sums_ptr,  # [tiles of rows, groups, columns]
    groups, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, ROWS)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = tile * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offs = (group * rows + row).to(tl.int64)[:, None] * columns + column[None, :]
    through = tl.load(w_ptr + offs, inside, other=0.0) * tl.load(g_ptr + offs, inside, other=0.0)
    at = (group * rows + row) * tl.num_programs(1) + tl.program_id(1)
    tl.store(row_sums_ptr + at, tl.sum(through, 1), row < rows)
    at = (tile * groups + group).to(tl.int64) * columns + column
    tl.store(column_sums_ptr + at, tl.sum(through, 0), column < columns)


@triton.jit
def _path_move_kernel(
    w_ptr, g_ptr, m_ptr,  # [groups · outputs, inputs · TAPS]; m_ptr is read and written where MOVING
    prefix_ptr, p_ptr,  # [groups · inputs]
    suffix_ptr, q_ptr,  # [groups · outputs]
    size, outputs, inputs,
    lr, momentum, decay,
    TAPS: tl.constexpr, MOVING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    between = offs // TAPS  # all edges from one node to another
    target = between // inputs
    source = target // outputs * inputs + between % inputs
    psi = tl.load(prefix_ptr + source, mask, other=1.0) * tl.load(suffix_ptr + target, mask, other=1.0)
    ratio = tl.load(p_ptr + source, mask, other=1.0) * tl.load(q_ptr + target, mask, other=1.0)
    w = tl.load(w_ptr + offs, mask, other=0.0)
    velocity = tl.load(g_ptr + offs, mask, other=0.0) / psi + decay * psi * w
    if MOVING:
        velocity += momentum * tl.load(m_ptr + offs, mask, other=0.0)
        tl.store(m_ptr + offs, velocity, mask)
    tl.store(w_ptr + offs, (w - lr * velocity / psi) / ratio, mask)


def takes(layers: Sequence[Layer], options: Options) -> bool:
    """float32 that lies in one piece; a learning rate that the host knows: a launch must not wait for the device."""
    tensors = (x for layer in layers for x in layer if x is not None)
    return not isinstance(options.lr, Tensor) and all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


def node_flows(layers: Sequence[Layer], shapes: Sequence[Shape], reduced: Sequence[bool]) -> list[Tensor]:
    """As the definition's."""
    flows: dict[int, Tensor] = {}
    for number, ((G, O, I, T), layer) in enumerate(zip(shapes, layers, strict=True)):
        if not reduced[number]:
            continue
        tiles, columns = triton.cdiv(O, _ROWS), I * T
        across = triton.cdiv(columns, _COLUMNS)
        row_sums = layer.weight.new_empty(G * O, across)
        column_sums = layer.weight.new_empty(tiles, G, I, T)
        _path_flows_kernel[G * tiles, across](
            layer.weight, layer.grad, row_sums, column_sums, G, O, columns, ROWS=_ROWS, COLUMNS=_COLUMNS
        )
        flows.setdefault(number - 1, column_sums.sum((0, 3)).flatten())
        flows[number] = row_sums.sum(1)
        if layer.bias is not None and layer.bias_grad is not None:
            flows[number] += layer.bias * layer.bias_grad
    return [flows[h] for h in range(len(layers) - 1)]


def move(layer: Layer, shape: Shape, ends: Ends, options: Options) -> None:
    """As the definition's."""
    _, O, I, T = shape
    size = layer.weight.numel()
    moving = layer.momentum is not None
    _path_move_kernel[(triton.cdiv(size, _BLOCK),)](
        layer.weight,
        layer.grad,
        layer.momentum if moving else layer.grad,
        ends.prefix,
        ends.p,
        ends.suffix,
        ends.q,
        size,
        O,
        I,
        options.lr,
        options.momentum,
        options.weight_decay,
        TAPS=T,
        MOVING=moving,
        BLOCK=_BLOCK,
    )
