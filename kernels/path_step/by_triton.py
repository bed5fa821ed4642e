"""The passes over the weights in Triton, a launch each for all layers: w g summed by rows and columns, and the update.

A layer lies as rows, the I · T edges into one node side by side (of a transposed convolution the O · T out of one),
and is cut into tiles, one a program. The layers' addresses are arguments of the launch, as in torch's own foreach
kernels: gradients may lie elsewhere in every step, and a CUDA graph keeps arguments, where a table of addresses would
have to be copied from the host while it is captured. Shapes and each layer's first tile are compile-time constants; a
program finds its layer by comparing its number with them.

Sums go by tiles, each into places of its own, which torch adds up: one reading of w and g serves both, and no order of
additions is left to chance.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv
from .definition import Ends, Layer, Options, Shape, Skeleton, problem_of


def _default(problem: Mapping[str, int | str | bool]) -> Config:
    return {"ROWS": 16, "COLUMNS": 64, "num_warps": 4}  # of a tile


FLOWS = Tuned(
    "path_flows.triton",
    # nothing to choose from: another tile, or another number of warps, adds w g in another order
    Space({"ROWS": (16,), "COLUMNS": (64,), "num_warps": (4,)}),
    default=_default,
    source=Path(__file__),
)
MOVE = Tuned(
    "path_move.triton",
    Space({"ROWS": (4, 8, 16, 32), "COLUMNS": (32, 64, 128, 256), "num_warps": (2, 4, 8)}),
    default=_default,
    source=Path(__file__),
)
_MOST = 32  # layers of a launch: a program compares with each, and a launch has room for some 500 addresses


@triton.jit
def _of(layer, values):
    """The element `layer` of the tuple `values`, where `layer` is a number that the running kernel computes."""
    value = values[0]
    for number in tl.static_range(1, len(values)):  # pyright: ignore[reportGeneralTypeIssues]
        if layer == number:
            value = values[number]
    return value


@triton.jit
def _tile(
    TILES: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """This program's layer, the group, and the tile's place among the group's, down and across."""
    layer = 0
    for number in tl.static_range(1, len(TILES)):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        if tl.program_id(0) >= TILES[number]:
            layer = number
    tile = tl.program_id(0) - _of(layer, TILES)
    down = tl.cdiv(_of(layer, OUTPUTS), ROWS)
    across = tl.cdiv(_of(layer, INPUTS) * _of(layer, TAPS), COLUMNS)
    return layer, tile // (down * across), tile // across % down, tile % across


@triton.jit
def _path_flows_kernel(
    weights, grads,  # of each layer [groups, OUTPUTS, INPUTS · TAPS]
    row_sums_ptr,  # from ROW_SUMS on, of each layer: [groups · OUTPUTS, tiles across]
    column_sums_ptr,  # from COLUMN_SUMS on, of each layer: [groups, tiles down, INPUTS · TAPS]
    TILES: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TAPS: tl.constexpr,
    ROW_SUMS: tl.constexpr, COLUMN_SUMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, group, tile, part = _tile(TILES, OUTPUTS, INPUTS, TAPS, ROWS, COLUMNS)
    rows, columns = _of(layer, OUTPUTS), _of(layer, INPUTS) * _of(layer, TAPS)
    row = tile * ROWS + tl.arange(0, ROWS)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offs = (group * rows + row).to(tl.int64)[:, None] * columns + column[None, :]
    w = tl.load(_of(layer, weights) + offs, inside, other=0.0)
    through = w * tl.load(_of(layer, grads) + offs, inside, other=0.0)
    at = (group * rows + row).to(tl.int64) * tl.cdiv(columns, COLUMNS) + part + _of(layer, ROW_SUMS)
    tl.store(row_sums_ptr + at, tl.sum(through, 1), row < rows)
    at = (group * tl.cdiv(rows, ROWS) + tile).to(tl.int64) * columns + column + _of(layer, COLUMN_SUMS)
    tl.store(column_sums_ptr + at, tl.sum(through, 0), column < columns)


@triton.jit
def _path_move_kernel(
    weights, grads, momenta,  # of each layer [groups, OUTPUTS, INPUTS · TAPS]; momenta are used where MOVING
    prefix_ptr, p_ptr,  # from SOURCES on, of each layer: [groups · INPUTS]
    suffix_ptr, q_ptr,  # from TARGETS on, of each layer: [groups · OUTPUTS]
    lr, momentum, decay,
    kept_ptr,  # int64: how many weights were not moved
    TILES: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TAPS: tl.constexpr,
    SOURCES: tl.constexpr, TARGETS: tl.constexpr,
    MOVING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, group, tile, part = _tile(TILES, OUTPUTS, INPUTS, TAPS, ROWS, COLUMNS)
    rows, inputs, taps = _of(layer, OUTPUTS), _of(layer, INPUTS), _of(layer, TAPS)
    row = tile * ROWS + tl.arange(0, ROWS)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    source = _of(layer, SOURCES) + group * inputs + column // taps
    target = _of(layer, TARGETS) + group * rows + row
    of_column, of_row = column < inputs * taps, row < rows
    inside = of_row[:, None] & of_column[None, :]
    psi = tl.load(suffix_ptr + target, of_row, other=1.0)[:, None]
    psi = psi * tl.load(prefix_ptr + source, of_column, other=1.0)[None, :]
    ratio = tl.load(q_ptr + target, of_row, other=1.0)[:, None]
    ratio = ratio * tl.load(p_ptr + source, of_column, other=1.0)[None, :]
    offs = (group * rows + row).to(tl.int64)[:, None] * (inputs * taps) + column[None, :]
    w_ptrs = _of(layer, weights) + offs
    w = tl.load(w_ptrs, inside, other=0.0)
    velocity = tl.load(_of(layer, grads) + offs, inside, other=0.0) / psi + decay * psi * w
    if MOVING:
        m_ptrs = _of(layer, momenta) + offs
        velocity += momentum * tl.load(m_ptrs, inside, other=0.0)
    moved = (w - lr * velocity / psi) / ratio
    is_finite = tl.abs(moved) < float("inf")
    if MOVING:
        tl.store(m_ptrs, velocity, inside & is_finite)
    tl.store(w_ptrs, moved, inside & is_finite)
    kept = tl.sum((inside & (is_finite == 0)).to(tl.int32))
    tl.atomic_add(kept_ptr, kept.to(tl.int64), mask=kept > 0)


def takes(layers: Sequence[Layer], options: Options) -> bool:
    """Whether all is float32 in one piece, and the learning rate a number: a launch must not wait for the device."""
    tensors = (x for layer in layers for x in layer if x is not None)
    return not isinstance(options.lr, Tensor) and all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


def _lying(bones: Skeleton, number: int) -> Shape:
    """A layer as its weight lies: of a turned one the rows are the edges out of a source, beside each other."""
    return bones.shapes[number].turned if bones.wiring.turned[number] else bones.shapes[number]


def layer_flows(layers: Sequence[Layer], bones: Skeleton, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The sums of w g by targets and by sources, as `layer_flows` of definition.py makes them."""
    flows: list[tuple[Tensor, Tensor]] = []
    config = FLOWS.config(problem_of(bones.shapes, layers[0].weight.dtype), layers[0].weight.device)
    for here in _launches(numbers):
        some, shapes = [layers[number] for number in here], tuple(_lying(bones, number) for number in here)
        programs, tiles = tiling(shapes, config["ROWS"], config["COLUMNS"])
        row_sizes, column_sizes = zip(*(sums(shape, config) for shape in shapes), strict=True)
        row_sums = some[0].weight.new_empty(sum(row_sizes))
        column_sums = some[0].weight.new_empty(sum(column_sizes))
        _path_flows_kernel[(programs,)](
            tuple(layer.weight for layer in some), tuple(layer.grad for layer in some), row_sums, column_sums,
            **tiles, ROW_SUMS=starts(row_sizes), COLUMN_SUMS=starts(column_sizes), **config,
        )  # fmt: skip
        parts = zip(here, shapes, row_sums.split(row_sizes), column_sums.split(column_sizes), strict=True)
        for number, shape, by_row, by_column in parts:
            G, _, I, T = shape
            down, across = by_row.view(shape.targets, -1).sum(1), by_column.view(G, -1, I, T).sum((1, 3)).flatten()
            flows.append((across, down) if bones.wiring.turned[number] else (down, across))
    return flows


def move(layers: Sequence[Layer], bones: Skeleton, ends: Sequence[Ends], options: Options, kept: Tensor) -> None:
    """Moves every weight, as `move` of definition.py does."""
    config = MOVE.config(problem_of(bones.shapes, layers[0].weight.dtype), layers[0].weight.device)
    for numbers in _launches(range(len(layers))):
        some, shapes_here = [layers[number] for number in numbers], tuple(_lying(bones, number) for number in numbers)
        of_rows = ([2, 3, 0, 1] if bones.wiring.turned[number] else [0, 1, 2, 3] for number in numbers)
        fours = ([ends[number][at] for at in order] for number, order in zip(numbers, of_rows, strict=True))
        prefix, p, suffix, q = map(torch.cat, zip(*fours, strict=True))
        programs, tiles = tiling(shapes_here, config["ROWS"], config["COLUMNS"])
        grads = tuple(layer.grad for layer in some)
        momenta = tuple(layer.momentum for layer in some if layer.momentum is not None)
        _path_move_kernel[(programs,)](
            tuple(layer.weight for layer in some), grads, momenta or grads, prefix, p, suffix, q,
            options.lr, options.momentum, options.weight_decay, kept, **tiles,
            SOURCES=starts(shape.sources for shape in shapes_here),
            TARGETS=starts(shape.targets for shape in shapes_here),
            MOVING=bool(momenta), **config,
        )  # fmt: skip


@functools.cache
def tiling(shapes: tuple[Shape, ...], rows: int, columns: int) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The tiles of all layers, one a program, and what the kernels are compiled with: shapes, and the first tiles."""
    _, outputs, inputs, taps = zip(*shapes, strict=True)
    tiles = [G * cdiv(O, rows) * cdiv(I * T, columns) for G, O, I, T in shapes]
    return sum(tiles), {"TILES": starts(tiles), "OUTPUTS": outputs, "INPUTS": inputs, "TAPS": taps}


def sums(shape: Shape, config: Config) -> tuple[int, int]:
    """How many places a layer's tiles take for their sums over rows, and over columns."""
    G, O, I, T = shape
    return G * O * cdiv(I * T, config["COLUMNS"]), G * cdiv(O, config["ROWS"]) * I * T


def starts(sizes: Iterable[int]) -> tuple[int, ...]:
    """Where each layer's begin, of numbers that lie layer after layer."""
    return tuple(itertools.accumulate(sizes, initial=0))[:-1]


def _launches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[start : start + _MOST] for start in range(0, len(numbers), _MOST))
